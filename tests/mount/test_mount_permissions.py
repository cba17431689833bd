"""Who may do what. Every refusal is asked for by a process that is not root."""

import errno
import os
import stat
from pathlib import Path

import pytest

from harness.refusals import failing
from harness.users import NOBODY, run_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


def refused(function, **who: object) -> int:
    """The errno that nobody, or ``who``, gets for ``function``."""
    return failing(lambda: run_as(function, **who))


@pytest.fixture
def shared(mnt: Path) -> Path:
    """A directory in which everybody may make names."""
    (mnt / "shared").mkdir()
    (mnt / "shared").chmod(0o777)
    return mnt / "shared"


def test_a_file_belongs_to_who_makes_it(shared: Path):
    run_as(lambda: (shared / "f").write_text("mine"), uid=1000, gid=2000)
    run_as(lambda: (shared / "d").mkdir(), uid=1000, gid=2000)
    run_as(lambda: (shared / "s").symlink_to("f"), uid=1000, gid=2000)
    for name in ("f", "d", "s"):
        assert (os.lstat(shared / name).st_uid, os.lstat(shared / name).st_gid) == (1000, 2000)


def test_reading_and_writing_take_permission(mnt: Path):
    (mnt / "f").write_text("secret")
    (mnt / "f").chmod(0o600)
    assert refused(lambda: (mnt / "f").read_text()) == errno.EACCES
    (mnt / "f").chmod(0o604)
    assert run_as(lambda: (mnt / "f").read_text()) == "secret"
    assert refused(lambda: os.open(mnt / "f", os.O_WRONLY)) == errno.EACCES
    assert refused(lambda: os.truncate(mnt / "f", 0)) == errno.EACCES


def test_the_owner_is_asked_before_group_and_others(mnt: Path):
    (mnt / "f").write_text("x")
    os.chown(mnt / "f", 1000, 2000)
    (mnt / "f").chmod(0o047)
    assert refused(lambda: (mnt / "f").read_text(), uid=1000, gid=2000) == errno.EACCES
    assert run_as(lambda: (mnt / "f").read_text(), uid=1001, gid=2000) == "x"
    assert refused(lambda: os.open(mnt / "f", os.O_WRONLY), uid=1001, gid=2000) == errno.EACCES


def test_supplementary_groups_count(mnt: Path):
    (mnt / "f").write_text("for the group")
    os.chown(mnt / "f", 0, 3000)
    (mnt / "f").chmod(0o640)
    assert refused(lambda: (mnt / "f").read_text(), uid=1000, gid=1000) == errno.EACCES
    assert run_as(lambda: (mnt / "f").read_text(), uid=1000, gid=1000, groups=[2999, 3000]) == "for the group"


def test_names_are_made_and_removed_by_who_may_write_the_directory(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o666)
    (mnt / "sub").mkdir()
    assert refused(lambda: (mnt / "new").touch()) == errno.EACCES
    assert refused(lambda: (mnt / "new").mkdir()) == errno.EACCES
    assert refused(lambda: (mnt / "f").unlink()) == errno.EACCES
    assert refused(lambda: (mnt / "sub").rmdir()) == errno.EACCES
    assert refused(lambda: os.rename(mnt / "f", mnt / "g")) == errno.EACCES
    assert refused(lambda: os.link(mnt / "f", mnt / "g")) == errno.EACCES
    assert refused(lambda: os.symlink("f", mnt / "g")) == errno.EACCES


def test_a_directory_without_x_is_not_entered_and_without_r_not_listed(mnt: Path):
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_text("inside")
    (mnt / "d").chmod(0o704)
    assert refused(lambda: (mnt / "d" / "f").read_text()) == errno.EACCES
    (mnt / "d").chmod(0o701)
    assert run_as(lambda: (mnt / "d" / "f").read_text()) == "inside"
    assert refused(lambda: os.listdir(mnt / "d")) == errno.EACCES


def test_only_the_owner_changes_mode_owner_and_times(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o666)
    assert refused(lambda: (mnt / "f").chmod(0o777)) == errno.EPERM
    assert refused(lambda: os.chown(mnt / "f", NOBODY, -1)) == errno.EPERM
    assert refused(lambda: os.utime(mnt / "f", ns=(1, 1))) == errno.EPERM
    run_as(lambda: os.utime(mnt / "f"))  # to the present time: who may write may do that


def test_an_owner_gives_a_file_to_own_groups_but_not_away(shared: Path):
    run_as(lambda: (shared / "f").touch(), uid=1000, gid=1000)
    run_as(lambda: os.chown(shared / "f", -1, 3000), uid=1000, gid=1000, groups=[3000])
    assert (shared / "f").stat().st_gid == 3000
    assert refused(lambda: os.chown(shared / "f", -1, 4000), uid=1000, gid=1000, groups=[3000]) == errno.EPERM
    assert refused(lambda: os.chown(shared / "f", 1001, -1), uid=1000, gid=1000) == errno.EPERM


def test_a_sticky_directory_lets_owners_only_remove(shared: Path):
    shared.chmod(0o1777)
    run_as(lambda: (shared / "f").touch(), uid=1000)
    assert refused(lambda: (shared / "f").unlink(), uid=1001) == errno.EPERM
    assert refused(lambda: os.rename(shared / "f", shared / "g"), uid=1001) == errno.EPERM
    run_as(lambda: (shared / "mine").touch(), uid=1001)
    assert refused(lambda: os.rename(shared / "mine", shared / "f"), uid=1001) == errno.EPERM
    run_as(lambda: (shared / "f").unlink(), uid=1000)


def test_a_setgid_directory_hands_on_its_group(shared: Path):
    os.chown(shared, 0, 3000)
    shared.chmod(0o2777)
    run_as(lambda: (shared / "f").touch(), uid=1000, gid=1000)
    run_as(lambda: (shared / "d").mkdir(), uid=1000, gid=1000)
    assert (shared / "f").stat().st_gid == 3000
    assert not (shared / "f").stat().st_mode & stat.S_ISGID
    assert (shared / "d").stat().st_gid == 3000
    assert (shared / "d").stat().st_mode & stat.S_ISGID


def test_chmod_by_someone_outside_the_group_drops_setgid(shared: Path):
    (shared / "f").touch()
    os.chown(shared / "f", 1000, 3000)
    run_as(lambda: (shared / "f").chmod(0o2755), uid=1000, gid=1000)
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o755
    run_as(lambda: (shared / "f").chmod(0o2755), uid=1000, gid=1000, groups=[3000])
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o2755


def append_one_byte(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


def test_writing_takes_suid_and_sgid_off_a_program(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o6777)
    run_as(lambda: append_one_byte(mnt / "f"))
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0o777
    assert (mnt / "f").stat().st_size == 1


def test_truncating_takes_suid_off_a_program(mnt: Path):
    (mnt / "f").write_bytes(b"program")
    (mnt / "f").chmod(0o4777)
    run_as(lambda: os.truncate(mnt / "f", 0))
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0o777


def test_chown_by_an_owner_takes_suid_off(shared: Path):
    (shared / "f").touch()
    os.chown(shared / "f", 1000, 1000)
    (shared / "f").chmod(0o4755)
    run_as(lambda: os.chown(shared / "f", -1, 3000), uid=1000, gid=1000, groups=[3000])
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o755


def test_an_open_handle_outlives_the_permission(mnt: Path):
    (mnt / "f").write_text("before")
    os.chown(mnt / "f", 1000, 1000)

    def read_and_write_after_chmod() -> str:
        with open(mnt / "f", "r+b") as file:
            os.chmod(mnt / "f", 0o000)
            data = file.read()
            file.write(b" after")
        return data.hex()

    assert run_as(read_and_write_after_chmod, uid=1000, gid=1000) == b"before".hex()
    assert refused(lambda: (mnt / "f").read_text(), uid=1000, gid=1000) == errno.EACCES
    assert (mnt / "f").read_text() == "before after"


def test_only_root_makes_device_nodes(shared: Path):
    assert refused(lambda: os.mknod(shared / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))) == errno.EPERM
    run_as(lambda: os.mkfifo(shared / "fifo"))
