"""Bytes that one mount keeps, seen from others: at the next look, and without anybody polling."""

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.refusals import failing


def test_a_log_written_without_sync_is_tailed_elsewhere(mnt: Path, there: Path):
    """Plain writes, neither O_APPEND nor fsync, nor a close: each is there for the next read of the other mount."""
    (mnt / "log").touch()
    writer = os.open(mnt / "log", os.O_WRONLY)
    with open(there / "log", "rb", buffering=0) as tail:
        for number in range(50):
            record = (b"record %d " % number).ljust(3_000, b".")
            os.write(writer, record)
            assert os.fstat(tail.fileno()).st_size == 3_000 * (number + 1)
            assert tail.read(10_000) == record, number
            assert (there / "log").stat().st_size == 3_000 * (number + 1)
    os.close(writer)


def test_a_file_that_is_being_written_is_read_whole_by_an_open_elsewhere(mnt: Path, there: Path):
    data = os.urandom(9_000_000)
    with open(mnt / "f", "wb", buffering=0) as file:
        for start in range(0, len(data), 1_000_000):
            file.write(data[start : start + 1_000_000])
            if start in (0, 5_000_000):
                assert (there / "f").read_bytes() == data[: start + 1_000_000]
    assert (there / "f").read_bytes() == data


def test_who_writes_alone_asks_nobody(cluster: Cluster, mnt: Path, there: Path):
    before = cluster.counters()
    with open(mnt / "f", "wb", buffering=0) as file:
        for _ in range(500):
            file.write(b"x" * 10)
            os.fstat(file.fileno())
    after = cluster.counters()
    assert after["mutations"] - before["mutations"] <= 4, "one to create it, one to commit it; more if it takes seconds"
    assert after["recalls_sent"] - before["recalls_sent"] <= 2
    assert (there / "f").stat().st_size == 5_000


def test_a_mapping_elsewhere_shows_what_was_written(mnt: Path, there: Path):
    (mnt / "f").write_bytes(b"old!" * 1024)
    with open(there / "f", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        writer = os.open(mnt / "f", os.O_RDWR)
        assert mapped[:4] == b"old!"
        os.pwrite(writer, b"new!", 0)
        os.close(writer)
        assert mapped[:8] == b"new!old!"


OVERWRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
me = sys.argv[2].encode()
for number in range(60):
    os.pwrite(fd, me * 10, number * 20 + 10 * int(sys.argv[2]))
    seen = os.pread(fd, 2_000, 0)
    assert seen[number * 20 + 10 * int(sys.argv[2]) :][:10] == me * 10, (number, seen)
"""


def test_writers_on_both_mounts_share_the_pages_of_one_file(mnt: Path, there: Path):
    """Each sees its own writes, and at the end all are there: no old copy of a page is written over it."""
    (mnt / "f").write_bytes(b"." * 1_200)
    writers = [
        subprocess.Popen([sys.executable, "-c", OVERWRITER, root / "f", str(who)])
        for who, root in enumerate((mnt, there))
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert (mnt / "f").read_bytes() == (there / "f").read_bytes() == (b"0" * 10 + b"1" * 10) * 60


def test_holes_are_where_they_are_after_what_was_written_elsewhere(mnt: Path, there: Path):
    """Nobody closed or synced anything, and nobody asked for attributes between."""
    with open(mnt / "f", "w+b", buffering=0) as ours, open(there / "f", "r+b", buffering=0) as theirs:
        os.ftruncate(ours.fileno(), 3_000_000)
        assert failing(os.lseek, theirs.fileno(), 0, os.SEEK_DATA) == errno.ENXIO
        os.pwrite(ours.fileno(), b"x" * 1_000, 1_000_000)
        assert os.lseek(theirs.fileno(), 0, os.SEEK_DATA) == 1_000_000
        os.pwrite(ours.fileno(), b"x" * 1_000, 4_000_000)
        assert os.lseek(theirs.fileno(), 3_500_000, os.SEEK_DATA) == 4_000_000
        os.ftruncate(ours.fileno(), 500)
        assert os.lseek(theirs.fileno(), 0, os.SEEK_HOLE) == 0
        assert failing(os.lseek, theirs.fileno(), 500, os.SEEK_HOLE) == errno.ENXIO


@pytest.mark.parametrize("size", [4_000, 100_000, 2_000_000])
def test_a_copy_takes_what_was_written_elsewhere(mnt: Path, there: Path, size: int):
    (mnt / "f").write_bytes(b"." * size)
    with open(mnt / "f", "r+b", buffering=0) as ours, open(there / "f", "rb", buffering=0) as theirs:
        assert theirs.read(size) == b"." * size
        os.pwrite(ours.fileno(), b"word", size // 2)
        with open(there / "copy", "w+b", buffering=0) as copy:
            assert os.copy_file_range(theirs.fileno(), copy.fileno(), size, 0, 0) == size
            assert os.pread(copy.fileno(), 6, size // 2 - 1) == b".word."


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(60):
    os.write(fd, f"{sys.argv[2]}-{number:04}-".encode().ljust(int(sys.argv[3]) - 1, b".") + b"\\n")
"""


def test_three_mounts_append_and_a_fourth_process_follows(cluster: Cluster, mnt: Path, there: Path):
    """Each record once and whole, those of one writer in their order; and what a reader has seen stays as it was."""
    third = cluster.mount("third") / mnt.name
    try:
        record = 500
        (mnt / "log").touch()
        with open(there / "log", "rb", buffering=0) as tail:
            writers = [
                subprocess.Popen([sys.executable, "-c", APPENDER, root / "log", str(who), str(record)])
                for who, root in enumerate((mnt, there, third))
            ]
            seen = b""
            while any(writer.poll() is None for writer in writers):
                seen += tail.read(1 << 20)
                assert len(seen) % record == 0, "half a record"
            seen += tail.read(1 << 20)
        assert [writer.returncode for writer in writers] == [0] * 3
        lines = seen.splitlines()
        assert {len(line) for line in lines} == {record - 1}
        for who in range(3):
            assert [int(line.split(b"-")[1]) for line in lines if line.startswith(b"%d-" % who)] == list(range(60))
        assert seen == (mnt / "log").read_bytes() == (there / "log").read_bytes() == (third / "log").read_bytes()
    finally:
        cluster.umount("third")
