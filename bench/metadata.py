"""How fast the metadata state machine is by itself: entries applied to the durable store, and reads from it.

No network, no Raft, no disk sync: what is left is the cost of the operations and of LMDB. Run it with a
directory on the disk to be measured:

    python -m bench.metadata [directory]
"""

import sys
import tempfile
import time

import msgspec

from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.machine import Layout, Machine, OnDamage, format_store
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.ids import ROOT_INODE, PoolId, SessionId
from shoalfs.transport.limits import SLOTS_PER_SESSION

FILES = 20_000
_SESSION = SessionId(1)
_encode = msgspec.msgpack.encode


class Log:
    """Numbers entries and applies them."""

    def __init__(self, store: LmdbStore) -> None:
        format_store(store, b"benchmark-of-mds", [m.Pool(PoolId(1), "hot", 1, 1)], Layout())
        self.machine = Machine(store, OnDamage.STOP)
        self._seq = [0] * SLOTS_PER_SESSION
        self._next = 0

    def command(self, op: m.Op, request: msgspec.Struct) -> tuple[SessionId, m.Command]:
        slot = self._next % SLOTS_PER_SESSION
        self._next += 1
        self._seq[slot] += 1
        return _SESSION, m.Command(slot, self._seq[slot], int(op), msgspec.Raw(_encode(request)))

    def open_session(self) -> None:
        request = m.OpenSession(b"n" * 16, "bench")
        self.apply([(SessionId(0), m.Command(0, 0, int(m.Op.OPEN_SESSION), msgspec.Raw(_encode(request))))])

    def apply(self, commands: list) -> None:
        index = self.machine.applied_index + 1
        for outcome in self.machine.apply([(index, 1, encode_entry(index, commands))])[0]:
            assert outcome.code == 0, outcome


def rate(what: str, count: int, began: float) -> None:
    seconds = time.perf_counter() - began
    print(f"{what:42} {count / seconds:12,.0f} /s")


def write_rates(log: Log) -> None:
    who = m.Credentials(0, 0)
    for batch in (1, 64, 1024):
        made = [
            log.command(m.Op.CREATE, m.Create(who, ROOT_INODE, b"%d-%07d" % (batch, n), 0o644, True))
            for n in range(FILES)
        ]
        began = time.perf_counter()
        for start in range(0, FILES, batch):
            log.apply(made[start : start + batch])
        rate(f"create, {batch} in an entry", FILES, began)
    data = [log.command(m.Op.COMMIT_INLINE, m.CommitInline(2 + n, (m.Patch(0, bytes(4000)),))) for n in range(FILES)]
    began = time.perf_counter()
    for start in range(0, FILES, 64):
        log.apply(data[start : start + 64])
    rate("write 4,000 inline bytes, 64 in an entry", FILES, began)


def read_rates(store: LmdbStore) -> None:
    who = m.Credentials(1000, 1000)
    lookups = [m.Lookup(who, ROOT_INODE, b"64-%07d" % n) for n in range(FILES)]
    began = time.perf_counter()
    for request in lookups:
        with store.read() as txn:
            reads.lookup(txn, request)
    rate("lookup", FILES, began)
    many = m.LookupMany(who, tuple((ROOT_INODE, b"64-%07d" % n) for n in range(1000)))
    began = time.perf_counter()
    for _ in range(20):
        with store.read() as txn:
            reads.lookup_many(txn, many)
    rate("lookup, 1,000 in a request", 20_000, began)
    cookie, entries = 0, 0
    began = time.perf_counter()
    while True:
        with store.read() as txn:
            page = reads.readdir(txn, m.ReadDir(who, ROOT_INODE, cookie, 1000))
        entries += len(page.entries)
        if page.eof:
            break
        cookie = page.entries[-1].cookie
    rate("entries listed with attributes", entries, began)


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as path:
        store = LmdbStore.open(path)
        log = Log(store)
        log.open_session()
        write_rates(log)
        read_rates(store)
        began = time.perf_counter()
        store.checkpoint().write()
        print(f"{'checkpoint':42} {time.perf_counter() - began:12.3f} s, {store.size_bytes() >> 20} MiB")
        store.close()


if __name__ == "__main__":
    main()
