"""A metadata group under every fault that can be made, for as long as is said; see tests/chaos/test_group_faults.py.

    bench/chaos_metadata [--minutes 10] [--seed 1]

Needs root. Prints the faults by kind, what was acknowledged and verified, and the longest stall that a client met.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from harness.mds_group import Load, Nemesis, check_all, metadata_group  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with metadata_group(disk_mib=2048) as group:
        nemesis = Nemesis(group, Load(group), arguments.seed)
        while time.monotonic() < began + arguments.minutes * 60:
            nemesis.strike()
        report = check_all(group, nemesis.load)
    print(f"{sum(nemesis.counts.values())} faults: " + ", ".join(f"{n} {kind}" for kind, n in nemesis.counts.items()))
    print(f"{report['operations']} operations acknowledged and verified, {report['reads']} reads checked, 0 wrong")
    print(f"the longest stall of a client: {report['longest_s']:.2f} s")


if __name__ == "__main__":
    main()
