"""What a chunkserver has told the metadata service, what it was told, and what comes next. Pure.

Per target:

=============  =========================================  =================================
state          what the next beat does                    leaves it
=============  =========================================  =================================
unregistered   registers it                               registered() -> registered
registered     reports it, with results and inventory     an order with known=False
=============  =========================================  =================================

A target that failed is never registered (that would declare it up), but if it is registered its failure is reported.

Orders are repeated by the service until they are reported as carried out, so losing any of them here is harmless; a
result is reported until a heartbeat that carried it was answered. What a reply does not order any more is not begun: an
order to delete is only as good as the map that it was given under. For the same reason a part of the inventory tells
the newest map that was known before it was collected, and while a deletion of an older reply is under way, that one's.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from shoalfs.mds.messages import (
    CopyFailed,
    CopyOrder,
    Heartbeat,
    HeartbeatReply,
    ScrubOrder,
    ScrubReport,
    TargetOrders,
    TargetReport,
)
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import (
    DAMAGED_REPORTED_MAX,
    INVENTORY_HURRIED_MAX,
    INVENTORY_PER_HEARTBEAT_MAX,
    ORDERS_PER_HEARTBEAT_MAX,
)

_NO_TARGET: Final = TargetId(0)
_NO_CHUNK: Final = ChunkId(0)  # below all ids
_ALL_IDS: Final = (1 << 64) - 1
_FAILURES_REPORTED_MAX: Final = 256


class Part(NamedTuple):
    """The next part of the inventory: up to ``chunks_max`` chunks after ``after``, by someone who knew map
    ``map_epoch``."""

    after: ChunkId
    chunks_max: int
    map_epoch: int


_NO_PART: Final = Part(_NO_CHUNK, 1, 0)  # of an inventory that says nothing of any chunk


class Condition(NamedTuple):
    """How a target is now. ``inventory``: the chunks that ``part`` asks for, with their hashes; ``part`` None: its disk
    has not told any yet."""

    capacity_bytes: int
    used_bytes: int
    chunks: int
    failed: str
    part: Part | None
    inventory: tuple[ChunkId, ...] = ()
    hashes: bytes = b""
    scrub: ScrubReport = ScrubReport()


@dataclass(eq=False)
class _Member:
    """``id`` is 0 while it is not registered. Invariant: a chunk is in at most one of ``copies``, ``copying`` and
    ``copied``; ``delete`` and ``deleted`` are disjoint."""

    id: TargetId = _NO_TARGET
    epoch: int = 0
    map_epoch: int = 0  # of the last reply
    deleting_epoch: int | None = None  # map_epoch when the deletion under way was ordered
    after: ChunkId = _NO_CHUNK  # where the service wants the inventory to go on
    count: int = INVENTORY_PER_HEARTBEAT_MAX
    scrub: ScrubOrder | None = None
    delete: dict[ChunkId, None] = field(default_factory=dict)  # ordered by the last reply, in its order
    deleted: dict[ChunkId, None] = field(default_factory=dict)  # carried out, not yet reported
    copies: dict[ChunkId, CopyOrder] = field(default_factory=dict)  # ordered by the last reply, not begun
    copying: set[ChunkId] = field(default_factory=set)
    copied: dict[ChunkId, None] = field(default_factory=dict)  # carried out, not yet reported
    failures: dict[tuple[ChunkId, TargetId], CopyFailed] = field(default_factory=dict)  # likewise
    damaged: dict[ChunkId, None] = field(default_factory=dict)  # found by scrubbing, not yet reported


class Membership:
    """Of the targets with these uuids, and those that come later. They share what one heartbeat may carry."""

    def __init__(self, node: str, uuids: Sequence[bytes] = ()) -> None:
        self._node = node
        self._members = {uuid: _Member() for uuid in uuids}

    @property
    def _sharers(self) -> int:
        return max(1, len(self._members))

    def add(self, uuid: bytes) -> None:
        """One more target, which is not registered. Not between :meth:`next_part` and :meth:`heartbeat`."""
        self._members[uuid] = _Member()

    def remove(self, uuid: bytes) -> None:
        """The target is none any more; what it was doing ends without being reported."""
        self._members.pop(uuid, None)

    def unregistered(self) -> list[bytes]:
        return [uuid for uuid, member in self._members.items() if not member.id]

    def is_registered(self, uuid: bytes) -> bool:
        member = self._members.get(uuid)
        return member is not None and member.id != _NO_TARGET

    def registered(self, uuid: bytes, target: TargetId, epoch: int) -> None:
        member = self._members[uuid]
        member.id, member.epoch, member.after = target, epoch, _NO_CHUNK

    def next_part(self, uuid: bytes) -> Part:
        """What of the target's inventory is to be collected now."""
        member = self._members[uuid]
        known = member.map_epoch if member.deleting_epoch is None else member.deleting_epoch
        return Part(member.after, max(1, min(member.count, INVENTORY_HURRIED_MAX) // self._sharers), known)

    @property
    def is_hurried(self) -> bool:
        """The service waits for inventories: it does not know what a target lacks."""
        return any(member.id and member.count > INVENTORY_PER_HEARTBEAT_MAX for member in self._members.values())

    # --- heartbeats --------------------------------------------------------------------------------------------------

    def heartbeat(self, conditions: dict[bytes, Condition]) -> Heartbeat:
        """What to say now. The answer goes to :meth:`answered`, with this; no answer: nothing has changed."""
        reports = [self._report(member, conditions[uuid]) for uuid, member in self._members.items() if member.id]
        return Heartbeat(self._node, tuple(reports))

    def _report(self, member: _Member, condition: Condition) -> TargetReport:
        part, inventory = condition.part or _NO_PART, condition.inventory
        through = inventory[-1] if len(inventory) >= part.chunks_max else _ALL_IDS
        return TargetReport(
            target=member.id,
            epoch=member.epoch,
            capacity_bytes=condition.capacity_bytes,
            used_bytes=condition.used_bytes,
            chunks=condition.chunks,
            failed=condition.failed,
            deleted=tuple(islice(member.deleted, ORDERS_PER_HEARTBEAT_MAX // self._sharers)),
            inventory=inventory,
            inventory_after=part.after,
            inventory_through=through if condition.part is not None else _NO_CHUNK,
            inventory_hashes=condition.hashes,
            map_epoch=part.map_epoch,
            copied=tuple(islice(member.copied, ORDERS_PER_HEARTBEAT_MAX // self._sharers)),
            not_copied=tuple(islice(member.failures.values(), _FAILURES_REPORTED_MAX // self._sharers)),
            damaged=tuple(islice(member.damaged, DAMAGED_REPORTED_MAX // self._sharers)),
            scrub=condition.scrub,
        )

    def answered(self, sent: Heartbeat, reply: HeartbeatReply) -> None:
        """The service heard ``sent`` and answered this."""
        by_id = {member.id: member for member in self._members.values() if member.id}
        for report in sent.targets:
            member = by_id.get(report.target)
            if member is None:
                continue  # it was removed meanwhile
            for chunk in report.deleted:
                member.deleted.pop(chunk, None)
            for chunk in report.copied:
                member.copied.pop(chunk, None)
            for failed in report.not_copied:
                member.failures.pop((failed.chunk, failed.source), None)
            for chunk in report.damaged:
                member.damaged.pop(chunk, None)
        for orders in reply.orders:
            ordered = by_id.get(orders.target)
            if ordered is not None:
                _take(ordered, orders, reply.map_epoch)

    # --- deletions ---------------------------------------------------------------------------------------------------

    def begin_deleting(self, uuid: bytes) -> tuple[ChunkId, ...]:
        """Chunks to delete now, at most ORDERS_PER_HEARTBEAT_MAX. If there are any, :meth:`end_deleting` follows."""
        member = self._members[uuid]
        chunks = tuple(islice(member.delete, ORDERS_PER_HEARTBEAT_MAX))
        if chunks:
            member.deleting_epoch = member.map_epoch
        return chunks

    def end_deleting(self, uuid: bytes, deleted: Iterable[ChunkId]) -> None:
        """These are gone for good; others that were begun are not, and wait for the next order."""
        member = self._members.get(uuid)
        if member is None:
            return
        member.deleting_epoch = None
        for chunk in deleted:
            member.delete.pop(chunk, None)
            member.deleted[chunk] = None

    # --- copies ------------------------------------------------------------------------------------------------------

    def begin_copy(self, passed_over: Collection[bytes] = ()) -> tuple[bytes, CopyOrder] | None:
        """The next chunk to fetch, and the target that is to have it, none of ``passed_over``. :meth:`end_copy`
        follows."""
        for uuid, member in self._members.items():
            if uuid in passed_over:
                continue
            for chunk in member.copies:
                member.copying.add(chunk)
                return uuid, member.copies.pop(chunk)
        return None

    def end_copy(self, uuid: bytes, chunk: ChunkId, *, copied: bool, failures: Iterable[CopyFailed]) -> None:
        """``copied``: it is on disk with the hash that was ordered."""
        member = self._members.get(uuid)
        if member is None:
            return
        member.copying.discard(chunk)
        if copied:
            member.copied[chunk] = None
        for failed in failures:
            if len(member.failures) < ORDERS_PER_HEARTBEAT_MAX:
                member.failures[chunk, failed.source] = failed

    @property
    def has_results(self) -> bool:
        """Copies are done, and none is left to do: the service may be told before the next beat is due."""
        members = self._members.values()
        return any(m.copied or m.failures for m in members) and not any(m.copies or m.copying for m in members)

    # --- scrubbing ---------------------------------------------------------------------------------------------------

    def scrub_order(self, uuid: bytes) -> ScrubOrder | None:
        member = self._members.get(uuid)
        return None if member is None else member.scrub

    def found_damaged(self, uuid: bytes, chunk: ChunkId) -> bool:
        """Report the chunk with the next heartbeat. False: too many are waiting to be reported."""
        damaged = self._members[uuid].damaged
        if len(damaged) < DAMAGED_REPORTED_MAX:
            damaged[chunk] = None
        return chunk in damaged


def _take(member: _Member, orders: TargetOrders, map_epoch: int) -> None:
    """What the service wants of a target from now on."""
    if not orders.known:
        member.id = _NO_TARGET
        member.delete.clear()
        member.copies.clear()
        return
    member.map_epoch = map_epoch
    member.after = ChunkId(orders.inventory_after)
    member.count = orders.inventory_count or INVENTORY_PER_HEARTBEAT_MAX
    member.scrub = orders.scrub
    ordered = orders.delete[:ORDERS_PER_HEARTBEAT_MAX]
    member.delete = dict.fromkeys(chunk for chunk in ordered if chunk not in member.deleted)
    busy = member.copying | member.copied.keys() | {chunk for chunk, _ in member.failures}
    member.copies = {order.chunk: order for order in orders.copy[:ORDERS_PER_HEARTBEAT_MAX] if order.chunk not in busy}
