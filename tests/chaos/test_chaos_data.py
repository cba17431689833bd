"""Chunkservers on hosts of their own: killed, stopped, cut off, damaged, emptied, and without power, under a workload
that knows what every block may be. For as long as you like: `bench/chaos_data`."""

from collections.abc import Iterator

import pytest

from harness.cluster import require_fuse, wait_until
from harness.data_cluster import DataCluster, data_cluster
from harness.data_nemesis import DataLoad, DataNemesis
from harness.hosts import require_hosts

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[DataCluster]:
    """Three copies on four hosts, written as the test says."""
    require_hosts()
    require_fuse()
    mds = {"replicas": 3, "min_ack": 2, "target_out_ms": 15_000}
    with data_cluster(4, mds=mds, mount={"replication": getattr(request, "param", "fanout")}) as cluster:
        yield cluster


@pytest.fixture
def nemesis(cluster: DataCluster) -> Iterator[DataNemesis]:
    load = DataLoad(cluster, 1)
    try:
        yield DataNemesis(cluster, load, 1)
    finally:
        load.end()


def finish(nemesis: DataNemesis) -> None:
    report = nemesis.load.finish()
    assert report["counts"]["fsyncs"] >= 5
    assert not report["counts"].get("lost")
    assert not report["counts"].get("wrong")
    # Copies that are missing are being made again, and a leader that is new learns of them page by page.
    wait_until(lambda: "fsck: clean" in nemesis.cluster.command("fsck", "--deep", check=False), "fsck is clean", 60.0)
    nemesis.cluster.command("fsck", "--deep")


def test_power_is_cut_from_one_server_and_then_from_all(nemesis: DataNemesis):
    nemesis.strike(nemesis.power_of_one)
    nemesis.strike(nemesis.power_of_all)
    finish(nemesis)


@pytest.mark.long
@pytest.mark.parametrize("cluster", ["chain"], indirect=True)
def test_chains_break_in_the_middle(nemesis: DataNemesis):
    nemesis.strike(nemesis.kill_server)
    nemesis.strike(nemesis.cut_from_one_another)
    passed_on = [nemesis.cluster.counters(host) for host in nemesis.cluster.hosts.hosts]
    assert sum(counters.get("forwards", 0) for counters in passed_on) > 20, passed_on
    assert sum(counters.get("forwards_failed", 0) for counters in passed_on) > 0, "no chain was broken"
    finish(nemesis)
