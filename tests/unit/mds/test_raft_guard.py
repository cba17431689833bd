"""Each hole of pysyncobj that the guard closes, one by one; messages are carried by hand, time is a number."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pysyncobj.pickle
import pytest

from shoalfs.mds import raft as raft_module
from shoalfs.mds import raft_guard as guard_module
from shoalfs.mds.journal import Journal, create_journal
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_guard import GuardedRaft, Outgoing
from shoalfs.mds.raft_members import Member, founders
from shoalfs.mds.raft_messages import Append, Appended, AskVote, PeerMessage, TermPassed, Vote
from shoalfs.transport.errors import BadMessage, Overloaded
from shoalfs.transport.ids import NodeId

CLUSTER = bytes(16)
TIMES = RaftTimes()
EMPTY = memoryview(b"")


def group_of(size):
    return founders(Member(NodeId(n), f"peer-{n}", f"client-{n}") for n in range(1, size + 1))


class Machine:
    def __init__(self) -> None:
        self.applied: list[tuple[int, int, bytes]] = []

    @property
    def applied_index(self) -> int:
        return len(self.applied)

    members = None

    def apply(self, entries, members=None):
        self.members = members or self.members
        self.applied.extend(entries)
        return [entry for _, _, entry in entries]

    def durable_index(self) -> int:
        return 0


class Node:
    def __init__(self, directory: Path, node: int, size: int, now: float) -> None:
        self.directory = directory / str(node)
        if not self.directory.exists():
            create_journal(self.directory, CLUSTER, NodeId(node))
        self.journal = Journal(self.directory, CLUSTER, NodeId(node))
        self.machine = Machine()
        chance = lambda: node / (size + 1)  # noqa: E731
        self.guard = GuardedRaft(NodeId(node), group_of(size), self.journal, self.machine, TIMES, now, chance)

    def sync(self, now: float) -> None:
        self.journal.sync()
        self.guard.synced(now)


class Group:
    """Nodes 1..size. Node 1 has the shortest election timeout, so it leads first."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        self.now = 10.0
        self.size = size
        self.directory = directory
        self.nodes = {n: Node(directory, n, size, self.now) for n in range(1, size + 1)}

    def restart(self, node: int) -> None:
        self.nodes[node].journal.close()
        self.nodes[node] = Node(self.directory, node, self.size, self.now)

    def out(self, node: int) -> list[Outgoing]:
        return self.nodes[node].guard.take_outgoing()

    def give(self, messages: Iterable[Outgoing], only: set[int] | None = None) -> None:
        for message, payload in messages:
            if only is None or message.receiver in only:
                receiver = self.nodes[message.receiver]
                receiver.guard.receive(message, memoryview(b"".join(payload)), self.now)

    def give_vote(self, sender: int, receiver: int, vote: Vote, log_id: bytes = b"") -> None:
        message = PeerMessage(NodeId(sender), NodeId(receiver), vote, log_id)
        self.nodes[receiver].guard.receive(message, EMPTY, self.now)

    def pump(self, *among: int) -> None:
        """Sync and deliver until all is quiet."""
        names = set(among or self.nodes)
        for _ in range(50):
            moved = False
            for name in names:
                if self.nodes[name].journal.position > self.nodes[name].journal.durable_position:
                    self.nodes[name].sync(self.now)
                    moved = True
                messages = self.out(name)
                moved = moved or bool(messages)
                self.give(messages, names)
            if not moved:
                return
        raise AssertionError("messages never end")

    def tick(self, seconds: float, *among: int) -> None:
        self.now += seconds
        for name in among or self.nodes:
            self.nodes[name].guard.tick(self.now)

    def elect(self) -> GuardedRaft:
        for _ in range(50):
            self.tick(0.05)
            self.pump()
            if any(node.guard.is_leader for node in self.nodes.values()):
                break
        assert self.leader().node == 1
        return self.leader()

    def leader(self) -> GuardedRaft:
        (leader,) = [node.guard for node in self.nodes.values() if node.guard.is_leader]
        return leader

    def propose(self, entry: bytes) -> tuple[int, int]:
        leader = self.leader()
        key = leader.propose(entry, self.now)
        leader.flush(self.now)
        return key


@pytest.fixture
def group(tmp_path):
    group = Group(tmp_path)
    yield group
    for node in group.nodes.values():
        node.journal.close()


def bodies(messages: Iterable[Outgoing], kind: type) -> list:
    return [message.body for message, _ in messages if isinstance(message.body, kind)]


def test_three_nodes_agree(group):
    group.elect()
    group.propose(b"one")
    group.pump()
    group.tick(0.11)
    group.pump()
    for node in group.nodes.values():
        assert [entry for _, _, entry in node.machine.applied] == [b"", b"one"]


def test_an_acknowledgement_waits_for_the_followers_disk(group):
    group.elect()
    index, _ = group.propose(b"x")
    group.give(group.out(1))
    assert bodies(group.out(2), Appended) == []
    group.nodes[2].sync(group.now)
    (answer,) = bodies(group.out(2), Appended)
    assert (answer.matches, answer.index) == (True, index)


def test_the_leader_does_not_commit_before_its_own_disk(group):
    leader = group.elect()
    index, _ = group.propose(b"x")
    group.give(group.out(1))
    for n in (2, 3):
        group.nodes[n].sync(group.now)
        group.give(group.out(n))
    assert leader.commit_index < index
    assert leader.applied_index < index
    group.nodes[1].sync(group.now)
    assert leader.commit_index == leader.applied_index == index


def test_a_follower_does_not_apply_before_its_own_disk(group):
    group.elect()
    index, _ = group.propose(b"x")
    group.give(group.out(1), {3})
    group.nodes[1].sync(group.now)
    group.nodes[3].sync(group.now)
    group.give(group.out(3))
    assert group.leader().commit_index == index
    group.tick(0.11, 1)
    group.give(group.out(1), {2})  # the entry was lost on the way to 2, the heartbeat asks for it again
    group.give(group.out(2), {1})
    group.give(group.out(1), {2})
    assert group.nodes[2].journal.last_index == index
    assert group.nodes[2].guard.applied_index < index
    group.nodes[2].sync(group.now)
    assert group.nodes[2].guard.applied_index == index


def test_votes_wait_for_the_disk(group):
    """Neither does a candidate ask nor a member answer before its term and vote are synced."""
    group.now += TIMES.election_max
    group.nodes[1].guard.tick(group.now)
    trials = group.out(1)
    assert [ask.trial for ask in bodies(trials, AskVote)] == [True, True]
    group.give(trials, {2})
    group.give(group.out(2))
    assert group.nodes[1].guard.term == 1
    assert group.out(1) == []
    group.nodes[1].sync(group.now)
    asks = group.out(1)
    assert [ask.trial for ask in bodies(asks, AskVote)] == [False, False]
    group.give(asks, {2})
    assert group.out(2) == []
    group.nodes[2].sync(group.now)
    assert bodies(group.out(2), Vote) == [Vote(1, False)]


def test_a_vote_survives_a_restart(group):
    group.elect()
    group.restart(2)
    assert (group.nodes[2].journal.current_term, group.nodes[2].journal.voted_for) == (1, 1)
    group.now += 1.0
    rival = PeerMessage(NodeId(3), NodeId(2), AskVote(1, 99, 99, False))
    group.nodes[2].guard.receive(rival, memoryview(b""), group.now)
    group.nodes[2].sync(group.now)
    assert bodies(group.out(2), Vote) == []


def test_late_entries_cut_nothing(group):
    """An old message comes again when the log is longer: pysyncobj would cut it there."""
    group.elect()
    group.propose(b"one")
    old = group.out(1)
    group.give(old)
    for n in range(5):
        group.propose(b"%d" % n)
    group.pump()
    before = list(group.nodes[2].journal.entries)
    group.give(old, {2})
    assert group.nodes[2].journal.entries == before
    (answer,) = bodies(group.out(2), Appended)
    assert answer.index < before[-1][1]
    assert answer.matches


def test_a_heartbeat_commits_only_what_it_verified(group):
    """Node 3 has entries that the new leader does not; a commit index says nothing about those."""
    leader = group.elect()
    group.pump()
    last = group.nodes[3].journal.last_index
    stray = PeerMessage(NodeId(1), NodeId(3), Append(leader.term, 10_000, last, 1, 0, ((1, 2), (1, 2))))
    group.nodes[3].guard.receive(stray, memoryview(b"\x00a\x00b"), group.now)
    group.nodes[3].sync(group.now)
    beat = PeerMessage(NodeId(1), NodeId(3), Append(leader.term, 10_001, last, 1, last + 2, ()))
    group.nodes[3].guard.receive(beat, memoryview(b""), group.now)
    assert group.nodes[3].guard.commit_index <= last


def test_an_acknowledgement_of_an_older_leadership_counts_nothing(group):
    leader = group.elect()
    index, term = group.propose(b"x")
    group.nodes[1].sync(group.now)
    late = PeerMessage(NodeId(2), NodeId(1), Appended(term - 1, 1, True, index))
    leader.receive(late, memoryview(b""), group.now)
    assert leader.followers[NodeId(2)].match_index < index
    assert leader.commit_index < index


def test_an_acknowledgement_of_what_was_never_sent_is_refused(group):
    leader = group.elect()
    lie = PeerMessage(NodeId(2), NodeId(1), Appended(leader.term, 1, True, 10**9))
    with pytest.raises(BadMessage, match="never sent"):
        leader.receive(lie, memoryview(b""), group.now)


def test_one_member_has_one_vote(tmp_path):
    """pysyncobj counts every answer; in a group of five, one member's two would make a leader."""
    group = Group(tmp_path, 5)
    guard = group.nodes[1].guard
    group.now += TIMES.election_max
    guard.tick(group.now)
    for voter in (2, 3):
        yes = PeerMessage(NodeId(voter), NodeId(1), Vote(1, True))
        guard.receive(yes, memoryview(b""), group.now)
    assert guard.term == 1
    for _ in range(3):
        yes = PeerMessage(NodeId(2), NodeId(1), Vote(1, False))
        guard.receive(yes, memoryview(b""), group.now)
    assert not guard.is_leader
    yes = PeerMessage(NodeId(3), NodeId(1), Vote(1, False))
    guard.receive(yes, memoryview(b""), group.now)
    assert guard.is_leader
    for node in group.nodes.values():
        node.journal.close()


def test_one_trial_vote_counts_once(tmp_path):
    group = Group(tmp_path, 5)
    guard = group.nodes[1].guard
    group.now += TIMES.election_max
    guard.tick(group.now)
    for _ in range(3):
        yes = PeerMessage(NodeId(2), NodeId(1), Vote(1, True))
        guard.receive(yes, memoryview(b""), group.now)
    assert guard.term == 0
    for node in group.nodes.values():
        node.journal.close()


def test_who_heard_a_leader_helps_no_other(group):
    group.elect()
    ask = AskVote(2, 10**6, 10**6, False)
    for trial in (True, False):
        request = PeerMessage(NodeId(3), NodeId(2), AskVote(2, 10**6, 10**6, trial))
        group.nodes[2].guard.receive(request, memoryview(b""), group.now)
    group.nodes[2].sync(group.now)
    assert bodies(group.out(2), Vote) == []
    assert group.nodes[2].guard.term == 1
    group.now += TIMES.election_min + 0.01
    group.nodes[2].guard.receive(PeerMessage(NodeId(3), NodeId(2), ask), memoryview(b""), group.now)
    group.nodes[2].sync(group.now)
    assert bodies(group.out(2), Vote) == [Vote(2, False)]


def test_who_has_just_started_may_have_heard_a_leader(group):
    group.elect()
    group.restart(2)
    for wait, votes in ((TIMES.election_min * 0.9, []), (TIMES.election_min * 0.2, [Vote(2, True)])):
        group.now += wait
        request = PeerMessage(NodeId(3), NodeId(2), AskVote(2, 10**6, 10**6, True))
        group.nodes[2].guard.receive(request, memoryview(b""), group.now)
        assert bodies(group.out(2), Vote) == votes


def test_a_member_that_is_cut_off_raises_no_term(group):
    group.elect()
    for _ in range(60):
        group.tick(0.05)
        group.pump(1, 2)
        assert all(ask.trial for ask in bodies(group.out(3), AskVote))
    assert group.nodes[3].guard.term == 1
    group.pump()
    assert group.leader().term == 1


def test_a_member_in_a_later_term_gets_a_new_election(group):
    """Its term is behind a leader's messages that it must ignore; it says so, and the leader gives way."""
    leader = group.elect()
    passed = PeerMessage(NodeId(3), NodeId(1), TermPassed(5))
    leader.receive(passed, memoryview(b""), group.now)
    assert not leader.is_leader
    assert leader.term == 5
    for _ in range(60):
        group.tick(0.05)
        group.pump()
    assert group.leader().term > 5


def test_a_leader_without_answers_loses_its_lease_and_then_gives_up(group):
    leader = group.elect()
    group.propose(b"x")
    group.pump()
    assert leader.may_serve_reads(group.now)
    assert not leader.may_serve_reads(group.now + TIMES.election_min)
    for _ in range(12):
        group.tick(0.1, 1)
        group.out(1)
    assert not leader.is_leader


def test_the_lease_counts_from_sending_not_from_answering(group):
    leader = group.elect()
    group.pump()
    group.tick(0.11, 1)
    beats = group.out(1)
    sent_at = group.now
    group.give(beats, {2})
    answers = group.out(2)
    group.now += 0.3
    group.give(answers)
    assert leader.may_serve_reads(sent_at + TIMES.election_min * 0.84)
    assert not leader.may_serve_reads(sent_at + TIMES.election_min * 0.86)


def test_a_read_without_a_lease_is_settled_by_one_round(group):
    leader = group.elect()
    group.pump()
    group.now += TIMES.election_min
    assert not leader.may_serve_reads(group.now)
    began = group.now
    assert leader.confirmed_at(began) < began
    leader.ask_round(began)
    beats = group.out(1)
    assert {beat.message.receiver for beat in beats} == {2, 3}
    group.now += 0.01
    group.give(beats, {3})
    group.give(group.out(3))
    assert leader.confirmed_at(group.now) == began, "this node and one of two others are a majority"
    assert leader.confirmed_at(group.now) < group.now, "a read that begins now needs a round of its own"


def test_a_late_answer_settles_no_read_that_began_after_its_question(group):
    leader = group.elect()
    group.pump()
    leader.ask_round(group.now)
    beats = group.out(1)
    group.now += TIMES.election_min
    began = group.now
    group.give(beats)
    group.give(group.out(2) + group.out(3))
    assert leader.confirmed_at(group.now) < began


def test_who_follows_settles_no_reads(group):
    leader = group.elect()
    group.pump()
    leader.receive(PeerMessage(NodeId(3), NodeId(1), TermPassed(9)), EMPTY, group.now)
    assert leader.confirmed_at(group.now) == float("-inf")
    leader.ask_round(group.now)
    assert not [out for out in group.out(1) if isinstance(out.message.body, Append)]


def test_where_clocks_are_not_trusted_there_is_no_lease(group, monkeypatch):
    monkeypatch.setattr(group.nodes[1].guard, "_times", RaftTimes(lease_share=0.0))
    leader = group.elect()
    group.pump()
    leader.ask_round(group.now)
    group.pump()
    assert not leader.may_serve_reads(group.now)
    assert leader.confirmed_at(group.now) == group.now


def test_no_reads_before_the_no_op_is_applied(group):
    group.now += TIMES.election_max
    leader = group.nodes[1].guard
    leader.tick(group.now)
    group.give(group.out(1), {2})
    group.give(group.out(2))
    group.nodes[1].sync(group.now)
    group.give(group.out(1), {2})
    group.nodes[2].sync(group.now)
    group.give(group.out(2))
    assert leader.is_leader
    assert not leader.may_serve_reads(group.now)
    assert leader.confirmed_at(group.now) < group.now
    group.pump()
    assert leader.may_serve_reads(group.now)


def test_a_lost_message_is_asked_for_again(group):
    group.elect()
    for n in range(10):
        group.propose(b"%d" % n)
        if n < 5:
            group.out(1)  # lost
    group.pump()
    group.tick(0.11)
    group.pump()
    assert group.nodes[2].journal.entries == group.nodes[1].journal.entries


def test_messages_for_others_or_of_impossible_nodes_are_refused(group):
    guard = group.nodes[1].guard
    for sender, receiver in ((0, 1), (256, 1), (2, 3), (1, 1)):
        with pytest.raises(BadMessage):
            guard.receive(PeerMessage(NodeId(sender), NodeId(receiver), TermPassed(9)), memoryview(b""), group.now)
    assert guard.term == 0


@pytest.mark.parametrize("body", [[9, 1], [1, 1], [2, 1, 1, 1, 1], ["x"], [], [6, {}]])
def test_only_known_messages_decode(body):
    data = msgspec.msgpack.encode([1, 2, body])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(data, type=PeerMessage)


def test_a_member_too_far_behind_is_reported_and_left_alone(group, monkeypatch):
    from shoalfs.mds import journal as journal_module

    monkeypatch.setattr(journal_module, "LOG_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(guard_module, "LOG_BEHIND_ENTRIES_MAX", 10)
    leader = group.elect()
    group.nodes[1].machine.durable_index = lambda: leader.applied_index
    for n in range(100):
        group.propose(b"%d" % n)
        group.pump(1, 2)
    assert leader.behind() == []
    journal = group.nodes[1].journal
    journal.remove(journal.drop_through(leader.droppable_index()))
    assert journal.base_index > 50
    group.tick(0.11)
    group.pump()
    assert leader.behind() == [NodeId(3)]
    assert group.nodes[3].guard.leader == 1
    assert group.nodes[3].journal.last_index < 10
    group.propose(b"goes on")
    group.pump()
    assert group.nodes[2].journal.last_index == journal.last_index


def test_proposals_are_refused_when_the_log_fills_the_memory(group, monkeypatch):
    monkeypatch.setattr(guard_module, "LOG_BYTES_MAX", 1000)
    group.elect()
    with pytest.raises(Overloaded):
        for _ in range(100):
            group.propose(b"x" * 100)


def test_pysyncobj_never_pickles(group, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("pickle")

    for name in ("loads", "dumps", "load", "dump"):
        monkeypatch.setattr(pysyncobj.pickle, name, forbidden)
    group.elect()
    for n in range(10):
        group.propose(b"x" * 100_000 + b"%d" % n)
        group.pump()
    assert group.leader().applied_index == 11


def test_another_pysyncobj_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(raft_module, "VERSION", "0.3.18")
    with pytest.raises(AssertionError, match=r"pysyncobj 0\.3\.18"):
        Group(tmp_path, 1)


def test_a_missing_private_name_is_noticed(tmp_path, monkeypatch):
    monkeypatch.delattr(raft_module.library.SyncObj, "_SyncObj__applyLogEntries")
    monkeypatch.setattr(raft_module, "_PRIVATE_METHODS", (*raft_module._PRIVATE_METHODS, "notThere"))
    with pytest.raises(AssertionError, match="notThere"):
        Group(tmp_path, 1)
