"""What the members of the metadata group say to each other. Pure: data and its checks.

One method, one way: a :class:`PeerMessage` wraps one of the bodies below, and nothing else is understood.
Entries travel behind it as raw bytes, one after the other; `entries_of` cuts them apart and checks every
bound first.

These are not pysyncobj's messages: each carries the term and the number that its receiver needs to tell a
late message from a current one. `mds/raft_guard.py` translates.
"""

from typing import Final, NewType

from shoalfs.mds.journal import Entry
from shoalfs.mds.journal_format import PAYLOAD_BYTES_MAX as COMMAND_BYTES_MAX
from shoalfs.mds.raft_members import decode_members
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import APPEND_BYTES_MAX, APPEND_ENTRIES_MAX
from shoalfs.transport.method import Message, Method, Nothing

COMMAND: Final = b"\x00"  # the first byte of an entry says what follows; pysyncobj's numbers
NO_OP: Final = b"\x01"  # a leader's first entry; nothing follows
MEMBERS: Final = b"\x02"  # who belongs to the group from here on

SendNumber = NewType("SendNumber", int)
"""Counts what a leader sent to one follower in one term; the answer repeats it."""


class Append(Message, frozen=True, tag=1):
    """Leader to follower: entries that follow (``prev_index``, ``prev_term``); none of them: a heartbeat."""

    term: int
    sequence: SendNumber
    prev_index: int
    prev_term: int
    commit_index: int
    entries: tuple[tuple[int, int], ...]  # (term, length in bytes) of each; the bytes are in the payload
    base_index: int = 0  # entries up to this one are gone from the leader's log


class Appended(Message, frozen=True, tag=2):
    """The answer. Sent when the follower's disk has everything up to ``index``.

    ``matches``: up to ``index`` its log is the leader's. Otherwise it is not, and the leader may try with
    entries from ``index`` on.
    """

    term: int
    sequence: SendNumber
    matches: bool
    index: int


class AskVote(Message, frozen=True, tag=3):
    """Candidate to member. ``trial``: would you? (pre-vote; ``term`` is the term it would stand in)."""

    term: int
    last_index: int
    last_term: int
    trial: bool
    handed_over: bool = False  # the leader gave up for this candidate: no lease is in the way


class Vote(Message, frozen=True, tag=4):
    """The member's yes; it never says no."""

    term: int
    trial: bool


class TermPassed(Message, frozen=True, tag=5):
    """What you sent is of an old term; the term is this."""

    term: int


class StandNow(Message, frozen=True, tag=6):
    """The leader of this term has given up for the receiver, which has all entries."""

    term: int


class Dismissed(Message, frozen=True, tag=7):
    """You are no member any more, and never will be again under this number."""

    term: int
    reason: str


Body = Append | Appended | AskVote | Vote | TermPassed | StandNow | Dismissed


class PeerMessage(Message, frozen=True):
    """``log_id`` and ``address`` are the sender's: the receiver may know it under another log, or not at all yet."""

    sender: NodeId
    receiver: NodeId
    body: Body
    log_id: bytes = b""
    address: str = ""


PEER: Final = Method(300, "raft.peer", PeerMessage, Nothing, APPEND_BYTES_MAX, 0, frozenset({"mds"}))


def peer_name(node: NodeId) -> str:
    """The name that a member gives in its hello."""
    return f"mds-{node}"


def entries_of(append: Append, payload: memoryview) -> list[Entry]:
    """The entries of a message, as the log keeps them. Raises BadMessage."""
    if len(append.entries) > APPEND_ENTRIES_MAX or len(payload) > APPEND_BYTES_MAX:
        raise BadMessage("too many entries in one message")
    entries: list[Entry] = []
    offset = 0
    index, last_term = append.prev_index, append.prev_term
    for term, size_bytes in append.entries:
        if not 1 <= size_bytes <= COMMAND_BYTES_MAX or not last_term <= term <= append.term:
            raise BadMessage("an entry of an impossible size or term")
        command = bytes(payload[offset : offset + size_bytes])
        index += 1
        if command[:1] not in (COMMAND, NO_OP, MEMBERS):
            raise BadMessage("an entry of an unknown kind")
        if command[:1] == MEMBERS and decode_members(command[1:]).index != index:
            raise BadMessage("the members of another entry")
        last_term = term
        entries.append((command, index, term))
        offset += size_bytes
    if offset != len(payload) or append.prev_index < 0:
        raise BadMessage("the entries do not fill the payload")
    return entries


def payload_of(command: bytes) -> bytes:
    """What an entry means to the state machine; the members are told it apart."""
    assert command[:1] in (COMMAND, NO_OP, MEMBERS), command[:1]
    return b"" if command[:1] == MEMBERS else command[1:]
