#!/usr/bin/env python3
"""Writing along a chain against fanning out, over a client's link of a given speed.

    bench/chain.py [--mbit 0 200 1000] [--mib 64] [--replicas 3] [--rounds 3]

Three chunkservers in network namespaces of their own; the client's link is limited by tc-tbf (0: not at all), those
between servers are not. Each round writes one file of --mib and fsyncs it; rounds are interleaved and the best counts.
Needs root.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from harness.data_cluster import DataCluster, data_cluster  # noqa: E402
from harness.hosts import run  # noqa: E402

MIB = 1 << 20


def limit(cluster: DataCluster, mbit: int) -> None:
    """What the client sends leaves through the bridge's own device; what servers send one another does not."""
    client = cluster.hosts.client
    run("ip", "netns", "exec", client.netns, "tc", "qdisc", "del", "dev", "bridge", "root", check=False)
    if mbit:
        shaped = ("tbf", "rate", f"{mbit}mbit", "burst", "512k", "latency", "50ms")
        run("ip", "netns", "exec", client.netns, "tc", "qdisc", "add", "dev", "bridge", "root", *shaped)


def write(path: Path, data: bytes) -> float:
    began = time.monotonic()
    with open(path, "xb", buffering=0) as file:
        for at in range(0, len(data), MIB):
            file.write(data[at : at + MIB])
        os.fsync(file.fileno())
    elapsed = time.monotonic() - began
    path.unlink()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=int, nargs="+", default=[0, 200, 1000])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = random.Random(1).randbytes(arguments.mib * MIB)
    best: dict[tuple[int, str], float] = {}
    with data_cluster(3, 2048, mds={"replicas": arguments.replicas}) as cluster:
        for round_ in range(arguments.rounds):
            for replication in ("fanout", "chain"):
                cluster.end_mount()
                cluster.write_configurations(replication=replication)
                cluster.start_mount()
                for mbit in arguments.mbit:
                    limit(cluster, mbit)
                    took = write(cluster.point / f"{round_}-{replication}-{mbit}", data)
                    best[mbit, replication] = min(took, best.get((mbit, replication), took))
                limit(cluster, 0)
    print(f"{arguments.mib} MiB, {arguments.replicas} copies, written and synced; best of {arguments.rounds}")
    for mbit in arguments.mbit:
        fanout, chain = (arguments.mib / best[mbit, name] for name in ("fanout", "chain"))
        link = f"{mbit} Mbit/s" if mbit else "no limit"
        print(f"{link:>12}: fanout {fanout:6.1f} MiB/s, chain {chain:6.1f} MiB/s, {chain / fanout:.2f} times")


if __name__ == "__main__":
    main()
