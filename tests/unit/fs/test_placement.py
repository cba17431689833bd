"""Where chunks go and who is asked first."""

from collections import Counter
from itertools import pairwise

import msgspec

from shoalfs.fs.placement import Placement
from shoalfs.mds.messages import ClusterMap, TargetState
from shoalfs.transport.ids import InodeId, PgId, PoolId, TargetId, chunk_id
from unit.fs.world import make_map

POOL = PoolId(1)


def with_state(cluster_map: ClusterMap, target: int, state: TargetState) -> ClusterMap:
    targets = tuple(msgspec.structs.replace(t, state=state) if t.id == target else t for t in cluster_map.targets)
    return msgspec.structs.replace(cluster_map, targets=targets)


def test_consecutive_chunks_begin_on_different_targets_and_use_all_of_them() -> None:
    placement = Placement(make_map(targets=6))
    for ino in (2, 3, 99):
        groups = [placement.group_for(POOL, InodeId(ino), index, ()) for index in range(24)]
        leaders = [group.targets[0] for group in groups if group]
        assert all(a != b for a, b in pairwise(leaders))
        assert set(Counter(leaders).values()) == {4}


def test_first_chunks_of_many_files_spread() -> None:
    placement = Placement(make_map(targets=4))
    groups = [placement.group_for(POOL, InodeId(ino), 0, ()) for ino in range(2, 1002)]
    counts = Counter(group.id for group in groups if group)
    assert len(counts) == len(make_map(targets=4).groups)
    assert max(counts.values()) < 2 * min(counts.values())


def test_a_group_is_taken_only_if_all_its_targets_may_be() -> None:
    cluster_map = make_map(targets=4)
    for state in (TargetState.DOWN, TargetState.DRAINING, TargetState.OUT):
        placement = Placement(with_state(cluster_map, 2, state))
        for index in range(40):
            group = placement.group_for(POOL, InodeId(7), index, {TargetId(3)})
            assert group is not None
            assert set(group.targets) == {1, 4}
    assert Placement(cluster_map).group_for(POOL, InodeId(7), 0, {TargetId(n) for n in (1, 2, 3)}) is None
    assert Placement(cluster_map).group_for(PoolId(9), InodeId(7), 0, ()) is None


def test_replicas_are_asked_in_an_order_that_differs_between_clients_and_puts_the_doubtful_last() -> None:
    cluster_map = make_map(targets=5, replicas=3)
    chunk = chunk_id(PgId(1), 12)
    everyone = {t.id for t in Placement(cluster_map).replicas(chunk, 0, ())}
    assert len(everyone) == 3
    first = {Placement(cluster_map).replicas(chunk, salt, ())[0].id for salt in range(50)}
    assert first == everyone
    for bad in everyone:
        assert Placement(cluster_map).replicas(chunk, 5, {bad})[-1].id == bad
        down = Placement(with_state(cluster_map, bad, TargetState.DOWN))
        assert down.replicas(chunk, 5, everyone - {bad})[-1].id == bad
        out = Placement(with_state(cluster_map, bad, TargetState.OUT))
        assert out.replicas(chunk, 5, everyone - {bad})[-1].id == bad
        syncing = Placement(with_state(cluster_map, bad, TargetState.SYNCING))
        assert syncing.replicas(chunk, 5, ())[-1].id == bad
    assert Placement(cluster_map).replicas(chunk_id(PgId(999), 12), 0, ()) == []
