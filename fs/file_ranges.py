"""Ranges of files as programs see them: fallocate(2), lseek(2) with SEEK_HOLE and SEEK_DATA, copy_file_range(2)."""

import errno
import os
from collections.abc import Awaitable, Callable

from shoalfs.fs.handles import FileHandle, Handles
from shoalfs.mds.messages import Allocate, AllocateMode, CloneRange, FsStat, Inode
from shoalfs.transport.errors import LayoutConflict, PosixError
from shoalfs.transport.ids import InodeId

_HOLE = AllocateMode.PUNCH_HOLE | AllocateMode.ZERO_RANGE
_KNOWN = _HOLE | AllocateMode.KEEP_SIZE


class FileRanges:
    """``usage`` tells what the pool has room for. ``look`` asks for the attributes of a file and takes them in, so that
    what others have written is committed and known: before a read the kernel does that, before these calls nobody."""

    def __init__(
        self,
        handles: Handles,
        usage: Callable[[], Awaitable[FsStat]],
        look: Callable[[InodeId], Awaitable[Inode]],
    ) -> None:
        self._handles = handles
        self._usage = usage
        self._look = look

    async def allocate(self, number: int, offset_bytes: int, length_bytes: int, mode: int) -> None:
        """As fallocate(2). Raises PosixError: EOPNOTSUPP for collapsing and inserting ranges, ENOSPC if there is less
        room than is asked for now. Nothing is set aside."""
        handle = self._writable(number)
        if mode & ~_KNOWN:
            raise PosixError(errno.EOPNOTSUPP)
        if not mode & _HOLE:
            usage = await self._usage()
            if usage.capacity_bytes and length_bytes > usage.free_bytes:
                raise PosixError(errno.ENOSPC)
        await handle.file.allocate(Allocate(handle.file.ino, offset_bytes, length_bytes, mode))

    async def seek(self, number: int, offset_bytes: int, whence: int) -> int:
        """As lseek(2) with SEEK_DATA or SEEK_HOLE; the kernel does the others."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise PosixError(errno.EINVAL)
        file = self._handles.file(number).file
        await self._look(file.ino)
        return await file.seek(offset_bytes, hole=whence == os.SEEK_HOLE)

    async def copy(self, number: int, offset_bytes: int, target_number: int, target_bytes: int, length: int) -> int:
        """As copy_file_range(2): returns how much was done, without moving a byte. Raises PosixError(EOPNOTSUPP) where
        that cannot be; the kernel then reads and writes, as it does for filesystems without this call."""
        source, target = self._handles.file(number), self._writable(target_number)
        if not source.read:
            raise PosixError(errno.EBADF)
        await self._look(source.file.ino)
        if source.file.is_dirty:
            await source.file.flush(durable=False)
        request = CloneRange(source.file.ino, target.file.ino, offset_bytes, target_bytes, length)
        try:
            done = await target.file.clone(request)
        except LayoutConflict as error:
            raise PosixError(errno.EOPNOTSUPP, str(error)) from error
        if target.sync:
            await target.file.flush(durable=True)
        return done

    def _writable(self, number: int) -> FileHandle:
        handle = self._handles.file(number)
        if not handle.write:
            raise PosixError(errno.EBADF)
        if handle.lost:
            raise PosixError(errno.EIO)
        return handle
