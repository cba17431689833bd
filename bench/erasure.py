"""Fragments against replicas: the code itself, and files through a mount.

    python bench/erasure.py [--mib 256] [--rounds 3] [--codec-only]

The code: GiB/s of chunk bytes, 4 MiB chunks, one thread and two. The mount: 6 chunkservers on this machine, which all
share its processors and its disk with the client and the load; one file per round and pool, written and fsynced, read
through a fresh mount whose caches are empty, and again through fresh mounts while one server, and then two, are dead.
What is read is compared. The best round counts.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness.cluster import Cluster
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.erasure import encode, rebuild
from shoalfs.transport.limits import MIB

CHUNK = 4 * MIB
POOLS = {"2 replicas": "hot", "2+1": "small", "4+2": "cold"}


def codec() -> None:
    content = Random(1).randbytes(CHUNK)
    print(f"{'GiB/s of chunk':24}{'1 thread':>10}{'2 threads':>10}")
    for data, parity in ((4, 2), (8, 3)):
        fragments = encode([content], data, parity)
        lost = list(range(parity))
        left = {place: fragments[place] for place in range(parity, data + parity)}
        assert rebuild(left, lost, data, parity) == [fragments[place] for place in lost]
        for name, work in {
            f"{data}+{parity} encode": lambda d=data, p=parity: encode([content], d, p),
            f"{data}+{parity} rebuild {parity}": lambda f=left, w=lost, d=data, p=parity: rebuild(f, w, d, p),
            f"{data}+{parity} rebuild 1": lambda f=left, d=data, p=parity: rebuild(f, [0], d, p),
        }.items():
            print(f"{name:24}" + "".join(f"{speed(work, threads):10.2f}" for threads in (1, 2)))
    print(
        f"{'(hash alone)':24}"
        + "".join(f"{speed(lambda: chunk_hash(block_hashes([content])), t):10.2f}" for t in (1, 2))
    )


def speed(work, threads: int, count: int = 200) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: bool(work()), range(threads * 4)))
        start = time.perf_counter()
        list(pool.map(lambda _: bool(work()), range(count)))  # what it made is not kept
        return count * CHUNK / 2**30 / (time.perf_counter() - start)


def files(mib: int, rounds: int) -> None:
    content = Random(2).randbytes(mib * MIB)
    with Cluster("--nodes", "6") as cluster:
        cluster.up()
        for name, option in (
            ("hot", ("--replicas", 2)),
            ("small", ("--erasure", "2+1")),
            ("cold", ("--erasure", "4+2")),
        ):
            cluster.run("pool", "create", name, *option, "--state", cluster.state)
            (cluster.point / name).mkdir()
            cluster.run("pool", "use", name, cluster.point / name)
        figures = {name: {} for name in POOLS}
        for round_ in range(rounds):
            for name, pool in POOLS.items():
                path = cluster.point / pool / f"{round_}"
                keep_best(figures[name], "write+fsync", mib, lambda path=path: write(path, content))
        for dead in (0, 1, 2):
            if dead:
                cluster.kill(f"chunkserver-{dead}")
            for round_ in range(rounds):
                for name, pool in POOLS.items():
                    if dead == 2 and pool != "cold":
                        continue
                    point = cluster.mount("fresh")
                    keep_best(
                        figures[name],
                        f"read, {dead} dead" if dead else "read",
                        mib,
                        lambda path=point / pool / f"{round_}": read(path, content),
                    )
                    cluster.umount("fresh")
    columns = list(figures["4+2"])
    print(f"\n{'MiB/s':12}" + "".join(f"{column:>14}" for column in columns))
    for name, measured in figures.items():
        print(f"{name:12}" + "".join(f"{measured.get(column, float('nan')):14.0f}" for column in columns))


def keep_best(figures: dict[str, float], name: str, mib: int, work) -> None:
    start = time.perf_counter()
    work()
    figures[name] = max(figures.get(name, 0.0), mib / (time.perf_counter() - start))


def write(path: Path, content: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        for at in range(0, len(content), MIB):
            file.write(content[at : at + MIB])
        os.fsync(file.fileno())


def read(path: Path, content: bytes) -> None:
    with open(path, "rb", buffering=0) as file:
        for at in range(0, len(content), MIB):
            assert file.read(MIB) == content[at : at + MIB], (path, at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec-only", action="store_true")
    arguments = parser.parse_args()
    codec()
    if not arguments.codec_only:
        files(arguments.mib, arguments.rounds)


if __name__ == "__main__":
    main()
