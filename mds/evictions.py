"""Copies in a place where they do not belong any more, and when they may be deleted. Pure; leader memory.

A target that reports a chunk of a group of which it is neither a member nor leaving holds what a move left behind, or
what a writer with an old map put there. It is told to delete it when it was seen there for the grace time, and, if
files use the chunk, only while every member of its group is up and was seen to have every chunk of the group. So the
last copy is never deleted, whatever was lost since the move. A chunk that a live session may still commit is left
alone.
"""

from collections.abc import Callable, Iterable

from shoalfs.mds import reads
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import ChunkClass
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, PgId, TargetId, chunk_pg
from shoalfs.transport.limits import EVICTIONS_PER_TARGET_MAX, ORDERS_PER_HEARTBEAT_MAX

_GOES: dict[ChunkClass, bool] = {ChunkClass.LINKED: False, ChunkClass.GARBAGE: True, ChunkClass.UNKNOWN: True}
"""Chunks that may be deleted where they do not belong; True: whatever else there is of them."""


class Evictions:
    def __init__(self, grace_ms: int) -> None:
        self._grace_ms = grace_ms
        self._seen: dict[TargetId, dict[ChunkId, int]] = {}  # since when; at most EVICTIONS_PER_TARGET_MAX each

    def clear(self) -> None:
        self._seen.clear()

    def consider(self, index: MapIndex, target: TargetId, classes: dict[ChunkId, ChunkClass], now_ms: int) -> None:
        """Note those of the chunks that a target reported that are misplaced there."""
        seen = self._seen.setdefault(target, {})
        for chunk, known in classes.items():
            misplaced = known in _GOES and not index.holds(target, chunk_pg(chunk))
            if misplaced and len(seen) < EVICTIONS_PER_TARGET_MAX:
                seen.setdefault(chunk, now_ms)

    def orders(
        self, txn: ReadTxn, index: MapIndex, target: TargetId, now_ms: int, is_whole: Callable[[PgId], bool]
    ) -> tuple[ChunkId, ...]:
        """What the target is to delete now; repeated until it says that it did. ``is_whole``: every member of the group
        is up and has all of it."""
        seen = self._seen.get(target, {})
        due = [chunk for chunk, since_ms in seen.items() if now_ms - since_ms >= self._grace_ms]
        goes = []
        for chunk, known in reads.classified(txn, due[:ORDERS_PER_HEARTBEAT_MAX]).items():
            if known not in _GOES or index.holds(target, chunk_pg(chunk)):
                del seen[chunk]  # it is of use after all
            elif _GOES[known] or is_whole(chunk_pg(chunk)):
                goes.append(chunk)
        return tuple(goes)

    def confirm(self, target: TargetId, deleted: Iterable[ChunkId]) -> None:
        seen = self._seen.get(target, {})
        for chunk in deleted:
            seen.pop(chunk, None)

    def waiting(self, target: TargetId) -> int:
        """How many chunks on the target wait for their deletion."""
        return len(self._seen.get(target, {}))
