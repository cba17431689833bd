"""What the leader hears from chunkservers and what it tells them: usage, silence, and chunks to delete. Pure.

All of this is leader memory, rebuilt from heartbeats by a new leader. What must survive (target states and epochs,
the list of garbage chunks) is replicated state, and changes only through the log.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shoalfs.mds.messages import ClusterMap, ScrubReport, TargetReport, TargetState
from shoalfs.transport.ids import ChunkId, TargetId, chunk_pg
from shoalfs.transport.limits import ORDERS_PER_HEARTBEAT_MAX, TARGET_DOWN_MS

GARBAGE_WINDOW_MAX = 10_000  # chunks ordered and not yet confirmed by all their targets


@dataclass(slots=True)
class Usage:
    capacity_bytes: int
    used_bytes: int
    chunks: int
    seen_ms: int
    failed: str
    scrub: ScrubReport


class TargetTable:
    """Last report of each target."""

    def __init__(self) -> None:
        self._usage: dict[TargetId, Usage] = {}
        self._since_ms = 0

    def lead(self, now_ms: int) -> None:
        """Leadership begins: nobody is silent yet."""
        self._usage.clear()
        self._since_ms = now_ms

    def led_ms(self, now_ms: int) -> int:
        """How long ago this leadership began."""
        return now_ms - self._since_ms

    def report(self, report: TargetReport, now_ms: int) -> None:
        self._usage[report.target] = Usage(
            report.capacity_bytes, report.used_bytes, report.chunks, now_ms, report.failed, report.scrub
        )

    def usage(self, target: TargetId) -> Usage | None:
        return self._usage.get(target)

    def answers(self, target: TargetId, now_ms: int) -> bool:
        """It was heard of lately, and is well."""
        usage = self._usage.get(target)
        return usage is not None and not usage.failed and now_ms - usage.seen_ms <= TARGET_DOWN_MS

    def lost(self, map_: ClusterMap, now_ms: int) -> list[TargetId]:
        """Targets that count as up but are silent or report themselves failed: to be declared down."""
        gone: list[TargetId] = []
        for target in map_.targets:
            if target.state is TargetState.DOWN or target.state is TargetState.OUT:
                continue
            usage = self._usage.get(target.id)
            seen_ms = usage.seen_ms if usage else self._since_ms
            if now_ms - seen_ms > TARGET_DOWN_MS or (usage is not None and usage.failed):
                gone.append(target.id)
        return gone


class GarbageWindow:
    """Chunks whose deletion was ordered, with the targets that have not confirmed it yet."""

    def __init__(self) -> None:
        self._waiting: dict[ChunkId, set[TargetId]] = {}
        self._by_target: dict[TargetId, dict[ChunkId, None]] = {}
        self._done: list[ChunkId] = []

    def clear(self) -> None:
        self._waiting.clear()
        self._by_target.clear()
        self._done.clear()

    def room(self) -> int:
        return GARBAGE_WINDOW_MAX - len(self._waiting) - len(self._done)

    def knows(self, chunk: ChunkId) -> bool:
        return chunk in self._waiting

    def add(self, chunks: Iterable[ChunkId], map_: ClusterMap) -> None:
        """Order the deletion of garbage chunks. A target that is OUT holds nothing any more and is not waited for;
        one that is down is: its copy must not come back as an unknown chunk."""
        groups = {group.id: group.holders for group in map_.groups}
        gone = {target.id for target in map_.targets if target.state is TargetState.OUT}
        for chunk in chunks:
            if chunk in self._waiting:
                continue
            holders = {t for t in groups.get(chunk_pg(chunk), ()) if t not in gone}
            if not holders:
                self._done.append(chunk)
                continue
            self._waiting[chunk] = holders
            for target in holders:
                self._by_target.setdefault(target, {})[chunk] = None

    def orders(self, target: TargetId) -> tuple[ChunkId, ...]:
        """What the target should delete now; repeated until it confirms."""
        pending = self._by_target.get(target, {})
        return tuple(chunk for chunk, _ in zip(pending, range(ORDERS_PER_HEARTBEAT_MAX), strict=False))

    def confirm(self, target: TargetId, deleted: Iterable[ChunkId]) -> None:
        pending = self._by_target.get(target, {})
        for chunk in deleted:
            if chunk in pending:
                del pending[chunk]
                holders = self._waiting[chunk]
                holders.discard(target)
                if not holders:
                    del self._waiting[chunk]
                    self._done.append(chunk)

    def let_go(self, map_: ClusterMap) -> None:
        """Targets that are out, or not in the map any more, are waited for no longer."""
        present = {target.id for target in map_.targets if target.state is not TargetState.OUT}
        for target in [target for target in self._by_target if target not in present]:
            self.confirm(target, list(self._by_target[target]))
            del self._by_target[target]

    def take_done(self, count: int) -> tuple[ChunkId, ...]:
        """Chunks that all their targets have deleted: to be dropped from the replicated list."""
        done, self._done = self._done[:count], self._done[count:]
        return tuple(done)
