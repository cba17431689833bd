"""Each guard of the data protocol is taken out, and a promise is seen to be broken: what neither the exploration nor
the histories would find, they do not test."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from shoalfs.mds import messages as m
from sim import data_run
from sim.broken import Broken
from sim.data_spaces import PARTS, explore_part
from sim.data_world import DataWorld
from sim.planted import planted
from sim.planted_data import BUGS


def many_leaving(seed: int) -> None:
    """The only copy of a chunk is with one of many who are leaving its group."""
    world = DataWorld(8, min_ack=1)
    group = world.md.map().groups[seed]
    (first, second) = group.targets
    chunk = world.write(group, {second})
    world.servers[first - 1].disk.pop(chunk, None)
    others = [server.id for server in world.servers if server.id not in group.targets]
    for members in (others[:2], others[2:4], others[4:6]):
        epoch = world.md.map().groups[seed].epoch
        world.md.do(m.ChangeGroup(group.id, epoch, tuple(members)), session=0)
        world.check()
    assert len(world.md.map().groups[seed].leaving) == 6
    world.until(world.settled, "it was found", 30)
    world.check()


WORLDS: dict[str, Callable[[int], Any]] = {
    **{pool: partial(data_run.history, pool=pool) for pool in data_run.POOLS},
    **{part: lambda seed, part=part: explore_part(part) for part in PARTS},
    "many leaving": many_leaving,
}


def found(name: str) -> tuple[int, str]:
    """How many explorations or histories it took, and what was said. A crash of the code under test does not count."""
    bug = BUGS[name]
    count = 0
    with planted(bug):
        for seed in range(bug.seeds):
            for where in bug.where:
                if where in PARTS and seed:
                    continue  # it is the same each time
                count += 1
                try:
                    WORLDS[where](seed)
                except Broken as error:
                    return count, f"{where}: {error}"
    raise AssertionError(f"{name} is not found in {count} explorations and histories")


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, record_property: Callable[[str, object], None]) -> None:
    count, what = found(name)
    record_property("histories", count)
    print(f"{name}: {what}")


def test_there_are_enough() -> None:
    assert len(BUGS) >= 20


@pytest.mark.parametrize("part", PARTS)
def test_without_a_bug_the_exploration_finds_nothing(part: str) -> None:
    explored = explore_part(part)
    print(f"{part}: {explored}")
    assert explored.complete or explored.states >= PARTS[part].states


def test_without_a_bug_the_only_copy_is_found_among_many_who_are_leaving() -> None:
    many_leaving(0)
