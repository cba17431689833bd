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
        blocks = self._get(chunk, offset_bytes, length_bytes, self._read_all)
        assert blocks is not None
        return blocks

    def get_cached(self, chunk: ChunkId, offset_bytes: int, length_bytes: int) -> Blocks | None:
        """As :meth:`get` if the system has the blocks in memory, else None. Does not wait for the disk."""
        return self._get(chunk, offset_bytes, length_bytes, self._disk.preadv_nowait)

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
                blocks = self._read(chunks[at], row, 0, row.chunk_bytes, self._read_all)
            except ShoalError as error:
                found[at] = error
            else:
                assert blocks is not None
                found[at] = blocks
        return [found[at] for at in range(len(chunks))]

    def _read_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        wanted = sum(map(len, buffers))
        if self._disk.preadv(fd, buffers, offset) < wanted:
            raise EOFError
        return True

    def _get(self, chunk: ChunkId, offset_bytes: int, length_bytes: int, read: _Read) -> Blocks | None:
        row = self._index.get(chunk)
        if row is None:
            raise ChunkMissing(f"chunk {chunk:#x} is not here")
        return self._read(chunk, row, offset_bytes, length_bytes, read)

    def _read(self, chunk: ChunkId, row: Row, offset_bytes: int, length_bytes: int, read: _Read) -> Blocks | None:
        """The chunk, which the index has at ``row``. None: ``read`` did not read."""
        end_bytes = offset_bytes + length_bytes
        if offset_bytes < 0 or length_bytes <= 0 or end_bytes > row.chunk_bytes:
            raise BadMessage(f"chunk {chunk:#x} has {row.chunk_bytes} bytes, not {offset_bytes}..{end_bytes}")
        first_block = offset_bytes // BLOCK_BYTES
        start = first_block * BLOCK_BYTES
        stop = min(-(-end_bytes // BLOCK_BYTES) * BLOCK_BYTES, row.chunk_bytes)
        head_bytes = record.data_offset(row.chunk_bytes)
        buffer = memoryview(bytearray(head_bytes + stop - start))
        head, data = buffer[:head_bytes], buffer[head_bytes:]
        try:
            with self._segments.use(row.segment) as fd:
                if start == 0:  # head and data lie together
                    complete = read(fd, [buffer], row.position_bytes)
                else:
                    complete = read(fd, [head], row.position_bytes) and read(
                        fd, [data], row.position_bytes + head_bytes + start
                    )
        except (OSError, EOFError) as error:
            raise self._explain(chunk, row, f"it cannot be read ({error})") from error
        if not complete:
            return None
        hashes = record.block_hashes_in(head, row.chunk_bytes)
        header, reason = self._judge(chunk, row, head, hashes, data, first_block)
        if header is None or reason:
            raise self._explain(chunk, row, reason)
        self._counters["gets"] += 1
        return Blocks(start, row.chunk_bytes, hashes, data, header.ino, header.offset_bytes)

    def _judge(
        self, chunk: ChunkId, row: Row, head: memoryview, hashes: bytes, data: memoryview, first_block: int
    ) -> tuple[record.Header | None, str]:
        """The record's header, and what is wrong with what was read; empty if nothing is."""
        try:
            header = record.decode(
                head, segment=row.segment, position_bytes=row.position_bytes, cluster_id=self._cluster_id
            )
        except ChunkCorrupt as bad:
            return None, str(bad)
        if header.state is record.State.DEAD or header.chunk != chunk or row_of(header) != row:
            return None, "another record lies there"
        if not hashes_fit(hashes, row.chunk_bytes, row.chunk_hash):
            return header, "the block hashes do not match the chunk's hash"
        block = damaged_block(data, hashes, first_block)
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
