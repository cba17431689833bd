"""The attributes of inodes that are not open, kept as long as the kernel may keep them.

Serves the questions that the kernel does not cache itself: above all "has this file any extended attribute", which it
asks before every write and for every line of ``ls -l``. Pure: time comes in.
"""

from collections import OrderedDict

from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId

_ENTRIES_MAX = 65_536


class AttributeCache:
    """Inodes by number, each good for ``keep_s`` seconds after it was put."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._known: OrderedDict[InodeId, tuple[float, Inode]] = OrderedDict()

    def put(self, inode: Inode, now_s: float) -> None:
        """An answer of the service. An older answer never replaces a newer one."""
        known = self._known.get(inode.ino)
        if known is not None and known[1].version > inode.version:
            return
        self._known[inode.ino] = (now_s, inode)
        self._known.move_to_end(inode.ino)
        if len(self._known) > _ENTRIES_MAX:
            self._known.popitem(last=False)

    def get(self, ino: InodeId, now_s: float) -> Inode | None:
        known = self._known.get(ino)
        if known is None or now_s - known[0] >= self._keep_s:
            return None
        return known[1]
