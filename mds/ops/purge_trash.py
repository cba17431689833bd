"""PURGE_TRASH: keep removed files no longer. They are orphans from then on."""

from shoalfs.mds import inode as inodes
from shoalfs.mds import trash
from shoalfs.mds.messages import PurgeTrash
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.limits import TRASH_LIST_MAX
from shoalfs.transport.method import Nothing


def purge_trash(txn: Txn, context: Context, request: PurgeTrash) -> Nothing:
    if len(request.inos) > TRASH_LIST_MAX:
        raise BadMessage(f"at most {TRASH_LIST_MAX} are purged at a time")
    for ino in dict.fromkeys(request.inos):
        row = trash.row_of(txn, ino)
        if row is not None:
            trash.take_out(txn, ino, row)
            inodes.add_orphan(txn, inodes.load(txn, ino))
    return Nothing()
