"""What goes wrong in a simulated world, and its healing."""

from shoalfs.transport.ids import NodeId
from sim.world import World

KINDS = {
    "network": ("cut", "cut", "ring", "stall"),
    "kill": ("kill", "kill", "cut", "stall"),
    "power": ("power", "power", "cut", "ring", "stall", "disk", "blackout"),
    "snapshot": ("away", "away", "away", "power", "cut", "stall"),
}


class Faults:
    """Something goes wrong every now and then; most of it heals by itself."""

    def __init__(self, world: World, kinds: tuple[str, ...]) -> None:
        self.world, self.kinds = world, kinds
        world.slow_disks = "disk" in kinds
        self.on = True
        self._schedule()

    def _schedule(self) -> None:
        self.world.at(self.world.now + self.world.chance.expovariate(3.0), self._strike)

    def _strike(self) -> None:
        if not self.on:
            return
        world, chance = self.world, self.world.chance
        process = world.processes[chance.choice(world.nodes)]
        kind = chance.choice(self.kinds)
        world.met[f"fault: {kind}"] += kind != "disk"
        if kind in ("kill", "power") and process.up:
            process.stop(power=kind == "power")
            world.at(world.now + chance.uniform(0.01, 1.2), process.start)
        elif kind == "away" and all(each.up for each in world.processes.values()):
            process.stop(power=True)
            world.at(world.now + chance.uniform(1.0, 2.5), process.start)
        elif kind == "blackout":
            for each in world.processes.values():
                if each.up:
                    each.stop(power=True)
                    world.at(world.now + chance.uniform(0.01, 0.6), each.start)
        elif kind == "stall" and process.up:
            process.stalled_until = world.now + chance.uniform(0.05, 1.5)
        elif kind == "cut" and len(world.nodes) > 1:
            pairs = {(process.node, n) for n in world.nodes if n != process.node}
            if chance.random() < 0.5:
                pairs = {chance.choice(sorted(pairs))}
            if chance.random() < 0.7:
                pairs |= {(b, a) for a, b in pairs}
            self._cut(pairs)
        elif kind == "ring" and len(world.nodes) > 2:
            # One does not hear the leader, another does but is not heard: who may lead, and until when?
            a, b, c = chance.sample(world.nodes, 3)
            self._cut({(a, b), (c, a)})
        self._schedule()

    def _cut(self, pairs: set[tuple[NodeId, NodeId]]) -> None:
        cut = self.world.network.cut
        cut |= pairs
        self.world.at(self.world.now + self.world.chance.uniform(0.05, 1.5), lambda: cut.difference_update(pairs))


def heal(world: World, faults: Faults) -> None:
    faults.on = False
    world.network.loss = world.network.doubling = 0.0
    world.slow_disks = False
    world.run(3.0)  # restarts and cuts that were under way
    world.network.cut.clear()
