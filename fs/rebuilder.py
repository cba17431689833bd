"""Rebuilder: the fragments of a chunk that nobody gives, worked out from those of others.

Whole fragments are fetched, as many as it takes, and what comes out is compared with its hash: what is not right is an
error and never bytes. Rebuilt and fetched fragments go to the cache, where the next reader of the chunk finds them.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

import trio

from shoalfs.fs.avoided import Avoided
from shoalfs.fs.block_cache import BlockCache, PieceId, Run
from shoalfs.fs.parallel import settle_all
from shoalfs.fs.pauses import Pauses
from shoalfs.fs.placement import Placement
from shoalfs.fs.ports import Metadata
from shoalfs.mds.messages import Extent, Pool, Target
from shoalfs.transport import erasure
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError
from shoalfs.transport.fragments import fragment_bytes, fragment_hash
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import BLOCK_BYTES, REBUILDS_AT_ONCE_MAX


class Piece(NamedTuple):
    """What one target has of a chunk: all of it (``place`` None), or the fragment at a place."""

    chunk: ChunkId
    place: int | None
    piece_bytes: int
    piece_hash: bytes

    @property
    def id(self) -> PieceId:
        return self.chunk if self.place is None else (self.chunk, self.place)

    @property
    def blocks(self) -> list[tuple[PieceId, int]]:
        """All its blocks, by number."""
        return [(self.id, block) for block in range(-(-self.piece_bytes // BLOCK_BYTES))]


Ask: TypeAlias = Callable[[Target, Piece, int, int], Awaitable[memoryview]]
"""Get a range of a piece from a target, verified. Raises ShoalError, which is noted and reported already."""

_Found: TypeAlias = dict[int, bytes | memoryview]
_SPEAKS_OF_THE_COPY: Final = (ChunkMissing, ChunkCorrupt)


def fragment(extent: Extent, place: int, data: int) -> Piece:
    """The fragment at a place of the extent's chunk."""
    length = fragment_bytes(extent.chunk_bytes, data)
    return Piece(extent.chunk, place, length, fragment_hash(extent.fragments, place))


class Rebuilder:
    def __init__(
        self, metadata: Metadata, cache: BlockCache, failed: Avoided, placement: Callable[[], Placement], ask: Ask
    ) -> None:
        self._metadata = metadata
        self._cache = cache
        self._failed = failed
        self._placement = placement
        self._ask = ask
        self._busy: dict[ChunkId, trio.Event] = {}
        self._slots = trio.CapacityLimiter(REBUILDS_AT_ONCE_MAX)

    async def rebuild(self, extent: Extent, pool: Pool, wanted: Collection[int]) -> _Found:
        """The fragments at the places ``wanted``, whole, by place. Waits for who rebuilds the same chunk already.

        Raises the error of a target if too few fragments can be had: at once if those that lack were refused, after a
        while if they are on targets that do not answer. Cancelled: nothing is lost.
        """
        while (busy := self._busy.get(extent.chunk)) is not None:
            await busy.wait()
        found = self._cached(extent, pool, wanted)
        if len(found) == len(wanted):
            return found
        self._busy[extent.chunk] = done = trio.Event()
        try:
            async with self._slots:
                return await self._rebuild(extent, pool, wanted)
        finally:
            del self._busy[extent.chunk]
            done.set()

    async def _rebuild(self, extent: Extent, pool: Pool, wanted: Collection[int]) -> _Found:
        found = self._cached(extent, pool, range(pool.replicas))
        pauses = Pauses()
        while True:
            failures = await self._fetch(extent, pool, found)
            if len(found) >= pool.data:
                break
            silent = [t for t, error in failures.items() if not isinstance(error, _SPEAKS_OF_THE_COPY)]
            if silent:
                await self._metadata.refresh_map()
            if not self._placement().may_come_back(silent) or not await pauses.next():
                text = f"chunk {extent.chunk:#x}: {len(found)} good fragments of {pool.data} that it takes"
                raise next(iter(failures.values()), ChunkMissing(text))
        lost = [place for place in wanted if place not in found]
        rebuilt = await trio.to_thread.run_sync(_decoded, found, lost, pool, extent.fragments)
        found |= rebuilt
        for place, data in rebuilt.items():
            self._cache.put(Run((extent.chunk, place), 0, memoryview(data)))
        return {place: found[place] for place in wanted}

    def _cached(self, extent: Extent, pool: Pool, places: Collection[int]) -> _Found:
        pieces = [fragment(extent, place, pool.data) for place in places]
        whole = {place: self._cache.whole(p.id, p.piece_bytes) for place, p in zip(places, pieces, strict=True)}
        return {place: data for place, data in whole.items() if data is not None}

    async def _fetch(self, extent: Extent, pool: Pool, found: _Found) -> dict[TargetId, ShoalError]:
        """Ask for as many fragments at a time as still lack, until there are enough or everybody was asked; they go to
        ``found``. Returns why targets did not give theirs."""
        placement = self._placement()
        holders = placement.fragments(extent.chunk, self._failed.now(placement.target))
        untried: Iterator[tuple[int, list[Target]]] = ((p, t) for p, t in holders.items() if p not in found)
        failures: dict[TargetId, ShoalError] = {}
        while (lacking := pool.data - len(found)) > 0 and (asked := list(islice(untried, lacking))):
            pieces = [fragment(extent, place, pool.data) for place, _ in asked]
            results = await settle_all(
                [
                    partial(self._one, piece, targets, failures)
                    for piece, (_, targets) in zip(pieces, asked, strict=True)
                ]
            )
            for piece, result in zip(pieces, results, strict=True):
                if isinstance(result, memoryview):
                    assert piece.place is not None
                    found[piece.place] = result
                    self._cache.put(Run(piece.id, 0, result))
        return failures

    async def _one(self, piece: Piece, targets: list[Target], failures: dict[TargetId, ShoalError]) -> memoryview:
        """A whole fragment, from the first who has it. Raises the last error."""
        assert targets
        for target in targets:
            try:
                return await self._ask(target, piece, 0, piece.piece_bytes)
            except ShoalError as error:
                failures[target.id] = error
        raise failures[targets[-1].id]


def _decoded(found: _Found, lost: Collection[int], pool: Pool, fragments: bytes) -> _Found:
    """In a thread: the fragments at the places ``lost``. Raises ChunkCorrupt if one does not have its hash."""
    if not lost:
        return {}
    rebuilt: _Found = dict(zip(lost, erasure.rebuild(found, list(lost), pool.data, pool.parity), strict=True))
    for place, data in rebuilt.items():
        if chunk_hash(block_hashes([data])) != fragment_hash(fragments, place):
            raise ChunkCorrupt(f"the fragment at place {place} was rebuilt from good ones and is not right")
    return rebuilt
