"""Chunkservers under every fault that can be made, for as long as is said; see tests/chaos/test_chaos_data.py.

    bench/chaos_data [--minutes 10] [--seed 1] [--replication fanout|chain] [--ballast-mib 256]

Needs root. Prints the faults by kind, what was acknowledged and verified, what was lost or wrong, and how long it took
until everything had all its copies again.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from harness.data_cluster import data_cluster  # noqa: E402
from harness.data_nemesis import DataLoad, DataNemesis, gib_rate  # noqa: E402
from shoalfs.transport.limits import SESSION_TTL_MS  # noqa: E402


def write(path: Path, data: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replication", choices=("fanout", "chain"), default="fanout")
    parser.add_argument("--ballast-mib", type=int, default=256, help="further bytes, so that there is much to repair")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    ballast = b"".join(chance.randbytes(1 << 20) for _ in range(arguments.ballast_mib))
    # What is overwritten has to be deleted meanwhile, or the disks are full of it after a few minutes.
    mds = {"replicas": 3, "min_ack": 2, "target_out_ms": 15_000, "garbage_grace_ms": 2 * SESSION_TTL_MS}
    began = time.monotonic()
    with data_cluster(4, 2048, mds=mds, mount={"replication": arguments.replication}) as cluster:
        write(cluster.point / "ballast", ballast)
        load = DataLoad(cluster, arguments.seed)
        try:
            nemesis = DataNemesis(cluster, load, arguments.seed)
            for kind in nemesis.kinds:  # each of them once, then as it comes
                nemesis.strike(kind)
                print(f"{time.monotonic() - began:.0f} s: {kind.__name__}", flush=True)
            while time.monotonic() < began + arguments.minutes * 60:
                nemesis.strike()
            report = load.finish()
            assert (cluster.point / "ballast").read_bytes() == ballast
            cluster.command("fsck", "--deep")
        finally:
            load.end()
    counts = report["counts"]
    print("faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(nemesis.counts.items())))
    print(f"{counts['fsyncs']} fsyncs acknowledged, {counts['blocks verified']} blocks of 4 KiB verified")
    print(f"lost {counts.get('lost', 0)}, wrong bytes {counts.get('wrong', 0)}")
    print("of the workload: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    stalls = sorted(report["stalls_s"])
    if stalls:
        shown = ", ".join(f"{stall:.1f}" for stall in stalls[-10:])
        print(f"{len(stalls)} operations took over a second, half of them up to {stalls[len(stalls) // 2]:.1f} s")
        print(f"the longest: {shown} s")
    for kind, took, copied in nemesis.healed:
        print(f"  {kind}: whole again after {took:.1f} s, {copied / (1 << 20):.1f} MiB copied")
    rate = gib_rate(nemesis.healed)
    if rate is not None:
        print(f"full redundancy: {rate:.0f} s for each GiB copied")


if __name__ == "__main__":
    main()
