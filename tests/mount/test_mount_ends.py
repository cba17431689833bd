"""How a mount ends: by a signal, in use or not, or out of sight with another one in its place."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.refusals import failing
from shoalfs.fs import mountinfo

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)  # what calls into a mount without a process get
SOON_S = 15.0  # less than a session takes to end by itself


def clients(cluster: Cluster, point: Path) -> int:
    """How many sessions there are of mounts at this point."""
    return sum(session["client"].endswith(f":{point}") for session in cluster.status()["sessions"])


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor, whose file's mount may be gone at the end."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def test_a_signal_unmounts(cluster: Cluster, mnt: Path):
    point = cluster.mount("ends")
    (point / mnt.name / "f").write_bytes(b"data")
    assert cluster.terminate("ends") == 0
    assert mountinfo.mounted_at(str(point), mountinfo.mounts()) is None
    assert not clients(cluster, point)
    assert (mnt / "f").read_bytes() == b"data"


@pytest.mark.parametrize("size", [6, 3_000_000])
def test_a_signal_to_a_mount_in_use_commits_what_was_written_and_ends_its_session(
    cluster: Cluster, mnt: Path, size: int
):
    """As systemd and Kubernetes end one whose users they did not end before."""
    point, data = cluster.mount("ends"), os.urandom(size)
    with opened(point / mnt.name / "f") as fd:
        os.write(fd, data)
        began = time.monotonic()
        assert cluster.terminate("ends") == 0
        assert not clients(cluster, point)
        assert (mnt / "f").read_bytes() == data
        assert time.monotonic() - began < SOON_S
        assert failing(os.write, fd, b"more") in DEAD
    assert mountinfo.mounted_at(str(point), mountinfo.mounts()) is None


@pytest.mark.parametrize("its_end", ["its last user closes", "SIGTERM"])
def test_a_mount_out_of_sight_and_one_in_its_place_leave_each_other_alone(cluster: Cluster, mnt: Path, its_end: str):
    point = cluster.mount("ends")
    with opened(point / mnt.name / "f") as fd:
        os.write(fd, b"before")
        hidden = cluster.hide("ends")
        assert cluster.mount("ends") == point
        assert clients(cluster, point) == 2, "it was not taken for dead"
        os.write(fd, b" and after")
        os.fsync(fd)
        os.write(fd, b" that")
        if its_end == "SIGTERM":
            hidden.terminate()
            assert hidden.wait(SOON_S) == 0
    assert hidden.wait(SOON_S) == 0
    assert clients(cluster, point) == 1
    assert (point / mnt.name / "f").read_bytes() == b"before and after that"
    cluster.umount("ends")


def test_a_signal_ends_one_that_waits_for_a_metadata_service(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "shoalfs", "mount", f"unix:{tmp_path}/nobody", tmp_path, "--state", tmp_path / "state"],
        cwd="/",
        stderr=subprocess.PIPE,
    )
    try:
        time.sleep(2.0)
        assert process.poll() is None, "it waits"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SOON_S)
    finally:
        process.kill()
        process.communicate()
    assert mountinfo.mounted_at(str(tmp_path), mountinfo.mounts()) is None
