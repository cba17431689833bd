"""How the copies of one chunk get to the targets of a group, and what became of each.

*Fanout*: this client sends the chunk to each of them, all at the same time. *Chain*: it sends the chunk once, to the
first, and chunkservers pass it on (docs/chain.md). That is for clients whose link is slower than those between
servers. Fragments differ from target to target, so they always fan out.

A broken chain costs no copies: what did not get to a target that this client has not asked itself is sent there
directly.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

from shoalfs.chunkserver.chain import error_of, pass_on, worth_a_direct_try
from shoalfs.chunkserver.messages import ChainLink, PutChain
from shoalfs.fs.parallel import settle_all
from shoalfs.fs.pieces import Pieces
from shoalfs.fs.ports import Chunks
from shoalfs.mds.messages import Receipt, Target
from shoalfs.transport.errors import DeadlineExceeded, ShoalError
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import REQUEST_TIMEOUT_MS_DEFAULT

Replication = Literal["fanout", "chain"]
Outcome = Receipt | ShoalError


class Copies(NamedTuple):
    """One chunk that is to be stored. ``need``: how many receipts are enough."""

    chunk: ChunkId
    ino: InodeId
    offset_bytes: int
    pieces: Pieces
    durable: bool
    need: int


class Replicator:
    """``counters``: ``chains``, and ``chain_copies_direct`` for the copies that did not get along the chain."""

    def __init__(self, chunks: Chunks, replication: Replication, counters: Counter[str]) -> None:
        self._chunks = chunks
        self._replication = replication
        self._counters = counters

    async def store(self, copies: Copies, members: Sequence[tuple[int, Target]]) -> list[Outcome]:
        """Store the chunk on ``members``, each with its place in the group: a receipt or an error of each, in their
        order. A chain begins with the first of them. Cancelled: any of them may have it."""
        if self._replication == "chain" and len(members) > 1 and not copies.pieces.fragments:
            return await self._along_chain(copies, members)
        return await settle_all([partial(self._directly, copies, *member) for member in members])

    async def _directly(self, copies: Copies, place: int, target: Target) -> Receipt:
        payload, digest = copies.pieces.at(place)
        return await self._chunks.put(
            target,
            chunk=copies.chunk,
            ino=copies.ino,
            offset_bytes=copies.offset_bytes,
            payload=payload,
            chunk_hash=digest,
            durable=copies.durable,
            fragment=copies.pieces.fragment(place),
            timeout_ms=REQUEST_TIMEOUT_MS_DEFAULT,
        )

    async def _along_chain(self, copies: Copies, members: Sequence[tuple[int, Target]]) -> list[Outcome]:
        payload, digest = copies.pieces.at(0)
        self._counters["chains"] += 1

        async def send(target: Target, left: Sequence[TargetId]) -> Sequence[ChainLink]:
            request = PutChain(
                tuple(left), copies.chunk, copies.ino, copies.offset_bytes, digest, durable=copies.durable
            )
            return await self._chunks.put_chain(target, request, payload)

        passed = await pass_on([(target.id, target) for _, target in members], send)
        outcomes: list[Outcome] = [link.receipt or error_of(link) for link in passed.links]
        stored = sum(link.receipt is not None for link in passed.links)
        again = [
            at
            for at, link in enumerate(passed.links)
            if worth_a_direct_try(link, passed.asked)
            # Who hangs would hold us up once more, for a copy that is not needed.
            and (stored < copies.need or link.code != DeadlineExceeded.code)
        ]
        self._counters["chain_copies_direct"] += len(again)
        direct = await settle_all([partial(self._directly, copies, *members[at]) for at in again])
        for at, outcome in zip(again, direct, strict=True):
            outcomes[at] = outcome
        return outcomes
