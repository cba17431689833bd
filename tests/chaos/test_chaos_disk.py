"""A disk that begins to fail under load: the filesystem below a target gets I/O errors from its device.

The device is a loop over a sparse file in a memory filesystem of bounded size. Once that is full, what the kernel
writes back to new places of the device fails with EIO, as on a disk that is worn out; what was written before can still
be read.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from chaos.test_chaos_redundancy import HUNG_S, check_files, files, impatient, is_whole, rows, status
from harness.cluster import Cluster, require_fuse, wait_until
from harness.hosts import run
from harness.load import Workload
from harness.parts import assert_no_traceback, configuration, running
from shoalfs.transport.limits import MIB

pytestmark = pytest.mark.timeout(150)


class FailingDisk:
    """``point``: the filesystem on the device."""

    def __init__(self, root: Path, size_mib: int) -> None:
        self.root = root
        self.point = root / "disk"
        self.memory = root / "memory"
        for path in (self.point, self.memory):
            path.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", self.memory)
        image = self.memory / "image"
        with open(image, "wb") as file:
            file.truncate(16 * size_mib * MIB)
        run("mkfs.ext4", "-q", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        # Without it the kernel would call the filesystem failed before the target can.
        run("mount", "-o", "loop,errors=continue", image, self.point)

    def begin_to_fail(self) -> None:
        """From here on nothing is written to a place of the device that was never written."""
        with open(self.memory / "filler", "wb", buffering=0) as file:
            for size_bytes in (MIB, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size_bytes))

    def close(self) -> None:
        for path in (self.point, self.memory):
            if os.path.ismount(path) and run("umount", path, check=False).returncode != 0:
                run("umount", "-l", path)


@contextmanager
def failing_disk(root: Path, size_mib: int) -> Iterator[FailingDisk]:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: root is needed for loop devices")
    disk = FailingDisk(root, size_mib)
    try:
        yield disk
    finally:
        disk.close()


def test_a_disk_that_fails_takes_its_target_out_and_others_take_its_place(tmp_path: Path):
    require_fuse()
    with failing_disk(tmp_path / "failing", 192) as disk, Cluster("--nodes", "2") as cluster:
        cluster.up()
        tables = configuration(cluster, "chunkserver-2")
        tables["chunkserver"] |= {
            "name": "chunkserver-3",
            "listen": tables["chunkserver"]["listen"].replace("chunkserver-2", "chunkserver-3"),
            "targets": [{"path": str(disk.point / "target")}],
        }
        assert tables["chunkserver"]["listen"] != configuration(cluster, "chunkserver-2")["chunkserver"]["listen"]
        with impatient(cluster), running(cluster, "chunkserver-3", tables), cluster.unhung(HUNG_S):
            wait_until(
                lambda: is_whole(cluster) and "chunkserver-3" in rows(cluster), "the new one holds its part", 60.0
            )
            data = files(cluster, 10)
            tree = cluster.point / "tree"
            tree.mkdir()
            load = Workload(tree, tmp_path / "journal")
            try:
                load.wait_progress(10)
                disk.begin_to_fail()
                wait_until(lambda: states(cluster)[-1] in ("down", "out"), "the target is out of service", 45.0)
                load.wait_progress(10)
                wait_until(lambda: states(cluster)[-1] == "out", "it is given up", 45.0)
                wait_until(lambda: is_whole(cluster), "others hold its part", 60.0)
                load.stop()
            finally:
                end(load)
            load.verify()
            check_files(cluster, data)
            assert "failed" in log_of(cluster, "chunkserver-3")
            assert "chunkserver-3" not in cluster.dead(), "it goes on answering reads"
            assert_no_traceback(cluster)
            assert status(cluster)["health"] == "healthy"
            point = cluster.mount("fresh")
            for name, content in data.items():
                assert (point / name).read_bytes() == content
            (cluster.point / "after").write_bytes(Random(1).randbytes(MIB))
            cluster.umount("fresh")


def states(cluster: Cluster) -> list[str]:
    """Of the targets of the third server, the oldest first."""
    return [str(row["state"]) for row in rows(cluster)["chunkserver-3"]]


def log_of(cluster: Cluster, name: str) -> str:
    return (cluster.state / "log" / f"{name}.log").read_text(errors="replace")


def end(load: Workload) -> None:
    if load.process.poll() is None:
        os.kill(load.process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        load.process.communicate(timeout=30.0)
