"""Run simulated histories until the time is up: new seeds of every world and kind of fault, on several processes.

    bench/sim_hours [--minutes N] [--procs N] [--first SEED] [--only WORLD]
    bench/sim_hours --replay WORLD KIND SEED SIZE

Prints seeds per hour, the faults that were met, and what was verified. At the first broken promise it prints the line
that repeats it, and ends with exit code 1. Needs the project's .venv.
"""

import argparse
import logging
import multiprocessing
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sim import data_run, members_run, raft_run, state_world  # noqa: E402
from sim.bounds import small_bounds  # noqa: E402
from sim.faults import KINDS  # noqa: E402
from sim.seeds import simulated_disk  # noqa: E402
from sim.world import World  # noqa: E402

STATE_SHARE = 2  # seeds of the world with the state machine for each of the others
DATA_SHARE = 3  # likewise of the world of data, of each pool


def one(world: str, kind: str, seed: int, size: int) -> Counter[str]:
    """One history, checked, and what happened in it. Raises AssertionError."""
    if world == "data":
        return of_data(data_run.history(seed, kind))
    return of_metadata(one_of_metadata(world, kind, seed, size))


def of_data(history: data_run.History) -> Counter[str]:
    met = Counter({f"data: {kind}": count for kind, count in history.met.items()})
    met["virtual seconds"] = history.world.now_ms // 1000
    met["data: copies made"] = history.world.copies
    met["data: fragments rebuilt"] = history.world.rebuilt
    met["data: chunks that fsync promised"] = len(history.world.promised)
    return met


def one_of_metadata(world: str, kind: str, seed: int, size: int) -> World:
    directory = simulated_disk()
    try:
        with small_bounds():
            if world == "state":
                return state_world.history(seed, directory, KINDS[kind], size=size)
            if world == "raft":
                return raft_run.history(seed, directory, KINDS[kind], size=size)
            return members_run.history(seed, directory, members_run.KINDS[kind])[0]
    finally:
        shutil.rmtree(directory)


def plan(seed: int) -> list[tuple[str, str, int, int]]:
    """The histories of one number."""
    size = 5 if seed % 10 == 9 else 3
    histories = [("state", kind, STATE_SHARE * seed + n, size) for kind in KINDS for n in range(STATE_SHARE)]
    histories += [("raft", kind, seed, size) for kind in KINDS]
    histories += [("data", pool, DATA_SHARE * seed + n, 0) for pool in data_run.POOLS for n in range(DATA_SHARE)]
    return histories + [("members", kind, seed, 3) for kind in members_run.KINDS]


def of_metadata(world: World) -> Counter[str]:
    met = Counter({kind: count for kind, count in world.met.items() if count})
    met["virtual seconds"] = round(world.now)
    met["entries applied"] = len(world.promises.history)
    met["snapshots installed"] = world.installed
    met["states compared"] = world.promises.states_compared
    if isinstance(world, state_world.StoreWorld):
        met["calls answered and verified"] = world.verified
    else:
        met["proposals acknowledged and verified"] = len(world.acknowledged)
        met["lease reads verified"] = world.reads
    return met


def work(first: int, step: int, until: float, only: str, results: Any) -> None:
    logging.disable(logging.CRITICAL)
    seed = first
    while True:
        for history in plan(seed):
            if only and history[0] != only:
                continue
            if time.time() >= until:
                results.put(None)
                return
            try:
                happened = one(*history)
            except AssertionError as error:
                results.put((history, repr(error)[:2000], Counter()))
                results.put(None)
                return
            results.put((history, "", happened))
        seed += step


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--first", type=int, default=1_000)
    parser.add_argument("--only", default="", choices=("state", "raft", "members", "data"))
    parser.add_argument("--replay", nargs=4, metavar=("WORLD", "KIND", "SEED", "SIZE"))
    arguments = parser.parse_args()
    if arguments.replay:
        world, kind, seed, size = arguments.replay
        one(world, kind, int(seed), int(size))
        print("all promises held")
        return 0
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    began = time.time()
    until = began + arguments.minutes * 60
    workers = [
        context.Process(
            target=work, args=(arguments.first + n, arguments.procs, until, arguments.only, results), daemon=True
        )
        for n in range(arguments.procs)
    ]
    for worker in workers:
        worker.start()
    running, seeds, totals = len(workers), Counter[str](), Counter[str]()
    while running:
        result = results.get()
        if result is None:
            running -= 1
            continue
        history, failure, done = result
        if failure:
            world, kind, seed, size = history
            print(failure, file=sys.stderr)
            print(f"replay: bench/sim_hours --replay {world} {kind!r} {seed} {size}", file=sys.stderr)
            return 1
        seeds[history[0]] += 1
        totals += done
    report(seeds, totals, time.time() - began)
    return 0


def report(seeds: Counter[str], totals: Counter[str], seconds: float) -> None:
    total = seeds.total()
    print(f"{total} histories in {seconds:.0f} s: {total / seconds * 3600:,.0f} an hour; 0 broken promises")
    print("  " + ", ".join(f"{count} {world}" for world, count in sorted(seeds.items())))
    for name, count in sorted(totals.items()):
        print(f"{name:<42}{count:>14,}")


if __name__ == "__main__":
    sys.exit(main())
