"""What a chunkserver has told the metadata service, what it was told, and what comes next. Pure.

Per target:

=============  =========================================  =================================
state          what the next beat does                    leaves it
=============  =========================================  =================================
unregistered   registers it                               registered() -> registered
registered     reports it, with deletions and inventory   an order with known=False
=============  =========================================  =================================

A target that failed is never registered (that would declare it up), but if it is registered its failure is reported.

Delete orders are repeated by the service until they are reported as carried out, so losing any of them here, in a
restart or for lack of room, is harmless; a deletion is reported until a heartbeat that carried it was answered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shoalfs.mds.messages import Heartbeat, HeartbeatReply, TargetReport
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import (
    DELETES_PENDING_MAX,
    INVENTORY_PER_HEARTBEAT_MAX,
    ORDERS_PER_HEARTBEAT_MAX,
)

_NO_TARGET: Final = TargetId(0)
_NO_CHUNK: Final = ChunkId(0)  # below all ids


class Condition(NamedTuple):
    """How a target is now. ``inventory``: its chunks after the member's cursor, as many as were asked for."""

    capacity_bytes: int
    used_bytes: int
    chunks: int
    failed: str
    inventory: tuple[ChunkId, ...]


@dataclass(eq=False)
class _Member:
    """``id`` is 0 while it is not registered. Invariant: ``ordered`` and ``deleted`` are disjoint."""

    id: TargetId = _NO_TARGET
    epoch: int = 0
    cursor: ChunkId = _NO_CHUNK  # the last chunk of the inventory that was sent and answered
    ordered: dict[ChunkId, None] = field(default_factory=dict)  # at most DELETES_PENDING_MAX, in their order
    deleted: dict[ChunkId, None] = field(default_factory=dict)  # carried out, not yet reported


class Membership:
    """Of the targets with these uuids. They share what one heartbeat may carry."""

    def __init__(self, node: str, uuids: Sequence[bytes]) -> None:
        self._node = node
        self._members = {uuid: _Member() for uuid in uuids}
        sharers = max(1, len(uuids))
        self._deleted_max = max(1, ORDERS_PER_HEARTBEAT_MAX // sharers)
        self.inventory_max = max(1, INVENTORY_PER_HEARTBEAT_MAX // sharers)

    def unregistered(self) -> list[bytes]:
        return [uuid for uuid, member in self._members.items() if not member.id]

    def registered(self, uuid: bytes, target: TargetId, epoch: int) -> None:
        self._members[uuid].id = target
        self._members[uuid].epoch = epoch

    def cursor(self, uuid: bytes) -> ChunkId:
        """The inventory of the next heartbeat begins after this chunk."""
        return self._members[uuid].cursor

    def heartbeat(self, conditions: dict[bytes, Condition]) -> Heartbeat:
        """What to say now. The answer goes to :meth:`answered`, with this; no answer: nothing has changed."""
        reports = [self._report(member, conditions[uuid]) for uuid, member in self._members.items() if member.id]
        return Heartbeat(self._node, tuple(reports))

    def _report(self, member: _Member, condition: Condition) -> TargetReport:
        return TargetReport(
            member.id,
            member.epoch,
            condition.capacity_bytes,
            condition.used_bytes,
            condition.chunks,
            condition.failed,
            tuple(chunk for chunk, _ in zip(member.deleted, range(self._deleted_max), strict=False)),
            condition.inventory,
        )

    def answered(self, sent: Heartbeat, reply: HeartbeatReply) -> None:
        """The service heard ``sent`` and answered this."""
        by_id = {member.id: member for member in self._members.values() if member.id}
        for report in sent.targets:
            member = by_id[report.target]
            for chunk in report.deleted:
                member.deleted.pop(chunk, None)
            whole = len(report.inventory) == self.inventory_max
            member.cursor = report.inventory[-1] if whole else _NO_CHUNK
        for orders in reply.orders:
            ordered = by_id.get(orders.target)
            if ordered is None:
                continue
            if not orders.known:
                ordered.id = _NO_TARGET
            for chunk in orders.delete:
                if chunk not in ordered.deleted and len(ordered.ordered) < DELETES_PENDING_MAX:
                    ordered.ordered[chunk] = None

    def to_delete(self, uuid: bytes) -> tuple[ChunkId, ...]:
        """Chunks to delete now, at most ORDERS_PER_HEARTBEAT_MAX; they stay ordered until :meth:`deleted`."""
        ordered = self._members[uuid].ordered
        return tuple(chunk for chunk, _ in zip(ordered, range(ORDERS_PER_HEARTBEAT_MAX), strict=False))

    def deleted(self, uuid: bytes, chunks: Iterable[ChunkId]) -> None:
        """These are gone for good."""
        member = self._members[uuid]
        for chunk in chunks:
            if chunk in member.ordered:
                del member.ordered[chunk]
                member.deleted[chunk] = None
