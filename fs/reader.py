"""ChunkReader: ranges of chunks, from the cache or from any replica that has them.

Fetches whole blocks, at most FETCH_BYTES_MAX per request, never the same block twice at the same time: who
wants a block that is on its way waits for it. One request asks all replicas before it fails. Readahead
fetches through the same door but in requests of its own, so a damaged block that nobody asked for fails
nobody.

Where there are fragments, each is read like a chunk of its own, from the one target that has it; what that does not
give is rebuilt from the others (`fs/rebuilder.py`), at once, and without asking it if it failed lately.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import TypeAlias

import trio

from shoalfs.chunkserver.messages import Wanted
from shoalfs.fs.avoided import Avoided
from shoalfs.fs.bad_replicas import BadReplicas
from shoalfs.fs.block_cache import BlockCache, PieceId, Run
from shoalfs.fs.parallel import all_of, settle_all
from shoalfs.fs.pauses import Pauses
from shoalfs.fs.placement import Placement
from shoalfs.fs.ports import Chunks, Metadata
from shoalfs.fs.rebuilder import Piece, Rebuilder, fragment
from shoalfs.mds.messages import Extent, Target
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError, TargetDown, from_wire, wire_code
from shoalfs.transport.fragments import cut
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import (
    BLOCK_BYTES,
    FETCH_BYTES_MAX,
    GET_MANY_BYTES_MAX,
    GET_MANY_CHUNK_BYTES_MAX,
    GET_MANY_CHUNKS_MAX,
    GETS_IN_FLIGHT_MAX,
)

_Block: TypeAlias = tuple[PieceId, int]

_FETCH_BLOCKS = FETCH_BYTES_MAX // BLOCK_BYTES


class _Flight:
    """One GET that is under way. When ``landed`` is set: a run, or an error, or neither if it was
    cancelled."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.run: Run | None = None
        self.error: ShoalError | None = None


class ChunkReader:
    def __init__(
        self, metadata: Metadata, chunks: Chunks, bad: BadReplicas, counters: Counter[str], *, cache_bytes: int
    ) -> None:
        self.cache = BlockCache(cache_bytes)
        self._bad = bad
        self._metadata = metadata
        self._chunks = chunks
        self._counters = counters
        self._slots = trio.CapacityLimiter(GETS_IN_FLIGHT_MAX)
        self._flights: dict[_Block, _Flight] = {}
        self._failed = Avoided()
        self._placement = Placement(metadata.map)
        self._rebuilder = Rebuilder(metadata, self.cache, self._failed, self._current, self._ask)

    def cached(self, extent: Extent, start: int, end: int) -> memoryview | None:
        """The bytes [start, end) of the file, which lie in this extent of it, if they are here in one piece."""
        if extent.fragments:
            return None
        shift = extent.chunk_offset_bytes - extent.offset_bytes
        return self.cache.span(extent.chunk, start + shift, end + shift)

    async def read(self, extent: Extent) -> list[memoryview]:
        """The extent's bytes, in order, as views that are never changed. Raises the last replica's error when
        no replica has them intact. Cancelled: nothing is lost; others who wait for the same bytes fetch them
        again."""
        start, end = extent.chunk_offset_bytes, extent.chunk_offset_bytes + extent.length_bytes
        if extent.fragments:
            return await self._read_fragments(extent, start, end)
        return await self._read(Piece(extent.chunk, None, extent.chunk_bytes, extent.chunk_hash), start, end)

    async def fetch_many(self, extents: Iterable[Extent], came: Callable[[ChunkId, memoryview], None]) -> None:
        """Bring small chunks into the cache, many with each request; ``came`` is told of each. A hint: what is large, a
        fragment, here already, or cannot be had from whoever is asked first is left to whoever reads it."""
        of_target: dict[TargetId, dict[ChunkId, Piece]] = {}
        for extent in extents:
            if not extent.fragments and extent.chunk_bytes <= GET_MANY_CHUNK_BYTES_MAX:
                piece = Piece(extent.chunk, None, extent.chunk_bytes, extent.chunk_hash)
                for target in self._holders(piece)[:1]:
                    of_target.setdefault(target.id, {})[piece.chunk] = piece  # several files may share a chunk
        await settle_all(
            [partial(self._fetch_from, target, [*pieces.values()], came) for target, pieces in of_target.items()]
        )

    async def _fetch_from(
        self, target: TargetId, pieces: list[Piece], came: Callable[[ChunkId, memoryview], None]
    ) -> None:
        """Whole chunks from one target, one request after the other; all count as on their way at once. Raises the
        error of a request. Who waits for what did not come looks again."""
        flights = {piece: _Flight() for piece in pieces if not self._is_coming(piece)}
        for piece, flight in flights.items():
            self._flights.update(dict.fromkeys(piece.blocks, flight))
        try:
            for batch in _batches(list(flights)):
                found = await self._get_many(target, batch)
                for piece, data in zip(batch, found, strict=True):
                    if not isinstance(data, ShoalError):
                        flights[piece].run = Run(piece.id, 0, data)
                        self.cache.put(Run(piece.id, 0, data))
                        came(piece.chunk, data)
                    self._land(flights.pop(piece), piece.blocks)
        finally:
            for piece, flight in flights.items():
                self._land(flight, piece.blocks)

    def _is_coming(self, piece: Piece) -> bool:
        """Some of it is here or on its way: whoever reads it has little to wait for."""
        return any(key in self.cache or key in self._flights for key in piece.blocks)

    def _land(self, flight: _Flight, keys: Iterable[_Block]) -> None:
        for key in keys:
            del self._flights[key]
        flight.landed.set()

    async def _get_many(self, target: TargetId, pieces: list[Piece]) -> list[memoryview | ShoalError]:
        """One request. What a target says of a single chunk is noted as if that one had been asked for."""
        found = self._current().target(target)
        if found is None:
            raise TargetDown(f"target {target} is no longer in the cluster map")
        async with self._slots:
            wanted = [Wanted(piece.chunk, piece.piece_bytes, piece.piece_hash) for piece in pieces]
            chunks = await self._chunks.get_many(found, wanted)
        for piece, data in zip(pieces, chunks, strict=True):
            if isinstance(data, ShoalError):
                self._failed_at(found, piece, data)
        self._counters["chunks_fetched_together"] += len(pieces)
        return chunks

    async def _read_fragments(self, extent: Extent, start: int, end: int) -> list[memoryview]:
        """The bytes [start, end) of a chunk that is stored as fragments."""
        pool = self._current().pool_of(extent.chunk)
        if pool is None:
            raise ChunkMissing(f"chunk {extent.chunk:#x} is of a group that the cluster map does not have")
        each_bytes = fragment(extent, 0, pool.data).piece_bytes
        parts = list(cut(start, end, each_bytes))
        results = await settle_all(
            [partial(self._read, fragment(extent, place, pool.data), at, at + length) for place, at, length in parts]
        )
        lost = [place for (place, _, _), found in zip(parts, results, strict=True) if isinstance(found, ShoalError)]
        rebuilt = await self._rebuilder.rebuild(extent, pool, lost) if lost else {}
        if lost:
            self._counters["fragments_rebuilt"] += len(lost)
        pieces: list[memoryview] = []
        for (place, at, length), found in zip(parts, results, strict=True):
            pieces += [memoryview(rebuilt[place])[at : at + length]] if isinstance(found, ShoalError) else found
        return pieces

    async def _read(self, piece: Piece, start: int, end: int) -> list[memoryview]:
        """The bytes [start, end) of what one target has."""
        view = self.cache.span(piece.id, start, end)
        if view is not None:
            return [view]
        blocks = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        views: dict[int, memoryview] = {}
        while missing := [block for block in blocks if block not in views]:
            for block in missing:
                view = self.cache.get(piece.id, block)
                if view is not None:
                    views[block] = view
            missing = [block for block in missing if block not in views]
            runs = await all_of([partial(self._fetch, piece, blocks) for blocks in self._split(piece, missing)])
            for run in runs:
                if run is not None:
                    views.update((block, run.block(block)) for block in run.blocks if block in blocks)
        pieces = [views[block] for block in blocks]
        pieces[-1] = pieces[-1][: end - blocks[-1] * BLOCK_BYTES]
        pieces[0] = pieces[0][start - blocks[0] * BLOCK_BYTES :]
        return pieces

    def _split(self, piece: Piece, missing: list[int]) -> Iterator[range]:
        """Group block numbers into requests: neighbours together, but those on their way apart from the
        others."""
        first = 0
        for at in range(1, len(missing) + 1):
            if (
                at == len(missing)
                or missing[at] != missing[at - 1] + 1
                or at - first == _FETCH_BLOCKS
                or self._flights.get((piece.id, missing[at])) is not self._flights.get((piece.id, missing[first]))
            ):
                yield range(missing[first], missing[at - 1] + 1)
                first = at

    async def _fetch(self, piece: Piece, blocks: range) -> Run | None:
        """Get these blocks, or wait for the one request that already does. None: it was cancelled, look
        again."""
        on_its_way = self._flights.get((piece.id, blocks[0]))
        if on_its_way is not None:
            await on_its_way.landed.wait()
            if on_its_way.error is not None:
                raise from_wire(wire_code(on_its_way.error), str(on_its_way.error))
            return on_its_way.run
        # Others may have set out since the blocks were split: then only up to theirs, the caller looks again.
        keys = list(takewhile(lambda key: key not in self._flights, ((piece.id, block) for block in blocks)))
        blocks = range(blocks[0], blocks[0] + len(keys))
        flight = _Flight()
        self._flights.update(dict.fromkeys(keys, flight))
        try:
            flight.run = Run(piece.id, blocks[0], await self._get(piece, blocks))
            self.cache.put(flight.run)
        except ShoalError as error:
            flight.error = error
            raise
        finally:
            self._land(flight, keys)
        return flight.run

    async def _get(self, piece: Piece, blocks: range) -> memoryview:
        """From the first replica that has it intact. If none answers that has it, while one that counts as up does
        not answer at all, it is asked again: it may be restarting."""
        pauses = Pauses()
        while True:
            data, failures = await self._try_replicas(piece, blocks)
            if data is not None:
                return data
            silent = [
                target for target, error in failures.items() if not isinstance(error, ChunkMissing | ChunkCorrupt)
            ]
            if silent:
                await self._metadata.refresh_map()
            is_whole = piece.place is None  # a fragment is rebuilt meanwhile
            if not is_whole or not self._current().may_come_back(silent) or not await pauses.next():
                break
        raise next(iter(failures.values()), ChunkMissing(f"no target may hold chunk {piece.chunk:#x}"))

    async def _try_replicas(self, piece: Piece, blocks: range) -> tuple[memoryview | None, dict[TargetId, ShoalError]]:
        """Ask each who may have it once, until one has the blocks; and why the others had not."""
        offset = blocks[0] * BLOCK_BYTES
        length = min(len(blocks) * BLOCK_BYTES, piece.piece_bytes - offset)
        failures: dict[TargetId, ShoalError] = {}
        for target in self._holders(piece):
            try:
                return await self._ask(target, piece, offset, length), failures
            except ShoalError as error:
                failures[target.id] = error
        return None, failures

    def _holders(self, piece: Piece) -> list[Target]:
        """Whom to ask, in order. Of a fragment only those who will probably answer. Raises TargetDown if none will."""
        placement = self._current()
        avoid = self._failed.now(placement.target)
        if piece.place is None:
            return placement.replicas(piece.chunk, self._metadata.session, avoid)
        holders = placement.fragments(piece.chunk, avoid).get(piece.place, [])
        likely = [target for target in holders if not placement.is_doubtful(target, avoid)]
        if not likely:
            raise TargetDown(
                f"the fragment of chunk {piece.chunk:#x} at place {piece.place} is on no target that is up"
            )
        return likely

    async def _ask(self, target: Target, piece: Piece, offset: int, length: int) -> memoryview:
        """A range of a piece from one target. Raises its error, which is noted."""
        async with self._slots:
            try:
                data = await self._chunks.get(
                    target,
                    chunk=piece.chunk,
                    chunk_bytes=piece.piece_bytes,
                    chunk_hash=piece.piece_hash,
                    offset_bytes=offset,
                    length_bytes=length,
                )
            except ShoalError as error:
                self._failed_at(target, piece, error)
                raise
        assert len(data) == length, (len(data), length)
        return data.toreadonly()

    def _failed_at(self, target: Target, piece: Piece, error: ShoalError) -> None:
        self._note(error)
        self._bad.note(target.id, piece.chunk, error)
        if not isinstance(error, ChunkMissing | ChunkCorrupt):
            self._failed.add(target)

    def _current(self) -> Placement:
        if self._placement.epoch != self._metadata.map.epoch:
            self._placement = Placement(self._metadata.map)
        return self._placement

    def _note(self, error: ShoalError) -> None:
        self._counters["replicas_failed"] += 1
        if isinstance(error, ChunkCorrupt):
            self._counters["chunks_corrupt"] += 1
        elif isinstance(error, ChunkMissing):
            self._counters["chunks_missing"] += 1


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Grouped into requests for many."""
    batch: list[Piece] = []
    size_bytes = 0
    for piece in pieces:
        if batch and (len(batch) == GET_MANY_CHUNKS_MAX or size_bytes + piece.piece_bytes > GET_MANY_BYTES_MAX):
            yield batch
            batch, size_bytes = [], 0
        batch.append(piece)
        size_bytes += piece.piece_bytes
    if batch:
        yield batch
