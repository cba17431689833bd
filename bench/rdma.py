"""The verbs carrier against TCP and against the bare device: `python bench/rdma.py ADDRESS [--json FILE]`.

ADDRESS is an IPv4 address that an RDMA device of this machine carries. Both sides run on this machine, one process
for the carriers (see transport.py), two for perftest's ib_write_bw and ib_read_bw. On soft-RoCE only ratios count.
"""

import argparse
import json
import subprocess
import time

import trio
from transport import measure  # noqa: TID251 - the program beside this one

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.limits import RDMA_BULK_SLOT_BYTES
from shoalfs.transport.rdma_ports import device_table
from shoalfs.transport.rdma_table import choose_port


def bare(tool, port, address):
    """MB/s of perftest with the carrier's size of operation."""
    told, short_s = perftest(tool, port, address, 100)
    if told:
        return told
    # Under User-Mode Linux it does not know its clock and says 0: what a longer run takes more is taken for the time.
    _, long_s = perftest(tool, port, address, 1100)
    return round(1000 * RDMA_BULK_SLOT_BYTES / (long_s - short_s) / 1e6)


def perftest(tool, port, address, count):
    """What it says, in MB/s, and how long it took, in s."""
    size = str(RDMA_BULK_SLOT_BYTES)
    command = [tool, "-d", port.device, "-x", str(port.gid_index), "-s", size, "-n", str(count), "-F"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as server:
        time.sleep(3)
        began = time.perf_counter()
        try:
            done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
        finally:
            server.terminate()
        took = time.perf_counter() - began
    line = next(line for line in done.stdout.splitlines() if line.split()[:1] == [size])
    return round(float(line.split()[3]) * 1.048576), took  # size, iterations, peak, average in MiB/s


async def carriers(seconds):
    """The best of three rounds, in turns: other work on the machine only makes things slower."""
    best = {}
    for _ in range(3):
        for name in ("tcp", "rdma"):
            found = await measure(name, Carriers.standard(None, name), "tcp:127.0.0.1:0", seconds)
            before = best.setdefault(name, found)
            better = {key: min if key.startswith("us_") else max for key in found if key != "carrier"}
            best[name] = found | {key: choose(found[key], before[key]) for key, choose in better.items()}
    return best


def main(address, file, seconds):
    port = choose_port(device_table(), address)
    found = trio.run(carriers, seconds)
    found["ib_write_bw_mb_per_s"] = write = bare("ib_write_bw", port, address)
    found["ib_read_bw_mb_per_s"] = read = bare("ib_read_bw", port, address)
    tcp, rdma = found["tcp"], found["rdma"]
    found["ratios"] = {
        "calls_1 to tcp": round(rdma["calls_per_s_1"] / tcp["calls_per_s_1"], 2),
        "calls_64 to tcp": round(rdma["calls_per_s_64"] / tcp["calls_per_s_64"], 2),
        "put to tcp": round(rdma["put_mb_per_s"] / tcp["put_mb_per_s"], 2),
        "get to tcp": round(rdma["get_mb_per_s"] / tcp["get_mb_per_s"], 2),
        "put to ib_read_bw": round(rdma["put_mb_per_s"] / read, 2),
        "get to ib_write_bw": round(rdma["get_mb_per_s"] / write, 2),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if file:
        with open(file, "w") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    arguments = parser.parse_args()
    main(arguments.address, arguments.json, arguments.seconds)
