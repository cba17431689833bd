"""The workloads, each a function of a :class:`Tree` on one filesystem. What is read is verified."""

import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.ladder.load import Measured, Stopwatch, in_processes
from bench.ladder.place import Place

MIB: Final = 1 << 20
KIB: Final = 1 << 10
FILES_PER_DIRECTORY: Final = 500
STEP_S: Final = 0.25  # what an accelerator computes on one batch
BATCH: Final = 32
COPIERS: Final = ("tar", "cp -a", "rsync -a")


@dataclass(frozen=True)
class Sizes:
    files: int
    listed: int
    large_mib: int
    checkpoint_mib: int
    procs: int


class Tree:
    """One filesystem under test, with what the workloads before have left on it."""

    def __init__(self, place: Place, root: Path, sizes: Sizes, seed: int) -> None:
        self.place, self.root, self.sizes = place, root, sizes
        self.chance = random.Random(seed)
        self.block = self.chance.randbytes(MIB)

    def content(self, size_bytes: int) -> bytes:
        return self.block[:size_bytes]

    def names(self, kind: str, count: int) -> list[Path]:
        return [self.root / kind / f"d{n // FILES_PER_DIRECTORY:03}" / f"f{n:06}" for n in range(count)]

    def shuffled(self, paths: list[Path]) -> list[Path]:
        return self.chance.sample(paths, len(paths))


# --- small files -----------------------------------------------------------------------------------------------------


def ingest(tree: Tree, size_kib: int, procs: int) -> Measured:
    paths = tree.names(f"{size_kib}k-{procs}", tree.sizes.files)
    for directory in sorted({path.parent for path in paths}):
        directory.mkdir(parents=True)
    content = tree.content(size_kib * KIB)

    def write(path: Path) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(content)

    # Each process fills directories of its own, as an ingest that was split by hand would.
    per = -(-len(paths) // procs)
    split = [paths[start : start + per] for start in range(0, len(paths), per)]
    interleaved = [path for row in zip(*split, strict=False) for path in row]
    return in_processes(write, interleaved, procs)


def _ingested(tree: Tree, size_kib: int) -> list[Path]:
    """What :func:`ingest` by all processes has left."""
    paths = tree.names(f"{size_kib}k-{tree.sizes.procs}", tree.sizes.files)
    return [path for path in paths if path.exists()]


def stat_storm(tree: Tree) -> Measured:
    paths = tree.shuffled(_ingested(tree, 4))
    tree.place.make_cold()

    def look(path: Path) -> None:
        assert os.stat(path).st_size == 4 * KIB

    return in_processes(look, paths, tree.sizes.procs)


def stat_again(tree: Tree) -> Measured:
    paths = tree.shuffled(_ingested(tree, 4))

    def look(path: Path) -> None:
        assert os.stat(path).st_size == 4 * KIB

    in_processes(look, paths, 1)
    return in_processes(look, paths, tree.sizes.procs)


def list_large(tree: Tree) -> Measured:
    """`ls -l` of one directory."""
    directory = tree.root / "listed"
    if not directory.exists():
        directory.mkdir()
        in_processes(lambda n: (directory / f"entry-{n:07}").touch(), range(tree.sizes.listed), tree.sizes.procs)
    tree.place.make_cold()
    with Stopwatch() as watch:
        count = sum(1 for entry in os.scandir(directory) if entry.stat().st_size == 0)
    assert count == tree.sizes.listed, f"{count} entries listed"
    return Measured(count, watch.seconds, watch.cpu_s)


def _reader(tree: Tree, size_kib: int) -> Callable[[Path], None]:
    content = tree.content(size_kib * KIB)

    def read(path: Path) -> None:
        with open(path, "rb", buffering=0) as file:
            assert file.read() == content, path

    return read


def read_cold(tree: Tree, size_kib: int, procs: int) -> Measured:
    paths = tree.shuffled(_ingested(tree, size_kib))
    tree.place.make_cold()
    return in_processes(_reader(tree, size_kib), paths, procs)


def read_listed(tree: Tree, size_kib: int) -> Measured:
    """Cold, after each directory was looked into."""
    paths = tree.shuffled(_ingested(tree, size_kib))
    tree.place.make_cold()
    for directory in {path.parent for path in paths}:
        assert all(entry.stat().st_size for entry in os.scandir(directory))
    return in_processes(_reader(tree, size_kib), paths, tree.sizes.procs)


def read_again(tree: Tree, size_kib: int) -> Measured:
    """The second epoch."""
    paths = tree.shuffled(_ingested(tree, size_kib))
    read = _reader(tree, size_kib)
    in_processes(read, paths, tree.sizes.procs)
    return in_processes(read, tree.shuffled(paths), tree.sizes.procs)


def open_latency(tree: Tree) -> Measured:
    """open, read, close of one file after the other, by one process, cold."""
    return read_cold(tree, 4, 1)


# --- names -----------------------------------------------------------------------------------------------------------


def rename_all(tree: Tree) -> Measured:
    paths = _ingested(tree, 16)
    done = in_processes(lambda path: os.rename(path, path.with_suffix(".renamed")), paths, tree.sizes.procs)
    in_processes(lambda path: os.rename(path.with_suffix(".renamed"), path), paths, tree.sizes.procs)
    return done


def make_directories(tree: Tree) -> Measured:
    (tree.root / "made").mkdir()
    return in_processes(lambda n: (tree.root / "made" / f"{n}").mkdir(), range(tree.sizes.files // 4), tree.sizes.procs)


def unlink_all(tree: Tree) -> Measured:
    return in_processes(os.unlink, _ingested(tree, 16), tree.sizes.procs)


def copy_in(tree: Tree, tool: str) -> Measured:
    """A directory of files of 4 KiB, from memory, with owners, modes and times, by a program that people copy with."""
    count = tree.sizes.files // 2
    into = tree.root / f"copied by {tool}"
    into.mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        for number in range(count):
            (source / f"f{number:06}").write_bytes(tree.content(4 * KIB))
        subprocess.run(["tar", "cf", f"{scratch}/tar", "-C", source, "."], check=True)
        commands = {
            "tar": ["tar", "xf", f"{scratch}/tar", "-C", into],
            "cp -a": ["cp", "-aT", source, into],
            "rsync -a": ["rsync", "-a", f"{source}/", into],
        }
        with Stopwatch() as watch:
            subprocess.run(commands[tool], check=True)
        for copied in source.iterdir():
            assert (into / copied.name).read_bytes() == copied.read_bytes()
            assert int((into / copied.name).stat().st_mtime) == int(copied.stat().st_mtime)
    return Measured(count, watch.seconds, watch.cpu_s)


# --- large files -----------------------------------------------------------------------------------------------------


def _write_large(tree: Tree, path: Path, size_mib: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for number in range(size_mib):
            file.write(number.to_bytes(8, "little") + tree.block[8:])
        os.fsync(file.fileno())


def write_large(tree: Tree) -> Measured:
    with Stopwatch() as watch:
        _write_large(tree, tree.root / "large", tree.sizes.large_mib)
    return Measured(tree.sizes.large_mib, watch.seconds, watch.cpu_s)


def read_large(tree: Tree) -> Measured:
    tree.place.make_cold()
    digest = hashlib.blake2b(tree.block[8:], digest_size=8).digest()
    buffer = memoryview(bytearray(MIB))
    checked = 0
    with Stopwatch() as watch, open(tree.root / "large", "rb", buffering=0) as file:
        for number in range(tree.sizes.large_mib):
            assert file.readinto(buffer) == MIB
            assert buffer[:8] == number.to_bytes(8, "little")
            if number % 16 == 0:  # hashing all of it would be measured instead
                checked += hashlib.blake2b(buffer[8:], digest_size=8).digest() == digest
    assert checked == -(-tree.sizes.large_mib // 16)
    return Measured(tree.sizes.large_mib, watch.seconds, watch.cpu_s)


def read_random(tree: Tree) -> Measured:
    """4 KiB at random places of the large file, cold."""
    offsets = [tree.chance.randrange(tree.sizes.large_mib * MIB // 4096) * 4096 for _ in range(tree.sizes.files)]
    tree.place.make_cold()
    path = tree.root / "large"

    def read(offset: int) -> None:
        descriptor = files.get(os.getpid()) or files.setdefault(os.getpid(), os.open(path, os.O_RDONLY))
        inside = offset % MIB
        got = os.pread(descriptor, 4096, offset)
        assert got[8 if inside == 0 else 0 :] == tree.block[inside + (8 if inside == 0 else 0) : inside + 4096]

    files: dict[int, int] = {}
    return in_processes(read, offsets, tree.sizes.procs)


def checkpoint(tree: Tree) -> Measured:
    """Written to a temporary file, synced, renamed over the last one."""
    with Stopwatch() as watch:
        _write_large(tree, tree.root / "checkpoint.tmp", tree.sizes.checkpoint_mib)
        os.rename(tree.root / "checkpoint.tmp", tree.root / "checkpoint")
    return Measured(tree.sizes.checkpoint_mib, watch.seconds, watch.cpu_s)


# --- training --------------------------------------------------------------------------------------------------------


def data_loader(tree: Tree) -> Measured:
    """Workers read shuffled samples of 100 to 300 KiB; an accelerator takes a batch of 32 each quarter of a second. The
    amount is the number of accelerators that so many samples would have kept busy, per second and core: the rate is
    accelerators that one core feeds."""
    directory = tree.root / "samples"
    count = max(BATCH, tree.sizes.files // 8)
    if not directory.exists():
        directory.mkdir()
        sizes = [tree.chance.randrange(100 * KIB, 300 * KIB) for _ in range(count)]
        for number, size_bytes in enumerate(sizes):
            (directory / f"{number:06}").write_bytes(tree.content(size_bytes))
    paths = tree.shuffled(sorted(directory.iterdir()))
    tree.place.make_cold()

    def load(path: Path) -> None:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        assert data == tree.block[: len(data)]

    done = in_processes(load, paths, tree.sizes.procs)
    cores = os.cpu_count() or 1
    return Measured(len(paths) / BATCH * STEP_S / cores, done.seconds, done.cpu_s, done.latencies_s)


@dataclass(frozen=True)
class Workload:
    name: str
    unit: str
    run: Callable[[Tree], Measured]


def ladder(procs: int) -> list[Workload]:
    """All of them, in an order in which each finds what it needs."""
    small = [
        Workload(f"ingest {size} KiB, {n} proc", "files/s", lambda tree, size=size, n=n: ingest(tree, size, n))  # type: ignore[misc]
        for size in (4, 16, 100)
        for n in sorted({1, procs})
    ]
    cold = [
        Workload(f"read {size} KiB cold, {n} proc", "files/s", lambda tree, size=size, n=n: read_cold(tree, size, n))  # type: ignore[misc]
        for size in (4, 16, 100)
        for n in sorted({1, procs})
    ]
    return [
        *small,
        *(Workload(f"copy by {tool}", "files/s", lambda tree, tool=tool: copy_in(tree, tool)) for tool in COPIERS),  # type: ignore[misc]
        Workload("stat, cold", "files/s", stat_storm),
        Workload("stat, again", "files/s", stat_again),
        Workload("ls -l, cold", "entries/s", list_large),
        *cold,
        Workload("read 4 KiB cold, listed", "files/s", lambda tree: read_listed(tree, 4)),
        Workload("read 4 KiB, 2nd epoch", "files/s", lambda tree: read_again(tree, 4)),
        Workload("read 100 KiB, 2nd epoch", "files/s", lambda tree: read_again(tree, 100)),
        Workload("open+read+close, cold", "files/s", open_latency),
        Workload("rename", "files/s", rename_all),
        Workload("mkdir", "dirs/s", make_directories),
        Workload("write large, fsync", "MiB/s", write_large),
        Workload("read large, cold", "MiB/s", read_large),
        Workload("read 4 KiB at random", "reads/s", read_random),
        Workload("checkpoint", "MiB/s", checkpoint),
        Workload("data loader", "accel/core", data_loader),
        Workload("unlink", "files/s", unlink_all),
    ]


def run(workload: Workload, tree: Tree) -> Measured:
    time.sleep(0.05)  # what the one before has left behind settles
    return workload.run(tree)
