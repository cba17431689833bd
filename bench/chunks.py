"""How fast chunks are stored and fetched: by a target directly, and by a chunkserver over a unix socket.

    python bench/chunks.py [--dir DIR] [--seconds S] [--streams N]

Prints MB/s for 4 MiB chunks, operations per second for 100 KiB and 4 KiB, and the processor time of each; `durable`
answers after fdatasync. Reads come from the page cache: what is measured is this code, not the disk. One process serves
and asks, so the figures over the socket hold the client's share of the processor, too.
"""

import argparse
import itertools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.forwarder import Addresses, Forwarder
from shoalfs.chunkserver.keeper import TargetSet
from shoalfs.chunkserver.service import ChunkService
from shoalfs.chunkserver.store import ChunkStore
from shoalfs.chunkserver.target import open_target
from shoalfs.mds import messages as m
from shoalfs.mds.leader import Leader
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import KIB, MIB
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.session import Hello

CLUSTER = secrets.token_bytes(16)
Work = Callable[[int], Awaitable[object]]


async def rate(work: Work, numbers: "itertools.count[int]", seconds: float, streams: int) -> tuple[int, float, float]:
    """Run ``work`` with rising numbers in ``streams`` tasks: how often it ran, for how many seconds, and how many of a
    processor that took."""
    done = 0
    start, used = time.perf_counter(), time.process_time()

    async def stream() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await work(next(numbers))
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(stream)
    return done, time.perf_counter() - start, time.process_time() - used


async def measure(
    name: str, size: int, put: Callable[..., Awaitable[object]], get: Work, args: argparse.Namespace
) -> None:
    data = os.urandom(size)
    digest = chunk_hash(block_hashes([data]))
    first = {4 * KIB: 1 << 32, 4 * MIB: 1 << 33, 100 * KIB: 1 << 34}[size]
    stored = itertools.count(first)
    for durable in (False, True):
        work = partial(put, data, digest, durable)
        report(
            name,
            "put durable" if durable else "put",
            size,
            *await rate(work, stored, args.seconds, args.streams),
        )
    count = next(stored) - first
    cycle = map(first.__add__, itertools.cycle(range(min(count, 256))))
    fetch = partial(get, size, digest)
    report(name, "get", size, *await rate(fetch, cycle, args.seconds, args.streams))
    report(name, "get, one at a time", size, *await rate(fetch, cycle, args.seconds, 1))


def report(name: str, what: str, size: int, count: int, seconds: float, cpu_s: float) -> None:
    per_second, cpu_us = count / seconds, 1e6 * cpu_s / count
    rate_text = f"{per_second * size / 1e6:8.0f} MB/s" if size >= MIB else f"{per_second:8.0f} /s  "
    print(
        f"{name:14} {size // KIB:5} KiB  {what:20} {rate_text}  {1e6 / per_second:8.0f} us each {cpu_us:8.0f} us CPU",
        flush=True,
    )


async def bench(directory: str, args: argparse.Namespace) -> None:
    open_store = partial(
        ChunkStore,
        RealDisk(),
        f"{directory}/target",
        cluster_id=CLUSTER,
        fresh_uuid=secrets.token_bytes(16),
        clock_ns=time.time_ns,
    )
    async with open_target(open_store) as target:
        target.enrol(TargetId(1), 1)

        async def put(data: bytes, digest: bytes, durable: bool, number: int) -> None:
            await target.put(
                chunk=ChunkId(number),
                ino=InodeId(1),
                offset_bytes=0,
                data=[data],
                chunk_hash=digest,
                durable=durable,
            )

        async def get(size: int, digest: bytes, number: int) -> None:
            await target.get(ChunkId(number), 0, size)

        for size in (4 * MIB, 100 * KIB, 4 * KIB):
            await measure("target", size, put, get, args)
        async with trio.open_nursery() as nursery:
            carriers, address = Carriers.standard(), f"unix:{directory}/socket"
            hello = Hello(cluster_id=CLUSTER, role="chunkserver", name="bench")
            async with open_network(carriers, hello) as peers:
                forwarder = Forwarder(peers, Addresses(Leader(peers, [address])))
                service = ChunkService("bench", TargetSet({target.uuid: target}), forwarder)
                await nursery.start(serve, carriers, address, service.rpc, hello)
                remote = m.Target(TargetId(1), target.uuid, "bench", address, 1, m.TargetState.UP, 0)
                await bench_socket(carriers, remote, args)
                nursery.cancel_scope.cancel()


async def bench_socket(carriers: Carriers, target: m.Target, args: argparse.Namespace) -> None:
    async with open_network(carriers, Hello(cluster_id=CLUSTER, role="client", name="bench")) as network:
        client = ChunkClient(network)

        async def put(data: bytes, digest: bytes, durable: bool, number: int) -> None:
            await client.put(
                target,
                chunk=ChunkId(number + (1 << 40)),
                ino=InodeId(1),
                offset_bytes=0,
                payload=data,
                chunk_hash=digest,
                durable=durable,
            )

        async def get(size: int, digest: bytes, number: int) -> None:
            await client.get(
                target,
                chunk=ChunkId(number + (1 << 40)),
                chunk_bytes=size,
                chunk_hash=digest,
                offset_bytes=0,
                length_bytes=size,
            )

        for size in (4 * MIB, 100 * KIB, 4 * KIB):
            await measure("unix socket", size, put, get, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--dir", default=None, help="where to store (default: the system's temporary directory)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    parser.add_argument("--streams", type=int, default=16, help="requests in flight")
    args = parser.parse_args()
    directory = tempfile.mkdtemp(dir=args.dir)
    try:
        trio.run(bench, directory, args)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
