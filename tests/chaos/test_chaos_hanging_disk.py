"""A disk that hangs under load: its filesystem is frozen, so that every write, sync and change to it waits in the
kernel, where no signal reaches it. One of two targets of a running server is on it.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from chaos.test_chaos_redundancy import HUNG_S, check_files, files, impatient, is_whole, rows, status
from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.hosts import run
from harness.load import Workload
from harness.parts import assert_no_traceback, configuration, running, small_disk
from shoalfs.fs.cli import processes

pytestmark = pytest.mark.timeout(240)

LIMIT_MS = 4_000  # one call to a disk; the servers' default would make the test long
SLACK_S = 6.0
FROZEN_S_MAX = 120.0


class Freezer:
    """A filesystem that can be frozen; it is thawed whatever becomes of this process."""

    def __init__(self, point: Path) -> None:
        self.point = point
        self._guard: subprocess.Popen[bytes] | None = None

    def freeze(self) -> None:
        script = f"sleep {FROZEN_S_MAX} && fsfreeze -u {self.point}"
        self._guard = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stderr=subprocess.DEVNULL)
        run("fsfreeze", "-f", self.point)

    def thaw(self) -> None:
        if self._guard is None:
            return
        os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        self._guard = None
        run("fsfreeze", "-u", self.point)


class Prober(threading.Thread):
    """Writes, syncs and reads one file after the other, until told to stop, and notes how long each call took."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._enough = threading.Event()
        self.longest = (0.0, "")
        self.rounds = 0
        self.error: Exception | None = None
        self.contents: dict[Path, bytes] = {}

    def run(self) -> None:
        try:
            while not self._enough.wait(0.05):
                self._round()
        except OSError as error:
            self.error = error

    def _round(self) -> None:
        path, data = self._directory / f"p{self.rounds}", Random(self.rounds).randbytes(150_000)
        with open(path, "wb", buffering=0) as file:
            self._timed("write", lambda: file.write(data))
            self._timed("fsync", lambda: os.fsync(file.fileno()))
            self._timed("close", file.close)
        self.contents[path] = data
        older = self._directory / f"p{self.rounds // 2}"
        found = self._timed("read", older.read_bytes)
        assert found == self.contents[older], "other bytes than were written"
        self.rounds += 1

    def _timed(self, what: str, work):
        began = time.monotonic()
        try:
            return work()
        finally:
            self.longest = max(self.longest, (time.monotonic() - began, what))

    def stop(self) -> None:
        self._enough.set()
        self.join(60.0)
        assert not self.is_alive()


@contextmanager
def freezer() -> Iterator[Freezer]:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: root is needed for loop devices")
    with small_disk(256) as point:
        yield Freezer(point)


def test_a_disk_that_hangs_costs_its_target_and_nothing_else(tmp_path: Path):
    require_fuse()
    with freezer() as disk, Cluster("--nodes", "2") as cluster:
        cluster.up()
        tables = configuration(cluster, "chunkserver-2")
        well = cluster.root / "well"
        tables["chunkserver"] |= {
            "name": "chunkserver-3",
            "listen": tables["chunkserver"]["listen"].replace("chunkserver-2", "chunkserver-3"),
            "targets": [{"path": str(disk.point / "target")}, {"path": str(well)}],
            "disk_call_ms_max": LIMIT_MS,
        }
        with impatient(cluster), running(cluster, "chunkserver-3", tables), cluster.unhung(HUNG_S):
            wait_until(lambda: len(states(cluster)) == 2 and is_whole(cluster), "they hold their parts", 60.0)
            try:
                hang_and_recover(cluster, disk, tmp_path)
                old = end_while_it_hangs(cluster)
                tables["chunkserver"]["targets"].reverse()  # the order in which they are tried does not matter
                with running(cluster, "chunkserver-3", tables):
                    start_while_it_hangs(cluster, disk)
                    disk.thaw()
                    wait_until(lambda: threads_of(old) <= 1, "the threads that hung have ended")
            finally:
                disk.thaw()
            with running(cluster, "chunkserver-3", tables):
                return_after_it_hung(cluster)
            cluster.kill("mount")  # nothing needs the third server to end in order
        cluster.records()


def hang_and_recover(cluster: Cluster, disk: Freezer, directory: Path) -> None:
    """The disk hangs under load, and others take its place."""
    data = files(cluster, 10)
    tree, probes = cluster.point / "tree", cluster.point / "probes"
    tree.mkdir()
    probes.mkdir()
    load, prober = Workload(tree, directory / "journal"), Prober(probes)
    seen: set[str] = set()

    def note() -> list[str]:
        found = states(cluster)
        seen.add(found[1])
        return found

    try:
        prober.start()
        load.wait_progress(10)
        disk.freeze()
        frozen = time.monotonic()
        wait_until(lambda: note()[0] in ("down", "out"), "the target is out of service", 45.0)
        assert time.monotonic() - frozen >= LIMIT_MS / 1000, "before its time"
        (line,) = [line for line in status(cluster)["reasons"] if "chunkserver-3 is down" in line]
        assert "its disk does not answer" in line
        listed = shoal("target", "list", "--state", cluster.state).stdout
        assert "its disk does not answer" in " ".join(listed.split())
        load.wait_progress(10)
        wait_until(lambda: note()[0] == "out", "it is given up", 45.0)
        wait_until(lambda: note() is not None and is_whole(cluster), "others hold its part", 60.0)
        load.wait_progress(10)
        prober.stop()
        load.stop()
    finally:
        end(load)
        prober._enough.set()
    assert seen == {"up"}, "the other target of that server was there all the time"
    assert prober.error is None
    assert prober.rounds > 10
    print(f"longest call: {prober.longest[0]:.1f} s, {prober.longest[1]}; {prober.rounds} rounds")
    assert prober.longest[0] < LIMIT_MS / 1000 + SLACK_S, prober.longest
    load.verify()
    check_files(cluster, data)
    point = cluster.mount("fresh")  # nothing comes from a cache
    for name, content in data.items():
        assert (point / name).read_bytes() == content
    for path, content in prober.contents.items():
        assert (point / "probes" / path.name).read_bytes() == content
    cluster.umount("fresh")
    assert_no_traceback(cluster)


def end_while_it_hangs(cluster: Cluster) -> int:
    """All of the server ends that signals can end: the kernel keeps a process for the threads that hang."""
    (record,) = [record for record in cluster.records() if record.name == "chunkserver-3"]
    os.kill(record.process.pid, signal.SIGTERM)
    wait_until(lambda: not processes.is_running(record.process), "it ends", LIMIT_MS / 1000 + SLACK_S)
    return record.process.pid


def start_while_it_hangs(cluster: Cluster, disk: Freezer) -> None:
    """It serves the other target; that the disk hangs is found again, and said."""
    wait_until(lambda: states(cluster)[1] == "up", "the other target is there again", 45.0)
    wait_until(lambda: f"{disk.point}/target is left out" in log_of(cluster), "it is left out", 30.0)
    data = Random(7).randbytes(3_000_000)
    (cluster.point / "meanwhile").write_bytes(data)
    wait_until(lambda: is_whole(cluster), "nothing is lacking", 45.0)
    assert states(cluster) == ["out", "up"]
    assert_no_traceback(cluster)


def return_after_it_hung(cluster: Cluster) -> None:
    """With a disk that answers again it is a target like any that was away."""
    wait_until(lambda: states(cluster)[1] == "up", "the other target is there again", 45.0)
    first = rows(cluster)["chunkserver-3"][0]["id"]
    assert states(cluster)[0] == "out", "nobody uses it before an operator says so"
    cluster.run("target", "resume", first, "--state", cluster.state)
    wait_until(lambda: states(cluster) == ["up", "up"] and is_whole(cluster), "it is used again", 60.0)
    cluster.fsck()


def threads_of(pid: int) -> int:
    """The first is there until its parent takes notice."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0


def states(cluster: Cluster) -> list[str]:
    """Of the targets of the third server, in the order of their numbers."""
    found = rows(cluster).get("chunkserver-3", [])
    return [str(row["state"]) for row in sorted(found, key=lambda row: int(str(row["id"])))]


def log_of(cluster: Cluster) -> str:
    return (cluster.state / "log" / "chunkserver-3.log").read_text(errors="replace")


def end(load: Workload) -> None:
    if load.process.poll() is None:
        os.kill(load.process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        load.process.communicate(timeout=30.0)
