"""Attributes: modes, owners, times, numbers, and what df says."""

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from harness.users import run_as

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing owners takes root")

TICK_S = 0.02  # more than the kernel's clock for file times takes for a step
SLACK_NS = 20_000_000


def times(path: Path) -> tuple[int, int]:
    """(mtime, ctime) in nanoseconds."""
    status = os.lstat(path)
    return status.st_mtime_ns, status.st_ctime_ns


def changes(path: Path, action) -> tuple[bool, bool]:
    """Whether ``action`` moved the mtime and the ctime of ``path``."""
    before = times(path)
    time.sleep(TICK_S)
    action()
    after = times(path)
    assert after[0] >= before[0]
    assert after[1] >= before[1]
    return after[0] != before[0], after[1] != before[1]


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o755, 0o1777, 0o2755, 0o4711, 0o7777])
def test_chmod(mnt: Path, mode: int):
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    for path in (mnt / "f", mnt / "d"):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    (mnt / "d").chmod(0o755)


def test_the_umask_is_taken_off(mnt: Path):
    os.umask(0o027)
    os.close(os.open(mnt / "f", os.O_CREAT, 0o666))
    os.mkdir(mnt / "d", 0o777)
    os.mkfifo(mnt / "p", 0o666)
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((mnt / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((mnt / "p").stat().st_mode) == 0o640


def test_a_file_made_unwritable_is_still_written_by_its_maker(mnt: Path):
    fd = os.open(mnt / "f", os.O_CREAT | os.O_WRONLY, 0o000)
    os.write(fd, b"mine")
    os.close(fd)
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0
    assert (mnt / "f").stat().st_size == 4


@as_root
def test_chown_changes_what_is_given(mnt: Path):
    (mnt / "f").touch()
    os.chown(mnt / "f", 4_000_000_000, 7)
    assert ((mnt / "f").stat().st_uid, (mnt / "f").stat().st_gid) == (4_000_000_000, 7)
    os.chown(mnt / "f", -1, 8)
    assert ((mnt / "f").stat().st_uid, (mnt / "f").stat().st_gid) == (4_000_000_000, 8)


@as_root
def test_lchown_changes_the_link(mnt: Path):
    (mnt / "f").touch()
    (mnt / "s").symlink_to("f")
    os.lchown(mnt / "s", 12, 13)
    assert os.lstat(mnt / "s").st_uid == 12
    assert (mnt / "f").stat().st_uid == 0


@as_root
def test_chown_by_root_takes_suid_off_a_program(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o6755)
    os.chown(mnt / "f", 5, 5)
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0o755


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ns", [1, 999_999_999, 1_600_000_000_123_456_789, 4_000_000_000_000_000_001])
def test_times_are_kept_to_the_nanosecond(mnt: Path, ns: int):
    (mnt / "f").write_bytes(b"data")
    os.utime(mnt / "f", ns=(ns + 5, ns))
    assert (mnt / "f").stat().st_mtime_ns == ns
    assert (mnt / "f").stat().st_atime_ns == ns + 5


def test_times_before_the_epoch(mnt: Path):
    (mnt / "f").touch()
    os.utime(mnt / "f", ns=(-1_500_000_000, -2_000_000_001))
    assert (mnt / "f").stat().st_mtime_ns == -2_000_000_001


def test_times_of_a_symlink_and_a_directory(mnt: Path):
    (mnt / "s").symlink_to("nowhere")
    (mnt / "d").mkdir()
    os.utime(mnt / "s", ns=(1, 2), follow_symlinks=False)
    os.utime(mnt / "d", ns=(3, 4))
    assert os.lstat(mnt / "s").st_mtime_ns == 2
    assert (mnt / "d").stat().st_mtime_ns == 4


def test_times_set_on_an_open_file_stay_after_close(mnt: Path):
    with open(mnt / "f", "wb") as file:
        file.write(b"data" * 5000)
        file.flush()
        os.utime(file.fileno(), ns=(7, 8))
    assert (mnt / "f").stat().st_mtime_ns == 8


def test_a_new_file_has_the_present_time(mnt: Path):
    before = time.time_ns()
    (mnt / "f").write_bytes(b"x")
    after = time.time_ns()
    status = (mnt / "f").stat()
    for value in (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns):
        assert before - SLACK_NS <= value <= after + SLACK_NS


def test_what_moves_the_times_of_a_file(mnt: Path):
    path = mnt / "f"
    path.write_bytes(b"data")
    assert changes(path, lambda: path.write_bytes(b"other")) == (True, True)
    assert changes(path, lambda: os.truncate(path, 2)) == (True, True)
    assert changes(path, lambda: path.chmod(0o600)) == (False, True)
    assert changes(path, lambda: os.link(path, mnt / "g")) == (False, True)
    assert changes(path, lambda: (mnt / "g").unlink()) == (False, True)
    assert changes(path, lambda: os.setxattr(path, "user.a", b"b")) == (False, True)
    assert changes(path, lambda: path.read_bytes()) == (False, False)
    assert changes(path, lambda: path.stat()) == (False, False)


def test_writing_moves_the_times_while_the_file_is_open(mnt: Path):
    with open(mnt / "f", "wb", buffering=0) as file:
        file.write(b"1")
        assert changes(mnt / "f", lambda: file.write(b"2")) == (True, True)


def test_what_moves_the_times_of_a_directory(mnt: Path):
    d = mnt / "d"
    d.mkdir()
    assert changes(d, lambda: (d / "f").touch()) == (True, True)
    assert changes(d, lambda: (d / "f").write_bytes(b"data")) == (False, False)
    assert changes(d, lambda: os.rename(d / "f", d / "g")) == (True, True)
    assert changes(d, lambda: os.link(d / "g", d / "h")) == (True, True)
    assert changes(d, lambda: (d / "g").unlink()) == (True, True)
    assert changes(d, lambda: (d / "s").symlink_to("h")) == (True, True)
    assert changes(d, lambda: (d / "sub").mkdir()) == (True, True)
    assert changes(d, lambda: os.rename(d / "sub", mnt / "sub")) == (True, True)
    assert changes(d, lambda: os.listdir(d)) == (False, False)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_inode_number_stays(mnt: Path):
    (mnt / "f").write_bytes(b"small")
    number = (mnt / "f").stat().st_ino
    (mnt / "f").write_bytes(bytes(200_000))
    os.rename(mnt / "f", mnt / "g")
    with open(mnt / "g", "rb") as file:
        assert os.fstat(file.fileno()).st_ino == number
    assert [entry.inode() for entry in os.scandir(mnt)] == [number]


def test_the_filesystem_has_one_device_number(mnt: Path):
    (mnt / "d").mkdir()
    (mnt / "f").touch()
    assert {mnt.stat().st_dev, (mnt / "d").stat().st_dev, (mnt / "f").stat().st_dev} == {mnt.stat().st_dev}


def test_statvfs_is_plausible(mnt: Path):
    stats = os.statvfs(mnt)
    assert stats.f_namemax == 255
    assert 0 < stats.f_bavail <= stats.f_bfree <= stats.f_blocks
    assert 0 < stats.f_ffree < stats.f_files
    assert stats.f_frsize in (4096, 65536)


def test_df_shows_the_filesystem(mnt: Path):
    shown = subprocess.run(["df", "-k", mnt], capture_output=True, text=True, check=True).stdout
    size, used, free = map(int, shown.splitlines()[1].split()[1:4])
    assert 0 < used + free <= size
    assert subprocess.run(["df", "-i", mnt], capture_output=True, check=True).stdout


def test_du_adds_up(mnt: Path):
    (mnt / "large").write_bytes(os.urandom(3_000_000))
    (mnt / "sparse").touch()
    os.truncate(mnt / "sparse", 1 << 33)
    kib = int(subprocess.run(["du", "-sk", mnt], capture_output=True, check=True).stdout.split()[0])
    assert 2_900 < kib < 4_000


def test_access_asks_for_the_caller(mnt: Path):
    (mnt / "f").touch()
    (mnt / "f").chmod(0o600)
    assert os.access(mnt / "f", os.R_OK | os.W_OK)
    if os.geteuid() == 0:
        assert run_as(lambda: [os.access(mnt / "f", how) for how in (os.F_OK, os.R_OK)]) == [True, False]


def test_times_that_cannot_be_stored_become_the_nearest(mnt: Path):
    (mnt / "f").touch()
    for time_s in (2**35, 2**40, 2**62, -(2**40), -(2**62)):
        os.utime(mnt / "f", (time_s, time_s))
        stored = (mnt / "f").stat().st_mtime
        assert abs(stored) <= abs(time_s)
        assert stored > 2**31 if time_s > 0 else stored <= -(2**31)
    os.utime(mnt / "f", ns=(-1, -1))  # a nanosecond before the epoch is a time like others
    assert (mnt / "f").stat().st_mtime_ns == -1


def test_the_present_time_is_never_before_what_was_made_earlier(mnt: Path):
    for number in range(50):
        made = mnt / f"f{number}"
        made.touch()
        before = made.stat().st_mtime_ns
        os.utime(made)
        assert made.stat().st_mtime_ns >= before
