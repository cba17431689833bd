"""Reads chunks of a target; every byte that leaves here was verified against the index's hash of the chunk.

Knows where chunks are (the index) and how records lie; changes nothing. What cannot be verified is ChunkCorrupt and is
never returned; a single unreadable sector condemns one chunk, not the target.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from shoalfs.chunkserver import record, scan
from shoalfs.chunkserver.disk import Disk
from shoalfs.chunkserver.index import Index, Row, row_of
from shoalfs.chunkserver.segments import Segments
from shoalfs.transport.checksum import damaged_block, hashes_fit
from shoalfs.transport.errors import BadMessage, ChunkCorrupt, ChunkMissing, ShoalError
from shoalfs.transport.frame import Buffer
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import BLOCK_BYTES

_log: Final = logging.getLogger("shoal.chunkserver.reader")
_DEAD: Final = "the record is dead"


class Blocks(NamedTuple):
    """Verified blocks of a chunk from ``offset_bytes`` on, and the hashes of all its blocks."""

    offset_bytes: int
    chunk_bytes: int
    block_hashes: bytes
    data: memoryview
    ino: InodeId  # the file that has the chunk, as of when it was stored
    file_offset_bytes: int  # and where


_Read = Callable[[int, Sequence[Buffer], int], bool]
"""(fd, buffers, offset) -> all of it was read."""


class _Span:
    """Room for the head of a record and the blocks that cover a range of its chunk. Raises BadMessage."""

    def __init__(self, chunk: ChunkId, row: Row, offset_bytes: int, length_bytes: int) -> None:
        end_bytes = offset_bytes + length_bytes
        if offset_bytes < 0 or length_bytes <= 0 or end_bytes > row.chunk_bytes:
            raise BadMessage(f"chunk {chunk:#x} has {row.chunk_bytes} bytes, not {offset_bytes}..{end_bytes}")
        self.start_bytes = offset_bytes // BLOCK_BYTES * BLOCK_BYTES
        stop = min(-(-end_bytes // BLOCK_BYTES) * BLOCK_BYTES, row.chunk_bytes)
        head_bytes = record.data_offset(row.chunk_bytes)
        self._whole = memoryview(bytearray(head_bytes + stop - self.start_bytes))
        self.head, self.data = self._whole[:head_bytes], self._whole[head_bytes:]

    def read(self, fd: int, position_bytes: int, read: _Read) -> bool:
        """Fill it from the record that lies there. False: ``read`` did not read all of it."""
        if self.start_bytes == 0:  # head and data lie together
            return read(fd, [self._whole], position_bytes)
        data_bytes = position_bytes + len(self.head) + self.start_bytes
        return read(fd, [self.head], position_bytes) and read(fd, [self.data], data_bytes)


class Reader:
    """Thread-safe."""

    def __init__(self, disk: Disk, cluster_id: bytes, index: Index, segments: Segments, counters: Counter[str]) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._index = index
        self._segments = segments
        self._counters = counters

    def get(self, chunk: ChunkId, offset_bytes: int, length_bytes: int) -> Blocks:
        """The blocks that cover the range, every byte verified. Raises ChunkMissing, ChunkCorrupt, BadMessage."""
        row = self._index.get(chunk)
        if row is None:
            raise ChunkMissing(f"chunk {chunk:#x} is not here")
        return self._read(chunk, row, offset_bytes, length_bytes)

    def get_cached(self, chunk: ChunkId, offset_bytes: int, length_bytes: int) -> Blocks | None:
        """As :meth:`get` if all that it takes is in memory and right, else None: what is wrong is for those to say who
        may wait for the disk. Does not: neither for a row of the index, nor for somebody who opens or removes a file.
        Raises BadMessage."""
        row = self._index.known(chunk)
        if row is None:
            return None
        span = _Span(chunk, row, offset_bytes, length_bytes)
        try:
            with self._segments.at_hand(row.segment) as fd:
                if fd is None or not span.read(fd, row.position_bytes, self._disk.preadv_nowait):
                    return None
        except OSError:
            return None
        header, reason = self._judge(chunk, row, span)
        return None if header is None or reason else self._blocks(row, span, header)

    def get_many(self, chunks: Sequence[ChunkId], bytes_max: int, chunk_bytes_max: int) -> list[Blocks | ShoalError]:
        """All of each chunk, in their order, or why not: ChunkMissing, ChunkCorrupt; BadMessage if it is larger than
        ``chunk_bytes_max`` or does not fit into ``bytes_max`` together with those before it. They are read in the order
        in which they lie on the disk."""
        found: dict[int, Blocks | ShoalError] = {}
        rows: list[tuple[Row, int]] = []
        for at, chunk in enumerate(chunks):
            row = self._index.get(chunk)
            if row is None:
                found[at] = ChunkMissing(f"chunk {chunk:#x} is not here")
            elif row.chunk_bytes > min(chunk_bytes_max, bytes_max):
                found[at] = BadMessage(f"chunk {chunk:#x} is too large to be read with others")
            else:
                bytes_max -= row.chunk_bytes
                rows.append((row, at))
        for row, at in sorted(rows):
            try:
                found[at] = self._read(chunks[at], row, 0, row.chunk_bytes)
            except ShoalError as error:
                found[at] = error
        return [found[at] for at in range(len(chunks))]

    def _read_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        wanted = sum(map(len, buffers))
        if self._disk.preadv(fd, buffers, offset) < wanted:
            raise EOFError
        return True

    def _read(self, chunk: ChunkId, row: Row, offset_bytes: int, length_bytes: int) -> Blocks:
        """The chunk, which the index has at ``row``."""
        span = _Span(chunk, row, offset_bytes, length_bytes)
        try:
            with self._segments.use(row.segment) as fd:
                span.read(fd, row.position_bytes, self._read_all)
        except (OSError, EOFError) as error:
            raise self._explain(chunk, row, f"it cannot be read ({error})") from error
        header, reason = self._judge(chunk, row, span)
        if header is None or reason:
            raise self._explain(chunk, row, reason)
        return self._blocks(row, span, header)

    def _blocks(self, row: Row, span: "_Span", header: record.Header) -> Blocks:
        self._counters["gets"] += 1
        hashes = record.block_hashes_in(span.head, row.chunk_bytes)
        return Blocks(span.start_bytes, row.chunk_bytes, hashes, span.data, header.ino, header.offset_bytes)

    def _judge(self, chunk: ChunkId, row: Row, span: "_Span") -> tuple[record.Header | None, str]:
        """The record's header, and what is wrong with what was read; empty if nothing is."""
        hashes = record.block_hashes_in(span.head, row.chunk_bytes)
        try:
            header = record.decode(
                span.head, segment=row.segment, position_bytes=row.position_bytes, cluster_id=self._cluster_id
            )
        except ChunkCorrupt as bad:
            return None, str(bad)
        if header.state is record.State.DEAD or header.chunk != chunk or row_of(header) != row:
            return None, "another record lies there"
        if not hashes_fit(hashes, row.chunk_bytes, row.chunk_hash):
            return header, "the block hashes do not match the chunk's hash"
        block = damaged_block(span.data, hashes, span.start_bytes // BLOCK_BYTES)
        return header, "" if block is None else f"block {block} does not match its hash"

    def _explain(self, chunk: ChunkId, row: Row, reason: str) -> ChunkMissing | ChunkCorrupt:
        """Why the record at ``row`` could not be read: it was deleted meanwhile, or it is damaged."""
        if self._index.get(chunk) != row or self.check(chunk, row) == _DEAD:
            return ChunkMissing(f"chunk {chunk:#x} was deleted")
        self._counters["chunks_corrupt"] += 1
        _log.error("segment %d, offset %d: %s", row.segment, row.position_bytes, reason)
        return ChunkCorrupt(f"chunk {chunk:#x} is damaged: {reason}")

    def check(self, chunk: ChunkId, row: Row) -> str:
        """Verify the whole record; what is wrong with it, or nothing."""
        try:
            with self._segments.use(row.segment) as fd:
                segment = scan.Segment(self._disk, fd, row.segment, self._cluster_id, self._segments.end(row.segment))
                return check_row(segment, chunk, row)
        except OSError as error:
            return f"it cannot be read ({error})"


def check_row(segment: scan.Segment, chunk: ChunkId, row: Row) -> str:
    """Verify the record that ``row`` points to, data and all. Empty if it is the chunk, alive and intact."""
    if row.position_bytes + record.record_bytes(row.chunk_bytes) > segment.size_bytes:
        return "the file ends inside the record"
    try:
        header = segment.header(row.position_bytes, segment.read(row.position_bytes, record.HEADER_BYTES))
    except ChunkCorrupt as bad:
        return str(bad)
    if header.chunk != chunk or row_of(header) != row:
        return "another record lies there"
    return _DEAD if header.state is record.State.DEAD else scan.check_data(segment, header)
