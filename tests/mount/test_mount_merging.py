"""Logs, and other files that grow by a line at a time: few pieces, and nothing else to see of it."""

import json
import os
from pathlib import Path
from random import Random

from harness.cluster import Cluster, wait_until

LINES = 300


def lines(first: int, count: int) -> bytes:
    return b"".join(b"%06d %s\n" % (number, b"x" * (number % 60)) for number in range(first, first + count))


def pieces(cluster: Cluster, path: Path) -> int:
    return json.loads(cluster.run("info", path, "-o", "json"))["extent_count"]


def append(path: Path, data: bytes) -> None:
    """Each line on its own, and on disk when it returns."""
    with open(path, "ab", buffering=0) as file:
        for line in data.splitlines(keepends=True):
            file.write(line)
            os.fsync(file.fileno())


def test_a_log_of_synced_lines_is_in_few_pieces(cluster: Cluster, mnt: Path):
    head = Random(1).randbytes(50_000)
    (mnt / "log").write_bytes(head)
    append(mnt / "log", lines(0, LINES))
    wait_until(lambda: pieces(cluster, mnt / "log") < 40, "pieces are merged")
    assert (mnt / "log").read_bytes() == head + lines(0, LINES)
    before = (mnt / "log").stat()
    assert before.st_size == len(head + lines(0, LINES))
    cluster.fsck()
    append(mnt / "log", lines(LINES, 20))
    assert (mnt / "log").read_bytes() == head + lines(0, LINES + 20)


def test_a_log_that_is_opened_for_each_line(cluster: Cluster, mnt: Path):
    (mnt / "log").write_bytes(bytes(50_000))
    for number in range(100):
        with open(mnt / "log", "ab") as file:
            file.write(lines(number, 1))
    wait_until(lambda: pieces(cluster, mnt / "log") < 40, "pieces are merged")
    assert (mnt / "log").read_bytes() == bytes(50_000) + lines(0, 100)


def test_two_mounts_append_and_read_meanwhile(cluster: Cluster, mnt: Path, there: Path):
    """Each line is there once and whole, wherever one looks; and the times are those of the last write."""
    (mnt / "log").write_bytes(bytes(50_000))
    expected = bytearray(50_000)
    for number in range(60):
        append((mnt if number % 3 else there) / "log", lines(number, 1))
        expected += lines(number, 1)
        assert (there / "log").read_bytes() == (mnt / "log").read_bytes() == expected
    wait_until(lambda: pieces(cluster, mnt / "log") < 40, "pieces are merged")
    written_ns = (mnt / "log").stat().st_mtime_ns
    assert (there / "log").read_bytes() == (mnt / "log").read_bytes() == expected
    assert (there / "log").stat().st_mtime_ns == (mnt / "log").stat().st_mtime_ns == written_ns


def test_small_writes_all_over_a_file_between_syncs(cluster: Cluster, mnt: Path):
    chance = Random(2)
    data = bytearray(Random(3).randbytes(300_000))
    (mnt / "db").write_bytes(data)
    with open(mnt / "db", "r+b", buffering=0) as file:
        for number in range(200):
            at = chance.randrange(73) * 4096
            block = bytes([number]) * 4096
            os.pwrite(file.fileno(), block, at)
            data[at : at + 4096] = block
            os.fsync(file.fileno())
    assert (mnt / "db").read_bytes() == data
    wait_until(lambda: pieces(cluster, mnt / "db") < 60, "pieces are merged")
    assert (mnt / "db").read_bytes() == data
    cluster.fsck()
