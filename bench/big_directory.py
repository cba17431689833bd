"""Many entries in one directory, listed while others make, rename and remove some; see bench/big_directory."""

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

_WORKERS = 8  # mutations are committed in batches: one process alone would wait for each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of listing under change, one listing at least")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="big-", dir=arguments.directory))
    _timed(f"made {arguments.entries} entries", lambda: _in_parallel(_make, place, arguments.entries))
    _list_under_change(place, arguments.entries, arguments.seconds)
    print(_memory(place), flush=True)
    _timed("removed all", lambda: _in_parallel(_remove, place, arguments.entries))
    for name in os.listdir(place):
        os.unlink(place / name)
    place.rmdir()


def _timed(what: str, run) -> None:
    began = time.monotonic()
    run()
    print(f"{what} in {time.monotonic() - began:.1f} s", flush=True)


def _in_parallel(work, place: Path, entries: int) -> None:
    children = [multiprocessing.Process(target=work, args=(place, entries, number)) for number in range(_WORKERS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0, f"{work.__name__}: exit {child.exitcode}"


def _make(place: Path, entries: int, worker: int) -> None:
    for number in range(worker, entries, _WORKERS):
        os.mknod(place / f"stays-{number:08}")


def _remove(place: Path, entries: int, worker: int) -> None:
    for number in range(worker, entries, _WORKERS):
        os.unlink(place / f"stays-{number:08}")


def _disturb(place: Path, seed: int, stop: Event) -> None:
    """Make, rename and remove names of one's own, until told to stop."""
    chance, mine = random.Random(seed), []
    while not stop.is_set():
        name = f"comes-{seed}-{chance.randrange(1 << 40)}"
        os.mknod(place / name)
        mine.append(name)
        if chance.random() < 0.3:
            old = mine.pop(chance.randrange(len(mine)))
            os.rename(place / old, place / f"moved-{old}")
            mine.append(f"moved-{old}")
        if len(mine) > 200 or chance.random() < 0.3:
            os.unlink(place / mine.pop(chance.randrange(len(mine))))


def _list_under_change(place: Path, entries: int, seconds: float) -> None:
    stop = multiprocessing.Event()
    disturbing = [multiprocessing.Process(target=_disturb, args=(place, seed, stop)) for seed in range(2)]
    for child in disturbing:
        child.start()
    try:
        end, listings = time.monotonic() + seconds, 0
        while not listings or time.monotonic() < end:
            began = time.monotonic()
            seen = Counter(entry.name for entry in os.scandir(place))
            listings += 1
            twice = [name for name, count in seen.items() if count > 1]
            assert not twice, f"listed twice: {twice[:5]}"
            staying = sum(1 for name in seen if name.startswith("stays-"))
            assert staying == entries, f"{entries - staying} of {entries} entries are missing"
            print(f"listed {len(seen)} entries in {time.monotonic() - began:.1f} s", flush=True)
    finally:
        stop.set()
        for child in disturbing:
            child.join()
    assert all(child.exitcode == 0 for child in disturbing), "a process that changes the directory failed"


def _memory(place: Path) -> str:
    """Of the process of the mount that ``place`` is on, if it runs here."""
    device = os.stat(place).st_dev
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"mount" not in words or b"shoalfs" not in words:
                continue
            points = [word for word in words if word.startswith(b"/") and os.path.ismount(word)]
            if any(os.stat(point).st_dev == device for point in points):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return next(f"the mount's memory: {line}" for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            continue
    return "the mount's memory: its process was not found"


if __name__ == "__main__":
    main()
