"""What moves from fuller targets to emptier ones."""

import pytest

from shoalfs.mds import messages as m
from shoalfs.mds import upkeep
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import TargetState
from shoalfs.mds.repairs import Repairs

CAPACITY = 1000


def moves(racks, groups, bytes_of):
    """``racks``: of targets 1, 2, ...; ``groups``: their members; each of ``bytes_of``. Returns {group: members}."""
    targets = tuple(
        m.Target(number, bytes([number]) * 16, f"n{number}", "tcp:n:1", 1, TargetState.UP, CAPACITY, rack)
        for number, rack in enumerate(racks, start=1)
    )
    made = tuple(m.PlacementGroup(number, 1, members) for number, members in enumerate(groups, start=1))
    repairs = Repairs(1)
    repairs.group_bytes = dict(enumerate(bytes_of, start=1))
    map_ = m.ClusterMap(b"c" * 16, 1, (m.Pool(1, "hot", 2, 1),), targets, made)
    view = upkeep.View(MapIndex(map_), repairs, lambda _: True, 0, 1, rebalance=True, led_ms=0)
    return {change.group: change.targets for _, change, _ in upkeep.changes(view)}


def test_from_the_fullest_to_the_emptiest():
    assert moves("", [], []) == {}
    found = moves(["", "", ""], [(1, 2), (1, 2), (1, 2)], [100, 100, 100])
    assert len(found) == 2
    assert all(3 in members for members in found.values())


def test_the_fullest_that_has_nothing_to_give_is_passed_over():
    """One rack has one target, which so has a copy of everything. The other has two, and one of them is new."""
    found = moves(["r1", "r2", "r2"], [(1, 2)] * 4, [100] * 4)
    assert list(found.values()) == [(1, 3)] * 2


@pytest.mark.parametrize("racks", [["r1", "r2"], ["r1", "r1"]])
def test_nothing_moves_where_it_would_bring_copies_together(racks):
    assert moves(racks, [(1, 2)] * 4, [100] * 4) == {}


def test_small_differences_stay():
    assert moves(["r1", "r2", "r2"], [(1, 2), (1, 3)], [100, 60]) == {}
