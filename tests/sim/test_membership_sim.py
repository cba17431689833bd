"""Members come and go while everything else goes wrong: the promises of test_raft_sim hold, and nobody is needed
twice."""

from pathlib import Path

import pytest

from sim.broken import Broken
from sim.members_run import KINDS, history
from sim.seeds import SEEDS


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_members_come_and_go(seed: int, kinds: str, directory: Path) -> None:
    try:
        world, _ = history(seed, directory, KINDS[kinds])
    except (Broken, AssertionError):
        print(f"replay: pytest 'tests/sim/test_membership_sim.py::test_members_come_and_go[{seed}-{kinds}]'")
        raise
    assert len(world.acknowledged) > 20, "the group hardly ever worked"


@pytest.mark.parametrize("seed", range(5))
def test_from_one_node(seed: int, directory: Path) -> None:
    world, administrator = history(seed, directory, KINDS["calm"], size=1)
    assert administrator.joins >= 1
    assert len(world.promises.members) >= 2


def test_much_happens(directory: Path) -> None:
    """The histories above are not idle."""
    done = [history(seed, directory / str(seed), KINDS["network"])[1] for seed in range(3)]
    assert sum(each.joins for each in done) >= 2
    assert sum(each.leaves for each in done) >= 2
    assert sum(each.transfers for each in done) >= 2
