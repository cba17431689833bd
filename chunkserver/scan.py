"""Walks a segment from an offset and says what lies there, in order: records, damage, gaps.

Knows the record format, not the index: :mod:`~shoalfs.chunkserver.recovery` decides what to do with what is found.

A gap begins where a header should be and the sector was never written: a record that was being written when the
machine stopped, or one that was withdrawn. Nothing in it was ever promised, because an fdatasync that covered the data
would have covered the header too. Damage begins where a header should be and something else is. Both end at the next
valid header; inside a gap a page that begins with the magic number but is no valid header begins damage.

Known doubt: a record whose first eight bytes rotted while it lay behind a gap is taken for part of the gap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shoalfs.chunkserver import record
from shoalfs.chunkserver.disk import Disk
from shoalfs.transport.checksum import damaged_block, hashes_fit
from shoalfs.transport.errors import ChunkCorrupt
from shoalfs.transport.limits import BLOCK_BYTES, MIB, RECORD_ALIGN_BYTES

_SEARCH_BYTES: Final = 1 * MIB  # read at once while looking for the next header
_VERIFY_BLOCKS: Final = 16  # blocks read at once while verifying: bounds memory


@dataclass(frozen=True, slots=True)
class Found:
    """A valid header; of its data only that the file is long enough (``whole``) is known."""

    header: record.Header
    whole: bool


@dataclass(frozen=True, slots=True)
class Gap:
    position_bytes: int
    end_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    position_bytes: int
    end_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment file, open for reading."""

    disk: Disk
    fd: int
    number: int
    cluster_id: bytes
    size_bytes: int

    def header(self, position: int, page: bytes | memoryview) -> record.Header:
        """Raises ChunkCorrupt."""
        return record.decode(page, segment=self.number, position_bytes=position, cluster_id=self.cluster_id)

    def read(self, position: int, length: int) -> memoryview:
        buffer = bytearray(length)
        return memoryview(buffer)[: self.disk.preadv(self.fd, [buffer], position)]


def walk(segment: Segment, position: int) -> Iterator[Found | Gap | Damage]:
    """What lies in the segment from ``position`` (where a record begins) to its end. Raises OSError."""
    while position < segment.size_bytes:
        item: Found | Gap | Damage
        page = segment.read(position, RECORD_ALIGN_BYTES)
        try:
            header = segment.header(position, page)
        except ChunkCorrupt as bad:
            in_gap = record.looks_unwritten(page)
            end = _next_start(segment, position + RECORD_ALIGN_BYTES, in_gap=in_gap)
            item = Gap(position, end) if in_gap else Damage(position, end, str(bad))
            position = end
        else:
            item = Found(header, position + header.record_bytes <= segment.size_bytes)
            position += header.record_bytes
        yield item


def _next_start(segment: Segment, position: int, *, in_gap: bool) -> int:
    """Where the next record or, from a gap, the next damaged header begins; else the end of the file."""
    while position < segment.size_bytes:
        window = segment.read(position, _SEARCH_BYTES)
        for at in range(0, len(window), RECORD_ALIGN_BYTES):
            page = window[at : at + RECORD_ALIGN_BYTES]
            if bytes(page[: len(record.MAGIC)]) == record.MAGIC and (
                in_gap or _is_header(segment, position + at, page)
            ):
                return position + at
        position += _SEARCH_BYTES
    return segment.size_bytes


def _is_header(segment: Segment, position: int, page: memoryview) -> bool:
    try:
        segment.header(position, page)
    except ChunkCorrupt:
        return False
    return True


def check_data(segment: Segment, header: record.Header) -> str:
    """Read the whole record and compare every hash. Empty if all is well, else what is wrong. Raises OSError."""
    head = segment.read(header.position_bytes, header.data_offset)
    hashes = record.block_hashes_in(head, header.chunk_bytes)
    if not hashes_fit(hashes, header.chunk_bytes, header.chunk_hash):
        return "the block hashes do not match the chunk's hash"
    start = header.position_bytes + header.data_offset
    step = _VERIFY_BLOCKS * BLOCK_BYTES
    for offset in range(0, header.chunk_bytes, step):
        length = min(step, header.chunk_bytes - offset)
        data = segment.read(start + offset, length)
        if len(data) < length:
            return "the file ends inside the data"
        block = damaged_block(data, hashes, offset // BLOCK_BYTES)
        if block is not None:
            return f"block {block} does not match its hash"
    return ""
