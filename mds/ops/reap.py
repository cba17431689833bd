"""REAP: remove an orphan, a bounded number of extents at a time. Proposed by the leader once nobody has it
open."""

import errno

import msgspec

from shoalfs.mds import extents, inline, keys, records, trash
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Inode, Reap, Reaped
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import REAP_EXTENTS_MAX


def reap(txn: Txn, context: Context, request: Reap) -> Reaped:
    """An inode that is gone already is done. Raises EBUSY if the inode still has a name."""
    inode = _orphan(txn, request.ino)
    if inode is None:
        return Reaped(done=True)
    edit = extents.Edit(txn, inode, REAP_EXTENTS_MAX)
    is_empty = edit.remove_some()
    fields = edit.settle(context.now_ns)
    if not is_empty:
        inodes.store(txn, inodes.changed(inode, context.now_ns, **fields))
        return Reaped(done=False)
    if inode.is_file:
        inline.store(txn, inode.ino, inline.load(txn, inode.ino), b"")
    elif inode.is_symlink:
        txn.delete(keys.inline(inode.ino))
    for key in [key for key, _ in txn.range(*keys.under(b"A", inode.ino))]:
        txn.delete(key)
    txn.delete(keys.orphan(inode.ino))
    txn.delete(keys.inode(inode.ino))
    counters = inodes.load_counters(txn)
    counters = msgspec.structs.replace(counters, inodes=counters.inodes - 1, orphans=counters.orphans - 1)
    inodes.store_counters(txn, counters)
    return Reaped(done=True)


def _orphan(txn: Txn, ino: InodeId) -> Inode | None:
    if not 0 < ino <= keys.U64_MAX:
        return None
    inode = records.INODE.load(txn, keys.inode(ino))
    if inode is not None and inode.nlink > 0:
        raise PosixError(errno.EBUSY, f"inode {ino} has {inode.nlink} links")
    if trash.row_of(txn, ino) is not None:
        raise PosixError(errno.EBUSY, f"inode {ino} is in the trash")
    return inode
