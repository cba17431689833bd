"""Extended attributes."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from harness.refusals import failing
from harness.users import run_as

KIB = 1024


@pytest.fixture(params=["file", "directory"])
def path(mnt: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "file":
        (mnt / "x").touch()
    else:
        (mnt / "x").mkdir()
    return mnt / "x"


@pytest.mark.parametrize("value", [b"", b"text", b"\0binary\xff", b"v" * 3000], ids=len)
def test_a_value_is_kept(path: Path, value: bytes):
    os.setxattr(path, "user.name", value)
    assert os.getxattr(path, "user.name") == value


def test_values_are_replaced_listed_and_removed(path: Path):
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"2")
    os.setxattr(path, "user.a", b"longer than before")
    assert sorted(name for name in os.listxattr(path) if name.startswith("user.")) == ["user.a", "user.b"]
    os.removexattr(path, "user.a")
    assert failing(os.getxattr, path, "user.a") == errno.ENODATA
    assert os.getxattr(path, "user.b") == b"2"


def test_create_and_replace_flags(path: Path):
    assert failing(os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE) == errno.ENODATA
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    assert failing(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_what_is_absent_is_not_removed(path: Path):
    assert failing(os.removexattr, path, "user.absent") == errno.ENODATA


def test_names_and_values_have_limits(path: Path):
    os.setxattr(path, "user." + "n" * 250, b"longest name")
    assert failing(os.setxattr, path, "user." + "n" * 251, b"") == errno.ERANGE
    assert failing(os.setxattr, path, "user.a", bytes(64 * KIB + 1)) == errno.E2BIG


def test_values_together_have_a_limit(path: Path):
    """How much fits differs between filesystems; what does not fit is refused and leaves the rest alone."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - which of them is refused is not promised
        for number in range(40):
            os.setxattr(path, f"user.{number}", bytes(4 * KIB - 200))
    assert raised.value.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
    for name in os.listxattr(path):
        assert os.getxattr(path, name) == bytes(4 * KIB - 200)


def test_large_values(path: Path, cluster: object):  # ext4 keeps no more than a block
    value = os.urandom(64 * KIB)
    os.setxattr(path, "user.large", value)
    assert os.getxattr(path, "user.large") == value
    assert failing(os.setxattr, path, "user.more", bytes(300)) == errno.ENOSPC
    assert [name for name in os.listxattr(path) if name.startswith("user.")] == ["user.large"]


def test_unknown_namespaces_are_refused(path: Path):
    assert failing(os.setxattr, path, "nonsense.a", b"1") == errno.EOPNOTSUPP


def test_symlinks_take_no_user_attributes(mnt: Path):
    (mnt / "s").symlink_to("nowhere")
    with pytest.raises(PermissionError):
        os.setxattr(mnt / "s", "user.a", b"1", follow_symlinks=False)


def test_attributes_stay_with_the_inode(mnt: Path):
    (mnt / "f").touch()
    os.setxattr(mnt / "f", "user.a", b"1")
    os.link(mnt / "f", mnt / "g")
    os.rename(mnt / "f", mnt / "h")
    (mnt / "g").write_bytes(bytes(100_000))
    assert os.getxattr(mnt / "g", "user.a") == os.getxattr(mnt / "h", "user.a") == b"1"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_reading_and_setting_take_permission(mnt: Path):
    (mnt / "f").touch()
    os.setxattr(mnt / "f", "user.a", b"1")
    with pytest.raises(PermissionError):
        run_as(lambda: os.setxattr(mnt / "f", "user.a", b"2"))
    (mnt / "f").chmod(0o600)
    with pytest.raises(PermissionError):
        run_as(lambda: os.getxattr(mnt / "f", "user.a").hex())


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_one_set_elsewhere_is_seen_after_a_listing_that_had_none(mnt: Path, there: Path):
    for name in ("f", "g"):
        (mnt / name).touch()
    for name, value in (("user.a", b"1"), ("security.selinux", b"label")):
        subprocess.run(["ls", "-l", there], check=True, capture_output=True)
        assert failing(os.getxattr, there / "f", name) == errno.ENODATA
        os.setxattr(mnt / "f", name, value)
        assert os.getxattr(there / "f", name) == value
        assert sorted(os.listxattr(there / "f")) == sorted(os.listxattr(mnt / "f"))
        assert failing(os.getxattr, there / "g", name) == errno.ENODATA
        assert os.listxattr(there / "g") == []
        os.removexattr(there / "f", name)
        assert failing(os.getxattr, mnt / "f", name) == errno.ENODATA
