"""RESERVE_CHUNKS: give a session a range of chunk sequence numbers that nobody else ever gets."""

import errno

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.messages import ChunksReserved, ReserveChunks
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage, PosixError
from shoalfs.transport.ids import CHUNK_SEQUENCE_MAX
from shoalfs.transport.limits import CHUNK_RANGE_MAX


def reserve_chunks(txn: Txn, context: Context, request: ReserveChunks) -> ChunksReserved:
    if not 0 < request.count <= CHUNK_RANGE_MAX:
        raise BadMessage(f"1 to {CHUNK_RANGE_MAX} chunks are reserved at a time")
    counters = inodes.load_counters(txn)
    first = counters.next_sequence
    if first + request.count - 1 > CHUNK_SEQUENCE_MAX:
        raise PosixError(errno.ENOSPC, "all chunk numbers have been used")
    row = records.RangeRow(context.session, request.count)
    records.RANGE.store(txn, keys.chunk_range(first), row)
    txn.put(keys.chunk_range_of(context.session, first), b"")
    inodes.store_counters(txn, msgspec.structs.replace(counters, next_sequence=first + request.count))
    return ChunksReserved(first, request.count)
