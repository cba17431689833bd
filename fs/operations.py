"""The FUSE handlers: unpack, ask the :class:`~shoalfs.fs.vfs.Vfs`, pack. No decision is made here.

The one place where an error becomes an errno for the kernel. A broken invariant is not an error: it goes through, ends
the process, and the kernel answers "Transport endpoint is not connected" until the mount is started again.
"""

import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.credentials import CredentialsCache
from shoalfs.fs.directory_pages import DirectoryPages, Timeouts
from shoalfs.fs.file_locks import FileLocks
from shoalfs.fs.fuse_binding import native, pyfuse3
from shoalfs.fs.handles import OPENED_NATIVELY
from shoalfs.fs.known_files import KnownFiles
from shoalfs.fs.open_files import Caching
from shoalfs.fs.root import Root
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import NOW, Credentials, Inode, SetAttr
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import NAME_BYTES_MAX, TIME_NS_MAX, TIME_NS_MIN

log = logging.getLogger("shoal.fs.operations")

P = ParamSpec("P")
T = TypeVar("T")

_PART_BYTES = 4096  # of a listing at a time: pyfuse3 does not tell how much the kernel has room for


def _handler(
    function: Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]:
    """Turn the errors of the filesystem into errnos."""

    @functools.wraps(function)
    async def handle(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(self, *args, **kwargs)
        except PosixError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except ShoalError as error:
            log.warning("%s: %s: %s", function.__name__, type(error).__name__, error)
            raise pyfuse3.FUSEError(error.errno) from None

    return handle


def _file_info(number: int, caching: Caching) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=number, keep_cache=caching.keep, direct_io=caching.direct)


def _current() -> tuple[int, int, int, bytes] | None:
    """The request that is being carried out, with what pyfuse3 does not tell of it. To be called before anything is
    awaited: afterwards it is another one."""
    return native.shim.current() if native.shim is not None else None


def _present_times() -> tuple[bool, bool]:
    """Which times the SETATTR that has just come wants set to the present. pyfuse3 does not tell, only the compiled
    part does; without it the caller's clock is taken, which may be a tick behind a time that the service set."""
    last = _current()
    if last is None or last[0] != wire.Opcode.SETATTR:
        return False, False
    return wire.present_times(last[3])


def _time(time_ns: int, *, now: bool) -> int:
    """A time for the service, as near as it can be stored."""
    return NOW if now else min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


class Operations(pyfuse3.Operations):
    """One method per FUSE request."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # the kernel would own size and mtime
    enable_acl = True

    def __init__(
        self,
        vfs: Vfs,
        locks: FileLocks,
        credentials: CredentialsCache,
        keeps_names: Callable[[], bool],
        root: Root,
        pages: DirectoryPages,
        timeouts: Timeouts,
        known: KnownFiles | None = None,
    ) -> None:
        super().__init__()
        self.begun = trio.Event()  # the kernel has said hello
        self._keeps_names = keeps_names
        self._ino = root.inode
        self._known = known
        self._pages = pages
        self._vfs = vfs
        self._locks = locks
        self._credentials = credentials
        self._timeouts = timeouts

    def init(self) -> None:
        self.begun.set()

    # --- packing -----------------------------------------------------------------------------------------------------

    def _who(self, ctx: pyfuse3.RequestContext) -> Credentials:
        return self._credentials.of(ctx.pid, ctx.uid, ctx.gid)

    async def _before_attributes(self, inode: Inode) -> None:
        if self._known is not None:
            await self._known.before_attributes(inode)

    def _told(self, inode: Inode) -> None:
        """The kernel gets a reference to the inode with this answer."""
        if self._known is not None:
            self._known.told(inode)

    def _pack(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The attributes, which the kernel may keep while they are leased."""
        attr_s = min(self._timeouts.attr_s, self._vfs.attributes_left_s(inode.ino))
        return self._packed(self._vfs.view(inode), 0.0, attr_s)

    def _packed(self, inode: Inode, entry_s: float, attr_s: float) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode.ino
        attributes.entry_timeout = entry_s
        attributes.attr_timeout = attr_s
        attributes.st_mode = inode.mode
        attributes.st_nlink = inode.nlink
        attributes.st_uid = inode.uid
        attributes.st_gid = inode.gid
        attributes.st_rdev = inode.rdev
        attributes.st_size = inode.size_bytes
        attributes.st_blksize = wire.BLOCK_SIZE_BYTES
        attributes.st_blocks = -(-inode.used_bytes // wire.SECTOR_BYTES)
        attributes.st_atime_ns = inode.atime_ns
        attributes.st_mtime_ns = inode.mtime_ns
        attributes.st_ctime_ns = inode.ctime_ns
        attributes.st_birthtime_ns = inode.btime_ns
        return attributes

    def _pack_entry(self, parent: int, name: bytes, inode: Inode) -> pyfuse3.EntryAttributes:
        """The same, with the name that leads there."""
        attributes = self._pack(inode)
        attributes.entry_timeout = self._entry_timeout(parent, name, inode.ino)
        return attributes

    def _entry_timeout(self, parent: int, name: bytes, ino: InodeId | None) -> float:
        if not self._keeps_names():
            return 0.0
        return min(self._timeouts.entry_s, self._vfs.name_left_s(self._ino(parent), name, ino))

    def _absent(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """A negative entry: the kernel remembers for a while that the name does not exist."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = 0
        attributes.entry_timeout = self._entry_timeout(parent, name, None)
        return attributes

    # --- names -------------------------------------------------------------------------------------------------------

    @_handler
    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        inode = await self._vfs.lookup_or_none(self._who(ctx), self._ino(parent), name)
        if inode is None:
            return self._absent(parent, name)
        await self._before_attributes(inode)
        self._told(inode)
        return self._pack_entry(parent, name, inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers live in the metadata service; the kernel's count of its references is of no use here, but for
        one kind of mount."""
        if self._known is not None:
            for node, count in inode_list:
                self._known.forgotten(self._ino(node), count)

    @_handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = await self._vfs.getattr(self._ino(inode))
        if self._known is not None:
            await self._known.before_open(found)
        return self._pack(found)

    @_handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        atime_now, mtime_now = _present_times()
        request = SetAttr(
            who=self._who(ctx),
            ino=self._ino(inode),
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size_bytes=attr.st_size if fields.update_size else None,
            atime_ns=_time(attr.st_atime_ns, now=atime_now) if fields.update_atime else None,
            mtime_ns=_time(attr.st_mtime_ns, now=mtime_now) if fields.update_mtime else None,
            by_handle=fh is not None,
        )
        return self._pack(await self._vfs.setattr(request))

    @_handler
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._vfs.readlink(self._ino(inode))

    @_handler
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = await self._vfs.mknod(self._who(ctx), self._ino(parent), name, mode, rdev, umask=ctx.umask)
        return self._pack_entry(parent, name, inode)

    @_handler
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        inode = await self._vfs.mkdir(self._who(ctx), self._ino(parent), name, mode & 0o7777, umask=ctx.umask)
        return self._pack_entry(parent, name, inode)

    @_handler
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._pack_entry(parent, name, await self._vfs.symlink(self._who(ctx), self._ino(parent), name, target))

    @_handler
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        linked = await self._vfs.link(self._who(ctx), self._ino(inode), self._ino(new_parent), new_name)
        return self._pack_entry(new_parent, new_name, linked)

    @_handler
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._vfs.unlink(self._who(ctx), self._ino(parent), name)

    @_handler
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._vfs.rmdir(self._who(ctx), self._ino(parent), name)

    @_handler
    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._vfs.rename(self._who(ctx), self._ino(parent_old), name_old, self._ino(parent_new), name_new, flags)

    # --- files -------------------------------------------------------------------------------------------------------

    @_handler
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode, number, caching = await self._vfs.create(
            self._who(ctx), self._ino(parent), name, mode & 0o7777, flags, umask=ctx.umask
        )
        return _file_info(number, caching), self._pack_entry(parent, name, inode)

    @_handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return _file_info(*await self._vfs.open(self._who(ctx), self._ino(inode), flags))

    async def _adopt(self, fh: int) -> None:
        """The handle of the request that is being carried out is ours, whoever has opened it."""
        if fh < OPENED_NATIVELY:
            return
        current = _current()
        assert current is not None, "the compiled part is gone"
        if self._known is not None:
            await self._known.reading(self._ino(current[2]))
        elif not self._vfs.has_handle(fh):
            await self._vfs.adopt(fh, self._ino(current[2]))

    @_handler
    async def read(self, fh: int, off: int, size: int) -> Any:
        await self._adopt(fh)
        return await self._vfs.read(fh, off, size)

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._vfs.write(fh, off, buf)

    @_handler
    async def flush(self, fh: int) -> None:
        current = _current()
        try:
            await self._vfs.flush(fh)
        finally:
            if current is not None:
                await self._locks.closed(self._ino(current[2]), wire.flush_owner(current[3]))

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._adopt(fh)
        await self._vfs.fsync(fh)

    @_handler
    async def release(self, fh: int) -> None:
        current = _current()
        if current is None:
            await self._vfs.release(fh)
            return
        ino = self._ino(current[2])
        with self._locks.closing(ino):
            await self._vfs.release(fh, ino)
            await self._locks.released(ino, fh, wire.flock_owner_released(current[3]))

    # --- directories -------------------------------------------------------------------------------------------------

    @_handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._vfs.opendir(self._who(ctx), self._ino(inode))

    @_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Where the compiled part is there, it takes READDIRPLUS (fs/native_ops.py)."""
        cookie = start_id
        while (part := await self._pages.after(fh, cookie, _PART_BYTES)).entries:
            for entry in part.entries:
                name, inode, cookie, keeps_name, keeps_attributes = entry
                attributes = self._packed(inode, part.entry_s * keeps_name, part.attr_s * keeps_attributes)
                if not pyfuse3.readdir_reply(token, name, attributes, cookie):
                    return
                self._pages.told(entry)

    @_handler
    async def releasedir(self, fh: int) -> None:
        self._vfs.releasedir(fh)

    @_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._vfs.fsyncdir(fh)

    # --- the rest ----------------------------------------------------------------------------------------------------

    @_handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        usage = await self._vfs.statfs()
        stats = pyfuse3.StatvfsData()
        stats.f_bsize = wire.BLOCK_SIZE_BYTES
        stats.f_frsize = 4096
        stats.f_blocks = usage.capacity_bytes // stats.f_frsize
        stats.f_bfree = stats.f_bavail = usage.free_bytes // stats.f_frsize
        stats.f_files = usage.inodes + usage.inodes_free
        stats.f_ffree = stats.f_favail = usage.inodes_free
        stats.f_namemax = NAME_BYTES_MAX
        return stats

    @_handler
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return await self._vfs.access(self._who(ctx), self._ino(inode), mode)

    @_handler
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._vfs.xattrs.get(self._who(ctx), self._ino(inode), name)

    @_handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._vfs.xattrs.set(self._who(ctx), self._ino(inode), name, value)

    @_handler
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._vfs.xattrs.remove(self._who(ctx), self._ino(inode), name)

    @_handler
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> tuple[bytes, ...]:
        return await self._vfs.xattrs.list(self._who(ctx), self._ino(inode))
