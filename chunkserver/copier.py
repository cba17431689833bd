"""Carries out the order to have a chunk, or a fragment of one: looks, fetches it from a peer if need be, or works it
out from the fragments of others, stores it durably.

In this order, so that a crash in any gap leaves nothing to undo: the chunk that is here is verified, byte by byte; a
good copy is fetched and compared with the hash in the order, which is that of the file's extents; it is stored, and
what was here instead goes to quarantine in the same step; it is synced. Only then is it reported.
"""

import logging
from collections.abc import Collection
from typing import Final

import trio

from shoalfs.chunkserver.client import ChunkClient, Fetched, hash_chunk
from shoalfs.chunkserver.target import Target
from shoalfs.mds.messages import CopyFailed, CopyOrder, CopySource, FragmentSource
from shoalfs.transport import erasure
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError, wire_code
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import COPY_TIMEOUT_MS

_log: Final = logging.getLogger("shoal.chunkserver.copier")
_OURSELVES: Final = TargetId(0)


async def carry_out(target: Target, order: CopyOrder, client: ChunkClient) -> tuple[bool, list[CopyFailed]]:
    """True once the target has the chunk on disk; and what went wrong with each source that was tried. Raises nothing
    that a disk or a peer answers. Cancelled: the chunk may be stored or not."""
    failures: list[CopyFailed] = []
    try:
        if await _is_here(target, order):
            await target.sync((order.chunk,))
            return True, failures
        found = await _copied(order, client, failures) or await _rebuilt(order, client, failures)
        if found is not None:
            await target.put(
                chunk=order.chunk,
                ino=found.ino,
                offset_bytes=found.file_offset_bytes,
                data=[found.data],
                chunk_hash=order.chunk_hash,
                durable=True,
                replaces_other=True,
                fragment=order.fragment,
            )
            return True, failures
    except ShoalError as error:
        _log.warning("%s: chunk %#x cannot be stored: %s", target.path, order.chunk, error)
        failures.append(CopyFailed(order.chunk, _OURSELVES, wire_code(error)))
    if not failures:
        failures.append(CopyFailed(order.chunk, _OURSELVES, ChunkMissing.code))
    return False, failures


async def _copied(order: CopyOrder, client: ChunkClient, failures: list[CopyFailed]) -> Fetched | None:
    """What was ordered, from the first source that gives it."""
    for source in order.sources:
        found = await _fetch(order, source, order.chunk_hash, client, failures)
        if found is not None:
            return found
    return None


async def _rebuilt(order: CopyOrder, client: ChunkClient, failures: list[CopyFailed]) -> Fetched | None:
    """The fragment that was ordered, from those of others: as many at a time as still lack. Raises ChunkCorrupt if it
    does not come out right, and PosixError(EOPNOTSUPP)."""
    plan = order.rebuild
    if plan is None:
        return None
    found: dict[int, Fetched] = {}
    untried = list(plan.sources)
    while len(found) < plan.data and untried:
        asked = _next_asked(untried, found.keys(), plan.data - len(found))
        if not asked:
            break

        async def fetch(source: FragmentSource) -> None:
            peer = CopySource(source.target, source.address)
            fetched = await _fetch(order, peer, source.fragment_hash, client, failures)
            if fetched is not None:
                found[source.place] = fetched

        async with trio.open_nursery() as nursery:
            for source in asked:
                nursery.start_soon(fetch, source)
    if len(found) < plan.data:
        return None
    fragments = {place: fetched.data for place, fetched in found.items()}
    (rebuilt,) = await trio.to_thread.run_sync(erasure.rebuild, fragments, [plan.place], plan.data, plan.parity)
    if await hash_chunk(rebuilt) != order.chunk_hash:
        raise ChunkCorrupt("the fragment was rebuilt from good ones and is not right")
    other = next(iter(found.values()))
    return Fetched(rebuilt, other.ino, other.file_offset_bytes)


def _next_asked(untried: list[FragmentSource], have: Collection[int], count: int) -> list[FragmentSource]:
    """Take up to ``count`` sources of distinct fragments that are not there yet."""
    asked: dict[int, FragmentSource] = {}
    for source in list(untried):
        if source.place in have:
            untried.remove(source)
        elif source.place not in asked and len(asked) < count:
            asked[source.place] = source
            untried.remove(source)
    return list(asked.values())


async def _fetch(
    order: CopyOrder, source: CopySource, chunk_hash: bytes, client: ChunkClient, failures: list[CopyFailed]
) -> Fetched | None:
    """From one source what has this hash and the length of what was ordered; None and a failure if it gives it not."""
    try:
        wanted = CopyOrder(order.chunk, order.chunk_bytes, chunk_hash, (source,))
        return await client.fetch(source, wanted, timeout_ms=COPY_TIMEOUT_MS)
    except ShoalError as error:
        _log.warning("chunk %#x from target %d: %s", order.chunk, source.target, error)
        failures.append(CopyFailed(order.chunk, source.target, wire_code(error)))
        return None


async def _is_here(target: Target, order: CopyOrder) -> bool:
    """The chunk is here; if the order says so, every byte of it was read. Raises TargetDown."""
    try:
        row = await target.verify(order.chunk, deep=order.deep)
    except (ChunkMissing, ChunkCorrupt):
        return False
    return (row.chunk_bytes, row.chunk_hash) == (order.chunk_bytes, order.chunk_hash)
