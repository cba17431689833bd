"""What an operator is told about targets that are away, groups that cannot move, and pools that are nearly full."""

import msgspec
import pytest

from shoalfs.fs.cli.reasons import duration, full_pools, full_targets, notes, stuck_groups, targets_away
from shoalfs.fs.cli.targets import describe
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState

RAFT = m.RaftStatus(1, 1, "tcp:m:1", 1, 1, 1, ((1, "tcp:m:1"),))
OLDEST_GO = "the oldest of them are let go: `shoal trash purge --all` lets all go"
HOT, COLD = m.Pool(1, "hot", 2, 1), m.Pool(2, "cold", 3, 3, 2)


def status(*states, **fields):
    targets = tuple(
        m.Target(number, bytes(16), f"n{number}", "tcp:n:1", 1, state, 1000)
        for number, state in enumerate(states, start=1)
    )
    map_ = m.ClusterMap(b"c" * 16, 1, (HOT, COLD), targets, ())
    return msgspec.structs.replace(m.MdsStatus(RAFT, map_, (), (), 1, 0, 0, 0, 0, {}), **fields)


def test_a_target_that_is_down_is_told_with_what_happens_next():
    found = status(
        TargetState.UP,
        TargetState.DOWN,
        TargetState.DOWN,
        absences=(m.Absence(2, 90_000, 510_000), m.Absence(3, 7_200_000, 0, "2 of 3 targets are down")),
    )
    assert targets_away(found) == [
        "target 2 on n2 is down for 90 s: start its chunkserver, or others take its place in 8 min",
        "target 3 on n3 is down for 2 h: start its chunkserver; others do not take its place: 2 of 3 targets are down",
    ]


def test_a_leader_that_does_not_say_for_how_long():
    assert targets_away(status(TargetState.DOWN)) == ["target 1 on n1 is down"]


def test_a_target_whose_disk_failed_is_told_with_what_its_server_said():
    said = (m.TargetUsage(1, 1000, 250, 4, 300, "its disk does not answer: fdatasync has not returned for 30 s"),)
    found = status(TargetState.DOWN, TargetState.UP, usage=said, absences=(m.Absence(1, 90_000, 510_000),))
    (line,) = targets_away(found)
    assert line == (
        f"target 1 on n1 is down for 90 s: {said[0].failed}: "
        "look at its disk, and start its chunkserver anew, or others take its place in 8 min"
    )
    assert describe(found)[0]["failed"] == said[0].failed
    assert targets_away(status(TargetState.UP, usage=said)) == [], "it is back"


def test_a_target_that_is_out_is_missed_until_its_groups_have_moved():
    found = status(TargetState.UP, TargetState.OUT, TargetState.UP)
    away = ["target 2 on n2 is out: others take its place in 1 groups"]
    stuck = (m.StuckGroups(1, (2,), 1, 1),)
    for group, stays, told in [
        (m.PlacementGroup(1, 1, (1, 2)), (), away),  # what comes next is not decided yet
        (m.PlacementGroup(1, 1, (1, 3), (2,)), (), away),
        (m.PlacementGroup(1, 1, (1, 3)), (), []),
        (m.PlacementGroup(1, 1, (1, 2)), stuck, []),  # told as stuck
    ]:
        map_ = msgspec.structs.replace(found.map, groups=(group,))
        assert targets_away(msgspec.structs.replace(found, map=map_, stuck=stays)) == told


def test_groups_that_cannot_move_are_told_with_the_ways_out():
    stuck = (m.StuckGroups(1, (2,), 16, 1), m.StuckGroups(2, (2, 3), 4, 2))
    found = status(TargetState.UP, TargetState.DRAINING, TargetState.OUT, stuck=stuck)
    hot = (
        "16 groups of pool hot (2 replicas) cannot leave target 2 (draining): too few other targets are up: add 1 more "
        "(`shoal target add`, or another chunkserver), or keep fewer copies (`shoal pool set hot --replicas 1`)"
    )
    cold = (
        "4 groups of pool cold (2+1) cannot leave target 2 (draining), 3 (out): too few other targets are up: add 2 "
        "more (`shoal target add`, or another chunkserver), or resume a target"
    )
    assert stuck_groups(found) == [hot, cold]
    assert stuck_groups(found, {3}) == [cold]
    assert stuck_groups(found, {1}) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, ""),
        ({"garbage_chunks": 7}, "; 7 chunks of removed files wait for their deletion"),
        (
            {"trashed": 3, "trashed_bytes": 2 << 20},
            f"; 3 removed files (2.0 MiB) are kept, {OLDEST_GO}",
        ),
        (
            {"trashed": 3, "trashed_bytes": None},
            f"; 3 removed files are kept, {OLDEST_GO}",
        ),
        (
            {"trashed": 3, "upkeep": m.Upkeep(deletions_held=True)},
            "; nothing becomes free while deletion is held (`shoal gc release`)",
        ),
    ],
)
def test_a_pool_that_is_nearly_full(fields, told):
    found = status(TargetState.UP, nearly_full=(m.NearlyFull(1, 96),), **fields)
    assert full_pools(found) == [f"pool hot is 96 % full: add a target, or remove files{told}"]


@pytest.mark.parametrize(
    ("ms", "text"), [(999, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_199_999, "119 min"), (7_200_000, "2 h")]
)
def test_durations(ms, text):
    assert duration(ms) == text


def test_what_goes_on_by_an_operators_wish():
    found = status(TargetState.UP, TargetState.DRAINING, TargetState.DRAINING, TargetState.OUT, TargetState.DOWN)
    group = m.PlacementGroup(1, 1, (1, 2), (4,))
    down = msgspec.structs.replace(found.map.targets[4], draining=True)
    map_ = msgspec.structs.replace(found.map, groups=(group,), targets=(*found.map.targets[:4], down))
    found = msgspec.structs.replace(found, map=map_, upkeep=m.Upkeep(rebalance_paused=True))
    assert notes(found) == [
        "target 2 on n2 is draining: 1 groups are still to leave it",
        (
            "target 3 on n3 is drained, and no group needs it: `shoal target remove 3`, or `shoal target resume 3` "
            "to use it again"
        ),
        (
            "target 5 on n5 is drained, and no group needs it: `shoal target remove 5`, or `shoal target resume 5` "
            "to use it again"
        ),
        "moving data to even out targets is paused: `shoal rebalance start`",
    ]
    assert targets_away(found) == ["target 4 on n4 is out: others take its place in 1 groups"], "nobody misses 5"
    needed = msgspec.structs.replace(map_, groups=(m.PlacementGroup(1, 1, (1, 2), (5,)),))
    assert targets_away(msgspec.structs.replace(found, map=needed)) == [
        "target 5 on n5 is down, and others take its place: it is draining"
    ]
    assert notes(status(TargetState.UP, TargetState.DOWN)) == []


def test_a_target_without_room_for_copies():
    found = status(TargetState.UP, repair=m.RepairStatus(full_targets=(1, 9)))
    assert full_targets(found) == [
        ("target 1 on n1 is full: copies that it lacks cannot be made: add a target, or remove files")
    ]
