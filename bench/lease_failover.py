"""What it costs that a mount drops what it caches when the metadata leader changes: requests and time of the next scan.

    .venv/bin/python bench/lease_failover.py [FILES]

A mount without a kernel, over the memory carrier, opens, reads and closes the small files of a directory that another
one has made; does so again, warm; the metadata service starts anew; and twice more. Names and attributes that the
kernel would have kept for at most 16 s are asked of the mount here, so requests are those of a program that comes back
after that.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness.vfs_world import Client, world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.ids import ROOT_INODE


def counted(client: Client) -> Counter[str]:
    sent: Counter[str] = Counter()
    call = client.session._leader.call

    async def noted(method, request, *rest):
        sent[method.name] += 1
        return await call(method, request, *rest)

    client.session._leader.call = noted
    return sent


async def scan(client: Client, directory: int, files: int, sent: Counter[str], what: str) -> None:
    sent.clear()
    began = time.perf_counter()
    longest_s = 0.0
    for number in range(files):
        file_began = time.perf_counter()
        await client.read_file(b"f%06d" % number, directory)
        longest_s = max(longest_s, time.perf_counter() - file_began)
    took_s = time.perf_counter() - began
    print(f"{what}: {took_s:.2f} s, one file at most {longest_s * 1000:.1f} ms, requests {dict(sent)}", flush=True)


async def main(files: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        async with (
            world(Path(path), chunkservers=1, replicas=1) as cluster,
            cluster.client() as maker,
            cluster.client() as client,
        ):
            directory = (await maker.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
            for number in range(files):
                await maker.write_file(b"f%06d" % number, b"x" * 1024, directory)
            await trio.sleep(2)
            sent = counted(client)
            await scan(client, directory, files, sent, "cold")
            await scan(client, directory, files, sent, "warm")
            met, meet = trio.Event(), client.session._on_new_leader

            async def noted() -> None:
                await meet()
                met.set()

            client.session._on_new_leader = noted
            await cluster.stop_mds()
            await cluster.start_mds()
            began = time.perf_counter()
            await met.wait()
            print(f"what was cached was dropped {time.perf_counter() - began:.2f} s after the start")
            await scan(client, directory, files, sent, "after the change of leaders")
            await scan(client, directory, files, sent, "and again")
            report = m.Renew(client.session.session, tuple(range(1 << 40, (1 << 40) + 262_144)), ())
            began = time.perf_counter()
            size = len(msgspec.msgpack.encode(report))
            print(f"a report with 262,144 inodes: {size / 1e6:.2f} MB, {time.perf_counter() - began:.3f} s to encode")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 3_000)
