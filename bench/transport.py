"""What a call costs: calls/s and us per call with 1 and 64 in flight, and MB/s of 4 MiB payloads, by carrier.

Both sides run in one process and one event loop, so a figure is the sum of what the caller and the server spend;
two processes on two cores overlap most of it. Expectation: below 100 us per small call over a unix socket, one in
flight; bulk data at the speed of the kernel's two copies, about 2 GB/s each way.

    python bench/transport.py [--json] [--seconds 1]
"""

import argparse
import json
import os
import sys
import tempfile
import time

import trio

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.limits import CHUNK_BYTES_DEFAULT, PAYLOAD_BYTES_MAX
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.method import Message, Method
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello


class Number(Message, frozen=True):
    value: int


ECHO = Method(1, "bench.echo", Number, Number)
PUT = Method(2, "bench.put", Number, Number, PAYLOAD_BYTES_MAX, 0)
GET = Method(3, "bench.get", Number, Number, 0, PAYLOAD_BYTES_MAX)
CHUNK = os.urandom(CHUNK_BYTES_DEFAULT)


async def answer(call, request, payload):
    return request


async def answer_chunk(call, request, payload):
    return request, CHUNK


async def rate(network, address, method, payload, in_flight, seconds):
    """Calls per second."""
    done = 0
    end = time.perf_counter() + seconds

    async def loop():
        nonlocal done
        while time.perf_counter() < end:
            await network.call(address, method, Number(1), payload)
            done += 1

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(loop)
    return done / (time.perf_counter() - began)


async def measure(name, carriers, address, seconds):
    service = Service()
    service.add(ECHO, answer)
    service.add(PUT, answer)
    service.add(GET, answer_chunk)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve, carriers, address, service, Hello(role="mds"))
        async with open_network(carriers, Hello()) as network:
            await rate(network, address, ECHO, b"", 1, seconds / 5)
            one = await rate(network, address, ECHO, b"", 1, seconds)
            many = await rate(network, address, ECHO, b"", 64, seconds)
            put = await rate(network, address, PUT, CHUNK, 4, seconds)
            get = await rate(network, address, GET, b"", 4, seconds)
        nursery.cancel_scope.cancel()
    megabytes = len(CHUNK) / 1e6
    return {
        "carrier": name,
        "calls_per_s_1": round(one),
        "us_per_call_1": round(1e6 / one, 1),
        "calls_per_s_64": round(many),
        "us_per_call_64": round(1e6 / many, 1),
        "put_mb_per_s": round(put * megabytes),
        "get_mb_per_s": round(get * megabytes),
    }


async def main(seconds, as_json):
    with tempfile.TemporaryDirectory() as folder:
        places = [
            ("memory", Carriers(MemoryFabric()), "memory:bench"),
            ("unix", Carriers.standard(), f"unix:{folder}/socket"),
            ("tcp", Carriers.standard(), "tcp:127.0.0.1:0"),
        ]
        results = [await measure(*place, seconds) for place in places]
    if as_json:
        json.dump(results, sys.stdout, indent=1)
        print()
        return
    for line in results:
        print("  ".join(f"{key}={value}" for key, value in line.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure")
    arguments = parser.parse_args()
    trio.run(main, arguments.seconds, arguments.json)
