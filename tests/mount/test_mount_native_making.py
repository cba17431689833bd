"""Files that the compiled part makes, in a directory that the mount has to itself: programs cannot tell."""

import errno
import fcntl
import mmap
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.trees import assert_same


def own(directory: Path) -> Path:
    """A new directory that the mount has to itself by now."""
    directory.mkdir()
    for number in range(12):
        (directory / f"own{number}").write_bytes(b"")
    time.sleep(0.3)
    (directory / "own").write_bytes(b"")
    return directory


def made_natively(cluster: Cluster) -> int:
    """So many files as the log of the mount, which has ended, says."""
    (count,) = re.findall(r"(\d+) files were made by the compiled part", (cluster.state / "log/mount.log").read_text())
    return int(count)


def create(path: Path, data: bytes = b"data", flags: int = os.O_RDWR | os.O_CREAT | os.O_TRUNC) -> int:
    fd = os.open(path, flags, 0o644)
    os.write(fd, data)
    return fd


def run_as(program: str, directory: Path, user: int, group: int, *groups: int) -> int:
    command = ["sh", "-c", program]
    return subprocess.run(
        command, cwd=directory, user=user, group=group, extra_groups=groups, check=False, timeout=60
    ).returncode


def test_it_is_so_and_all_are_there_after_the_mount_has_ended(fresh: Cluster):
    fresh.up()
    directory = own(fresh.point / "d")
    contents = {f"f{number}": os.urandom(number * 131 % 30_000) for number in range(600)}
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    still_open = create(directory / "open")
    os.write(still_open, b" and more")
    os.close(still_open)
    fresh.down()
    assert made_natively(fresh) >= 600
    fresh.up()
    assert {name: (directory / name).read_bytes() for name in contents} == contents
    assert (directory / "open").read_bytes() == b"data and more"
    assert len(os.listdir(directory)) == 614
    fresh.fsck()
    fresh.down()


@pytest.mark.parametrize("size", [0, 1, 4_096, 20_000, 100_000, 300_000])
def test_others_see_it_as_soon_as_it_is_closed(mnt: Path, there: Path, size: int):
    directory, data = own(mnt / "d"), os.urandom(size)
    (directory / "f").write_bytes(data)
    assert (there / "d/f").read_bytes() == data
    assert "f" in os.listdir(there / "d")


def test_others_see_one_that_is_open(mnt: Path, there: Path):
    directory = own(mnt / "d")
    fd = create(directory / "f", b"so far")
    try:
        assert (there / "d/f").stat().st_size == 6
        assert (there / "d/f").read_bytes() == b"so far"
        os.write(fd, b" and on")
    finally:
        os.close(fd)
    assert (there / "d/f").read_bytes() == b"so far and on"


def test_a_name_that_others_have_taken_is_not_made_again(mnt: Path, there: Path):
    directory = own(mnt / "d")
    assert not (directory / "f").exists()
    (there / "d/f").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        os.open(directory / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert (directory / "f").read_bytes() == b"theirs"


def test_what_others_wait_for_is_seen_by_them(mnt: Path, there: Path):
    """A name that was not there, asked for again and again from elsewhere."""
    directory = own(mnt / "d")
    for number in range(20):
        assert not (there / f"d/f{number}").exists()
        (directory / f"f{number}").write_bytes(b"%d" % number)
        assert (there / f"d/f{number}").read_bytes() == b"%d" % number


class Calls:
    """What calls on files that were just made return, in the directory ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.returned: list[object] = []

    def note(self, what: Callable[[], object]) -> None:
        try:
            self.returned.append(what())
        except OSError as error:
            self.returned.append(errno.errorcode[error.errno or 0])

    def closed(self, prefix: str) -> None:
        note, base = self.note, self.base

        def made(name: str, data: bytes = b"0123456789") -> Path:
            (base / (prefix + name)).write_bytes(data)
            return base / (prefix + name)

        note(lambda: made("stat").stat().st_size)
        note(lambda: made("read").read_bytes())
        note(lambda: os.rename(made("rename"), base / (prefix + "renamed")))
        note(lambda: os.rename(made("moved"), base.parent / (prefix + "moved")))
        note(lambda: os.rename(made("over"), made("overwritten", b"gone")))
        note(lambda: os.unlink(made("unlink")))
        note(lambda: os.link(made("link"), base / (prefix + "linked")))
        note(lambda: made("links").stat().st_nlink)
        note(lambda: made("chmod").chmod(0o600))
        note(lambda: os.utime(made("utime"), ns=(5, 7)))
        note(lambda: (base / (prefix + "utime")).stat().st_mtime_ns)
        note(lambda: os.truncate(made("truncate"), 3))
        note(lambda: os.setxattr(made("xattr"), "user.a", b"v"))
        note(lambda: os.getxattr(base / (prefix + "xattr"), "user.a"))
        note(lambda: os.listxattr(made("no xattr")))
        note(lambda: sorted(one for one in os.listdir(base) if one.startswith(prefix)))
        note(lambda: made("mkdir").mkdir())
        note(lambda: made("symlink").symlink_to("x"))
        note(lambda: os.rmdir(base))
        note(lambda: os.open(made("exclusive"), os.O_CREAT | os.O_EXCL))
        note(lambda: os.listdir(made("not a directory")))

    def open(self, prefix: str) -> None:
        note, base, fds = self.note, self.base, list[int]()

        def made(name: str) -> int:
            fds.append(create(base / (prefix + name), b"0123456789"))
            return fds[-1]

        note(lambda: os.pread(made("pread"), 5, 3))
        note(lambda: os.pwrite(made("pwrite"), b"xyz", 4))
        note(lambda: os.pwrite(made("hole"), b"xyz", 40_000))
        note(lambda: os.ftruncate(made("ftruncate"), 4))
        note(lambda: os.fsync(made("fsync")))
        note(lambda: os.fstat(made("fstat")).st_size)
        note(lambda: os.lseek(made("lseek"), 0, os.SEEK_HOLE))
        note(lambda: os.posix_fallocate(made("fallocate"), 0, 100))
        note(lambda: fcntl.flock(made("flock"), fcntl.LOCK_EX | fcntl.LOCK_NB))
        note(lambda: fcntl.lockf(made("lockf"), fcntl.LOCK_EX | fcntl.LOCK_NB))
        note(lambda: os.copy_file_range(made("source"), made("target"), 5, 0, 2))
        note(lambda: os.write(made("again"), b"more"))
        note(lambda: os.write(made("large"), b"l" * 300_000))
        made("unlinked")
        note(lambda: os.unlink(base / (prefix + "unlinked")))
        note(lambda: os.pread(fds[-1], 20, 0))
        note(lambda: os.fstat(fds[-1]).st_nlink)
        made("moved")
        note(lambda: os.rename(base / (prefix + "moved"), base / (prefix + "to")))
        note(lambda: os.write(fds[-1], b" behind"))
        with mmap.mmap(made("mapped"), 10) as mapped:
            note(lambda: bytes(mapped))
            mapped[2:4] = b"--"
        note(lambda: (base / (prefix + "mapped")).read_bytes())
        made("dup")
        fds.append(os.dup(fds[-1]))
        note(lambda: os.write(fds[-1], b" duplicate"))
        note(lambda: (base / (prefix + "dup")).read_bytes())
        for fd in fds:
            os.close(fd)


def _each_call(base: Path) -> list[object]:
    calls = Calls(base)
    for number in range(3):
        calls.closed(f"closed{number}-")
        calls.open(f"open{number}-")
    return calls.returned


def test_each_call_does_what_it_does_elsewhere(mnt: Path, tmp_path: Path):
    local = tmp_path / "local"
    local.mkdir()
    assert _each_call(own(mnt / "d")) == _each_call(own(local / "d"))
    assert_same(mnt, local, times=False)


def test_its_attributes_do_not_change_by_themselves(mnt: Path):
    directory = own(mnt / "d")
    for number in range(30):
        (directory / f"f{number}").write_bytes(b"x" * number)
        before = (directory / f"f{number}").stat()
        if number % 10 == 0:
            time.sleep(0.2)
        after = (directory / f"f{number}").stat()
        assert before == after
        assert stat.S_IMODE(after.st_mode) == 0o644
        assert abs(after.st_mtime_ns - time.time_ns()) < 10**10


def test_the_directory_counts_and_its_times_move(mnt: Path):
    directory = own(mnt / "d")
    for number in range(20):
        before = directory.stat()
        (directory / f"f{number}").write_bytes(b"")
        after = directory.stat()
        assert after.st_mtime_ns > before.st_mtime_ns
        os.unlink(directory / f"f{number}")
        gone = directory.stat()
        assert gone.st_mtime_ns > after.st_mtime_ns
        assert gone.st_size == before.st_size


def test_the_umask_and_the_owner_are_those_of_the_program(mnt: Path):
    directory = own(mnt / "d")
    mnt.chmod(0o755)
    os.chown(directory, 1000, 1000)
    for number in range(12):
        (directory / f"again{number}").write_bytes(b"")
    time.sleep(0.3)
    program = "umask 027; for n in $(seq 0 49); do : > theirs$n; done"
    assert run_as(program, directory, 1000, 1001) == 0
    for number in range(50):
        found = (directory / f"theirs{number}").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o640)


def test_who_writes_thanks_to_a_group_keeps_his_files(mnt: Path):
    directory = own(mnt / "d")
    os.chown(directory, -1, 2000)
    directory.chmod(0o775)
    for number in range(12):
        (directory / f"again{number}").write_bytes(b"")
    time.sleep(0.3)
    program = "for n in $(seq 0 49); do printf x > theirs$n; done"
    assert run_as(program, directory, 1000, 1001, 2000) == 0
    assert sum(name.startswith("theirs") for name in os.listdir(directory)) == 50
    assert all((directory / f"theirs{number}").read_text() == "x" for number in range(50))


def test_a_directory_that_nobody_may_write_to_any_more(mnt: Path):
    directory = own(mnt / "d")
    os.chown(directory, 1000, 1000)
    program = ": > before && chmod 555 . && : > after"
    assert run_as(program, directory, 1000, 1000) != 0
    assert (directory / "before").exists()
    assert not (directory / "after").exists()


def test_a_program_that_is_killed_leaves_what_it_wrote(mnt: Path, there: Path):
    directory = own(mnt / "d")
    program = """
import os, time
for n in range(40):
    os.write(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY, 0o644), b'written')
print(flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    for number in range(40):
        assert (directory / f"f{number}").read_bytes() == b"written"
        assert (there / f"d/f{number}").read_bytes() == b"written"


def test_what_was_synced_survives_the_mount(fresh: Cluster):
    """Killed right after a sync of the directory, and of single files."""
    fresh.up()
    directory = own(fresh.point / "d")
    for number in range(100):
        (directory / f"f{number}").write_bytes(b"%d" % number)
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    synced = create(directory / "synced")
    os.fsync(synced)
    (directory / "not synced").write_bytes(b"perhaps")
    fresh.kill("mount")
    with suppress(OSError):
        os.close(synced)
    fresh.up()
    assert all((directory / f"f{number}").read_bytes() == b"%d" % number for number in range(100))
    assert (directory / "synced").read_bytes() == b"data"
    fresh.fsck()
    fresh.down()


def test_many_programs_make_many_files(mnt: Path, there: Path):
    """In one directory, while others look."""
    directory = own(mnt / "d")
    program = """
import os, sys
me = sys.argv[1]
for n in range(150):
    with open(f'{me}-{n}', 'wb') as file: file.write(me.encode() * n)
    if n % 10 == 0: os.rename(f'{me}-{n}', f'{me}-renamed-{n}')
    if n % 10 == 1: os.unlink(f'{me}-{n}')
    if n % 10 == 2: assert open(f'{me}-{n}', 'rb').read() == me.encode() * n
"""
    running = [subprocess.Popen([sys.executable, "-c", program, f"p{number}"], cwd=directory) for number in range(4)]
    looked = 0
    while any(process.poll() is None for process in running):
        seen = [name for name in os.listdir(there / "d") if name.startswith("p")]
        looked += 1
        time.sleep(0.3)
        for name in seen[:: max(1, len(seen) // 5)]:
            parts = name.split("-")
            if len(parts) == 2 and int(parts[1]) % 10 > 2:
                assert (there / "d" / name).read_bytes() == parts[0].encode() * int(parts[1])
    assert looked
    assert [process.wait(60) for process in running] == [0] * 4
    for base in (directory, there / "d"):
        assert sum(name.startswith("p") for name in os.listdir(base)) == 4 * 135
        for number in range(4):
            assert (base / f"p{number}-149").read_bytes() == b"p%d" % number * 149
            assert (base / f"p{number}-renamed-140").read_bytes() == b"p%d" % number * 140


def test_tar_rsync_and_cp_make_what_they_copy(mnt: Path, tmp_path: Path):
    """With owners, modes and times, of files and of what was there before."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(150):
        path = source / f"f{number:03}"
        path.write_bytes(os.urandom(number * 97))
        path.chmod(0o600 + number % 64)
        os.chown(path, number % 3, number % 5)
        os.utime(path, ns=(10**18 + number, 10**18 - number * 10**9 + 7))
    (source / "f000").chmod(0o4755)
    subprocess.run(["tar", "cf", tmp_path / "a.tar", "-C", source, "."], check=True, timeout=60)
    for name in ("tar", "rsync", "cp"):
        (mnt / name).mkdir()
    for _ in range(2):  # the second time over what is there
        subprocess.run(["tar", "xpf", tmp_path / "a.tar", "-C", mnt / "tar"], check=True, timeout=60)
        subprocess.run(["rsync", "-a", "--ignore-times", f"{source}/", mnt / "rsync"], check=True, timeout=60)
        subprocess.run(["cp", "-aT", source, mnt / "cp"], check=True, timeout=60)
        for name in ("tar", "rsync", "cp"):
            assert_same(mnt / name, source, times=False)
            for number in range(150):
                copied, given = (mnt / name / f"f{number:03}").stat(), (source / f"f{number:03}").stat()
                exact = name != "tar"  # it keeps seconds
                assert copied.st_mtime_ns // (1 if exact else 10**9) == given.st_mtime_ns // (1 if exact else 10**9)


def test_a_stat_of_what_was_just_closed_stays_true(mnt: Path, there: Path):
    directory = own(mnt / "d")
    for number in range(30):
        path = directory / f"f{number}"
        path.write_bytes(b"x" * number * 300)
        before = path.stat()
        os.utime(path, ns=(7, 8))
        path.chmod(0o640)
        path.rename(directory / f"g{number}")
        after = (directory / f"g{number}").stat()
        seen = (there / f"d/g{number}").stat()
        assert (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks) == (seen.st_size, seen.st_blocks)
        assert (after.st_mtime_ns, after.st_mode) == (seen.st_mtime_ns, seen.st_mode) == (8, 0o100640)
        assert not (there / f"d/f{number}").exists()
        assert (there / f"d/g{number}").read_bytes() == b"x" * number * 300
