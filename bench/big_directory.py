"""Many entries in one directory, listed while others make, rename and remove some; see bench/big_directory."""

import argparse
import multiprocessing
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

from shoalfs.fs.cli.state import StateDir

_WORKERS = 8  # mutations are committed in batches: one process alone would wait for each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of listing under change, one listing at least")
    parser.add_argument("--elsewhere", type=Path, help="the same directory on another mount: changed and listed, too")
    parser.add_argument("--state", help="of the cluster (shoal up): the memory of its processes is told")
    parser.add_argument("--keep", action="store_true", help="remove nothing at the end")
    parser.add_argument("--made", help="the name of a directory that was kept, instead of making one")
    arguments = parser.parse_args()
    if arguments.made is None:
        place = Path(tempfile.mkdtemp(prefix="big-", dir=arguments.directory))
        _timed(f"made {arguments.entries} entries in {place}", lambda: _in_parallel(_make, place, arguments.entries))
    else:
        place = arguments.directory / arguments.made
    places = [place] if arguments.elsewhere is None else [place, arguments.elsewhere / place.name]
    _list_under_change(places, arguments.entries, arguments.seconds)
    for at in places:
        _by_programs(at)
    for line in [*_memory_of_mounts(places), *_memory_of_cluster(arguments.state)]:
        print(line, flush=True)
    if not arguments.keep:
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
        os.close(os.open(place / f"stays-{number:08}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


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


def _list_under_change(places: list[Path], entries: int, seconds: float) -> None:
    stop = multiprocessing.Event()
    disturbing = [
        multiprocessing.Process(target=_disturb, args=(places[seed % len(places)], seed, stop)) for seed in range(2)
    ]
    for child in disturbing:
        child.start()
    try:
        end, listings = time.monotonic() + seconds, 0
        while listings < len(places) or time.monotonic() < end:
            _list(places[listings % len(places)], entries)
            listings += 1
    finally:
        stop.set()
        for child in disturbing:
            child.join()
    assert all(child.exitcode == 0 for child in disturbing), "a process that changes the directory failed"


def _list(place: Path, entries: int) -> None:
    began = time.monotonic()
    seen = Counter(entry.name for entry in os.scandir(place))
    twice = [name for name, count in seen.items() if count > 1]
    assert not twice, f"listed twice: {twice[:5]}"
    staying = sum(1 for name in seen if name.startswith("stays-"))
    assert staying == entries, f"{entries - staying} of {entries} entries are missing"
    print(f"{place}: listed {len(seen)} entries in {time.monotonic() - began:.1f} s", flush=True)


def _by_programs(place: Path) -> None:
    """What people type; each has to tell the same number, that of the entries and those that _disturb left."""
    told = set()
    for what in ("ls -U | wc -l", "ls | wc -l", "find . -mindepth 1 | wc -l"):
        began = time.monotonic()
        done = subprocess.run(what, shell=True, cwd=place, capture_output=True, text=True, check=True)
        print(f"{place}: {what}: {done.stdout.strip()} in {time.monotonic() - began:.1f} s", flush=True)
        told.add(int(done.stdout))
    assert len(told) == 1, f"they do not agree: {told}"


def _memory_of_cluster(state: str | None) -> Iterator[str]:
    if state is not None:
        for record in StateDir(state).records():
            yield f"{record.name}: {_peak(record.process.pid)}"


def _memory_of_mounts(places: list[Path]) -> Iterator[str]:
    """Of the processes of the mounts that ``places`` are on, if they run here."""
    for device in {os.stat(place).st_dev for place in places}:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                points = [word for word in words if word.startswith(b"/") and os.path.ismount(word)]
                if b"mount" in words and any(os.stat(point).st_dev == device for point in points):
                    yield f"{os.fsdecode(points[0])}: {_peak(int(pid))}"
            except OSError:
                continue  # a process that has ended meanwhile


def _peak(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return ", ".join(" ".join(line.split()) for line in lines if line.startswith(("VmHWM", "VmRSS")))


if __name__ == "__main__":
    main()
