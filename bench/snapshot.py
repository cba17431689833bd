"""How long a snapshot takes and what writers feel meanwhile; and how soon a member that was away is there again.

Store and follower are on one machine; the bytes go over a unix socket. Run it with a directory on the disk to be
measured:

    python -m bench.snapshot [inodes] [directory]
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import trio
from bench.metadata import Log

from shoalfs.mds import catch_up, install
from shoalfs.mds import messages as m
from shoalfs.mds.journal import create_journal
from shoalfs.mds.raft_messages import peer_name
from shoalfs.mds.snapshot_messages import OPEN_SNAPSHOT, READ_SNAPSHOT
from shoalfs.mds.snapshots import SnapshotSource
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.ids import ROOT_INODE, NodeId
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

CLUSTER = b"benchmark-of-mds"
WHO = m.Credentials(0, 0)


def fill(log: Log, inodes: int, prefix: bytes) -> list[float]:
    """Create files, 64 in an entry. Returns how long each entry took."""
    times = []
    for start in range(0, inodes, 64):
        creates = [
            log.command(m.Op.CREATE, m.Create(WHO, ROOT_INODE, b"%s%08d" % (prefix, n), 0o644, True))
            for n in range(start, min(start + 64, inodes))
        ]
        began = time.perf_counter()
        log.apply(creates)
        times.append(time.perf_counter() - began)
    return times


async def transfer(store: LmdbStore, log: Log, directory: Path) -> None:
    source = SnapshotSource(store, directory / "sending", lambda: log.machine.applied_index)
    service = Service()
    service.add(OPEN_SNAPSHOT, source.handle_open)
    service.add(READ_SNAPSHOT, source.handle_read)
    carriers, address = Carriers.standard(None), f"unix:{directory}/leader.sock"
    (directory / "follower").mkdir()
    create_journal(directory / "follower" / install.LOG, CLUSTER, NodeId(2))
    async with trio.open_nursery() as nursery:
        await nursery.start(
            serve, carriers, address, service, Hello(cluster_id=CLUSTER, role="mds", name=peer_name(NodeId(1)))
        )
        async with open_network(carriers, Hello(cluster_id=CLUSTER, role="mds", name=peer_name(NodeId(2)))) as network:
            began = time.perf_counter()
            offer = await catch_up.fetch(network, address, NodeId(2), directory / "follower", CLUSTER)
            took_s = time.perf_counter() - began
            print(f"{'copied, sent, verified, staged':42} {took_s:12.3f} s, {offer.size_bytes >> 20} MiB")
        nursery.cancel_scope.cancel()
    began = time.perf_counter()
    install.finish(directory / "follower")
    LmdbStore.open(str(directory / "follower" / install.STORE)).close()
    print(f"{'installed and opened':42} {time.perf_counter() - began:12.3f} s")


def writers_feel(store: LmdbStore, log: Log, directory: Path) -> None:
    """The longest entry with and without a copy under way."""
    alone = fill(log, 20_000, b"alone")
    copying = threading.Event()
    took = []

    def copy() -> None:
        began = time.perf_counter()
        for number in range(3):
            (directory / f"copy{number}").mkdir()
            store.copy_to(str(directory / f"copy{number}"))
        took.append((time.perf_counter() - began) / 3)
        copying.set()

    thread = threading.Thread(target=copy)
    thread.start()
    beside: list[float] = []
    while not copying.is_set():
        beside += fill(log, 64 * 20, b"beside%d-" % len(beside))
    thread.join()
    print(f"{'compact copy while writing':42} {took[0]:12.3f} s")
    for name, times in (("entry of 64 creates, alone", alone), ("the same beside a copy", beside)):
        times.sort()
        print(f"{name:42} p50 {times[len(times) // 2] * 1e3:6.2f} ms, longest {times[-1] * 1e3:6.2f} ms")


def main() -> None:
    inodes = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as path:
        directory = Path(path)
        store = LmdbStore.open(str(directory / "store"))
        log = Log(store)
        log.open_session()
        fill(log, inodes, b"f")
        trio.run(transfer, store, log, directory)
        writers_feel(store, log, directory)
        store.close()


if __name__ == "__main__":
    main()
