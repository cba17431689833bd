"""How long clients stall when the leader is killed: three `shoal mds` processes, SIGKILL, again and again.

    python bench/failover.py [--kills 50] [--directory DIR] [--json]

Four clients create files without a pause. A stall is the time from the kill until the next create is acknowledged.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import trio
from bench.group import Client, Nodes, clients_of, group

from shoalfs.mds.group_messages import GET_GROUP, GetGroup
from shoalfs.mds.messages import ADMIN
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.network import Network, open_network
from shoalfs.transport.session import Hello


async def leader_of(network: Network, nodes: Nodes) -> int:
    """The place of the leader among the nodes; waits for one that all three know."""
    while True:
        seen = set()
        for address in nodes.addresses:
            with contextlib.suppress(ShoalError):
                seen.add((await network.call(address, GET_GROUP, GetGroup(), timeout_ms=1000)).body.leader)
        if len(seen) == 1 and (leader := seen.pop()):
            return int(leader) - 1
        await trio.sleep(0.05)


async def measure(nodes: Nodes, kills: int) -> list[float]:
    stalls: list[float] = []
    done_at = 0.0

    async def work(client: Client) -> None:
        nonlocal done_at
        while True:
            await client.create()
            done_at = time.perf_counter()

    async with contextlib.AsyncExitStack() as stack:
        clients = await clients_of(stack, nodes, 4)
        network = await stack.enter_async_context(
            open_network(Carriers.standard(None), Hello(role=ADMIN, name="failover"))
        )
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(work, client)
            for _ in range(kills):
                await trio.sleep(1.5)
                leader = await leader_of(network, nodes)
                process = nodes.processes[leader]
                process.send_signal(signal.SIGKILL)
                killed_at = time.perf_counter()
                await trio.to_thread.run_sync(process.wait)
                while done_at < killed_at:
                    await trio.sleep(0.001)
                stalls.append(done_at - killed_at)
                nodes.processes[leader] = subprocess.Popen(  # noqa: ASYNC220 - a millisecond
                    process.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            nursery.cancel_scope.cancel()
    return sorted(stalls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with group(arguments.directory, 3) as nodes:
        stalls = trio.run(measure, nodes, arguments.kills)
    figures = {
        "kills": len(stalls),
        "p50_s": round(stalls[len(stalls) // 2], 3),
        "p99_s": round(stalls[min(len(stalls) - 1, len(stalls) * 99 // 100)], 3),
        "max_s": round(stalls[-1], 3),
    }
    if arguments.json:
        json.dump(figures, sys.stdout)
        print()
    else:
        print("  ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
