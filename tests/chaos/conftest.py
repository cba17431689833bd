"""A cluster of its own for every test of this folder: they are about what is left after a process was killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import Cluster, attach_logs, require_fuse
from harness.load import Workload

HUNG_S = 90.0  # below pytest's own limit, which cannot interrupt a call that hangs in the kernel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    attach_logs(report)
    return report


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """What `shoal up MNT` gives to everybody who says no more; checked at the end."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        yield cluster
        with cluster.unhung(HUNG_S):
            cluster.fsck()


@pytest.fixture
def load(cluster: Cluster, tmp_path: Path) -> Iterator[Workload]:
    """The workload, well under way."""
    tree = cluster.point / "tree"
    tree.mkdir()
    load = Workload(tree, tmp_path / "journal")
    try:
        with cluster.unhung(HUNG_S):
            load.wait_progress(20)
            yield load
    finally:
        if load.process.poll() is None:
            os.kill(load.process.pid, signal.SIGKILL)
        load.process.communicate()
