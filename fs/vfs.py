"""POSIX in terms of the metadata service and of file data, without a kernel in sight.

Every FUSE handler is a translation of one method here or in `fs/open_files.py`; tests call the same methods. Names are
bytes, inodes are :class:`~shoalfs.mds.messages.Inode` values, failures are
:class:`~shoalfs.transport.errors.ShoalError`.

Cancelled: any method leaves the mount usable; a mutation may or may not have been applied.
"""

import errno
import os
from collections.abc import Iterable
from functools import cached_property

from shoalfs.fs.listings import Listings, Shown
from shoalfs.fs.open_files import Caching, OpenFiles
from shoalfs.fs.unparsed import Unparsed
from shoalfs.fs.xattrs import Xattrs
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId


class Vfs(OpenFiles):
    """The filesystem of one mount: names and directories, and :class:`OpenFiles`."""

    @cached_property
    def xattrs(self) -> Xattrs:
        return Xattrs(self._metadata, self._seen, self.set_here)

    @cached_property
    def listings(self) -> Listings:
        return Listings(self._metadata)

    # --- names -------------------------------------------------------------------------------------------------------

    async def lookup(self, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode:
        """Raises PosixError(ENOENT) and others."""
        inode = await self.lookup_or_none(who, parent, name)
        if inode is None:
            raise PosixError(errno.ENOENT)
        return inode

    async def lookup_or_none(self, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode | None:
        """As :meth:`lookup`, None if there is no such name."""
        inode = await self._metadata.lookup(who, parent, name)
        return None if inode is None else self._seen(inode)

    async def mknod(
        self, who: m.Credentials, parent: InodeId, name: bytes, mode: int, rdev: int, *, umask: int = 0
    ) -> m.Inode:
        return await self._change(m.Op.MKNOD, m.Mknod(who, parent, name, mode, rdev, umask))

    async def mkdir(self, who: m.Credentials, parent: InodeId, name: bytes, mode: int, *, umask: int = 0) -> m.Inode:
        return await self._change(m.Op.MKDIR, m.Mkdir(who, parent, name, mode, umask))

    async def symlink(self, who: m.Credentials, parent: InodeId, name: bytes, target: bytes) -> m.Inode:
        return await self._change(m.Op.SYMLINK, m.Symlink(who, parent, name, target))

    async def readlink(self, ino: InodeId) -> bytes:
        return (await self._metadata.read(m.READLINK, m.ReadLink(ino))).body.target

    async def link(self, who: m.Credentials, ino: InodeId, new_parent: InodeId, new_name: bytes) -> m.Inode:
        return await self._change(m.Op.LINK, m.Link(who, ino, new_parent, new_name))

    async def unlink(self, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode:
        async with self._unlinked_here(who, parent, name):
            unlinked = await self._metadata.mutate(m.Op.UNLINK, m.Unlink(who, parent, name), m.Unlinked)
        await self._register(unlinked.inode.ino)
        return self._seen(unlinked.inode)

    async def rmdir(self, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode:
        return self._seen((await self._metadata.mutate(m.Op.RMDIR, m.Rmdir(who, parent, name), m.Unlinked)).inode)

    async def rename(
        self,
        who: m.Credentials,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        flags: int,
    ) -> None:
        """As renameat2(2). What this mount holds for the source is made durable first: the new name leads to the old
        bytes or to the new ones, after any crash. But for a new file, of which nobody knows by the old name, if nothing
        has the new one: as its making, that is on disk when it or its directory is synced."""
        request = m.Rename(who, parent, name, new_parent, new_name, flags)
        if self._metadata.making.rename(request):
            return
        await self._harden(who, parent, name)
        async with self._unlinked_here(who, new_parent, new_name):
            renamed = await self._metadata.mutate(m.Op.RENAME, request, m.Renamed)
        if not self._metadata.keeps_name(new_parent, new_name, renamed.moved.ino):
            self._kernel.forget_names()  # it has moved the entry, and with it how long it may be kept
        self._seen(renamed.moved)
        if renamed.other is not None:
            await self._register(renamed.other.ino)
            self._seen(renamed.other)

    async def _harden(self, who: m.Credentials, parent: InodeId, name: bytes) -> None:
        """Put on disk what this mount wrote to the file of that name, open or closed."""
        # Not through lookup(): what is learnt here the kernel is not told.
        found = await self._metadata.lookup(who, parent, name)
        file = None if found is None else self._data_path.find(found.ino)
        if file is not None and file.needs_fsync:
            await file.flush(durable=True)

    # --- the rest of inodes ------------------------------------------------------------------------------------------

    async def access(self, who: m.Credentials, ino: InodeId, mask: int) -> bool:
        try:
            await self._metadata.read(m.ACCESS, m.Access(who, ino, mask))
        except PosixError as error:
            if error.errno != errno.EACCES:
                raise
            return False
        return True

    async def statfs(self) -> m.FsStat:
        return (await self._metadata.read(m.STATFS, m.StatFs())).body

    # --- directories -------------------------------------------------------------------------------------------------

    def opendir(self, who: m.Credentials, ino: InodeId) -> int:
        return self._handles.add_dir(self.listings.open(who, ino))

    async def readdir(self, number: int, cookie: int) -> tuple[m.DirEntry, ...]:
        """Entries after ``cookie`` (0: from the start), without "." and ".."; empty at the end. They may have come some
        time ago: see :meth:`newest`."""
        listing = self._handles.dir(number)
        entries, just_came = await listing.after(cookie)
        if just_came:
            self._scans.listed(listing.ino, entries)
            for entry in entries:
                if not entry.damaged:
                    self._seen(entry.inode)
        return entries

    def shown(self, directory: InodeId, entries: Iterable[m.DirEntry], *, keeps_names: bool) -> list[Shown]:
        """What the kernel is to be told of these entries of a listing now, as :meth:`newest` and :meth:`view`,
        :meth:`attributes_left_s` and :meth:`name_left_s` say one by one. ``keeps_names``: it may keep any."""
        believed = self.left_s() > 0
        cache, find, view = self._metadata.cache, self._data_path.find, self._metadata.making.view
        names = cache.names(directory) if believed and keeps_names else {}
        shown: list[Shown] = []
        for entry in entries:
            inode = entry.inode
            ino = inode.ino
            if entry.damaged:
                shown.append((entry.name, inode, entry.cookie, False, False))
                continue
            known = cache.inode(ino) if believed else None
            keeps = known is not None and known.version >= inode.version
            if known is not None and keeps:
                inode = view(known)
            file = find(ino)
            if file is not None:
                inode, keeps = file.inode, keeps and not file.is_dirty
            shown.append((entry.name, inode, entry.cookie, names.get(entry.name) == ino, keeps))
        return shown

    def left_s(self) -> float:
        """How long what is leased may still be believed."""
        return self._metadata.left_s()

    def releasedir(self, number: int) -> None:
        self._handles.pop_dir(number)
        self.unparsed.taken_in(number)

    @property
    def unparsed(self) -> Unparsed:
        """What the kernel was told of listings and may not have taken in."""
        return self._metadata.unparsed

    async def parent_of(self, ino: InodeId) -> m.Inode:
        """Where `..` of an open directory leads."""
        return await self.getattr((await self.getattr(ino)).parent)

    def dir_inode(self, number: int) -> InodeId:
        return self._handles.dir(number).ino

    async def fsyncdir(self, number: int) -> None:
        """Every change of a directory is on disks when the call that made it returns, but for files that were made
        here."""
        directory = self._handles.dir(number).ino
        failure = await self.closing.settle(self._metadata.new_files.made_in(directory))
        if failure is not None:
            raise failure
        await self._metadata.new_files.tell_all_in(directory)

    # --- files -------------------------------------------------------------------------------------------------------

    async def create(
        self, who: m.Credentials, parent: InodeId, name: bytes, mode: int, flags: int, *, umask: int = 0
    ) -> tuple[m.Inode, int, Caching]:
        """open(2) with O_CREAT. Returns the inode, the handle, and what the kernel may cache."""
        request = m.Create(who, parent, name, mode, exclusive=bool(flags & os.O_EXCL), umask=umask)
        made = await self._metadata.making.make(request)
        if made is not None:
            return self._made(made, flags)
        created = await self._metadata.mutate(m.Op.CREATE, request, m.Created)
        if not created.created:
            number, caching = await self.open(who, created.inode.ino, flags)
            return self._handles.file(number).file.inode, number, caching
        self._handles.registered.add(created.inode.ino)
        return self._made(created.inode, flags)

    async def tmpfile(
        self, who: m.Credentials, parent: InodeId, mode: int, flags: int, umask: int
    ) -> tuple[m.Inode, int, Caching]:
        """open(2) with O_TMPFILE; returns as :meth:`create`."""
        request = m.Tmpfile(who, parent, mode, linkable=not flags & os.O_EXCL, umask=umask)
        made = (await self._metadata.mutate(m.Op.TMPFILE, request, m.Entry)).inode
        self._handles.registered.add(made.ino)
        return self._made(made, flags)
