"""A disk in memory with a power switch and faults: the second implementation of the Disk port.

It keeps two versions of everything: what a running system sees, and what is on the platter. A write dirties sectors;
fdatasync copies the dirty ones to the platter; a directory's names reach it with sync_dir. :meth:`MemoryDisk.power_cut`
throws away what had not got there, except for sectors and names that chance says had been written back already, so
that torn and half-persisted states occur. A failed fdatasync marks the sectors clean without writing them, as Linux
does: a later one succeeds and hides the loss unless the caller remembers.

For tests and simulation. Thread-safe.
"""

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from shoalfs.chunkserver.direct import in_pages
from shoalfs.chunkserver.disk import Space
from shoalfs.transport.frame import Buffer

SECTOR_BYTES: Final = 512  # what a disk writes whole or not at all
_PAGE_BYTES: Final = 4096  # the filesystem's unit of allocation


@dataclass(eq=False)
class _File:
    """Invariant: outside ``dirty`` sectors ``data`` equals ``platter``, unless an fdatasync failed."""

    data: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)
    holes: set[int] = field(default_factory=set)  # pages that take no space
    locked_by: int | None = None

    @property
    def allocated_bytes(self) -> int:
        return (-(-len(self.data) // _PAGE_BYTES) - len(self.holes)) * _PAGE_BYTES


@dataclass
class _Fault:
    operation: str
    errno: int
    skip: int  # calls that still succeed
    count: int  # calls that fail then


class MemoryDisk:
    """See the module. ``capacity_bytes`` is what all files together may occupy."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self.calls: Counter[str] = Counter()
        self._boots = 1
        self._lock = threading.RLock()
        self._dirs: set[str] = {"/"}
        self._names: dict[str, _File] = {}
        self._platter_names: dict[str, _File] = {}
        self._pending_names: list[tuple[str, Callable[[dict[str, _File]], None]]] = []
        self._fds: dict[int, _File] = {}
        self._next_fd = 1000
        self._faults: list[_Fault] = []
        self.takes_direct = True  # it has descriptors for direct writes
        self.direct_bytes_max: int | None = None  # a direct write ends after so many bytes

    # --- faults ------------------------------------------------------------------------------------------------------

    def fail(self, operation: str, number: int, *, skip: int = 0, count: int = 1) -> None:
        """Let ``operation`` (a method's name) fail with this errno: after ``skip`` good calls, ``count`` times."""
        self._faults.append(_Fault(operation, number, skip, count))

    def power_cut(self, chance: random.Random) -> None:
        """Lose what is not on the platter, all or some of it as ``chance`` says; descriptors and locks are gone."""
        with self._lock:
            every = [*self._names.values(), *self._platter_names.values()]
            for file in {id(file): file for file in every}.values():
                _lose(file, chance)
            for _, change in self._pending_names[: chance.randint(0, len(self._pending_names))]:
                change(self._platter_names)
            self._names = dict(self._platter_names)
            self._pending_names.clear()
            self._boots += 1
            self.kill()

    def kill(self) -> None:
        """The process ends: descriptors and locks are gone, every byte written stays."""
        with self._lock:
            self._fds.clear()
            for file in self._names.values():
                file.locked_by = None
            self._faults.clear()

    def contents(self, path: str) -> bytes:
        """The file's bytes as the system sees them."""
        return bytes(self._names[path].data)

    def rot(self, path: str, offset: int, data: bytes) -> None:
        """Change bytes behind the system's back, in its memory and on the platter."""
        file = self._names[path]
        for copy in (file.data, file.platter):
            copy[offset : offset + len(data)] = data[: max(0, len(copy) - offset)]

    def cut(self, path: str, size: int) -> None:
        """Shorten the file behind the system's back."""
        file = self._names[path]
        for copy in (file.data, file.platter):
            del copy[size:]
        file.dirty = {sector for sector in file.dirty if sector * SECTOR_BYTES < size}

    def _begin(self, operation: str) -> None:
        self.calls[operation] += 1
        for fault in self._faults:
            if fault.operation != operation:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.count -= 1
            if not fault.count:
                self._faults.remove(fault)
            raise OSError(fault.errno, os.strerror(fault.errno))

    # --- the port ----------------------------------------------------------------------------------------------------

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def make_dirs(self, path: str) -> None:
        while path not in self._dirs:
            self._dirs.add(path)
            path = os.path.dirname(path)

    def list_dir(self, path: str) -> list[str]:
        with self._lock:
            if path not in self._dirs:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            every = [*self._names, *(name for name in self._dirs if name != "/")]
            return sorted(os.path.basename(name) for name in every if os.path.dirname(name) == path)

    def open(self, path: str, *, create: bool = False) -> int:
        with self._lock:
            self._begin("open")
            file = self._names.get(path)
            if file is None:
                if not create or os.path.dirname(path) not in self._dirs:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                file = _File()
                self._change_names(path, partial(_set_name, path, file))
            self._next_fd += 1
            self._fds[self._next_fd] = file
            return self._next_fd

    def close(self, fd: int) -> None:
        with self._lock:
            file = self._file(fd)
            if file.locked_by == fd:
                file.locked_by = None
            del self._fds[fd]

    def lock(self, fd: int) -> bool:
        with self._lock:
            file = self._file(fd)
            if file.locked_by not in (None, fd):
                return False
            file.locked_by = fd
            return True

    def size(self, fd: int) -> int:
        return len(self._file(fd).data)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        with self._lock:
            file = self._file(fd)
            data = b"".join(buffers)
            try:
                self._begin("pwritev")
            except OSError:
                self._write(file, data[: len(data) // 2], offset)  # it fails half-way
                raise
            room = self._space().free_bytes + _PAGE_BYTES - 1
            need = offset + len(data) - len(file.data)
            if need + sum(_PAGE_BYTES for page in _pages(offset, len(data)) if page in file.holes) > room:
                self._write(file, data[: min(room, len(data)) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._write(file, data, offset)

    def open_direct(self, path: str) -> int | None:
        return self.open(path) if self.takes_direct else None

    def pwritev_direct(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._lock:
            pieces = in_pages(buffers)
            if pieces is None:
                self.calls["pwritev_direct refused"] += 1
                return 0
            self._begin("pwritev_direct")
            if self.direct_bytes_max is not None:
                pieces = [memoryview(b"".join(pieces))[: self.direct_bytes_max]]
            self.pwritev(fd, pieces, offset)
            return sum(map(len, pieces))

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._lock:
            self._begin("preadv")
            data = self._file(fd).data
            done = 0
            for buffer in buffers:
                piece = data[offset + done : offset + done + len(buffer)]
                memoryview(buffer)[: len(piece)] = piece
                done += len(piece)
            return done

    def preadv_nowait(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        return self.preadv(fd, buffers, offset) == sum(len(buffer) for buffer in buffers)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._begin("truncate")
            file = self._file(fd)
            file.dirty.update(_sectors(min(size, len(file.data)), abs(size - len(file.data))))
            del file.data[size:]
            file.data.extend(bytes(size - len(file.data)))
            file.holes = {page for page in file.holes if page * _PAGE_BYTES < size}

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            self._begin("punch_hole")
            file = self._file(fd)
            inside = max(0, min(length, len(file.data) - offset))
            file.data[offset : offset + inside] = bytes(inside)
            file.dirty.update(_sectors(offset, inside))
            file.holes.update(
                page
                for page in _pages(offset, inside)
                if page * _PAGE_BYTES >= offset and (page + 1) * _PAGE_BYTES <= offset + length
            )

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            file = self._file(fd)
            try:
                self._begin("fdatasync")
            except OSError:
                file.dirty.clear()  # clean in memory, never written: the caller has to remember
                raise
            _write_back(file, file.dirty)
            file.dirty.clear()

    def drop_cache(self, fd: int) -> None:
        with self._lock:
            file = self._file(fd)
            if not file.dirty:
                file.data = bytearray(file.platter)

    def sync_dir(self, path: str) -> None:
        with self._lock:
            self._begin("sync_dir")
            for parent, change in self._pending_names:
                if parent == path:
                    change(self._platter_names)
            self._pending_names = [pending for pending in self._pending_names if pending[0] != path]

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            self._begin("rename")
            file = self._names[old]

            def change(names: dict[str, _File]) -> None:
                names.pop(old, None)
                names[new] = file

            self._change_names(new, change)

    def unlink(self, path: str) -> None:
        with self._lock:
            self._begin("unlink")
            if path not in self._names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._change_names(path, lambda names: names.pop(path, None))

    def space(self, path: str) -> Space:
        self._begin("space")
        return self._space()

    def _space(self) -> Space:
        used = sum(file.allocated_bytes for file in self._names.values())
        return Space(self.capacity_bytes, max(0, self.capacity_bytes - used))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _file(self, fd: int) -> _File:
        file = self._fds.get(fd)
        if file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file

    def _change_names(self, path: str, change: Callable[[dict[str, _File]], object]) -> None:
        def apply(names: dict[str, _File]) -> None:
            change(names)

        apply(self._names)
        self._pending_names.append((os.path.dirname(path), apply))

    def _write(self, file: _File, data: bytes, offset: int) -> None:
        if offset > len(file.data):
            file.dirty.update(_sectors(len(file.data), offset - len(file.data)))
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + len(data)] = data
        file.dirty.update(_sectors(offset, len(data)))
        file.holes.difference_update(_pages(offset, len(data)))


def _set_name(path: str, file: _File, names: dict[str, _File]) -> None:
    names[path] = file


def _sectors(offset: int, length: int) -> range:
    return range(offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES))


def _pages(offset: int, length: int) -> range:
    return range(offset // _PAGE_BYTES, -(-(offset + length) // _PAGE_BYTES))


def _write_back(file: _File, sectors: set[int]) -> None:
    """Copy these sectors and the size that goes with them to the platter."""
    if sectors == file.dirty:  # everything: the size too
        del file.platter[len(file.data) :]
        file.platter.extend(bytes(len(file.data) - len(file.platter)))
    for sector in sorted(sectors):
        start = sector * SECTOR_BYTES
        piece = file.data[start : start + SECTOR_BYTES]
        file.platter.extend(bytes(max(0, start + len(piece) - len(file.platter))))
        file.platter[start : start + len(piece)] = piece


def _lose(file: _File, chance: random.Random) -> None:
    survive = chance.choice((0.0, 0.5, 0.9, 1.0))
    kept = {sector for sector in file.dirty if chance.random() < survive}
    if kept:
        _write_back(file, kept)
    file.data = bytearray(file.platter)
    file.dirty.clear()
