"""The work of ./demo, as any program would do it: plain Python on the mounted directory, nothing of shoalfs.

    job.py fill|verify|report --mnt DIR --results DIR [--quick] [--name NAME]

``fill`` copies the standard library of this interpreter and writes generated files; the digest of every file
is taken from the source, not from the mount. ``verify`` reads every file back in random order from several
processes. Both leave their figures in the results directory; ``report`` prints them as a table.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

WORKERS = 4
TREE_FILES_MAX = 6_000
SMALL_FILES = 2_000
SMALL_BYTES = (1 << 10, 300 << 10)
LARGE_BYTES = 512 << 20
PIECE_BYTES = 1 << 20
SKIPPED = {"__pycache__", "site-packages", "dist-packages"}
QUICK_DIVISOR = 10


def tree() -> Iterator[Path]:
    """Regular files of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path.relative_to(root)


def pieces(seed: int, size_bytes: int) -> Iterator[bytes]:
    """``size_bytes`` that follow from ``seed``."""
    chance = random.Random(seed)
    for start in range(0, size_bytes, PIECE_BYTES):
        yield chance.randbytes(min(PIECE_BYTES, size_bytes - start))


def contents(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def write(path: Path, data: Iterator[bytes]) -> tuple[int, str]:
    """Write ``data``; returns its length and digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size_bytes = hashlib.blake2b(digest_size=16), 0
    with path.open("wb", buffering=0) as file:
        for piece in data:
            assert file.write(piece) == len(piece), f"{path}: short write"
            digest.update(piece)
            size_bytes += len(piece)
    return size_bytes, digest.hexdigest()


def fill(mnt: Path, results: Path, divisor: int) -> None:
    written: dict[str, tuple[int, str]] = {}
    library = Path(sysconfig.get_path("stdlib"))
    phases: list[dict[str, object]] = []

    def phase(name: str, jobs: Iterator[tuple[str, Iterator[bytes]]]) -> None:
        began, files, total_bytes = time.monotonic(), 0, 0
        for relative, data in jobs:
            written[relative] = write(mnt / relative, data)
            files += 1
            total_bytes += written[relative][0]
        phases.append({"name": name, "files": files, "bytes": total_bytes, "s": time.monotonic() - began})

    names = list(tree())[: TREE_FILES_MAX // divisor]
    assert names, f"{library}: no files to copy"
    phase("write: standard library", ((f"stdlib/{name}", contents(library / name)) for name in names))
    sizes = random.Random(1)
    phase(
        "write: 1-300 KiB",
        (
            (f"small/{number % 20}/{number}", pieces(number, sizes.randint(*SMALL_BYTES)))
            for number in range(SMALL_FILES // divisor)
        ),
    )
    phase("write: one large file", iter([("large", pieces(-1, LARGE_BYTES // divisor))]))
    (results / "manifest.json").write_text(json.dumps(written))
    (results / "phases.json").write_text(json.dumps(phases))


def check_some(mnt: str, part: list[tuple[str, tuple[int, str]]]) -> list[str]:
    """Files of ``part`` that are not what was written, and how they differ."""
    wrong = []
    for relative, (size_bytes, expected) in part:
        digest, read_bytes = hashlib.blake2b(digest_size=16), 0
        try:
            for piece in contents(Path(mnt, relative)):
                digest.update(piece)
                read_bytes += len(piece)
        except OSError as error:
            wrong.append(f"{relative}: {error.strerror}")
            continue
        if read_bytes != size_bytes:
            wrong.append(f"{relative}: {read_bytes} bytes, {size_bytes} were written")
        elif digest.hexdigest() != expected:
            wrong.append(f"{relative}: other bytes than were written")
    return wrong


def verify(mnt: Path, results: Path, name: str) -> None:
    manifest = list(json.loads((results / "manifest.json").read_text()).items())
    random.Random(len(name)).shuffle(manifest)
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        parts = [(str(mnt), manifest[start::WORKERS]) for start in range(WORKERS)]
        wrong = [line for lines in pool.starmap(check_some, parts) for line in lines]
    phases = json.loads((results / "phases.json").read_text())
    phases.append(
        {
            "name": f"read: {name}",
            "files": len(manifest),
            "bytes": sum(size_bytes for _, (size_bytes, _) in manifest),
            "s": time.monotonic() - began,
            "ok": len(manifest) - len(wrong),
        }
    )
    (results / "phases.json").write_text(json.dumps(phases))
    if wrong:
        print(*wrong[:100], sep="\n")
        sys.exit(f"{len(wrong)} of {len(manifest)} files are wrong, the first: {wrong[0]}")


def report(results: Path) -> None:
    phases = json.loads((results / "phases.json").read_text())
    status = json.loads((results / "status.json").read_text())
    print(f"  {'':26} {'files':>7} {'MiB':>7} {'s':>7} {'files/s':>8} {'MB/s':>7}")
    for phase in phases:
        seconds = max(phase["s"], 0.001)
        print(
            f"  {phase['name']:26} {phase['files']:7} {phase['bytes'] / (1 << 20):7.0f} {seconds:7.1f} "
            f"{phase['files'] / seconds:8.0f} {phase['bytes'] / seconds / 1e6:7.0f}"
        )
    verified = [phase for phase in phases if "ok" in phase]
    print(
        f"\n  inlined    {status['inline_files']} of {verified[-1]['files']} files are in the metadata\n"
        f"  verify     OK {sum(phase['ok'] for phase in verified)}/{sum(phase['files'] for phase in verified)}"
        f" (all {verified[-1]['files']} files, {len(verified)} times)\n"
        f"  fsck       clean"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["fill", "verify", "report"])
    parser.add_argument("--mnt", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--name", default="read")
    given = parser.parse_args()
    if given.action != "report" and not os.path.ismount(given.mnt):
        sys.exit(f"{given.mnt}: nothing is mounted there")
    if given.action == "fill":
        fill(given.mnt, given.results, QUICK_DIVISOR if given.quick else 1)
    elif given.action == "verify":
        verify(given.mnt, given.results, given.name)
    else:
        report(given.results)


if __name__ == "__main__":
    main()
