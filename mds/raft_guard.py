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
from typing import Any, NamedTuple

from shoalfs.mds.journal import Entry, Journal
from shoalfs.mds.raft import Core, RaftTimes, step_clock
from shoalfs.mds.raft_elections import NOW_OR_NEVER, Elections
from shoalfs.mds.raft_leading import Leadership
from shoalfs.mds.raft_members import MemberHistory, Members, decode_members, encode_members, is_step
from shoalfs.mds.raft_messages import (
    COMMAND,
    MEMBERS,
    Append,
    Appended,
    AskVote,
    Body,
    Dismissed,
    PeerMessage,
    StandNow,
    TermPassed,
    Vote,
    entries_of,
    payload_of,
)
from shoalfs.mds.raft_peers import Fit, Follower, fit
from shoalfs.mds.replicated import StateMachine
from shoalfs.transport.errors import BadMessage, Overloaded
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import (
    APPEND_ENTRIES_MAX,
    ENTRY_BYTES_MAX,
    LEADER_TRANSFER_MS_MAX,
    LOG_BEHIND_BYTES_MAX,
    LOG_BEHIND_ENTRIES_MAX,
    LOG_BYTES_MAX,
    NODE_MAX,
    PEER_QUEUE_MAX,
    SNAPSHOT_HELD_BYTES_MAX,
)


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
        members: Members,
        journal: Journal,
        machine: StateMachine,
        times: RaftTimes,
        now: float,
        chance: Callable[[], float],
    ) -> None:
        """``members`` count if the store knows of none. Raises JournalRefused if the store and the log do not belong
        together."""
        self.node = node
        self._history = MemberHistory(machine.members or members)
        self._journal = journal
        self._machine = machine
        self._times = times
        self._elections = Elections(node, journal, times, chance, self._emit)
        self._now = now
        step_clock.now = now
        self._started_at = now
        self._leader_heard_at = NOW_OR_NEVER
        self._leading: Leadership | None = None  # the latest leadership of this node
        self._handing_over: tuple[NodeId, float] | None = None  # leadership, to whom, and when that is given up
        self._dismissed = ""
        self._out: list[Outgoing] = []
        self._held: list[tuple[int, Outgoing]] = []  # (position that must be durable first, message)
        self._applied: list[Applied] = []
        self._snapshot_source: NodeId | None = None
        journal.check_holds(machine.applied_index)
        self._core = Core(self, times, journal, machine.applied_index)
        for command, index, _ in journal.entries:
            if command[:1] == MEMBERS and index > self.members.index:
                self._history.appended(decode_members(command[1:]))
        self._follow_members()
        if self.members.voters == {node}:
            self._core.election_deadline = NOW_OR_NEVER

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
        return self._leading.followers if self.is_leader and self._leading else {}

    @property
    def members(self) -> Members:
        """Who belongs to the group, as the end of the log has it; whether that is committed is another question."""
        return self._history.latest

    @property
    def is_voter(self) -> bool:
        return self._is_voter

    @property
    def dismissed(self) -> str:
        """Why this node is no member any more, as its own store or a member says; else empty."""
        return self._dismissed or self._history.applied.objection(self.node, self._journal.log_id)

    def may_change_members(self) -> bool:
        """It leads, its first entry of the term is applied, and so is the latest change."""
        return self.is_leader and self.applied_index >= max(self._core.no_op_index, self.members.index)

    def behind(self) -> list[NodeId]:
        """Members that need entries that are gone from the log here: only a snapshot can bring them back."""
        return self._leading.behind() if self.is_leader and self._leading else []

    @property
    def snapshot_source(self) -> NodeId | None:
        """The leader whose log does not reach back to where this one ends: only a snapshot can bring us further."""
        return self._snapshot_source

    def may_serve_reads(self, now: float) -> bool:
        """See ReplicatedLog.may_serve_reads."""
        return now < self.serves_reads_until(now)

    def serves_reads_until(self, now: float) -> float:
        """Until when reads may be served from the store unless something changes; in the past if they may not."""
        if not self._has_begun_to_lead():
            return NOW_OR_NEVER
        return self.lease_until(now)

    def confirmed_at(self, now: float) -> float:
        """When this node certainly led, and its store had everything that was acknowledged anywhere. A read that began
        no later may be answered from the store, without a lease and without trust in clocks (the read index of Ongaro's
        dissertation, 6.4; the index is the applied one, which nothing acknowledged is beyond)."""
        if not self._has_begun_to_lead():
            return NOW_OR_NEVER
        assert self._leading is not None
        return self._leading.confirmed_at(now)

    def lease_until(self, now: float) -> float:
        """Until then no majority votes for another than this leader: after a message of its, each of them ignores
        candidates for election_min."""
        assert self._leading is not None
        return self._leading.confirmed_at(now) + self._times.lease_share * self._times.election_min

    def _has_begun_to_lead(self) -> bool:
        """It leads, and has applied its first entry of this term: all that its predecessors acknowledged."""
        return self.is_leader and self.applied_index >= self._core.no_op_index

    # --- stepping -------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Let time act: elections, heartbeats, stepping down. Call it at least every fifth of a heartbeat."""
        self._enter(now)
        self._step()

    def propose(self, entry: bytes, now: float) -> tuple[int, int]:
        """Append; returns (index, term), under which it will come out of `take_applied`. Only while leading.

        Followers get it with the next `flush`. Raises Overloaded while the store's checkpoint is so far behind
        that the log fills the memory, and while
        leadership is being handed over.
        """
        assert self.is_leader
        assert 0 < len(entry) <= ENTRY_BYTES_MAX, len(entry)
        if self._journal.bytes_in_memory > LOG_BYTES_MAX:
            raise Overloaded("the store has no checkpoint for too long a part of the log")
        return self._append(COMMAND + entry, now)

    def propose_members(self, change: Callable[[Members], Members], now: float) -> tuple[int, int]:
        """Change who belongs to the group, by at most one voter. Returns as `propose`. Only while leading.

        Raises what ``change`` raises, and Overloaded while another change is under way.
        """
        assert self.is_leader
        if not self.may_change_members():
            raise Overloaded("another change of the group is under way")
        changed = change(self.members)
        assert is_step(self.members, changed), (self.members, changed)
        members = Members(self._journal.last_index + 1, changed.members, changed.next_node)
        key = self._append(MEMBERS + encode_members(members), now)
        self._history.appended(members)
        self._follow_members()
        return key

    @property
    def is_handing_over(self) -> bool:
        """A `hand_over` has neither succeeded nor been given up."""
        return self._handing_over is not None

    def due_change(self, now: float) -> Callable[[Members], Members] | None:
        """For `propose_members`: what the leader changes by itself, if anything is due and may be changed now."""
        if not self.may_change_members() or self._leading is None or self._handing_over is not None:
            return None
        return self._leading.due_change(now, self._times.election_min)

    def hand_over(self, node: NodeId, now: float) -> None:
        """Give leadership to another voter, as soon as that has everything; nothing is proposed meanwhile.

        Given up after LEADER_TRANSFER_MS_MAX. Raises Overloaded if it is being handed over already.
        """
        assert self.is_leader
        assert node in self.members.voters - {self.node}, (node, self.members)
        if self._handing_over is not None:
            raise Overloaded("leadership is being handed over already")
        self._enter(now)
        self._handing_over = (node, now + LEADER_TRANSFER_MS_MAX / 1000)
        self._step()

    def _append(self, command: bytes, now: float) -> tuple[int, int]:
        if self._handing_over is not None:
            raise Overloaded("leadership is being handed over")
        self._enter(now)
        index, term = self._journal.last_index + 1, self.term
        self._journal.append(index, term, command)
        return index, term

    def flush(self, now: float) -> None:
        """Send what was proposed to the followers: many proposals, one message to each."""
        self._enter(now)
        if self.is_leader and self._leading is not None:
            self._leading.send_all(now, self.commit_index)

    def ask_round(self, now: float) -> None:
        """Send every follower a message now; their answers move `confirmed_at`."""
        self._enter(now)
        if self.is_leader:
            self.send_heartbeats()

    def synced(self, now: float) -> None:
        """The journal has become durable up to a new point."""
        self._enter(now)
        self._note_matches()
        self._step()

    def receive(self, message: PeerMessage, payload: memoryview, now: float) -> None:
        """Take a message of a peer. Raises BadMessage, and then nothing has changed.

        The sender need not be a member that this node knows of: its log may lack the entry that says so.
        """
        sender = message.sender
        if message.receiver != self.node or sender == self.node or not 0 < sender <= NODE_MAX:
            raise BadMessage(f"from {sender} for {message.receiver}, here is {self.node}")
        self._enter(now)
        if not self._is_heard(message):
            return
        match message.body:
            case Append() as body:
                self._on_append(sender, body, entries_of(body, payload))
            case Appended() as body:
                self._on_appended(sender, body, message.log_id)
            case AskVote() as body:
                self._elections.on_ask_vote(self._core, sender, body, refuses=self._refuses_votes())
            case Vote() as body:
                if not (body.trial and self._refuses_votes()):
                    self._elections.on_vote(self._core, self.members, sender, body)
            case TermPassed() as body:
                self._elections.learn_term(self._core, sender, body.term)
            case StandNow() as body:
                self._elections.on_stand_now(self._core, self.members, sender, body)
            case Dismissed() as body:
                self._dismissed = body.reason if self.members.get(sender) else ""
        self._step()

    def _is_heard(self, message: PeerMessage) -> bool:
        """Not who was removed, and not who comes back without its log; both are told."""
        sender, log_id = message.sender, message.log_id
        objection = self._history.applied.objection(sender, log_id)
        if objection:
            if isinstance(message.body, AskVote | Append | Appended):
                self._emit(sender, Dismissed(self.term, objection))
            return False
        known = self.members.get(sender)
        return known is None or known.log_id in (b"", log_id)

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
        if self.members.nodes == (self.node,):
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
        self._elections.consider_standing(self._core, self.members, self._now)
        self._core.doTick(0.0)
        if self.is_leader:
            self._consider_giving_up()

    def _emit(self, peer: NodeId, body: Body, payload: Sequence[bytes] = (), *, after: int = 0) -> None:
        """Send once the journal is durable up to position ``after``."""
        outgoing = Outgoing(PeerMessage(self.node, peer, body, self._journal.log_id, self._address), payload)
        if after <= self._journal.durable_position:
            self._out.append(outgoing)
        elif len(self._held) < PEER_QUEUE_MAX * len(self.members.nodes):
            self._held.append((after, outgoing))  # beyond, it is lost like any message

    # --- elections ------------------------------------------------------------------------------------------
    def _refuses_votes(self) -> bool:
        """A leader was there a moment ago, or may have been and we forgot it with the restart.

        Leases rest on this: whoever helped to renew one helps no other leader before it has run out.
        """
        if self.is_leader and self._leading is not None:
            heard_at = self._leading.confirmed_at(self._now)
        else:
            heard_at = max(self._started_at, self._leader_heard_at)
        return self._now < heard_at + self._times.election_min

    def term_changed(self) -> None:
        """From the core."""
        self._elections.term_changed()

    def election_timeout(self) -> float:
        """From the core."""
        return self._elections.timeout()

    def core_sends(self, peer: NodeId, message: dict[str, Any]) -> None:
        """From the core."""
        if message["type"] != "next_node_idx":  # answered by _on_append, with term and sequence
            self._elections.core_sends(peer, message)

    # --- leading --------------------------------------------------------------------------------------------
    def leadership_begins(self) -> None:
        """From the core, before its no-op is in the log."""
        self._handing_over = None
        self._leading = Leadership(self.node, self.term, self._journal, self._emit, self.members)

    def send_heartbeats(self) -> None:
        """From the core."""
        assert self._leading is not None
        self._leading.send_heartbeats(self._now, self.commit_index)

    def _follow_members(self) -> None:
        voters, me = self.members.voters, self.members.get(self.node)
        self._is_voter = self.node in voters
        self._other_voters = voters - {self.node}
        self._address = me.peer_address if me else ""
        self._core.set_voters(self._other_voters)
        if self.is_leader and self._leading is not None:
            self._leading.follow(self.members)
            self._note_matches()

    def _on_appended(self, sender: NodeId, answer: Appended, log_id: bytes) -> None:
        self._elections.learn_term(self._core, sender, answer.term)
        leading = self._leading
        if not self.is_leader or leading is None or answer.term != self.term or sender not in leading.followers:
            return
        leading.answered(sender, answer, log_id, self._now)
        self._core.note_answer(sender, self._now)
        self._note_matches()
        leading.send_entries(sender, self._now, self.commit_index)

    def _note_matches(self) -> None:
        """What counts for the commit index. The core counts this node itself, and is told the result for the others."""
        if self.is_leader and self._leading is not None:
            agreed = self._leading.agreed_index()
            for peer in self._other_voters:
                self._core.note_match(peer, agreed)

    def _consider_giving_up(self) -> None:
        """A leader that was removed, or that hands over, ends its leadership by itself. No lease outlives that."""
        assert self._leading is not None
        if not self.is_voter and self.applied_index >= self.members.index:
            self.send_heartbeats()  # the others learn that the change is committed
            self._core.step_down()
        elif self._handing_over is not None:
            node, until = self._handing_over
            if node not in self._leading.followers or self._now >= until:
                self._handing_over = None
            elif self._leading.has_everything(node):
                self._handing_over = None
                self._emit(node, StandNow(self.term))
                self._core.step_down()

    # --- following ------------------------------------------------------------------------------------------
    def _on_append(self, sender: NodeId, append: Append, entries: list[Entry]) -> None:
        if append.term < self.term:
            self._emit(sender, TermPassed(self.term), after=self._journal.hard_state_position)
            return
        assert not (self.is_leader and append.term == self.term), f"node {sender} leads this term too"
        self._leader_heard_at = self._now
        self._elections.leader_heard()
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
        self._take_members(fitted)
        self._emit(
            sender,
            Appended(append.term, append.sequence, fitted.matches, fitted.index),
            after=journal.hard_state_position if is_durable else journal.position,
        )

    def _take_members(self, fitted: Fit) -> None:
        """The members go with the log: what was cut is forgotten, what is new counts at once."""
        before = self.members
        if fitted.new:
            self._history.cut_after(fitted.keep)
        for command, _, _ in fitted.new:
            if command[:1] == MEMBERS:
                self._history.appended(decode_members(command[1:]))
        if self.members is not before:
            self._follow_members()

    # --- applying -------------------------------------------------------------------------------------------
    def apply_committed(self) -> int:
        """From the core: apply what is committed and durable here. Returns the new applied index."""
        first = self.applied_index + 1
        end = min(self._core.commit_index, self._journal.durable_index)
        while first <= end:
            entries = self._journal.slice(first, min(end - first + 1, APPEND_ENTRIES_MAX))
            payloads = [(index, term, payload_of(command)) for command, index, term in entries]
            results = self._machine.apply(payloads, self._history.apply_through(entries[-1][1]))
            for (_, index, term), result in zip(entries, results, strict=True):
                self._applied.append(Applied(index, term, result))
            first += len(entries)
        return first - 1
