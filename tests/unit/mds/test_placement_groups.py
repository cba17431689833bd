"""Which placement groups a cluster gets, target by target."""

from collections import Counter

import msgspec
import pytest

from shoalfs.mds import messages as m
from shoalfs.mds import placement
from shoalfs.mds.messages import TargetState
from shoalfs.transport.ids import PgId, PoolId, TargetId
from shoalfs.transport.limits import PGS_PER_TARGET


def target(number, node=None, state=TargetState.UP):
    uuid = number.to_bytes(16, "big")
    return m.Target(TargetId(number), uuid, node or f"n{number}", "unix:/x", 1, state, 100)


def pool(replicas, number=1):
    return m.Pool(PoolId(number), f"pool{number}", replicas, 1)


def grown(pools, targets):
    """The map after the targets registered one after the other."""
    map_ = m.ClusterMap(b"c" * 16, 1, tuple(pools), (), ())
    for new in targets:
        map_ = msgspec.structs.replace(map_, targets=(*map_.targets, new))
        map_ = msgspec.structs.replace(map_, groups=map_.groups + placement.missing_groups(map_))
    return map_


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_target_leads_its_groups(replicas, count):
    map_ = grown([pool(replicas)], [target(i) for i in range(1, count + 1)])
    if count < replicas:
        assert map_.groups == ()
        return
    assert Counter(g.targets[0] for g in map_.groups) == dict.fromkeys(range(1, count + 1), PGS_PER_TARGET)
    assert [g.id for g in map_.groups] == list(range(1, len(map_.groups) + 1))
    for group in map_.groups:
        assert len(set(group.targets)) == len(group.targets) == replicas


def test_groups_once_made_stay():
    few = grown([pool(2)], [target(i) for i in range(1, 4)])
    more = grown([pool(2)], [target(i) for i in range(1, 9)])
    assert more.groups[: len(few.groups)] == few.groups
    assert placement.missing_groups(more) == ()


def test_replicas_are_on_different_nodes_while_there_are_nodes():
    targets = [target(i, f"n{i % 4}") for i in range(12)]
    map_ = m.ClusterMap(b"c" * 16, 1, (pool(3),), tuple(targets), ())
    nodes = {t.id: t.node for t in targets}
    for group in placement.missing_groups(map_):
        assert len({nodes[t] for t in group.targets}) == 3
    one_node = m.ClusterMap(b"c" * 16, 1, (pool(3),), tuple(target(i, "n") for i in range(1, 5)), ())
    assert {len(set(g.targets)) for g in placement.missing_groups(one_node)} == {3}
    two_nodes = [target(i, f"n{i % 2}") for i in range(1, 5)]
    nodes = {t.id: t.node for t in two_nodes}
    for group in placement.missing_groups(m.ClusterMap(b"c" * 16, 1, (pool(3),), tuple(two_nodes), ())):
        assert len({nodes[t] for t in group.targets}) == 2


def test_followers_are_spread():
    map_ = m.ClusterMap(b"c" * 16, 1, (pool(2),), tuple(target(i) for i in range(1, 9)), ())
    follows = Counter(g.targets[1] for g in placement.missing_groups(map_))
    assert set(follows) == set(range(1, 9))
    assert max(follows.values()) <= 3 * PGS_PER_TARGET


def test_who_leaves_gets_no_groups():
    states = [TargetState.UP, TargetState.DOWN, TargetState.DRAINING, TargetState.OUT, TargetState.UP]
    targets = tuple(target(i + 1, state=s) for i, s in enumerate(states))
    groups = placement.missing_groups(m.ClusterMap(b"c" * 16, 1, (pool(2),), targets, ()))
    assert {t for g in groups for t in g.targets} == {1, 2, 5}


def test_pools_have_their_own_groups():
    map_ = grown([pool(1, 1), pool(2, 2)], [target(1), target(2)])
    assert Counter(g.pool for g in map_.groups) == {1: 2 * PGS_PER_TARGET, 2: 2 * PGS_PER_TARGET}
    assert len({g.id for g in map_.groups}) == len(map_.groups)


def test_group_numbers_run_out(monkeypatch):
    monkeypatch.setattr(placement, "PG_MAX", PgId(20))
    map_ = m.ClusterMap(b"c" * 16, 1, (pool(1),), (target(1), target(2)), ())
    assert len(placement.missing_groups(map_)) == 20


def test_the_same_map_gives_the_same_groups():
    targets = tuple(target(i) for i in range(1, 6))
    map_ = m.ClusterMap(b"c" * 16, 1, (pool(3),), targets, ())
    groups = placement.missing_groups(map_)
    assert groups == placement.missing_groups(map_)
    # As computed when this was written: a change would give nodes of different versions different maps.
    assert [g.targets for g in groups[:3]] == PINNED


PINNED = [(1, 4, 2), (1, 3, 2), (1, 5, 2)]


def drained(map_, *numbers, state=TargetState.DRAINING):
    targets = tuple(msgspec.structs.replace(t, state=state) if t.id in numbers else t for t in map_.targets)
    return msgspec.structs.replace(map_, targets=targets)


@pytest.mark.parametrize("state", [TargetState.DRAINING, TargetState.OUT])
def test_groups_that_nobody_else_can_take_are_known(state):
    map_ = grown([pool(1, 1), pool(2, 2)], [target(1), target(2)])
    assert placement.stuck(map_) == ()
    (stuck,) = placement.stuck(drained(map_, 2, state=state))
    assert (stuck.pool, stuck.targets, stuck.groups, stuck.lacking) == (2, (2,), 2 * PGS_PER_TARGET, 1)
    both = placement.stuck(drained(map_, 1, 2, state=state))
    assert [(s.pool, s.targets, s.groups, s.lacking) for s in both] == [
        (1, (1, 2), 2 * PGS_PER_TARGET, 1),
        (2, (1, 2), 2 * PGS_PER_TARGET, 2),
    ]
    assert placement.stuck(drained(grown([pool(2)], [target(1), target(2), target(3)]), 2, state=state)) == ()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("gone", [(1,), (1, 2), (1, 2, 3)])
def test_stuck_is_what_replacing_can_do_nothing_about(count, gone):
    map_ = drained(grown([pool(2)], [target(i) for i in range(1, count + 1)]), *gone)
    counts = placement.memberships(map_.groups)
    replaced = [placement.with_replacements(map_, g, set(gone), counts) for g in map_.groups]
    left = [set(gone).intersection(members) for members in replaced]
    stuck = placement.stuck(map_)
    assert sum(s.groups for s in stuck) == sum(map(bool, left))
    assert max((s.lacking for s in stuck), default=0) == max(map(len, left))


def test_a_fragment_that_is_leaving_comes_back_to_its_own_place_only():
    targets = [target(1), target(2, state=TargetState.DRAINING), target(3)]
    pools = (m.Pool(PoolId(1), "cold", 2, 2, 1),)
    group = m.PlacementGroup(PgId(1), PoolId(1), (TargetId(1), TargetId(2)), (TargetId(3),), 1, (0,))
    (stuck,) = placement.stuck(m.ClusterMap(b"c" * 16, 1, pools, tuple(targets), (group,)))
    assert (stuck.groups, stuck.targets) == (1, (2,))
    other = msgspec.structs.replace(group, leaving_places=(1,))
    assert placement.stuck(m.ClusterMap(b"c" * 16, 1, pools, tuple(targets), (other,))) == ()
