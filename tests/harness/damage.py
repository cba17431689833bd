"""Damage to files of a server that does not run, undone at the end of a block."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from shoalfs.mds.seal import SEAL_BYTES


@contextmanager
def flipped(path: Path, *offsets: int) -> Iterator[None]:
    """One bit of each of these bytes is wrong within the block."""
    _flip(path, offsets)
    try:
        yield
    finally:
        _flip(path, offsets)


def _flip(path: Path, offsets: tuple[int, ...]) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        for offset in offsets:
            (byte,) = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([byte ^ 0x10]), offset)
    finally:
        os.close(fd)


def occurrences(path: Path, wanted: bytes) -> list[int]:
    """Where these bytes are in the file."""
    data, found, at = path.read_bytes(), [], -1
    while (at := data.find(wanted, at + 1)) >= 0:
        found.append(at)
    return found


@contextmanager
def damaged_row(store: Path, key: bytes) -> Iterator[None]:
    """One row of a metadata store has a wrong bit within the block. The service may run meanwhile, and copy the page
    that it is on; it must have ended when the block does."""
    with lmdb.open(str(store), readonly=True, lock=False, max_readers=1) as env, env.begin() as txn:
        right = txn.get(key)
    assert right is not None, key
    at = SEAL_BYTES + 3
    wrong = right[:at] + bytes([right[at] ^ 0x10]) + right[at + 1 :]
    _flip_in(store / "data.mdb", right, at)
    try:
        yield
    finally:
        _flip_in(store / "data.mdb", wrong, at)


def _flip_in(path: Path, row: bytes, at: int) -> None:
    """In every copy of the row: old pages hold some."""
    places = occurrences(path, row)
    assert places, f"the row is not in {path}"
    _flip(path, tuple(place + at for place in places))


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file has other contents within the block."""
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """The file or directory is not there within the block; what came in its place is removed."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        aside.rename(path)
