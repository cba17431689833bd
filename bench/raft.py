"""Synced proposals per second of the replicated log: one node and three, 1 and 64 in flight.

    python bench/raft.py [--seconds 3] [--directory /path/on/the/disk/to/measure]

All nodes are in this process and on one disk; three nodes talk over unix sockets, so their three syncs and all
of their Python share what this machine has. The state machine only counts: the store has its own bench.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from shoalfs.mds.journal import Journal, create_journal
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.mds.raft_messages import PEER, peer_name
from shoalfs.mds.raft_node import RaftNode
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.ids import NodeId
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

CLUSTER = b"bench-raft-------"[:16]
ENTRY = b"x" * 200


class Counting:
    applied_index = 0

    members: Members | None = None

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[Any]:
        self.applied_index = entries[-1][0]
        return [None] * len(entries)

    def durable_index(self) -> int:
        return self.applied_index


async def measure(raft: RaftNode, in_flight: int, seconds: float) -> tuple[float, float, float]:
    """(proposals per second, median and 99th percentile of their latency in ms)."""
    latencies: list[float] = []
    end = trio.current_time() + seconds

    async def client() -> None:
        while trio.current_time() < end:
            begin = time.perf_counter()
            await raft.propose(ENTRY)
            latencies.append(time.perf_counter() - begin)

    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(client)
    latencies.sort()
    count = len(latencies)
    return count / seconds, latencies[count // 2] * 1e3, latencies[count * 99 // 100] * 1e3


async def group(directory: Path, size: int, seconds: float) -> None:
    nodes = [NodeId(n) for n in range(1, size + 1)]
    address = {n: f"unix:{directory}/{n}.sock" for n in nodes}
    members = founders(Member(n, address[n], address[n]) for n in nodes)
    carriers = Carriers.standard(None)
    rafts = []
    async with AsyncExitStack() as stack:
        journals, networks, hellos = {}, {}, {}
        for n in nodes:
            create_journal(directory / f"log-{n}", CLUSTER, n)
            journals[n] = Journal(directory / f"log-{n}", CLUSTER, n)
            stack.callback(journals[n].close)
            hellos[n] = Hello(cluster_id=CLUSTER, role="mds", name=peer_name(n))
            networks[n] = await stack.enter_async_context(open_network(carriers, hellos[n]))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for n in nodes:
            raft = RaftNode(n, members, journals[n], Counting(), networks[n])
            service = Service()
            service.add(PEER, raft.handle_peer)
            await nursery.start(serve, carriers, address[n], service, hellos[n])
            await nursery.start(raft.run)
            rafts.append(raft)
        while not (leaders := [raft for raft in rafts if raft.may_serve_reads()]):
            await trio.sleep(0.05)
        for in_flight in (1, 64):
            rate, median, worst = await measure(leaders[0], in_flight, seconds)
            print(
                f"{size} node(s), {in_flight:2} in flight: {rate:7.0f} proposals/s, "
                f"p50 {median:6.2f} ms, p99 {worst:6.2f} ms"
            )
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--directory", type=Path, default=None)
    args = parser.parse_args()
    for size in (1, 3):
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            trio.run(group, Path(directory), size, args.seconds)


if __name__ == "__main__":
    main()
