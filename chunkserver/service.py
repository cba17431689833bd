"""Answers the methods of chunkserver/messages.py from the targets of this server. Knows no sockets.

The one rule: a target is addressed by the number that the metadata service gave it; before it has one, and for any
number that is not ours, the answer is TargetDown, so that the caller fetches the cluster map again.
"""

from functools import partial
from typing import Final

import msgspec
import trio

from shoalfs.chunkserver.chain import failed
from shoalfs.chunkserver.forwarder import Forwarder
from shoalfs.chunkserver.keeper import TargetSet
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
    ChainStored,
    ChunkRead,
    ChunksListed,
    ChunksRead,
    ChunksSynced,
    ChunkStored,
    ChunksVerified,
    FoundChunk,
    GetChunk,
    GetChunks,
    GetServerStatus,
    ListChunks,
    ListedChunk,
    PutChain,
    PutChunk,
    ServerStatus,
    SyncChunks,
    TargetStatus,
    VerifiedChunk,
    VerifyChunks,
)
from shoalfs.chunkserver.reader import Blocks
from shoalfs.chunkserver.target import Target
from shoalfs.mds.messages import Receipt
from shoalfs.transport.errors import BadMessage, ChunkCorrupt, ChunkMissing, ShoalError, TargetDown, wire_code
from shoalfs.transport.frame import Buffer
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import CHUNK_LIST_MAX, CONDITION_PATIENCE_MS, GET_MANY_CHUNKS_MAX, REPLICAS_MAX
from shoalfs.transport.service import Call, Done, Service

_ID_MAX: Final = (1 << 64) - 1


class ChunkService:
    """``targets`` may change meanwhile. ``forwarder`` passes on what is also for targets of other servers."""

    def __init__(self, node: str, targets: TargetSet, forwarder: Forwarder) -> None:
        self._node = node
        self._targets = targets
        self._forwarder = forwarder
        self.rpc = Service()
        self.rpc.add(PUT, self._put)
        self.rpc.add(PUT_CHAIN, self._put_chain)
        self.rpc.add(GET, self._get, self._get_now)
        self.rpc.add(GET_MANY, self._get_many)
        self.rpc.add(SYNC, self._sync)
        self.rpc.add(LIST, self._list)
        self.rpc.add(VERIFY, self._verify)
        self.rpc.add(SERVER_STATUS, self._status)

    def _target(self, number: TargetId) -> Target:
        for target in self._targets.living.values():
            if target.id == number and number:
                return target
        raise TargetDown(f"target {number} is not on {self._node}")

    async def _put(self, call: Call, request: PutChunk, payload: memoryview) -> ChunkStored:
        return ChunkStored(await self._store(request.target, request, payload))

    async def _put_chain(self, call: Call, request: PutChain, payload: memoryview) -> ChainStored:
        """The chunk is stored here and passed on at the same time; neither stops at a failure of the other."""
        if not 0 < len(request.targets) <= REPLICAS_MAX or len(set(request.targets)) != len(request.targets):
            raise BadMessage(f"a chain has 1 to {REPLICAS_MAX} targets, each once")
        here, *others = request.targets
        links: dict[TargetId, ChainLink] = {}

        async def store() -> None:
            try:
                links[here] = ChainLink(here, await self._store(here, request, payload))
            except ShoalError as error:
                links[here] = failed(here, error)

        async def forward() -> None:
            rest = msgspec.structs.replace(request, targets=tuple(others))
            for link in await self._forwarder.forward(rest, payload, call.deadline):
                links[link.target] = link

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store)
            if others:
                nursery.start_soon(forward)
        return ChainStored(tuple(links[target] for target in request.targets))

    async def _store(self, target: TargetId, request: PutChunk | PutChain, payload: memoryview) -> Receipt:
        _check_ids(request.chunk, request.ino, request.offset_bytes)
        return await self._target(target).put(
            chunk=request.chunk,
            ino=request.ino,
            offset_bytes=request.offset_bytes,
            data=[payload],
            chunk_hash=request.chunk_hash,
            durable=request.durable,
            fragment=request.fragment if isinstance(request, PutChunk) else None,
        )

    def _get_now(self, call: Call, request: GetChunk, payload: memoryview, done: Done[ChunkRead]) -> bool:
        """Blocks that are in memory are sent without a task or a thread."""
        _check_ids(request.chunk)
        blocks = self._target(request.target).get_now(request.chunk, request.offset_bytes, request.length_bytes)
        if blocks is None:
            return False
        done(_told(blocks))
        return True

    async def _get(self, call: Call, request: GetChunk, payload: memoryview) -> tuple[ChunkRead, memoryview]:
        _check_ids(request.chunk)
        return _told(await self._target(request.target).get(request.chunk, request.offset_bytes, request.length_bytes))

    async def _get_many(self, call: Call, request: GetChunks, payload: memoryview) -> tuple[ChunksRead, list[Buffer]]:
        _check_ids(*request.chunks)
        if not 0 < len(request.chunks) <= GET_MANY_CHUNKS_MAX:
            raise BadMessage(f"1 to {GET_MANY_CHUNKS_MAX} chunks are read at a time")
        found = await self._target(request.target).get_many(request.chunks)
        told = [
            FoundChunk(code=wire_code(one))
            if isinstance(one, ShoalError)
            else FoundChunk(one.chunk_bytes, one.block_hashes)
            for one in found
        ]
        return ChunksRead(tuple(told)), [one.data for one in found if not isinstance(one, ShoalError)]

    async def _sync(self, call: Call, request: SyncChunks, payload: memoryview) -> ChunksSynced:
        _check_ids(*request.chunks)
        return ChunksSynced(await self._target(request.target).sync(request.chunks))

    async def _list(self, call: Call, request: ListChunks, payload: memoryview) -> ChunksListed:
        _check_ids(request.after)
        if not 0 < request.count <= CHUNK_LIST_MAX:
            raise BadMessage(f"count must be 1..{CHUNK_LIST_MAX}")
        # One more than asked for tells whether that was all.
        found = await self._target(request.target).chunks_after(request.after, request.count + 1)
        listed = (ListedChunk(chunk, row.chunk_bytes, row.stored_ns) for chunk, row in found[: request.count])
        return ChunksListed(tuple(listed), eof=len(found) <= request.count)

    async def _verify(self, call: Call, request: VerifyChunks, payload: memoryview) -> ChunksVerified:
        _check_ids(*request.chunks)
        if len(request.chunks) > CHUNK_LIST_MAX:
            raise BadMessage(f"at most {CHUNK_LIST_MAX} chunks")
        target = self._target(request.target)
        verify = partial(_verify_one, target, deep=request.deep)
        return ChunksVerified(tuple([await verify(chunk) for chunk in request.chunks]))

    async def _status(self, call: Call, request: GetServerStatus, payload: memoryview) -> ServerStatus:
        targets, left_out = tuple(self._targets.living.values()), dict(self._targets.dead)
        told: dict[bytes, TargetStatus] = {}

        async def ask(target: Target) -> None:
            status = await _target_status(target)
            if status is not None:
                told[target.uuid] = status

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(ask, target)
        living = [told[target.uuid] for target in targets if target.uuid in told]
        dead = [TargetStatus(TargetId(0), b"", path, 0, 0, 0, 0, 0, 0, reason) for path, reason in left_out.items()]
        counters = self.rpc.counters + self._forwarder.counters
        for target in targets:
            counters.update(target.counters)
        return ServerStatus(self._node, (*living, *dead), dict(counters))


def _told(blocks: Blocks) -> tuple[ChunkRead, memoryview]:
    read = ChunkRead(blocks.offset_bytes, blocks.chunk_bytes, blocks.block_hashes, blocks.ino, blocks.file_offset_bytes)
    return read, blocks.data


async def _verify_one(target: Target, chunk: ChunkId, *, deep: bool) -> VerifiedChunk:
    try:
        row = await target.verify(chunk, deep=deep)
    except (ChunkMissing, ChunkCorrupt) as error:
        return VerifiedChunk(wire_code(error))
    return VerifiedChunk(0, row.chunk_bytes, row.chunk_hash)


async def _target_status(target: Target) -> TargetStatus | None:
    """None if it is being removed. What it uses is as it last said if its disk does not answer."""
    usage = target.last_usage
    try:
        with trio.move_on_after(CONDITION_PATIENCE_MS / 1000):
            usage = await target.usage()
    except TargetDown:
        if not target.failed:
            return None
    return TargetStatus(
        target.id,
        target.uuid,
        target.path,
        target.epoch,
        usage.capacity_bytes,
        usage.used_bytes,
        usage.chunks,
        usage.segments,
        usage.quarantined,
        target.failed,
    )


def _check_ids(*numbers: int) -> None:
    """Raises BadMessage for a number that does not fit the store's 64 bits."""
    for number in numbers:
        if not 0 <= number < _ID_MAX:
            raise BadMessage(f"{number} is no id")
