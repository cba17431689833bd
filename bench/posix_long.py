"""The matrix of calls, the differential state machine and the exerciser of one file, for as long as one likes; see
bench/posix_long."""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness import differential, matrix
from harness.exerciser import SIZE_BYTES_MAX, Exerciser, swarm

_EXAMPLES, _STEPS = 20, 100  # of one round; each round has a seed of its own
_OPERATIONS = 2_000  # of one piece of the exerciser
_SIZES_BYTES = (3_000, 60_000, 60_000, 300_000, 300_000, SIZE_BYTES_MAX)  # in the inode; across its bound; chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the state machine")
    parser.add_argument("--operations", type=int, default=1_000_000, help="of the exerciser")
    parser.add_argument("--elsewhere", type=Path, help="the same directory on another mount: the exerciser uses both")
    parser.add_argument("--processes", type=int, default=4, help="of the exerciser, each with files of its own")
    parser.add_argument("--size-bytes", type=int, help="of the exerciser's files, at most; by chance if not given")
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
        places = [Path(here)]
        if arguments.elsewhere is not None:
            places.append(arguments.elsewhere / places[0].relative_to(arguments.directory))
        exercise(places, seed, arguments.operations, arguments.size_bytes, arguments.processes)


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


def exercise(places: list[Path], seed: int, operations: int, size_bytes: int | None, processes: int) -> None:
    """In pieces, each with a file, a seed and weights of its own: a difference is found again from its piece alone, and
    a run that is ended has told how far it came. One that has a difference ends; the others go on."""
    pieces = [
        (places, seed + number, min(_OPERATIONS, operations - done), size_bytes)
        for number, done in enumerate(range(0, operations, _OPERATIONS))
    ]
    began, done, different = time.monotonic(), 0, []
    with multiprocessing.Pool(processes) as pool:
        for seed, size_bytes, made, difference in pool.imap_unordered(_piece, pieces):
            if difference is not None:
                different.append(seed)
                print(f"exerciser: seed {seed}, {size_bytes:,} bytes: {difference}", flush=True)
                continue
            done += made
            print(
                f"exerciser: seed {seed}, {size_bytes:,} bytes: no difference; "
                f"{done:,} operations in {time.monotonic() - began:.0f} s",
                flush=True,
            )
    assert not different, f"differences with the seeds {different}"


def _piece(piece: tuple[list[Path], int, int, int | None]) -> tuple[int, int, int, str | None]:
    """Its seed, the size of its file, the operations, and the difference, if there was one."""
    places, seed, operations, size_bytes = piece
    if size_bytes is None:
        size_bytes = random.Random(f"size {seed}").choice(_SIZES_BYTES)
    paths = [place / f"file-{seed}" for place in places]
    difference = None
    try:
        Exerciser(str(paths[0]), seed, [str(path) for path in paths[1:]], size_bytes, swarm(seed)).run(operations)
    except (AssertionError, OSError) as error:
        difference = repr(error)
    paths[0].unlink()
    return seed, size_bytes, operations, difference


if __name__ == "__main__":
    main()
