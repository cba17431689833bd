"""A history of Raft alone: entries without meaning, proposed and read at every node, all the time."""

from pathlib import Path

from sim.faults import Faults, heal
from sim.world import World

SECONDS = 6.0


def live(world: World) -> None:
    """Clients propose and read at every node, all the time."""
    count = 0
    chance = world.chance
    rate = chance.choice([300.0, 1500.0])

    def propose() -> None:
        nonlocal count
        process = world.processes[world.chance.choice(world.nodes)]
        if world.clients_on and process.works:
            count += 1
            world.propose(process, b"%d " % count + bytes(world.chance.randrange(200)))
        # While nobody proposes, a member that is cut off stays electable, and a leader hears late of another.
        is_pause = chance.random() < 0.005
        world.at(world.now + (chance.uniform(0.3, 1.2) if is_pause else chance.expovariate(rate)), propose)

    def read() -> None:
        for process in world.processes.values():
            world.check_read(process)
        world.at(world.now + world.chance.expovariate(300), read)

    propose()
    read()


def history(seed: int, directory: Path, kinds: tuple[str, ...], *, size: int = 3, doubling: float = 0.02) -> World:
    world = World(seed, directory, size=size)
    world.network.doubling = doubling
    try:
        live(world)
        faults = Faults(world, kinds)
        world.run(SECONDS)
        heal(world, faults)
        world.run(3.0)
        world.clients_on = False
        world.run(1.0)
        world.check_healed()
    finally:
        world.close()
    return world
