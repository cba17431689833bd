"""Who belongs to the metadata group, and how that changes. Pure.

The members are replicated state: an entry of the log that carries a whole :class:`Members`. A node goes by the latest
one in its log, committed or not (Ongaro, "Consensus: Bridging Theory and Practice", chapter 4); the applied one is in
the store.

The one rule: one voter more or less at a time, so that any majority of before and any of after have a node in common.
A new node begins as a learner: it gets the log, and neither votes nor counts. Numbers are never given twice. A member
is bound to its log by a random id in the log's files: whoever comes back under its number with another log has lost
its disk, and with it what it promised, and is refused.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from shoalfs.transport.errors import BadMessage, NotAllowed
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import MEMBERS_MAX, NODE_MAX
from shoalfs.transport.method import Message

V = TypeVar("V", int, float)


class Member(Message, frozen=True):
    """``peer_address`` is where the other members reach it, ``client_address`` where clients do; often the same."""

    node: NodeId
    peer_address: str
    client_address: str
    is_voter: bool = True
    log_id: bytes = b""  # 16 random bytes of its log; empty: not known yet


class Members(Message, frozen=True):
    """Invariants: ``members`` are in the order of their numbers, all below ``next_node``; at least one votes."""

    index: int  # of the entry that says so; 0: as the group was made
    members: tuple[Member, ...]
    next_node: int

    def get(self, node: NodeId) -> Member | None:
        return next((member for member in self.members if member.node == node), None)

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(member.node for member in self.members)

    @property
    def voters(self) -> frozenset[NodeId]:
        return frozenset(member.node for member in self.members if member.is_voter)

    def described(self) -> str:
        """For people: "1, 2, 4 (learner)"."""
        return ", ".join(f"{m.node}" if m.is_voter else f"{m.node} (learner)" for m in self.members)

    def objection(self, node: NodeId, log_id: bytes) -> str:
        """Why what this node says is not heard; empty if it is.

        As of an applied state it is for good: no number is given twice, and a log's id never changes.
        """
        known = self.get(node)
        if known is None:
            return f"node {node} was removed from the group" if node < self.next_node else ""
        if known.log_id not in (b"", log_id):
            return f"node {node} has lost the log that the group knows it by"
        return ""


def founders(members: Iterable[Member]) -> Members:
    """The group as it is made."""
    ordered = tuple(sorted(members, key=lambda member: member.node))
    return Members(0, ordered, ordered[-1].node + 1)


def with_learner(members: Members, peer_address: str, client_address: str, log_id: bytes) -> tuple[Members, NodeId]:
    """Add a new member, under a new number. Repeated for the same log, it is the member that was added. Raises
    NotAllowed."""
    known = next((member for member in members.members if log_id and member.log_id == log_id), None)
    if known is not None:
        return members, known.node
    node = NodeId(members.next_node)
    if len(members.members) >= MEMBERS_MAX:
        raise NotAllowed(f"the group has {MEMBERS_MAX} members already: remove one first")
    if node > NODE_MAX:
        raise NotAllowed(f"all {NODE_MAX} numbers of metadata nodes have been used")
    if any(member.peer_address == peer_address for member in members.members):
        raise NotAllowed(f"a member is known at {peer_address} already: remove it first with `shoal mds leave`")
    joined = Member(node, peer_address, client_address, False, log_id)
    return Members(members.index, (*members.members, joined), node + 1), node


def promoted(members: Members, node: NodeId) -> Members:
    """A learner becomes a voter."""
    return _replace(members, node, is_voter=True)


def bound(members: Members, node: NodeId, log_id: bytes) -> Members:
    """Note the log of a member whose log was not known."""
    member = members.get(node)
    assert member is not None, node
    assert not member.log_id, member
    return _replace(members, node, log_id=log_id)


def without(members: Members, node: NodeId) -> Members:
    """Remove a member. Raises NotAllowed."""
    member = members.get(node)
    if member is None:
        raise NotAllowed(f"node {node} is no member: the members are {', '.join(map(str, members.nodes))}")
    if members.voters == {node}:
        raise NotAllowed(f"node {node} is the only one that votes: a group of nobody would lose everything")
    rest = tuple(other for other in members.members if other.node != node)
    return Members(members.index, rest, members.next_node)


def is_step(old: Members, new: Members) -> bool:
    """Whether ``new`` may follow ``old``: any majority of one meets any majority of the other."""
    return len(old.voters ^ new.voters) <= 1 and bool(new.voters) and new.next_node >= old.next_node


def of_majority(values: Sequence[V]) -> V:
    """What more than half of the voters have reached: the middle one of their values, or the one below it."""
    return sorted(values, reverse=True)[len(values) // 2]


def encode_members(members: Members) -> bytes:
    return msgspec.msgpack.encode(members)


def decode_members(data: bytes) -> Members:
    """Raises BadMessage."""
    try:
        members = msgspec.msgpack.decode(data, type=Members)
    except msgspec.DecodeError as error:
        raise BadMessage(f"the members of the group do not decode: {error}") from error
    nodes = members.nodes
    if list(nodes) != sorted(set(nodes)) or not members.voters or not 0 < nodes[0] <= nodes[-1] < members.next_node:
        raise BadMessage("the members of the group contradict each other")
    return members


class MemberHistory:
    """The members as the log has them: the applied ones, and those of entries that are not applied yet.

    At most one of the latter, unless a leader died over them: then what follows may be cut away.
    """

    def __init__(self, applied: Members) -> None:
        self._known = [applied]  # Invariant: in the order of their entries; the first is applied

    @property
    def latest(self) -> Members:
        """What the node goes by."""
        return self._known[-1]

    @property
    def applied(self) -> Members:
        return self._known[0]

    def appended(self, members: Members) -> None:
        if members.index > self.latest.index:
            self._known.append(members)

    def cut_after(self, index: int) -> None:
        """The log's entries after this one are void."""
        self._known = [members for members in self._known if members.index <= index]
        assert self._known, "applied entries are never cut"

    def apply_through(self, index: int) -> Members | None:
        """Entries up to this one are being applied. Returns the members that they lead to, None if the same."""
        count = sum(members.index <= index for members in self._known)
        if count < 2:
            return None
        del self._known[: count - 1]
        return self._known[0]


def _replace(members: Members, node: NodeId, **changes: object) -> Members:
    changed = tuple(
        msgspec.structs.replace(member, **changes) if member.node == node else member for member in members.members
    )
    return Members(members.index, changed, members.next_node)
