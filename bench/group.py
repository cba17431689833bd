"""What a metadata group does: real `shoal mds` processes, synced, and clients in processes of their own.

    python bench/group.py [--nodes 1 3] [--in-flight 1 16 256 1000] [--seconds 3] [--inodes N] [--directory D] [--json]

Everything runs on this machine: the nodes, one process of clients, one disk. A client is a session with a connection of
its own; of 256 and 1,000 operations in flight 16 clients have an equal share. Latencies are the callers'.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, caches_nothing, open_session
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.network import open_network
from shoalfs.transport.session import Hello

CLUSTER = "be" * 16
CLIENTS_MAX = 16
WHO = m.ROOT_CREDENTIALS
LISTED = 20_000
INLINE = bytes(4096)


class Nodes:
    """The processes of one group."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.addresses = [f"unix:{directory}/{n}.sock" for n in range(1, count + 1)]
        peers = ", ".join(f'{n} = "{address}"' for n, address in enumerate(self.addresses, 1))
        self.processes = []
        for n, address in enumerate(self.addresses, 1):
            config = directory / f"{n}.toml"
            config.write_text(
                f'[cluster]\nid = "{CLUSTER}"\n[mds]\nnode = {n}\nlisten = "{address}"\n'
                f'data_dir = "{directory / str(n)}"\npeers = {{ {peers} }}\n'
            )
            command = [sys.executable, "-m", "shoalfs", "mds", "run", "--config", str(config)]
            with open(directory / f"{n}.log", "wb") as log:
                self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def cpu_s(self) -> list[float]:
        """CPU time of the clients' process and of each node: steadier than a rate where other work runs (proc(5))."""
        spent = [time.process_time()]
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            spent.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        return spent

    def log_bytes(self) -> int:
        """Of the first node's log."""
        return sum(path.stat().st_size for path in (self.directory / "1" / "log").glob("*.log"))

    def anonymous_bytes(self) -> int:
        """Memory of the first node that is its own: not the mapped store, which the kernel may drop."""
        status = Path(f"/proc/{self.processes[0].pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) << 10

    def store_bytes(self) -> int:
        return (self.directory / "1" / "store" / "data.mdb").stat().st_blocks * 512

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)


@contextlib.contextmanager
def group(directory: Path | None, count: int) -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="group-", dir=directory) as path:
        nodes = Nodes(Path(path), count)
        try:
            yield nodes
        finally:
            nodes.close()


class Client:
    """A session, and a directory that it works in."""

    def __init__(self, session: MdsClient, directory: InodeId) -> None:
        self.session, self.directory = session, directory
        self.count = 0

    def next_name(self) -> bytes:
        self.count += 1
        return b"f%08d" % self.count

    async def create(self) -> InodeId:
        made = await self.session.mutate(
            m.Op.CREATE, m.Create(WHO, self.directory, self.next_name(), 0o644, True), m.Created
        )
        return made.inode.ino

    async def create_with_bytes(self) -> None:
        ino = await self.create()
        await self.session.mutate(m.Op.COMMIT_INLINE, m.CommitInline(ino, (m.Patch(0, INLINE),)), m.Committed)


async def clients_of(stack: AsyncExitStack, nodes: Nodes, count: int) -> list[Client]:
    clients = []
    for _ in range(count):
        network = await stack.enter_async_context(
            open_network(Carriers.standard(None), Hello(role=m.CLIENT, name="bench"), caches_nothing())
        )
        session = await stack.enter_async_context(open_session(network, nodes.addresses, "bench"))
        made = await session.mutate(
            m.Op.MKDIR, m.Mkdir(WHO, ROOT_INODE, b"%d-%d" % (session.session, time.time_ns()), 0o755), m.Entry
        )
        clients.append(Client(session, made.inode.ino))
    return clients


async def measure(
    nodes: Nodes, work: Callable[[Client], Awaitable[Any]], clients: list[Client], in_flight: int, seconds: float
) -> dict[str, Any]:
    """Operations per second, the median and 99th percentile of their latency, and the CPU time that one takes: of the
    clients, and of each node, the busiest first."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def loop(client: Client) -> None:
        while (began := time.perf_counter()) < end:
            await work(client)
            latencies.append(time.perf_counter() - began)

    began, before = time.perf_counter(), nodes.cpu_s()
    async with trio.open_nursery() as nursery:
        for number in range(in_flight):
            nursery.start_soon(loop, clients[number % len(clients)])
    seconds = time.perf_counter() - began
    ours, *theirs = [after - since for after, since in zip(nodes.cpu_s(), before, strict=True)]
    latencies.sort()
    count = len(latencies)
    return {
        "per_s": round(count / seconds),
        "p50_ms": round(latencies[count // 2] * 1e3, 3),
        "p99_ms": round(latencies[count * 99 // 100] * 1e3, 3),
        "cpu_us": "+".join(f"{1e6 * spent / count:.0f}" for spent in (ours, *sorted(theirs, reverse=True))),
    }


async def creates(nodes: Nodes, in_flight: list[int], seconds: float, say: Callable[..., None]) -> None:
    async with AsyncExitStack() as stack:
        clients = await clients_of(stack, nodes, CLIENTS_MAX)
        for count in in_flight:
            some = clients[: min(count, CLIENTS_MAX)]
            await measure(nodes, Client.create, some, count, seconds / 5)
            say(f"create, {count} in flight", **await measure(nodes, Client.create, some, count, seconds))
        before_bytes, before = nodes.log_bytes(), clients[0].count
        await measure(nodes, Client.create, clients[:1], 1, seconds / 3)
        say(
            "log bytes per create, one in an entry",
            bytes=(nodes.log_bytes() - before_bytes) // (clients[0].count - before),
        )
        say("create with 4 KiB, 64 in flight", **await measure(nodes, Client.create_with_bytes, clients, 64, seconds))
        before_bytes, before = nodes.log_bytes(), clients[0].count
        await measure(nodes, Client.create_with_bytes, clients[:1], 1, seconds / 3)
        say("log bytes per 4 KiB file", bytes=(nodes.log_bytes() - before_bytes) // (clients[0].count - before))


async def growth(nodes: Nodes, inodes: int, say: Callable[..., None]) -> None:
    """What so many inodes take, in memory and on disk."""
    async with AsyncExitStack() as stack:
        clients = await clients_of(stack, nodes, CLIENTS_MAX)
        memory_bytes, store_bytes = nodes.anonymous_bytes(), nodes.store_bytes()
        left = iter(range(inodes))

        async def fill(client: Client) -> None:
            for _ in left:
                await client.create()

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(fill, clients[number % CLIENTS_MAX])
        say(
            f"{inodes:,} inodes created",
            per_s=round(inodes / (time.perf_counter() - began)),
            memory_mib=(nodes.anonymous_bytes() - memory_bytes) >> 20,
            store_mib=(nodes.store_bytes() - store_bytes) >> 20,
        )


async def reads(nodes: Nodes, seconds: float, say: Callable[..., None]) -> None:
    async with AsyncExitStack() as stack:
        clients = await clients_of(stack, nodes, 4)
        client = clients[0]

        async def fill() -> None:
            while client.count < LISTED:
                await client.create()

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(fill)
        numbers = iter(range(1 << 40))
        names = [b"f%08d" % n for n in range(1, LISTED + 1)]

        async def lookup(caller: Client) -> None:
            name = names[next(numbers) % LISTED]
            await caller.session.read(m.LOOKUP, m.Lookup(WHO, client.directory, name))

        async def lookup_many(caller: Client) -> None:
            start = next(numbers) * 256 % (LISTED - 256)
            items = tuple((client.directory, name) for name in names[start : start + 256])
            found = await caller.session.read(m.LOOKUP_MANY, m.LookupMany(WHO, items))
            assert len(found.body.items) == 256

        async def listing(caller: Client) -> None:
            cookie = 0
            while True:
                page = await caller.session.read(m.READDIR, m.ReadDir(WHO, client.directory, cookie, 1000))
                if page.body.eof:
                    return
                cookie = page.body.entries[-1].cookie

        say("lookup, 1 in flight", **await measure(nodes, lookup, clients[:1], 1, seconds))
        say("lookup, 256 in flight", **await measure(nodes, lookup, clients, 256, seconds))
        many = await measure(nodes, lookup_many, clients, 8, seconds)
        say("lookup, 256 in a request, 8 requests in flight", per_s=many["per_s"] * 256)
        pages = await measure(nodes, listing, clients, 2, seconds)
        say("entries listed with attributes, 2 clients", per_s=round(pages["per_s"] * LISTED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 16, 256, 1000])
    parser.add_argument("--seconds", type=float, default=3.0, help="per figure")
    parser.add_argument("--inodes", type=int, default=0, help="create so many at the end, and print what they take")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for count in arguments.nodes:
        with group(arguments.directory, count) as nodes:

            def say(what: str, count: int = count, **figures: float | str) -> None:
                rows.append({"nodes": count, "what": what, **figures})
                if not arguments.json:
                    words = {name: value if isinstance(value, str) else f"{value:,}" for name, value in figures.items()}
                    told = "  ".join(f"{name} {word:>10}" for name, word in words.items())
                    print(f"{count} node(s)  {what:50} {told}", flush=True)

            trio.run(creates, nodes, arguments.in_flight, arguments.seconds, say)
            trio.run(reads, nodes, arguments.seconds, say)
            if arguments.inodes:
                trio.run(growth, nodes, arguments.inodes, say)
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
