"""TRIM: remove extents of a file that were cut off, a bounded number at a time. Proposed by the leader.

Nobody sees these bytes any more; what changes is how much space the file takes.
"""

import msgspec

from shoalfs.mds import extents, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import NOT_CUT_OFF, Trim, Trimmed
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX


def trim(txn: Txn, context: Context, request: Trim) -> Trimmed:
    """A file that is gone, or of which nothing is cut off, is done."""
    inode = records.INODE.load(txn, keys.inode(request.ino)) if 0 < request.ino <= keys.U64_MAX else None
    if inode is None or inode.cut_off_bytes == NOT_CUT_OFF:
        return Trimmed(done=True)
    edit = extents.Edit(txn, inode, context.bounds.rows_max)
    done = edit.uncover(FILE_SIZE_BYTES_MAX)
    fields = edit.settle(context.now_ns)
    inodes.store(txn, msgspec.structs.replace(inode, version=inode.version + 1, **fields))
    return Trimmed(done)
