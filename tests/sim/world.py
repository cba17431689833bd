"""A small world for Raft: virtual clocks, a network, disks, processes. One seed, one history."""

import random
from collections import Counter
from pathlib import Path

import msgspec

from shoalfs.mds.raft_guard import Outgoing
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.transport.ids import NodeId
from sim.broken import Broken
from sim.checks import Promises, check_log_matching
from sim.machines import Image, ListMachine, SimulatedMachine
from sim.network import Events, Network
from sim.process import Process


class World(Events):
    """The members, and all that they share. Here they carry a list of entries; `StoreWorld` gives them the real state
    machine and clients."""

    def __init__(self, seed: int, directory: Path, *, size: int = 3, loss: float = 0.02) -> None:
        super().__init__()
        self.seed = seed
        self.chance = random.Random(seed)
        self.nodes = [NodeId(n) for n in range(1, size + 1)]
        self.network = Network(self, self.chance, loss)
        self.founders: Members = founders(Member(n, f"peer-{n}", f"client-{n}") for n in self.nodes)
        self.promises = self.make_promises()
        self.met: Counter[str] = self.network.met  # faults, by kind
        self.acknowledged: dict[bytes, int] = {}
        self.reads = 0
        self.installed = 0  # snapshots
        self.slow_disks = False
        self.clients_on = True
        self.directory = directory
        self.processes: dict[NodeId, Process] = {}
        self.gone: set[NodeId] = set()  # removed, or their disk is lost: they may be told to end
        for n in self.nodes:
            self.add(n, b"log of node %04d" % n).start()

    def add(self, node: NodeId, log_id: bytes) -> Process:
        """A process with an empty disk, not started."""
        directory = self.directory / log_id.decode().replace(" ", "-")
        process = self.processes[node] = Process(self, node, directory, log_id)
        if node not in self.nodes:
            self.nodes.append(node)
        return process

    def make_promises(self) -> Promises:
        return Promises(self.founders)

    def make_machine(self, node: NodeId, image: Image | None) -> SimulatedMachine:
        return ListMachine(self.promises, node, image)

    def started(self, process: Process) -> None:
        """From a process that has just begun."""

    def settled(self, process: Process) -> None:
        """From a process that has made a step."""

    def retire(self, node: NodeId) -> None:
        """It never comes back."""
        if self.processes[node].up:
            self.processes[node].stop(power=True)
        self.processes[node].life += 1
        if node in self.nodes:
            self.nodes.remove(node)

    def close(self) -> None:
        for process in self.processes.values():
            if process.up:
                process.stop(power=False)

    # --- network and disks --------------------------------------------------------------------------------
    def send(self, outgoing: Outgoing) -> None:
        message, payload = outgoing.message, b"".join(outgoing.payload)
        data = msgspec.msgpack.encode(message)

        def deliver() -> None:
            target = self.processes.get(message.receiver)
            if target is not None and target.up:
                target.later(0.0, lambda: target.receive(data, payload))

        self.network.carry(message.sender, message.receiver, deliver)

    def can_talk(self, one: NodeId, other: NodeId) -> bool:
        return self.network.is_open(one, other) and self.processes[one].works and self.processes[other].works

    def sync_seconds(self) -> float:
        if self.slow_disks and self.chance.random() < 0.1:
            return self.chance.uniform(0.05, 0.6)
        return self.chance.uniform(0.0005, 0.01)

    # --- a client without a protocol ----------------------------------------------------------------------
    def propose(self, process: Process, entry: bytes) -> None:
        process.propose(entry, lambda applied: self.acknowledged.update({entry: applied.index}))

    def check_read(self, process: Process) -> None:
        """A lease read must see everything that any client was told is done."""
        if process.works and process.guard.may_serve_reads(process.now):
            self.reads += 1
            newest = max(self.acknowledged.values(), default=0)
            if process.machine.applied_index < newest:
                raise Broken(f"node {process.node} serves reads at {process.machine.applied_index} of {newest}")

    # --- the end ------------------------------------------------------------------------------------------
    def check_healed(self) -> None:
        """After everything works again: one leader, everybody equal, nothing acknowledged is lost."""
        whole = [self.processes[node] for node in self.nodes]
        history = self.promises.history
        for process in whole:
            if process.machine.applied_index != len(history):
                raise Broken(f"node {process.node} is at {process.machine.applied_index} of {len(history)}")
            if process.machine.digest() != whole[0].machine.digest():
                raise Broken(f"nodes {whole[0].node} and {process.node} have different states after healing")
        commands = {command for _, _, command in history.values() if command}
        lost = set(self.acknowledged) - commands
        if lost:
            raise Broken(f"acknowledged and lost: {sorted(lost)[:5]}")
        check_log_matching({process.node: process.journal for process in whole})
        if sum(process.guard.is_leader for process in whole) != 1:
            raise Broken("there is not one leader after healing")
