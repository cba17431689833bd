"""Making a range of a file a hole, however the file is stored."""

from shoalfs.mds import extents, inline
from shoalfs.mds.messages import Inode, Storage
from shoalfs.mds.txn import Txn


def punch(txn: Txn, inode: Inode, first_bytes: int, end_bytes: int, delta: extents.ChunkDelta) -> int:
    """Drop what the file has in [first_bytes, end_bytes). Returns its ``used_bytes`` afterwards; the caller stores the
    inode and settles ``delta``."""
    if inode.storage is Storage.EXTENTS:
        return inode.used_bytes - extents.cut(txn, inode.ino, first_bytes, end_bytes, delta)
    before = inline.load(txn, inode.ino)
    after = before[:first_bytes]
    if end_bytes < len(before):
        after += bytes(end_bytes - len(after)) + before[end_bytes:]
    inline.store(txn, inode.ino, before, after)
    return len(after)
