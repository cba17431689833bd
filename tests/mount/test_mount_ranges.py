"""fallocate, SEEK_HOLE and SEEK_DATA, copy_file_range, O_TMPFILE."""

import errno
import os
import subprocess
import threading
from pathlib import Path
from random import Random

import pytest

from harness import libc
from harness.cluster import Cluster, wait_until
from harness.refusals import failing
from harness.users import run_as
from shoalfs.transport.limits import EXTENT_ROWS_MAX

KEEP, PUNCH, ZERO = libc.FALLOC_FL_KEEP_SIZE, libc.FALLOC_FL_PUNCH_HOLE, libc.FALLOC_FL_ZERO_RANGE
MIB = 1 << 20
SIZES = pytest.mark.parametrize("size", [5_000, 100_000, 9_000_000])


def data(size: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(size)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def map_of(descriptor: int) -> list[tuple[int, int]]:
    """The (start, end) of all data, as cp and tar find them."""
    found, at, size = [], 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        assert at > start
        found.append((start, at))
    return found


# --- files of many pieces --------------------------------------------------------------------------------------------


PIECES = EXTENT_ROWS_MAX + 500  # more than one command removes
PITCH = 512


def scattered(path: Path) -> tuple[int, bytearray]:
    """A file of so many pieces, committed, and what is in it."""
    shadow = bytearray(PIECES * PITCH)
    fd = opened(path)
    for number in range(PIECES):
        piece = b"%07d;" % number
        os.pwrite(fd, piece, number * PITCH)
        shadow[number * PITCH : number * PITCH + len(piece)] = piece
    del shadow[(PIECES - 1) * PITCH + 8 :]
    os.fsync(fd)
    return fd, shadow


def test_a_file_of_many_pieces_is_short_at_once_and_gives_its_space_back(mnt: Path):
    fd, shadow = scattered(mnt / "f")
    os.ftruncate(fd, 10_000)
    assert os.fstat(fd).st_size == 10_000
    os.pwrite(fd, b"end", 1_000_000)
    del shadow[10_000:]
    shadow += bytes(1_000_000 - 10_000) + b"end"
    assert os.pread(fd, len(shadow) + 1, 0) == shadow
    os.fsync(fd)
    os.close(fd)
    wait_until(lambda: (mnt / "f").stat().st_blocks == 1, "the pieces that were cut off are gone")
    assert (mnt / "f").read_bytes() == shadow


def test_many_pieces_are_written_over_and_punched_out(mnt: Path):
    fd, shadow = scattered(mnt / "f")
    whole = data(len(shadow))
    os.pwrite(fd, whole, 0)
    os.fsync(fd)
    assert os.pread(fd, len(whole), 0) == whole
    os.close(fd)
    fd, shadow = scattered(mnt / "g")
    libc.fallocate(fd, PUNCH | KEEP, 4, len(shadow) - 8)
    assert os.pread(fd, len(shadow), 0) == shadow[:4] + bytes(len(shadow) - 8) + shadow[-4:]
    assert map_of(fd) == [(0, 4), (len(shadow) - 4, len(shadow))]
    os.close(fd)


# --- fallocate -------------------------------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("mode", [PUNCH | KEEP, ZERO, ZERO | KEEP])
def test_a_hole_reads_as_zeros_and_the_rest_stays(mnt: Path, there: Path, size: int, committed: bool, mode: int):
    shadow = bytearray(data(size))
    fd = opened(mnt / "f")
    os.write(fd, shadow)
    if committed:
        os.fsync(fd)
    start, length = size // 3, size // 4
    assert os.pread(fd, 100, start) == shadow[start : start + 100]  # in the kernel's cache
    libc.fallocate(fd, mode, start, length)
    shadow[start : start + length] = bytes(length)
    assert os.pread(fd, size + 1, 0) == shadow
    if not committed:
        os.pwrite(fd, b"after", start + 5)
        shadow[start + 5 : start + 10] = b"after"
    os.close(fd)
    assert (there / "f").read_bytes() == shadow
    assert (mnt / "f").stat().st_size == size


def test_a_hole_gives_its_space_back(mnt: Path):
    fd = opened(mnt / "f")
    os.write(fd, data(3 * MIB))
    os.fsync(fd)
    assert os.fstat(fd).st_blocks * 512 == 3 * MIB
    libc.fallocate(fd, PUNCH | KEEP, MIB, MIB)
    assert os.fstat(fd).st_blocks * 512 == 2 * MIB
    libc.fallocate(fd, PUNCH | KEEP, 0, 10 * MIB)
    assert os.fstat(fd).st_blocks == 0
    assert os.fstat(fd).st_size == 3 * MIB
    os.close(fd)


def test_allocating_makes_a_file_longer_never_shorter(mnt: Path):
    fd = opened(mnt / "f")
    os.write(fd, b"begin")
    os.posix_fallocate(fd, 3, 100_000)
    assert os.fstat(fd).st_size == 100_003
    os.posix_fallocate(fd, 0, 10)
    libc.fallocate(fd, KEEP, 0, 10 * MIB)
    libc.fallocate(fd, ZERO | KEEP, 200_000, 10)
    assert os.fstat(fd).st_size == 100_003
    libc.fallocate(fd, ZERO, 100_000, 20_000)
    assert os.fstat(fd).st_size == 120_000
    assert os.pread(fd, 200_000, 0) == b"begin".ljust(120_000, b"\0")
    os.close(fd)


def test_what_is_not_offered_is_refused(mnt: Path):
    fd = opened(mnt / "f")
    os.write(fd, bytes(10_000))
    for mode in (libc.FALLOC_FL_COLLAPSE_RANGE, libc.FALLOC_FL_INSERT_RANGE):
        assert failing(libc.fallocate, fd, mode, 0, 4096) == errno.EOPNOTSUPP
    assert failing(libc.fallocate, fd, 0, 0, 0) == errno.EINVAL
    assert failing(libc.fallocate, fd, 0, 1 << 62, 1 << 62) == errno.EFBIG
    assert failing(os.posix_fallocate, fd, 0, 15 << 40) == errno.ENOSPC  # more than the disk has
    os.close(fd)
    fd = os.open(mnt / "f", os.O_RDONLY)
    assert failing(libc.fallocate, fd, 0, 0, 10) == errno.EBADF
    os.close(fd)


# --- holes -----------------------------------------------------------------------------------------------------------


def test_holes_are_found_where_nothing_was_written(mnt: Path):
    fd = opened(mnt / "f")
    os.ftruncate(fd, 20 * MIB)
    assert map_of(fd) == []
    assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
    for at in (2 * MIB, 7 * MIB, 20 * MIB - 10):
        os.pwrite(fd, b"x" * 10, at)
    expected = [(at, at + 10) for at in (2 * MIB, 7 * MIB, 20 * MIB - 10)]
    assert map_of(fd) == expected
    os.fsync(fd)
    assert map_of(fd) == expected
    assert os.lseek(fd, 2 * MIB + 5, os.SEEK_DATA) == 2 * MIB + 5
    assert os.lseek(fd, 20 * MIB - 3, os.SEEK_HOLE) == 20 * MIB
    libc.fallocate(fd, PUNCH | KEEP, 2 * MIB + 4, 2)
    assert map_of(fd)[:2] == [(2 * MIB, 2 * MIB + 4), (2 * MIB + 6, 2 * MIB + 10)]
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        assert failing(os.lseek, fd, 20 * MIB, whence) == errno.ENXIO
    os.close(fd)


def test_holes_of_small_and_of_very_long_files(mnt: Path):
    fd = opened(mnt / "small")
    os.write(fd, b"abc")
    os.ftruncate(fd, 50)
    assert map_of(fd) == [(0, 3)]
    assert os.lseek(fd, 1, os.SEEK_HOLE) == 3
    os.close(fd)
    fd = opened(mnt / "long")
    os.pwrite(fd, b"end", (10 << 40) - 3)
    assert map_of(fd) == [((10 << 40) - 3, 10 << 40)]
    os.close(fd)


def test_cp_keeps_holes(mnt: Path, tmp_path: Path):
    fd = opened(mnt / "f")
    os.pwrite(fd, data(100_000), 30 * MIB)
    os.ftruncate(fd, 60 * MIB)
    os.close(fd)
    subprocess.run(["cp", "--sparse=auto", mnt / "f", mnt / "g"], check=True)
    subprocess.run(["cp", "--reflink=never", mnt / "f", tmp_path / "sparse"], check=True)
    subprocess.run(["cmp", mnt / "f", mnt / "g"], check=True)
    subprocess.run(["cmp", mnt / "f", tmp_path / "sparse"], check=True)
    assert (tmp_path / "sparse").stat().st_blocks * 512 < MIB
    assert (mnt / "g").stat().st_blocks * 512 < MIB


# --- copy_file_range -------------------------------------------------------------------------------------------------


def copy(source: int, target: int, length: int, at: int | None = None, to: int | None = None) -> int:
    """Until all is copied or the source has ended."""
    done = 0
    while done < length:
        count = os.copy_file_range(
            source, target, length - done, None if at is None else at + done, None if to is None else to + done
        )
        if not count:
            break
        done += count
    return done


@SIZES
@pytest.mark.parametrize("committed", [True, False])
def test_a_copy_is_the_same_and_stays_when_the_source_changes(mnt: Path, there: Path, size: int, committed: bool):
    source, target = opened(mnt / "f"), opened(mnt / "g")
    os.write(source, data(size))
    if committed:
        os.fsync(source)
    assert copy(source, target, size + 100, 0, 0) == size
    os.pwrite(source, b"changed", 0)
    os.close(source)
    assert os.pread(target, size + 1, 0) == data(size)
    os.fsync(target)
    os.close(target)
    assert (there / "g").read_bytes() == data(size)
    os.unlink(mnt / "f")
    assert (there / "g").read_bytes() == data(size)


@pytest.mark.parametrize(
    ("source_size", "target_size"), [(5_000, 100_000), (100_000, 5_000), (9 * MIB, 9 * MIB), (500, 600)]
)
def test_pieces_are_copied_into_the_middle(mnt: Path, source_size: int, target_size: int):
    """From and to inline files, files of one chunk and of several; where nothing can be shared, bytes are moved."""
    chance = Random(3)
    source, target = opened(mnt / "f"), opened(mnt / "g")
    os.write(source, data(source_size, 1))
    os.write(target, data(target_size, 2))
    shadow = bytearray(data(target_size, 2))
    for _ in range(12):
        at, to = chance.randrange(source_size), chance.randrange(target_size)
        length = chance.randrange(1, source_size - at + 1)
        piece = data(source_size, 1)[at : at + length]
        assert copy(source, target, length, at, to) == length
        shadow.extend(bytes(max(0, to - len(shadow))))
        shadow[to : to + length] = piece
        if chance.random() < 0.3:
            os.pwrite(target, b"between", to)
            shadow[to : to + 7] = b"between"
    assert os.pread(target, len(shadow) + 1, 0) == shadow
    os.close(source)
    os.close(target)
    assert (mnt / "g").read_bytes() == shadow


def test_within_one_file(mnt: Path):
    fd = opened(mnt / "f")
    os.write(fd, data(3 * MIB))
    assert copy(fd, fd, MIB, 0, 2 * MIB) == MIB
    assert failing(os.copy_file_range, fd, fd, MIB, 0, MIB // 2) == errno.EINVAL
    assert os.pread(fd, MIB, 2 * MIB) == data(3 * MIB)[:MIB]
    assert os.pread(fd, MIB, MIB) == data(3 * MIB)[MIB : 2 * MIB]
    os.close(fd)


def test_a_clone_takes_no_chunks(cluster: Cluster, mnt: Path):
    (mnt / "f").write_bytes(data(20 * MIB))
    target, source = opened(mnt / "g"), os.open(mnt / "f", os.O_RDONLY)
    before = chunks(cluster)
    assert copy(source, target, 20 * MIB, 0, 0) == 20 * MIB
    os.fsync(target)
    os.close(source)
    os.close(target)
    assert chunks(cluster) == before
    assert (mnt / "g").read_bytes() == data(20 * MIB)
    assert (mnt / "g").stat().st_blocks == (mnt / "f").stat().st_blocks


def chunks(cluster: Cluster) -> int:
    """Records in the segments of the first chunkserver, by their length: nothing is deleted within the grace time."""
    return sum(path.stat().st_size for path in (cluster.state / "data" / "chunkserver-1").rglob("*") if path.is_file())


def test_holes_are_copied_as_holes(mnt: Path):
    source, target = opened(mnt / "f"), opened(mnt / "g")
    os.pwrite(source, b"x" * 100_000, 5 * MIB)
    os.write(target, data(8 * MIB))
    assert copy(source, target, 5 * MIB + 100_000, 0, MIB) == 5 * MIB + 100_000
    assert map_of(target) == [(0, MIB), (6 * MIB, 8 * MIB)]
    assert os.pread(target, 5 * MIB, MIB) == bytes(5 * MIB)
    os.close(source)
    os.close(target)


# --- O_TMPFILE -------------------------------------------------------------------------------------------------------


def test_a_file_without_a_name_can_be_given_one(mnt: Path, there: Path):
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o640)
    assert os.listdir(mnt) == []
    os.write(fd, data(100_000))
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 10, 0) == data(100_000)[:10]
    libc.give_name(fd, mnt / "named")
    assert os.fstat(fd).st_nlink == 1
    os.pwrite(fd, b"more", 100_000)
    os.close(fd)
    assert (there / "named").read_bytes() == data(100_000) + b"more"
    assert (mnt / "named").stat().st_mode & 0o777 == 0o640
    os.link(mnt / "named", mnt / "again")
    os.unlink(mnt / "named")
    assert (there / "again").stat().st_nlink == 1


def test_without_a_name_it_goes_with_its_last_close(cluster: Cluster, mnt: Path):
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, bytes(9_000_000))
    os.fsync(fd)
    os.close(fd)
    wait_until(lambda: '"orphans": 0' in cluster.run("status", "--state", cluster.state, "-o", "json"), "it is removed")


def test_one_that_is_not_to_get_a_name_gets_none(mnt: Path):
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with pytest.raises(FileNotFoundError):
        libc.give_name(fd, mnt / "named")
    os.close(fd)


def test_an_unlinked_file_stays_unlinked(mnt: Path):
    fd = opened(mnt / "f")
    os.unlink(mnt / "f")
    with pytest.raises(FileNotFoundError):
        libc.give_name(fd, mnt / "f")
    os.close(fd)


def test_it_belongs_to_who_makes_it_where_he_may(mnt: Path):
    def make() -> list[int]:
        fd = os.open(mnt / "free", os.O_TMPFILE | os.O_WRONLY, 0o666)
        status = os.fstat(fd)
        return [status.st_uid, status.st_mode & 0o777]

    if os.geteuid():
        pytest.skip("NOT TESTED: needs root")
    (mnt / "free").mkdir()
    assert failing(run_as, make) == errno.EACCES
    (mnt / "free").chmod(0o777)
    assert run_as(make) == [65534, 0o644]


def test_many_at_once(mnt: Path):
    def work(number: int) -> None:
        for turn in range(20):
            fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.write(fd, b"%d %d" % (number, turn))
            if turn % 2:
                libc.give_name(fd, mnt / f"{number}-{turn}")
            os.close(fd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(mnt)) == 60
    assert all(path.read_bytes() == path.name.replace("-", " ").encode() for path in mnt.iterdir())
