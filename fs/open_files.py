"""Files as programs have them open: what of POSIX needs no names (`fs/vfs.py` adds them), beside attributes
(`fs/attributes.py`). What is written and not committed is in a file's :class:`~shoalfs.fs.file.FileData`;
:class:`~shoalfs.fs.data_path.DataPath` keeps them.

Cancelled: any method leaves the mount usable; a mutation may or may not have been applied.
"""

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.attributes import Attributes
from shoalfs.fs.closing import Closing
from shoalfs.fs.coherent import Coherent, FetchedFile
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.file import FileData
from shoalfs.fs.handles import OPENED_NATIVELY, FileHandle, Handles
from shoalfs.fs.new_files import Made
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.ports import Buffer, Kernel
from shoalfs.fs.releases import Releases
from shoalfs.fs.scans import Scans
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.fs.open_files")

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Caching(NamedTuple):
    """What the kernel may do with the pages of a file that is opened."""

    keep: bool  # those that it has are still the contents
    direct: bool  # cache nothing for this handle: one write(2) is one request, however it lies on pages


def _caching(flags: int, *, keep: bool) -> Caching:
    return Caching(keep=keep, direct=bool(flags & os.O_APPEND))


class OpenFiles(Attributes):
    """The files of one mount."""

    def __init__(
        self,
        metadata: Coherent,
        data_path: DataPath,
        handles: Handles,
        releases: Releases,
        scans: Scans,
        pages: KernelPages,
        kernel: Kernel,
        *,
        durable_close: bool = False,
    ) -> None:
        closing = Closing(metadata.making, self._commit_closed, lambda file: self._unhold(file.ino, file))
        super().__init__(metadata, data_path, handles, closing)
        self._releases = releases
        self._scans = scans
        self._pages = pages
        self._kernel = kernel
        self._durable_close = durable_close
        self._opening: Counter[InodeId] = Counter()  # opens that hold the inode and are not answered yet
        self._unlinking: Counter[InodeId] = Counter()  # whose names mutations of this mount are taking away
        self.opens_here = 0  # opens of which nobody had to be told
        releases.tell(self._offer)

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _made(self, inode: m.Inode, flags: int) -> tuple[m.Inode, int, Caching]:
        """A new file, which the service knows to be open here, or will be told of as such."""
        self._seen(inode)
        file = self._data_path.file(inode)
        file.refresh(inode, b"")
        self._handles.hold(file.ino)
        return inode, self._add(file, flags), _caching(flags, keep=False)

    def adopt_made(self, made: Made, inode: m.Inode) -> None:
        """The compiled part has made this file: as if it had been made, written and perhaps closed here."""
        file = self._data_path.file(inode)
        file.refresh(inode, b"")
        self._handles.hold(file.ino)
        if made.data:
            file.fill(made.data, made.written_ns)
        if made.attributes is not None:
            file.attributes_set(inode, mtime=made.attributes[-1] is not None)
        if made.is_closed:
            self.closing.adopt(file)
        else:
            self._handles.adopt(made.handle, self._handle(file, made.flags))

    async def open(self, who: m.Credentials, ino: InodeId, flags: int) -> tuple[int, Caching]:
        """Open an existing file. Returns the handle, and what the kernel may cache. If the file changed since the
        kernel was last told of its attributes, it is made to ask again: it would believe an old size otherwise."""
        # Before the leader is asked: the last close of another handle meanwhile would be reported after this open, and
        # the leader would take the file for closed.
        self._handles.hold(ino)
        self._opening[ino] += 1
        file: FileData | None = None
        try:
            inode, inline = self._open_here(ino), None
            if inode is None and (coming := self._scans.coming(ino)) is not None:
                await coming.wait()
                inode = self._open_here(ino)
            if inode is None:
                self._scans.missed(ino)
                inode, inline = await self._ask_open(who, ino, flags & os.O_ACCMODE)
            file = self._data_path.file(inode)
            coherent = not file.changed_elsewhere(inode) and not file.is_mixed
            is_open = self._handles.holders(ino) > self._opening[ino]
            keep = coherent and (is_open or self._pages.still_good(inode))
            if not keep and not is_open:
                file.pages_dropped()
            file.refresh(inode, inline)
            if flags & os.O_TRUNC:
                await file.setattr(m.SetAttr(who, ino, size_bytes=0, by_handle=True))
                keep = False
        except BaseException:
            self._unhold(ino, file)
            raise
        finally:
            self._opening[ino] -= 1
            if not self._opening[ino]:
                del self._opening[ino]
        self._seen(inode)
        return self._add(file, flags), _caching(flags, keep=keep)

    def _open_here(self, ino: InodeId) -> m.Inode | None:
        """The inode, if all that the leader would answer is known under a lease. The leader need not know of the open:
        before the inode's last name goes, it asks those who hold a lease on it, and is told that it is open.

        Permission was checked by the kernel, with attributes and access lists that are leased.
        """
        inode = self._metadata.known(ino)
        if inode is None or ino in self._unlinking or not self._has_bytes(inode):
            return None
        taken_back = self._releases.take_back(ino)
        if taken_back is None:
            return None
        if taken_back:
            self._handles.registered.add(ino)
        self.opens_here += 1
        return inode

    def _has_bytes(self, inode: m.Inode) -> bool:
        """True if all that an open would bring beside the inode is known."""
        file = self._data_path.find(inode.ino)
        if file is not None and file.is_complete(inode):
            return True
        fetched = self._scans.take(inode)
        if fetched is None or not inode.is_file:
            return False
        self._data_path.file(inode).fetched(inode, fetched.data, fetched.extents)
        return True

    async def _ask_open(self, who: m.Credentials, ino: InodeId, access: int) -> tuple[m.Inode, Buffer]:
        """Have the leader open: the inode, and the bytes of a small file."""
        await self._releases.settle(ino)
        request = m.Open(who, self._metadata.session, ino, access != os.O_WRONLY, access != os.O_RDONLY)
        reply = await self._metadata.open(request)
        self._handles.registered.add(ino)
        return reply.body.inode, reply.payload

    @asynccontextmanager
    async def _unlinked_here(self, who: m.Credentials, parent: InodeId, name: bytes) -> AsyncIterator[None]:
        """While the block takes a name away: what it leads to, if it is open here, is known at the leader to be open,
        because for a mutation of ours nobody asks us."""
        if self._handles.has_unregistered():
            await self._metadata.lookup(who, parent, name)
        ino = self._metadata.cache.name(parent, name)
        if not isinstance(ino, int):
            yield  # then it is looked at afterwards, and the leader removes nothing so soon
            return
        self._unlinking[ino] += 1
        try:
            await self._register(ino)
            yield
        finally:
            self._unlinking[ino] -= 1
            if not self._unlinking[ino]:
                del self._unlinking[ino]

    async def register(self, ino: InodeId) -> None:
        """The leader knows that the inode is open here, if it is."""
        await self._releases.settle(ino)
        await self._register(ino)

    async def _register(self, ino: InodeId) -> None:
        """Tell the leader that the inode is open here, if it is and the leader does not know."""
        if self._handles.holders(ino) and ino not in self._handles.registered:
            session = self._metadata.session
            await self._metadata.open(m.Open(m.ROOT_CREDENTIALS, session, ino, read=True, write=False, check=False))
            self._handles.registered.add(ino)

    def _add(self, file: FileData, flags: int) -> int:
        return self._handles.add_file(self._handle(file, flags))

    def _handle(self, file: FileData, flags: int) -> FileHandle:
        access = flags & os.O_ACCMODE
        return FileHandle(
            file,
            read=access != os.O_WRONLY,
            write=access != os.O_RDONLY,
            append=bool(flags & os.O_APPEND),
            sync=bool(flags & (os.O_SYNC | os.O_DSYNC)),
        )

    def has_handle(self, number: int) -> bool:
        return self._handles.has(number)

    async def adopt(self, number: int, ino: InodeId) -> FileData:
        """Something is to be done with a handle that the compiled part has opened: it is ours from here on. Returns the
        file's data as of now."""
        self._handles.withdraw(ino)
        file = self._data_path.file(await self.getattr(ino))
        if not self._handles.has(number) or self._handles.file(number).file is not file:
            self._handles.adopt(number, FileHandle(file, read=True, write=False, append=False, sync=False))
        return file

    def hold_known(self, ino: InodeId) -> None:
        """The kernel knows the file, of whose opens it does not tell. It may have forgotten it a moment ago: then the
        leader must not be told that it is closed, after it has heard with an acknowledgement that it is open."""
        self._handles.hold(ino)
        if self._releases.take_back(ino):
            self._handles.registered.add(ino)

    def forgotten(self, ino: InodeId) -> None:
        """The kernel does not know the file any more, of whose opens it does not tell."""
        self._handles.drop(OPENED_NATIVELY | ino)
        self._unhold(ino, None)
        self._pages.spoiled(ino)

    def _offer(self, ino: InodeId) -> None:
        """Let the compiled part open and close the file, if no open would bring anything new and nobody has to be told
        of it: what :meth:`open` decides, of a file that is closed."""
        inode = self._metadata.known(ino)
        file = self._data_path.find(ino)
        if inode is None or file is None or not inode.is_file or not inode.nlink:
            return
        if ino in self._unlinking or self._handles.holders(ino):
            return
        if ino in self._releases or ino in self._handles.registered or ino in self._metadata.new_files:
            return
        if file.is_dirty or file.is_mixed or not file.is_complete(inode) or not self._pages.still_good(inode):
            return
        if not (self._durable_close and file.needs_fsync):
            self._handles.offer(ino, data=file.inline)

    def offer_fetched(self, fetched: FetchedFile, data: bytes | memoryview, directory: InodeId, name: bytes) -> bool:
        """The same for a small file that was fetched before anybody opened it, with all its bytes, and for the name
        that leads to it: a program that looks it up and reads it once need not wake anybody. False: it is opened as
        ever."""
        inode = fetched.inode
        if inode is None or not inode.is_file or not inode.nlink or len(data) != inode.size_bytes:
            return False
        ino = inode.ino
        self._handles.withdraw(ino)  # an earlier offer ends, if there was one
        known = self._metadata.known(ino)
        if known is None or known.data_version != inode.data_version or self._data_path.find(ino) is not None:
            return False
        if ino in self._unlinking or self._handles.is_held(ino) or ino in self._releases:
            return False
        if ino in self._handles.registered or ino in self._metadata.new_files:
            return False
        if not self._handles.offer(ino, keep=self._pages.still_good(inode), data=data):
            return False
        if self._metadata.keeps_name(directory, name, ino):
            self._handles.offer_name(directory, name, wire.attributes(inode))
        return True

    def take_back(self, ino: InodeId) -> None:
        """What was fetched of a file is forgotten."""
        self._handles.withdraw(ino)

    def read_through(self) -> list[InodeId]:
        """Files that were offered with their bytes and have been read since the last call. They stay offered."""
        return [InodeId(node) for node in self._handles.native.read_through()]

    def was_read(self, fetched: FetchedFile) -> None:
        """The kernel has all bytes of this file as it was fetched."""
        if fetched.inode is not None:
            self._pages.valid_at(fetched.inode.ino, fetched.inode.data_version)
            self._data_path.was_read(fetched.extents)

    def has_all(self, ino: InodeId) -> bool:
        """Nothing would have to be asked for to read the file: its bytes are known here, or the kernel has them."""
        if self._data_path.is_complete(ino):
            return True
        known = self._metadata.known(ino)
        return known is not None and self._pages.still_good(known)

    async def read(self, number: int, offset_bytes: int, size_bytes: int) -> Buffer:
        handle = self._handles.file(number)
        if not handle.read and not handle.write:
            raise PosixError(errno.EBADF)
        if handle.lost:
            self.check_lockable(number)
        if self._metadata.known(handle.file.ino) is None:
            # Others may have changed it since. Nothing that is kept of it, here or in the kernel, is served until then.
            await self.getattr(handle.file.ino)
        return await handle.file.read(offset_bytes, size_bytes)

    async def write(self, number: int, offset_bytes: int, data: Buffer) -> int:
        """Take ``data``. A handle with O_APPEND writes at the end of the file as of the commit, wherever the kernel
        thought that was; if it thought wrong, it is told to forget what it knows of the file."""
        handle = self._handles.file(number)
        if not handle.write:
            raise PosixError(errno.EBADF)
        if handle.lost:
            self.check_lockable(number)
        if handle.file.committed_inode.mode & _SET_ID:
            await self._drop_set_id(handle.file.committed_inode)
        self._metadata.making.written(handle.file.ino)
        if handle.append:
            landed = await handle.file.append(data, durable=handle.sync)
            if landed != offset_bytes or self._handles.holders(handle.file.ino) > 1:
                self._kernel.forget_pages(handle.file.ino)
            return len(data)
        if handle.sync or not self._metadata.keeps_writes(handle.file.ino):
            return await self._write_waiting(handle, offset_bytes, data)
        count = await handle.file.write(offset_bytes, data)
        if not self._metadata.keeps_writes(handle.file.ino):
            await self._commit_write(handle)  # it was called back while we waited for room
        return count

    async def _write_waiting(self, handle: FileHandle, offset_bytes: int, data: Buffer) -> int:
        """Write to a file of which nothing may be kept as yet: ask for that, and commit if it must not be."""
        with self._handles.waiting_write(handle.file.ino):
            if not handle.sync:
                await self._metadata.ask_to_keep_writes(handle.file.ino)
            count = await handle.file.write(offset_bytes, data)
            if handle.sync or not self._metadata.keeps_writes(handle.file.ino):
                await handle.file.flush(durable=handle.sync)
        return count

    async def _commit_write(self, handle: FileHandle) -> None:
        with self._handles.waiting_write(handle.file.ino):
            await handle.file.flush(durable=False)

    async def _drop_set_id(self, inode: m.Inode) -> None:
        """Writing takes set-id bits away, and at once: the commit would do it too, later. The kernel leaves it to us
        (FUSE_HANDLE_KILLPRIV_V2)."""
        mode = inode.mode & ~(_SET_ID if inode.mode & stat.S_IXGRP else stat.S_ISUID)
        if mode != inode.mode:
            await self.setattr(m.SetAttr(m.ROOT_CREDENTIALS, inode.ino, mode=stat.S_IMODE(mode), by_handle=True))

    async def flush(self, number: int) -> None:
        """close(2), also of a duplicate: everything written is committed, or the error is returned; or nobody can see
        the file before it is (`fs/closing.py`)."""
        if number >= OPENED_NATIVELY and not self._handles.has(number):
            return  # nothing was done with it
        file = self._handles.file(number).file
        if not self._durable_close and self._is_mine(file.ino) and self.closing.takes(file):
            await self.closing.add(file)
            return
        await self._commit_file(file, durable=self._durable_close)
        self.closing.committed()

    def _is_mine(self, ino: InodeId) -> bool:
        """Made here, and asked for before anybody else sees it."""
        directory = self._metadata.new_files.directory_of(ino)
        return directory is not None and self._metadata.keeps_writes(directory) and self._metadata.keeps_writes(ino)

    async def _commit_closed(self, file: FileData) -> None:
        if file.committed_inode.nlink:
            await self._commit_file(file, durable=False)

    async def fsync(self, number: int) -> None:
        await self._commit_file(self._handles.file(number).file, durable=True)

    async def _commit_file(self, file: FileData, *, durable: bool) -> None:
        """Commit what was written to it, and that it exists: for a small new file that is one command."""
        await file.flush(durable=durable)
        if file.ino in self._metadata.new_files:
            await self._metadata.new_files.tell(file.ino)

    async def release(self, number: int, ino: InodeId | None = None) -> None:
        """The handle is gone; nobody is left to be told of an error. What was written through a shared mapping after
        the close is committed now; if that fails, it is tried again, and the handle counts as open until then.
        ``ino``: whose handle it is; needed for those that the compiled part has opened."""
        if number >= OPENED_NATIVELY and not self._handles.has(number):
            assert ino is not None
            self._unhold(ino, self._data_path.find(ino))  # nothing was done with it
            return
        file = self._handles.pop_file(number).file
        if self.closing.take_over(file.ino):
            return
        try:
            if self._handles.holders(file.ino) == 1 and file.committed_inode.nlink:
                await self._commit_file(file, durable=False)
        except ShoalError as error:
            log.error("inode %d: closed for the last time with bytes that are not committed: %s", file.ino, error)
            if file.is_dirty and not self.closing.ended:
                self.closing.failed(file)
                return
        except BaseException:
            self._unhold(file.ino, file)
            raise
        self._unhold(file.ino, file)

    def _unhold(self, ino: InodeId, file: FileData | None) -> None:
        """``file``: its data; None: it was not opened after all."""
        if not self._handles.unhold(ino):
            return
        self._metadata.closed(ino)
        if file is not None:
            if not file.committed_inode.nlink:
                file.discard()
            file.closed()
            if file.is_mixed:
                self._pages.spoiled(ino)
            else:
                # What this mount committed is what the kernel wrote: it knows that size.
                self._pages.valid_at(ino, file.committed_inode.data_version)
        elif (kept := self._data_path.find(ino)) is not None:
            kept.closed()
        if ino in self._handles.registered:
            self._handles.registered.remove(ino)
            self._releases.add(ino)
        else:
            self._offer(ino)

    # --- for locks ---------------------------------------------------------------------------------------------------

    def check_lockable(self, number: int) -> None:
        """Raises PosixError(EIO) for a handle whose locks were lost: see :meth:`Handles.lose`."""
        if self._handles.file(number).lost:
            raise PosixError(errno.EIO, "the session with its locks was lost")

    async def commit(self, ino: InodeId) -> None:
        """Commit what this mount has written to the file."""
        file = self._data_path.find(ino)
        if file is not None:
            await self._commit_file(file, durable=False)

    async def revalidate(self, ino: InodeId) -> None:
        """Know what is committed of the file now; if others have changed it, so does the kernel."""
        file = self._data_path.find(ino)
        before = file and file.committed_inode.data_version
        await self.getattr(ino)
        if file is None or file.committed_inode.data_version != before or file.is_mixed:
            await self._kernel.forgotten_pages(ino)
