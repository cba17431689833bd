"""flock(2) and fcntl(2) between two mounts of one cluster, with real processes that hold, wait and die."""

import errno
import fcntl
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.cluster import Cluster, wait_until
from harness.refusals import failing

SETTLE_S = 0.3  # a waiter has surely reached its queue

# A process that locks: <path> <"flock"|"fcntl"> <"sh"|"ex"> [start length]. Prints "locked", then obeys stdin: any line
# ends it in order; closed stdin does too.
HOLDER = """
import fcntl, sys
path, world, kind, *where = sys.argv[1:]
file = open(path, "r+b", buffering=0)
flag = fcntl.LOCK_EX if kind == "ex" else fcntl.LOCK_SH
start, length = (int(n) for n in where) if where else (0, 0)
if world == "flock":
    fcntl.flock(file, flag)
else:
    fcntl.lockf(file, flag, length, start)
print("locked", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(
    path: Path, world: str = "fcntl", kind: str = "ex", *where: int, wait: bool = True
) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), world, kind, *map(str, where)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if wait:
            assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def let_go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(20) == 0


def lock(world: str, file: object, flags: int) -> None:
    (fcntl.flock if world == "flock" else fcntl.lockf)(file, flags)


def refused(world: str, path: Path, kind: str) -> bool:
    """Whether a lock cannot be had now."""
    flag = fcntl.LOCK_EX if kind == "ex" else fcntl.LOCK_SH
    with open(path, "r+b", buffering=0) as file:
        try:
            lock(world, file, flag | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        lock(world, file, fcntl.LOCK_UN)
        return False


def getlk(file: object, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """F_GETLK: (kind, start, length, pid)."""
    flock = struct.Struct("hhqqi4x")
    answer = fcntl.fcntl(file, fcntl.F_GETLK, flock.pack(kind, os.SEEK_SET, start, length, 0))
    found, _, start, length, pid = flock.unpack(answer)
    return found, start, length, pid


@pytest.fixture
def file(mnt: Path) -> Path:
    path = mnt / "f"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def same(there: Path, file: Path) -> Path:
    """The file as the other mount sees it."""
    return there / file.name


BOTH = pytest.mark.parametrize("world", ["flock", "fcntl"])


@BOTH
def test_exclusive_here_keeps_out_there_until_it_is_given_back(file: Path, same: Path, world: str):
    with holder(file, world) as process:
        assert refused(world, same, "ex")
        assert refused(world, same, "sh")
        let_go(process)
    assert not refused(world, same, "ex")


@BOTH
def test_shared_here_is_shared_there(file: Path, same: Path, world: str):
    with holder(file, world, "sh"), holder(same, world, "sh"):
        assert not refused(world, same, "sh")
        assert refused(world, same, "ex")
        assert refused(world, file, "ex")
    assert not refused(world, same, "ex")


@BOTH
def test_who_waits_there_is_woken_by_the_unlock_here(file: Path, same: Path, world: str):
    with holder(file, world) as first, holder(same, world, wait=False) as second:
        time.sleep(SETTLE_S)
        assert second.poll() is None
        began = time.monotonic()
        let_go(first)
        assert second.stdout.readline() == "locked\n"
        assert time.monotonic() - began < 2.0
        assert refused(world, file, "sh")


def test_the_two_kinds_do_not_see_each_other(file: Path, same: Path):
    with holder(file, "flock"):
        assert not refused("fcntl", same, "ex")
    with holder(file, "fcntl"):
        assert not refused("flock", same, "ex")


def test_ranges(file: Path, same: Path):
    with holder(file, "fcntl", "ex", 100, 50), open(same, "r+b", buffering=0) as other:
        for start, length, free in [(0, 100, True), (99, 2, False), (149, 1, False), (150, 0, True), (120, 0, False)]:
            attempt = lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)  # noqa: B023, E731
            if free:
                attempt()
            else:
                assert failing(attempt) in (errno.EAGAIN, errno.EACCES)
        fcntl.lockf(other, fcntl.LOCK_UN, 0, 0)


def test_getlk_tells_what_is_in_the_way(file: Path, same: Path):
    with open(same, "r+b", buffering=0) as other:
        assert getlk(other, fcntl.F_WRLCK, 0, 0)[0] == fcntl.F_UNLCK
        with holder(file, "fcntl", "sh", 10, 20) as process:
            assert getlk(other, fcntl.F_WRLCK, 0, 0) == (fcntl.F_RDLCK, 10, 20, 0)  # a pid of elsewhere means nothing
            assert getlk(other, fcntl.F_RDLCK, 0, 0)[0] == fcntl.F_UNLCK
            with open(file, "r+b", buffering=0) as neighbour:
                assert getlk(neighbour, fcntl.F_WRLCK, 0, 0) == (fcntl.F_RDLCK, 10, 20, process.pid)


def test_closing_any_descriptor_gives_fcntl_locks_back(file: Path, same: Path):
    first = os.open(file, os.O_RDWR)
    fcntl.lockf(first, fcntl.LOCK_EX)
    assert refused("fcntl", same, "ex")
    os.close(os.open(file, os.O_RDONLY))
    assert not refused("fcntl", same, "ex")
    os.close(first)


def test_flock_stays_until_the_last_duplicate_is_closed(file: Path, same: Path):
    first = os.open(file, os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX)
    second = os.dup(first)
    os.close(first)
    assert refused("flock", same, "ex")
    os.close(second)
    wait_until(lambda: not refused("flock", same, "ex"), "the kernel releases the file")


def test_a_lock_of_an_open_file_ends_with_it(file: Path, same: Path):
    f_ofd_setlk = 37
    first = os.open(file, os.O_RDWR)
    fcntl.fcntl(first, f_ofd_setlk, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    assert refused("fcntl", same, "ex")
    os.close(os.open(file, os.O_RDONLY))
    assert refused("fcntl", same, "ex")
    os.close(first)
    wait_until(lambda: not refused("fcntl", same, "ex"), "the kernel releases the file")


@pytest.mark.parametrize("kind", ["flock", "ofd"])
def test_the_last_close_gives_a_lock_back_before_it_returns(file: Path, kind: str):
    """On this mount: the kernel does not wait until a filesystem in user space has heard of a last close, so whoever
    asks next has to."""

    def lock(descriptor: int) -> None:
        if kind == "flock":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.fcntl(descriptor, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))

    for number in range(20):
        first, second = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
        try:
            lock(first)
            os.pwrite(first, b"%d" % number, 0)
        finally:
            os.close(first)
        lock(second)
        os.close(second)


@BOTH
def test_a_killed_process_gives_its_locks_back(file: Path, same: Path, world: str):
    with holder(file, world) as process:
        assert refused(world, same, "ex")
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not refused(world, same, "ex"), "the lock of the dead is free", 5)


@BOTH
def test_a_signal_ends_the_waiting_and_leaves_nothing_behind(file: Path, same: Path, world: str):
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with holder(same, world) as process:
            with open(file, "r+b", buffering=0) as mine:
                signal.setitimer(signal.ITIMER_REAL, SETTLE_S)
                with pytest.raises(Alarm):
                    lock(world, mine, fcntl.LOCK_EX)
                let_go(process)
                wait_until(lambda: not refused(world, same, "ex"), "the other mount hears of the last close")
            with holder(same, world), holder(file, world, wait=False) as waiting:
                time.sleep(SETTLE_S)
                began = time.monotonic()
                waiting.send_signal(signal.SIGKILL)
                waiting.wait(10)
                assert time.monotonic() - began < 3.0
            wait_until(lambda: not refused(world, file, "ex"), "the other mount hears of the last close")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_circle_of_waiting_is_refused(file: Path, same: Path):
    with open(file, "r+b", buffering=0) as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX, 1, 0)
        script = HOLDER.replace(
            'print("locked"', 'print("second", flush=True); fcntl.lockf(file, flag, 1, 0); print("locked"'
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(same), "fcntl", "ex", "1", "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "second\n"
            time.sleep(SETTLE_S)
            assert failing(fcntl.lockf, mine, fcntl.LOCK_EX, 1, 1) == errno.EDEADLK
            fcntl.lockf(mine, fcntl.LOCK_UN, 1, 0)
            assert process.stdout.readline() == "locked\n"
        finally:
            process.kill()
            process.communicate()


def test_more_processes_wait_than_the_mount_has_workers(file: Path, same: Path):
    with holder(same, "flock") as first:
        waiting = [subprocess.Popen(["flock", str(file), "true"], stdin=subprocess.DEVNULL) for _ in range(80)]
        try:
            time.sleep(1.0)
            assert file.read_bytes() == bytes(1000), "others are served meanwhile"
            let_go(first)
            assert [process.wait(60) for process in waiting] == [0] * len(waiting)
        finally:
            for process in waiting:
                process.kill()
                process.wait()


@pytest.mark.parametrize("size", [8, 100_000])
def test_a_counter_under_a_lock_loses_nothing(mnt: Path, there: Path, size: int):
    """Read, add one, write back, on both mounts: each holder sees what the last one wrote, cached pages or not."""
    (mnt / "count").write_bytes(b"0".zfill(8) + bytes(size - 8))
    script = """
import fcntl, sys
for _ in range(60):
    with open(sys.argv[1], "r+b", buffering=0) as file:
        for _ in range(2):
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0)
            value = int(file.read(8))
            file.seek(0)
            file.write(b"%08d" % (value + 1))
            fcntl.lockf(file, fcntl.LOCK_UN)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(directory / "count")])
        for directory in (mnt, there, mnt, there)
    ]
    assert [process.wait(100) for process in processes] == [0] * 4
    assert int((there / "count").read_bytes()[:8]) == 4 * 120


@pytest.mark.parametrize("journal", ["delete", "persist"])
def test_sqlite_from_two_mounts_at_once(mnt: Path, there: Path, journal: str):
    with sqlite3.connect(mnt / "db") as db:
        db.execute(f"pragma journal_mode = {journal}")
        db.execute("create table t (who text, n integer)")
    db.close()
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
db.execute(f"pragma journal_mode = {sys.argv[3]}")
for n in range(40):
    with db:
        db.execute("insert into t select ?, count(*) from t", (sys.argv[2],))
db.close()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(directory / "db"), name, journal])
        for directory, name in ((mnt, "a"), (there, "b"), (there, "c"))
    ]
    assert [process.wait(100) for process in processes] == [0] * 3
    for directory in (mnt, there):
        db = sqlite3.connect(directory / "db")
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert sorted(row[0] for row in db.execute("select n from t")) == list(range(120))
        db.close()


def test_a_restarted_leader_is_told_the_locks(cluster: Cluster, file: Path, same: Path):
    with holder(file, "fcntl", "ex"), holder(same, "flock", "ex"), holder(same, "fcntl", wait=False) as waiting:
        time.sleep(SETTLE_S)
        cluster.kill("mds")
        cluster.up()
        assert refused("fcntl", same, "ex")
        assert refused("flock", file, "sh")
        assert waiting.poll() is None
    assert not refused("fcntl", same, "ex")


def test_a_mount_that_lost_its_session_does_not_go_on_under_the_lock(cluster: Cluster, mnt: Path):
    point = cluster.mount("evicted")
    try:
        path = point / mnt.name / "f"
        (mnt / "f").write_bytes(b"x" * 100)
        (mnt / "g").write_bytes(b"y" * 100)
        with open(path, "r+b", buffering=0) as locked, open(path.with_name("g"), "r+b", buffering=0) as free:
            fcntl.lockf(locked, fcntl.LOCK_EX)
            assert refused("fcntl", mnt / "f", "ex")
            sessions = json.loads(cluster.run("session", "list", "--state", cluster.state, "-o", "json"))
            (session,) = [row["id"] for row in sessions if row["client"].endswith(str(point))]
            cluster.run("session", "evict", session, "--state", cluster.state)
            assert not refused("fcntl", mnt / "f", "ex")
            wait_until(lambda: reads_fail(locked), "the mount knows that its lock is gone", 15)
            assert failing(os.pwrite, locked.fileno(), b"z", 0) == errno.EIO
            assert failing(fcntl.lockf, locked, fcntl.LOCK_EX) == errno.EIO
            assert os.pread(free.fileno(), 1, 0) == b"y"
        with open(path, "r+b", buffering=0) as again:
            fcntl.lockf(again, fcntl.LOCK_EX)
            assert again.read(1) == b"x"
    finally:
        cluster.umount("evicted")


def reads_fail(file: object) -> bool:
    """Past the pages that the kernel has."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.pread(file.fileno(), 1, 0)
    except OSError as error:
        return error.errno == errno.EIO
    return False
