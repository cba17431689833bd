"""The state directory: what `up` writes is what a later command finds."""

import pytest

from shoalfs.fs.cli.processes import Identity
from shoalfs.fs.cli.state import ClusterRecord, RunRecord, StateDir, default_path
from shoalfs.transport.errors import UserError

CLUSTER = ClusterRecord("00" * 16, 1, 2, 2, 1 << 30)


def record(name, kind):
    return RunRecord(name, kind, Identity(1, 2, "boot"), "unix:/x", "/log")


@pytest.fixture
def state(tmp_path):
    directory = StateDir(str(tmp_path / "state"))
    directory.create()
    return directory


def test_where_state_is_kept_by_default():
    assert default_path({"HOME": "/home/a"}, 0) == "/var/lib/shoalfs"
    assert default_path({"HOME": "/home/a"}, 7) == "/home/a/.local/state/shoalfs"
    assert default_path({"HOME": "/home/a", "XDG_STATE_HOME": "/s"}, 7) == "/s/shoalfs"


def test_nothing_is_there_before_it_is_made(tmp_path):
    directory = StateDir(str(tmp_path / "state"))
    assert directory.cluster is None
    assert directory.records() == []
    assert not (tmp_path / "state").exists()


def test_only_the_owner_looks_inside(state, tmp_path):
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "data").stat().st_mode & 0o777 == 0o700


def test_records_come_back_in_the_order_of_the_start(state):
    for name, kind in (("mount", "mount"), ("chunkserver-2", "chunkserver"), ("mds-1", "mds")):
        state.write_record(record(name, kind))
    state.write_record(record("chunkserver-1", "chunkserver"))
    assert [found.name for found in state.records()] == ["mds-1", "chunkserver-1", "chunkserver-2", "mount"]
    assert state.records()[0] == record("mds-1", "mds")
    state.remove_record("mds-1")
    state.remove_record("mds-1")
    assert [found.name for found in state.records()] == ["chunkserver-1", "chunkserver-2", "mount"]


def test_the_cluster_record_comes_back(state):
    state.write_cluster(CLUSTER)
    assert StateDir(state.path).cluster == CLUSTER


def test_a_damaged_record_is_a_line_with_a_remedy(state, tmp_path):
    (tmp_path / "state" / "cluster.json").write_text("")
    with pytest.raises(UserError, match=r"cluster\.json: damaged .*: remove it"):
        _ = state.cluster


def test_only_one_command_changes_a_state_directory(state):
    with (
        state.locked(),
        pytest.raises(UserError, match="another `shoal up` or `shoal down` is at work"),
        StateDir(state.path).locked(),
    ):
        pytest.fail("both hold it")
    with StateDir(state.path).locked():
        pass


def test_purge_removes_what_was_made_and_nothing_else(state, tmp_path):
    state.write_cluster(CLUSTER)
    (tmp_path / "state" / "data" / "mds-1").mkdir()
    (tmp_path / "state" / "mine").write_text("kept")
    state.purge()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["mine"]
    (tmp_path / "state" / "mine").unlink()
    state.create()
    state.purge()
    assert not (tmp_path / "state").exists()
