"""How a member that is far behind fetches the whole store of another one. Pure: data only.

The member that needs it pulls: it opens a snapshot, reads it piece by piece, and says nothing when it is done, for the
copy is removed when nobody asks for it any more.
"""

from typing import Final

from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import SNAPSHOT_CHUNK_BYTES
from shoalfs.transport.method import Message, Method, Nothing


class OpenSnapshot(Message, frozen=True):
    """Ask for a snapshot as of now. One that this member was reading is given up."""

    node: NodeId


class SnapshotOffer(Message, frozen=True):
    """A copy of the store, in the state after the entry (``index``, ``term``)."""

    number: int
    size_bytes: int
    digest: bytes  # xxh3-128 of all its bytes
    index: int
    term: int


class ReadSnapshot(Message, frozen=True):
    """The answer's payload is the next SNAPSHOT_CHUNK_BYTES from ``offset`` on, less at the end."""

    node: NodeId
    number: int
    offset: int


_MEMBERS: Final = frozenset({"mds"})
OPEN_SNAPSHOT: Final = Method(301, "raft.open_snapshot", OpenSnapshot, SnapshotOffer, roles=_MEMBERS)
READ_SNAPSHOT: Final = Method(302, "raft.read_snapshot", ReadSnapshot, Nothing, 0, SNAPSHOT_CHUNK_BYTES, _MEMBERS)
