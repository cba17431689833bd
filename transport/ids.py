"""The names of things. One type each, so that a swapped argument is a type error.

Every id is an unsigned integer that fits 64 bits. Ids are handed out by the metadata service and never used again.
"""

from typing import Final, NewType

InodeId = NewType("InodeId", int)
"""Inode number. The top 16 bits are the shard (metadata group) it lives in; 0 until there are several groups."""

ChunkId = NewType("ChunkId", int)
"""Top 16 bits: placement group. Low 48 bits: a sequence number that is unique in the cluster whatever the group."""

PgId = NewType("PgId", int)
"""Placement group number, unique over all pools, 1..65535."""

PoolId = NewType("PoolId", int)
TargetId = NewType("TargetId", int)
"""One disk or directory of one chunkserver, for life. 1..2^32-1."""

NodeId = NewType("NodeId", int)
"""A member of the metadata group, 1..255."""

SessionId = NewType("SessionId", int)
"""One mount or one SDK process, from its opening to its end."""

ROOT_INODE: Final = InodeId(1)
"""The root directory; also FUSE's number for it, so that no translation is needed."""

CHUNK_SEQUENCE_BITS: Final = 48
CHUNK_SEQUENCE_MAX: Final = (1 << CHUNK_SEQUENCE_BITS) - 1
PG_MAX: Final = 0xFFFF


def chunk_id(pg: PgId, sequence: int) -> ChunkId:
    """The id of the chunk with this ``sequence`` (1..2^48-1) in placement group ``pg``."""
    assert 0 < pg <= PG_MAX, pg
    assert 0 < sequence <= CHUNK_SEQUENCE_MAX, sequence
    return ChunkId(pg << CHUNK_SEQUENCE_BITS | sequence)


def chunk_pg(chunk: ChunkId) -> PgId:
    return PgId(chunk >> CHUNK_SEQUENCE_BITS)


def chunk_sequence(chunk: ChunkId) -> int:
    return chunk & CHUNK_SEQUENCE_MAX
