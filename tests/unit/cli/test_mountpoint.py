"""The states of a mount point that need no mount. The others are in tests/mount."""

import pytest

from shoalfs.fs.cli import mountpoint
from shoalfs.fs.cli.mountpoint import Condition
from shoalfs.transport.errors import UserError


def test_conditions(tmp_path):
    (tmp_path / "free").mkdir()
    (tmp_path / "file").write_text("x")
    assert mountpoint.condition(str(tmp_path)) is Condition.NOT_EMPTY
    assert mountpoint.condition(str(tmp_path / "free")) is Condition.FREE
    assert mountpoint.condition(str(tmp_path / "file")) is Condition.NOT_A_DIRECTORY
    assert mountpoint.condition(str(tmp_path / "gone")) is Condition.MISSING
    assert mountpoint.condition("/proc") is Condition.OTHER


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gone", "create it, or add --mkdir"),
        ("file", "name an empty directory"),
        (".", "name an empty directory"),
    ],
)
def test_an_unfit_mount_point_is_answered_with_a_remedy(tmp_path, name, remedy):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=remedy):
        mountpoint.make_ready(str(tmp_path / name), create=False)


def test_a_mount_point_is_created_only_when_asked_for(tmp_path):
    mountpoint.make_ready(str(tmp_path / "new" / "mnt"), create=True)
    assert mountpoint.condition(str(tmp_path / "new" / "mnt")) is Condition.FREE


def test_a_path_is_made_absolute_without_following_its_last_part(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert mountpoint.absolute("link/x") == str(tmp_path / "real" / "x")
    assert mountpoint.absolute("link") == str(tmp_path / "link")
    assert mountpoint.absolute("link/") == str(tmp_path / "link")
