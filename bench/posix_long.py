"""The matrix of calls, the differential state machine and the exerciser of one file, for as long as one likes; see
bench/posix_long."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness import differential, matrix
from harness.exerciser import Exerciser

_EXAMPLES, _STEPS = 20, 100  # of one round; each round has a seed of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the state machine")
    parser.add_argument("--operations", type=int, default=1_000_000, help="of the exerciser")
    parser.add_argument("--every", type=int, default=1, help="of the matrix, each n-th call only; 0: none")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; the next ones count on")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the state machine changes users: run as root")
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    with (
        tempfile.TemporaryDirectory(prefix="posix-", dir=arguments.directory) as here,
        tempfile.TemporaryDirectory(prefix="posix-", dir="/var/tmp") as known,
    ):
        os.chmod(here, 0o711)
        os.chmod(known, 0o711)
        if arguments.every:
            compare(Path(here), Path(known), arguments.every)
        differ(Path(here), Path(known), seed, arguments.minutes)
        exercise(Path(here), seed, arguments.operations)


def differ(here: Path, known: Path, seed: int, minutes: float) -> None:
    end, rounds = time.monotonic() + minutes * 60, 0
    while time.monotonic() < end:
        print(f"state machine, seed {seed + rounds}", flush=True)
        differential.run(here, known, examples=_EXAMPLES, steps=_STEPS, seed=seed + rounds)
        rounds += 1
    print(f"state machine: {rounds} rounds of {_EXAMPLES} x at most {_STEPS} calls: no difference", flush=True)


def compare(here: Path, known: Path, every: int) -> None:
    for number, group in enumerate(matrix.GROUPS):
        began = time.monotonic()
        places = [place / f"matrix-{number}" for place in (here, known)]
        for place in places:
            place.mkdir()
        made = matrix.calls(group, every=every)
        found = matrix.differences(*places, made)
        print(f"matrix, {group}: {len(made)} calls by 3 users in {time.monotonic() - began:.0f} s", flush=True)
        assert not found, f"{len(found)} differ:\n" + "\n".join(found)


def exercise(here: Path, seed: int, operations: int) -> None:
    print(f"exerciser, seed {seed}", flush=True)
    began = time.monotonic()
    Exerciser(str(here / "file"), seed).run(operations)
    print(f"exerciser: {operations} operations in {time.monotonic() - began:.0f} s: no difference", flush=True)


if __name__ == "__main__":
    main()
