"""Uploader: puts payloads on chunkservers and collects the receipts.

A payload that fails in one group is stored again in another one, as another chunk. What the failed attempt
left behind is a chunk that no file uses: the metadata service collects it when the session ends or reports
it.

Concurrency is bounded for the whole mount: PUTS_IN_FLIGHT_MAX chunks at a time.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import trio

from shoalfs.fs.avoided import Avoided
from shoalfs.fs.bad_replicas import BadReplicas
from shoalfs.fs.parallel import settle_all
from shoalfs.fs.pauses import Pauses
from shoalfs.fs.pieces import Pieces, prepare
from shoalfs.fs.placement import Placement
from shoalfs.fs.ports import Chunks, Metadata
from shoalfs.fs.replicate import Copies, Replication, Replicator
from shoalfs.fs.units import Stored
from shoalfs.mds.messages import Inode, PlacementGroup, Receipt
from shoalfs.transport.errors import ChunkMissing, PosixError, Retry, ShoalError, TargetDown, TargetFull
from shoalfs.transport.ids import ChunkId, PoolId, TargetId, chunk_id
from shoalfs.transport.limits import (
    PUTS_IN_FLIGHT_MAX,
    STORE_ATTEMPTS_MAX,
    SYNC_CHUNKS_MAX,
)


class Uploader:
    def __init__(
        self,
        metadata: Metadata,
        chunks: Chunks,
        bad: BadReplicas,
        counters: Counter[str],
        replication: Replication = "fanout",
    ) -> None:
        self._metadata = metadata
        self._bad = bad
        self._chunks = chunks
        self._counters = counters
        self._replicator = Replicator(chunks, replication, counters)
        self._slots = trio.CapacityLimiter(PUTS_IN_FLIGHT_MAX)
        self._failed = Avoided()
        self._full = Avoided()
        self._placement = Placement(metadata.map)

    async def min_ack(self, pool: PoolId) -> int:
        """Receipts that a commit needs for each chunk. Raises TargetDown if there is no such pool; one that was just
        made is asked for."""
        if not self._current().knows(pool):
            await self._metadata.refresh_map()
        return self._current().min_ack(pool)

    def holders(self, chunk: ChunkId) -> tuple[TargetId, ...]:
        """The targets that are to have a chunk, by its number."""
        return tuple(target.id for target in self._current().replicas(chunk, 0, ()))

    def committed(self, stored: Stored) -> None:
        """The chunk is linked. Who of its group did not take it is to fetch it at once: until its absence would be
        found in an inventory, the chunk has fewer copies than it should."""
        if len(members := self._current().members(stored.chunk)) > len(stored.receipts):
            for target in set(members).difference(stored.holders):
                self._bad.note(target, stored.chunk, ChunkMissing())

    async def store(self, inode: Inode, offset_bytes: int, payload: Sequence[memoryview], *, durable: bool) -> Stored:
        """Store ``payload`` as one chunk of this file and return who took it: at least ``min_ack`` targets.

        Raises PosixError(ENOSPC) when every group has a full target, the last error when no group takes it
        for other reasons. Cancelled: some targets may have the chunk; nothing will use it.
        """
        async with self._slots:
            pieces: Pieces | None = None
            index = offset_bytes // inode.chunk_bytes
            pauses = Pauses()
            errors: list[ShoalError] = []
            for _ in range(STORE_ATTEMPTS_MAX):
                try:
                    group = await self._group(inode, index)
                except TargetDown as error:  # all chunkservers may just be starting
                    errors = [error]
                    await self._recover(errors, pauses)
                    continue
                if pieces is None:
                    pieces = await prepare(payload, self._current().pool(inode.pool))
                chunk = chunk_id(group.id, await self._metadata.chunk_sequence())
                receipts, errors = await self._put(group, chunk, inode, offset_bytes, pieces, durable=durable)
                if len(receipts) >= self._current().min_ack(inode.pool):
                    return Stored(chunk, pieces.chunk_hash, receipts, pieces.fragments)
                await self._recover(errors, pauses)
        raise errors[0] if errors else TargetDown("too few targets answered for min_ack")

    async def sync(
        self, held: Mapping[ChunkId, Collection[TargetId]], need: Mapping[ChunkId, int]
    ) -> dict[ChunkId, tuple[Receipt, ...]]:
        """Put chunks on the disks of the targets that hold them. Returns the durable receipts of each; fewer than it
        ``need``s if targets have lost the chunk, or do not answer for as long as they count as up. Raises nothing
        that a target answers."""
        receipts: dict[ChunkId, tuple[Receipt, ...]] = dict.fromkeys(held, ())
        pauses = Pauses()
        lacking = held
        while lacking:
            unanswered = await self._sync_once(lacking, receipts)
            lacking = {chunk: held[chunk] for chunk in held if len(receipts[chunk]) < need[chunk]}
            if not lacking or not unanswered:
                break
            await self._metadata.refresh_map()
            if not self._current().may_come_back(unanswered) or not await pauses.next():
                break
        return receipts

    async def _sync_once(
        self, held: Mapping[ChunkId, Collection[TargetId]], receipts: dict[ChunkId, tuple[Receipt, ...]]
    ) -> set[TargetId]:
        """Ask each target once; put what it answers into ``receipts``. Returns the targets that did not answer."""
        by_target: dict[TargetId, list[ChunkId]] = {}
        for chunk, targets in held.items():
            receipts[chunk] = ()
            for target in targets:
                by_target.setdefault(target, []).append(chunk)
        batches = [
            (target, chunks[start : start + SYNC_CHUNKS_MAX])
            for target, chunks in by_target.items()
            for start in range(0, len(chunks), SYNC_CHUNKS_MAX)
        ]
        unanswered: set[TargetId] = set()
        results = await settle_all([partial(self._sync_batch, target, chunks) for target, chunks in batches])
        for (target, _), result in zip(batches, results, strict=True):
            if isinstance(result, ShoalError):
                self._counters["syncs_failed"] += 1
                unanswered.add(target)
                continue
            for receipt in result:
                if receipt.durable:
                    receipts[receipt.chunk] = (*receipts[receipt.chunk], receipt)
        return unanswered

    def _current(self) -> Placement:
        if self._placement.epoch != self._metadata.map.epoch:
            self._placement = Placement(self._metadata.map)
        return self._placement

    async def _group(self, inode: Inode, index: int) -> PlacementGroup:
        """A group that may take the chunk. Raises PosixError(ENOSPC), TargetDown."""
        for refreshed in (False, True):
            if refreshed:
                await self._metadata.refresh_map()
            placement = self._current()
            full, failed = self._full.now(placement.target), self._failed.now(placement.target)
            group = placement.choose(inode.pool, inode.ino, index, full, failed)
            if group is not None:
                return group
        if full:
            raise PosixError(TargetFull.errno)
        raise TargetDown(f"no placement group of pool {inode.pool} has enough targets that are up")

    async def _put(
        self,
        group: PlacementGroup,
        chunk: ChunkId,
        inode: Inode,
        offset_bytes: int,
        pieces: Pieces,
        *,
        durable: bool,
    ) -> tuple[tuple[Receipt, ...], list[ShoalError]]:
        """One chunk to all targets of one group: the receipts and the errors."""

        placement = self._current()
        failed = self._failed.now(placement.target)
        # Who failed lately is the end of a chain, where nobody waits behind it.
        members = sorted(placement.targets(group), key=lambda member: member[1].id in failed)
        copies = Copies(chunk, inode.ino, offset_bytes, pieces, durable, placement.min_ack(inode.pool))
        outcomes = await self._replicator.store(copies, members)
        errors: list[ShoalError] = []
        for (_, target), outcome in zip(members, outcomes, strict=True):
            if isinstance(outcome, ShoalError):
                (self._full if isinstance(outcome, TargetFull) else self._failed).add(target)
                errors.append(outcome)
        self._counters["puts_failed"] += len(errors)
        return tuple(outcome for outcome in outcomes if isinstance(outcome, Receipt)), errors

    async def _recover(self, errors: list[ShoalError], pauses: "Pauses") -> None:
        """What has to happen before another group is tried. Raises an error that no other group can mend.

        A target that does not answer may be restarting: as long as the metadata service counts it as up, it is worth
        a pause.
        """
        for error in errors:
            if error.retry is Retry.NEVER:
                raise error
        if any(error.retry is Retry.REFRESH for error in errors):
            await self._metadata.refresh_map()
        if all(error.retry is not Retry.REFRESH or isinstance(error, TargetDown) for error in errors):
            await pauses.next()

    async def _sync_batch(self, target: TargetId, chunks: Sequence[ChunkId]) -> list[Receipt]:
        """Sync on one target. A chunk it does not have gets no receipt and does not spoil the others."""
        found = self._current().target(target)
        if found is None:
            raise TargetDown(f"target {target} is no longer in the cluster map")
        try:
            return list(await self._chunks.sync(found, chunks))
        except ChunkMissing:
            if len(chunks) == 1:
                return []
            half = len(chunks) // 2
            return [
                *await self._sync_batch(target, chunks[:half]),
                *await self._sync_batch(target, chunks[half:]),
            ]
