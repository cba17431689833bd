"""What a killed mount leaves to the next one at its point, and that nobody takes it from one that lives."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from shoalfs.fs.legacy import legacy_at

NONCE = bytes(range(16))
HOLD = """
import sys, time
from shoalfs.fs.legacy import legacy_at
with legacy_at(sys.argv[1]) as legacy:
    legacy.remember(bytes(range(16)))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "run" / "mount-mnt-01234567.session")


def test_at_first_nothing_is_left(path):
    with legacy_at(path) as legacy:
        assert legacy.nonce == b""


def test_who_ends_without_a_word_leaves_its_nonce(path):
    with legacy_at(path) as legacy:
        legacy.remember(b"o" * 16)
        legacy.remember(NONCE)  # of the session that took the place of the first
    assert os.stat(path).st_mode & 0o777 == 0o600
    for _ in range(2):  # the first heir is killed before it has a session of its own
        with legacy_at(path) as legacy:
            assert legacy.nonce == NONCE


def test_who_ends_in_order_leaves_nothing(path):
    with legacy_at(path) as legacy:
        legacy.remember(NONCE)
        legacy.remember(b"")
        assert os.listdir(os.path.dirname(path)) == []
    with legacy_at(path) as legacy:
        assert legacy.nonce == b""


def test_from_one_that_lives_nothing_is_taken_until_it_is_killed(path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with legacy_at(path) as legacy:
            assert legacy is None
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        with legacy_at(path) as legacy:
            assert legacy.nonce == NONCE
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()


@pytest.mark.parametrize(
    "left", [b"", b"x" * 32 + b"\n", b"0" * 31 + b"\n", b"0" * 33 + b"\n", b"0" * 32, b"0" * 32 + b"\n0", b"\0" * 33]
)
def test_what_is_no_nonce_is_nothing(path, left):
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(left)
    with legacy_at(path) as legacy:
        assert legacy.nonce == b""
        legacy.remember(NONCE)
    with legacy_at(path) as legacy:
        assert legacy.nonce == NONCE


def test_a_place_that_cannot_be_written_to_does_not_keep_anybody_from_mounting(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "file" / "x.session", tmp_path / "link"):
        with legacy_at(str(path)) as legacy:
            assert legacy is None
    assert (tmp_path / "file").read_bytes() == b""


def test_a_file_that_its_owner_removes_meanwhile_is_not_taken_for_the_one_in_its_place(path, monkeypatch):
    """The last mount ends in order between our open and our lock: then the next mount would lock another file."""
    lock, removed = fcntl.flock, []

    def remove_first(fd, how):
        if not removed:
            removed.append(os.unlink(path))
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with legacy_at(path) as legacy:
        legacy.remember(NONCE)
        with legacy_at(path) as other:
            assert other is None
    with legacy_at(path) as legacy:
        assert legacy.nonce == NONCE
