"""Silence, failure and deletion orders of targets."""

from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, Target, TargetReport, TargetState
from shoalfs.mds.targets import GarbageWindow, TargetTable
from shoalfs.transport.ids import PgId, PoolId, TargetId, chunk_id
from shoalfs.transport.limits import TARGET_DOWN_MS

ONE, TWO, THREE = TargetId(1), TargetId(2), TargetId(3)
CHUNK = chunk_id(PgId(1), 10)


def target(number: TargetId, state: TargetState = TargetState.UP) -> Target:
    return Target(number, bytes(16), f"node{number}", "unix:/x", 1, state, 1 << 40)


def map_of(*targets: Target) -> ClusterMap:
    group = PlacementGroup(PgId(1), PoolId(1), (ONE, TWO))
    return ClusterMap(bytes(16), 1, (Pool(PoolId(1), "hot", 2, 1),), targets, (group,))


def report(number: TargetId, failed: str = "") -> TargetReport:
    return TargetReport(number, 1, 100, 10, 3, failed)


def test_a_silent_target_is_lost_and_a_reporting_one_is_not():
    table = TargetTable()
    table.lead(0)
    table.report(report(TWO), 5_000)
    assert table.lost(map_of(target(ONE), target(TWO)), TARGET_DOWN_MS) == []
    assert table.lost(map_of(target(ONE), target(TWO)), TARGET_DOWN_MS + 1) == [ONE]


def test_a_target_that_reports_its_failure_is_lost_at_once():
    table = TargetTable()
    table.lead(0)
    table.report(report(ONE, "fdatasync: EIO"), 1)
    assert table.lost(map_of(target(ONE)), 1) == [ONE]


def test_a_target_that_is_down_already_is_not_declared_again():
    table = TargetTable()
    table.lead(0)
    assert table.lost(map_of(target(ONE, TargetState.DOWN), target(TWO, TargetState.OUT)), 10**9) == []


def test_garbage_is_done_when_every_holder_confirmed():
    window = GarbageWindow()
    window.add([CHUNK], map_of(target(ONE), target(TWO)))
    assert window.knows(CHUNK)
    assert window.orders(ONE) == window.orders(TWO) == (CHUNK,)
    assert window.orders(THREE) == ()
    window.confirm(ONE, [CHUNK])
    assert window.orders(ONE) == ()
    assert window.orders(TWO) == (CHUNK,), "repeated until it confirms"
    assert window.take_done(10) == ()
    window.confirm(TWO, [CHUNK, CHUNK])
    assert window.take_done(10) == (CHUNK,)
    assert window.take_done(10) == ()


def test_a_target_that_is_down_is_waited_for_and_one_that_is_out_is_not():
    window = GarbageWindow()
    window.add([CHUNK], map_of(target(ONE, TargetState.OUT), target(TWO, TargetState.DOWN)))
    assert window.orders(ONE) == ()
    assert window.take_done(1) == ()
    window.confirm(TWO, [CHUNK])
    assert window.take_done(1) == (CHUNK,)


def test_a_chunk_of_no_group_is_done_at_once():
    window = GarbageWindow()
    window.add([chunk_id(PgId(9), 1)], map_of(target(ONE)))
    assert window.take_done(1) == (chunk_id(PgId(9), 1),)


def test_the_window_is_bounded():
    window = GarbageWindow()
    before = window.room()
    window.add([chunk_id(PgId(1), n) for n in range(1, 6)], map_of(target(ONE), target(TWO)))
    assert window.room() == before - 5
