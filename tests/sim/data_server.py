"""A chunkserver of the data world: the real membership, the real copier and what a disk keeps of it.

The disk has two layers. ``disk`` is what a running system sees; what is in ``unsynced`` a loss of power may take away.
A disk that lies says that it synced and did not: what it got stays in ``unsynced``, and what was deleted or replaced
may be back after a loss of power.

Copies are real bytes with real hashes. A copy whose bytes do not have the hash of its record has rotted, which the
server finds when it reads it; one that has is served, whatever chunk's bytes these are, and a reader has to see.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import trio

from shoalfs.chunkserver import copier
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.index import Row
from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.chunkserver.messages import GET, ChunkRead
from shoalfs.mds import messages as m
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import ChunkConflict, ChunkCorrupt, ChunkMissing, PeerUnreachable
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.rpc import Reply

CAPACITY = 1 << 30
BAD = b"other bytes than anybody ever wrote"


@lru_cache(maxsize=1 << 16)
def digest(data: bytes) -> bytes:
    """The hash that PUT and extents carry for these bytes."""
    return chunk_hash(block_hashes([data]))


class Copy(NamedTuple):
    """``record_hash``: as the index and inventories have it."""

    record_hash: bytes
    data: bytes

    @property
    def is_intact(self) -> bool:
        return digest(self.data) == self.record_hash


def copy_of(data: bytes) -> Copy:
    return Copy(digest(data), data)


class Server:
    """One target on one node."""

    def __init__(self, number: int, node: str, rack: str = "") -> None:
        self.number = number
        self.uuid = number.to_bytes(16, "big")
        self.node = node
        self.rack = rack
        self.id = 0
        self.epoch = 0
        self.up = True
        self.lies = False
        self.disk: dict[ChunkId, Copy] = {}
        self.unsynced: set[ChunkId] = set()
        self.undead: dict[ChunkId, Copy] = {}  # of a disk that lies: deleted or replaced, and still on the platter
        self.membership = Membership(node, [self.uuid])
        self.sent: m.Heartbeat | None = None  # and not answered yet
        self.reply: m.HeartbeatReply | None = None  # on its way back
        self.deleting: tuple[ChunkId, ...] = ()
        self.copying: dict[ChunkId, m.CopyOrder] = {}
        self.path = node

    # --- life and death ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The process ends; what it was doing is not finished."""
        self.up = False
        self.sent = self.reply = None
        self.deleting = ()
        self.copying = {}

    def cut_power(self, lost: set[ChunkId]) -> None:
        """What is ``lost`` of what was not synced is gone; of a disk that lies, everything that it ever took back is
        there again."""
        self.stop()
        for chunk in lost & self.unsynced:
            self.disk.pop(chunk, None)
        self.unsynced -= lost
        for chunk, copy in self.undead.items():
            self.disk.setdefault(chunk, copy)
        self.undead = {}

    def restart(self) -> None:
        self.up = True
        self.membership = Membership(self.node, [self.uuid])

    # --- the store ---------------------------------------------------------------------------------------------------

    def good(self, chunk: ChunkId, wanted: bytes) -> bool:
        copy = self.disk.get(chunk)
        return copy is not None and copy.record_hash == wanted and copy.is_intact

    def on_platter(self, chunk: ChunkId, wanted: bytes) -> bool:
        return chunk not in self.unsynced and self.good(chunk, wanted)

    def store(self, chunk: ChunkId, data: bytes, *, replaces_other: bool = False) -> None:
        """As PUT does. Raises ChunkConflict."""
        there = self.disk.get(chunk)
        if there is not None and there.record_hash != digest(data) and not replaces_other:
            raise ChunkConflict
        if there is not None and there == copy_of(data):
            return
        if there is not None and self.lies:
            self.undead[chunk] = there
        self.disk[chunk] = copy_of(data)
        self.unsynced.add(chunk)

    def sync_all(self) -> None:
        if not self.lies:
            self.unsynced.clear()

    def drop(self, chunk: ChunkId) -> None:
        """As DELETE does."""
        copy = self.disk.pop(chunk, None)
        if copy is not None and self.lies and chunk not in self.unsynced:
            self.undead[chunk] = copy
        self.unsynced.discard(chunk)

    def receipt(self, chunk: ChunkId, *, durable: bool) -> m.Receipt:
        return m.Receipt(chunk, self.id, self.epoch, durable, self.disk[chunk].record_hash)

    # --- the same, as the copier calls it ----------------------------------------------------------------------------

    async def verify(self, chunk: ChunkId, *, deep: bool) -> Row:
        copy = self.disk.get(chunk)
        if copy is None:
            raise ChunkMissing
        if deep and not copy.is_intact:
            raise ChunkCorrupt
        return Row(0, 0, len(copy.data), 0, copy.record_hash)

    async def sync(self, chunks: Sequence[ChunkId]) -> None:
        if not self.lies:
            self.unsynced.difference_update(chunks)

    async def put(
        self,
        *,
        chunk: ChunkId,
        data: Sequence[Any],
        chunk_hash: bytes,
        durable: bool,
        replaces_other: bool,
        **_: object,
    ) -> None:
        content = b"".join(bytes(piece) for piece in data)
        if digest(content) != chunk_hash:
            raise ChunkCorrupt
        self.store(chunk, content, replaces_other=replaces_other)
        if durable:
            await self.sync((chunk,))

    # --- heartbeats, step by step ------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Make the next heartbeat, and send it."""
        part = self.membership.next_part(self.uuid)
        inventory = sorted(chunk for chunk in self.disk if chunk > part.after)[: part.chunks_max]
        hashes = b"".join(self.disk[chunk].record_hash for chunk in inventory)
        count = len(self.disk)
        condition = Condition(CAPACITY, count, count, "", part, tuple(inventory), hashes)
        self.sent = self.membership.heartbeat({self.uuid: condition})

    def take_reply(self) -> None:
        """The answer has come; what it orders is begun."""
        assert self.sent is not None
        assert self.reply is not None
        self.membership.answered(self.sent, self.reply)
        self.sent = self.reply = None
        self.begin()

    def forget_beat(self) -> None:
        """No answer came."""
        self.sent = self.reply = None

    def begin(self) -> None:
        """Deletions run one batch after the other, copies side by side."""
        if not self.deleting:
            self.deleting = self.membership.begin_deleting(self.uuid)
        while (work := self.membership.begin_copy()) is not None:
            self.copying[work[1].chunk] = work[1]

    def finish_deleting(self) -> tuple[ChunkId, ...]:
        done, self.deleting = self.deleting, ()
        for chunk in done:
            self.drop(chunk)
        self.membership.end_deleting(self.uuid, done)
        self.begin()
        return done

    def finish_copy(self, chunk: ChunkId, peers: "Peers") -> bool:
        """Carry out an order to copy that was begun. Whether it was carried out; ``peers`` counts what was fetched."""
        order = self.copying.pop(chunk)
        work = copier.carry_out, self, order, ChunkClient(peers)
        copied, failures = trio.run(*work) if order.rebuild is not None else driven(*work)
        self.membership.end_copy(self.uuid, chunk, copied=copied, failures=failures)
        return copied

    def scrub(self) -> None:
        """Every copy is read; what is damaged is reported with the next heartbeat."""
        for chunk, copy in self.disk.items():
            if not copy.is_intact:
                self.membership.found_damaged(self.uuid, chunk)

    def read(self, chunk: ChunkId) -> Reply[ChunkRead]:
        """What GET answers. Raises ChunkMissing, ChunkCorrupt."""
        copy = self.disk.get(chunk)
        if copy is None:
            raise ChunkMissing
        if not copy.is_intact:
            raise ChunkCorrupt
        return Reply(ChunkRead(0, len(copy.data), block_hashes([copy.data])), memoryview(copy.data))


class Peers:
    """The network, as the real client of chunkservers calls it. ``is_cut``: whether a server does not answer."""

    def __init__(self, servers: Sequence[Server], is_cut: Callable[[Server], bool] = lambda server: not server.up):
        self.by_address = {f"mem:{server.number}": server for server in servers}
        self.is_cut = is_cut
        self.fetched = 0

    async def call(self, address: str, method: Any, request: Any, payload: Any = b"", *, timeout_ms: int = 0) -> Any:
        assert method is GET, "the only thing that servers ask each other"
        server = self.by_address[address]
        if self.is_cut(server):
            raise PeerUnreachable
        reply = server.read(request.chunk)
        self.fetched += 1
        return reply


def driven(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a coroutine that has nothing to wait for: all that it calls answers at once."""
    try:
        function(*arguments).send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
