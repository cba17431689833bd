"""How nodes come into the metadata group, leave it and take over, and how the group is looked at. Pure: data only."""

from typing import Final

from shoalfs.mds.messages import ADMIN, ANY_CLIENT, MDS
from shoalfs.mds.raft_members import Members
from shoalfs.transport.ids import NodeId
from shoalfs.transport.method import Message, Method, Nothing


class Join(Message, frozen=True):
    """Take me in, as a learner; who has caught up votes. Repeated with the same ``log_id``, it is the same node."""

    log_id: bytes  # 16 random bytes: of the log that the new node is going to have
    peer_address: str
    client_address: str


class Joined(Message, frozen=True):
    """``cluster_id`` is 16 bytes."""

    node: NodeId
    cluster_id: bytes
    members: Members


class Leave(Message, frozen=True):
    """Remove a member, dead or alive; its number is never given again."""

    node: NodeId


class TransferLeader(Message, frozen=True):
    node: NodeId


class GetGroup(Message, frozen=True):
    """Answered by every member, from what it knows."""


class WhoLeads(Message, frozen=True):
    """Answered by every member, from what it knows, for clients that hear nothing of the leader."""


class LeaderIs(Message, frozen=True):
    address: str  # for clients; empty if there is none in this term
    term: int


class FollowerStatus(Message, frozen=True):
    node: NodeId
    match_index: int  # on its disk, as far as the leader knows
    answered_ms_ago: int  # -1: it never acknowledged anything to this leader
    needs_snapshot: bool


class GroupStatus(Message, frozen=True):
    node: NodeId
    leader: int  # 0: unknown
    term: int
    base_index: int  # entries after this one are in its log
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    lease_ms: int  # how long it may serve reads without hearing of the others; 0 if it does not lead
    members: Members
    followers: tuple[FollowerStatus, ...]  # empty if it does not lead


_OPERATORS: Final = frozenset({ADMIN})
JOIN: Final = Method(310, "group.join", Join, Joined, roles=frozenset({MDS}))
LEAVE: Final = Method(311, "group.leave", Leave, Nothing, roles=_OPERATORS)
TRANSFER_LEADER: Final = Method(312, "group.transfer_leader", TransferLeader, Nothing, roles=_OPERATORS)
GET_GROUP: Final = Method(313, "group.get", GetGroup, GroupStatus, roles=frozenset({ADMIN, MDS}))
WHO_LEADS: Final = Method(314, "group.who_leads", WhoLeads, LeaderIs, roles=ANY_CLIENT)
