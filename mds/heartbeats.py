"""What the leader makes of a heartbeat, and what it answers: the orders for each target.

Nothing is changed here but the leader's memory; what has to survive is proposed by :mod:`~shoalfs.mds.duties`.
"""

from collections.abc import Callable

from shoalfs.mds import brake, cluster, reads
from shoalfs.mds import messages as m
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.txn import ReadTxn
from shoalfs.mds.upkeep import is_whole
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import ChunkId, PgId, TargetId, chunk_pg
from shoalfs.transport.limits import BAD_REPLICAS_MAX, COPIES_ORDERED_MAX, COPIES_PER_REPLY_MAX
from shoalfs.transport.method import Nothing


class Heartbeats:
    """Over the leader's memory. ``now_ms``: its clock."""

    def __init__(self, state: LeaderState, now_ms: Callable[[], int]) -> None:
        self._state = state
        self._now_ms = now_ms

    def heartbeat(self, txn: ReadTxn, request: m.Heartbeat) -> m.HeartbeatReply:
        index = self._state.map_index(txn)
        orders: list[m.TargetOrders] = []
        for report in request.targets:
            target = index.targets.get(report.target)
            if target is None or target.epoch != report.epoch:
                orders.append(m.TargetOrders(report.target, known=False))
                continue
            if len(report.inventory_hashes) not in (0, 16 * len(report.inventory)):
                raise BadMessage("an inventory has a hash of 16 bytes for each chunk")
            self._hear(txn, index, report)
            orders.append(self._orders(txn, index, report.target, COPIES_PER_REPLY_MAX // len(request.targets)))
        return m.HeartbeatReply(index.epoch, tuple(orders))

    def _hear(self, txn: ReadTxn, index: MapIndex, report: m.TargetReport) -> None:
        state, now_ms, target = self._state, self._now_ms(), report.target
        state.targets.report(report, now_ms)
        state.garbage.confirm(target, report.deleted)
        state.evictions.confirm(target, report.deleted)
        # What a failed target reports is right, but it can be told nothing.
        others = state.repairs.heard(txn, index, report, now_ms)
        classes = reads.classified(txn, others)
        state.evictions.consider(index, target, classes, now_ms)
        if index.targets[target].state is not m.TargetState.OUT and not brake.is_held(txn):
            state.strays.update(
                chunk
                for chunk, known in classes.items()
                if known is m.ChunkClass.UNKNOWN and index.holds(target, chunk_pg(chunk))
            )

    def _orders(self, txn: ReadTxn, index: MapIndex, target: TargetId, copies_max: int) -> m.TargetOrders:
        state, now_ms = self._state, self._now_ms()
        after, count = state.repairs.next_part(index, target)
        upkeep = cluster.load_upkeep(txn)

        def whole(group: PgId) -> bool:
            return is_whole(index, state.repairs, self.answers, group)

        delete: tuple[ChunkId, ...] = ()
        if not upkeep.deletions_held:
            delete = state.garbage.orders(target) or state.evictions.orders(txn, index, target, now_ms, whole)
        return m.TargetOrders(
            target,
            True,
            delete=delete,
            copy=state.repairs.orders(txn, index, target, now_ms, self.answers, min(copies_max, COPIES_ORDERED_MAX)),
            inventory_after=after,
            inventory_count=count,
            scrub=m.ScrubOrder(state.scrub_period_ms, upkeep.scrub_requested_ns or 0, state.scrub_bytes_per_s),
        )

    def answers(self, target: TargetId) -> bool:
        """Whether a target was heard of lately and is well."""
        return self._state.targets.answers(target, self._now_ms())

    def report_replicas(self, txn: ReadTxn, request: m.ReportReplicas) -> Nothing:
        """A client's word is taken for no more than a reason to look. Raises BadMessage."""
        if len(request.bad) > BAD_REPLICAS_MAX:
            raise BadMessage(f"at most {BAD_REPLICAS_MAX} replicas are reported at a time")
        index = self._state.map_index(txn)
        for bad in request.bad:
            self._state.repairs.suspect(txn, index, bad.target, ChunkId(bad.chunk), self._now_ms())
        return Nothing()

    # --- what people are told ----------------------------------------------------------------------------------------

    def usage(self, index: MapIndex) -> tuple[m.TargetUsage, ...]:
        now_ms = self._now_ms()
        return tuple(
            m.TargetUsage(t, u.capacity_bytes, u.used_bytes, u.chunks, now_ms - u.seen_ms, u.failed)
            for t in index.targets
            if (u := self._state.targets.usage(t)) is not None
        )

    def repair_status(self, index: MapIndex) -> m.RepairStatus:
        return self._state.repairs.status(index, self._now_ms(), self.answers)

    def scrubs(self, index: MapIndex) -> tuple[m.ScrubStatus, ...]:
        return tuple(
            m.ScrubStatus(t, u.scrub) for t in index.targets if (u := self._state.targets.usage(t)) is not None
        )
