"""RESERVE_INODES: give a session a range of inode numbers that nobody else ever gets."""

import errno

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.messages import InodesReserved, ReserveInodes
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage, PosixError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import INODE_RANGE_MAX, INODE_RANGES_KEPT


def reserve_inodes(txn: Txn, context: Context, request: ReserveInodes) -> InodesReserved:
    """Numbers that are never used are lost: there are 2^63 of them."""
    if not 0 < request.count <= INODE_RANGE_MAX:
        raise BadMessage(f"1 to {INODE_RANGE_MAX} inode numbers are reserved at a time")
    counters = inodes.load_counters(txn)
    first, end = counters.next_ino, counters.next_ino + request.count
    if end > 1 << 63:
        raise PosixError(errno.ENOSPC, "all inode numbers have been used")
    inodes.store_counters(txn, msgspec.structs.replace(counters, next_ino=end))
    row = records.SESSION.require(txn, keys.session(context.session))
    ranges = (*row.inodes, (first, end))[-INODE_RANGES_KEPT:]
    records.SESSION.store(txn, keys.session(context.session), msgspec.structs.replace(row, inodes=ranges))
    return InodesReserved(InodeId(first), request.count)
