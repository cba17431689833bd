"""OPEN_SESSION: begin a session, or find the one that this nonce opened."""

import msgspec

from shoalfs.mds import cluster, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import OpenSession, SessionOpened
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage, Overloaded
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import SESSION_TTL_MS, SESSIONS_MAX

_NONCE_BYTES = 16
_CLIENT_CHARACTERS_MAX = 512


def open_session(txn: Txn, context: Context, request: OpenSession) -> SessionOpened:
    if len(request.nonce) != _NONCE_BYTES:
        raise BadMessage(f"a session's nonce has {_NONCE_BYTES} bytes")
    if len(request.client) > _CLIENT_CHARACTERS_MAX:
        raise BadMessage(f"a client's name has at most {_CLIENT_CHARACTERS_MAX} characters")
    map_ = cluster.load_map(txn)
    before = txn.get(keys.nonce(request.nonce))
    if before is not None:
        return SessionOpened(SessionId(int.from_bytes(before, "big")), SESSION_TTL_MS, map_)
    counters = inodes.load_counters(txn)
    if counters.sessions >= SESSIONS_MAX:
        raise Overloaded(f"the cluster has {SESSIONS_MAX} sessions already")
    session = SessionId(counters.next_session)
    row = records.SessionRow(request.nonce, request.client, context.now_ns)
    records.SESSION.store(txn, keys.session(session), row)
    txn.put(keys.nonce(request.nonce), session.to_bytes(8, "big"))
    counters = msgspec.structs.replace(counters, next_session=session + 1, sessions=counters.sessions + 1)
    inodes.store_counters(txn, counters)
    return SessionOpened(session, SESSION_TTL_MS, map_)
