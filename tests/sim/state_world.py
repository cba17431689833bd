"""A world with the real state machine and with clients that hold sessions."""

from pathlib import Path

from shoalfs.transport.ids import NodeId
from sim.broken import Broken
from sim.calls import Call
from sim.check_exactly_once import check_exactly_once
from sim.check_registers import check_registers
from sim.check_store import check_store
from sim.check_witness import check_witness
from sim.checks import Promises
from sim.client import Client
from sim.faults import Faults, heal
from sim.frontend import Frontend
from sim.machines import Image, SimulatedMachine, StoreMachine
from sim.process import Process
from sim.workload import Workload
from sim.world import World

SECONDS = 5.0
PATIENCE_SECONDS = 5.0  # after healing, every call is answered within this


class StoreWorld(World):
    def __init__(self, seed: int, directory: Path, *, size: int = 3, loss: float = 0.02) -> None:
        self.calls: list[Call] = []
        self.frontends: dict[NodeId, Frontend] = {}
        self.has_lease = seed % 4 != 3  # the rest reads by a read index
        super().__init__(seed, directory, size=size, loss=loss)
        self.rate = self.chance.choice([15.0, 60.0])  # of calls in each slot, per second
        workload = Workload(self.chance)
        self.clients = [Client(self, number, workload) for number in range(self.chance.randrange(2, 5))]

    def make_promises(self) -> Promises:
        """A client's repetition that arrives in the same nanosecond makes an equal entry."""
        return Promises(self.founders, entries_are_unique=False)

    def make_machine(self, node: NodeId, image: Image | None) -> SimulatedMachine:
        return StoreMachine(self.promises, node, image)

    def started(self, process: Process) -> None:
        self.frontends[process.node] = Frontend(process, has_lease=self.has_lease)

    def settled(self, process: Process) -> None:
        if process.node in self.frontends:
            self.frontends[process.node].settled()

    def check_answered(self) -> None:
        waiting = [client.id for client in self.clients if client.outstanding]
        if waiting:
            raise Broken(f"calls of clients {waiting} are not answered {PATIENCE_SECONDS} s after healing")

    def check_calls(self) -> None:
        """Everything that clients were told, against everything that was applied."""
        history = self.promises.history
        store = self.processes[self.nodes[0]].machine
        assert isinstance(store, StoreMachine)
        check_witness(self.calls, history)
        check_registers(self.calls)
        check_exactly_once(self.calls, history, store.store)
        for node in self.nodes:
            machine = self.processes[node].machine
            assert isinstance(machine, StoreMachine)
            check_store(node, machine.store)

    @property
    def verified(self) -> int:
        """Calls that were answered."""
        return sum(call.answer is not None for call in self.calls)


def cut_clients(world: StoreWorld) -> None:
    """Now and then a client and a member do not hear each other."""

    def cut() -> None:
        chance, pairs = world.chance, set()
        client, node = chance.choice(world.clients).id, chance.choice(world.nodes)
        pairs = {(client, node), (node, client)}
        if chance.random() < 0.5:
            pairs = {chance.choice(sorted(pairs))}
        world.met["fault: client cut off"] += 1
        world.network.cut |= pairs
        world.at(world.now + chance.uniform(0.05, 1.0), lambda: world.network.cut.difference_update(pairs))
        if world.network.loss:
            world.at(world.now + chance.expovariate(2.0), cut)

    cut()


def history(seed: int, directory: Path, kinds: tuple[str, ...], *, size: int = 3) -> StoreWorld:
    """Safety under faults, then healing, then everything has to be answered; then the checkers."""
    world = StoreWorld(seed, directory, size=size)
    try:
        cut_clients(world)
        faults = Faults(world, kinds)
        world.run(SECONDS)
        heal(world, faults)
        world.clients_on = False
        world.run(PATIENCE_SECONDS)
        world.check_answered()
        world.check_healed()
        world.check_calls()
    finally:
        world.close()
    return world
