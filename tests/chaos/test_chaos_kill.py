"""kill -9 of each process in the middle of work. What was acknowledged is there afterwards, and only that or newer.

Killing a process is not a power failure: what a server has handed to its kernel survives. That is why closing a file is
enough of an acknowledgement here.
"""

import errno
import os
import time
from contextlib import suppress
from random import Random

import pytest

from harness.cluster import Cluster, wait_until
from harness.load import Workload
from harness.refusals import failing

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)  # what calls into a mount without a process get


def test_a_killed_metadata_service_is_waited_for(cluster: Cluster, load: Workload):
    cluster.kill("mds")
    time.sleep(0.5)  # what was answered before arrives
    stalled = load.done
    time.sleep(1.0)
    assert load.done == stalled, "an operation succeeded without a metadata service"
    cluster.up()
    load.wait_progress(20)
    load.stop()
    load.verify()


def test_a_metadata_service_killed_again_and_again(cluster: Cluster, load: Workload):
    for _ in range(3):
        cluster.kill("mds")
        cluster.up()
        load.wait_progress(5)
    load.stop()
    load.verify()


@pytest.mark.parametrize("victim", ["chunkserver-1", "chunkserver-2"])
def test_work_goes_on_without_a_chunkserver_and_with_it_again(cluster: Cluster, load: Workload, victim: str):
    cluster.kill(victim)
    load.wait_progress(10)
    cluster.up()
    load.wait_progress(20)
    load.stop()
    load.verify()
    all_copies_return(cluster)


def all_copies_return(cluster: Cluster) -> None:
    """What was written while a chunkserver was away gets its second copy, without anybody doing anything."""
    wait_until(lambda: not cluster.findings(), "all chunks have their copies")


def test_files_stay_readable_while_a_chunkserver_is_gone(cluster: Cluster):
    data = {number: Random(number).randbytes(700_000) for number in range(12)}
    for number, content in data.items():
        (cluster.point / f"f{number}").write_bytes(content)
    cluster.run("umount", cluster.point, "--state", cluster.state)  # nothing may come from a cache
    cluster.up()
    cluster.kill("chunkserver-1")
    with cluster.unhung(60.0):
        for number, content in data.items():
            assert (cluster.point / f"f{number}").read_bytes() == content
    cluster.up()


def test_all_chunkservers_killed_at_once(cluster: Cluster, load: Workload):
    """With no copy within reach a write may fail, and says so; what was acknowledged before is there."""
    cluster.kill("chunkserver")
    time.sleep(1.0)
    cluster.up()
    load.end()
    load.verify()
    data = Random(3).randbytes(3_000_000)
    (cluster.point / "after").write_bytes(data)
    assert (cluster.point / "after").read_bytes() == data
    all_copies_return(cluster)  # the second server dies a moment after the first


def test_a_killed_mount_leaves_what_was_closed_and_a_point_that_up_repairs(cluster: Cluster, load: Workload):
    cluster.kill("mount")
    wait_until(lambda: load.process.poll() is not None, "the workload meets the error")
    assert failing(os.listdir, cluster.point) in DEAD
    cluster.up()
    only_the_new_session_is_there(cluster)
    load.verify()


def only_the_new_session_is_there(cluster: Cluster) -> None:
    """The mount has ended what the killed one left: nobody waits until that has been silent for 20 s."""
    assert len(cluster.status()["sessions"]) == 1


def test_a_killed_mount_leaves_what_was_synced(cluster: Cluster):
    data = Random(1).randbytes(6_000_000)
    fd = os.open(cluster.point / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, data)
    os.fsync(fd)
    os.write(fd, b"not synced")
    cluster.kill("mount")
    assert failing(os.fsync, fd) in DEAD
    close_dead(fd)
    cluster.up()
    only_the_new_session_is_there(cluster)
    assert (cluster.point / "f").read_bytes()[: len(data)] == data


def close_dead(fd: int) -> None:
    """Close a descriptor of a mount that is gone: it is closed, whatever close(2) says."""
    with suppress(OSError):
        os.close(fd)


def test_everything_killed_at_once(cluster: Cluster, load: Workload):
    cluster.kill("mount", "mds", "chunkserver")
    load.process.wait(20.0)
    cluster.up()
    only_the_new_session_is_there(cluster)
    load.verify()


def test_everything_killed_while_idle(cluster: Cluster):
    large = Random(2).randbytes(9_000_000)
    (cluster.point / "d").mkdir()
    (cluster.point / "d" / "small").write_bytes(b"small")
    (cluster.point / "d" / "large").write_bytes(large)
    os.link(cluster.point / "d" / "small", cluster.point / "link")
    os.rename(cluster.point / "d" / "large", cluster.point / "moved")
    (cluster.point / "gone").touch()
    (cluster.point / "gone").unlink()
    cluster.kill("mount", "mds", "chunkserver")
    cluster.up()
    assert sorted(os.listdir(cluster.point)) == ["d", "link", "moved"]
    assert (cluster.point / "link").read_bytes() == b"small"
    assert (cluster.point / "link").stat().st_nlink == 2
    assert (cluster.point / "moved").read_bytes() == large


def test_an_unlinked_open_file_is_gone_after_its_mount_was_killed(cluster: Cluster):
    fd = os.open(cluster.point / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * 3_000_000)
    os.fsync(fd)
    (cluster.point / "f").unlink()
    cluster.kill("mount")
    close_dead(fd)
    cluster.up()
    assert os.listdir(cluster.point) == []
