"""How long the commands take that remove or replace many extents of one file: truncation, holes, writing over.

A file of many small extents (8 bytes each, 512 of them in a chunk, as a mount packs scattered writes) is made in the
durable store; then the calls are made as a client makes them, a command again and again until it is done. Of each call:
its commands, the longest of them, all together. Processor time: no network, no Raft, no disk sync.

    python -m bench.extents [extents [directory]]
"""

import sys
import tempfile
import time

import msgspec
from bench.metadata import Log

from shoalfs.fs.committer import divide
from shoalfs.mds import messages as m
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId, TargetId, chunk_id

_WHO = m.Credentials(0, 0)
_PIECE_BYTES = 8
_PITCH_BYTES = 16
_PER_CHUNK = 512
_PER_COMMIT = 1024
_CHUNK_BYTES = 1 << 22
_HASH = b"h" * 16


class Bench:
    def __init__(self, store: LmdbStore) -> None:
        self.log = Log(store)
        self.log.open_session()
        uuid = bytes([1]) * 16
        self.service(m.Op.REGISTER_TARGET, m.RegisterTarget(uuid, "node", "unix:/1", 1 << 40))
        self.sequence, self.last = 0, 0

    def service(self, op: m.Op, request: msgspec.Struct) -> msgspec.Raw:
        command = m.Command(0, 0, int(op), msgspec.Raw(msgspec.msgpack.encode(request)))
        return self._outcome([(0, command)]).body

    def _outcome(self, commands: list) -> m.Outcome:
        index = self.log.machine.applied_index + 1
        (outcome,) = self.log.machine.apply([(index, 1, encode_entry(index, commands))])[0]
        return outcome

    def call(self, op: m.Op, request: msgspec.Struct) -> tuple[m.Outcome, float]:
        """The outcome, and the seconds that it took."""
        commands = [self.log.command(op, request)]
        began = time.process_time()
        outcome = self._outcome(commands)
        seconds = time.process_time() - began
        assert outcome.code == 0, outcome
        return outcome, seconds

    def all_of(self, op: m.Op, request: msgspec.Struct) -> list[float]:
        """As a client does it: with further commands for what is left. The seconds of each."""
        seconds = []
        while True:
            outcome, took = self.call(op, request)
            seconds.append(took)
            left = getattr(msgspec.msgpack.decode(outcome.body, type=m.OP_TYPES[op][1]), "left", 0)
            if not left:
                return seconds
            reply = msgspec.msgpack.decode(outcome.body, type=m.Committed)
            if isinstance(request, m.Allocate):
                end = request.offset_bytes + request.length_bytes
                first = reply.left_from_bytes
                request = msgspec.structs.replace(request, offset_bytes=first, length_bytes=end - first)
            else:
                request = msgspec.structs.replace(request, extents=divide(request.extents, reply)[1])

    def cut(self, ino: InodeId, size_bytes: int) -> list[float]:
        """Truncate, and then what the leader does."""
        seconds = self.all_of(m.Op.SETATTR, m.SetAttr(_WHO, ino, size_bytes=size_bytes))
        while "TRIM" in m.Op.__members__:
            body = msgspec.Raw(msgspec.msgpack.encode(m.Trim(ino)))
            began = time.process_time()
            outcome = self._outcome([(0, m.Command(0, 0, int(m.Op.TRIM), body))])
            seconds.append(time.process_time() - began)
            if msgspec.msgpack.decode(outcome.body, type=m.Trimmed).done:
                break
        return seconds

    def chunk(self) -> ChunkId:
        if self.sequence == self.last:
            outcome, _ = self.call(m.Op.RESERVE_CHUNKS, m.ReserveChunks(1024))
            got = msgspec.msgpack.decode(outcome.body, type=m.ChunksReserved)
            self.sequence, self.last = got.first_sequence, got.first_sequence + got.count
        self.sequence += 1
        return chunk_id(1, self.sequence - 1)

    def commit(self, ino: InodeId, extents: list[m.Extent]) -> list[float]:
        chunks = dict.fromkeys(extent.chunk for extent in extents)
        receipts = tuple(m.Receipt(chunk, TargetId(1), 1, True, _HASH) for chunk in chunks)
        return self.all_of(m.Op.COMMIT_EXTENTS, m.CommitExtents(ino, tuple(extents), receipts))

    def file(self, name: bytes, count: int) -> InodeId:
        """With ``count`` extents."""
        made, _ = self.call(m.Op.CREATE, m.Create(_WHO, ROOT_INODE, name, 0o644, True))
        ino = msgspec.msgpack.decode(made.body, type=m.Created).inode.ino
        for first in range(0, count, _PER_COMMIT):
            extents = []
            for number in range(first, min(first + _PER_COMMIT, count)):
                if number % _PER_CHUNK == 0:
                    chunk = self.chunk()
                inside = number % _PER_CHUNK * _PIECE_BYTES
                extents.append(
                    m.Extent(number * _PITCH_BYTES, _PIECE_BYTES, chunk, inside, _PER_CHUNK * _PIECE_BYTES, _HASH)
                )
            self.commit(ino, extents)
        return ino


def show(what: str, seconds: list[float]) -> None:
    print(
        f"{what:34} {len(seconds):6} commands, the longest {max(seconds) * 1e3:9.1f} ms, all {sum(seconds):7.2f} s",
        flush=True,
    )


def measure(store: LmdbStore, count: int) -> None:
    bench = Bench(store)
    end = count * _PITCH_BYTES
    began = time.process_time()
    files = {name: bench.file(name, count) for name in (b"cut", b"half", b"punched", b"over")}
    seconds = time.process_time() - began
    print(f"{count:,} extents in each file; made at {len(files) * count / seconds:,.0f} extents/s")
    show("truncate to 0", bench.cut(files[b"cut"], 0))
    show("truncate to half", bench.cut(files[b"half"], end // 2))
    hole = m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE
    show("punch all but the ends", bench.all_of(m.Op.ALLOCATE, m.Allocate(files[b"punched"], 100, end - 200, hole)))
    written = [
        m.Extent(first, min(_CHUNK_BYTES, end - first), bench.chunk(), 0, _CHUNK_BYTES, _HASH)
        for first in range(0, end, _CHUNK_BYTES)
    ]
    show("write over, 4 MiB chunks", bench.commit(files[b"over"], written))
    one = bench.file(b"one", 1)
    seconds = []
    for _ in range(2_000):
        seconds += bench.commit(one, [m.Extent(0, _PIECE_BYTES, bench.chunk(), 0, _PIECE_BYTES, _HASH)])
    print(f"commit of one extent over one: {sorted(seconds)[len(seconds) // 2] * 1e6:.0f} us (median of 2,000)")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    directory = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(dir=directory) as path:
        store = LmdbStore.open(path)
        try:
            measure(store, count)
        finally:
            store.close()


if __name__ == "__main__":
    main()
