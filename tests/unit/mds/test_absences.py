"""Which targets are down, when others take their place, and why they do not."""

from shoalfs.mds import messages as m
from shoalfs.mds import upkeep
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import TargetState
from shoalfs.mds.repairs import Repairs

UP, DOWN, OUT, DRAINING = TargetState.UP, TargetState.DOWN, TargetState.OUT, TargetState.DRAINING
OUT_MS = 600_000
SECOND_NS = 1_000_000_000


def view(*states, replicas=2, now_s=100, groups=(), led_ms=1_000_000, since_s=40):
    """``states``: each since second ``since_s``."""
    targets = tuple(
        m.Target(number, bytes([number]) * 16, f"n{number}", "tcp:n:1", 1, state, 1000, "", since_s * SECOND_NS)
        for number, state in enumerate(states, start=1)
    )
    made = tuple(m.PlacementGroup(number, 1, members) for number, members in enumerate(groups, start=1))
    map_ = m.ClusterMap(b"c" * 16, 1, (m.Pool(1, "hot", replicas, 1),), targets, made)
    return upkeep.View(
        MapIndex(map_), Repairs(1), lambda _: True, now_s * SECOND_NS, OUT_MS, rebalance=False, led_ms=led_ms
    )


def test_who_is_down_is_replaced_in_time():
    assert upkeep.absences(view(UP, UP, DOWN, DRAINING, OUT)) == (m.Absence(3, 60_000, 540_000),)
    assert upkeep.changes(view(UP, UP, DOWN, now_s=639)) == []
    ((_, request, text),) = upkeep.changes(view(UP, UP, DOWN, now_s=640))
    assert request == m.SetTargetState(3, OUT)
    assert text == "target 3 on n3 was down for 600 s and is out: it is replaced"


def test_nobody_is_replaced_while_most_are_down():
    found = view(UP, DOWN, DOWN, replicas=1, now_s=10_000)
    assert [(a.target, a.replaced_in_ms, a.kept) for a in upkeep.absences(found)] == [
        (2, 0, "2 of 3 targets are down, which may be the network"),
        (3, 0, "2 of 3 targets are down, which may be the network"),
    ]
    assert upkeep.changes(found) == []


def test_who_cannot_be_replaced_in_any_group_is_not_out():
    """It would have to be resumed by an operator, and nothing was gained."""
    found = view(UP, DRAINING, DOWN, now_s=10_000, groups=((1, 3), (3, 1)))
    (absence,) = upkeep.absences(found)
    assert absence.kept == "all that are up are in the same groups already: add a target"
    assert not any(op is m.Op.SET_TARGET_STATE for op, _, _ in upkeep.changes(found))


def test_a_pool_that_is_too_wide_for_who_is_left_holds_up_no_other():
    found = view(UP, UP, UP, DOWN, now_s=10_000, groups=((1, 2, 3, 4), (4, 2)))
    ((_, request, _),) = upkeep.changes(found)
    assert request == m.SetTargetState(4, OUT)


def test_a_clock_that_went_back_is_no_age():
    assert upkeep.absences(view(UP, UP, DOWN, now_s=0)) == (m.Absence(3, 0, OUT_MS),)


def test_a_new_leader_gives_servers_time_to_start():
    for led_ms, left_ms in ((0, 30_000), (29_999, 1), (30_000, 0)):
        found = view(UP, UP, DOWN, now_s=10_000, led_ms=led_ms)
        assert upkeep.absences(found) == (m.Absence(3, 9_960_000, left_ms),)
        assert bool(upkeep.changes(found)) is (led_ms == 30_000)
    assert upkeep.absences(view(UP, UP, DOWN, led_ms=0)) == (m.Absence(3, 60_000, 540_000),), "as before"


def test_targets_of_metadata_that_were_rebuilt_are_away_since_the_leader_leads():
    """Not since 1970: half of them were out as soon as the others had registered."""
    found = view(UP, UP, DOWN, now_s=10_000_000, since_s=0, led_ms=200_000)
    assert upkeep.absences(found) == (m.Absence(3, 200_000, 400_000),)
    assert upkeep.changes(found) == []
    assert upkeep.changes(view(UP, UP, DOWN, now_s=10_000_000, since_s=0, led_ms=OUT_MS)) != []
