"""The record: how one chunk lies in a segment file. Pure: bytes in, values out.

::

    offset 0         header (fixed, below), then 8 bytes for each 64 KiB block, then zeros up to 4096
    data_offset      the chunk's bytes, then zeros up to 4096

A fragment has a tail in place of the last of those zeros before ``data_offset``, if there is room: the hashes of all
fragments, then place, k, m and the length of the chunk, and a checksum over all this and the chunk's id. It serves a
rescue without metadata and nothing else; who does not know it sees zeros that mean nothing.

A record begins at a multiple of 4096 and says everything about itself, so that the index can be rebuilt from segments
alone. It also says where it lies: a copy of a record inside another chunk's bytes (someone stores a segment file in
the filesystem) is not mistaken for a record. The header lies within one sector, so a crash leaves it whole or absent.

What vouches for what: the checksum for the header; the chunk hash in the header for the block hashes; the block hashes
for the data. Zeros at the end of a page are vouched for by nothing and mean nothing.
"""

import enum
import struct
from dataclasses import dataclass, replace
from typing import Final

import xxhash

from shoalfs.transport.checksum import BLOCK_HASH_BYTES, CHUNK_HASH_BYTES, block_count
from shoalfs.transport.errors import ChunkCorrupt
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.frame import Buffer
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import CHUNK_BYTES_MAX, RECORD_ALIGN_BYTES

MAGIC: Final = b"SHOALCHK"
FORMAT: Final = 1
_FIELDS: Final = struct.Struct("<8sHBxIQ16sQQQI16sQ")
_CHECKSUM: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size
_TAIL: Final = struct.Struct("<8sBBBxI")
_TAIL_MAGIC: Final = b"SHOALFRG"
_SECTOR_BYTES: Final = 512

assert HEADER_BYTES <= _SECTOR_BYTES


class State(enum.IntEnum):
    LIVE = 1
    DEAD = 2  # deleted: its data may have been punched out


@dataclass(frozen=True, slots=True)
class Header:
    """``segment`` and ``position_bytes`` are where the record lies, ``ino`` and ``offset_bytes`` where the file has
    the chunk (kept for a rescue without the metadata service)."""

    state: State
    segment: int
    position_bytes: int
    cluster_id: bytes
    chunk: ChunkId
    ino: InodeId
    offset_bytes: int
    chunk_bytes: int
    chunk_hash: bytes
    stored_ns: int

    @property
    def data_offset(self) -> int:
        return data_offset(self.chunk_bytes)

    @property
    def record_bytes(self) -> int:
        return record_bytes(self.chunk_bytes)

    def dead(self) -> "Header":
        return replace(self, state=State.DEAD)


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // RECORD_ALIGN_BYTES) * RECORD_ALIGN_BYTES


def data_offset(chunk_bytes: int) -> int:
    """Where a chunk's bytes begin in its record."""
    return aligned(HEADER_BYTES + block_count(chunk_bytes) * BLOCK_HASH_BYTES)


def record_bytes(chunk_bytes: int) -> int:
    """The whole record's length, a multiple of RECORD_ALIGN_BYTES."""
    return data_offset(chunk_bytes) + aligned(chunk_bytes)


def encode(header: Header) -> bytes:
    """HEADER_BYTES bytes; also what a record is marked dead with, in place."""
    fields = _FIELDS.pack(
        MAGIC,
        FORMAT,
        header.state,
        header.segment,
        header.position_bytes,
        header.cluster_id,
        header.chunk,
        header.ino,
        header.offset_bytes,
        header.chunk_bytes,
        header.chunk_hash,
        header.stored_ns,
    )
    return fields + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))


def head(header: Header, hashes: bytes, fragment: Fragment | None = None) -> bytes:
    """All of the record before its data."""
    assert len(hashes) == block_count(header.chunk_bytes) * BLOCK_HASH_BYTES
    begun = encode(header) + hashes
    tail = b"" if fragment is None else _tail(header.chunk, fragment)
    if len(begun) + len(tail) > header.data_offset:
        tail = b""
    return begun.ljust(header.data_offset - len(tail), b"\0") + tail


def _tail(chunk: ChunkId, fragment: Fragment) -> bytes:
    fields = _TAIL.pack(_TAIL_MAGIC, fragment.place, fragment.data, fragment.parity, fragment.chunk_bytes)
    return fragment.hashes + fields + _CHECKSUM.pack(_tail_checksum(chunk, fragment.hashes, fields))


def _tail_checksum(chunk: ChunkId, hashes: bytes, fields: bytes) -> int:
    return xxhash.xxh3_64_intdigest(chunk.to_bytes(8, "little") + hashes + fields)


def fragment_in(head_bytes: bytes | memoryview, header: Header) -> Fragment | None:
    """What the record's head says of a fragment; None: nothing, or nothing that its checksum vouches for."""
    end = len(head_bytes) - _TAIL.size - _CHECKSUM.size
    if len(head_bytes) != header.data_offset:
        return None
    fields = bytes(head_bytes[end : end + _TAIL.size])
    magic, place, data, parity, chunk_bytes = _TAIL.unpack(fields)
    hashes = bytes(head_bytes[max(0, end - (data + parity) * CHUNK_HASH_BYTES) : end])
    (checksum,) = _CHECKSUM.unpack_from(head_bytes, end + _TAIL.size)
    if magic != _TAIL_MAGIC or checksum != _tail_checksum(header.chunk, hashes, fields):
        return None
    found = Fragment(place, data, parity, chunk_bytes, hashes)
    return found if found.fits(header.chunk_bytes) and found.hash == header.chunk_hash else None


def block_hashes_in(head_bytes: bytes | memoryview, chunk_bytes: int) -> bytes:
    """The block hashes in a record's head."""
    return bytes(head_bytes[HEADER_BYTES : HEADER_BYTES + block_count(chunk_bytes) * BLOCK_HASH_BYTES])


def looks_unwritten(page: bytes | memoryview) -> bool:
    """True if the sector where a header would be was never written."""
    return not any(page[:_SECTOR_BYTES])


def decode(data: Buffer, *, segment: int, position_bytes: int, cluster_id: bytes) -> Header:
    """The header at the start of ``data``, which was read at this place.

    Raises ChunkCorrupt: no header, damaged, of another place, of another cluster, or of an unknown format.
    """
    if len(data) < HEADER_BYTES:
        raise ChunkCorrupt("the file ends inside the header")
    fields = bytes(data[: _FIELDS.size])
    if fields[: len(MAGIC)] != MAGIC:
        raise ChunkCorrupt("no header")
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if checksum != xxhash.xxh3_64_intdigest(fields):
        raise ChunkCorrupt("the header does not match its checksum")
    _, form, state, in_segment, position, cluster, chunk, ino, offset, length, digest, stored = _FIELDS.unpack(fields)
    if form != FORMAT:
        raise ChunkCorrupt(f"format {form} is unknown")
    if (in_segment, position) != (segment, position_bytes):
        raise ChunkCorrupt(f"the record belongs to segment {in_segment}, offset {position}")
    if cluster != cluster_id:
        raise ChunkCorrupt(f"the record belongs to cluster {cluster.hex()}")
    if state not in (State.LIVE, State.DEAD) or not 0 < length <= CHUNK_BYTES_MAX:
        raise ChunkCorrupt("a field is out of range")
    return Header(
        State(state),
        segment,
        position_bytes,
        cluster,
        ChunkId(chunk),
        InodeId(ino),
        offset,
        length,
        digest,
        stored,
    )
