"""The handlers of what pyfuse3 does not know: unpack, ask, pack, as `fs/operations.py`. No decision is made here.

Requests come from the compiled part, each runs in a task of its own (so one that waits for a lock takes no worker
away), and each is answered exactly once: also when its handler fails, is interrupted, or is cancelled because the
mount ends. The number of tasks is bounded by the threads that call into this mount, and by LOCK_WAITS_MAX for locks.

Without the compiled part there is nothing here to call: the kernel then does what it does for a filesystem without
these operations; docs/posix.md says what.
"""

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.credentials import CredentialsCache
from shoalfs.fs.directory_pages import DirectoryPages, Timeouts
from shoalfs.fs.file_locks import FileLocks, whole_file
from shoalfs.fs.file_ranges import FileRanges
from shoalfs.fs.fuse_wire import InitFlags, Opcode
from shoalfs.fs.handles import OPENED_NATIVELY
from shoalfs.fs.known_files import KnownFiles
from shoalfs.fs.native import Shim
from shoalfs.fs.root import Root
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import Credentials, Lock, LockKind
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

log = logging.getLogger("shoal.fs.native_ops")

_FLAGS: Final = (
    InitFlags.HANDLE_KILLPRIV_V2
    | InitFlags.DONT_MASK  # the umask comes beside the mode: a default access control list takes its place
)
_LOCK_FLAGS: Final = InitFlags.POSIX_LOCKS | InitFlags.FLOCK_LOCKS
_BACKGROUND_MAX: Final = 64  # read-ahead requests at a time; the kernel's own bound of 12 starves 1 MiB read-ahead

_COPY_MAX: Final = (1 << 31) - (1 << 20)  # what the answer to the older of the two requests can hold

_WHOLE: Final = Root()

Handler = Callable[[wire.Request], Awaitable[bytes]]


class NativeOps:
    """One method per operation. ``locks`` None: the kernel keeps them, for this machine. ``last`` is called before the
    compiled part forgets everything."""

    def __init__(
        self,
        shim: Shim,
        vfs: Vfs,
        locks: FileLocks | None,
        ranges: FileRanges,
        credentials: CredentialsCache,
        pages: DirectoryPages,
        timeouts: Timeouts,
        root: Root = _WHOLE,
        known: KnownFiles | None = None,
        *,
        last: Callable[[], None] = lambda: None,
    ) -> None:
        self._shim = shim
        self._last = last
        self._vfs = vfs
        self._locks = locks
        self._ranges = ranges
        self._credentials = credentials
        self._pages = pages
        self._ino = root.inode
        self._known = known
        self._timeouts = timeouts
        self._handlers: dict[int, Handler] = {
            Opcode.STATX: self._statx,
            Opcode.SETXATTR: self._setxattr,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
            Opcode.TMPFILE: self._tmpfile,
        }
        if locks is not None:
            self._handlers |= {Opcode.GETLK: self._getlk, Opcode.SETLK: self._setlk, Opcode.SETLKW: self._setlkw}
        self._nursery: trio.Nursery | None = None
        # Requests that are not answered yet. Invariant: a request is in here until its answer.
        self._open: set[int] = set()
        # Those that a signal may end, and what ends each. The others are short, and who interrupts one would not know
        # whether it has happened.
        self._waiting: dict[int, trio.CancelScope] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Requests are taken while the block runs. At its end those that are open are answered with EIO."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            opcodes = bytes([*self._handlers, Opcode.INTERRUPT])
            flags = _FLAGS if self._locks is None else _FLAGS | _LOCK_FLAGS
            self._shim.install(self._take, opcodes, flags, _BACKGROUND_MAX)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
        log.info("%d files were opened by the compiled part", self._shim.opened())
        log.info("%d names were looked up by the compiled part", self._shim.looked_up())
        log.info("%d files were made by the compiled part", self._shim.made())
        log.info("%d questions for attributes of inodes without any were answered there", self._shim.found_bare())
        self._last()
        self._shim.detach()

    def _take(self, opcode: int, unique: int, ino: int, uid: int, gid: int, pid: int, body: bytes) -> bool:
        """Called by the compiled part. False: not for us."""
        if opcode == Opcode.INTERRUPT:
            number = wire.interrupted(body)
            if number in self._waiting:
                self._waiting[number].cancel()
            return number in self._open
        assert self._nursery is not None
        self._open.add(unique)
        if opcode == Opcode.SETLKW:
            self._waiting[unique] = trio.CancelScope()
        request = wire.Request(opcode, unique, ino, uid, gid, pid, body)
        self._nursery.start_soon(self._carry_out, self._handlers[opcode], request)
        return True

    async def _carry_out(self, handler: Handler, request: wire.Request) -> None:
        failure, body = errno.EIO, b""
        try:
            with self._waiting.get(request.unique, trio.CancelScope()) as scope:
                body = await handler(request)
                failure = 0
            if scope.cancelled_caught:
                failure = errno.EINTR
        except PosixError as error:
            failure = error.errno
        except ShoalError as error:
            log.warning("%s: %s: %s", Opcode(request.opcode).name, type(error).__name__, error)
            failure = error.errno
        finally:
            self._waiting.pop(request.unique, None)
            self._open.remove(request.unique)
            self._answer(request.unique, failure, body)

    def _answer(self, unique: int, failure: int, body: bytes) -> None:
        try:
            self._shim.reply(unique, failure, b"" if failure else body)
        except OSError as error:
            log.warning("request %d could not be answered: %s", unique, error.strerror)

    async def _adopt(self, request: wire.Request, handle: int) -> None:
        """The handle of the request is ours, whoever has opened it."""
        if handle < OPENED_NATIVELY:
            return
        if self._known is not None:
            await self._known.reading(InodeId(request.ino))
        elif not self._vfs.has_handle(handle):
            await self._vfs.adopt(handle, InodeId(request.ino))

    def _who(self, request: wire.Request) -> Credentials:
        return self._credentials.of(request.pid, request.uid, request.gid)

    # --- attributes --------------------------------------------------------------------------------------------------

    async def _statx(self, request: wire.Request) -> bytes:
        inode = await self._vfs.getattr(self._ino(request.ino))
        if self._known is not None:
            await self._known.before_open(inode)
        left_s = min(self._timeouts.attr_s, self._vfs.attributes_left_s(inode.ino))
        return wire.statx(self._vfs.view(inode), left_s)

    # --- directories -------------------------------------------------------------------------------------------------

    async def _readdirplus(self, request: wire.Request) -> bytes:
        asked = wire.readdirplus(request.body)
        part = await self._pages.after(asked.handle, asked.cookie, asked.size_bytes, request.pid)
        for entry in part.entries:
            self._pages.told(entry)
        return self._shim.pack_entries(*part)

    # --- ranges ------------------------------------------------------------------------------------------------------

    async def _fallocate(self, request: wire.Request) -> bytes:
        asked = wire.fallocate(request.body)
        await self._adopt(request, asked.handle)
        await self._ranges.allocate(asked.handle, asked.offset_bytes, asked.length_bytes, asked.mode)
        return b""

    async def _lseek(self, request: wire.Request) -> bytes:
        asked = wire.lseek(request.body)
        await self._adopt(request, asked.handle)
        return wire.offset(await self._ranges.seek(asked.handle, asked.offset_bytes, asked.whence))

    async def _copy_file_range(self, request: wire.Request) -> bytes:
        return wire.written(await self._copy(request, _COPY_MAX))

    async def _copy_file_range_64(self, request: wire.Request) -> bytes:
        return wire.offset(await self._copy(request, FILE_SIZE_BYTES_MAX))

    async def _copy(self, request: wire.Request, length_max: int) -> int:
        asked = wire.copy_file_range(request.body)
        await self._adopt(request, asked.handle)
        return await self._ranges.copy(
            asked.handle,
            asked.offset_bytes,
            asked.target_handle,
            asked.target_offset_bytes,
            min(asked.length_bytes, length_max),
        )

    async def _tmpfile(self, request: wire.Request) -> bytes:
        asked = wire.tmpfile(request.body)
        inode, handle, caching = await self._vfs.tmpfile(
            self._who(request), self._ino(request.ino), asked.mode, asked.flags, asked.umask
        )
        return wire.created(
            inode,
            handle,
            entry_timeout_s=0.0,  # there is no name to be kept
            attr_timeout_s=min(self._timeouts.attr_s, self._vfs.attributes_left_s(inode.ino)),
            keep=caching.keep,
            direct=caching.direct,
        )

    async def _setxattr(self, request: wire.Request) -> bytes:
        asked = wire.setxattr(request.body)
        await self._vfs.xattrs.set(self._who(request), self._ino(request.ino), *asked)
        return b""

    # --- locks -------------------------------------------------------------------------------------------------------

    async def _getlk(self, request: wire.Request) -> bytes:
        assert self._locks is not None
        asked = wire.lock(request.body)
        found = await self._locks.test(_lock(request, asked))
        if found is None:
            return wire.locked(asked.start_bytes, asked.end_bytes, LockKind.UNLOCK, 0)
        return wire.locked(found.start_bytes, found.end_bytes, found.kind, found.pid)

    async def _setlk(self, request: wire.Request) -> bytes:
        await self._lock(request, wait=False)
        return b""

    async def _setlkw(self, request: wire.Request) -> bytes:
        await self._lock(request, wait=True)
        return b""

    async def _lock(self, request: wire.Request, *, wait: bool) -> None:
        assert self._locks is not None
        asked = wire.lock(request.body)
        await self._adopt(request, asked.handle)
        await self._locks.set(asked.handle, _lock(request, asked), wait=wait)


def _lock(request: wire.Request, asked: wire.Lock) -> Lock:
    lock = Lock(
        InodeId(request.ino), asked.is_flock, asked.owner, asked.start_bytes, asked.end_bytes, asked.kind, asked.pid
    )
    return whole_file(lock) if asked.is_flock else lock
