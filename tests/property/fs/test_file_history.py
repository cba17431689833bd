"""Random histories of one file, written by two clients over the real metadata state machine, against byte
arrays.

Client A writes behind: what it wrote and did not commit is ``pending`` in the model and must survive every
failure. Client B commits each of its steps at once, between A's. Chunkservers fail, restart and delete
garbage; answers to commits get lost. After each step the committed file, read from the metadata and the
chunks by the test itself, must be what the model says.
"""

import errno
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metadata import bounded
from shoalfs.fs import merging
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.uploader import Uploader
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.machine import Layout, Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.ops import merge_extents
from shoalfs.transport.errors import LayoutConflict, PeerUnreachable, ShoalError, TargetFull, from_wire
from shoalfs.transport.ids import ROOT_INODE, InodeId, PoolId, SessionId, TargetId
from unit.fs.world import CHUNK, INLINE, WHO, Reply, Servers, hash_of

TARGETS = 4
REPLICAS = m.Pool(PoolId(1), "hot", 2, 2)
FRAGMENTS = m.Pool(PoolId(1), "cold", 3, 3, 2)
LOSABLE = {m.Op.COMMIT_EXTENTS, m.Op.COMMIT_INLINE, m.Op.SETATTR, m.Op.ALLOCATE, m.Op.CLONE_RANGE, m.Op.MERGE_EXTENTS}
_encode = msgspec.msgpack.encode


class Cluster:
    """The real state machine over its store in memory, and chunkservers in a dictionary."""

    def __init__(self, pool: m.Pool = REPLICAS) -> None:
        self.store = MemoryStore()
        format_store(self.store, b"c" * 16, [pool], Layout(chunk_bytes=CHUNK, inline_bytes_max=INLINE))
        self.machine = Machine(self.store, OnDamage.STOP)
        for number in range(1, TARGETS + 1):
            self.register(TargetId(number))
        self.servers = Servers(self.map())
        self.lose_answers = 0  # of so many of the next mutations of files

    def map(self) -> m.ClusterMap:
        with self.store.read() as txn:
            return reads.cluster_map(txn)

    def register(self, target: TargetId) -> None:
        uuid = bytes([target]) * 16
        self.apply(SessionId(0), 0, 0, m.Op.REGISTER_TARGET, m.RegisterTarget(uuid, f"n{target}", "memory:", 1 << 40))

    def restart(self, target: TargetId) -> None:
        self.servers.restart(target, lose=False)
        self.register(target)

    def apply(self, session: SessionId, slot: int, seq: int, op: m.Op, request: Any) -> Any:
        index = self.machine.applied_index + 1
        command = m.Command(slot, seq, op, msgspec.Raw(_encode(request)))
        ((outcome,),) = self.machine.apply([(index, 1, encode_entry(index, [(session, command)]))])
        if outcome.code:
            raise from_wire(outcome.code, outcome.text)
        return msgspec.msgpack.decode(outcome.body, type=m.OP_TYPES[op][1])

    def collect_garbage(self) -> None:
        chunks = sorted({chunk for held in self.servers.chunks.values() for chunk in held})
        with self.store.read() as txn:
            classes = reads.classify_chunks(txn, m.ClassifyChunks(tuple(chunks))).classes
        gone = [chunk for chunk, kind in zip(chunks, classes, strict=True) if kind == m.ChunkClass.GARBAGE]
        for held in self.servers.chunks.values():
            for chunk in gone:
                held.pop(chunk, None)

    def extents(self, ino: InodeId) -> tuple[m.ExtentMap, bytes]:
        with self.store.read() as txn:
            return reads.get_extents(txn, m.GetExtents(ino, 0, 1 << 40, 1 << 20))

    def content(self, ino: InodeId) -> bytes:
        page, inline = self.extents(ino)
        data = bytearray(page.inode.size_bytes)
        data[: len(inline)] = inline
        for e in page.extents:
            chunk = self.joined(e) if e.fragments else self.copied(e)
            data[e.offset_bytes : e.end_bytes] = chunk[e.chunk_offset_bytes :][: e.length_bytes]
        return bytes(data)

    def copied(self, e: m.Extent) -> bytes:
        copies = [held[e.chunk] for held in self.servers.chunks.values() if e.chunk in held]
        assert len(copies) >= 2
        assert all(hash_of(copy) == e.chunk_hash for copy in copies)
        return copies[0]

    def joined(self, e: m.Extent) -> bytes:
        (group,) = [group for group in self.map().groups if group.id == e.chunk >> 48]
        held = [self.servers.chunks[target][e.chunk] for target in group.targets]
        assert b"".join(map(hash_of, held)) == e.fragments
        return b"".join(held[:2])[: e.chunk_bytes]


def is_whole(request: Any, answer: Any) -> bool:
    """Nothing of it is left for another command. The model knows of no call that was done in part."""
    if isinstance(answer, m.Cloned):
        return answer.length_bytes == request.length_bytes
    return not getattr(answer, "left", 0)


class Session:
    """The Metadata port over the state machine."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        opened = cluster.apply(SessionId(0), 0, 0, m.Op.OPEN_SESSION, m.OpenSession(bytes([number]) * 16, "test"))
        self.session: SessionId = opened.session
        self.map: m.ClusterMap = opened.map
        self._seq = 0
        self._sequences: list[int] = []

    async def refresh_map(self) -> m.ClusterMap:
        self.map = self._cluster.map()
        return self.map

    async def read(self, method: Any, request: Any) -> Any:
        await trio.lowlevel.checkpoint()
        assert method is m.GET_EXTENTS
        with self._cluster.store.read() as txn:
            page, inline = reads.get_extents(txn, msgspec.structs.replace(request, count=min(request.count, 3)))
        return Reply(page, memoryview(inline))

    async def mutate(self, op: m.Op, request: Any, reply: Any) -> Any:
        await trio.lowlevel.checkpoint()
        answer = self.now(op, request)
        if self._cluster.lose_answers and op in LOSABLE and is_whole(request, answer):
            self._cluster.lose_answers -= 1
            raise PeerUnreachable
        return answer

    def now(self, op: m.Op, request: Any) -> Any:
        self._seq += 1
        return self._cluster.apply(self.session, 1, self._seq, op, request)

    async def chunk_sequence(self) -> int:
        await trio.lowlevel.checkpoint()
        if not self._sequences:
            got = self.now(m.Op.RESERVE_CHUNKS, m.ReserveChunks(10))
            self._sequences = list(range(got.first_sequence, got.first_sequence + got.count))
        return self._sequences.pop()


def put(data: bytearray, offset: int, piece: bytes) -> None:
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(piece)] = piece


@dataclass
class History:
    """The system and its model side by side. ``behind``: B changed the file and A has not been told."""

    cluster: Cluster = field(default_factory=Cluster)
    committed: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    behind: bool = False
    excused: set[int] = field(default_factory=set)  # chunks that A did not write, or was told had failed
    value: int = 0
    sessions: int = 0
    merged: int = 0  # pieces

    def __post_init__(self) -> None:
        self.b_session = self.session()
        created = self.b_session.now(m.Op.CREATE, m.Create(WHO, ROOT_INODE, b"file", 0o644, True))
        self.ino = created.inode.ino
        self.b = DataPath(self.b_session, self.cluster.servers, cache_bytes=2 * CHUNK)
        self.mount_a()

    def session(self) -> Session:
        self.sessions += 1
        return Session(self.cluster, self.sessions)

    def mount_a(self) -> None:
        self.a = DataPath(self.session(), self.cluster.servers, cache_bytes=2 * CHUNK)
        self.file = self.opened(self.a)
        self.behind = False

    def opened(self, mount: DataPath) -> Any:
        page, inline = self.cluster.extents(self.ino)
        file = mount.file(page.inode)
        file.refresh(page.inode, inline)
        return file

    def data(self, length: int) -> bytes:
        self.value = self.value % 255 + 1
        return bytes([self.value]) * length

    def shown(self) -> bytes:
        data = bytearray(self.committed)
        for offset, piece in self.pending:
            put(data, offset, piece)
        return bytes(data)

    def commit_pending(self) -> None:
        self.committed = bytearray(self.shown())

    # --- steps of A --------------------------------------------------------------------------------------------------

    async def write(self, at: int, length: int) -> None:
        piece = self.data(length)
        assert await self.file.write(at, piece) == length
        self.pending.append((at, piece))

    async def stream(self, at: int, length: int) -> None:
        await self.file.store_full_windows()

    async def flush(self, at: int, length: int) -> None:
        durable = bool(length % 2)
        had_pending, losing = bool(self.pending), self.cluster.lose_answers
        try:
            await self.file.flush(durable=durable)
        except ShoalError:
            assert self.file.is_dirty or durable
            if losing > self.cluster.lose_answers:
                self.commit_pending()  # it happened, and A does not know: it will commit the same again
                self.behind = True
            return
        self.commit_pending()
        self.pending.clear()
        self.behind &= not had_pending
        if durable:
            self.check_durable()

    def check_durable(self) -> None:
        """All that A wrote since it was mounted is on two disks. B syncs whatever it does."""
        assert not self.file.needs_fsync
        for chunk in self.linked() - self.excused:
            assert sum(chunk in synced for synced in self.cluster.servers.durable.values()) >= 2

    def linked(self) -> set[int]:
        return {e.chunk for e in self.cluster.extents(self.ino)[0].extents}

    async def append(self, at: int, length: int) -> None:
        piece = self.data(length)
        losing = self.cluster.lose_answers
        try:
            landed = await self.file.append(piece)
        except ShoalError:
            if losing > self.cluster.lose_answers:
                self.commit_pending()
                self.behind = True
                if not self.file.is_dirty:
                    self.committed += piece  # the commit of what was pending had come through before
                    self.pending.clear()
                    self.excused |= self.linked()
            elif not self.file.is_dirty:
                self.commit_pending()
                self.pending.clear()
            return
        self.commit_pending()
        self.pending.clear()
        assert landed == len(self.committed)
        self.committed += piece
        self.behind = False

    async def truncate(self, at: int, length: int) -> None:
        losing = self.cluster.lose_answers
        try:
            inode = await self.file.setattr(m.SetAttr(WHO, self.ino, size_bytes=at, by_handle=True))
        except ShoalError:
            assert losing > self.cluster.lose_answers
            self.cut(at)
            self.behind = True
            return
        self.cut(at)
        self.pending = [(start, piece[: at - start]) for start, piece in self.pending if start < at]
        self.behind = False
        assert inode.size_bytes == at

    def cut(self, size: int) -> None:
        del self.committed[size:]
        self.committed.extend(bytes(size - len(self.committed)))

    async def punch(self, at: int, length: int) -> None:
        await self.allocate(at, length, m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE)

    async def zero(self, at: int, length: int) -> None:
        await self.allocate(at, length, m.AllocateMode.ZERO_RANGE)

    async def extend(self, at: int, length: int) -> None:
        await self.allocate(at, length, m.AllocateMode.NONE)

    async def allocate(self, at: int, length: int, mode: m.AllocateMode) -> None:
        request = m.Allocate(self.ino, at, length, mode)
        await self.change(lambda: self.file.allocate(request), lambda: self.allocated(at, length, mode))

    def allocated(self, at: int, length: int, mode: m.AllocateMode) -> None:
        size = len(self.committed) if mode & m.AllocateMode.KEEP_SIZE else max(len(self.committed), at + length)
        if mode:
            put(self.committed, at, bytes(length))
        self.cut(size)

    async def clone(self, at: int, length: int) -> None:
        """Within the file, from its beginning."""
        length = min(length, at, len(self.shown()))
        request = m.CloneRange(self.ino, self.ino, 0, at, length)

        def cloned() -> None:
            if length:
                put(self.committed, at, bytes(self.committed[:length]))

        async def clone_all() -> None:
            rest = request
            while done := await self.file.clone(rest):
                offsets = {"source_offset_bytes": rest.source_offset_bytes + done}
                offsets |= {"offset_bytes": rest.offset_bytes + done, "length_bytes": rest.length_bytes - done}
                rest = msgspec.structs.replace(rest, **offsets)

        behind = self.behind
        try:
            await self.change(clone_all, cloned)
            self.behind |= behind and not length  # nothing was done, so nothing was learned
        except LayoutConflict:
            assert len(self.committed) <= INLINE < at + length or self.inode().storage == m.Storage.INLINE
        self.excused |= set() if self.file.needs_fsync else self.linked()

    def inode(self) -> m.Inode:
        return self.cluster.extents(self.ino)[0].inode

    async def change(self, call: Any, changed: Any) -> None:
        """A step of A that first commits what is pending, and then changes what is committed."""
        losing, dirty = self.cluster.lose_answers, self.file.is_dirty
        try:
            await call()
        except LayoutConflict:
            self.commit_pending()
            self.pending.clear()
            raise
        except ShoalError:
            lost = losing > self.cluster.lose_answers
            if self.file.is_dirty:
                if lost:
                    self.commit_pending()  # the answer to that was lost
            else:
                self.commit_pending()
                self.pending.clear()
                if lost and not (dirty and self.cluster.content(self.ino) == self.committed):
                    changed()
            self.behind = True
            return
        self.commit_pending()
        self.pending.clear()
        changed()
        self.behind = False

    async def merge(self, at: int, length: int) -> None:
        """Whatever comes of it, nobody can see it."""
        with suppress(ShoalError):
            self.merged += await self.file.merge(at // 2, at + length)

    async def seek(self, at: int, length: int) -> None:
        """A hole is zeros, and what lies before the data that is found is a hole."""
        if self.behind:
            self.file = self.opened(self.a)
            self.behind = False
        losing = self.cluster.lose_answers
        try:
            data = await self.file.seek(at, hole=False)
        except ShoalError as error:
            if error.errno != errno.ENXIO:
                if losing > self.cluster.lose_answers:
                    self.commit_pending()
                    self.behind = True
                return
            data = len(self.shown())
        self.commit_pending()
        self.pending.clear()
        assert not any(self.committed[at:data])
        if data < len(self.committed):
            hole = await self.file.seek(data, hole=True)
            assert data < hole <= len(self.committed)
            end = await self.file.seek(hole, hole=True) if hole < len(self.committed) else hole
            assert end == hole

    async def read(self, at: int, length: int) -> None:
        if self.behind:
            self.file = self.opened(self.a)
            self.behind = False
        expected = self.shown()
        assert self.file.inode.size_bytes == len(expected)
        assert bytes(await self.file.read(at, length)) == expected[at : at + length]

    async def reopen(self, at: int, length: int) -> None:
        self.file = self.opened(self.a)
        self.behind = False
        expected = self.shown()
        assert bytes(await self.file.read(0, len(expected) + 10)) == expected

    async def crash(self, at: int, length: int) -> None:
        self.pending.clear()
        self.excused |= self.linked()
        self.cluster.lose_answers = 0
        self.mount_a()
        await self.reopen(at, length)

    # --- steps of B --------------------------------------------------------------------------------------------------

    async def b_step(self, call: Any) -> Any:
        """B does not fail: the weather is A's alone."""
        servers, weather, losing = (
            self.cluster.servers,
            self.cluster.servers.on_put,
            self.cluster.lose_answers,
        )
        servers.on_put, self.cluster.lose_answers = lambda target, chunk: None, 0
        file = self.opened(self.b)
        await call(file)
        await file.flush(durable=True)
        servers.on_put, self.cluster.lose_answers = weather, losing
        self.behind = True

    async def b_write(self, at: int, length: int) -> None:
        piece = self.data(length)
        await self.b_step(lambda file: file.write(at, piece))
        put(self.committed, at, piece)

    async def b_append(self, at: int, length: int) -> None:
        piece = self.data(length)
        await self.b_step(lambda file: file.append(piece))
        self.committed += piece

    async def b_truncate(self, at: int, length: int) -> None:
        request = m.SetAttr(WHO, self.ino, size_bytes=at, by_handle=True)
        await self.b_step(lambda file: file.setattr(request))
        self.cut(at)

    async def b_read(self, at: int, length: int) -> None:
        """From now on B knows where the bytes are, until it opens the file again."""
        expected = bytes(self.committed)
        file = self.opened(self.b)
        assert bytes(await file.read(0, len(expected))) == expected

    async def b_merge(self, at: int, length: int) -> None:
        """B looks at the pieces as they were when it opened the file, and A has changed them since, or not."""
        servers, weather, losing = (self.cluster.servers, self.cluster.servers.on_put, self.cluster.lose_answers)
        servers.on_put, self.cluster.lose_answers = lambda target, chunk: None, 0
        file = self.b.find(self.ino)
        if file is not None:
            with suppress(ShoalError):
                self.merged += await file.merge(0, at + length)
        servers.on_put, self.cluster.lose_answers = weather, losing

    async def b_punch(self, at: int, length: int) -> None:
        mode = m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE
        await self.b_step(lambda file: file.allocate(m.Allocate(self.ino, at, length, mode)))
        self.allocated(at, length, mode)

    # --- the weather -------------------------------------------------------------------------------------------------

    async def restart(self, at: int, length: int) -> None:
        self.cluster.restart(TargetId(1 + length % TARGETS))

    async def collect(self, at: int, length: int) -> None:
        self.cluster.collect_garbage()

    async def fail_puts(self, at: int, length: int) -> None:
        left = length % 12
        kind = PeerUnreachable if at % 2 else TargetFull

        def on_put(target: TargetId, chunk: Any) -> ShoalError | None:
            nonlocal left
            left -= 1
            return kind() if left >= 0 else None

        self.cluster.servers.on_put = on_put

    async def lose_answer(self, at: int, length: int) -> None:
        self.cluster.lose_answers = 1

    async def calm(self) -> None:
        self.cluster.lose_answers = 0
        self.cluster.servers.on_put = lambda target, chunk: None
        await trio.sleep(60)  # targets that failed are trusted again

    def compare(self, step: str) -> None:
        """Not by assert: in CI it explains two long strings of bytes for minutes."""
        found = self.cluster.content(self.ino)
        if found != self.committed:
            at = next(
                (at for at, (one, other) in enumerate(zip(found, self.committed, strict=False)) if one != other), -1
            )
            raise AssertionError(f"after {step}: {len(found)} and {len(self.committed)} bytes, other from {at} on")

    async def run(self, steps: list[tuple[str, int, int]]) -> None:
        for name, at, length in steps:
            await getattr(self, name)(at, length)
            self.compare(name)
        await self.calm()
        await self.flush(0, 1)
        assert not self.pending
        self.compare("the end")
        await self.reopen(0, 0)
        assert self.a.dirty_bytes == self.b.dirty_bytes == 0


MINE = ["write"] * 5 + ["flush"] * 2 + ["stream", "append", "truncate", "read", "read", "reopen", "crash"]
MINE += ["punch", "zero", "extend", "clone", "seek", "merge"]
OTHERS = [
    "b_write",
    "b_read",
    "b_merge",
    "b_append",
    "b_truncate",
    "b_punch",
    "restart",
    "collect",
    "fail_puts",
    "lose_answer",
]
OFFSETS = [
    0,
    1,
    100,
    4000,
    INLINE,
    5000,
    30_000,
    CHUNK - 1,
    CHUNK,
    CHUNK + 7,
    2 * CHUNK,
    3 * CHUNK - 5,
    200_000,
]
LENGTHS = [1, 2, 50, 999, 4000, INLINE + 1, 20_000, CHUNK, CHUNK + 1, 2 * CHUNK]
steps = st.tuples(st.sampled_from(MINE + OTHERS), st.sampled_from(OFFSETS), st.sampled_from(LENGTHS))
small = st.tuples(st.sampled_from(MINE + OTHERS), st.integers(0, INLINE), st.integers(1, 200))


def run(steps: list[tuple[str, int, int]], pool: m.Pool = REPLICAS) -> History:
    """Two pieces of a file are enough to be merged."""
    history = History(Cluster(pool))

    async def main() -> None:
        await history.run(steps)

    with mock.patch.object(merging, "PIECES_MIN", 2):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return history


@given(st.lists(steps, min_size=5, max_size=40))
@settings(max_examples=150, deadline=None)
def test_history_of_a_large_file(history) -> None:
    run(history)


@given(st.lists(small, min_size=5, max_size=40))
@settings(max_examples=100, deadline=None)
def test_history_of_a_small_file(history) -> None:
    run(history)


@given(st.lists(steps, min_size=5, max_size=40))
@settings(max_examples=60, deadline=None)
def test_history_of_a_file_in_fragments(history) -> None:
    run(history, FRAGMENTS)


@given(st.lists(small, min_size=5, max_size=40))
@settings(max_examples=100, deadline=None)
def test_history_with_commands_that_do_little(history) -> None:
    """As if one command could remove two extents only."""
    with bounded(rows_max=2):
        run([("write", 0, INLINE + 1), ("flush", 0, 0), *history])


async def test_commit_whose_answer_was_lost_and_whose_chunk_was_collected_since() -> None:
    """The repeated commit names a chunk that is garbage: the bytes are stored again as another one."""
    history = History()
    await history.write(0, CHUNK)
    await history.lose_answer(0, 0)
    await history.flush(0, 0)
    assert history.pending
    await history.b_write(0, 2 * CHUNK)
    await history.collect(0, 0)
    await history.flush(0, 0)
    assert not history.pending
    assert history.cluster.content(history.ino) == history.committed


IN_PIECES = [step for at in range(0, 24_000, 4_000) for step in (("write", at, 4_000), ("flush", 0, 1))]
WRITTEN_SINCE = [*IN_PIECES, ("b_read", 0, 1), ("write", 5_000, 50), ("flush", 0, 1), ("b_merge", 0, 24_000)]


@pytest.mark.parametrize("pool", [REPLICAS, FRAGMENTS])
def test_pieces_become_one_and_the_old_ones_garbage(pool) -> None:
    history = run([*IN_PIECES, ("merge", 0, 24_000), ("collect", 0, 0), ("read", 0, 24_000), ("reopen", 0, 0)], pool)
    assert history.merged == 6
    assert len(history.linked()) == 1


def test_what_was_written_since_stays_and_a_client_that_does_not_look_is_seen() -> None:
    assert run(WRITTEN_SINCE).merged == 0
    with mock.patch.object(merge_extents, "_places", return_value=[]), pytest.raises(AssertionError):
        run(WRITTEN_SINCE)


def test_a_merge_that_is_not_on_disk_is_refused_and_would_be_seen() -> None:
    """Unsynced bytes may be merged, and synced ones with them."""
    steps = [*IN_PIECES, ("merge", 0, 24_000), ("flush", 0, 1)]
    real = Uploader.store

    async def lazily(self: Any, *arguments: Any, durable: bool) -> Any:
        return await real(self, *arguments, durable=False)

    with mock.patch.object(Uploader, "store", lazily):
        assert run(steps).merged == 0
        ignored = mock.patch.object(merge_extents, "check_replacement")
        with ignored, pytest.raises(AssertionError):
            run(steps)


def test_a_clone_of_nothing_does_not_tell_of_what_others_changed() -> None:
    run([("write", 0, 1), ("flush", 0, 1), ("b_write", 0, 1), ("clone", 0, 1), ("read", 0, 1)])
