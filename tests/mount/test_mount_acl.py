"""Access control lists: kept, obeyed, inherited, and seen by the programs that are for them."""

import errno
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from harness.refusals import failing
from harness.users import run_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF


def packed(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """The value of the attribute. Entries: tag, permissions and, for names, the id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *(*entry, NO_ID)[:3]) for entry in entries)


def setfacl(*arguments: object) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True, capture_output=True, text=True)


def getfacl(path: Path, *options: str) -> list[str]:
    command = ["getfacl", "--omit-header", "--numeric", "--absolute-names", *options, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split("\t")[0] for line in done.stdout.splitlines() if line]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(function, **who: object) -> int:
    return failing(lambda: run_as(function, **who))


@pytest.fixture
def shared(mnt: Path) -> Path:
    (mnt / "shared").mkdir()
    (mnt / "shared").chmod(0o777)
    return mnt / "shared"


def test_a_named_user_may_what_the_entry_says(mnt: Path):
    (mnt / "f").write_text("secret")
    (mnt / "f").chmod(0o600)
    setfacl("-m", "u:1000:r", mnt / "f")
    assert getfacl(mnt / "f") == ["user::rw-", "user:1000:r--", "group::---", "mask::r--", "other::---"]
    assert mode(mnt / "f") == 0o640
    assert run_as(lambda: (mnt / "f").read_text(), uid=1000) == "secret"
    assert refused(lambda: os.open(mnt / "f", os.O_WRONLY), uid=1000) == errno.EACCES
    assert refused(lambda: (mnt / "f").read_text(), uid=1001) == errno.EACCES


def test_a_named_user_may_less_than_the_group(mnt: Path):
    (mnt / "f").write_text("for most")
    os.chown(mnt / "f", 0, 3000)
    (mnt / "f").chmod(0o664)
    setfacl("-m", "u:1000:-", mnt / "f")
    assert refused(lambda: (mnt / "f").read_text(), uid=1000, gid=3000) == errno.EACCES
    assert run_as(lambda: (mnt / "f").read_text(), uid=1001, gid=3000) == "for most"


def test_one_group_of_several_is_enough_and_others_do_not_help_members(mnt: Path):
    (mnt / "f").write_text("x")
    (mnt / "f").chmod(0o604)
    setfacl("-m", "g:3000:-,g:3001:rw", mnt / "f")
    assert refused(lambda: (mnt / "f").read_text(), uid=1000, gid=3000) == errno.EACCES
    assert run_as(lambda: (mnt / "f").read_text(), uid=1000, gid=3000, groups=[3001]) == "x"
    assert run_as(lambda: os.close(os.open(mnt / "f", os.O_RDWR)), uid=1000, groups=[3001]) is None
    assert run_as(lambda: (mnt / "f").read_text(), uid=1000) == "x"


def test_the_mask_bounds_names_and_chmod_moves_it(mnt: Path):
    (mnt / "f").write_text("x")
    setfacl("-m", "u:1000:rwx,g:3000:rwx", mnt / "f")
    (mnt / "f").chmod(0o640)
    assert getfacl(mnt / "f")[1:] == [
        "user:1000:rwx", "group::r--", "group:3000:rwx", "mask::r--", "other::---",
    ]  # fmt: skip
    assert refused(lambda: os.open(mnt / "f", os.O_WRONLY), uid=1000) == errno.EACCES
    assert refused(lambda: os.open(mnt / "f", os.O_WRONLY), uid=1001, gid=3000) == errno.EACCES
    (mnt / "f").chmod(0o660)
    run_as(lambda: os.close(os.open(mnt / "f", os.O_RDWR)), uid=1000)
    assert getfacl(mnt / "f")[4] == "mask::rw-"


def test_the_owner_is_not_bounded_by_the_mask(mnt: Path):
    (mnt / "f").write_text("x")
    os.chown(mnt / "f", 1000, 1000)
    setfacl("-m", "u:1001:rw,m::r", mnt / "f")
    run_as(lambda: (mnt / "f").write_text("x"), uid=1000, gid=1000)
    assert refused(lambda: (mnt / "f").write_text("y"), uid=1001) == errno.EACCES


def test_a_list_with_an_empty_mask_is_not_looked_at(mnt: Path):
    """So does Linux, unlike POSIX.1e: who is named counts as one of the others then."""
    (mnt / "f").write_text("x")
    setfacl("-m", "u:1001:r,m::-", mnt / "f")
    assert run_as(lambda: (mnt / "f").read_text(), uid=1001) == "x"
    setfacl("-n", "-m", "o::-", mnt / "f")
    assert refused(lambda: (mnt / "f").read_text(), uid=1001) == errno.EACCES


def test_an_empty_value_removes_the_list(mnt: Path):
    (mnt / "f").touch()
    setfacl("-m", "u:1001:r", mnt / "f")
    os.setxattr(mnt / "f", ACCESS, b"")
    assert failing(os.getxattr, mnt / "f", ACCESS) == errno.ENODATA
    os.removexattr(mnt / "f", ACCESS)  # what is not there is removed without complaint


def test_a_list_that_the_mode_can_say_is_not_kept(mnt: Path):
    (mnt / "f").touch()
    os.setxattr(mnt / "f", ACCESS, packed((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)))
    assert mode(mnt / "f") == 0o640
    assert failing(os.getxattr, mnt / "f", ACCESS) == errno.ENODATA


def test_setting_and_removing_show_in_the_list_of_attributes(mnt: Path):
    (mnt / "d").mkdir()
    assert not set(os.listxattr(mnt / "d")) & {ACCESS, DEFAULT}
    value = packed((USER_OBJ, 7), (USER, 5, 1000), (GROUP_OBJ, 5), (MASK, 5), (OTHER, 0))
    os.setxattr(mnt / "d", ACCESS, value)
    os.setxattr(mnt / "d", DEFAULT, value)
    assert {ACCESS, DEFAULT} <= set(os.listxattr(mnt / "d"))
    assert os.getxattr(mnt / "d", ACCESS) == os.getxattr(mnt / "d", DEFAULT) == value
    setfacl("-b", mnt / "d")
    assert not set(os.listxattr(mnt / "d")) & {ACCESS, DEFAULT}
    assert getfacl(mnt / "d") == ["user::rwx", "group::r-x", "other::---"]


@pytest.mark.parametrize(
    "value",
    [
        b"\2\0\0\0\1\0",
        struct.pack("<I", 1) + packed((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0))[4:],
        packed((USER_OBJ, 6), (GROUP_OBJ, 4)),
        packed((GROUP_OBJ, 4), (USER_OBJ, 6), (OTHER, 0)),
        packed((USER_OBJ, 6), (USER, 4, 1000), (GROUP_OBJ, 4), (OTHER, 0)),
        packed((USER_OBJ, 6), (USER, 8, 1000), (GROUP_OBJ, 4), (MASK, 4), (OTHER, 0)),
        packed((USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 4), (MASK, 4), (OTHER, 0)),
        packed((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0), (64, 0)),
    ],
)
def test_what_is_no_list_is_refused(mnt: Path, value: bytes):
    (mnt / "f").touch()
    expected = errno.EOPNOTSUPP if value[:1] == b"\1" else errno.EINVAL
    assert failing(os.setxattr, mnt / "f", ACCESS, value) == expected
    assert mode(mnt / "f") == 0o644


def test_only_the_owner_sets_a_list(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o666)
    value = packed((USER_OBJ, 6), (USER, 6, 1000), (GROUP_OBJ, 4), (MASK, 6), (OTHER, 0))
    assert refused(lambda: os.setxattr(mnt / "f", ACCESS, value), uid=1000) == errno.EPERM
    os.chown(mnt / "f", 1000, 1000)
    run_as(lambda: os.setxattr(mnt / "f", ACCESS, value), uid=1000)
    assert refused(lambda: os.removexattr(mnt / "f", ACCESS), uid=1001) == errno.EPERM
    assert mode(mnt / "f") == 0o660


def test_default_lists_are_for_directories_and_no_list_is_for_symlinks(mnt: Path):
    (mnt / "f").touch()
    (mnt / "s").symlink_to("f")
    value = packed((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0))
    assert failing(os.setxattr, mnt / "f", DEFAULT, value) == errno.EACCES
    assert failing(lambda: os.setxattr(mnt / "s", ACCESS, value, follow_symlinks=False)) == errno.EOPNOTSUPP


def test_what_is_made_inherits_the_default_list_and_no_umask(shared: Path):
    setfacl("-d", "-m", "u:1000:rwx,g:3000:rx,o::-", shared)
    os.umask(0o077)
    (shared / "f").touch()
    (shared / "d").mkdir()
    os.mkfifo(shared / "p")
    (shared / "s").symlink_to("f")
    assert getfacl(shared / "f") == [
        "user::rw-", "user:1000:rwx", "group::rwx", "group:3000:r-x", "mask::rw-", "other::---",
    ]  # fmt: skip
    assert mode(shared / "f") == mode(shared / "p") == 0o660
    assert mode(shared / "d") == 0o770
    assert getfacl(shared / "d", "--default") == getfacl(shared, "--default")
    assert getfacl(shared / "d", "--access")[1] == "user:1000:rwx"
    assert mode(shared / "s") == 0o777
    run_as(lambda: (shared / "f").write_text("as the named user"), uid=1000)
    assert refused(lambda: (shared / "f").write_text("no"), uid=1001, gid=3000) == errno.EACCES


def test_a_default_list_that_the_mode_can_say_still_replaces_the_umask(shared: Path):
    os.setxattr(shared, DEFAULT, packed((USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 5)))
    os.umask(0o077)
    (shared / "f").touch()
    (shared / "d").mkdir()
    assert (mode(shared / "f"), mode(shared / "d")) == (0o664, 0o775)
    assert failing(os.getxattr, shared / "f", ACCESS) == errno.ENODATA
    assert os.getxattr(shared / "d", DEFAULT) == os.getxattr(shared, DEFAULT)


def test_without_a_default_list_the_umask_counts(shared: Path):
    for mask in (0o022, 0o077, 0o000):
        os.umask(mask)
        (shared / f"f{mask:o}").touch()
        (shared / f"d{mask:o}").mkdir()
        os.mkfifo(shared / f"p{mask:o}", 0o666)
        assert mode(shared / f"f{mask:o}") == mode(shared / f"p{mask:o}") == 0o666 & ~mask
        assert mode(shared / f"d{mask:o}") == 0o777 & ~mask


def test_a_directory_list_guards_its_names(mnt: Path):
    (mnt / "d").mkdir(mode=0o700)
    (mnt / "d" / "f").write_text("x")
    setfacl("-m", "u:1000:rwx,u:1001:x,u:1002:r", mnt / "d")
    run_as(lambda: (mnt / "d" / "new").touch(), uid=1000)
    run_as(lambda: os.rename(mnt / "d" / "new", mnt / "d" / "newer"), uid=1000)
    assert run_as(lambda: (mnt / "d" / "f").read_text(), uid=1001) == "x"
    assert refused(lambda: (mnt / "d" / "g").touch(), uid=1001) == errno.EACCES
    assert refused(lambda: os.listdir(mnt / "d"), uid=1001) == errno.EACCES
    assert sorted(run_as(lambda: os.listdir(mnt / "d"), uid=1002)) == ["f", "newer"]
    assert refused(lambda: (mnt / "d" / "f").read_text(), uid=1002) == errno.EACCES
    assert refused(lambda: (mnt / "d" / "f").unlink(), uid=1003) == errno.EACCES


def test_chmod_without_the_group_drops_setgid_by_a_list_too(shared: Path):
    (shared / "f").touch()
    os.chown(shared / "f", 1000, 3000)
    (shared / "f").chmod(0o2755)
    value = packed((USER_OBJ, 7), (USER, 5, 1001), (GROUP_OBJ, 5), (MASK, 5), (OTHER, 5))
    run_as(lambda: os.setxattr(shared / "f", ACCESS, value), uid=1000, gid=1000, groups=[3000])
    assert mode(shared / "f") == 0o2755
    run_as(lambda: os.setxattr(shared / "f", ACCESS, value), uid=1000, gid=1000)
    assert mode(shared / "f") == 0o755


def test_copies_keep_lists(mnt: Path):
    (mnt / "src").mkdir()
    (mnt / "src" / "f").write_text("x")
    setfacl("-m", "u:1000:rw,g:3000:r", mnt / "src" / "f")
    setfacl("-m", "u:1000:rwx,d:u:1000:rwx", mnt / "src")
    subprocess.run(["cp", "-a", mnt / "src", mnt / "cp"], check=True)
    subprocess.run(["rsync", "-aAX", f"{mnt / 'src'}/", f"{mnt / 'rsync'}/"], check=True)
    subprocess.run(["tar", "--acls", "-C", mnt / "src", "-cf", mnt / "t.tar", "."], check=True)
    (mnt / "tar").mkdir()
    subprocess.run(["tar", "--acls", "-C", mnt / "tar", "-xpf", mnt / "t.tar"], check=True)
    for copy in ("cp", "rsync", "tar"):
        assert getfacl(mnt / copy) == getfacl(mnt / "src"), copy
        assert getfacl(mnt / copy / "f") == getfacl(mnt / "src" / "f"), copy


def test_another_mount_obeys_and_shows_them(mnt: Path, there: Path):
    (mnt / "f").write_text("x")
    (mnt / "f").chmod(0o600)
    setfacl("-m", "u:1000:r", mnt / "f")
    assert getfacl(there / "f")[1] == "user:1000:r--"
    assert run_as(lambda: (there / "f").read_text(), uid=1000) == "x"
    assert refused(lambda: (there / "f").read_text(), uid=1001) == errno.EACCES


def test_a_list_set_elsewhere_is_obeyed_after_a_listing_that_had_none(mnt: Path, there: Path):
    (mnt / "f").write_text("secret")
    (mnt / "f").chmod(0o640)
    for _ in range(3):
        subprocess.run(["ls", "-l", there], check=True, capture_output=True)
        with pytest.raises(PermissionError):
            run_as((there / "f").read_text)
        setfacl("-m", "u:65534:r", mnt / "f")
        assert run_as((there / "f").read_text) == "secret"
        assert "user:65534:r--" in getfacl(there / "f")
        setfacl("-b", mnt / "f")
