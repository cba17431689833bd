"""One cluster for all tests of this folder, one directory of it per test, and a check of everything after each.

With SHOAL_TEST_LOCAL=/some/directory the tests run on that directory instead, and what needs a cluster is skipped. A
test that fails there (ext4, xfs, btrfs) asks for something that filesystems do not do, and is the one to be changed:

    SHOAL_TEST_LOCAL=/var/tmp pytest tests/mount
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import Cluster, attach_logs, require_fuse

LOCAL = "SHOAL_TEST_LOCAL"
HUNG_S = 100.0  # below pytest's own limit, which cannot interrupt a call that hangs in the kernel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    attach_logs(report)
    return report


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster | None]:
    """The cluster of this run; None where the tests run on a local directory."""
    if LOCAL in os.environ:
        yield None
        return
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        yield cluster
        cluster.fsck()  # all is removed
        cluster.down()


@pytest.fixture
def cluster(session_cluster: Cluster | None) -> Iterator[Cluster]:
    """The running cluster, whole before the test and after it."""
    if session_cluster is None:
        pytest.skip(f"{LOCAL} is set: this test is about shoalfs itself")
    if session_cluster.dead():
        session_cluster.up()  # what an earlier test killed, and answered for
    with session_cluster.unhung(HUNG_S):
        yield session_cluster
        assert not session_cluster.dead(), "ended during the test"


@pytest.fixture
def fresh() -> Iterator[Cluster]:
    """A cluster of the test's own, not started yet."""
    if LOCAL in os.environ:
        pytest.skip(f"{LOCAL} is set: this test is about shoalfs itself")
    require_fuse()
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def mnt(session_cluster: Cluster | None, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory of the test's own, on the mount."""
    parent = os.environ[LOCAL] if session_cluster is None else request.getfixturevalue("cluster").point
    mask = os.umask(0o022)
    directory = Path(tempfile.mkdtemp(prefix="test-", dir=parent))
    directory.chmod(0o755)
    yield directory
    os.umask(mask)
    try:
        if session_cluster is not None:
            session_cluster.fsck()  # before the directory is removed: of what the test made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def other_root(session_cluster: Cluster | None) -> Iterator[Path | None]:
    """The root of a second mount of the same cluster."""
    if session_cluster is None:
        yield None
        return
    yield session_cluster.mount("other")
    session_cluster.umount("other")


@pytest.fixture
def there(mnt: Path, other_root: Path | None) -> Path:
    """The directory ``mnt`` as the second mount sees it."""
    if other_root is None:
        pytest.skip(f"{LOCAL} is set: there is no second mount")
    return other_root / mnt.name
