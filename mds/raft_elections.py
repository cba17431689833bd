"""How a member comes to lead, and how it helps another to. Part of `GuardedRaft`, without a clock of its own.

pysyncobj stands, votes and counts; here is what it lacks. A candidate first asks on trial who would vote for it, so
that a member that was cut off disturbs no term. Only voters of the latest members count, each once in a term. Everybody
answers, learners too: who asks may know of members that this node has not heard of yet.

The one rule: a vote, and the request for one, leave after term and vote are on this disk.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from shoalfs.mds.journal import Journal
from shoalfs.mds.raft import Core, RaftTimes
from shoalfs.mds.raft_members import Members
from shoalfs.mds.raft_messages import AskVote, Body, StandNow, TermPassed, Vote
from shoalfs.transport.ids import NodeId

NOW_OR_NEVER: Final = float("-inf")


class Emit(Protocol):
    def __call__(self, peer: NodeId, body: Body, *, after: int = ...) -> None: ...


class Elections:
    """``chance`` returns numbers in [0, 1)."""

    def __init__(
        self, node: NodeId, journal: Journal, times: RaftTimes, chance: Callable[[], float], emit: Emit
    ) -> None:
        self._node = node
        self._journal = journal
        self._times = times
        self._chance = chance
        self._emit = emit
        self._trial: set[NodeId] | None = None  # who would vote for us; None: no pre-vote is on
        self._votes: set[NodeId] = set()  # whose vote in the current term was counted
        self._handed_term = 0  # this node may stand in that term whatever the voters have promised

    def timeout(self) -> float:
        times = self._times
        return times.election_min + (times.election_max - times.election_min) * self._chance()

    def term_changed(self) -> None:
        self._trial = None
        self._votes.clear()

    def leader_heard(self) -> None:
        self._trial = None

    # --- standing -------------------------------------------------------------------------------------------
    def consider_standing(self, core: Core, members: Members, now: float) -> None:
        """When the leader is silent for long, ask who would vote for us, before any term is disturbed."""
        if core.is_leader or core.election_deadline >= now or core.election_deadline == NOW_OR_NEVER:
            return
        core.election_deadline = now + self.timeout()
        if self._node not in members.voters:
            return
        self._trial = {self._node}
        journal = self._journal
        for peer in sorted(members.voters - {self._node}):
            self._emit(peer, AskVote(core.term + 1, journal.last_index, journal.last_term, True))
        self._stand_if_wanted(core, members)

    def on_stand_now(self, core: Core, members: Members, sender: NodeId, message: StandNow) -> None:
        if message.term == core.term and sender == core.leader and self._node in members.voters:
            self._handed_term = core.term + 1
            core.election_deadline = NOW_OR_NEVER

    def on_vote(self, core: Core, members: Members, sender: NodeId, vote: Vote) -> None:
        if sender not in members.voters:
            return
        if vote.trial:
            if self._trial is not None and vote.term == core.term + 1:
                self._trial.add(sender)
                self._stand_if_wanted(core, members)
        elif vote.term == core.term and sender not in self._votes:
            self._votes.add(sender)
            core.deliver(sender, {"type": "response_vote", "term": vote.term})

    def _stand_if_wanted(self, core: Core, members: Members) -> None:
        assert self._trial is not None
        if 2 * len(self._trial) > len(members.voters):
            self._trial = None
            core.election_deadline = NOW_OR_NEVER  # pysyncobj stands in the coming step

    # --- voting ---------------------------------------------------------------------------------------------
    def on_ask_vote(self, core: Core, sender: NodeId, ask: AskVote, *, refuses: bool) -> None:
        """``refuses``: a lease may rest on this node's silence. It does not if its holder asked for this candidate."""
        journal = self._journal
        if ask.term < core.term or (ask.trial and ask.term == core.term):
            self._emit(sender, TermPassed(core.term), after=journal.hard_state_position)
        elif refuses and not ask.handed_over:
            return
        elif not ask.trial:
            self._deliver_ask(core, sender, ask.term, ask.last_index, ask.last_term)
        elif (ask.last_term, ask.last_index) >= (journal.last_term, journal.last_index):
            self._emit(sender, Vote(ask.term, True))

    def learn_term(self, core: Core, sender: NodeId, term: int) -> None:
        """Someone is in a later term. pysyncobj learns it from a candidate that cannot win."""
        if term > core.term:
            self._deliver_ask(core, sender, term, -1, -1)

    def _deliver_ask(self, core: Core, sender: NodeId, term: int, last_index: int, last_term: int) -> None:
        ask = {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        core.deliver(sender, ask)

    def core_sends(self, peer: NodeId, message: dict[str, Any]) -> None:
        """From the core: translate, and hold back what promises something until it is on disk."""
        kind, term = message["type"], message["term"]
        if kind == "request_vote":
            is_handed = term == self._handed_term
            ask = AskVote(term, message["last_log_index"], message["last_log_term"], False, is_handed)
            self._emit(peer, ask, after=self._journal.position)
        elif kind == "response_vote":
            self._emit(peer, Vote(term, False), after=self._journal.position)
        else:
            raise AssertionError(f"pysyncobj must not send {kind}")
