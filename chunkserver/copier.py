"""Carries out the order to have a chunk: looks, fetches it from a peer if need be, stores it durably.

In this order, so that a crash in any gap leaves nothing to undo: the chunk that is here is verified, byte by byte; a
good copy is fetched and compared with the hash in the order, which is that of the file's extents; it is stored, and
what was here instead goes to quarantine in the same step; it is synced. Only then is it reported.
"""

import logging
from typing import Final

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.target import Target
from shoalfs.mds.messages import CopyFailed, CopyOrder
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
        for source in order.sources:
            try:
                fetched = await client.fetch(source, order, timeout_ms=COPY_TIMEOUT_MS)
            except ShoalError as error:
                _log.warning("chunk %#x from target %d: %s", order.chunk, source.target, error)
                failures.append(CopyFailed(order.chunk, source.target, wire_code(error)))
                continue
            await target.put(
                chunk=order.chunk,
                ino=fetched.ino,
                offset_bytes=fetched.file_offset_bytes,
                data=[fetched.data],
                chunk_hash=order.chunk_hash,
                durable=True,
                replaces_other=True,
            )
            return True, failures
    except ShoalError as error:
        _log.warning("%s: chunk %#x cannot be stored: %s", target.path, order.chunk, error)
        failures.append(CopyFailed(order.chunk, _OURSELVES, wire_code(error)))
    if not failures:
        failures.append(CopyFailed(order.chunk, _OURSELVES, ChunkMissing.code))
    return False, failures


async def _is_here(target: Target, order: CopyOrder) -> bool:
    """The chunk is here; if the order says so, every byte of it was read. Raises TargetDown."""
    try:
        row = await target.verify(order.chunk, deep=order.deep)
    except (ChunkMissing, ChunkCorrupt):
        return False
    return (row.chunk_bytes, row.chunk_hash) == (order.chunk_bytes, order.chunk_hash)
