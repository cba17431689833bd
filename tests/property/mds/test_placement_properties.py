"""Placement over any map: who is replaced by whom, how evenly, and that nobody else moves."""

import math
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shoalfs.mds import messages as m
from shoalfs.mds import placement
from shoalfs.mds.messages import TargetState
from shoalfs.transport.ids import PgId, PoolId, TargetId

STATES = st.sampled_from(TargetState)
CAPACITIES = st.integers(0, 1 << 44)


@st.composite
def maps(draw, states=STATES):
    count = draw(st.integers(1, 12))
    replicas = draw(st.integers(1, 4))
    nodes = [draw(st.integers(0, 6)) for _ in range(count)]
    racked = draw(st.booleans())
    targets = tuple(
        m.Target(
            TargetId(number),
            number.to_bytes(16, "big"),
            f"n{nodes[number - 1]}",
            "unix:/x",
            1,
            draw(states),
            draw(CAPACITIES),
            f"r{nodes[number - 1] % 3}" if racked else "",
        )
        for number in range(1, count + 1)
    )
    map_ = m.ClusterMap(b"c" * 16, 1, (m.Pool(PoolId(1), "hot", replicas, 1),), targets, ())
    return msgspec.structs.replace(map_, groups=placement.missing_groups(map_))


@given(maps(), st.data())
@settings(max_examples=60)
def test_only_who_is_replaced_moves_and_only_to_who_takes_new_data(map_, data):
    targets = {target.id: target for target in map_.targets}
    counts = placement.memberships(map_.groups)
    for group in map_.groups[:20]:
        replaced = set(data.draw(st.lists(st.sampled_from(group.targets), unique=True)))
        members = placement.with_replacements(map_, group, replaced, counts)
        assert len(set(members)) == len(members) == len(group.targets)
        free = [
            t for t in map_.targets if t.state in placement.TAKES_NEW_DATA and t.id not in {*group.targets, *replaced}
        ]
        moved = 0
        for before, after in zip(group.targets, members, strict=True):
            if before != after:
                assert before in replaced
                assert after not in group.targets
                assert targets[after].state in placement.TAKES_NEW_DATA
                moved += 1
        assert moved == min(len(replaced), len(free)), "nobody is left where it should not be without need"


@given(maps(states=st.just(TargetState.UP)))
@settings(max_examples=100)
def test_copies_are_as_far_apart_as_they_can_be(map_):
    nodes = {target.id: target.node for target in map_.targets}
    racks = {target.id: target.rack or target.node for target in map_.targets}
    for group in map_.groups[:20]:
        assert len({nodes[t] for t in group.targets}) == min(len(group.targets), len(set(nodes.values())))
        assert placement.too_close(map_, group) is None
        assert len({racks[t] for t in group.targets}) == min(len(group.targets), len(set(racks.values())))


@given(maps(states=st.just(TargetState.UP)))
@settings(max_examples=100)
def test_the_same_map_gives_the_same_answer(map_):
    empty = msgspec.structs.replace(map_, groups=())
    assert placement.missing_groups(empty) == map_.groups
    assert placement.missing_groups(map_) == ()


@given(st.integers(1, (1 << 64) - 1))
def test_the_logarithm_is_one(drawn):
    exact = (64 - math.log2(drawn)) * 65536
    assert -0.6 <= placement._negative_log2(drawn) - exact <= 1.6


def test_a_target_of_twice_the_size_is_chosen_twice_as_often():
    targets = [m.Target(TargetId(i), bytes([i]) * 16, f"n{i}", "unix:/x", 1, TargetState.UP, 100) for i in range(1, 5)]
    targets[3] = msgspec.structs.replace(targets[3], capacity_bytes=200)
    first = Counter(placement._ranked(PgId(group), targets)[0].id for group in range(1, 20_001))
    for target in targets:
        share = target.capacity_bytes / 500
        assert abs(first[target.id] / 20_000 - share) < 0.02, first


def test_a_dead_target_is_replaced_evenly_and_by_nobody_twice():
    targets = tuple(
        m.Target(TargetId(i), bytes([i]) * 16, f"n{i}", "unix:/x", 1, TargetState.UP, 100) for i in range(1, 11)
    )
    map_ = m.ClusterMap(b"c" * 16, 1, (m.Pool(PoolId(1), "hot", 3, 2),), targets, ())
    map_ = msgspec.structs.replace(map_, groups=placement.missing_groups(map_))
    out = (*targets[:9], msgspec.structs.replace(targets[9], state=TargetState.OUT))
    map_ = msgspec.structs.replace(map_, targets=out)
    counts = placement.memberships(map_.groups)
    taken: Counter[TargetId] = Counter()
    for group in map_.groups:
        members = placement.with_replacements(map_, group, {TargetId(10)}, counts)
        taken.update(set(members) - set(group.targets))
        counts.update(members)
        counts.subtract(group.targets)
    assert sum(taken.values()) == sum(10 in group.targets for group in map_.groups)
    share = sum(counts[t] for t in range(1, 10)) / 9
    assert max(counts[t] for t in range(1, 10)) <= share * 1.25 + 1, counts
