"""A client of the data world: one write after the other, each stored, committed and synced by the rules of the real
client, with the real placement, units and receipts; what it waits for are steps of the world."""

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from xxhash import xxh3_128_digest

from shoalfs.fs.placement import Placement
from shoalfs.fs.units import Stored, Unit, give_up_refused
from shoalfs.mds import messages as m
from shoalfs.transport import erasure
from shoalfs.transport.checksum import chunk_hash
from shoalfs.transport.errors import TargetDown
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId, PoolId, SessionId, TargetId, chunk_id, chunk_pg
from shoalfs.transport.limits import REPLICAS_MAX
from sim.data_server import digest

WRITE_BYTES = 12
POOL = PoolId(1)
_NO_CHUNK = ChunkId(0)


class Pieces(NamedTuple):
    """What goes to each place of a group, and how the extent names it."""

    each: tuple[bytes, ...]
    chunk_hash: bytes
    fragments: bytes


@lru_cache(maxsize=1 << 16)
def payload_of(chunk: ChunkId) -> bytes:
    """The bytes of every chunk are its own: taking one for another is noticed."""
    return xxh3_128_digest(chunk.to_bytes(8, "big"))[:WRITE_BYTES]


@lru_cache(maxsize=1 << 16)
def pieces_of(data: bytes, pool: m.Pool) -> Pieces:
    """As fs/pieces.py does."""
    if pool.data == 1:
        return Pieces((data,) * REPLICAS_MAX, digest(data), b"")  # an old map may name more places than the pool has
    each = tuple(bytes(piece) for piece in erasure.encode([data], pool.data, pool.parity))
    fragments = b"".join(map(digest, each))
    return Pieces(each, chunk_hash(fragments), fragments)


@dataclass
class Writer:
    """``state``: idle -> storing -> stored -> idle, or gone for good. ``waiting``: targets that were sent the chunk and
    have not answered. ``undurable``: as in fs/committer.py. ``makes``: the file is new, and the metadata service is
    told of it with the extents (fs/closing.py)."""

    session: SessionId
    ino: InodeId
    map: m.ClusterMap  # as it knows it
    state: str = "idle"
    offset: int = 0
    durable: bool = True
    chunk: ChunkId = _NO_CHUNK
    unit: Unit | None = None
    waiting: tuple[TargetId, ...] = ()
    receipts: tuple[m.Receipt, ...] = ()
    undurable: dict[ChunkId, tuple[TargetId, ...]] = field(default_factory=dict)
    makes: bool = False
    unsure: bool = False  # a commit was not answered: it is repeated soon
    late: tuple[tuple[TargetId, ChunkId], ...] = ()  # requests that may still arrive, though nobody waits for them

    def duplicate(self) -> "Writer":
        twin = copy.copy(self)
        twin.unit = copy.copy(self.unit)
        twin.undurable = dict(self.undurable)
        return twin

    def begin(self, offset: int, *, durable: bool, makes: bool = False) -> None:
        assert self.state == "idle"
        self.offset, self.durable, self.makes = offset, durable, makes

    def choose(self, index: int) -> m.PlacementGroup | None:
        """Where it goes, as far as this client knows."""
        return Placement(self.map).choose(POOL, self.ino, index, (), ())

    def send(self, group: m.PlacementGroup, sequence: int) -> None:
        """The chunk is on its way to all targets of the group that can be written to."""
        self.chunk = chunk_id(group.id, sequence)
        self.unit = Unit([(self.offset, payload_of(self.chunk))])
        self.waiting = tuple(target.id for _, target in Placement(self.map).targets(group))
        self.receipts = ()
        self.state = "storing"

    def place(self, target: TargetId) -> int:
        return next(group for group in self.map.groups if group.id == chunk_pg(self.chunk)).place(target)

    def answered(self, target: TargetId, receipt: m.Receipt | None) -> None:
        """None: it did not take it, or the answer was lost, and the request may still be on its way."""
        self.waiting = tuple(t for t in self.waiting if t != target)
        if receipt is not None:
            self.receipts = (*self.receipts, receipt)

    def is_stored(self) -> bool:
        """Everybody has answered: enough have it."""
        assert not self.waiting
        try:
            return len(self.receipts) >= Placement(self.map).min_ack(POOL)
        except TargetDown:
            return False

    def stored(self, pool: m.Pool) -> None:
        assert self.unit is not None
        pieces = pieces_of(payload_of(self.chunk), pool)
        self.unit.stored = Stored(self.chunk, pieces.chunk_hash, self.receipts, pieces.fragments)
        self.state = "stored"

    def commit(self) -> m.CommitExtents | m.Create:
        assert self.unit is not None
        assert self.unit.stored is not None
        extents, receipts = tuple(self.unit.extents()), self.unit.stored.receipts
        if self.makes:
            who, name = m.ROOT_CREDENTIALS, b"made %d" % self.ino
            return m.Create(who, ROOT_INODE, name, 0o644, True, ino=self.ino, extents=extents, receipts=receipts)
        return m.CommitExtents(self.ino, extents, receipts, durable=self.durable)

    def committed(self) -> None:
        assert self.unit is not None
        assert self.unit.stored is not None
        stored = self.unit.stored
        if not self.durable and stored.durable_receipts < len(stored.receipts):
            self.undurable[stored.chunk] = stored.holders
        self.rest()

    def refused(self, map_: m.ClusterMap) -> None:
        """For its chunk. What is not given up is committed again as it is."""
        assert self.unit is not None
        self.map = map_
        give_up_refused([self.unit], {target.id: target.epoch for target in map_.targets})
        if self.unit.stored is None:
            self.rest()

    def rest(self) -> None:
        self.state, self.unit, self.receipts, self.waiting, self.chunk = "idle", None, (), (), _NO_CHUNK
        self.unsure = False
