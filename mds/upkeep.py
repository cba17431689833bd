"""What should change in the cluster map now, and why. Pure: the leader proposes it, applying it checks it again.

In this order: targets that were away for too long are out; those that have caught up are up; groups all of whose
members have everything let go of who is leaving; members that are out or draining are replaced; and, unless an
operator paused it, copies that are too close together are moved apart and full targets relieved.

Every move is: enter the new member (it takes new chunks, and copies the others), see that every member has every chunk,
let the old one go, delete there after the grace. At no time is a chunk read from fewer places than before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shoalfs.mds import messages as m
from shoalfs.mds import placement
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import TargetState
from shoalfs.mds.repairs import Answers, Repairs
from shoalfs.transport.ids import PgId, TargetId
from shoalfs.transport.limits import GROUPS_MOVING_MAX, GROUPS_REBALANCING_MAX, TARGET_RETURN_MS
from shoalfs.transport.method import Message

CHANGES_PER_ROUND_MAX = 256
UNEVEN_PERCENT = 5  # of the capacity: targets whose fill differs by less are left alone
_PAIRS_MAX = 256  # of targets that are looked at for one move
_IN_SERVICE = placement.TAKES_NEW_DATA
_HOLDING = _IN_SERVICE | {TargetState.DRAINING}

Change = tuple[m.Op, Message, str]
"""What to propose, and a sentence for the log."""


@dataclass(frozen=True)
class View:
    """What is decided from. ``led_ms``: how long this leader has led."""

    index: MapIndex
    repairs: Repairs
    answers: Answers
    now_ns: int
    out_ms: int
    rebalance: bool
    led_ms: int


def changes(view: View) -> list[Change]:
    """All that is due, at most CHANGES_PER_ROUND_MAX. Changes of targets come alone: what follows from them is decided
    from the map with them."""
    found = [*_out(view), *_caught_up(view)]
    if not found:
        found = [*_settled(view), *_replaced(view)]
    if not found and view.rebalance:
        found = list(_rebalanced(view))
    return found[:CHANGES_PER_ROUND_MAX]


def is_whole(index: MapIndex, repairs: Repairs, answers: Answers, group: PgId) -> bool:
    """Every member of the group is up, answers, and was seen to have all of it."""
    found = index.groups.get(group)
    return found is not None and all(
        index.targets[target].state is TargetState.UP and answers(target) and repairs.has_all(found, target)
        for target in found.targets
    )


# --- targets --------------------------------------------------------------------------------------------------------


def absences(view: View) -> tuple[m.Absence, ...]:
    """Every target that is down, and when others take its place. Nobody does while more than half of all are down: then
    it is the network, or whoever started us, and moving everything would not help; nor if nobody can in any group: it
    would have to be resumed for nothing. A pool that is too wide for those who are left holds up no other."""
    present = [t for t in view.index.map.targets if t.state is not TargetState.OUT]
    down = [t for t in present if t.state is TargetState.DOWN]
    usable = [t.id for t in present if t.state in _IN_SERVICE]
    found: list[m.Absence] = []
    for target in down:
        kept = ""
        if len(down) * 2 > len(present):
            kept = f"{len(down)} of {len(present)} targets are down, which may be the network"
        elif not _replaceable(view.index, target.id, usable):
            kept = "all that are up are in the same groups already: add a target"
        # Metadata that were rebuilt know of no time: these targets have not been started since.
        away_ms = max(0, view.now_ns - target.since_ns) // 1_000_000 if target.since_ns else view.led_ms
        out_in_ms = max(view.out_ms - away_ms, min(view.out_ms, TARGET_RETURN_MS) - view.led_ms, 0)
        found.append(m.Absence(target.id, away_ms, out_in_ms, kept))
    return tuple(found)


def _replaceable(index: MapIndex, target: TargetId, usable: Sequence[TargetId]) -> bool:
    """Another could take its place in at least one of its groups, if there are any."""
    groups = [index.groups[number] for number in index.member_of(target)]
    return not groups or any(
        placement.may_take(group, group.place(target), other)
        for group in groups
        for other in usable
        if other not in group.targets
    )


def _out(view: View) -> Iterator[Change]:
    """Targets that have been down for ``out_ms``."""
    for absence in absences(view):
        if not absence.kept and not absence.replaced_in_ms:
            node = view.index.targets[absence.target].node
            away_s = absence.away_ms // 1000
            text = f"target {absence.target} on {node} was down for {away_s} s and is out: it is replaced"
            yield m.Op.SET_TARGET_STATE, m.SetTargetState(absence.target, TargetState.OUT), text


def _caught_up(view: View) -> Iterator[Change]:
    for target in view.index.map.targets:
        if target.state is TargetState.SYNCING and view.repairs.is_in_sync(view.index, target.id):
            text = f"target {target.id} on {target.node} has all that it should and is up"
            yield m.Op.SET_TARGET_STATE, m.SetTargetState(target.id, TargetState.UP), text


# --- groups ---------------------------------------------------------------------------------------------------------


def _settled(view: View) -> Iterator[Change]:
    for group in view.index.moving:
        kept = _needed(view, group)
        if kept != group.leaving:
            went = [target for target in group.leaving if target not in kept]
            text = f"group {group.id} has moved: {went} is needed no more"
            yield m.Op.SETTLE_GROUP, m.SettleGroup(group.id, group.epoch, kept), text


def _needed(view: View, group: m.PlacementGroup) -> tuple[TargetId, ...]:
    """Those who are leaving and may have what some member lacks: of replicas any member, of fragments the one that has
    the same place. That matters where a member is gone for good, and only who is leaving could replace it."""
    lacking = [
        place
        for place, target in enumerate(group.targets)
        if view.index.targets[target].state not in _HOLDING
        or not view.answers(target)
        or not view.repairs.has_all(group, target)
    ]
    if group.leaving_places:
        return tuple(target for target in group.leaving if group.place(target) in lacking)
    return group.leaving if lacking else ()


def _replaced(view: View) -> Iterator[Change]:
    """Groups with members that are out, or down and not wanted back, come first and all at once, since a copy is
    missing; those with members that are only draining follow a few at a time."""
    map_ = view.index.map
    gone = {t.id for t in map_.targets if t.leaves and t.state is not TargetState.DRAINING}
    draining = {t.id for t in map_.targets if t.state is TargetState.DRAINING}
    if not gone and not draining:
        return
    counts = placement.memberships(map_.groups)
    moving = len(view.index.moving)
    for group in sorted(map_.groups, key=lambda group: not gone.intersection(group.targets)):
        urgent = gone.intersection(group.targets)
        replaced = gone | draining if urgent or (not group.leaving and moving < GROUPS_MOVING_MAX) else set()
        members = placement.with_replacements(map_, group, replaced, counts)
        if members != group.targets:
            moving += not group.leaving
            counts.update(members)
            counts.subtract(group.targets)
            is_out = any(view.index.targets[target].state is TargetState.OUT for target in urgent)
            yield _change(group, members, "is out" if is_out else "is draining")


def _rebalanced(view: View) -> Iterator[Change]:
    """Nothing else is moving: copies that share a node or a rack although they need not, then what evens out the
    fill."""
    map_ = view.index.map
    if view.index.moving:
        return
    counts = placement.memberships(map_.groups)
    moved = 0
    for group in map_.groups:
        close = placement.too_close(map_, group)
        if close is None:
            continue
        members = placement.with_replacements(map_, group, {close}, counts)
        if members != group.targets and moved < GROUPS_REBALANCING_MAX:
            moved += 1
            yield _change(group, members, "is too close to another copy")
    if not moved:
        yield from _evened_out(view)


def _evened_out(view: View) -> Iterator[Change]:
    """Move groups from fuller targets to emptier ones, by what files use: what waits for its deletion does not count.
    Nothing is decided before every target was swept once."""
    map_, bytes_of = view.index.map, view.repairs.group_bytes
    usable = {t.id: max(1, t.capacity_bytes) for t in map_.targets if t.state is TargetState.UP}
    if len(usable) < 2 or any(group.id not in bytes_of for group in map_.groups):
        return
    held = {t: sum(bytes_of[group] for group in view.index.member_of(t)) for t in usable}
    busy: set[PgId] = set()
    while len(busy) < GROUPS_REBALANCING_MAX:
        move = _next_move(view.index, usable, held, bytes_of, busy)
        if move is None:
            return
        group, full, empty = move
        busy.add(group.id)
        held[full] -= bytes_of[group.id]
        held[empty] += bytes_of[group.id]
        yield _change(group, tuple(empty if t == full else t for t in group.targets), "is fuller than others")


def _next_move(
    index: MapIndex,
    usable: Mapping[TargetId, int],
    held: Mapping[TargetId, int],
    bytes_of: Mapping[PgId, int],
    busy: set[PgId],
) -> tuple[m.PlacementGroup, TargetId, TargetId] | None:
    """A group, from the fullest target that can give one to the emptiest that can take it. The fullest of all may have
    none to give: that of a rack with fewer targets than others."""
    fill = {t: held[t] / usable[t] for t in usable}
    rising = sorted(usable, key=lambda t: fill[t])
    tried = 0
    for full in reversed(rising):
        for empty in rising:
            # Moving half of the difference makes them equally full.
            most_bytes = (held[full] * usable[empty] - held[empty] * usable[full]) // (usable[full] + usable[empty])
            if (fill[full] - fill[empty]) * 200 < UNEVEN_PERCENT or tried == _PAIRS_MAX:
                break  # what follows is fuller still
            if most_bytes * 2 * 100 < UNEVEN_PERCENT * min(usable[full], usable[empty]):
                continue
            tried += 1
            group = _movable(index, full, empty, bytes_of, most_bytes, busy)
            if group is not None:
                return group, full, empty
    return None


def _movable(
    index: MapIndex, full: TargetId, empty: TargetId, bytes_of: Mapping[PgId, int], most_bytes: int, busy: set[PgId]
) -> m.PlacementGroup | None:
    """The largest group that can go from one target to the other without making things worse."""
    found: list[m.PlacementGroup] = []
    for number in index.member_of(full):
        group = index.groups[number]
        if number in busy or empty in group.holders or not 0 < bytes_of[number] <= most_bytes:
            continue
        others = [index.targets[t] for t in group.targets if t != full]
        if placement.closeness(index.targets[empty], others) <= placement.closeness(index.targets[full], others):
            found.append(group)
    return max(found, key=lambda group: (bytes_of[group.id], -group.id), default=None)


def _change(group: m.PlacementGroup, members: tuple[TargetId, ...], why: str) -> Change:
    went = [target for target in group.targets if target not in members]
    text = f"group {group.id} moves from {list(group.targets)} to {list(members)}: {went} {why}"
    return m.Op.CHANGE_GROUP, m.ChangeGroup(group.id, group.epoch, members), text
