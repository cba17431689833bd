"""Files mapped into memory."""

import mmap
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [1, 20_456, 21_000, 5 * MIB + 3])
def test_a_map_reads_the_file(mnt: Path, size: int):
    data = Random(size).randbytes(size)
    (mnt / "f").write_bytes(data)
    with open(mnt / "f", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == data
        assert mapped[size // 2] == data[size // 2]


@pytest.mark.parametrize("size", [100, 4096, 5 * MIB])
def test_what_is_stored_through_a_shared_map_is_in_the_file(mnt: Path, size: int):
    (mnt / "f").write_bytes(bytes(size))
    with open(mnt / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:5] = b"first"
        mapped[-4:] = b"last"
        mapped.flush()
    assert (mnt / "f").read_bytes() == b"first" + bytes(size - 9) + b"last"


def test_a_map_outlives_its_descriptor(mnt: Path):
    (mnt / "f").write_bytes(bytes(3 * MIB))
    with open(mnt / "f", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    mapped[MIB : MIB + 5] = b"later"
    mapped.close()
    assert (mnt / "f").read_bytes()[MIB - 1 : MIB + 6] == b"\0later\0"


def test_read_and_write_see_what_a_map_stores_and_back(mnt: Path):
    (mnt / "f").write_bytes(bytes(8192))
    with open(mnt / "f", "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[10:13] = b"map"
        assert os.pread(file.fileno(), 3, 10) == b"map"
        os.pwrite(file.fileno(), b"write", 100)
        assert mapped[100:105] == b"write"


def test_processes_share_a_map(mnt: Path):
    (mnt / "f").write_bytes(bytes(4096))
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:\n"
        "    mapped[0:5] = b'child'\n"
    )
    with open(mnt / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        subprocess.run([sys.executable, "-c", script, mnt / "f"], check=True)
        assert mapped[0:5] == b"child"


def test_a_private_map_leaves_the_file_alone(mnt: Path):
    (mnt / "f").write_bytes(b"as it was")
    with open(mnt / "f", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:2] = b"no"
    assert (mnt / "f").read_bytes() == b"as it was"


def test_a_program_on_the_mount_runs(mnt: Path):
    (mnt / "script").write_text("#!/bin/sh\necho ran\n")
    (mnt / "script").chmod(0o755)
    assert subprocess.run([mnt / "script"], capture_output=True, check=True).stdout == b"ran\n"
