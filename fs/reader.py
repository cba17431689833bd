"""ChunkReader: ranges of chunks, from the cache or from any replica that has them.

Fetches whole blocks, at most FETCH_BYTES_MAX per request, never the same block twice at the same time: who
wants a block that is on its way waits for it. One request asks all replicas before it fails. Readahead
fetches through the same door but in requests of its own, so a damaged block that nobody asked for fails
nobody.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from typing import TypeAlias

import trio

from shoalfs.fs.avoided import Avoided
from shoalfs.fs.bad_replicas import BadReplicas
from shoalfs.fs.block_cache import BlockCache, Run
from shoalfs.fs.parallel import all_of
from shoalfs.fs.pauses import Pauses
from shoalfs.fs.placement import Placement
from shoalfs.fs.ports import Chunks, Metadata
from shoalfs.mds.messages import Extent
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError, from_wire, wire_code
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import BLOCK_BYTES, FETCH_BYTES_MAX, GETS_IN_FLIGHT_MAX

_Block: TypeAlias = tuple[ChunkId, int]

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

    async def read(self, extent: Extent) -> list[memoryview]:
        """The extent's bytes, in order, as views that are never changed. Raises the last replica's error when
        no replica has them intact. Cancelled: nothing is lost; others who wait for the same bytes fetch them
        again."""
        start, end = extent.chunk_offset_bytes, extent.chunk_offset_bytes + extent.length_bytes
        blocks = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        views: dict[int, memoryview] = {}
        while missing := [block for block in blocks if block not in views]:
            for block in missing:
                view = self.cache.get(extent.chunk, block)
                if view is not None:
                    views[block] = view
            missing = [block for block in missing if block not in views]
            runs = await all_of([partial(self._fetch, extent, blocks) for blocks in self._split(extent, missing)])
            for run in runs:
                if run is not None:
                    views.update((block, run.block(block)) for block in run.blocks if block in blocks)
        pieces = [views[block] for block in blocks]
        pieces[-1] = pieces[-1][: end - blocks[-1] * BLOCK_BYTES]
        pieces[0] = pieces[0][start - blocks[0] * BLOCK_BYTES :]
        return pieces

    def _split(self, extent: Extent, missing: list[int]) -> Iterator[range]:
        """Group block numbers into requests: neighbours together, but those on their way apart from the
        others."""
        first = 0
        for at in range(1, len(missing) + 1):
            if (
                at == len(missing)
                or missing[at] != missing[at - 1] + 1
                or at - first == _FETCH_BLOCKS
                or self._flights.get((extent.chunk, missing[at]))
                is not self._flights.get((extent.chunk, missing[first]))
            ):
                yield range(missing[first], missing[at - 1] + 1)
                first = at

    async def _fetch(self, extent: Extent, blocks: range) -> Run | None:
        """Get these blocks, or wait for the one request that already does. None: it was cancelled, look
        again."""
        on_its_way = self._flights.get((extent.chunk, blocks[0]))
        if on_its_way is not None:
            await on_its_way.landed.wait()
            if on_its_way.error is not None:
                raise from_wire(wire_code(on_its_way.error), str(on_its_way.error))
            return on_its_way.run
        # Others may have set out since the blocks were split: then only up to theirs, the caller looks again.
        keys = list(takewhile(lambda key: key not in self._flights, ((extent.chunk, block) for block in blocks)))
        blocks = range(blocks[0], blocks[0] + len(keys))
        flight = _Flight()
        self._flights.update(dict.fromkeys(keys, flight))
        try:
            flight.run = Run(extent.chunk, blocks[0], await self._get(extent, blocks))
            self.cache.put(flight.run)
        except ShoalError as error:
            flight.error = error
            raise
        finally:
            for key in keys:
                del self._flights[key]
            flight.landed.set()
        return flight.run

    async def _get(self, extent: Extent, blocks: range) -> memoryview:
        """From the first replica that has it intact. If none answers that has it, while one that counts as up does
        not answer at all, it is asked again: it may be restarting."""
        pauses = Pauses()
        while True:
            data, failures = await self._try_replicas(extent, blocks)
            if data is not None:
                return data
            silent = [
                target for target, error in failures.items() if not isinstance(error, ChunkMissing | ChunkCorrupt)
            ]
            if silent:
                await self._metadata.refresh_map()
            if not self._current().may_come_back(silent) or not await pauses.next():
                break
        raise next(iter(failures.values()), ChunkMissing(f"no target may hold chunk {extent.chunk:#x}"))

    async def _try_replicas(
        self, extent: Extent, blocks: range
    ) -> tuple[memoryview | None, dict[TargetId, ShoalError]]:
        """Ask each replica once, until one has the blocks; and why the others had not."""
        offset = blocks[0] * BLOCK_BYTES
        length = min(len(blocks) * BLOCK_BYTES, extent.chunk_bytes - offset)
        placement = self._current()
        failures: dict[TargetId, ShoalError] = {}
        async with self._slots:
            avoid = self._failed.now(placement.target)
            for target in placement.replicas(extent.chunk, self._metadata.session, avoid):
                try:
                    data = await self._chunks.get(
                        target,
                        chunk=extent.chunk,
                        chunk_bytes=extent.chunk_bytes,
                        chunk_hash=extent.chunk_hash,
                        offset_bytes=offset,
                        length_bytes=length,
                    )
                except ShoalError as error:
                    failures[target.id] = error
                    self._note(error)
                    self._bad.note(target.id, extent.chunk, error)
                    if not isinstance(error, ChunkMissing | ChunkCorrupt):
                        self._failed.add(target)
                    continue
                assert len(data) == length, (len(data), length)
                return data.toreadonly(), failures
        return None, failures

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
