"""Explore the data protocol, one space after the other, each breadth first until it was seen whole or so many states.

    bench/explore_data [--minutes N] [--states N] [--procs N] [--skip N] [--only TEXT]

The spaces are all combinations of two kinds of events from all beginnings (tests/sim/data_spaces.py). Prints each that
is done, and in the end how many states were seen: in all spaces together, and different ones. At the first broken
promise it prints the shortest way there, and ends with exit code 1.
"""

import argparse
import logging
import multiprocessing
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sim.broken import Broken  # noqa: E402
from sim.data_spaces import combinations  # noqa: E402
from sim.data_states import Bounds, DataStates, one_group  # noqa: E402
from sim.explore import Explored, Explorer  # noqa: E402

REST_EVERY = 300


def one(task: tuple[str, Bounds, int, float]) -> tuple[str, Explored, str, set[bytes]]:
    """The space, what was seen, what was broken, and the digests of its states."""
    name, bounds, states, until = task
    logging.disable(logging.CRITICAL)
    space = DataStates(bounds)
    explorer = Explorer(space, REST_EVERY)
    try:
        with one_group():
            explorer.run(states, until - time.time())
    except Broken as error:
        return name, explorer.result, str(error), set()
    return name, explorer.result, "", space.seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--states", type=int, default=20_000, help="of one space, at most")
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument(
        "--skip", type=int, default=0, help="so many of the first spaces, which an earlier run has seen"
    )
    parser.add_argument("--only", default="", help="spaces with this in their name")
    arguments = parser.parse_args()
    began = time.time()
    until = began + arguments.minutes * 60
    spaces = [space for space in combinations() if arguments.only in space[0]][arguments.skip :]
    tasks = ((*space, arguments.states, until) for space in spaces)
    seen: set[bytes] = set()
    results: list[Explored] = []
    with multiprocessing.get_context("spawn").Pool(arguments.procs) as pool:
        for name, result, broken, digests in pool.imap_unordered(one, tasks):
            if broken:
                print(f"{name}: {result}\n{broken}", file=sys.stderr)
                return 1
            if result.states <= 1 and time.time() >= until:
                break
            print(f"{name}: {result}", flush=True)
            results.append(result)
            seen |= digests
    seconds = time.time() - began
    states = sum(result.states for result in results)
    whole = sum(result.complete for result in results)
    print(
        f"{len(results)} of {len(spaces)} spaces, {whole} seen whole: {states:,} states, {len(seen):,} different ones, "
        f"{sum(result.transitions for result in results):,} transitions, depth {max(r.depth for r in results)}, "
        f"{sum(result.rests for result in results):,} brought to rest, {seconds:.0f} s, "
        f"{states / seconds:,.0f} states/s; 0 broken promises"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
