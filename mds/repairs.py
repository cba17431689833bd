"""Which copies are missing, found by set difference, and who is told to fetch them from whom. Pure; leader memory.

A target reports its chunks part by part, in the order of their ids, which is the order of the rows that say which
chunks are in use. Each part is compared with those rows within the same range, so a chunk is missing or it is not,
whatever is stored or deleted meanwhile elsewhere. What is missing, and what is there with another hash than the
extents', is a *lack*. A sweep is one way through all parts.

Two rules make it safe to rely on what is found:

* A sweep counts for a group only if it began after the target knew the map with the group's present members: what was
  seen before may have been deleted since, by an order given when the target was no member.
* A target has *all* of a group when such a sweep is over and no lack of the group is left. A lack ends only when the
  target says that it stored the chunk durably with the hash in the order, or when no file uses the chunk any more.

Nothing here is lost for good with the leader: the next one sweeps again.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shoalfs.mds import keys, records
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import (
    CopyFailed,
    CopyOrder,
    CopySource,
    FragmentSource,
    PlacementGroup,
    Rebuild,
    RepairStatus,
    TargetReport,
    TargetState,
)
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, TargetFull
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import CHUNK_SEQUENCE_BITS, ChunkId, PgId, TargetId, chunk_pg
from shoalfs.transport.limits import (
    COPIES_ORDERED_MAX,
    COPY_RETRY_MS_MAX,
    COPY_RETRY_MS_MIN,
    COPY_SOURCES_MAX,
    COPY_SOURCES_PER_ORDER,
    INVENTORY_HURRIED_MAX,
    INVENTORY_PER_HEARTBEAT_MAX,
    INVENTORY_ROWS_MAX,
    LACK_CERTAIN_MS,
    LACKS_PER_TARGET_MAX,
)

_HASH_BYTES = 16
_NEVER = -1
_SPEED_WINDOW_MS = 30_000

Answers = Callable[[TargetId], bool]
"""Whether a target was heard of lately and is well."""


@dataclass(slots=True)
class Lack:
    """A chunk that a target should have. ``deep``: it may be there and be damaged, else it was not in the inventory, as
    chunks are not that were stored while this was on its way. ``ordered``: the target was told to fetch it and has not
    answered yet."""

    chunk_bytes: int
    chunk_hash: bytes
    deep: bool
    since_ms: int
    ordered: bool = False
    failures: int = 0
    no_room: bool = False  # for which the last one failed
    not_before_ms: int = 0

    def is_certain(self, now_ms: int) -> bool:
        return self.deep or now_ms - self.since_ms >= LACK_CERTAIN_MS


@dataclass
class _View:
    """What is known of a target in one of its lives. Invariant: ``lacking`` counts ``lacks`` by group."""

    target_epoch: int
    expected: int = 0  # the next part of the inventory begins after this id
    began_epoch: int = _NEVER  # of the map, as the target knew it when the sweep under way began
    swept_epoch: int = _NEVER  # the same of the last sweep that came to its end
    lacks: dict[ChunkId, Lack] = field(default_factory=dict)  # at most LACKS_PER_TARGET_MAX
    lacking: Counter[PgId] = field(default_factory=Counter)
    sweep_bytes: Counter[PgId] = field(default_factory=Counter)
    room_bytes: float = 0.0  # what may be copied now; below 0 after a chunk that was larger
    room_ms: int = 0  # as of when
    full_at_bytes: int | None = None  # what it held when it had no room for a copy; None: it has, as far as is known

    def add(self, chunk: ChunkId, lack: Lack) -> None:
        if chunk not in self.lacks:
            self.lacks[chunk] = lack
            self.lacking[chunk_pg(chunk)] += 1

    def has_room_again(self, now_ms: int) -> None:
        """Something was deleted: what had no room is tried at once."""
        self.full_at_bytes = None
        for lack in self.lacks.values():
            if lack.no_room:
                lack.no_room, lack.not_before_ms = False, now_ms

    def drop(self, chunk: ChunkId) -> Lack | None:
        lack = self.lacks.pop(chunk, None)
        if lack is not None:
            self.lacking[chunk_pg(chunk)] -= 1
        return lack


class Repairs:
    """``bytes_per_s``: how much may be read from or written to one target for copies."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._views: dict[TargetId, _View] = {}
        self._recent: deque[tuple[int, int]] = deque()  # (time, bytes) of copies in the last _SPEED_WINDOW_MS
        self.group_bytes: dict[PgId, int] = {}  # of the chunks in use, as of the last sweep of a member
        self.copied_chunks = 0
        self.copied_bytes = 0

    def clear(self) -> None:
        """Leadership begins: nothing is known."""
        self._views.clear()
        self._recent.clear()
        self.group_bytes.clear()
        self.copied_chunks = self.copied_bytes = 0

    # --- what targets and clients say --------------------------------------------------------------------------------

    def heard(self, txn: ReadTxn, index: MapIndex, report: TargetReport, now_ms: int) -> list[ChunkId]:
        """Take in a report of a target in its present life. Returns those chunks of its inventory that no group of
        which it is a member has in use: what they are is for others to say."""
        view = self._views.get(report.target)
        if view is None or view.target_epoch != report.epoch:
            view = self._views[report.target] = _View(report.epoch, room_ms=now_ms)
        for chunk in report.copied:
            lack = view.drop(chunk)
            if lack is not None:
                self._note_copy(lack.chunk_bytes, now_ms)
        if view.full_at_bytes is not None and report.used_bytes < view.full_at_bytes:
            view.has_room_again(now_ms)
        for failed in report.not_copied:
            self._note_failure(txn, index, view, failed, now_ms)
            if not failed.source and failed.code == TargetFull.code:
                view.full_at_bytes = report.used_bytes
        for chunk in report.damaged:
            self.suspect(txn, index, report.target, chunk, now_ms)
        if report.inventory_through <= report.inventory_after or report.inventory_after != view.expected:
            return []  # none, or one that was taken in already, or one that follows what a former leader asked for
        if report.inventory_after == 0:
            view.began_epoch = report.map_epoch
            view.sweep_bytes.clear()
        through, in_use = self._compare(txn, index, view, report, now_ms)
        view.expected = through
        if through >= keys.U64_MAX:
            view.expected, view.swept_epoch = 0, view.began_epoch
            self.group_bytes.update((group, view.sweep_bytes[group]) for group in index.member_of(report.target))
        return [chunk for chunk in report.inventory if chunk <= through and chunk not in in_use]

    def _compare(
        self, txn: ReadTxn, index: MapIndex, view: _View, report: TargetReport, now_ms: int
    ) -> tuple[int, set[ChunkId]]:
        """Find what is lacking in one part of an inventory. Returns up to where it was compared, which may be less than
        it covers, and the chunks in use in the target's groups there."""
        hashes = report.inventory_hashes
        here = {chunk: hashes[at * _HASH_BYTES : (at + 1) * _HASH_BYTES] for at, chunk in enumerate(report.inventory)}
        in_use: set[ChunkId] = set()
        # While a target is compared for the first time, what its inventory lacks was hardly stored just now.
        since_ms = now_ms - LACK_CERTAIN_MS if view.swept_epoch < index.needed_epoch(report.target) else now_ms
        before = report.inventory_after
        for chunk, use in _chunks_in_use(txn, index, report):
            if len(in_use) >= INVENTORY_ROWS_MAX or len(view.lacks) >= LACKS_PER_TARGET_MAX:
                return before, in_use
            in_use.add(chunk)
            piece_bytes, piece_hash = index.piece(report.target, chunk, use)
            view.sweep_bytes[chunk_pg(chunk)] += piece_bytes
            if piece_hash and here.get(chunk) != piece_hash:
                view.add(chunk, Lack(piece_bytes, piece_hash, chunk in here, since_ms))
            elif (lack := view.lacks.get(chunk)) is not None and not lack.deep and not lack.ordered:
                view.drop(chunk)  # it was stored while the inventory before was on its way
            before = chunk
        return report.inventory_through, in_use

    def suspect(self, txn: ReadTxn, index: MapIndex, target: TargetId, chunk: ChunkId, now_ms: int) -> None:
        """Somebody says that a target has no good copy of a chunk: it will look for itself. Ignored if it should not
        have one, or if there are too many to remember."""
        view = self._views.get(target)
        group = index.groups.get(chunk_pg(chunk)) if 0 < chunk <= keys.U64_MAX else None
        if view is None or group is None or target not in group.targets or len(view.lacks) >= LACKS_PER_TARGET_MAX:
            return
        use = records.CHUNK_USE.load(txn, keys.chunk_use(chunk))
        if use is not None and use.chunk_hash:
            view.add(chunk, Lack(*index.piece(target, chunk, use), True, now_ms))

    def _note_copy(self, copied_bytes: int, now_ms: int) -> None:
        self.copied_chunks += 1
        self.copied_bytes += copied_bytes
        self._recent.append((now_ms, copied_bytes))

    def _note_failure(self, txn: ReadTxn, index: MapIndex, view: _View, failed: CopyFailed, now_ms: int) -> None:
        lack = view.lacks.get(failed.chunk)
        if lack is None:
            return
        if failed.source and failed.code in (ChunkMissing.code, ChunkCorrupt.code):
            self.suspect(txn, index, failed.source, failed.chunk, now_ms)
        if lack.ordered:
            lack.ordered = False
            lack.no_room = not failed.source and failed.code == TargetFull.code
            lack.not_before_ms = now_ms + min(COPY_RETRY_MS_MIN << min(lack.failures, 8), COPY_RETRY_MS_MAX)
            lack.failures += 1

    # --- what targets are told ---------------------------------------------------------------------------------------

    def next_part(self, index: MapIndex, target: TargetId) -> tuple[int, int]:
        """Where the target's next part of the inventory begins, and how many chunks it may hold."""
        view = self._views.get(target)
        if view is None:
            return 0, INVENTORY_HURRIED_MAX
        hurried = view.swept_epoch < index.needed_epoch(target) or view.swept_epoch == _NEVER
        return view.expected, INVENTORY_HURRIED_MAX if hurried else INVENTORY_PER_HEARTBEAT_MAX

    def orders(
        self,
        txn: ReadTxn,
        index: MapIndex,
        target: TargetId,
        now_ms: int,
        answers: Answers,
        count: int = COPIES_ORDERED_MAX,
    ) -> tuple[CopyOrder, ...]:
        """What the target is to fetch now: what it was told before and has not answered, and more, those with the
        fewest good copies first, as far as the limits allow."""
        view = self._views.get(target)
        if view is None or not view.lacks:
            return ()
        for chunk in [chunk for chunk in view.lacks if not index.is_member(target, chunk_pg(chunk))]:
            view.drop(chunk)  # its group has moved, or its pool was removed
        wanted = [chunk for chunk, lack in view.lacks.items() if lack.ordered]
        if len(wanted) < count and self._room(view, now_ms) > 0:
            wanted += self._choose(index, view, count - len(wanted), now_ms, answers)
        orders: list[CopyOrder] = []
        room = count * COPY_SOURCES_PER_ORDER
        for chunk in wanted:
            if room <= 0:
                break  # they stay ordered, and are told of when others are done
            use = records.CHUNK_USE.load(txn, keys.chunk_use(chunk))
            if use is None:
                view.drop(chunk)
                continue
            good = [source for source in self.good_copies(index, chunk, answers) if source != target]
            orders.append(_order(index, target, chunk, use, view.lacks[chunk], good))
            room -= len(good)
        return tuple(orders)

    def _choose(self, index: MapIndex, view: _View, count: int, now_ms: int, answers: Answers) -> list[ChunkId]:
        due = [
            chunk
            for chunk, lack in view.lacks.items()
            if not lack.ordered and lack.not_before_ms <= now_ms and lack.is_certain(now_ms)
        ]
        copies = {chunk: self.good_copies(index, chunk, answers) for chunk in due}
        # A chunk without any good copy comes last: it can only be found to be here after all.
        due.sort(key=lambda chunk: index.spare(chunk, copies[chunk]) or len(index.map.targets))
        chosen: list[ChunkId] = []
        for chunk in due:
            if len(chosen) >= count or view.room_bytes <= 0:
                break
            # All that are read from: one, or as many fragments as it takes to rebuild one.
            asked = copies[chunk][: index.pool_of(chunk_pg(chunk)).data]
            sources = [self._views[source] for source in asked if source in self._views]
            if any(self._room(source, now_ms) <= 0 for source in sources):
                continue
            lack = view.lacks[chunk]
            lack.ordered = True
            for busy in (view, *sources):
                busy.room_bytes -= lack.chunk_bytes
            chosen.append(chunk)
        return chosen

    def _room(self, view: _View, now_ms: int) -> float:
        """Bring up to date how many bytes may be copied to or from a target."""
        gained = (now_ms - view.room_ms) * self._bytes_per_s / 1000
        view.room_bytes = min(view.room_bytes + gained, float(self._bytes_per_s))
        view.room_ms = now_ms
        return view.room_bytes

    def good_copies(self, index: MapIndex, chunk: ChunkId, answers: Answers) -> list[TargetId]:
        """Who has the chunk, or its fragment of it, intact, as far as is known, and can be asked; the best source
        first."""
        group = index.groups[chunk_pg(chunk)]
        found = [
            t
            for t in group.holders
            if t in index.targets and answers(t) and (t not in self._views or chunk not in self._views[t].lacks)
        ]
        return sorted(found, key=lambda t: index.targets[t].state is TargetState.SYNCING)

    # --- what is known -----------------------------------------------------------------------------------------------

    def has_all(self, group: PlacementGroup, target: TargetId) -> bool:
        """The target was seen to have every chunk of the group since the group has its present members."""
        view = self._views.get(target)
        return view is not None and view.swept_epoch >= group.epoch and not view.lacking[group.id]

    def is_in_sync(self, index: MapIndex, target: TargetId) -> bool:
        """The target has all of all its groups, as seen in its present life."""
        view = self._views.get(target)
        if view is None or view.swept_epoch == _NEVER or view.target_epoch != index.targets[target].epoch:
            return False
        return all(self.has_all(index.groups[group], target) for group in index.member_of(target))

    def status(self, index: MapIndex, now_ms: int, answers: Answers) -> RepairStatus:
        known = [
            (target, chunk, lack)
            for target, view in self._views.items()
            if target in index.targets
            for chunk, lack in view.lacks.items()
            # What it lacked when others took its place is theirs to have.
            if index.is_member(target, chunk_pg(chunk)) and lack.is_certain(now_ms)
        ]
        # What a target lacks that does not answer waits for it, or for others to take its place.
        lacks = {(target, chunk): lack for target, chunk, lack in known if answers(target)}
        spare = {
            chunk: index.spare(chunk, self.good_copies(index, chunk, answers))
            for chunk in dict.fromkeys(chunk for _, chunk, _ in known)
        }
        copies = Counter(min(2, left) for left in spare.values())
        while self._recent and self._recent[0][0] <= now_ms - _SPEED_WINDOW_MS:
            self._recent.popleft()
        since_ms = now_ms - self._recent[0][0] if self._recent else 0
        bytes_per_s = sum(size for _, size in self._recent) * 1000 // max(1_000, since_ms)
        missing_bytes = sum(lack.chunk_bytes for lack in lacks.values())
        checked = [self._checked(index, target) for target in index.targets if index.member_of(target)]
        full = {
            target
            for target, view in self._views.items()
            if target in index.targets and any(lack.no_room for lack in view.lacks.values())
        }
        return RepairStatus(
            missing_chunks=len(lacks),
            missing_bytes=missing_bytes,
            last_copies=copies[1],
            lost_chunks=copies[0],
            groups_moving=len(index.moving),
            targets_syncing=sum(t.state is TargetState.SYNCING for t in index.map.targets),
            copied_chunks=self.copied_chunks,
            copied_bytes=self.copied_bytes,
            bytes_per_s=bytes_per_s,
            eta_s=0 if not lacks else missing_bytes // bytes_per_s + 1 if bytes_per_s else None,
            checked_percent=int(100 * sum(checked) / len(checked)) if checked else 100,
            full_targets=tuple(sorted(full)),
            moving_chunks=sum(spare[chunk] > index.pool_of(chunk_pg(chunk)).parity for _, chunk in lacks),
        )

    def _checked(self, index: MapIndex, target: TargetId) -> float:
        """How much of the target's groups was compared since they have their present members, from 0 to 1."""
        if index.targets[target].state is TargetState.DOWN:
            return 1.0  # there is nothing to wait for
        view = self._views.get(target)
        if view is None:
            return 0.0
        if view.swept_epoch >= index.needed_epoch(target):
            return 1.0
        groups = index.member_of(target)
        return sum(group < view.expected >> CHUNK_SEQUENCE_BITS for group in groups) / len(groups)


def _order(
    index: MapIndex, target: TargetId, chunk: ChunkId, use: records.ChunkUse, lack: Lack, good: list[TargetId]
) -> CopyOrder:
    """What the target is told about a chunk of which ``good`` have what they should."""
    piece = index.piece(target, chunk, use)
    exact = [source for source in good if index.piece(source, chunk, use) == piece]
    # What those who are leaving hold is not compared, so any of them may be the only one: after a failure others are
    # named.
    first = lack.failures * COPY_SOURCES_MAX % max(1, len(exact))
    named = [*exact[first:], *exact[:first]][:COPY_SOURCES_MAX]
    asked = tuple(CopySource(source, index.targets[source].address) for source in named)
    fragment = None
    if use.fragments:
        pool, place = index.pool_of(chunk_pg(chunk)), index.groups[chunk_pg(chunk)].place(target)
        fragment = Fragment(place, pool.data, pool.parity, use.chunk_bytes, use.fragments)
    return CopyOrder(chunk, *piece, asked, lack.deep, _rebuild(index, target, chunk, use, good), fragment)


def _rebuild(
    index: MapIndex, target: TargetId, chunk: ChunkId, use: records.ChunkUse, good: list[TargetId]
) -> Rebuild | None:
    if not use.fragments:
        return None
    group, pool = index.groups[chunk_pg(chunk)], index.pool_of(chunk_pg(chunk))
    sources = tuple(
        FragmentSource(group.place(source), source, index.targets[source].address, index.piece(source, chunk, use)[1])
        for source in good
    )
    return Rebuild(group.place(target), pool.data, pool.parity, sources)


def _chunks_in_use(txn: ReadTxn, index: MapIndex, report: TargetReport) -> Iterator[tuple[ChunkId, records.ChunkUse]]:
    """The chunks that files use, of the target's groups, within the range of the report's inventory, in rising
    order."""
    for group in index.member_of(report.target):
        first = max(group << CHUNK_SEQUENCE_BITS, report.inventory_after + 1)
        last = min((group + 1 << CHUNK_SEQUENCE_BITS) - 1, report.inventory_through)
        if first > last:
            continue
        end = keys.chunk_use(ChunkId(last + 1)) if last < keys.U64_MAX else keys.all_of(b"K")[1]
        for key, value in txn.range(keys.chunk_use(ChunkId(first)), end):
            yield ChunkId(keys.first_field(key)), records.CHUNK_USE.decode(key, value)
