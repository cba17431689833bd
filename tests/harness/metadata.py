"""A metadata state machine that tests drive by requests: each is one command of one log entry, applied at
once."""

import io
from contextlib import contextmanager
from itertools import count

import msgspec

from shoalfs.mds import machine
from shoalfs.mds import messages as m
from shoalfs.mds.bounds import Bounds
from shoalfs.mds.check import check
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.machine import Layout, Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore
from shoalfs.transport.errors import from_wire
from shoalfs.transport.ids import ROOT_INODE, PoolId, chunk_id
from shoalfs.transport.limits import EXTENTS_PER_FILE_MAX

CLUSTER = b"cluster-of-tests"
LAYOUT = Layout(chunk_bytes=1 << 20, inline_bytes_max=100)
POOLS = (m.Pool(PoolId(1), "hot", replicas=2, min_ack=2),)
ROOT = m.ROOT_CREDENTIALS
ALICE = m.Credentials(1000, 1000, (2000,))
BOB = m.Credentials(1001, 1001, (2000,))
SECOND_NS = 1_000_000_000

OP_OF = {types[0]: op for op, types in m.OP_TYPES.items() if types[0] is not m.ChunkList}
_encode = msgspec.msgpack.encode


def command(request, *, op=None, slot=0, seq=1):
    return m.Command(slot, seq, int(op or OP_OF[type(request)]), msgspec.Raw(_encode(request)))


@contextmanager
def bounded(rows_max, extents_max=EXTENTS_PER_FILE_MAX):
    """As if commands were bounded so."""
    before, machine.BOUNDS = machine.BOUNDS, Bounds(rows_max, extents_max)
    try:
        yield
    finally:
        machine.BOUNDS = before


class Metadata:
    """A formatted store with a machine, one session and (after ``add_targets``) targets to put chunks on."""

    def __init__(self, store=None, on_damage=OnDamage.REFUSE):
        self.store = MemoryStore() if store is None else store
        format_store(self.store, CLUSTER, POOLS, LAYOUT)
        self.machine = Machine(self.store, on_damage)
        self.seq = count(1)
        self.now_ns = self.machine.applied_index * SECOND_NS
        self.session = self.do(m.OpenSession(b"first session 16", "tests"), session=0).session

    def entry(self, commands):
        self.now_ns += SECOND_NS
        return self.apply(encode_entry(self.now_ns, commands))

    def apply(self, data):
        index = self.machine.applied_index + 1
        return self.machine.apply([(index, 1, data)])[0]

    def do(self, request, *, op=None, session=None):
        """Apply a request and return its reply. Raises the error that the outcome stands for."""
        session = self.session if session is None else session
        seq = next(self.seq) if session else 0
        outcome = self.entry([(session, command(request, op=op, seq=seq))])[0]
        if outcome.code:
            raise from_wire(outcome.code, outcome.text)
        return msgspec.msgpack.decode(outcome.body, type=m.OP_TYPES[op or OP_OF[type(request)]][1])

    def read(self, function, request):
        with self.store.read() as txn:
            return function(txn, request)

    # --- short forms ----------------------------------------------------------------------------------------

    def create(self, name, *, parent=ROOT_INODE, who=ROOT, mode=0o644):
        return self.do(m.Create(who, parent, name, mode, True)).inode

    def mkdir(self, name, *, parent=ROOT_INODE, who=ROOT, mode=0o755):
        return self.do(m.Mkdir(who, parent, name, mode)).inode

    def add_targets(self, number=3):
        for i in range(1, number + 1):
            uuid = bytes([i]) * 16
            request = m.RegisterTarget(uuid, f"node{i}", f"unix:/{i}", 1 << 40)
            self.do(request, session=0)

    def map(self):
        from shoalfs.mds import reads

        with self.store.read() as txn:
            return reads.cluster_map(txn)

    def chunk(self, pg=1):
        """A fresh chunk number of this session."""
        return chunk_id(pg, self.do(m.ReserveChunks(1)).first_sequence)

    def extent(self, chunk, offset, length, *, chunk_offset=0, chunk_bytes=None):
        return m.Extent(offset, length, chunk, chunk_offset, chunk_bytes or chunk_offset + length, b"h" * 16)

    def receipts(self, *chunks, durable=True):
        map_ = self.map()
        epochs = {t.id: t.epoch for t in map_.targets}
        groups = {g.id: g.targets for g in map_.groups}
        return tuple(m.Receipt(c, t, epochs[t], durable, b"h" * 16) for c in chunks for t in groups[c >> 48])

    def commit(self, ino, *extents, **options):
        receipts = self.receipts(*{e.chunk for e in extents})
        return self.do(m.CommitExtents(ino, tuple(extents), receipts, **options))

    def write(self, ino, offset, length, **options):
        """Commit one whole new chunk."""
        return self.commit(ino, self.extent(self.chunk(), offset, length), **options)

    def write_inline(self, ino, offset, data, *, append=False):
        return self.do(m.CommitInline(ino, (m.Patch(offset, data),), append))

    def pages(self):
        """The pages of a whole check."""
        with self.store.read() as txn:
            return [page for page in check(txn, io.BytesIO) if page is not None]

    def findings(self):
        """All findings of a whole check."""
        return [finding for page in self.pages() for finding in page.findings]


def contents(store):
    """All rows of a store."""
    with store.read() as txn:
        return dict(txn.range(b"\0", b"\xff"))
