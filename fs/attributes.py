"""Attributes of files as programs on this mount see them: what the metadata service tells, with what is written here
and not committed laid over it."""

import msgspec

from shoalfs.fs.closing import Closing
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.handles import Handles
from shoalfs.mds import messages as m
from shoalfs.transport.ids import InodeId
from shoalfs.transport.method import Message


class Attributes:
    """Of one mount. ``closing`` knows what is closed and not committed."""

    def __init__(self, metadata: Coherent, data_path: DataPath, handles: Handles, closing: Closing) -> None:
        self._metadata = metadata
        self._data_path = data_path
        self._handles = handles
        self.closing = closing

    async def getattr(self, ino: InodeId) -> m.Inode:
        file = self._data_path.find(ino)
        if file is not None and ino in self.closing:
            # What is told of its times must not change with the commit: that is told of them, or comes first.
            if file.is_solid and self._metadata.making.settle_times(file.dated_inode):
                return file.attributes_set(file.dated_inode, mtime=True)
            await self.closing.settle((ino,))
        return self._seen(await self._metadata.getattr(ino))

    async def setattr(self, request: m.SetAttr) -> m.Inode:
        """Change attributes. Bytes written before are committed first, so that times set now stay as they are set.

        The kernel has let a caller who is not the owner set times, hence it asked for the present time.
        """
        if request.who.uid and (request.atime_ns is not None or request.mtime_ns is not None):
            inode = await self.getattr(request.ino)
            if inode.uid != request.who.uid:
                request = msgspec.structs.replace(request, atime_ns=m.NOW, mtime_ns=m.NOW)
        changed = self.set_here(request)
        if changed is not None:
            return changed
        file = self._data_path.find(request.ino)
        if request.size_bytes is not None:
            self._handles.withdraw(request.ino)  # whoever reads from now on reads what is left
        if file is None:
            return await self._change(m.Op.SETATTR, request)
        return await file.setattr(request)

    def set_here(self, request: m.SetAttr) -> m.Inode | None:
        """Attributes of a file that was made here go with it when it is told of. None: the leader has to be asked."""
        file = self._data_path.find(request.ino)
        if file is None or request.ino not in self._metadata.new_files:
            return None
        changed = self._metadata.making.set_attributes(request, file.committed_inode)
        return changed and file.attributes_set(changed, mtime=request.mtime_ns is not None)

    async def _change(self, op: m.Op, request: Message) -> m.Inode:
        """A mutation that is answered with the inode it made or changed."""
        return self._seen((await self._metadata.mutate(op, request, m.Entry)).inode)

    # --- what the kernel may keep ------------------------------------------------------------------------------------

    def attributes_left_s(self, ino: InodeId) -> float:
        """How long the kernel may keep the attributes that it is told now: while they are leased; not at all while
        this mount has bytes that are not committed, whose times are not known."""
        if self._metadata.known(ino) is None:
            return 0.0
        file = self._data_path.find(ino)
        return 0.0 if file is not None and file.is_dirty else self._metadata.left_s()

    def name_left_s(self, parent: InodeId, name: bytes, ino: InodeId | None) -> float:
        """How long the kernel may keep that the name leads to ``ino`` (None: to nothing)."""
        return self._metadata.left_s() if self._metadata.keeps_name(parent, name, ino) else 0.0

    # --- views -------------------------------------------------------------------------------------------------------

    def newest(self, inode: m.Inode) -> m.Inode:
        """The inode as it is known now, if ``inode`` was told some time ago."""
        known = self._metadata.known(inode.ino)
        return inode if known is None or known.version < inode.version else known

    def view(self, inode: m.Inode) -> m.Inode:
        """The inode with what this mount has written and not committed laid over it."""
        file = self._data_path.find(inode.ino)
        return inode if file is None else file.inode

    def _seen(self, inode: m.Inode) -> m.Inode:
        """An answer of the service: remember it, and tell the file's data if there is any here."""
        file = self._data_path.find(inode.ino)
        if file is None:
            return inode
        # The kernel is told nothing: it was when the leader pushed, or it was not to keep the attributes and drops its
        # pages when it sees these. To be told now would make it ignore the answer that is being made of this.
        file.refresh(inode)
        return file.inode
