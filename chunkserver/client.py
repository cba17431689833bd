"""What a client calls to store and fetch chunks. Trusts no server: what it returns was verified end to end.

One call, one request to one target: which replicas to use, and what to do when one fails, is the caller's business.
Much data is hashed in a thread, little in place.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import trio

from shoalfs.chunkserver.chain import checked
from shoalfs.chunkserver.messages import (
    GET,
    GET_MANY,
    LIST,
    PUT,
    PUT_CHAIN,
    SERVER_STATUS,
    SYNC,
    VERIFY,
    ChainLink,
    ChunksListed,
    FoundChunk,
    GetChunk,
    GetChunks,
    GetServerStatus,
    ListChunks,
    PutChain,
    PutChunk,
    ServerStatus,
    SyncChunks,
    VerifiedChunk,
    VerifyChunks,
    Wanted,
)
from shoalfs.mds.messages import CopyOrder, CopySource, Receipt, Target
from shoalfs.transport.checksum import block_hashes, chunk_hash, damaged_block, hashes_fit
from shoalfs.transport.errors import (
    ChunkCorrupt,
    PeerUnreachable,
    ProtocolViolation,
    ShoalError,
    UserError,
    from_wire,
)
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.frame import Payload
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import BLOCK_BYTES, HASH_INLINE_BYTES_MAX, REQUEST_TIMEOUT_MS_DEFAULT
from shoalfs.transport.link import buffers_of
from shoalfs.transport.method import A, Method, Q
from shoalfs.transport.network import Network
from shoalfs.transport.rpc import Reply


async def hash_chunk(payload: Payload) -> bytes:
    """The hash that PUT and the extent of a chunk with these bytes carry."""
    buffers = buffers_of(payload)
    if sum(map(len, buffers)) <= HASH_INLINE_BYTES_MAX:
        return chunk_hash(block_hashes(buffers))
    return chunk_hash(await trio.to_thread.run_sync(block_hashes, buffers))


class Fetched(NamedTuple):
    """A chunk, verified, and where its file had it when it was stored."""

    data: memoryview
    ino: InodeId
    file_offset_bytes: int


class ChunkClient:
    """Every method raises PeerUnreachable, DeadlineExceeded and TargetDown beside what it names itself."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def _call(
        self,
        address: str,
        method: Method[Q, A],
        request: Q,
        payload: Payload = b"",
        *,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> Reply[A]:
        try:
            return await self._network.call(address, method, request, payload, timeout_ms=timeout_ms)
        except UserError as error:  # a server has registered an address that this process cannot dial: others may
            raise PeerUnreachable(str(error)) from error

    async def put(
        self,
        target: Target,
        *,
        chunk: ChunkId,
        ino: InodeId,
        offset_bytes: int,
        payload: Payload,
        chunk_hash: bytes,
        durable: bool,
        fragment: Fragment | None = None,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> Receipt:
        """Store ``payload`` as ``chunk``; it is not to change meanwhile. Repeating it is harmless.

        ``durable``: the receipt comes when the chunk is on disk. Raises ChunkCorrupt (it changed on the way),
        ChunkConflict, TargetFull. Cancelled: it may be stored or not.
        """
        request = PutChunk(target.id, chunk, ino, offset_bytes, chunk_hash, durable, fragment)
        reply = await self._call(target.address, PUT, request, payload, timeout_ms=timeout_ms)
        receipt = reply.body.receipt
        _check_receipts(target, (chunk,), (receipt,), durable=durable)
        if receipt.chunk_hash != chunk_hash:
            raise ProtocolViolation(f"{target.address} stored other bytes than it was sent")
        return receipt

    async def put_chain(self, target: Target, request: PutChain, payload: Payload) -> Sequence[ChainLink]:
        """Store ``payload`` on all that ``request`` names, of whom ``target`` is the first: it passes it on. What
        became of it on each, in their order. The payload is not to change meanwhile; repeating it is harmless.
        Cancelled: any of them may have it."""
        reply = await self._call(target.address, PUT_CHAIN, request, payload)
        return checked(request, reply.body.links)

    async def get(
        self,
        target: Target,
        *,
        chunk: ChunkId,
        chunk_bytes: int,
        chunk_hash: bytes,
        offset_bytes: int,
        length_bytes: int,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> memoryview:
        """Exactly this range of the chunk, whose length and hash are those of its extent.

        Raises ChunkMissing, and ChunkCorrupt if what came is not it. Keep the view no longer than needed: it holds
        the blocks around the range in memory.
        """
        request = GetChunk(target.id, chunk, offset_bytes, length_bytes)
        body, payload = await self._call(target.address, GET, request, timeout_ms=timeout_ms)
        start = offset_bytes // BLOCK_BYTES * BLOCK_BYTES
        end = offset_bytes + length_bytes
        stop = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, chunk_bytes)
        if body.offset_bytes != start or len(payload) != stop - start:
            raise ChunkCorrupt(f"target {target.id} answered with another range of chunk {chunk:#x}")
        if not hashes_fit(body.block_hashes, chunk_bytes, chunk_hash):
            raise ChunkCorrupt(f"target {target.id} has another chunk {chunk:#x} than the file")
        find = partial(damaged_block, payload, body.block_hashes, start // BLOCK_BYTES)
        damaged = find() if len(payload) <= HASH_INLINE_BYTES_MAX else await trio.to_thread.run_sync(find)
        if damaged is not None:
            raise ChunkCorrupt(f"block {damaged} of chunk {chunk:#x} came damaged from target {target.id}")
        return payload[offset_bytes - start : end - start]

    async def get_many(self, target: Target, wanted: Sequence[Wanted]) -> list[memoryview | ShoalError]:
        """All of several small chunks, in their order: each in memory of its own, or why not (ChunkMissing,
        ChunkCorrupt). Their number and sizes are within the bounds of GET_MANY."""
        request = GetChunks(target.id, tuple(one.chunk for one in wanted))
        body, payload = await self._call(target.address, GET_MANY, request)
        if len(body.chunks) != len(wanted):
            raise ProtocolViolation(f"{target.address} answered for {len(body.chunks)} chunks of {len(wanted)}")
        cut = partial(_cut, target, wanted, body.chunks, payload)
        return cut() if len(payload) <= HASH_INLINE_BYTES_MAX else await trio.to_thread.run_sync(cut)

    async def fetch(self, source: CopySource, order: CopyOrder, *, timeout_ms: int) -> Fetched:
        """The whole chunk that ``order`` names, from one of those who may have it. Raises ChunkMissing, and
        ChunkCorrupt if what came is not it."""
        request = GetChunk(source.target, order.chunk, 0, order.chunk_bytes)
        body, payload = await self._call(source.address, GET, request, timeout_ms=timeout_ms)
        if body.offset_bytes or len(payload) != order.chunk_bytes:
            raise ChunkCorrupt(f"target {source.target} answered with another range of chunk {order.chunk:#x}")
        if await hash_chunk(payload) != order.chunk_hash:
            raise ChunkCorrupt(f"target {source.target} has another chunk {order.chunk:#x} than the file")
        return Fetched(payload, body.ino, body.file_offset_bytes)

    async def sync(
        self, target: Target, chunks: Sequence[ChunkId], *, timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT
    ) -> tuple[Receipt, ...]:
        """Durable receipts for chunks that were stored before, in their order. Raises ChunkMissing."""
        request = SyncChunks(target.id, tuple(chunks))
        reply = await self._call(target.address, SYNC, request, timeout_ms=timeout_ms)
        _check_receipts(target, request.chunks, reply.body.receipts, durable=True)
        return reply.body.receipts

    async def list(self, target: Target, *, after: ChunkId, count: int) -> ChunksListed:
        """Up to ``count`` (1..CHUNK_LIST_MAX) chunks of the target with a higher id, in rising order."""
        request = ListChunks(target.id, after, count)
        return (await self._call(target.address, LIST, request)).body

    async def verify(
        self,
        target: Target,
        chunks: Sequence[ChunkId],
        *,
        deep: bool,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> tuple[VerifiedChunk, ...]:
        """What the target has of each chunk, in their order. ``deep``: it reads every byte first."""
        request = VerifyChunks(target.id, tuple(chunks), deep)
        reply = await self._call(target.address, VERIFY, request, timeout_ms=timeout_ms)
        if len(reply.body.chunks) != len(chunks):
            raise ProtocolViolation(f"{target.address} verified {len(reply.body.chunks)} of {len(chunks)}")
        return reply.body.chunks

    async def status(self, address: str) -> ServerStatus:
        """Of the chunkserver at this address."""
        return (await self._call(address, SERVER_STATUS, GetServerStatus())).body


def _check_receipts(target: Target, chunks: Sequence[ChunkId], receipts: Sequence[Receipt], *, durable: bool) -> None:
    """Raises ProtocolViolation unless there is one receipt for each chunk, of this target, as durable as asked for."""
    stated = [(receipt.chunk, receipt.target) for receipt in receipts]
    if stated != [(chunk, target.id) for chunk in chunks] or not all(
        receipt.durable >= durable for receipt in receipts
    ):
        raise ProtocolViolation(f"{target.address} sent receipts for something else")


def _cut(
    target: Target, wanted: Sequence[Wanted], found: Sequence[FoundChunk], payload: memoryview
) -> list[memoryview | ShoalError]:
    """The chunks of an answer to GET_MANY, each verified, and copied so that it does not keep the others in memory."""
    chunks: list[memoryview | ShoalError] = []
    start = 0
    for one, told in zip(wanted, found, strict=True):
        data = payload[start : start + told.chunk_bytes] if not told.code else payload[:0]
        start += len(data)
        if told.code:
            chunks.append(from_wire(told.code, f"target {target.id} does not give chunk {one.chunk:#x}"))
        elif len(data) != one.chunk_bytes or not hashes_fit(told.block_hashes, one.chunk_bytes, one.chunk_hash):
            chunks.append(ChunkCorrupt(f"target {target.id} has another chunk {one.chunk:#x} than the file"))
        elif (damaged := damaged_block(data, told.block_hashes)) is not None:
            chunks.append(ChunkCorrupt(f"block {damaged} of chunk {one.chunk:#x} came damaged from target {target.id}"))
        else:
            chunks.append(memoryview(bytes(data)))
    return chunks
