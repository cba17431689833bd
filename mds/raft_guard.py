"""One member of a Raft group, made safe around pysyncobj. It is stepped, and knows neither trio nor sockets.

pysyncobj as released acknowledges before its log is on disk, lets late messages move its bookkeeping, cuts
matching entries, and unpickles what it is sent. Here it keeps the state machine of roles, terms and votes and
the rule for the commit index; everything that goes in or out of it passes this filter, and `mds/raft.py` ties
its hands. docs/raft.md lists each hazard with its guard.

Every call takes the time, and leaves messages to send, entries applied, and work for the disk. The one rule:
**nothing leaves and nothing is applied that rests on bytes not yet on this disk.** So an answer or a vote is
held until the journal is durable up to what it promises, and only durable entries are applied. Entries
themselves go out to the followers at once, while this node's own sync runs.

A member that is further behind than the leader's log reaches back says so (`snapshot_source`); fetching a snapshot
and starting again with it is the shell's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shoalfs.mds.journal import Entry, Journal, JournalRefused
from shoalfs.mds.raft import Core, RaftTimes, step_clock
from shoalfs.mds.raft_messages import (
    COMMAND,
    NO_OP,
    Append,
    Appended,
    AskVote,
    Body,
    PeerMessage,
    TermPassed,
    Vote,
    entries_of,
)
from shoalfs.mds.raft_peers import Follower, fit, fitting, quorum_agreed_at
from shoalfs.mds.replicated import StateMachine
from shoalfs.transport.errors import BadMessage, Overloaded
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import (
    APPEND_ENTRIES_MAX,
    ENTRY_BYTES_MAX,
    LOG_BEHIND_BYTES_MAX,
    LOG_BEHIND_ENTRIES_MAX,
    LOG_BYTES_MAX,
    PEER_QUEUE_MAX,
    SNAPSHOT_HELD_BYTES_MAX,
)

_LEASE_SHARE: Final = 0.85  # of the shortest election timeout: clocks may differ by 15 % over 0.4 s
_NOW_OR_NEVER: Final = float("-inf")


class Outgoing(NamedTuple):
    message: PeerMessage
    payload: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Applied:
    index: int
    term: int
    result: Any


class GuardedRaft:
    """One member.

    ``chance`` returns numbers in [0, 1). Times are of one monotonic clock that counts suspension.
    """

    def __init__(
        self,
        node: NodeId,
        peers: Sequence[NodeId],
        journal: Journal,
        machine: StateMachine,
        times: RaftTimes,
        now: float,
        chance: Callable[[], float],
    ) -> None:
        """Raises JournalRefused if the store and the log do not belong together."""
        assert node not in peers, (node, peers)
        self.node = node
        self.peers = tuple(peers)
        self._journal = journal
        self._machine = machine
        self._times = times
        self._chance = chance
        self._now = now
        step_clock.now = now
        self._started_at = now
        self._leader_heard_at = _NOW_OR_NEVER
        self._trial: set[NodeId] | None = None  # who would vote for us; None: no pre-vote is on
        self._votes: set[NodeId] = set()  # whose vote in the current term was counted
        self._followers: dict[NodeId, Follower] = {}  # of the latest leadership of this node
        self._out: list[Outgoing] = []
        self._held: list[tuple[int, Outgoing]] = []  # (position that must be durable first, message)
        self._applied: list[Applied] = []
        self._snapshot_source: NodeId | None = None
        _check_store(journal, machine)
        self._core = Core(self, times, journal, machine.applied_index)
        if not peers:
            self._core.election_deadline = _NOW_OR_NEVER

    # --- what it knows --------------------------------------------------------------------------------------
    @property
    def is_leader(self) -> bool:
        return self._core.is_leader

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader(self) -> NodeId | None:
        return self._core.leader

    @property
    def commit_index(self) -> int:
        """Never beyond this disk. (pysyncobj counts the leader itself as soon as it has appended.)"""
        return min(self._core.commit_index, self._journal.durable_index)

    @property
    def applied_index(self) -> int:
        return self._core.applied_index

    @property
    def followers(self) -> dict[NodeId, Follower]:
        """How far the others are, while this node leads. Read only."""
        return self._followers if self.is_leader else {}

    def behind(self) -> list[NodeId]:
        """Members that need entries that are gone from the log here: only a snapshot can bring them back."""
        return [peer for peer, f in self.followers.items() if f.next_index <= self._journal.base_index]

    @property
    def snapshot_source(self) -> NodeId | None:
        """The leader whose log does not reach back to where this one ends: only a snapshot can bring us further."""
        return self._snapshot_source

    def may_serve_reads(self, now: float) -> bool:
        """See ReplicatedLog.may_serve_reads."""
        if not self.is_leader or self.applied_index < self._core.no_op_index:
            return False
        return now < self._lease_until(now)

    def _lease_until(self, now: float) -> float:
        """Until then no majority votes for another: after a message each ignores candidates for election_min."""
        lease = self._times.election_min * _LEASE_SHARE
        return quorum_agreed_at(self._followers.values(), now) + lease

    # --- stepping -------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Let time act: elections, heartbeats, stepping down. Call it at least every fifth of a heartbeat."""
        self._enter(now)
        self._step()

    def propose(self, entry: bytes, now: float) -> tuple[int, int]:
        """Append; returns (index, term), under which it will come out of `take_applied`. Only while leading.

        Followers get it with the next `flush`. Raises Overloaded while the store's checkpoint is so far behind
        that the log fills the memory.
        """
        assert self.is_leader
        assert 0 < len(entry) <= ENTRY_BYTES_MAX, len(entry)
        if self._journal.bytes_in_memory > LOG_BYTES_MAX:
            raise Overloaded("the store has no checkpoint for too long a part of the log")
        self._enter(now)
        index, term = self._journal.last_index + 1, self.term
        self._journal.append(index, term, COMMAND + entry)
        return index, term

    def flush(self, now: float) -> None:
        """Send what was proposed to the followers: many proposals, one message to each."""
        self._enter(now)
        if self.is_leader:
            for peer in self.peers:
                self._send_entries(peer)

    def synced(self, now: float) -> None:
        """The journal has become durable up to a new point."""
        self._enter(now)
        self._note_matches()
        self._step()

    def receive(self, message: PeerMessage, payload: memoryview, now: float) -> None:
        """Take a message of a peer. Raises BadMessage, and then nothing has changed."""
        if message.receiver != self.node or message.sender not in self.peers:
            raise BadMessage(f"from {message.sender} for {message.receiver}, here is {self.node}")
        self._enter(now)
        sender = message.sender
        match message.body:
            case Append() as body:
                self._on_append(sender, body, entries_of(body, payload))
            case Appended() as body:
                self._on_appended(sender, body)
            case AskVote() as body:
                self._on_ask_vote(sender, body)
            case Vote() as body:
                self._on_vote(sender, body)
            case TermPassed() as body:
                self._learn_term(sender, body.term)
        self._step()

    def take_outgoing(self) -> list[Outgoing]:
        """Messages that may leave now."""
        durable = self._journal.durable_position
        held = []
        for position, outgoing in self._held:
            if position > durable:
                held.append((position, outgoing))
            elif outgoing.message.body.term == self.term:
                self._out.append(outgoing)
        self._held = held
        out, self._out = self._out, []
        return out

    def take_applied(self) -> list[Applied]:
        """Entries applied since the last call, with their results."""
        applied, self._applied = self._applied, []
        return applied

    def droppable_index(self, held: int | None = None) -> int:
        """Entries up to here are on disk in the store, and kept long enough for members that are behind.

        ``held``: what follows this one is still needed by a member that is being sent a snapshot.
        """
        safe = min(self._machine.durable_index(), self.applied_index)
        if held is not None and self._journal.bytes_in_memory <= SNAPSHOT_HELD_BYTES_MAX:
            safe = min(safe, held)
        if not self.peers:
            return safe
        wanted = min((f.match_index for f in self.followers.values()), default=0)
        return min(safe, max(wanted, self._journal.last_index - self._kept_for_others()))

    def _kept_for_others(self) -> int:
        """How many of the last entries are kept at most for members that are behind."""
        size_bytes = 0
        for count, (command, _, _) in enumerate(reversed(self._journal.entries)):
            size_bytes += len(command)
            if count >= LOG_BEHIND_ENTRIES_MAX or size_bytes > LOG_BEHIND_BYTES_MAX:
                return count
        return len(self._journal.entries)

    # --- inside ---------------------------------------------------------------------------------------------
    def _enter(self, now: float) -> None:
        assert now >= self._now, (now, self._now)
        self._now = now
        step_clock.now = now

    def _step(self) -> None:
        self._consider_standing()
        self._core.doTick(0.0)

    def _emit(self, peer: NodeId, body: Body, payload: Sequence[bytes] = (), *, after: int = 0) -> None:
        """Send once the journal is durable up to position ``after``."""
        outgoing = Outgoing(PeerMessage(self.node, peer, body), payload)
        if after <= self._journal.durable_position:
            self._out.append(outgoing)
        elif len(self._held) < PEER_QUEUE_MAX * len(self.peers):
            self._held.append((after, outgoing))  # beyond, it is lost like any message

    # --- elections ------------------------------------------------------------------------------------------
    def _refuses_votes(self) -> bool:
        """A leader was there a moment ago, or may have been and we forgot it with the restart.

        Leases rest on this: whoever helped to renew one helps no other leader before it has run out.
        """
        wait = self._times.election_min
        if self.is_leader:
            return self._now < self._lease_until(self._now)
        return self._now < max(self._started_at, self._leader_heard_at) + wait

    def _consider_standing(self) -> None:
        """When the leader is silent for long, ask who would vote for us, before any term is disturbed."""
        core = self._core
        if core.is_leader or core.election_deadline >= self._now or not self.peers:
            return
        if core.election_deadline == _NOW_OR_NEVER:
            return
        core.election_deadline = self._now + self.election_timeout()
        self._trial = {self.node}
        journal = self._journal
        for peer in self.peers:
            self._emit(peer, AskVote(self.term + 1, journal.last_index, journal.last_term, True))

    def _is_majority(self, count: int) -> bool:
        return 2 * count > len(self.peers) + 1

    def _on_ask_vote(self, sender: NodeId, ask: AskVote) -> None:
        if ask.term < self.term or (ask.trial and ask.term == self.term):
            self._emit(sender, TermPassed(self.term), after=self._journal.hard_state_position)
        elif self._refuses_votes():
            return
        elif ask.trial:
            journal = self._journal
            if (ask.last_term, ask.last_index) >= (journal.last_term, journal.last_index):
                self._emit(sender, Vote(ask.term, True))
        else:
            self._core.deliver(
                sender,
                {
                    "type": "request_vote",
                    "term": ask.term,
                    "last_log_index": ask.last_index,
                    "last_log_term": ask.last_term,
                },
            )

    def _on_vote(self, sender: NodeId, vote: Vote) -> None:
        if vote.trial:
            if self._trial is None or vote.term != self.term + 1 or self._refuses_votes():
                return
            self._trial.add(sender)
            if self._is_majority(len(self._trial)):
                self._trial = None
                self._core.election_deadline = _NOW_OR_NEVER  # pysyncobj stands in the coming step
        elif vote.term == self.term and sender not in self._votes:
            self._votes.add(sender)
            self._core.deliver(sender, {"type": "response_vote", "term": vote.term})

    def _learn_term(self, sender: NodeId, term: int) -> None:
        """Someone is in a later term. pysyncobj learns it from a candidate that cannot win."""
        if term > self.term:
            self._core.deliver(
                sender, {"type": "request_vote", "term": term, "last_log_index": -1, "last_log_term": -1}
            )

    def term_changed(self) -> None:
        """From the core."""
        self._trial = None
        self._votes.clear()

    def election_timeout(self) -> float:
        """From the core."""
        times = self._times
        return times.election_min + (times.election_max - times.election_min) * self._chance()

    def core_sends(self, peer: NodeId, message: dict[str, Any]) -> None:
        """From the core: translate, and hold back what promises something until it is on disk."""
        kind = message["type"]
        if kind == "next_node_idx":
            return  # answered by _on_append, with term and sequence
        if kind == "request_vote":
            ask = AskVote(message["term"], message["last_log_index"], message["last_log_term"], False)
            self._emit(peer, ask, after=self._journal.position)
        elif kind == "response_vote":
            self._emit(peer, Vote(message["term"], False), after=self._journal.position)
        else:
            raise AssertionError(f"pysyncobj must not send {kind}")

    # --- leading --------------------------------------------------------------------------------------------
    def leadership_begins(self) -> None:
        """From the core, before its no-op is in the log."""
        next_index = self._journal.last_index + 1
        self._followers = {peer: Follower(next_index) for peer in self.peers}

    def send_heartbeats(self) -> None:
        """From the core."""
        for peer in self.peers:
            if not self._send_entries(peer):
                self._send_one(peer, [])

    def _send_entries(self, peer: NodeId) -> int:
        """Send what the follower has not been sent, as far as there is room.

        Returns the number of messages.
        """
        follower, journal = self._followers[peer], self._journal
        count = 0
        while journal.base_index < follower.next_index <= journal.last_index and follower.has_room:
            self._send_one(peer, fitting(journal.slice(follower.next_index, APPEND_ENTRIES_MAX)))
            count += 1
        return count

    def _send_one(self, peer: NodeId, entries: list[Entry]) -> None:
        follower, journal = self._followers[peer], self._journal
        prev_index = max(follower.next_index - 1, journal.base_index)
        prev_term = journal.term_at(prev_index)
        assert prev_term is not None, (prev_index, journal.base_index, journal.last_index)
        sequence = follower.sent(self._now, entries)
        sizes = tuple((term, len(command)) for command, _, term in entries)
        append = Append(self.term, sequence, prev_index, prev_term, self.commit_index, sizes, journal.base_index)
        self._emit(peer, append, [command for command, _, _ in entries])

    def _on_appended(self, sender: NodeId, answer: Appended) -> None:
        self._learn_term(sender, answer.term)
        if not self.is_leader or answer.term != self.term:
            return
        follower = self._followers[sender]
        if answer.matches:
            if answer.index > self._journal.last_index:
                raise BadMessage(f"{sender} acknowledges entry {answer.index}, which was never sent")
            follower.agreed(answer.sequence, answer.index, self._now)
        else:
            follower.refused(answer.sequence, answer.index, self._now)
        self._core.note_answer(sender, self._now)
        self._note_matches()
        self._send_entries(sender)

    def _note_matches(self) -> None:
        """What counts for the commit index: on the follower's disk and on this one's."""
        if self.is_leader:
            for peer, follower in self._followers.items():
                self._core.note_match(peer, min(follower.match_index, self._journal.durable_index))

    # --- following ------------------------------------------------------------------------------------------
    def _on_append(self, sender: NodeId, append: Append, entries: list[Entry]) -> None:
        if append.term < self.term:
            self._emit(sender, TermPassed(self.term), after=self._journal.hard_state_position)
            return
        assert not (self.is_leader and append.term == self.term), f"node {sender} leads this term too"
        self._leader_heard_at = self._now
        self._trial = None
        fitted = fit(self._journal, self._core.commit_index, append.prev_index, append.prev_term, entries)
        # Its first attempt may have been at an entry too high; the base is the lowest that it can try.
        is_beyond = not fitted.matches and append.prev_index <= append.base_index
        self._snapshot_source = sender if is_beyond else None
        self._core.deliver(
            sender,
            {
                "type": "append_entries",
                "term": append.term,
                "commit_index": min(append.commit_index, fitted.index) if fitted.matches else 0,
                "entries": fitted.new,
                "prevLogIdx": fitted.keep,
                "prevLogTerm": self._journal.term_at(fitted.keep),
            },
        )
        journal = self._journal
        is_durable = not fitted.matches or fitted.index <= journal.durable_index
        self._emit(
            sender,
            Appended(append.term, append.sequence, fitted.matches, fitted.index),
            after=journal.hard_state_position if is_durable else journal.position,
        )

    # --- applying -------------------------------------------------------------------------------------------
    def apply_committed(self) -> int:
        """From the core: apply what is committed and durable here. Returns the new applied index."""
        first = self.applied_index + 1
        end = min(self._core.commit_index, self._journal.durable_index)
        while first <= end:
            entries = self._journal.slice(first, min(end - first + 1, APPEND_ENTRIES_MAX))
            payloads = [(index, term, _payload(command)) for command, index, term in entries]
            results = self._machine.apply(payloads)
            for (_, index, term), result in zip(entries, results, strict=True):
                self._applied.append(Applied(index, term, result))
            first += len(entries)
        return first - 1


def _payload(command: bytes) -> bytes:
    assert command[:1] in (COMMAND, NO_OP), command[:1]
    return command[1:]


def _check_store(journal: Journal, machine: StateMachine) -> None:
    applied = machine.applied_index
    if not journal.base_index <= applied <= journal.last_index:
        raise JournalRefused(
            f"the store is at entry {applied}, but the log holds {journal.base_index + 1} to "
            f"{journal.last_index}: they are not of the same node, or one is an old copy"
        )
