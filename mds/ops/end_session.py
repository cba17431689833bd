"""END_SESSION: forget a session, its recorded answers and its reserved chunk numbers. Ending it again changes
nothing.

From here on nothing that the session sends is applied. Chunks that it stored and never committed belong to
nobody; the chunkservers' inventories bring them to light.
"""

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.messages import EndSession
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import NotAllowed
from shoalfs.transport.method import Nothing


def end_session(txn: Txn, context: Context, request: EndSession) -> Nothing:
    session = request.session
    if context.session not in (0, session):
        raise NotAllowed("a session ends only itself")
    if not 0 < session <= keys.U64_MAX:
        return Nothing()
    row = records.SESSION.load(txn, keys.session(session))
    if row is None:
        return Nothing()
    slots = [key for key, _ in txn.range(*keys.under(b"R", session))]
    ranges = [key for key, _ in txn.range(*keys.under(b"n", session))]
    counters = inodes.load_counters(txn)
    for key in slots:
        txn.delete(key)
    for key in ranges:
        txn.delete(keys.chunk_range(keys.second_field(key)))
        txn.delete(key)
    txn.delete(keys.nonce(row.nonce))
    txn.delete(keys.session(session))
    inodes.store_counters(txn, msgspec.structs.replace(counters, sessions=counters.sessions - 1))
    return Nothing()
