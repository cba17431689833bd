"""What the rows of the store hold, beside the records that are also on the wire, and how all of them are
encoded. Pure.

Everything is msgpack arrays of fields in their order, as on the wire, so fields are only ever added at the
end with a default. A value whose checksum matches but that does not decode was written by something else:
DamagedRecord.
"""

from typing import Final, Generic, TypeVar

import msgspec

from shoalfs.mds.messages import Extent, Inode, Outcome, PlacementGroup, Pool, Target, Upkeep
from shoalfs.mds.raft_members import Members
from shoalfs.mds.seal import readable
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import DamagedRecord
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.method import Message

T = TypeVar("T", bound=Message)


class Dentry(Message, frozen=True):
    """Invariants: ``kind`` is the inode's type bits; ``cookie`` is the key of the matching listing row."""

    ino: InodeId
    kind: int  # S_IFMT part of the inode's mode, so that a lookup need not read the inode
    cookie: int


class ListingRow(Message, frozen=True):
    name: bytes
    ino: InodeId


class ChunkUse(Message, frozen=True):
    """Invariant: ``extents`` is the number of extent rows that name the chunk, and at least 1; ``chunk_hash`` is
    theirs, or empty if the row was last written by a release that did not note it: then the chunk cannot be
    repaired."""

    extents: int
    chunk_bytes: int
    chunk_hash: bytes = b""
    fragments: bytes = b""  # as in the extents


class TrashRow(Message, frozen=True):
    """When the inode lost its last name, and which it was."""

    deleted_ns: int
    parent: InodeId
    name: bytes


class GarbageRow(Message, frozen=True):
    """``merged``: another chunk has its bytes, so nothing was removed."""

    since_ns: int
    merged: bool = False


class RangeRow(Message, frozen=True):
    session: SessionId
    count: int


class SessionRow(Message, frozen=True):
    nonce: bytes
    client: str
    opened_ns: int
    # Inode numbers [first, end) that the session may give to files, the newest range last; at most INODE_RANGES_KEPT.
    inodes: tuple[tuple[int, int], ...] = ()


class Recorded(Message, frozen=True):
    seq: int
    outcome: Outcome


class Format(Message, frozen=True):
    """Written once, when the filesystem is made."""

    cluster_id: bytes
    version: int


class MapEpoch(Message, frozen=True):
    epoch: int


class Counters(Message, frozen=True):
    """What is handed out next, and how many there are. One row, because most operations change several."""

    next_ino: int
    next_sequence: int = 1
    next_session: int = 1
    next_target: int = 1
    inodes: int = 0  # rows I, orphans included
    inline_files: int = 0  # regular files with a row L
    inline_bytes: int = 0  # in those rows
    orphans: int = 0  # rows O
    garbage_chunks: int = 0  # rows Z
    sessions: int = 0  # rows S
    mended: int = 0  # MEND operations applied
    trashed: int = 0  # rows Q
    merged_garbage: int = 0  # rows Z of chunks whose bytes are in others by now


class Applied(Message, frozen=True):
    """The last log entry whose effects are in the store, and the latest time that any entry was stamped
    with."""

    index: int
    term: int
    now_ns: int


class Codec(Generic[T]):
    """Encoder and decoder of one record type."""

    def __init__(self, record: type[T]) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(record).decode

    def decode(self, key: bytes, value: bytes) -> T:
        """Raises DamagedRecord if ``value`` is no such record."""
        try:
            return self._decode(value)
        except msgspec.DecodeError as error:
            raise DamagedRecord(f"the metadata record {readable(key)} does not decode: {error}", key) from error

    def load(self, txn: ReadTxn, key: bytes) -> T | None:
        """The record, if there is one. Raises DamagedRecord."""
        decoded = txn.decoded
        if decoded is not None and key in decoded:
            known: T = decoded[key]
            return known
        value = txn.get(key)
        if value is None:
            return None
        record = self.decode(key, value)
        if decoded is not None:
            decoded[key] = record
        return record

    def store(self, txn: Txn, key: bytes, record: T) -> None:
        txn.put_record(key, record, self.encode)

    def require(self, txn: ReadTxn, key: bytes) -> T:
        """A record that must be there. Raises DamagedRecord if it is not."""
        record = self.load(txn, key)
        if record is None:
            raise DamagedRecord(f"the metadata record {readable(key)} is missing", key)
        return record


INODE: Final = Codec(Inode)
EXTENT: Final = Codec(Extent)
TARGET: Final = Codec(Target)
POOL: Final = Codec(Pool)
GROUP: Final = Codec(PlacementGroup)
DENTRY: Final = Codec(Dentry)
LISTING: Final = Codec(ListingRow)
CHUNK_USE: Final = Codec(ChunkUse)
GARBAGE: Final = Codec(GarbageRow)
TRASH: Final = Codec(TrashRow)
RANGE: Final = Codec(RangeRow)
SESSION: Final = Codec(SessionRow)
RECORDED: Final = Codec(Recorded)
FORMAT: Final = Codec(Format)
MAP_EPOCH: Final = Codec(MapEpoch)
COUNTERS: Final = Codec(Counters)
APPLIED: Final = Codec(Applied)
MEMBERS: Final = Codec(Members)
UPKEEP: Final = Codec(Upkeep)
