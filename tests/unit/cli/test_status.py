"""One word for how the cluster is, and the keys that programs rely on."""

import msgspec
import pytest

from shoalfs.fs.cli.output import size
from shoalfs.fs.cli.status import as_json, assess, redundancy
from shoalfs.mds.messages import (
    ClusterMap,
    MdsStatus,
    PlacementGroup,
    Pool,
    RaftStatus,
    RepairStatus,
    SessionInfo,
    Target,
    TargetState,
    TargetUsage,
)

UP, DOWN, DRAINING, OUT = TargetState.UP, TargetState.DOWN, TargetState.DRAINING, TargetState.OUT
SYNCING = TargetState.SYNCING


def cluster(*states):
    targets = tuple(
        Target(number, b"u" * 16, f"node-{number}", f"tcp:n{number}:1", 1, state, 1000)
        for number, state in enumerate(states, start=1)
    )
    groups = tuple(PlacementGroup(first, 1, (first, first % len(targets) + 1)) for first in range(1, len(targets) + 1))
    return MdsStatus(
        raft=RaftStatus(1, 1, "tcp:m:1", 3, 10, 10, ((1, "tcp:m:1"), (2, "tcp:m:2"))),
        map=ClusterMap(b"c" * 16, 7, (Pool(1, "hot", 2, 1),), targets, groups),
        usage=tuple(TargetUsage(target.id, 1000, 250, 4, 300) for target in targets[:1]),
        sessions=(SessionInfo(9, "host:1:/mnt", 2, 100),),
        inodes=5,
        inline_files=3,
        inline_bytes=30,
        orphans=1,
        garbage_chunks=2,
        counters={"b": 2, "a": 1},
    )


BOTH = {1: True, 2: True}


@pytest.mark.parametrize(
    ("states", "members", "word", "reasons"),
    [
        ((UP, UP, UP), BOTH, "healthy", []),
        ((UP, DRAINING, UP), BOTH, "healthy", []),
        ((UP, DOWN, UP), BOTH, "degraded", ["target 2 on node-2 is down"]),
        ((UP, SYNCING, UP), BOTH, "degraded", ["target 2 on node-2 is syncing: what it lacks is copied to it"]),
        (
            (UP, UP, UP),
            {1: True, 2: False, 3: True},
            "degraded",
            ["mds 2 does not answer: start it: the group cannot lose another"],
        ),
        (
            (UP, UP, UP),
            {1: True, 2: False, 3: True, 4: True, 5: True},
            "degraded",
            ["mds 2 does not answer: start it"],
        ),
        (
            (UP, DOWN, DOWN),
            BOTH,
            "broken",
            [
                (
                    "1 of 3 placement groups have too few targets that are up to be read: "
                    "start the chunkservers that are down"
                ),
                "target 2 on node-2 is down",
                "target 3 on node-3 is down",
            ],
        ),
        (
            (UP, OUT, UP),
            BOTH,
            "degraded",
            ["target 2 on node-2 is out: others take its place in 2 groups"],
        ),
        ((), BOTH, "broken", ["no chunkserver has registered: only small files can be written"]),
    ],
)
def test_health(states, members, word, reasons):
    health = assess(cluster(*states), members)
    assert health.word == word
    assert list(health.reasons) == reasons


def test_missing_copies_are_told_without_those_of_moves():
    def told(**fields):
        return assess(msgspec.structs.replace(cluster(UP, UP), repair=RepairStatus(**fields)), BOTH).reasons

    last = ("3 copies of chunks are missing and being made, 2 of them from the last good one",)
    assert told(missing_chunks=3, last_copies=2) == last
    assert told(missing_chunks=8, moving_chunks=5, last_copies=2) == last
    assert told(missing_chunks=5, moving_chunks=5) == ()


def test_a_group_of_fragments_is_broken_with_fewer_than_it_takes():
    found = cluster(UP, UP, DOWN, DOWN)
    pools = (Pool(1, "cold", 3, 3, 2),)

    def word(*groups):
        map_ = msgspec.structs.replace(found.map, pools=pools, groups=groups)
        return assess(msgspec.structs.replace(found, map=map_), BOTH).word

    assert word(PlacementGroup(1, 1, (1, 2, 3))) == "degraded"
    assert word(PlacementGroup(1, 1, (1, 3, 4))) == "broken"
    assert word(PlacementGroup(1, 1, (1, 3, 4), (2,), 1, (1,))) == "degraded", "who is leaving has another fragment"
    assert word(PlacementGroup(1, 1, (1, 3, 4), (2,), 1, (0,))) == "broken", "who is leaving has the same one"


def test_json_has_stable_keys():
    found = cluster(UP, UP)
    health = assess(found, BOTH)
    exact = as_json(found, {1: True, 2: False}, health, {})
    assert list(exact) == [
        "health", "reasons", "notes", "cluster_id", "leader", "leader_address", "term", "applied_index", "map_epoch",
        "members", "pools", "targets", "groups", "sessions", "inodes", "inline_files", "inline_bytes", "orphans",
        "garbage_chunks", "trashed", "trashed_bytes", "deletions_held", "repair", "capacity_bytes", "used_bytes",
        "counters", "links", "links_left_out",
    ]  # fmt: skip
    assert exact["members"][1] == {"node": 2, "address": "tcp:m:2", "up": False}
    assert exact["targets"][0]["used_bytes"] == 250
    assert exact["targets"][1]["used_bytes"] is None
    assert (exact["capacity_bytes"], exact["used_bytes"]) == (2000, 250)
    assert list(exact["counters"]) == ["a", "b"]
    assert as_json(cluster(OUT, UP), BOTH, health, {})["capacity_bytes"] == 1000
    assert as_json(cluster(OUT, UP), BOTH, health, {})["used_bytes"] == 0
    msgspec.json.encode(exact)


@pytest.mark.parametrize(
    ("states", "repair", "line"),
    [
        ((UP, UP, UP), {}, "all copies are there, as far as targets have reported"),
        ((UP, OUT, UP), {}, "the copies on 1 targets that are down or out do not count"),
        ((UP, DOWN, UP), {}, "the copies on 1 targets that are down or out do not count"),
        (
            (UP, DOWN, UP),
            {"missing_chunks": 3, "missing_bytes": 2048, "moving_chunks": 1, "bytes_per_s": 1024, "eta_s": 3},
            (
                "the copies on 1 targets that are down or out do not count, 3 copies to make (2.0 KiB), "
                "1 of them where groups move to, 1.0 KiB/s, about 3 s left"
            ),
        ),
        (
            (UP, UP, UP),
            {"groups_moving": 4, "checked_percent": 40},
            "0 copies to make (0 B), 4 groups moving, 40 % of the targets compared, there may be more",
        ),
    ],
)
def test_the_line_about_redundancy(states, repair, line):
    assert redundancy(msgspec.structs.replace(cluster(*states), repair=RepairStatus(**repair))) == line


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 50, "3072 TiB")],
)
def test_sizes_for_people(size_bytes, text):
    assert size(size_bytes) == text
