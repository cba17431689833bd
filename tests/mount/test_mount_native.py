"""What the compiled part adds to a mount, and what a mount does without it."""

import errno
import fcntl
import os
import stat
import subprocess
import termios
import time
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.libc import FALLOC_FL_KEEP_SIZE, fallocate
from harness.refusals import failing
from harness.users import run_as
from shoalfs.fs import native

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root")


def birth_s(path: Path) -> float:
    return float(subprocess.run(["stat", "-c", "%.9W", path], check=True, capture_output=True, text=True).stdout)


def test_a_file_tells_when_it_was_born(mnt: Path):
    before = time.time()
    (mnt / "f").write_text("x")
    after = time.time()
    time.sleep(0.01)
    (mnt / "f").write_text("later")
    assert before - 0.1 <= birth_s(mnt / "f") <= after + 0.1
    assert birth_s(mnt / "f") < (mnt / "f").stat().st_mtime
    assert birth_s(mnt) <= birth_s(mnt / "f")


def test_a_file_is_no_terminal(mnt: Path):
    with open(mnt / "f", "wb") as file:
        assert not file.isatty()
        assert failing(fcntl.ioctl, file, termios.TCGETS, bytes(64)) == errno.ENOTTY


@needs_root
@pytest.mark.parametrize("size", [3, 300_000, 3_000_000])
def test_writing_takes_set_id_bits_and_capabilities_away_at_once(mnt: Path, size: int):
    path = mnt / "f"
    path.write_bytes(bytes(100))
    os.chmod(path, 0o6777)
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200100000000000000000000000000000"))

    def write() -> None:
        with open(path, "r+b", buffering=0) as file:
            file.write(b"x" * size)
            assert not os.fstat(file.fileno()).st_mode & (stat.S_ISUID | stat.S_ISGID)

    run_as(write)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert os.listxattr(path) == []


def test_a_mount_without_the_compiled_part_works_and_says_what_is_missing(
    cluster: Cluster, mnt: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(native.WITHOUT, "1")
    there = cluster.mount("plain") / mnt.name
    try:
        (mnt / "f").write_text("here")
        assert (there / "f").read_text() == "here"
        (there / "g").write_bytes(bytes(100_000))
        with open(there / "g", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            assert failing(fallocate, file.fileno(), FALLOC_FL_KEEP_SIZE, 0, 4096) == errno.EOPNOTSUPP
        assert (mnt / "g").read_bytes() == bytes(100_000)
        for number in range(300):  # several parts of a listing
            (mnt / f"{number:0100}").write_bytes(bytes(number))
        listed = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(there)}
        assert listed == {"f": 4, "g": 100_000} | {f"{number:0100}": number for number in range(300)}
        assert "locks hold on this machine only" in (cluster.state / "log" / "plain.log").read_text()
        assert "this machine only" not in (cluster.state / "log" / "mount.log").read_text()
    finally:
        cluster.umount("plain")
