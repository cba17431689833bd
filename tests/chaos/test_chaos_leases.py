"""Mounts that die, stand still and come back, beside one that works: what the dead had cached holds nobody up for
longer than its lease, what the living are told is true, and what comes back late is refused.

The lease is short here (3 s instead of 20).
"""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.cluster import Cluster, require_fuse, wait_until
from harness.parts import configuration, running
from harness.refusals import failing
from shoalfs.fs import native
from shoalfs.fs.cli import session

TTL_S = 3.0
HUNG_S = 80.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """In the place of the folder's: one whose sessions end soon."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        cluster.kill("mds-1")
        tables = configuration(cluster, "mds-1")
        tables["mds"]["session_ttl_ms"] = int(TTL_S * 1000)
        with running(cluster, "mds-1", tables), cluster.unhung(HUNG_S):
            wait_until(lambda: keeps_what_is_written(cluster), "bytes are leased again")
            yield cluster
            if "mds-1" not in cluster.dead():  # a test that ends it has looked itself
                cluster.fsck()


def keeps_what_is_written(cluster: Cluster) -> bool:
    """Whether a mount keeps bytes to itself: under a new leader none does until all have told it what they have open,
    and what these tests call not committed would be."""
    path = cluster.point / "probe"
    with open(path, "wb", buffering=0) as file:
        file.write(b"1")
        before = cluster.counters()["mutations"]
        file.write(b"2")
        after = cluster.counters()["mutations"]
    path.unlink()
    return before == after


def sessions(cluster: Cluster) -> int:
    return len(cluster.run("session", "list", "--state", cluster.state).splitlines()) - 1


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


class Asker:
    """A program that asks something of a mount when it is told to. It is started before: a process that is started
    while the mount stands still would hang in closing the files that this one has open there."""

    def __init__(self, code: str, path: Path) -> None:
        program = f"import os, sys; path = sys.argv[1]; sys.stdin.readline(); print({code})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self) -> str | None:
        """What it is told; None if it hangs, until the mount goes on."""
        try:
            return self._process.communicate(b"\n", timeout=1.0)[0].decode().strip()
        except subprocess.TimeoutExpired:
            return None

    def told(self) -> str:
        """What a question that hung is answered with when the mount goes on."""
        return self._process.communicate(timeout=60.0)[0].decode().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


WAITER = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX)"


def test_what_a_killed_mount_held_is_free_after_its_lease(cluster: Cluster):
    other = cluster.mount("other")
    (cluster.point / "f").write_text("committed")
    theirs = os.open(other / "f", os.O_RDWR)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    fcntl.lockf(theirs, fcntl.LOCK_EX)
    with open(cluster.point / "f", "r+b") as mine:
        os.write(theirs, b"never committed")  # after our open, which would have it committed
        assert failing(fcntl.flock, mine, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        assert failing(fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        process = cluster._mounts.pop("other")
        process.kill()
        process.wait()
        began = time.monotonic()
        waiting = subprocess.Popen([sys.executable, "-c", WAITER, cluster.point / "f"])
        (cluster.point / "f").chmod(0o600)  # the dead one had its attributes
        waited_s = time.monotonic() - began
        assert TTL_S / 2 < waited_s < 2 * TTL_S, f"{waited_s}: within its TTL it may come back"
        wait_until(lambda: _locked(mine), "the lock is free", 2 * TTL_S)
        assert waiting.wait(2 * TTL_S) == 0, "who waited for its range has it"
        assert mine.read() == b"committed"
    assert sessions(cluster) == 1
    _close(theirs)
    subprocess.run(["umount", "-l", other], check=True)


def _close(descriptor: int) -> None:
    """The error of what was not committed may be told here too."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _locked(file: object) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return False
    return True


def test_a_mount_that_stood_still_past_its_lease_tells_nothing_old_and_commits_nothing(cluster: Cluster):
    other = cluster.mount("other")
    (cluster.point / "f").write_text("first")
    (cluster.point / "dirty").write_text("committed")
    mode_of = Asker("oct(os.stat(path).st_mode & 0o777)", other / "f")
    text_of = Asker("open(path).read()", other / "f")
    presence_of = Asker("os.path.exists(path)", other / "absent")
    theirs = os.open(other / "dirty", os.O_RDWR)
    assert (other / "f").read_text() == "first"
    assert not (other / "absent").exists()
    mode = (other / "f").stat().st_mode & 0o777
    os.pwrite(theirs, b"stale", 0)
    with stopped(cluster._mounts["other"]):
        began = time.monotonic()
        (cluster.point / "f").chmod(0o600)
        (cluster.point / "absent").touch()
        (cluster.point / "f").write_text("second")
        waited_s = time.monotonic() - began
        assert TTL_S / 2 < waited_s < 3 * TTL_S, f"{waited_s}: it may believe in its leases for so long, and no longer"
        assert mode_of.ask() in (None, "0o600"), f"not the old {mode:o}"
        assert text_of.ask() in (None, "second")
        assert presence_of.ask() in (None, "True")
    for asker in (mode_of, text_of, presence_of):
        asker.end()
    assert (other / "f").stat().st_mode & 0o777 == 0o600
    assert (other / "f").read_text() == "second"
    assert (other / "absent").exists()
    assert failing(os.fsync, theirs) == errno.EIO
    _close(theirs)
    assert (cluster.point / "dirty").read_text() == "committed"
    assert (other / "dirty").read_text() == "committed", "under its new session it goes on"
    cluster.umount("other")


@pytest.mark.skipif(native.shim is None, reason="NOT TESTED: the compiled part was not built")
def test_a_mount_that_is_told_of_no_open_and_stood_still_past_its_lease_serves_nothing_old(cluster: Cluster):
    other = cluster.mount("other", "ro,nolock")
    (cluster.point / "f").write_bytes(b"first")
    assert (other / "f").read_bytes() == b"first"
    reader = Asker("open(path).read()", other / "f")
    with open(other / "f", "rb", buffering=0) as held:
        before = os.fstat(held.fileno())
        with stopped(cluster._mounts["other"]):
            began = time.monotonic()
            (cluster.point / "f").write_bytes(b"other")  # waits until the session has ended
            os.utime(cluster.point / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
            assert time.monotonic() - began > TTL_S / 2
            assert reader.ask() is None, "nothing is answered from memory"
        assert reader.told() == "other"
        assert os.pread(held.fileno(), 100, 0) == b"other"
    cluster.umount("other")


def test_a_mount_that_stood_still_for_less_than_its_lease_loses_nothing(cluster: Cluster):
    other = cluster.mount("other")
    theirs = os.open(other / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(theirs, b"kept", 0)
    with stopped(cluster._mounts["other"]):
        time.sleep(TTL_S / 3)
    os.fsync(theirs)
    os.close(theirs)
    assert (cluster.point / "f").read_text() == "kept"
    cluster.umount("other")


def test_an_evicted_mount_goes_on_without_what_it_had_not_committed(cluster: Cluster):
    other = cluster.mount("other")
    theirs = os.open(other / "f", os.O_RDWR | os.O_CREAT)
    pid = cluster._mounts["other"].pid
    listed = cluster.run("session", "list", "--state", cluster.state).splitlines()
    (line,) = [line for line in listed if f":{pid}:" in line]
    os.pwrite(theirs, b"lost", 0)  # it would be committed after five seconds
    # Not in a process of its own: that would close our file there, which commits.
    session.evict(int(line.split()[0]), None, None, str(cluster.state))
    assert failing(os.fsync, theirs) == errno.EIO
    _close(theirs)
    assert (other / "f").read_text() == ""
    (other / "g").write_text("goes on")
    assert (cluster.point / "g").read_text() == "goes on"
    cluster.umount("other")


def test_mounts_agree_again_at_once_after_the_metadata_service_was_killed(cluster: Cluster):
    other = cluster.mount("other")
    (cluster.point / "f").write_text("before")
    assert (other / "f").read_text() == "before"
    cluster.kill("mds-1")
    tables = configuration(cluster, "mds-1")
    with running(cluster, "mds-1", tables):
        began = time.monotonic()
        (cluster.point / "f").write_text("after")
        assert (other / "f").read_text() == "after"
        assert time.monotonic() - began < TTL_S, "both have reported: nobody waits for a lease to end"
        cluster.umount("other")
        cluster.fsck()


def test_a_mount_that_is_ended_while_nobody_answers_it_can_be_killed(cluster: Cluster):
    """A thread of it that waits for an answer of the mount itself waits for ever, and SIGKILL does not end it."""
    other = cluster.mount("other")
    mount = cluster._mounts.pop("other")
    (node,) = [record.process.pid for record in cluster.records() if record.name == "mds-1"]
    os.kill(node, signal.SIGSTOP)
    try:
        time.sleep(TTL_S + 1)  # the kernel believes nothing any more that it was told
        mount.terminate()
        time.sleep(0.5)
        mount.kill()
        mount.wait(10)
    finally:
        os.kill(node, signal.SIGCONT)
        subprocess.run(["umount", "-l", str(other)], check=False, timeout=10)
