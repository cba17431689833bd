"""The Disk port: what a target asks of the system it stores on, and the real one.

The port is small enough to be implemented a second time (:mod:`~shoalfs.chunkserver.memory_disk`) with a power switch
and faults; one suite holds both to the same behaviour. It knows nothing of chunks. Every failure is an ``OSError``
with its errno: the store decides what that means. All calls block; they are made from worker threads.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from shoalfs.chunkserver.direct import in_pages
from shoalfs.transport.frame import Buffer

_IOV_MAX: Final = 1024  # buffers in one call, sysconf(_SC_IOV_MAX) on Linux
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02


class Space(NamedTuple):
    """Of the filesystem that a directory is on; ``free_bytes`` is what an ordinary process may still use."""

    capacity_bytes: int
    free_bytes: int


class Disk(Protocol):
    """Files, directories, and the calls that make them last."""

    def boot_id(self) -> str:
        """Differs after each start of the machine: what was only in memory then is gone."""

    def make_dirs(self, path: str) -> None:
        """Make the directory and its parents; nothing if it is there."""

    def list_dir(self, path: str) -> list[str]:
        """Names in the directory, sorted. FileNotFoundError if there is none."""

    def open(self, path: str, *, create: bool = False) -> int:
        """A descriptor for reading and writing. ``create`` makes the file if it is not there. Reads through it change
        nothing, where the system allows that: a read from memory would wait for the disk to take the time of it."""

    def close(self, fd: int) -> None: ...

    def lock(self, fd: int) -> bool:
        """Take the file's lock for as long as ``fd`` is open. False if somebody else has it."""

    def size(self, fd: int) -> int: ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all the buffers one after the other. If it raises, any part may have been written."""

    def open_direct(self, path: str) -> int | None:
        """A further descriptor of a file, for :meth:`pwritev_direct`; None where the filesystem has none such."""

    def pwritev_direct(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write whole pages past the system's memory. Returns how many bytes were written, from the first on: what is
        left, which is everything if these buffers or this file cannot be written so, is :meth:`pwritev`'s. It lasts as
        other writes do: after fdatasync, of any descriptor of the file. If it raises, any part may have been written.

        Nobody may change these pages, or others that the system may have in memory together with them, until it
        returns: the next fdatasync would fail."""

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers as far as the file reaches; returns how many bytes that is."""

    def preadv_nowait(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        """As preadv, but only from memory. False if that would have to wait or the file is too short."""

    def truncate(self, fd: int, size: int) -> None: ...

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        """Give the range back to the filesystem: it reads as zeros, the size stays."""

    def fdatasync(self, fd: int) -> None:
        """Put the file's bytes and size on disk. If it raises, they may be lost even if a later call succeeds."""

    def drop_cache(self, fd: int) -> None:
        """Let the next reads come from the disk where the system allows it."""

    def sync_dir(self, path: str) -> None:
        """Put the directory's names on disk: creations, renames and removals."""

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces ``new``."""

    def unlink(self, path: str) -> None: ...

    def space(self, path: str) -> Space: ...


class RealDisk:
    """Disk over the operating system."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fallocate = libc.fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self._fallocate.restype = ctypes.c_int

    def boot_id(self) -> str:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()

    def make_dirs(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def list_dir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def open(self, path: str, *, create: bool = False) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            return os.open(path, flags | os.O_NOATIME, 0o600)
        except PermissionError:  # it may be somebody else's file, of which only its owner may ask that
            return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while rest:
            written = os.pwritev(fd, rest[:_IOV_MAX], offset)
            offset += written
            rest = after(rest, written)

    def open_direct(self, path: str) -> int | None:
        try:
            return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def pwritev_direct(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        pieces = in_pages(buffers)
        if pieces is None:
            return 0
        try:
            return os.pwritev(fd, pieces[:_IOV_MAX], offset)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the filesystem wants them to lie otherwise
                return 0
            raise

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        done = 0
        while rest:
            count = os.preadv(fd, rest[:_IOV_MAX], offset + done)
            if not count:
                break
            done += count
            rest = after(rest, count)
        return done

    def preadv_nowait(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        try:
            count = os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return False
            raise
        return count == sum(len(buffer) for buffer in buffers)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if self._fallocate(fd, mode, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def drop_cache(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def space(self, path: str) -> Space:
        stat = os.statvfs(path)
        return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
