"""The real state machine under clients with sessions, and every fault: what clients were told is what happened."""

from pathlib import Path

import pytest

from sim.broken import Broken
from sim.faults import KINDS
from sim.seeds import SEEDS
from sim.state_world import history


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", range(SEEDS.start, SEEDS.start + 2 * len(SEEDS)))
def test_what_clients_are_told_is_what_happened(seed: int, kinds: str, directory: Path) -> None:
    try:
        world = history(seed, directory, KINDS[kinds])
    except (Broken, AssertionError):
        test = "tests/sim/test_state_sim.py::test_what_clients_are_told_is_what_happened"
        print(f"replay: SHOAL_SIM_SEEDS={seed + 1} pytest '{test}[{seed}-{kinds}]'")
        raise
    assert world.verified > 40, "the service hardly ever worked"
    assert world.promises.states_compared > 40


@pytest.mark.parametrize("seed", range(SEEDS.start, SEEDS.start + len(SEEDS) // 5))
def test_among_five(seed: int, directory: Path) -> None:
    try:
        history(seed, directory, KINDS["power"], size=5)
    except (Broken, AssertionError):
        print(f"replay: SHOAL_SIM_SEEDS={5 * seed + 5} pytest 'tests/sim/test_state_sim.py::test_among_five[{seed}]'")
        raise


def test_much_happens(directory: Path) -> None:
    """The histories above meet what they are there for."""
    worlds = [history(seed, directory / str(seed), KINDS["snapshot"]) for seed in range(8)]
    assert sum(world.installed for world in worlds) >= 3
    assert sum(world.met["given up"] for world in worlds) >= 3
    assert sum(world.met["attempt timed out"] for world in worlds) >= 10
    assert sum(world.met["message repeated"] for world in worlds) >= 50
    answers = {call.answer[0] for world in worlds for call in world.calls if call.answer is not None}
    assert {0, 2, 17, 39, 61} <= answers, "ENOENT, EEXIST, ENOTEMPTY and ENODATA are met"


def test_the_same_seed_is_the_same_history(directory: Path) -> None:
    first, second = (history(7, directory / name, KINDS["power"]) for name in "ab")
    assert first.promises.history == second.promises.history
    assert first.promises.states == second.promises.states
    assert first.calls == second.calls
