"""What Raft promises, checked while it runs, from outside: leaders, logs, and what members apply.

Nothing here asks the code under test whether it is right; it is told what each member did.
"""

from collections.abc import Sequence
from typing import Protocol

from shoalfs.mds.raft_members import Members
from shoalfs.transport.ids import NodeId
from sim.broken import Broken

LoggedEntry = tuple[int, int, bytes]


class LogView(Protocol):
    """What log matching needs of a log."""

    @property
    def entries(self) -> list[tuple[bytes, int, int]]: ...


class Promises:
    """Everything that any member ever did, and the contradictions in it."""

    def __init__(self, founders: Members, *, entries_are_unique: bool = True) -> None:
        self.founders = founders
        self._entries_are_unique = entries_are_unique
        self.leaders: dict[int, NodeId] = {}  # by term
        self.history: dict[int, LoggedEntry] = {}  # by index, as the first member applied it
        self.members: dict[int, Members] = {}  # that were applied, by the index of their entry
        self.states: dict[int, int] = {}  # digest of the state after an index, as the first member had it
        self.states_compared = 0
        self._seen: dict[bytes, int] = {}

    def members_at(self, index: int) -> Members | None:
        known = [members for at, members in self.members.items() if at <= index]
        return max(known, key=lambda members: members.index, default=None)

    def leads(self, node: NodeId, term: int, log: LogView) -> None:
        """At most one in a term; its log has everything that was committed in earlier ones (leader completeness). One
        that learns late that it won, after another led a later term, knows nothing of what that one committed."""
        first = self.leaders.get(term)
        if first is None:
            if term > max(self.leaders, default=0):
                self._check_complete(node, term, log)
            self.leaders[term] = node
        elif first != node:
            raise Broken(f"{first} and {node} both lead term {term}")

    def _check_complete(self, node: NodeId, term: int, log: LogView) -> None:
        base, last = log.entries[0][1], log.entries[-1][1]
        for index in range(base + 1, len(self.history) + 1):
            entry_term = self.history[index][1]
            if entry_term < term and (index > last or log.entries[index - base][2] != entry_term):
                raise Broken(
                    f"node {node} leads term {term} without entry {index} of term {entry_term}, an applied one"
                )

    def applies(
        self, node: NodeId, applied_index: int, entries: Sequence[LoggedEntry], members: Members | None
    ) -> None:
        """The same entry at the same index everywhere, none left out, none twice."""
        if members is not None and self.members.setdefault(members.index, members) != members:
            raise Broken(f"node {node} has other members at {members.index}")
        for expected, entry in enumerate(entries, applied_index + 1):
            index, _, command = entry
            if index != expected:
                raise Broken(f"node {node} applies {index} where {expected} comes next")
            if self.history.setdefault(index, entry) != entry:
                raise Broken(f"node {node} applies {entry} where another applied {self.history[index]}")
            if self._entries_are_unique and command and self._seen.setdefault(command, index) != index:
                raise Broken(f"{command!r} is applied at {index} and at {self._seen[command]}")

    def state_is(self, node: NodeId, index: int, digest: int) -> None:
        """Equal state at equal index."""
        if index in self.states:
            self.states_compared += 1
        if self.states.setdefault(index, digest) != digest:
            raise Broken(f"node {node} has another state at {index} than the first that was there")


def check_log_matching(logs: dict[NodeId, LogView]) -> None:
    """If two logs have an entry of the same index and term, they are equal up to there (Ongaro, figure 3.2). What was
    compacted away cannot be compared."""
    at_place: dict[tuple[int, int], tuple[NodeId, bytes, int]] = {}
    for node, log in logs.items():
        before_term = log.entries[0][2]
        for command, index, term in log.entries[1:]:
            first = at_place.setdefault((index, term), (node, command, before_term))
            if first[1:] != (command, before_term):
                raise Broken(f"the logs of {first[0]} and {node} differ at or before entry {index} of term {term}")
            before_term = term


def check_members_step(members: dict[int, Members]) -> None:
    """Any majority of before meets any majority of after."""
    for before, after in zip(sorted(members), sorted(members)[1:], strict=False):
        old, new = members[before], members[after]
        if len(old.voters ^ new.voters) > 1:
            raise Broken(f"more than one step from {old} to {new}")
