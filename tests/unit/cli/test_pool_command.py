"""What `shoal pool` understands and shows."""

import msgspec
import pytest

from shoalfs.fs.cli.pool import describe, fragments
from shoalfs.mds import messages as m
from shoalfs.transport.errors import UserError


def test_fragments_are_given_as_data_plus_parity():
    assert fragments("4+2") == (4, 6)
    assert fragments("8+3") == (8, 11)


@pytest.mark.parametrize("text", ["", "4", "4+", "+2", "1+1", "4+0", "a+b", "4+2+1", "-4+2", "4 + 2"])
def test_anything_else_is_one_line(text):
    with pytest.raises(UserError, match="such as 4\\+2"):
        fragments(text)


def test_pools_are_shown_with_their_redundancy_and_groups():
    raft = m.RaftStatus(1, 1, "tcp:m:1", 1, 1, 1, ((1, "tcp:m:1"),))
    pools = (m.Pool(1, "hot", 2, 1), m.Pool(2, "cold", 6, 5, 4))
    groups = (m.PlacementGroup(1, 1, (1, 2)), m.PlacementGroup(2, 2, (1, 2, 3, 4, 5, 6)))
    found = m.MdsStatus(raft, m.ClusterMap(b"c" * 16, 1, pools, (), groups), (), (), 1, 0, 0, 0, 0, {})
    rows = describe(found)
    assert [(row["name"], row["redundancy"], row["min_ack"], row["groups"]) for row in rows] == [
        ("hot", "2 replicas", 1, 1),
        ("cold", "4+2", 5, 1),
    ]
    assert [row["state"] for row in rows] == ["open", "open"]
    msgspec.json.encode(rows)
