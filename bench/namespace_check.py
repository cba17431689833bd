"""What checking the metadata costs by the number of files, and what clients notice of it.

A store is filled with files of 100 bytes in directories of 1,000, every tenth file with a chunk instead; then a
metadata node serves it, and the check of `shoal fsck` is made while a client asks for one inode again and again.
Printed: the time of the check, the client's longest wait and how often it waited over 100 ms, and the memory of the
processes.

    python -m bench.namespace_check [files [directory]]
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import trio
from bench.extents import Bench

from shoalfs.fs.cli.cluster import Operator
from shoalfs.fs.cli.fsck import Report, open_check, read_check
from shoalfs.mds import keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.leader import Leader
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId, chunk_id
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

_PER_DIRECTORY = 1_000
_PER_CHUNKED = 10
_HASH = b"h" * 16
_BYTES = b"x" * 100
CLUSTER = b"benchmark-of-mds"
replace = msgspec.structs.replace


def fill(store: LmdbStore, files: int) -> None:
    """Rows as the operations write them, after the pattern of entries that these have made; sound for the check."""
    with store.read() as txn:
        applied = records.APPLIED.require(txn, keys.APPLIED)
    bench = Bench(store)
    who = m.Credentials(0, 0)
    directory = _made(bench, m.Op.MKDIR, m.Mkdir(who, ROOT_INODE, b"pattern", 0o755))
    small = _made(bench, m.Op.CREATE, m.Create(who, directory.ino, b"small", 0o644, True))
    large = _made(bench, m.Op.CREATE, m.Create(who, directory.ino, b"large", 0o644, True))
    bench.service(m.Op.END_SESSION, m.EndSession(SessionId(1)))  # nobody waits for leases of it
    with store.read() as txn:
        counters = records.COUNTERS.require(txn, keys.COUNTERS)
        root = records.INODE.require(txn, keys.inode(ROOT_INODE))
        directory = records.INODE.require(txn, keys.inode(directory.ino))
    directories = -(-files // _PER_DIRECTORY)
    ino, sequence, inline = counters.next_ino, counters.next_sequence, 0
    for d in range(directories):
        number = min(_PER_DIRECTORY, files - d * _PER_DIRECTORY)
        with store.write() as txn:
            above = InodeId(ino)
            name, cookie = b"d%06d" % d, root.next_cookie + d
            _enter(txn, ROOT_INODE, name, cookie, above, directory.mode)
            size = {"size_bytes": number, "next_cookie": directory.next_cookie + number, "nlink": 2}
            txn.put(keys.inode(above), records.INODE.encode(replace(directory, ino=above, **size)))
            ino += 1
            for i in range(number):
                at = InodeId(ino + i)
                _enter(txn, above, b"f%06d" % i, directory.next_cookie + i, at, small.mode)
                if i % _PER_CHUNKED:
                    made = replace(
                        small, ino=at, size_bytes=len(_BYTES), used_bytes=len(_BYTES), storage=m.Storage.INLINE
                    )
                    txn.put(keys.inline(at), _BYTES)
                    inline += 1
                else:
                    chunk = chunk_id(1, sequence)
                    sequence += 1
                    made = replace(
                        large, ino=at, size_bytes=4096, used_bytes=4096, storage=m.Storage.EXTENTS, extents=1
                    )
                    extent = m.Extent(0, 4096, chunk, 0, 4096, _HASH)
                    txn.put(keys.extent(at, 0), records.EXTENT.encode(extent))
                    txn.put(keys.chunk_use(chunk), records.CHUNK_USE.encode(records.ChunkUse(1, 4096, _HASH)))
                txn.put(keys.inode(at), records.INODE.encode(made))
            ino += number
    with store.write() as txn:
        grown = {"size_bytes": root.size_bytes + directories, "nlink": root.nlink + directories}
        root = replace(root, next_cookie=root.next_cookie + directories, **grown)
        txn.put(keys.inode(ROOT_INODE), records.INODE.encode(root))
        more = {
            "next_ino": ino,
            "next_sequence": sequence,
            "inodes": counters.inodes + ino - counters.next_ino,
            "inline_files": counters.inline_files + inline,
            "inline_bytes": counters.inline_bytes + inline * len(_BYTES),
        }
        txn.put(keys.COUNTERS, records.COUNTERS.encode(replace(counters, **more)))
        txn.put(keys.APPLIED, records.APPLIED.encode(applied))  # the log has none of this


def _made(bench: Bench, op: m.Op, request: msgspec.Struct) -> m.Inode:
    outcome, _ = bench.call(op, request)
    return msgspec.msgpack.decode(outcome.body, type=m.OP_TYPES[op][1]).inode


def _enter(txn, parent: InodeId, name: bytes, cookie: int, ino: InodeId, mode: int) -> None:
    kind = mode & 0o170000
    txn.put(keys.dentry(parent, name), records.DENTRY.encode(records.Dentry(ino, kind, cookie)))
    txn.put(keys.listing(parent, cookie), records.LISTING.encode(records.ListingRow(name, ino)))


async def measure(address: str, node: int) -> tuple[Report, float, list[float], int]:
    """The report, the seconds of the check, those of each question of the client beside it, and the most memory in MiB
    that a process had which the metadata node ``node`` (pid) started."""
    largest = 0
    waits: list[float] = []
    report = Report()
    hello = Hello(PROTOCOL_VERSION, b"", m.ADMIN, "bench")
    carriers = Carriers.standard(None)
    async with open_network(carriers, hello) as network, open_network(carriers, hello) as other:
        leader = Leader(other, [address])

        async def ask() -> None:
            while True:
                began = time.monotonic()
                await leader.call(m.GETATTR, m.GetAttr(ROOT_INODE))
                waits.append(time.monotonic() - began)
                await trio.sleep(0.005)

        async def watch() -> None:
            nonlocal largest
            while True:
                await trio.sleep(0.2)
                largest = max([largest, *children_mib(node)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(watch)
            began = time.monotonic()
            operator = Operator(network, Leader(network, [address]))
            async for page in read_check(operator, await open_check(operator)):
                report.inodes += page.inodes
                report.extents += len(page.extents)
                report.findings += page.findings
            took = time.monotonic() - began
            nursery.cancel_scope.cancel()
    return report, took, waits, largest


def memory_mib(pid: int) -> int:
    """What a process has in memory, without the pages of files that it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) // 1024


def children_mib(pid: int) -> list[int]:
    """The same of the processes that it started."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError, AttributeError):  # it has ended, or is about to
            found += [memory_mib(int(child)) for child in (thread / "children").read_text().split()]
    return found


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    top = Path(tempfile.mkdtemp(dir=sys.argv[2] if len(sys.argv) > 2 else None))
    address = f"unix:{top}/mds.sock"
    config = top / "mds.toml"
    config.write_text(f'[cluster]\nid = "{CLUSTER.hex()}"\n[mds]\ndata_dir = "{top}/mds"\nlisten = "{address}"\n')
    command = [sys.executable, "-m", "shoalfs", "mds", "run", "--config", str(config)]
    node = None
    try:
        node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _await_socket(top, node)
        node.terminate()
        node.wait(30)
        store = LmdbStore.open(f"{top}/mds/store")
        began = time.monotonic()
        fill(store, files)
        store.close()
        print(f"filled with {files} files in {time.monotonic() - began:.0f} s", flush=True)
        (top / "mds.sock").unlink(missing_ok=True)
        node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _await_socket(top, node)
        before = memory_mib(node.pid)
        report, took, waits, largest = trio.run(measure, address, node.pid)
        waits.sort()
        print(
            f"{report.inodes} inodes, {report.extents} extents, {len(report.findings)} findings: {took:.1f} s, "
            f"{report.inodes / took:.0f} inodes/s"
        )
        print(
            f"a client beside it: {len(waits)} questions, median {waits[len(waits) // 2] * 1000:.1f} ms, "
            f"longest {waits[-1]:.2f} s, over 100 ms: {sum(wait > 0.1 for wait in waits)}"
        )
        after = memory_mib(node.pid)
        print(f"memory: metadata node {before} MiB before, {after} MiB after; checker {largest} MiB at most")
        print(report.findings[:3])
    finally:
        if node is not None and node.poll() is None:
            node.terminate()
            node.wait(30)
        shutil.rmtree(top)


def _await_socket(top: Path, node: subprocess.Popen) -> None:
    for _ in range(600):
        if (top / "mds.sock").exists() and node.poll() is None:
            return
        time.sleep(0.1)
    raise SystemExit(f"the metadata node does not listen: {node.poll()}")


if __name__ == "__main__":
    main()
