"""Which placement groups exist, and which targets they have. Pure.

Groups are made when a target registers: for each pool that has enough targets, until every target that takes new data
leads PGS_PER_TARGET groups. The other members are chosen by weighted rendezvous hashing over the group's number and
the targets' uuids (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005: the highest of
-weight / log(hash), with the hash in 0..1), one per rack and node as long as there are any, so that the loss of a
rack or a node costs one replica. A member that goes is replaced by the same rule, and nobody else moves.

The same map gives the same groups on every node: nothing here depends on order of arrival, time, chance or floating
point numbers.
"""

import errno
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from xxhash import xxh3_64_intdigest

from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, StuckGroups, Target, TargetState
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import PG_MAX, PgId, TargetId
from shoalfs.transport.limits import PGS_PER_TARGET

TAKES_NEW_DATA = frozenset({TargetState.UP, TargetState.SYNCING})
_IMBALANCE_PERCENT = 25  # what a target may have above its share of memberships before others are preferred
_LOG_BITS = 16
_GONE = {TargetState.SYNCING: 1, TargetState.DRAINING: 2, TargetState.DOWN: 3, TargetState.OUT: 4}


def missing_groups(map_: ClusterMap) -> tuple[PlacementGroup, ...]:
    """The groups to add to the map. Fewer than wanted once all group numbers are used."""
    usable = [t for t in map_.targets if t.state in TAKES_NEW_DATA or (t.state is TargetState.DOWN and not t.draining)]
    next_id = max((group.id for group in map_.groups), default=0) + 1
    made: list[PlacementGroup] = []
    for pool in map_.pools:
        if len(usable) < pool.replicas or pool.closing_epoch:
            continue
        led = Counter(group.targets[0] for group in map_.groups if group.pool == pool.id)
        for leader in usable:
            for _ in range(PGS_PER_TARGET - led[leader.id]):
                if next_id > PG_MAX:
                    return tuple(made)
                made.append(_group(PgId(next_id), pool, leader, usable))
                next_id += 1
    return tuple(made)


def _group(number: PgId, pool: Pool, leader: Target, usable: Sequence[Target]) -> PlacementGroup:
    members = [leader]
    ranked = _ranked(number, [target for target in usable if target.id != leader.id])
    while len(members) < pool.replicas:
        members.append(_most_apart(ranked, members))
        ranked.remove(members[-1])
    return PlacementGroup(number, pool.id, tuple(target.id for target in members))


# --- replacing members ----------------------------------------------------------------------------------------------


def with_replacements(
    map_: ClusterMap, group: PlacementGroup, replaced: Collection[TargetId], memberships: Mapping[TargetId, int]
) -> tuple[TargetId, ...]:
    """The group's members with others in the place of ``replaced``, as far as there are any that take new data;
    everyone else stays where it is. ``memberships``: how many groups each target is a member of. Of fragments, one that
    is leaving comes back to its own place only."""
    targets = {target.id: target for target in map_.targets}
    staying = [targets[t] for t in group.targets if t in targets and t not in replaced]
    free = [t for t in map_.targets if t.state in TAKES_NEW_DATA and t.id not in group.targets and t.id not in replaced]
    members = list(group.targets)
    for place, member in enumerate(group.targets):
        fitting = [t for t in free if may_take(group, place, t.id)]
        if member not in replaced or not fitting:
            continue
        chosen = _next_member(map_, group.id, fitting, staying, memberships)
        members[place] = chosen.id
        staying.append(chosen)
        free.remove(chosen)
    return tuple(members)


def may_take(group: PlacementGroup, place: int, target: TargetId) -> bool:
    """A target that is no member may become the one at this place: of fragments, one that is leaving has another."""
    return not group.leaving_places or target not in group.leaving or group.place(target) == place


def stuck(map_: ClusterMap) -> tuple[StuckGroups, ...]:
    """What :func:`with_replacements` can do nothing about now: groups with members that are draining or out and that no
    other target can replace; one entry for each pool that has such groups."""
    gone = {t.id for t in map_.targets if t.leaves}
    usable = [t.id for t in map_.targets if t.state in TAKES_NEW_DATA]
    found: list[StuckGroups] = []
    for pool in map_.pools if gone else ():
        staying = [kept for group in map_.groups if group.pool == pool.id and (kept := _staying(group, gone, usable))]
        if staying:
            targets = tuple(sorted({target for kept in staying for target in kept}))
            found.append(StuckGroups(pool.id, targets, len(staying), max(map(len, staying))))
    return tuple(found)


def _staying(group: PlacementGroup, gone: set[TargetId], usable: Iterable[TargetId]) -> list[TargetId]:
    """The members that should leave a group and cannot."""
    if not gone.intersection(group.targets):
        return []
    free = [target for target in usable if target not in group.targets]
    staying: list[TargetId] = []
    for place, member in enumerate(group.targets):
        if member in gone:
            fitting = next((target for target in free if may_take(group, place, target)), None)
            if fitting is None:
                staying.append(member)
            else:
                free.remove(fitting)
    return staying


def resized(
    map_: ClusterMap, group: PlacementGroup, width: int, memberships: Mapping[TargetId, int]
) -> tuple[TargetId, ...]:
    """The group's members with others added at the end, or with those left out that are worth least, so that there are
    ``width``. There are enough targets (:func:`check_targets`)."""
    targets = {target.id: target for target in map_.targets}
    members = [targets[target] for target in group.targets]
    while len(members) > width:
        members.remove(_worth_least(members))
    while len(members) < width:
        free = [t for t in map_.targets if t.state in TAKES_NEW_DATA and t not in members]
        members.append(_next_member(map_, group.id, free, members, memberships))
    return tuple(target.id for target in members)


def _worth_least(members: Sequence[Target]) -> Target:
    """Who is not in service, or else shares its node or rack with another member, or else is the last."""

    def worth(at: int) -> tuple[int, int, int]:
        others = [*members[:at], *members[at + 1 :]]
        return -_GONE.get(members[at].state, 0), -closeness(members[at], others), -at

    return members[min(range(len(members)), key=worth)]


def check_targets(map_: ClusterMap, pool: Pool) -> None:
    """Raises ENOSPC unless there are as many targets for new data as the pool's groups have members."""
    usable = sum(target.state in TAKES_NEW_DATA for target in map_.targets)
    if usable < pool.replicas:
        text = f"pool {pool.name} needs {pool.replicas} targets that are up, there are {usable}"
        raise PosixError(errno.ENOSPC, text)


def too_close(map_: ClusterMap, group: PlacementGroup) -> TargetId | None:
    """A member that shares its node with an earlier one, or its rack, while another node or rack could have it."""
    targets = {target.id: target for target in map_.targets}
    members = [targets[target] for target in group.targets if target in targets]
    free = [t for t in map_.targets if t.state in TAKES_NEW_DATA and t.id not in group.targets]
    for at in range(len(members) - 1, 0, -1):
        others = members[:at] + members[at + 1 :]
        if free and closeness(_most_apart(free, others), others) < closeness(members[at], others):
            return members[at].id
    return None


def memberships(groups: Iterable[PlacementGroup]) -> Counter[TargetId]:
    return Counter(target for group in groups for target in group.targets)


def _next_member(
    map_: ClusterMap,
    number: PgId,
    free: Iterable[Target],
    members: Sequence[Target],
    memberships: Mapping[TargetId, int],
) -> Target:
    """Who of ``free`` is to join the members."""
    ranked = _ranked(number, free)
    roomy = [target for target in ranked if not _is_crowded(target, map_, memberships)]
    return _most_apart([*roomy, *(target for target in ranked if target not in roomy)], members)


def _is_crowded(target: Target, map_: ClusterMap, memberships: Mapping[TargetId, int]) -> bool:
    """It has more of the groups than its share of the capacity, by more than may be."""
    capacity = sum(_weight(t) for t in map_.targets if t.state in TAKES_NEW_DATA)
    share_times_capacity = sum(memberships.values()) * _weight(target)
    return memberships.get(target.id, 0) * capacity * 100 > share_times_capacity * (100 + _IMBALANCE_PERCENT)


def _most_apart(ranked: Sequence[Target], members: Sequence[Target]) -> Target:
    """The first of those that share least with the members: nothing, their rack, their node."""
    return min(ranked, key=lambda target: closeness(target, members))  # min() takes the first of equals


def closeness(target: Target, members: Sequence[Target]) -> int:
    """What it shares with any of the members: 0 nothing, 1 the rack, 2 the node."""
    if any(target.node == member.node for member in members):
        return 2
    return int(bool(target.rack) and any(target.rack == member.rack for member in members))


# --- weighted rendezvous --------------------------------------------------------------------------------------------


def _ranked(number: PgId, targets: Iterable[Target]) -> list[Target]:
    """Best first."""
    return sorted(targets, key=lambda target: (*_score(number, target), target.id), reverse=True)


def _score(number: PgId, target: Target) -> tuple[int, int]:
    drawn = xxh3_64_intdigest(target.uuid, number)
    return (_weight(target) << 64) // max(1, _negative_log2(drawn)), drawn


def _weight(target: Target) -> int:
    return max(1, target.capacity_bytes)


def _negative_log2(drawn: int) -> int:
    """-log2(drawn / 2^64), times 2^_LOG_BITS, rounded up to a whole number. By squaring, bit by bit, because the
    results of floating point logarithms differ between machines."""
    if drawn == 0:
        return 64 << _LOG_BITS
    whole = drawn.bit_length() - 1
    mantissa, fraction = drawn << (63 - whole), 0
    for _ in range(_LOG_BITS):
        mantissa = mantissa * mantissa >> 63
        fraction <<= 1
        if mantissa >> 64:
            mantissa >>= 1
            fraction |= 1
    return (64 << _LOG_BITS) - (whole << _LOG_BITS | fraction)
