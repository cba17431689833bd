"""Whether the kernel's cached pages of a file are still its contents. Pure.

The kernel keeps pages across close and open if the answer to the open says so. They are good if the file's data
version is still the one that the pages were read (or written) at. This mount's own commits raise the version without
spoiling the pages; a commit of somebody else in between does.
"""

from collections import OrderedDict
from collections.abc import Callable

from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId

_ENTRIES_MAX = 262_144  # about 30 MiB; an inode that fell out is merely read again


class KernelPages:
    """The data version of the pages that the kernel may have of each inode. ``on_fallen_out`` is told of each inode of
    which that is not known any more for want of room."""

    def __init__(self, on_fallen_out: Callable[[InodeId], None] = lambda ino: None) -> None:
        self._on_fallen_out = on_fallen_out
        self._versions: OrderedDict[InodeId, int] = OrderedDict()

    def still_good(self, inode: Inode) -> bool:
        """True if pages cached of this inode are those of its present contents."""
        return self._versions.get(inode.ino) == inode.data_version

    def valid_at(self, ino: InodeId, data_version: int) -> None:
        """From now on the kernel's pages are those of this version."""
        self._versions[ino] = data_version
        self._versions.move_to_end(ino)
        if len(self._versions) > _ENTRIES_MAX:
            self._on_fallen_out(self._versions.popitem(last=False)[0])

    def read_at(self, ino: InodeId, data_version: int) -> None:
        """The kernel gets pages of this version. If it may have older ones, these count."""
        self.valid_at(ino, self._versions.get(ino, data_version))

    def are_older(self, inode: Inode) -> bool:
        """Pages are cached that are not of its present contents."""
        return self._versions.get(inode.ino, inode.data_version) != inode.data_version

    def spoiled(self, ino: InodeId) -> None:
        """Somebody else changed the file while it was open here: the pages are a mixture."""
        self._versions.pop(ino, None)
