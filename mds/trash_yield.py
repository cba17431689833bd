"""Removed files that go before their time, because a pool is nearly full. Pure.

A filesystem that refuses writes while it holds removed files surprises everybody; so what is kept is kept as long as
there is room (docs/decisions/0022-the-trash-yields.md). What is let go is gone a grace later, so it begins some percent
before writes are refused, and counts what waits for its deletion already as gone.

It never deletes anything itself, and lets nothing go while deletion is held. Each step makes so little garbage that it
cannot pull the brake: a file of more chunks than that stays, for operators to purge.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shoalfs.mds import brake, keys, reads, records, trash
from shoalfs.mds import messages as m
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.targets import TargetTable, Usage
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import InodeId, TargetId
from shoalfs.transport.limits import TRASH_LIST_MAX, TRASH_YIELDED_PERCENT, TRASH_YIELDS_PERCENT

_LOOKED_AT_MAX = 4 * TRASH_LIST_MAX  # removed files in one step, those without chunks among them


@dataclass(frozen=True)
class Step:
    """What is let go now. ``after``: where the next step goes on; (0, 0): at the oldest."""

    inos: tuple[InodeId, ...]
    freed_bytes: int
    after: tuple[int, int]


def nearly_full(index: MapIndex, targets: TargetTable) -> tuple[m.NearlyFull, ...]:
    """Pools in which no group is left whose targets all have room, as far as targets have reported."""
    fill = {t: _percent(usage) for t, usage in _usages(index, targets)}
    found: list[m.NearlyFull] = []
    for pool in index.map.pools if any(percent >= TRASH_YIELDS_PERCENT for percent in fill.values()) else ():
        fullest = [
            max((fill.get(target, 0) for target in group.targets), default=0)
            for group in index.map.groups
            if group.pool == pool.id
        ]
        if fullest and min(fullest) >= TRASH_YIELDS_PERCENT:
            found.append(m.NearlyFull(pool.id, min(fullest)))
    return tuple(found)


def next_step(txn: ReadTxn, index: MapIndex, targets: TargetTable, after: tuple[int, int]) -> Step:
    """The oldest removed files with chunks, from ``after`` on, so that the targets will be filled to
    TRASH_YIELDED_PERCENT. Only for a pool that is nearly full, and while deletion is not held."""
    usages = [usage for _, usage in _usages(index, targets)]
    wanted = sum(max(0, u.used_bytes - u.capacity_bytes * TRASH_YIELDED_PERCENT // 100) for u in usages)
    copies = sum(usage.chunks for usage in usages)
    groups = len(index.map.groups)
    members = sum(len(group.targets) for group in index.map.groups)
    # Each chunk that waits is taken for one of the mean size: how large it is stands nowhere. What is left of pieces
    # that were merged is small and very much, and does not count.
    counts = reads.counts(txn)
    waiting = (counts.garbage_chunks - counts.merged_garbage) * members // max(1, groups)
    wanted -= waiting * sum(usage.used_bytes for usage in usages) // max(1, copies)
    chunks = brake.room(txn, index, targets) // 2
    inos: list[InodeId] = []
    freed = looked_at = 0
    for looked_at, (place, inode) in enumerate(_from(txn, after), start=1):
        if wanted <= freed or len(inos) == TRASH_LIST_MAX or looked_at > _LOOKED_AT_MAX:
            break
        after = place
        if inode.extents and inode.extents <= chunks:
            pool = index.pools[inode.pool]
            inos.append(inode.ino)
            freed += inode.used_bytes * pool.replicas // pool.data
            chunks -= inode.extents
    else:
        after = 0, 0  # all were looked at: those that had no room before the brake may have it now
    return Step(tuple(inos), freed, after)


def _usages(index: MapIndex, targets: TargetTable) -> Iterator[tuple[TargetId, Usage]]:
    for target, known in index.targets.items():
        usage = targets.usage(target)
        if usage is not None and known.state is not m.TargetState.OUT:
            yield target, usage


def _percent(usage: Usage) -> int:
    """Also one that can hold nothing is full."""
    return usage.used_bytes * 100 // usage.capacity_bytes if usage.capacity_bytes else 100


def _from(txn: ReadTxn, after: tuple[int, int]) -> Iterator[tuple[tuple[int, int], m.Inode]]:
    """What is in the trash behind ``after``, (time, inode), the oldest first."""
    first = keys.trash_by_time(after[0], InodeId(after[1])) + b"\0"
    for key, _ in txn.range(first, keys.all_of(b"q")[1]):
        place = keys.first_field(key), keys.second_field(key)
        inode = records.INODE.load(txn, keys.inode(InodeId(place[1])))
        if inode is not None and trash.row_of(txn, inode.ino) is not None:
            yield place, inode


class Tally:
    """How many bytes the trash holds, added up a few files at a time: no record says it, because a removed file that
    somebody has open goes on growing."""

    def __init__(self) -> None:
        self.total_bytes: int | None = 0
        self._after = 0, 0
        self._sum_bytes = 0
        self._counted_files = 0  # as of the last total
        self._due_ms = 0

    def look(self, txn: ReadTxn, now_ms: int, count: int, rest_ms: int) -> None:
        """Look at up to ``count`` more. A total is taken again when the number of files has changed, and at the latest
        ``rest_ms`` after the last one."""
        trashed = reads.counts(txn).trashed
        if self._after == (0, 0) and trashed == self._counted_files and now_ms < self._due_ms:
            return
        if not self._counted_files and trashed:
            self.total_bytes = None
        seen = 0
        for seen, (place, inode) in enumerate(_from(txn, self._after), start=1):
            if seen > count:
                return
            self._after = place
            self._sum_bytes += inode.used_bytes
        self.total_bytes, self._counted_files, self._due_ms = self._sum_bytes, trashed, now_ms + rest_ms
        self._after, self._sum_bytes = (0, 0), 0
