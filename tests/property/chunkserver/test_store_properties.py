"""A store against a dictionary, through crashes, power cuts, lost indexes and full disks."""

import contextlib
import errno
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chunkserver_support import Rig, content, hash_of
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.transport.checksum import block_hashes
from shoalfs.transport.errors import ChunkConflict, ChunkCorrupt, ChunkMissing, TargetDown, TargetFull
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import BLOCK_BYTES

CHUNKS = st.integers(1, 12)
LENGTHS = st.sampled_from([1, 100, 4096, 4097, 20_000, BLOCK_BYTES, BLOCK_BYTES + 1, 150_000])


def data_of(chunk: int, length: int) -> bytes:
    return content(chunk * 1_000_003 + length, length)


class StoreAgainstDict(RuleBasedStateMachine):
    """``certain``: chunks that must be there. ``possible``: chunks that may be there after a power cut or a failure;
    if they are, with these bytes. No chunk is in both; any other chunk must be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        self.rig = Rig(
            self.dir / "index", disk=MemoryDisk(3_000_000), segment_bytes_max=300_000, direct_bytes_min=BLOCK_BYTES + 1
        )
        self.certain: dict[int, bytes] = {}
        self.possible: dict[int, bytes] = {}
        self.durable: set[int] = set()

    def teardown(self) -> None:
        self.rig.store.abandon()
        shutil.rmtree(self.dir)

    @rule(chunk=CHUNKS, length=LENGTHS, durable=st.booleans())
    def put(self, chunk: int, length: int, durable: bool) -> None:
        there = self.certain.get(chunk)
        data = data_of(chunk, length)
        try:
            self.rig.put(chunk, data, durable=durable)
        except ChunkConflict:
            assert there is not None
            assert there != data
        except TargetFull:
            assert chunk not in self.certain
        else:
            assert there in (None, data)
            self.certain[chunk] = data
            if durable:
                self.durable = set(self.certain) & (self.durable | self.in_segment_of(chunk))

    def in_segment_of(self, chunk: int) -> set[int]:
        rows = dict(self.rig.rows())
        return {other for other, row in rows.items() if row.segment == rows[chunk].segment}

    @rule(chunk=CHUNKS, length=LENGTHS)
    def put_into_a_disk_that_fills_up(self, chunk: int, length: int) -> None:
        if chunk in self.certain:
            return
        self.rig.disk.fail("pwritev", errno.ENOSPC)  # which direct writes go through, too
        with contextlib.suppress(TargetFull):
            self.rig.put(chunk, data_of(chunk, length))
            raise AssertionError("it had no room")
        self.rig.disk._faults.clear()

    @rule(size_bytes=st.one_of(st.none(), st.integers(0, 20).map(lambda pages: pages * 4096)))
    def direct_writes_end_early(self, size_bytes: int | None) -> None:
        self.rig.disk.direct_bytes_max = size_bytes

    @rule(chunk=CHUNKS)
    def sync(self, chunk: int) -> None:
        if chunk not in self.certain:
            return
        for segment in [row.segment for row in self.rig.store.rows_of([ChunkId(chunk)])]:
            self.rig.store.sync(segment)
        self.durable |= self.in_segment_of(chunk)

    @rule()
    def sync_round(self) -> None:
        self.rig.store.sync_round()
        self.durable = set(self.certain)

    @rule(chunks=st.lists(CHUNKS, max_size=4))
    def delete(self, chunks: list[int]) -> None:
        self.rig.store.delete([ChunkId(chunk) for chunk in chunks])
        for chunk in chunks:
            self.certain.pop(chunk, None)
            self.durable.discard(chunk)

    @rule()
    def restart(self) -> None:
        self.rig.restart()
        self.durable = set(self.certain)

    @rule()
    def crash(self) -> None:
        self.rig.crash()

    @rule()
    def lose_the_index(self) -> None:
        self.rig.store.abandon()
        self.rig.disk.kill()
        shutil.rmtree(self.dir / "index")
        self.rig.open()

    @rule(seed=st.integers(0, 1 << 30))
    def power_cut(self, seed: int) -> None:
        self.rig.power_cut(seed)
        self.settle()

    @precondition(lambda self: self.certain)
    @rule(seed=st.integers(0, 1 << 30), operation=st.sampled_from(["pwritev", "fdatasync"]))
    def fail_for_good(self, seed: int, operation: str) -> None:
        """The disk fails, the machine restarts, a person clears the mark."""
        self.rig.disk.fail(operation, errno.EIO)
        victim = next(number for number in range(100, 200) if number not in self.certain)
        try:
            self.rig.put(victim, b"never acknowledged", durable=True)
            raise AssertionError("the disk failed")
        except TargetDown:
            self.possible[victim] = b"never acknowledged"
        self.rig.store.abandon()
        self.rig.disk.power_cut(random.Random(seed))
        with contextlib.suppress(FileNotFoundError):
            self.rig.disk.unlink("/target/state.json")
        self.rig.open()
        self.settle()

    def settle(self) -> None:
        """After a loss of what was in memory: what is durable is there, the rest is whole or absent."""
        present = set(self.rig.chunks())
        assert self.durable <= present, (self.durable, present)
        expected = self.certain | self.possible
        assert present <= set(expected)
        self.certain = {chunk: expected[chunk] for chunk in present}
        self.possible = {}
        self.durable = present  # what has survived was read from the disk

    @invariant()
    def everything_is_as_the_dictionary_says(self) -> None:
        assert self.rig.chunks() == sorted(self.certain)
        for chunk, data in self.certain.items():
            assert self.rig.get(chunk) == data
        for chunk in set(range(1, 13)) - set(self.certain):
            try:
                self.rig.store.reader.get(ChunkId(chunk), 0, 1)
                raise AssertionError(f"chunk {chunk} came back")
            except ChunkMissing:
                pass

    @invariant()
    def the_books_balance(self) -> None:
        index = self.rig.store._index
        rows = self.rig.rows()
        assert index.live_bytes == sum(row.live_bytes for row in index.segments().values())
        for number, segment in index.segments().items():
            assert segment.live_records == sum(row.segment == number for _, row in rows)
        assert self.rig.store._segments.in_flight_bytes == 0
        assert self.rig.store.failed == ""


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(st.lists(st.binary(max_size=200_000), max_size=5), st.lists(st.integers(1, 100_000), max_size=6))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_block_hashes_do_not_depend_on_the_cut(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    pieces = []
    rest = memoryview(whole)
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert block_hashes([*pieces, rest]) == block_hashes([whole]) == block_hashes(parts)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_damage_to_a_segment_is_noticed(data: st.DataObject) -> None:
    """Whatever is written over a segment file: a chunk is read right, or not at all; and so after a rebuild."""
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory) / "index", segment_bytes_max=1 << 20)
        lengths = data.draw(st.lists(LENGTHS, min_size=2, max_size=4))
        for chunk, length in enumerate(lengths, 1):
            rig.put(chunk, data_of(chunk, length), durable=True)
        path = "/target/segments/00000001.open"
        size = len(rig.disk.contents(path))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, size - 1))
            rig.disk.rot(path, at, data.draw(st.binary(min_size=1, max_size=10_000)))
        else:
            rig.disk.cut(path, data.draw(st.integers(0, size - 1)))
        for again in range(2):
            for chunk, length in enumerate(lengths, 1):
                with contextlib.suppress(ChunkCorrupt, ChunkMissing):
                    assert rig.get(chunk) == data_of(chunk, length)
            if not again:
                rig.power_cut(data.draw(st.integers(0, 1000)))
        chunk = ChunkId(50)
        rig.store.put(chunk=chunk, ino=InodeId(1), offset_bytes=0, data=[b"new"], expected_hash=hash_of(b"new"))
        assert rig.get(50) == b"new"
        rig.store.abandon()
