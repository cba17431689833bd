"""What `shoal raft status` makes of the members' answers."""

from shoalfs.fs.cli.raft import describe
from shoalfs.mds.group_messages import FollowerStatus, GroupStatus
from shoalfs.mds.raft_members import Member, Members

MEMBERS = Members(
    7, (Member(1, "p1", "c1"), Member(2, "p2", "c2"), Member(3, "p3", "c3"), Member(5, "p5", "c5", is_voter=False)), 6
)


def answer(node, *, leader=1, term=4, last=100, members=MEMBERS, followers=(), lease_ms=0):
    return GroupStatus(node, leader, term, 10, last, last, 90, 90, lease_ms, members, tuple(followers))


def test_each_member_in_its_state():
    followers = [
        FollowerStatus(2, 95, 3, False),
        FollowerStatus(3, 0, -1, False),
        FollowerStatus(5, 5, 9, True),
    ]
    seen = {1: answer(1, followers=followers, lease_ms=300), 2: answer(2, last=95), 3: None, 5: answer(5, last=5)}
    rows = {row["node"]: row for row in describe(seen)}
    assert {node: row["state"] for node, row in rows.items()} == {
        1: "leader", 2: "voter", 3: "down", 5: "needs snapshot",
    }  # fmt: skip
    assert {node: row["lag"] for node, row in rows.items()} == {1: 0, 2: 5, 3: 100, 5: 95}
    assert rows[1]["lease_ms"] == 300
    assert rows[3]["term"] is None
    assert rows[2]["address"] == "c2"


def test_of_two_that_say_they_lead_the_later_counts():
    seen = {1: answer(1, term=4), 2: answer(2, leader=2, term=5), 3: None, 5: None}
    assert [row["state"] for row in describe(seen)] == ["voter", "leader", "down", "down"]


def test_without_a_leader_nobody_knows_who_lags():
    seen = {1: answer(1, leader=0), 2: None, 3: None, 5: answer(5, leader=0)}
    rows = describe(seen)
    assert [row["state"] for row in rows] == ["voter", "down", "down", "learner"]
    assert {row["lag"] for row in rows} == {None}


def test_the_latest_members_count():
    fewer = Members(9, MEMBERS.members[:2], 6)
    seen = {1: answer(1, members=fewer), 2: answer(2)}
    assert [row["node"] for row in describe(seen)] == [1, 2]
