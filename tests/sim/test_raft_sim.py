"""Raft in the simulated world: faults of every kind, and the promises that must hold whatever happens.

SHOAL_SIM_SEEDS=200 runs more histories than the default; a failure prints the line that repeats it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoalfs.mds import journal as journal_module
from shoalfs.mds import raft_guard, raft_peers
from shoalfs.transport.ids import NodeId
from sim.raft_world import Broken, World

SEEDS = range(int(os.environ.get("SHOAL_SIM_FIRST", "0")), int(os.environ.get("SHOAL_SIM_SEEDS", "20")))
SECONDS = 6.0


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In memory, if there is such a place; with bounds so small that all of them are met."""
    monkeypatch.setattr(journal_module, "LOG_SEGMENT_BYTES", 4 * 1024)
    monkeypatch.setattr(raft_guard, "LOG_BEHIND_ENTRIES_MAX", 30)
    monkeypatch.setattr(raft_guard, "APPEND_ENTRIES_MAX", 8)
    monkeypatch.setattr(raft_peers, "APPEND_IN_FLIGHT_MAX", 4)
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="raft-", dir=shared if shared.is_dir() else None))
    yield path
    shutil.rmtree(path)


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
        world = self.world
        world.cut |= pairs
        world.at(world.now + world.chance.uniform(0.05, 1.5), lambda: world.cut.difference_update(pairs))


def live(world: World) -> None:
    """Clients propose and read at every node, all the time."""
    count = 0
    chance = world.chance
    rate = chance.choice([300.0, 1500.0])

    def propose() -> None:
        nonlocal count
        process = world.processes[world.chance.choice(world.nodes)]
        if world.clients_on and process.up and world.now >= process.stalled_until:
            count += 1
            process.propose(b"%d " % count + bytes(world.chance.randrange(200)))
        # While nobody proposes, a member that is cut off stays electable, and a leader hears late of another.
        is_pause = chance.random() < 0.005
        world.at(world.now + (chance.uniform(0.3, 1.2) if is_pause else chance.expovariate(rate)), propose)

    def read() -> None:
        for process in world.processes.values():
            world.check_read(process)
        world.at(world.now + world.chance.expovariate(300), read)

    propose()
    read()


def heal(world: World, faults: Faults) -> None:
    faults.on = False
    world.loss = 0.0
    world.slow_disks = False
    world.run(3.0)  # restarts and cuts that were under way
    world.cut.clear()


def history(seed: int, directory: Path, kinds: tuple[str, ...], *, size: int = 3) -> World:
    world = World(seed, directory, size=size)
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


KINDS = {
    "network": ("cut", "cut", "ring", "stall"),
    "kill": ("kill", "kill", "cut", "stall"),
    "power": ("power", "power", "cut", "ring", "stall", "disk", "blackout"),
    "snapshot": ("away", "away", "away", "power", "cut", "stall"),
}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_promises_hold(seed: int, kinds: str, directory: Path) -> None:
    try:
        world = history(seed, directory, KINDS[kinds])
    except (Broken, AssertionError):
        print(f"replay: pytest 'tests/sim/test_raft_sim.py::test_promises_hold[{seed}-{kinds}]'")
        raise
    assert len(world.acknowledged) > 20, "the group hardly ever worked"
    assert world.reads > 50


@pytest.mark.parametrize("seed", range(SEEDS.start, SEEDS.start + len(SEEDS) // 5))
def test_promises_hold_among_five(seed: int, directory: Path) -> None:
    try:
        world = history(seed, directory, KINDS["power"], size=5)
    except (Broken, AssertionError):
        print(f"replay: pytest 'tests/sim/test_raft_sim.py::test_promises_hold_among_five[{seed}]'")
        raise
    assert len(world.acknowledged) > 20, "the group hardly ever worked"


@pytest.mark.parametrize("restarts", [False, True], ids=["steady", "voter restarts"])
@pytest.mark.parametrize("seed", range(10))
def test_a_lease_is_good_though_another_wants_to_lead(seed: int, restarts: bool, directory: Path) -> None:
    """Only one of the two followers hears the leader. The other's candidacy must not make the lease a lie, also
    when the one that helped to renew it starts afresh and knows nothing of that.
    """
    world = World(seed, directory, loss=0.0)

    def step() -> None:
        candidate.propose(b"at %.3f" % world.now)
        for process in world.processes.values():
            world.check_read(process)
        world.at(world.now + 0.001, step)

    def restart() -> None:
        voter.stop(power=True)
        voter.start()
        world.at(world.now + world.chance.uniform(0.1, 0.3), restart)

    try:
        world.run(2.0)
        leader = world.processes[world.leaders[max(world.leaders)]]
        candidate, voter = (process for process in world.processes.values() if process is not leader)
        world.cut = {(leader.node, candidate.node), (candidate.node, leader.node)}
        step()
        if restarts:
            restart()
        world.run(3.0)
    finally:
        world.close()
    assert world.reads > 100


def test_members_that_were_away_come_back_by_snapshot(directory: Path) -> None:
    """The histories above do install snapshots."""
    installed = [history(seed, directory / str(seed), KINDS["snapshot"]).installed for seed in range(6)]
    assert sum(installed) >= 3, installed


def test_the_same_seed_is_the_same_history(directory: Path) -> None:
    first = history(7, directory / "a", KINDS["power"])
    second = history(7, directory / "b", KINDS["power"])
    assert first.history == second.history
    assert first.acknowledged == second.acknowledged
