"""Raft in the simulated world: faults of every kind, and the promises that must hold whatever happens.

SHOAL_SIM_SEEDS=200 runs more histories than the default; a failure prints the line that repeats it.
"""

from pathlib import Path

import pytest

from sim.broken import Broken
from sim.faults import KINDS
from sim.raft_run import history
from sim.seeds import SEEDS
from sim.world import World


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
        world.propose(candidate, b"at %.3f" % world.now)
        for process in world.processes.values():
            world.check_read(process)
        world.at(world.now + 0.001, step)

    def restart() -> None:
        voter.stop(power=True)
        voter.start()
        world.at(world.now + world.chance.uniform(0.1, 0.3), restart)

    try:
        world.run(2.0)
        leader = world.processes[world.promises.leaders[max(world.promises.leaders)]]
        candidate, voter = (process for process in world.processes.values() if process is not leader)
        world.network.cut = {(leader.node, candidate.node), (candidate.node, leader.node)}
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
    assert first.promises.history == second.promises.history
    assert first.acknowledged == second.acknowledged
