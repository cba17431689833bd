"""Files that the kernel knows, on a mount that it does not tell of opens (``ro,nolock``).

The kernel opens, reads from its pages and closes such files without a word (fs/native/opens.h). Two things depended on
opens, and are seen to here (docs/leases.md, "Mounts that are told of no open"):

* **What is open?** Every file that the kernel knows may be: from the first answer that tells it of the file, until it
  forgets it. So that long it counts as held, once. Before it opens one whose attributes it may not keep, it asks for
  them; if they are not leased then either, the leader is told that the file is open.
* **Are the kernel's pages still the contents?** No open asks. But whatever ends a lease makes the kernel ask for the
  attributes before the next read(2) or open, and of another size or time it concludes that its pages are old. Only
  where both are the same and the data version is not, they are dropped before the answer. (Not always: it ignores
  attributes that it asked for before it was made to drop pages, fuse_reverse_inval_inode() in fs/fuse/inode.c. These
  are not new.)
"""

from dataclasses import dataclass

import trio

from shoalfs.fs.handles import OPENED_NATIVELY, Handles
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.ports import Kernel
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId


@dataclass(slots=True)
class _Told:
    count: int  # how often the kernel was told of the file
    size_bytes: int  # when it was told last; if it ignored that, it has older ones, and sees the difference later
    mtime_ns: int


class KnownFiles:
    """See the module. Bounded by what the kernel keeps in memory, which is as much again."""

    def __init__(self, vfs: Vfs, handles: Handles, pages: KernelPages, kernel: Kernel) -> None:
        self._vfs = vfs
        self._handles = handles
        self._pages = pages
        self._kernel = kernel
        # Invariant: no zero counts; what is in here is held once.
        self._told: dict[InodeId, _Told] = {}
        self._dropping: dict[InodeId, trio.Event] = {}

    async def before_attributes(self, inode: Inode) -> None:
        """To be called before the kernel is told these. Waits at most a moment for pages that are locked, as an
        acknowledgement does (fs/kernel_cache.py)."""
        while (others := self._dropping.get(inode.ino)) is not None:
            await others.wait()
        told = self._told.get(inode.ino)
        if told is None:
            return  # it has no pages
        seen, told.size_bytes, told.mtime_ns = (told.size_bytes, told.mtime_ns), inode.size_bytes, inode.mtime_ns
        if not self._pages.are_older(inode):
            return
        # What is read from here on is told of anew: the pages may be dropped, or come too late for that.
        self._pages.spoiled(inode.ino)
        if seen != (inode.size_bytes, inode.mtime_ns):
            return
        self._dropping[inode.ino] = dropped = trio.Event()
        try:
            await self._kernel.drop_pages((inode.ino,))
        finally:
            del self._dropping[inode.ino]
            dropped.set()

    async def before_open(self, inode: Inode) -> None:
        """To be called before the kernel is told attributes that it asked for by the inode's number: an open may
        follow."""
        await self.before_attributes(inode)
        if inode.ino in self._told and not self._vfs.attributes_left_s(inode.ino):
            await self._vfs.register(inode.ino)

    def told(self, inode: Inode) -> None:
        """The kernel is told of the inode: with the answer to a LOOKUP, or in a listing. No other answer counts."""
        if not inode.is_file:
            return
        told = self._told.get(inode.ino)
        if told is not None:
            told.count += 1
            return
        self._told[inode.ino] = _Told(1, inode.size_bytes, inode.mtime_ns)
        self._vfs.hold_known(inode.ino)

    def forgotten(self, ino: InodeId, count: int) -> None:
        """The kernel has forgotten so many of the times that it was told."""
        told = self._told.get(ino)
        if told is None:
            return
        told.count -= count
        if told.count <= 0:
            del self._told[ino]
            self._vfs.forgotten(ino)

    async def reading(self, ino: InodeId) -> int:
        """The kernel reads: returns the handle that stands for the file, as it is now."""
        number = OPENED_NATIVELY | ino
        file = await self._vfs.adopt(number, ino)
        if not self._vfs.attributes_left_s(ino):
            await self._vfs.register(ino)
        self._pages.read_at(ino, file.committed_inode.data_version)
        return number
