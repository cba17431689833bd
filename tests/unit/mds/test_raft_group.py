"""Three nodes of the replicated log, with real disks, real time and unix sockets: agree, lose the leader, go on."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from shoalfs.mds.journal import Journal, create_journal
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.mds.raft_messages import PEER, PeerMessage, TermPassed, peer_name
from shoalfs.mds.raft_node import RaftNode
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotLeader, PeerUnreachable, VersionMismatch
from shoalfs.transport.ids import NodeId
from shoalfs.transport.method import Message, Method, Nothing
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

CLUSTER = b"raft-group-test!"
NODES = [NodeId(1), NodeId(2), NodeId(3)]
TIMES = RaftTimes()


class Machine:
    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.applied_index = 0
        self.members: Members | None = None

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[Any]:
        self.members = members or self.members
        for index, _, entry in entries:
            assert index == self.applied_index + 1
            self.applied_index = index
            if entry:
                self.applied.append(entry)
        return [index for index, _, _ in entries]

    def durable_index(self) -> int:
        return 0


class Group:
    def __init__(self, directory: Path, nursery: trio.Nursery, times: RaftTimes) -> None:
        self.directory, self.nursery, self.times = directory, nursery, times
        address = {n: f"unix:{directory}/{n}.sock" for n in NODES}
        self.members = founders(Member(n, address[n], f"client-of-{n}") for n in NODES)
        self.nodes: dict[NodeId, RaftNode] = {}
        self.machines: dict[NodeId, Machine] = {}
        self.services: dict[NodeId, Service] = {}
        self.scopes: dict[NodeId, trio.CancelScope] = {}
        for n in NODES:
            create_journal(directory / f"log-{n}", CLUSTER, n)

    async def start(self, node: NodeId) -> None:
        await self.nursery.start(self._live, node)

    async def _live(self, node: NodeId, *, task_status: trio.TaskStatus[None]) -> None:
        carriers = Carriers.standard(None)
        hello = Hello(cluster_id=CLUSTER, role="mds", name=peer_name(node))
        journal = Journal(self.directory / f"log-{node}", CLUSTER, node)
        try:
            async with open_network(carriers, hello) as network, trio.open_nursery() as nursery:
                self.scopes[node] = nursery.cancel_scope
                self.machines[node] = Machine()
                raft = RaftNode(node, self.members, journal, self.machines[node], network, times=self.times)
                service = self.services[node] = Service()
                service.add(PEER, raft.handle_peer)
                await nursery.start(serve, carriers, self.members.get(node).peer_address, service, hello)
                await nursery.start(raft.run)
                self.nodes[node] = raft
                task_status.started()
        finally:
            journal.close()

    def stop(self, node: NodeId) -> None:
        self.scopes[node].cancel()
        del self.nodes[node]

    async def leader(self) -> RaftNode:
        while True:
            for raft in self.nodes.values():
                if raft.may_serve_reads() or (raft.term_as_leader() and not self.times.lease_share):
                    return raft
            await trio.sleep(0.01)

    async def all_applied(self, count: int) -> None:
        while any(len(self.machines[node].applied) < count for node in self.nodes):
            await trio.sleep(0.01)


@asynccontextmanager
async def three(directory: Path, times: RaftTimes = TIMES) -> AsyncIterator[Group]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            group = Group(directory, nursery, times)
            for node in NODES:
                await group.start(node)
            yield group
            nursery.cancel_scope.cancel()


async def test_all_agree_and_only_the_leader_serves(tmp_path):
    async with three(tmp_path) as group:
        leader = await group.leader()
        indices = []

        async def client(number: int) -> None:
            for n in range(20):
                index, result = await leader.propose(b"%d %d" % (number, n))
                assert index == result
                indices.append(index)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(client, number)
        assert len(set(indices)) == 160
        await group.all_applied(160)
        assert group.machines[NODES[0]].applied == group.machines[NODES[1]].applied
        assert group.machines[NODES[0]].applied == group.machines[NODES[2]].applied
        for raft in group.nodes.values():
            assert raft.leader_address() == f"client-of-{leader.node}"
            assert raft.status().leader == leader.node
            if raft is not leader:
                assert raft.term_as_leader() == 0
                assert not raft.may_serve_reads()
                with pytest.raises(NotLeader, match=f"client-of-{leader.node}"):
                    await raft.propose(b"x")
                with pytest.raises(NotLeader):
                    await raft.read_barrier()
        await leader.read_barrier()


async def test_a_group_says_how_it_is_at_every_moment_of_an_election(tmp_path):
    """Also while a leader has heard of nobody yet: whoever looked then ended it."""
    async with three(tmp_path) as group:
        first = await group.leader()
        group.stop(first.node)
        while not any(raft.may_serve_reads() for raft in group.nodes.values()):
            for raft in group.nodes.values():
                assert raft.group_status().lease_ms >= 0
            await trio.lowlevel.checkpoint()
        assert (await group.leader()).group_status().lease_ms > 0


async def test_readers_without_a_lease_share_rounds(tmp_path):
    # Long timeouts: on a machine that is busy with other things, no other leader shall come in between.
    async with three(tmp_path, RaftTimes(election_min=2.0, election_max=3.0, lease_share=0.0)) as group:
        leader = await group.leader()
        await leader.propose(b"x")
        assert not leader.may_serve_reads()
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(leader.read_barrier)
        for _ in range(20):
            await leader.read_barrier()
        followers = [raft for raft in group.nodes.values() if raft is not leader]
        for raft in followers:
            group.stop(raft.node)
        with pytest.raises(NotLeader):
            await leader.read_barrier()


async def test_the_group_survives_its_leader_and_takes_it_back(tmp_path):
    async with three(tmp_path) as group:
        first = await group.leader()
        for n in range(10):
            await first.propose(b"%d" % n)
        group.stop(first.node)
        began = trio.current_time()
        second = await group.leader()
        assert second.node != first.node
        await second.propose(b"after")
        assert trio.current_time() - began < 5.0
        await group.start(first.node)
        await group.all_applied(11)
        assert group.machines[first.node].applied == [*(b"%d" % n for n in range(10)), b"after"]
        assert not group.nodes[first.node].may_serve_reads()


async def test_a_leader_that_lost_the_others_fails_its_proposals(tmp_path):
    async with three(tmp_path) as group:
        leader = await group.leader()
        for node in NODES:
            if node != leader.node:
                group.stop(node)
        with pytest.raises((PeerUnreachable, NotLeader)):
            while True:
                await leader.propose(b"alone")
        assert leader.term_as_leader() == 0
        assert not leader.may_serve_reads()


async def test_a_member_cannot_speak_for_another(tmp_path):
    async with three(tmp_path) as group:
        leader = await group.leader()
        term = leader.term_as_leader()
        liar = Hello(cluster_id=CLUSTER, role="mds", name="mds-9")
        address = leader.members.get(leader.node).peer_address
        victim = next(node for node in NODES if node != leader.node)
        async with open_network(Carriers.standard(None), liar) as network:
            while not leader.counters["peer_messages_forged"]:
                await network.notify(address, PEER, PeerMessage(victim, leader.node, TermPassed(99)))
                await trio.sleep(0.01)
        assert leader.term_as_leader() == term


async def test_another_cluster_cannot_speak_at_all(tmp_path):
    async with three(tmp_path) as group:
        leader = await group.leader()
        term = leader.term_as_leader()
        stranger = Hello(cluster_id=b"another cluster!", role="mds", name=peer_name(NODES[0]))
        address = leader.members.get(leader.node).peer_address
        async with open_network(Carriers.standard(None), stranger) as network:
            for _ in range(20):
                await network.notify(address, PEER, PeerMessage(NODES[0], leader.node, TermPassed(99)))
                await trio.sleep(0.01)
        assert leader.term_as_leader() == term
        assert not leader.counters["peer_messages_forged"]


class FromTheFuture(Message, frozen=True, tag=99):
    wish: str


class FutureMessage(Message, frozen=True):
    sender: int
    receiver: int
    body: FromTheFuture


async def test_a_member_that_speaks_a_newer_version_is_not_understood_and_does_no_harm(tmp_path):
    """A message of a kind that is not known here is refused and counted; a hello of another version gets no further."""
    future = Method(PEER.number, "raft.peer", FutureMessage, Nothing)
    async with three(tmp_path) as group:
        leader = await group.leader()
        place = group.members.get(leader.node).peer_address
        sender = next(node for node in NODES if node != leader.node)
        hello = Hello(cluster_id=CLUSTER, role="mds", name=peer_name(sender))
        async with open_network(Carriers.standard(None), hello) as network:
            await network.hello(place)
            for _ in range(10):
                await network.notify(place, future, FutureMessage(sender, leader.node, FromTheFuture("lead me")))
            while group.services[leader.node].counters["requests_refused"] < 10:
                await trio.sleep(0.01)
        newer = msgspec.structs.replace(hello, version=hello.version + 1)
        async with open_network(Carriers.standard(None), newer) as network:
            with pytest.raises(VersionMismatch):
                await network.hello(place)
        await leader.propose(b"as ever")
        await group.all_applied(1)
