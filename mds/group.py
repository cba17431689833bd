"""The group as its operators and its newcomers meet it: join, leave, hand over, look. Handlers over `RaftNode`.

The one rule: a change that would leave the group unable to agree is refused before it is proposed, because it could
not be taken back. A newcomer is taken in as a learner, which cannot harm; it may vote when it has caught up.
"""

import logging
from typing import Final

from shoalfs.mds.group_messages import (
    GET_GROUP,
    JOIN,
    LEAVE,
    TRANSFER_LEADER,
    WHO_LEADS,
    GetGroup,
    GroupStatus,
    Join,
    Joined,
    LeaderIs,
    Leave,
    TransferLeader,
    WhoLeads,
)
from shoalfs.mds.raft_members import Members, with_learner, without
from shoalfs.mds.raft_node import RaftNode
from shoalfs.transport.errors import BadMessage, NotAllowed
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import ADDRESS_BYTES_MAX
from shoalfs.transport.method import Nothing
from shoalfs.transport.service import Call, Service

log: Final = logging.getLogger("shoal.mds.group")

LOG_ID_BYTES: Final = 16


class GroupService:
    """Answers JOIN, LEAVE and TRANSFER_LEADER while this node leads, GET_GROUP and WHO_LEADS always."""

    def __init__(self, raft: RaftNode, cluster_id: bytes) -> None:
        self._raft = raft
        self._cluster_id = cluster_id

    def install(self, service: Service) -> None:
        service.add(JOIN, self._join)
        service.add(LEAVE, self._leave)
        service.add(TRANSFER_LEADER, self._transfer_leader)
        service.add(GET_GROUP, self._get_group)
        service.add(WHO_LEADS, self._who_leads)

    async def _join(self, call: Call, request: Join, payload: memoryview) -> Joined:
        """Raises as RaftNode.change_members, and NotAllowed."""
        addresses = (request.peer_address, request.client_address)
        if len(request.log_id) != LOG_ID_BYTES or any(not 0 < len(a) <= ADDRESS_BYTES_MAX for a in addresses):
            raise BadMessage("a node that joins names its log and its addresses")

        def added(members: Members) -> Members:
            return with_learner(members, *addresses, request.log_id)[0]

        await self._raft.read_barrier()
        members = self._raft.members
        if added(members) is members:
            members = await self._raft.settled_members()
        else:
            members = await self._raft.change_members(added)
        node = with_learner(members, *addresses, request.log_id)[1]
        log.info("node %d at %s joins as a learner", node, request.peer_address)
        return Joined(node, self._cluster_id, members)

    async def _leave(self, call: Call, request: Leave, payload: memoryview) -> Nothing:
        """Raises as RaftNode.change_members, and NotAllowed if the rest could not agree on anything."""

        def checked(members: Members) -> Members:
            rest = without(members, request.node)
            alive = self._raft.alive() & rest.voters
            if 2 * len(alive) <= len(rest.voters):
                silent = ", ".join(map(str, sorted(rest.voters - alive)))
                raise NotAllowed(f"without node {request.node} too few would be left that answer: {silent} do not")
            return rest

        await self._raft.read_barrier()
        await self._raft.change_members(checked)
        log.info("node %d was removed from the group", request.node)
        return Nothing()

    async def _transfer_leader(self, call: Call, request: TransferLeader, payload: memoryview) -> Nothing:
        """Raises as RaftNode.hand_over, and NotAllowed."""
        await self._raft.read_barrier()
        if request.node == self._raft.node:
            return Nothing()
        if request.node not in self._raft.members.voters:
            raise NotAllowed(f"node {request.node} is no voting member of the group")
        if request.node not in self._raft.alive():
            raise NotAllowed(f"node {request.node} does not answer")
        await self._raft.hand_over(NodeId(request.node))
        return Nothing()

    async def _get_group(self, call: Call, request: GetGroup, payload: memoryview) -> GroupStatus:
        return self._raft.group_status()

    async def _who_leads(self, call: Call, request: WhoLeads, payload: memoryview) -> LeaderIs:
        return LeaderIs(self._raft.leader_address(), self._raft.term)
