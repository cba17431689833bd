"""What `shoal target list` and `shoal node list` make of a cluster's status."""

import msgspec
import pytest

from shoalfs.fs.cli.targets import _bytes, by_node, describe
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import UserError

RAFT = m.RaftStatus(1, 1, "tcp:m:1", 1, 1, 1, ((1, "tcp:m:1"),))


def target(number: int, node: str, state: TargetState = TargetState.UP) -> m.Target:
    return m.Target(number, bytes(16), node, f"tcp:{node}:1", 1, state, 1000, "r1")


def status() -> m.MdsStatus:
    targets = (target(1, "a"), target(2, "a", TargetState.DRAINING), target(3, "b"))
    groups = (m.PlacementGroup(1, 1, (1, 3), (2,)), m.PlacementGroup(2, 1, (3, 1)))
    usage = (m.TargetUsage(1, 1000, 250, 4, 100), m.TargetUsage(2, 0, 0, 0, 100))
    return m.MdsStatus(RAFT, m.ClusterMap(b"c" * 16, 1, (), targets, groups), usage, (), 1, 0, 0, 0, 0, {})


def test_targets_are_shown_with_the_groups_that_hold_and_leave_them():
    rows = describe(status())
    assert [(row["id"], row["state"], row["groups"], row["leaving"]) for row in rows] == [
        (1, "up", 2, 0),
        (2, "draining", 0, 1),
        (3, "up", 2, 0),
    ]
    assert [row["fill_percent"] for row in rows] == [25.0, None, None]
    assert [row["used_bytes"] for row in rows] == [250, 0, None]
    msgspec.json.encode(rows)


def test_nodes_add_up_their_targets():
    a, b = by_node(describe(status()))
    assert (a["node"], a["states"], a["groups"], a["leaving"], a["capacity_bytes"]) == (
        "a",
        {"draining": 1, "up": 1},
        2,
        1,
        2000,
    )
    assert (b["node"], b["used_bytes"], b["chunks"]) == ("b", 0, 0)


@pytest.mark.parametrize("size", ["0", "1KiB", "63MiB", "99999999TiB"])
def test_a_target_is_as_large_as_a_chunk_at_least(size):
    with pytest.raises(UserError, match=r"^--size: .*: expected 64.0 MiB \(one of the largest chunks\) or more$"):
        _bytes(size)
    assert _bytes("64MiB") == 64 << 20
