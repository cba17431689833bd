"""Who belongs to the group: each rule that keeps two majorities from missing each other, and lost disks from voting."""

from functools import partial

import pytest

from shoalfs.mds.raft_members import (
    Member,
    MemberHistory,
    Members,
    bound,
    decode_members,
    encode_members,
    founders,
    is_step,
    of_majority,
    promoted,
    with_learner,
    without,
)
from shoalfs.mds.raft_messages import Append, Appended, AskVote, Dismissed, PeerMessage, StandNow, Vote
from shoalfs.transport.errors import BadMessage, NotAllowed, Overloaded
from shoalfs.transport.limits import LEADER_TRANSFER_MS_MAX, MEMBERS_MAX, NODE_MAX
from unit.mds.test_raft_guard import EMPTY, Group, Node, bodies

THREE = founders(Member(n, f"p{n}", f"c{n}") for n in (3, 1, 2))


def add(members, log_id=b"new log"):
    return with_learner(members, "p-new", "c-new", log_id)[0]


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7], 7), ([7, 3], 3), ([1, 9, 5], 5), ([9, 9, 1, 1], 1), ([9, 9, 9, 1], 9), ([5, 1, 4, 2, 3], 3)],
)
def test_a_majority_is_more_than_half(values, expected):
    assert of_majority(values) == expected


def test_a_newcomer_is_a_learner_under_a_new_number_once():
    members, node = with_learner(THREE, "p", "c", b"log")
    assert (node, members.voters) == (4, {1, 2, 3})
    assert with_learner(members, "elsewhere", "c", b"log") == (members, 4)
    gone = without(members, 4)
    assert with_learner(gone, "p", "c", b"log")[1] == 5, "a number is never given twice"


def test_what_is_not_allowed():
    with pytest.raises(NotAllowed, match="only one that votes"):
        without(founders([Member(1, "p", "c")]), 1)
    with pytest.raises(NotAllowed, match="the members are 1, 2, 3"):
        without(THREE, 4)
    with pytest.raises(NotAllowed, match="known at p2 already"):
        with_learner(THREE, "p2", "c", b"log")
    with pytest.raises(NotAllowed, match="all 255 numbers"):
        with_learner(Members(9, THREE.members, NODE_MAX + 1), "p", "c", b"log")
    full = THREE
    for number in range(MEMBERS_MAX - 3):
        full = with_learner(full, f"p{number + 9}", "c", b"%d" % number)[0]
    with pytest.raises(NotAllowed, match="members already"):
        with_learner(full, "p", "c", b"log")


def test_one_voter_at_a_time():
    learning = add(THREE)
    assert is_step(THREE, learning)
    assert is_step(learning, promoted(learning, 4))
    assert is_step(THREE, without(THREE, 3))
    assert not is_step(THREE, without(without(THREE, 3), 2))
    assert not is_step(THREE, promoted(without(learning, 1), 4))


@pytest.mark.parametrize(
    "members",
    [
        Members(1, (), 4),
        Members(1, (Member(1, "p", "c", False),), 2),
        Members(1, (Member(2, "p", "c"), Member(1, "p", "c")), 3),
        Members(1, (Member(1, "p", "c"), Member(1, "p", "c")), 3),
        Members(1, (Member(3, "p", "c"),), 3),
        Members(1, (Member(0, "p", "c"),), 3),
    ],
)
def test_members_that_cannot_be_are_refused(members):
    with pytest.raises(BadMessage):
        decode_members(encode_members(members))


def test_garbage_is_refused():
    with pytest.raises(BadMessage):
        decode_members(b"\xc1 garbage")


def test_the_history_goes_with_the_log():
    one, two = Members(5, THREE.members, 4), Members(9, add(THREE).members, 5)
    history = MemberHistory(THREE)
    history.appended(one)
    history.appended(two)
    history.cut_after(8)
    assert history.latest == one
    assert history.applied == THREE
    assert history.apply_through(4) is None
    history.appended(two)
    assert history.apply_through(20) == two
    assert history.applied is history.latest


# --- the guard ------------------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path):
    group = Group(tmp_path)
    group.elect()
    group.pump()
    yield group
    for node in group.nodes.values():
        node.journal.close()


def change(group, how):
    leader = group.leader()
    key = leader.propose_members(how, group.now)
    leader.flush(group.now)
    return key


def settle(group, *among):
    for _ in range(3):
        group.pump(*among)
        group.tick(0.11, *among)
    group.pump(*among)


def join(group):
    """Node 4 as a learner with everything."""
    node = group.nodes[4] = Node(group.directory, 4, 3, group.now)
    change(group, partial(add, log_id=node.journal.log_id))
    settle(group)
    return node


def test_a_learner_gets_everything_and_counts_for_nothing(group):
    node = join(group)
    group.propose(b"x")
    settle(group)
    assert node.machine.applied == group.nodes[1].machine.applied
    assert node.guard.members.nodes == (1, 2, 3, 4)
    group.propose(b"y")
    group.pump(1, 4)  # the learner has it, no other voter
    assert group.nodes[4].journal.last_index == group.leader().commit_index + 1
    leader = group.leader()
    assert not leader.may_serve_reads(group.now + 0.39), "nor does it renew a lease"


def test_a_learner_never_stands_and_its_vote_is_not_counted(group):
    node = join(group)
    for _ in range(30):
        group.tick(0.1, 4)
    assert not bodies(group.out(4), AskVote)
    for name in (1, 2, 3):
        group.out(name)
    candidate = group.nodes[2].guard
    while not (asked := bodies(group.out(2), AskVote)):
        group.tick(0.1, 2)
    for trial in (True, False):
        group.give_vote(4, 2, Vote(asked[0].term, trial), node.journal.log_id)
    assert candidate.term < asked[0].term, "it does not even stand"
    group.give_vote(3, 2, Vote(asked[0].term, True))
    assert candidate.term == asked[0].term


def test_a_caught_up_learner_is_let_vote_by_the_leader(group):
    join(group)
    due = group.leader().due_change(group.now)
    assert due is not None
    for _ in range(10):  # first come the logs of the founders
        if (due := group.leader().due_change(group.now)) is None:
            break
        change(group, due)
        settle(group)
    members = group.leader().members
    assert members.voters == {1, 2, 3, 4}
    assert all(member.log_id == group.nodes[member.node].journal.log_id for member in members.members)


def test_a_learner_that_is_silent_or_behind_is_not_let_vote(group, monkeypatch):
    monkeypatch.setattr("shoalfs.mds.raft_leading.PROMOTE_LAG_ENTRIES_MAX", 3)
    join(group)
    for member in (1, 2, 3):
        change(group, partial(bound, node=member, log_id=group.nodes[member].journal.log_id))
        settle(group)
    for number in range(5):
        group.propose(b"%d" % number)
    settle(group, 1, 2, 3)
    assert group.leader().due_change(group.now) is None, "it lacks five entries"
    settle(group)
    assert group.leader().due_change(group.now) is not None
    for _ in range(5):
        group.tick(0.1, 1, 2, 3)
        group.pump(1, 2, 3)
    assert group.leader().due_change(group.now) is None, "it has not answered for long"


def test_one_change_at_a_time(group):
    change(group, add)
    with pytest.raises(Overloaded, match="another change"):
        change(group, partial(without, node=3))
    group.pump()
    settle(group)
    change(group, partial(without, node=3))


def test_no_change_before_the_leaders_first_entry_is_applied(tmp_path):
    group = Group(tmp_path)
    while not group.nodes[1].guard.is_leader:
        group.tick(0.05)
        for name in (1, 2):
            if group.nodes[name].journal.position > group.nodes[name].journal.durable_position:
                group.nodes[name].sync(group.now)
        group.give([o for o in group.out(1) if not isinstance(o.message.body, Append)], {2})
        group.give(group.out(2), {1})
    with pytest.raises(Overloaded, match="another change"):
        change(group, add)
    for node in group.nodes.values():
        node.journal.close()


def test_two_voters_at_once_are_our_own_mistake(group):
    with pytest.raises(AssertionError):
        change(group, lambda members: without(without(members, 2), 3))


def test_members_count_from_when_they_are_in_the_log_and_go_when_it_is_cut(group):
    for name in (2, 3):
        group.out(name)
    change(group, partial(without, node=3))
    assert group.leader().members.nodes == (1, 2)
    group.nodes[1].sync(group.now)
    group.out(1)  # lost: nobody else hears of it
    while not group.nodes[2].guard.is_leader:
        group.tick(0.1, 2, 3)
        group.pump(2, 3)
    settle(group)
    assert group.nodes[1].guard.members.nodes == (1, 2, 3)
    assert group.nodes[1].guard.is_voter


def test_members_are_found_again_from_store_and_log(group):
    change(group, add)
    settle(group)
    change(group, partial(without, node=2))
    settle(group)
    expected = group.leader().members
    assert expected.nodes == (1, 3, 4)
    for name in (1, 3):
        group.restart(name)
        assert group.nodes[name].guard.members == expected
        # The store may be ahead of what the founders were.
        group.nodes[name].machine.members = None


def test_a_leader_that_removes_itself_leads_until_that_is_committed_by_the_others(group):
    change(group, partial(without, node=1))
    leader = group.leader()
    group.nodes[1].sync(group.now)
    outgoing = group.out(1)
    group.give(outgoing, {2})
    group.nodes[2].sync(group.now)
    group.give(group.out(2), {1})
    group.tick(0.01, 1)
    assert leader.is_leader, "one of the two others is no majority of them"
    group.give(outgoing, {3})
    group.nodes[3].sync(group.now)
    group.give(group.out(3), {1})
    group.tick(0.01, 1)
    assert not leader.is_leader
    settle(group)
    assert 1 not in group.nodes[2].guard.members.nodes
    for _ in range(30):
        group.tick(0.1)
        group.pump()
    assert group.leader().node in (2, 3)
    assert leader.dismissed == "node 1 was removed from the group"


def test_who_was_removed_disturbs_nobody(group):
    change(group, partial(without, node=3))
    settle(group, 1, 2)
    term = group.leader().term
    for _ in range(30):
        group.tick(0.1)
        group.pump()
    assert group.leader().node == 1
    assert group.leader().term == term
    assert group.nodes[3].guard.dismissed


def test_a_lost_log_is_not_heard_and_told(group):
    for member in (1, 2, 3):
        change(group, partial(bound, node=member, log_id=group.nodes[member].journal.log_id))
        settle(group)
    leader = group.leader()
    vote = PeerMessage(3, 1, Vote(leader.term, False), b"another log")
    leader.receive(vote, EMPTY, group.now)
    match = leader.followers[3].match_index
    group.propose(b"x")
    group.nodes[1].sync(group.now)
    answer = Appended(leader.term, 99, True, group.nodes[1].journal.last_index)
    leader.receive(PeerMessage(3, 1, answer, b"another log"), EMPTY, group.now)
    assert leader.followers[3].match_index == match
    told = bodies(group.out(1), Dismissed)
    assert told == [Dismissed(leader.term, "node 3 has lost the log that the group knows it by")]
    group.nodes[3].guard.receive(PeerMessage(1, 3, told[0], leader._journal.log_id), EMPTY, group.now)
    assert group.nodes[3].guard.dismissed == told[0].reason


def test_a_stranger_may_lead_us(group):
    """Our log may lack the entry that made it a member; the others voted for it."""
    follower = group.nodes[3].guard
    journal = group.nodes[3].journal
    append = Append(follower.term + 1, 1, journal.last_index, journal.last_term, 0, ())
    follower.receive(PeerMessage(9, 3, append, b"log of 9", "p9"), EMPTY, group.now)
    group.nodes[3].sync(group.now)
    assert follower.leader == 9
    assert bodies(group.out(3), Appended)[0].matches


# --- handing over ---------------------------------------------------------------------------------------------


def test_leadership_goes_over_at_once(group):
    group.propose(b"x")
    leader = group.leader()
    leader.hand_over(2, group.now)
    assert leader.is_leader, "node 2 lacks an entry"
    with pytest.raises(Overloaded):
        leader.propose(b"y", group.now)
    before = group.now
    group.pump()
    assert not leader.is_leader
    assert not leader.may_serve_reads(group.now), "no lease outlives a hand-over"
    group.tick(0.001, 2)
    group.pump()
    assert group.leader().node == 2
    assert group.now - before < 0.01
    settle(group)
    assert group.nodes[3].machine.applied == group.nodes[1].machine.applied


def test_a_hand_over_that_takes_too_long_is_given_up(group):
    group.out(2)
    group.propose(b"x")
    leader = group.leader()
    leader.hand_over(2, group.now)
    for _ in range(int(LEADER_TRANSFER_MS_MAX / 100) + 2):
        group.tick(0.1, 1, 3)
        group.pump(1, 3)
    assert leader.is_leader
    assert not leader.is_handing_over
    leader.propose(b"y", group.now)


def test_only_the_leader_of_this_term_can_ask_to_stand(group):
    follower = group.nodes[2].guard
    term = follower.term
    for sender, stand in ((3, StandNow(term)), (1, StandNow(term - 1)), (1, StandNow(term + 1))):
        follower.receive(PeerMessage(sender, 2, stand), EMPTY, group.now)
        group.tick(0.001, 2)
    assert follower.term == term
    follower.receive(PeerMessage(1, 2, StandNow(term)), EMPTY, group.now)
    assert follower.term == term + 1


def test_a_learner_does_not_stand_when_asked(group):
    node = join(group)
    node.guard.receive(PeerMessage(1, 4, StandNow(node.guard.term), b""), EMPTY, group.now)
    group.tick(0.01, 4)
    assert not bodies(group.out(4), AskVote)


def test_whoever_votes_for_a_successor_forgets_no_other_rule(group):
    """A hand-over lifts the wait for the lease, not the comparison of the logs."""
    group.propose(b"x")
    group.pump()
    voter = group.nodes[3].guard
    ask = AskVote(voter.term + 1, 0, 0, False, True)
    voter.receive(PeerMessage(2, 3, ask), EMPTY, group.now)
    group.nodes[3].sync(group.now)
    assert not bodies(group.out(3), Vote)
