"""BlockCache: verified bytes of chunks, bounded, least recently used ones go first. Pure.

Chunks never change, so nothing here is ever stale. What is kept is what one GET brought: a run of whole
blocks in one buffer. Runs are kept and dropped as they came, so the bound counts exactly the memory that is
held.
"""

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import BLOCK_BYTES

PieceId: TypeAlias = ChunkId | tuple[ChunkId, int]
"""A chunk, or the fragment of one at a place."""


class Run(NamedTuple):
    """``data`` is the chunk's (or the fragment's) bytes from block ``first`` on: whole blocks, its last one may be
    short."""

    chunk: PieceId
    first: int
    data: memoryview

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + -(-len(self.data) // BLOCK_BYTES))

    def block(self, block: int) -> memoryview:
        start = (block - self.first) * BLOCK_BYTES
        return self.data[start : start + BLOCK_BYTES]


class BlockCache:
    """Invariant: ``size_bytes`` is the sum of the runs and at most ``limit_bytes``; each block leads to a run
    that is kept and has it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._runs: OrderedDict[tuple[PieceId, int], Run] = OrderedDict()
        self._by_block: dict[tuple[PieceId, int], Run] = {}

    def get(self, chunk: PieceId, block: int) -> memoryview | None:
        run = self._by_block.get((chunk, block))
        if run is None:
            return None
        self._runs.move_to_end((chunk, run.first))
        return run.block(block)

    def span(self, chunk: PieceId, start: int, end: int) -> memoryview | None:
        """The bytes [start, end) of the piece, if they lie in one run."""
        run = self._by_block.get((chunk, start // BLOCK_BYTES))
        if run is None:
            return None
        base = run.first * BLOCK_BYTES
        if end - base > len(run.data):
            return None
        # What was read to its end in one go is in the kernel's pages from then on: of all that is here, it goes first.
        self._runs.move_to_end((chunk, run.first), last=start > base or end - base < len(run.data))
        return run.data[start - base : end - base]

    def whole(self, chunk: PieceId, length_bytes: int) -> bytes | None:
        """All of it, if it is here."""
        views = [self.get(chunk, block) for block in range(-(-length_bytes // BLOCK_BYTES))]
        found = [view for view in views if view is not None]
        return b"".join(found) if len(found) == len(views) else None

    def __contains__(self, key: tuple[PieceId, int]) -> bool:
        return key in self._by_block

    def put(self, run: Run) -> None:
        if len(run.data) > self.limit_bytes:
            return
        replaced = self._runs.pop((run.chunk, run.first), None)
        if replaced is not None:
            self._evict(replaced)
        self._runs[run.chunk, run.first] = run
        self.size_bytes += len(run.data)
        for block in run.blocks:
            self._by_block[run.chunk, block] = run
        while self.size_bytes > self.limit_bytes:
            self._evict(self._runs.popitem(last=False)[1])

    def _evict(self, run: Run) -> None:
        self.size_bytes -= len(run.data)
        for block in run.blocks:
            if self._by_block.get((run.chunk, block)) is run:
                del self._by_block[run.chunk, block]
