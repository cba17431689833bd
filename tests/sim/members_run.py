"""A history in which members come and go while everything else goes wrong.

The administrator here does what `shoal mds join`, `leave` and `transfer-leader` do, at any moment, and repeats what
failed. Once in a history a disk is lost, and the node comes back empty under its old number.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from shoalfs.mds.raft_members import Members, with_learner, without
from shoalfs.transport.errors import NotAllowed, Overloaded
from shoalfs.transport.ids import NodeId
from sim.broken import Broken
from sim.checks import check_members_step
from sim.faults import Faults, heal
from sim.process import Process
from sim.raft_run import SECONDS, live
from sim.world import World

VOTERS_MIN, MEMBERS_MAX = 3, 5


class Administrator:
    """One thing at a time: what was begun is finished before the next is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.on = True
        self.joins = self.leaves = self.transfers = 0
        self.joining = b""  # the log of the node that is on its way
        self.leaving: NodeId | None = None
        self.wiped: NodeId | None = None
        self.may_wipe = True
        self._again()

    def _again(self) -> None:
        self.world.at(self.world.now + self.world.chance.uniform(0.02, 0.2), self._act)

    def _act(self) -> None:
        leader = next((p for p in self._running() if p.guard.is_leader), None)
        if leader is not None:
            with suppress(Overloaded, NotAllowed):  # another change is under way; the next round looks again
                self._at(leader)
            leader.guard.flush(leader.now)
            leader.settle()
        self._again()

    def _running(self) -> list[Process]:
        world = self.world
        return [p for n in world.nodes if (p := world.processes[n]).works]

    def _at(self, leader: Process) -> None:
        applied = leader.machine.members or self.world.founders
        if self.joining:
            self._join(leader, applied)
        elif self.leaving is not None:
            self._leave(leader, applied, self.leaving)
        elif self.wiped is not None:
            self.leaving = self.wiped
        elif self.on:
            self._begin(leader, applied)

    def _begin(self, leader: Process, applied: Members) -> None:
        chance = self.world.chance
        kind = chance.choice(["join", "leave", "transfer", "wipe", "nothing"])
        others = sorted(applied.voters - {leader.node})
        if kind == "join" and len(applied.members) < MEMBERS_MAX:
            self.joining = b"log of node %04d" % applied.next_node
        elif kind == "leave" and len(applied.voters) > VOTERS_MIN:
            self.leaving = chance.choice(applied.nodes)
        elif kind == "transfer" and others and not leader.guard.is_handing_over:
            node = chance.choice(others)
            if node in leader.guard.members.voters:
                leader.guard.hand_over(node, leader.now)
                self.transfers += 1
        elif kind == "wipe" and self.may_wipe and len(applied.voters) >= VOTERS_MIN:
            self._wipe(chance.choice(others), applied)

    def _join(self, leader: Process, applied: Members) -> None:
        world = self.world
        log_id = self.joining
        member = next((each for each in applied.members if each.log_id == log_id), None)
        if member is None:
            address = log_id.decode()
            leader.guard.propose_members(lambda now: with_learner(now, address, address, log_id)[0], leader.now)
        elif member.node not in world.processes:
            process = world.add(member.node, log_id)
            process.installing = leader.give_snapshot(member.node)
            world.at(world.now + world.chance.uniform(0.02, 0.5), process.start)
        elif member.is_voter or world.chance.random() < 0.02:  # sometimes the next thing is done to a learner
            self.joins += 1
            self.joining = b""

    def _leave(self, leader: Process, applied: Members, node: NodeId) -> None:
        world = self.world
        if applied.get(node) is not None:
            world.gone.add(node)  # it may hear of it before the administrator does
            leader.guard.propose_members(lambda now: without(now, node), leader.now)
            return
        self.leaves += 1
        self.leaving = None
        if self.wiped == node:
            self.wiped = None
            world.retire(node)
        elif node in world.nodes:
            # It goes on for a while, and must not disturb.
            world.at(world.now + world.chance.uniform(0.1, 3.0), lambda: world.retire(node))

    def _wipe(self, node: NodeId, applied: Members) -> None:
        """Its disk is lost, and it starts afresh under its old number."""
        world = self.world
        is_formed = all(member.log_id for member in applied.members)
        if not is_formed or len(world.founders.members) == 1:
            return  # the two cases that docs/raft.md leaves to the operator
        self.may_wipe = False
        self.wiped = node
        world.gone.add(node)
        if world.processes[node].up:
            world.processes[node].stop(power=True)
        shutil.rmtree(world.processes[node].directory)
        fresh = world.add(node, b"new log of  %04d" % node)
        world.at(world.now + world.chance.uniform(0.0, 0.5), fresh.start)


def history(seed: int, directory: Path, kinds: tuple[str, ...], *, size: int = 3) -> tuple[World, Administrator]:
    world = World(seed, directory, size=size)
    try:
        live(world)
        administrator = Administrator(world)
        faults = Faults(world, kinds)
        world.run(SECONDS)
        heal(world, faults)
        administrator.on = False
        world.run(4.0)
        for node in world.gone & set(world.nodes):
            world.retire(node)
        world.run(1.0)
        world.clients_on = False
        world.run(1.0)
        check_members(world)
        world.check_healed()
    finally:
        world.close()
    return world, administrator


def check_members(world: World) -> None:
    latest = max(world.promises.members.values(), key=lambda members: members.index, default=world.founders)
    if set(latest.nodes) != set(world.nodes):
        raise Broken(f"members {latest.nodes}, running {world.nodes}")
    if len(latest.nodes) > 1 and not all(member.is_voter and member.log_id for member in latest.members):
        raise Broken(f"not everybody votes: {latest}")
    check_members_step(world.promises.members)


KINDS = {
    "network": ("cut", "cut", "ring", "stall"),
    "crash": ("power", "kill", "cut", "stall", "disk", "away"),
    "calm": ("stall",),
}
