"""Which parts of the data protocol's space are explored, each small enough to be seen whole or nearly so, and
those of the long run (bench/explore_data)."""

from dataclasses import dataclass
from itertools import combinations as pairs
from itertools import product

from xxhash import xxh3_64_intdigest

from sim.data_states import BEGINNINGS, Bounds, DataStates, one_group
from sim.explore import Explored, Explorer


@dataclass(frozen=True)
class Part:
    """``states``: so many at most; ``rest_every``: one of so many is brought to rest."""

    bounds: Bounds
    states: int = 3_000
    rest_every: int = 50


PARTS: dict[str, Part] = {
    "two writers": Part(Bounds(writes=2, passes=1)),
    "old receipts": Part(Bounds(writers=1, writes=1, durable=(False,), crashes=1, passes=0), 2_000),
    "made": Part(Bounds(writers=1, writes=1, makes=True, crashes=1, passes=0), 2_000),
    "made again": Part(Bounds(writers=1, writes=1, makes=True, lost=1, passes=0), 2_000, 1),
    "old map": Part(Bounds("moved", min_ack=1, writers=1, writes=1, durable=(False,), crashes=1, passes=0), 2_000),
    "repeated commit": Part(Bounds(writes=2, lost=1, passes=0), 2_000),
    "slow writer": Part(Bounds(writers=1, writes=1, slow=1, passes=1)),
    "away": Part(Bounds("written", writes=0, downs=1, passes=1), 2_000),
    "written off": Part(Bounds(writers=1, writes=1, downs=1, passes=1), 2_000),
    "returning": Part(Bounds("returned", writes=0, passes=0), 2_000),
    "moving": Part(Bounds("moving", writes=0, passes=0), 2_000),
    "evicting": Part(Bounds("evicting", writes=0, passes=0), 2_000),
    "moved away": Part(Bounds("moved", writes=0, downs=1, passes=2), 2_000),
    "overwriting": Part(Bounds("written", writers=1, writes=1, passes=1)),
    "overwritten": Part(Bounds("overwritten", writes=0, leaders=1, passes=0), 2_000),
    "damage": Part(Bounds("written", writes=0, hurts=1, passes=1), 2_000, 10),
    "lying disk": Part(Bounds("written", writers=1, writes=1, crashes=1, liar=1, passes=0), 2_000),
}

KINDS: dict[str, dict[str, int]] = {
    "another writer": {"writers": 2, "writes": 2},
    "crash": {"crashes": 1},
    "slow heartbeat": {"slow": 1},
    "lost answer": {"lost": 1},
    "late PUT": {"late": 1},
    "down": {"downs": 1},
    "drain": {"drains": 1},
    "new leader": {"leaders": 1},
    "bad disk": {"hurts": 1},
    "lying disk": {"liar": 2},
    "fence": {"fences": 1},
    "removal": {"removals": 1},
}


def combinations() -> list[tuple[str, Bounds]]:
    """Every two kinds of events, beside one writer and time that passes once, from every beginning, where one copy or
    two are acknowledged, when they are on disk or before; in an order that mixes them."""
    spaces: dict[str, Bounds] = {}
    for begin, min_ack, durable, pair in product(BEGINNINGS, (1, 2), (True, False), pairs(KINDS, 2)):
        hurt = {"bad disk", "lying disk"}.intersection(pair)
        if (hurt and (min_ack == 1 or begin == "returned")) or len(hurt) == 2:
            continue
        more = {"writers": 1, "writes": 1} | KINDS[pair[0]] | KINDS[pair[1]]
        name = f"{begin}, {min_ack} acknowledged, {'on disk' if durable else 'in memory'}, {pair[0]}, {pair[1]}"
        spaces[name] = Bounds(begin, min_ack=min_ack, durable=(durable,), passes=1, **more)
    return sorted(spaces.items(), key=lambda space: xxh3_64_intdigest(space[0].encode()))


def explore_part(name: str) -> Explored:
    """Raises Broken, with the events that led there."""
    part = PARTS[name]
    with one_group():
        return Explorer(DataStates(part.bounds), part.rest_every).run(part.states)
