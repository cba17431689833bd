"""Three metadata nodes: work goes on while one is gone, whichever it is, and stops without a majority."""

import errno
import fcntl
import time
from collections.abc import Iterator

import pytest

from harness.cluster import Cluster, require_fuse
from harness.load import Workload
from harness.refusals import failing


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """In the place of the folder's: this one has three metadata nodes."""
    require_fuse()
    with Cluster("--mds", "3") as cluster:
        cluster.up()
        yield cluster
        with cluster.unhung(60.0):
            cluster.fsck()
        cluster.down()


def leader_of(cluster: Cluster) -> str:
    return f"mds-{cluster.status()['leader']}"


def test_work_goes_on_when_the_leader_dies_and_each_leader_after_it(cluster: Cluster, load: Workload):
    for _ in range(3):
        cluster.kill(leader_of(cluster))
        load.wait_progress(10)
        cluster.up()
    load.stop()
    load.verify()


def test_without_a_majority_work_stalls_and_nothing_that_was_acknowledged_is_lost(cluster: Cluster, load: Workload):
    leader = leader_of(cluster)
    cluster.kill(*({"mds-1", "mds-2", "mds-3"} - {leader}))
    time.sleep(1.5)  # the leader's lease ends, and what was answered before arrives
    stalled = load.done
    time.sleep(1.0)
    assert load.done == stalled, "an operation succeeded without a majority"
    cluster.up()
    load.wait_progress(10)
    load.stop()
    load.verify()


def test_locks_outlive_their_leader(cluster: Cluster):
    path = cluster.point / "locked"
    path.write_bytes(b"x")
    other = cluster.mount("other") / "locked"
    with open(path, "r+b") as mine, open(other, "r+b") as theirs:
        fcntl.lockf(mine, fcntl.LOCK_EX, 10)
        fcntl.flock(theirs, fcntl.LOCK_SH)
        cluster.kill(leader_of(cluster))
        assert failing(fcntl.lockf, theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 1) == errno.EAGAIN
        assert failing(fcntl.flock, mine, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 10)
        fcntl.lockf(mine, fcntl.LOCK_UN)
        fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    cluster.umount("other")
    cluster.up()
