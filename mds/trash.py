"""Removed files and directories that are kept for a while: the trash. Pure.

An inode that loses its last name while a retention is set (``Upkeep.trash_retention_ms``) keeps everything, and the
row ``Q`` notes when that was and which name it was. It has no name and no link, so no path leads to it and programs see
it as removed; whoever has it open goes on using it. Once its time is over, or an operator purges it, it becomes an
orphan like any other, and is removed after its last close. Or it is given a name again.

Removed directories are kept too, empty as they were when they were removed: so that of a tree that was removed, each
file's path is still known, and the tree can be made again from the top.
"""

import msgspec

from shoalfs.mds import keys, records
from shoalfs.mds.messages import Inode
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.ids import InodeId


def row_of(txn: ReadTxn, ino: InodeId) -> records.TrashRow | None:
    return records.TRASH.load(txn, keys.trash(ino)) if 0 < ino <= keys.U64_MAX else None


def retention_ms(txn: ReadTxn) -> int:
    upkeep = records.UPKEEP.load(txn, keys.UPKEEP)
    return (upkeep.trash_retention_ms or 0) if upkeep is not None else 0


def keep(txn: Txn, inode: Inode, now_ns: int, parent: InodeId, name: bytes) -> bool:
    """Put an inode that just lost its last name into the trash. False: nothing is kept at present."""
    if not retention_ms(txn):
        return False
    records.TRASH.store(txn, keys.trash(inode.ino), records.TrashRow(now_ns, parent, name))
    txn.put(keys.trash_by_time(now_ns, inode.ino), b"")
    _count(txn, +1)
    return True


def take_out(txn: Txn, ino: InodeId, row: records.TrashRow) -> None:
    """It is in the trash no more; what becomes of it is the caller's business."""
    txn.delete(keys.trash(ino))
    txn.delete(keys.trash_by_time(row.deleted_ns, ino))
    _count(txn, -1)


def _count(txn: Txn, delta: int) -> None:
    counters = records.COUNTERS.require(txn, keys.COUNTERS)
    counters = msgspec.structs.replace(counters, trashed=counters.trashed + delta)
    records.COUNTERS.store(txn, keys.COUNTERS, counters)
