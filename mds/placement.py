"""Which placement groups exist, and which targets they have. Pure.

A group is made once and keeps its targets; moving data is another matter. Groups are made when a target
registers: for each pool that has enough targets, until every target that takes new data leads PGS_PER_TARGET
groups. The others of a group are chosen by rendezvous hashing (Thaler and Ravishankar 1998) over the group's
number and the targets' uuids, one per node as long as there are nodes left, so that the loss of a node costs
one replica.

The same map gives the same groups on every node: nothing here depends on order of arrival, time or chance.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from xxhash import xxh3_64_intdigest

from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, Target, TargetState
from shoalfs.transport.ids import PG_MAX, PgId, TargetId
from shoalfs.transport.limits import PGS_PER_TARGET


def missing_groups(map_: ClusterMap) -> tuple[PlacementGroup, ...]:
    """The groups to add to the map. Fewer than wanted once all group numbers are used."""
    usable = [t for t in map_.targets if t.state in (TargetState.UP, TargetState.DOWN)]
    next_id = max((group.id for group in map_.groups), default=0) + 1
    made: list[PlacementGroup] = []
    for pool in map_.pools:
        if len(usable) < pool.replicas:
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
    others = sorted((t for t in usable if t.id != leader.id), key=lambda t: (_weight(number, t), t.id), reverse=True)
    chosen = [leader.id, *_one_per_node(leader.node, others)][: pool.replicas]
    return PlacementGroup(number, pool.id, tuple(chosen))


def _one_per_node(node: str, ranked: Sequence[Target]) -> Iterator[TargetId]:
    """All of ``ranked``, those on nodes not used yet first."""
    used = {node}
    rest: list[Target] = []
    for target in ranked:
        if target.node in used:
            rest.append(target)
        else:
            used.add(target.node)
            yield target.id
    for target in rest:
        yield target.id


def _weight(number: PgId, target: Target) -> int:
    return xxh3_64_intdigest(target.uuid, number)
