"""Making a range of a file a hole, however the file is stored."""

from shoalfs.mds import extents, inline
from shoalfs.mds.messages import Inode, Storage
from shoalfs.mds.txn import Txn


def punch(txn: Txn, inode: Inode, edit: extents.Edit, first_bytes: int, end_bytes: int) -> int:
    """Drop what the file has in [first_bytes, end_bytes), and tell ``edit``. Returns up to where that is done; the
    caller settles ``edit`` and stores the inode."""
    if inode.storage is Storage.EXTENTS:
        return edit.hole(first_bytes, end_bytes)
    before = inline.load(txn, inode.ino)
    after = before[:first_bytes]
    if end_bytes < len(before):
        after += bytes(end_bytes - len(after)) + before[end_bytes:]
    inline.store(txn, inode.ino, before, after)
    edit.used_bytes += len(after) - len(before)
    return end_bytes
