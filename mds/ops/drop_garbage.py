"""DROP_GARBAGE: forget garbage chunks that all their targets have deleted."""

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.messages import ChunkList
from shoalfs.mds.ops.add_garbage import check_list
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.method import Nothing


def drop_garbage(txn: Txn, context: Context, request: ChunkList) -> Nothing:
    """Chunks that are no garbage are ignored: the list was made from an older view."""
    check_list(request)
    found = {chunk: records.GARBAGE.load(txn, keys.garbage(chunk)) for chunk in request.chunks}
    rows = {chunk: row for chunk, row in found.items() if row is not None}
    for chunk, row in rows.items():
        txn.delete(keys.garbage(chunk))
        txn.delete(keys.garbage_by_time(row.since_ns, chunk))
    if rows:
        counters = inodes.load_counters(txn)
        garbage = counters.garbage_chunks - len(rows)
        merged = counters.merged_garbage - sum(row.merged for row in rows.values())
        counters = msgspec.structs.replace(counters, garbage_chunks=garbage, merged_garbage=merged)
        inodes.store_counters(txn, counters)
    return Nothing()
