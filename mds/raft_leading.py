"""What a leader does for its followers: what each has been sent, what it has on disk, how far a majority is.

Part of `GuardedRaft`, without a clock or a disk of its own. The one rule: what counts for the commit index and for the
lease are the voters of the latest members; a learner gets everything and counts for nothing, and so does a leader that
has been removed.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from shoalfs.mds.journal import Entry, Journal
from shoalfs.mds.raft_members import Members, bound, of_majority, promoted
from shoalfs.mds.raft_messages import Append, Appended, Body
from shoalfs.mds.raft_peers import Follower, fitting
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import APPEND_ENTRIES_MAX, PROMOTE_LAG_ENTRIES_MAX


class Emit(Protocol):
    def __call__(self, peer: NodeId, body: Body, payload: Sequence[bytes] = ...) -> None: ...


class Leadership:
    """Begins with each leadership of a node, and is meaningless when that is over."""

    def __init__(self, node: NodeId, term: int, journal: Journal, emit: Emit, members: Members) -> None:
        self._node = node
        self._term = term
        self._journal = journal
        self._emit = emit
        self.followers: dict[NodeId, Follower] = {}
        self.follow(members)

    def follow(self, members: Members) -> None:
        """The members have changed: whoever is new gets everything, whoever is gone nothing more."""
        self._members = members
        self._voters = tuple(members.voters)
        next_index = self._journal.last_index + 1
        known = self.followers
        self.followers = {n: known.get(n) or Follower(next_index) for n in members.nodes if n != self._node}

    # --- how far the group is -------------------------------------------------------------------------------
    def behind(self) -> list[NodeId]:
        return [peer for peer, f in self.followers.items() if f.next_index <= self._journal.base_index]

    def confirmed_at(self, now: float) -> float:
        """A majority has answered, in this term, messages that were sent then or later: then this node led, and nobody
        else could commit anything."""
        return of_majority([now if n == self._node else self.followers[n].agreed_at for n in self._voters])

    def agreed_index(self) -> int:
        """What is on the disks of a majority, and on this one's."""
        durable = self._journal.durable_index
        indices = [durable if n == self._node else self.followers[n].match_index for n in self._voters]
        return min(durable, of_majority(indices))

    def has_everything(self, peer: NodeId) -> bool:
        return self.followers[peer].match_index == self._journal.last_index

    def due_change(self, now: float, recent: float) -> Callable[[Members], Members] | None:
        """A change of the members that is due by itself: note a log that was not known, or let a learner vote that has
        answered within ``recent`` seconds and lacks next to nothing."""
        logs = {peer: follower.log_id for peer, follower in self.followers.items()}
        logs[self._node] = self._journal.log_id
        for member in self._members.members:
            log_id = logs.get(member.node, b"")
            if not member.log_id and log_id and len(self._members.members) > 1:
                return partial(bound, node=member.node, log_id=log_id)
        for member in self._members.members:
            if not member.is_voter and member.node in self.followers:
                follower = self.followers[member.node]
                lacks = self._journal.last_index - follower.match_index
                if lacks <= PROMOTE_LAG_ENTRIES_MAX and follower.answered_at > now - recent:
                    return partial(promoted, node=member.node)
        return None

    # --- sending --------------------------------------------------------------------------------------------
    def send_heartbeats(self, now: float, commit_index: int) -> None:
        for peer in self.followers:
            if not self.send_entries(peer, now, commit_index):
                self._send(peer, [], now, commit_index)

    def send_all(self, now: float, commit_index: int) -> None:
        for peer in self.followers:
            self.send_entries(peer, now, commit_index)

    def send_entries(self, peer: NodeId, now: float, commit_index: int) -> int:
        """Send what the follower has not been sent, as far as there is room. Returns the number of messages."""
        follower, journal = self.followers[peer], self._journal
        count = 0
        while journal.base_index < follower.next_index <= journal.last_index and follower.has_room:
            entries = fitting(journal.slice(follower.next_index, APPEND_ENTRIES_MAX))
            self._send(peer, entries, now, commit_index)
            count += 1
        return count

    def _send(self, peer: NodeId, entries: Iterable[Entry], now: float, commit_index: int) -> None:
        follower, journal = self.followers[peer], self._journal
        entries = list(entries)
        prev_index = max(follower.next_index - 1, journal.base_index)
        prev_term = journal.term_at(prev_index)
        assert prev_term is not None, (prev_index, journal.base_index, journal.last_index)
        sequence = follower.sent(now, entries)
        sizes = tuple((term, len(command)) for command, _, term in entries)
        append = Append(self._term, sequence, prev_index, prev_term, commit_index, sizes, journal.base_index)
        self._emit(peer, append, [command for command, _, _ in entries])

    # --- answers --------------------------------------------------------------------------------------------
    def answered(self, sender: NodeId, answer: Appended, log_id: bytes, now: float) -> None:
        """Raises BadMessage."""
        follower = self.followers[sender]
        if answer.matches:
            if answer.index > self._journal.last_index:
                raise BadMessage(f"{sender} acknowledges entry {answer.index}, which was never sent")
            follower.agreed(answer.sequence, answer.index, now)
        else:
            follower.refused(answer.sequence, answer.index, now)
        follower.log_id = log_id
