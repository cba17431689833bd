"""Carrying out the order to have a chunk: what is here, what comes from peers, what is kept."""

from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace

from chunkserver_support import SEGMENTS, content, hash_of
from shoalfs.chunkserver import copier
from shoalfs.chunkserver.client import Fetched
from shoalfs.chunkserver.target import open_target
from shoalfs.mds.messages import CopyFailed, CopyOrder, CopySource, FragmentSource, Rebuild
from shoalfs.transport import erasure
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, PeerUnreachable, TargetFull
from shoalfs.transport.ids import ChunkId, InodeId, TargetId

DATA = content(1, 100_000)
CHUNK = ChunkId(77)
SOURCES = tuple(CopySource(TargetId(number), f"memory:{number}") for number in (2, 3, 4))


class Peers:
    """``answers`` by target: bytes, or an error."""

    def __init__(self, **answers) -> None:
        self.answers = {int(name[1:]): answer for name, answer in answers.items()}
        self.asked: list[int] = []

    async def fetch(self, source, order, *, timeout_ms):
        await trio.lowlevel.checkpoint()
        self.asked.append(source.target)
        answer = self.answers[source.target]
        assert order.chunk_bytes, "whoever asks knows how much"
        if isinstance(answer, Exception):
            raise answer
        assert hash_of(answer) == order.chunk_hash
        return Fetched(memoryview(answer), InodeId(9), 1 << 20)


def order(data: bytes = DATA, *, deep: bool = True, sources=SOURCES) -> CopyOrder:
    return CopyOrder(CHUNK, len(data), hash_of(data), sources, deep)


@asynccontextmanager
async def opened(rig):
    rig.store.close()
    async with open_target(rig.open) as target:
        target.enrol(TargetId(1), 1)
        yield target


async def test_a_chunk_that_is_not_here_comes_from_the_first_who_gives_it(rig):
    peers = Peers(t2=ChunkMissing(), t3=ChunkCorrupt(), t4=DATA)
    async with opened(rig) as target:
        copied, failures = await copier.carry_out(target, order(), peers)
        assert copied
        assert failures == [
            CopyFailed(CHUNK, TargetId(2), ChunkMissing.code),
            CopyFailed(CHUNK, TargetId(3), ChunkCorrupt.code),
        ]
        blocks = await target.get(CHUNK, 0, len(DATA))
        assert bytes(blocks.data) == DATA
        assert (blocks.ino, blocks.file_offset_bytes) == (9, 1 << 20), "where its file has it comes along"
        assert rig.store.counters["syncs"], "it is reported once it is on disk"


async def test_what_is_here_and_right_is_not_fetched(rig):
    rig.put(CHUNK, DATA)
    peers = Peers()
    async with opened(rig) as target:
        assert await copier.carry_out(target, order(), peers) == (True, [])
        assert await copier.carry_out(target, order(deep=False), peers) == (True, [])
    assert peers.asked == []


@pytest.mark.parametrize("there", ["damaged", "other"])
async def test_what_is_here_and_wrong_is_replaced_and_kept_aside(rig, there):
    rig.put(CHUNK, DATA if there == "damaged" else content(2, 100_000))
    if there == "damaged":
        rig.flip(f"{SEGMENTS}/{rig.segment_names()[0]}", 4096 + 70_000)
    async with opened(rig) as target:
        assert (await copier.carry_out(target, order(), Peers(t2=DATA)))[0]
        assert bytes((await target.get(CHUNK, 0, len(DATA))).data) == DATA
        assert (await target.usage()).quarantined == 1


async def test_with_no_good_source_nothing_is_changed(rig):
    other = content(2, 100_000)
    rig.put(CHUNK, other)
    async with opened(rig) as target:
        copied, failures = await copier.carry_out(
            target, order(), Peers(t2=PeerUnreachable(), t3=ChunkMissing(), t4=ChunkCorrupt())
        )
        assert not copied
        assert [failed.source for failed in failures] == [2, 3, 4]
        assert bytes((await target.get(CHUNK, 0, len(other))).data) == other
        copied, failures = await copier.carry_out(target, order(sources=()), Peers())
        assert (copied, [failed.source for failed in failures]) == (False, [0])


async def test_a_target_that_cannot_store_says_that_it_is_its_own_fault(make_rig):
    rig = make_rig(size_limit_bytes=50_000)
    async with opened(rig) as target:
        copied, failures = await copier.carry_out(target, order(), Peers(t2=DATA))
    assert (copied, failures) == (False, [CopyFailed(CHUNK, TargetId(0), TargetFull.code)])


# --- fragments --------------------------------------------------------------------------------------------------------

FRAGMENTS = [bytes(fragment) for fragment in erasure.encode([DATA], 3, 2)]
WANTED = 1


def rebuilding(sources=(), peers=(2, 3, 4, 5)) -> CopyOrder:
    """Have the fragment at place 1; target n + 2 has the n-th of the others."""
    others = [place for place in range(5) if place != WANTED]
    plan = Rebuild(
        WANTED,
        3,
        2,
        tuple(
            FragmentSource(place, TargetId(target), f"memory:{target}", hash_of(FRAGMENTS[place]))
            for place, target in zip(others, peers, strict=True)
        ),
    )
    return CopyOrder(CHUNK, len(FRAGMENTS[0]), hash_of(FRAGMENTS[WANTED]), sources, True, plan)


def holding(**changed) -> Peers:
    others = [fragment for place, fragment in enumerate(FRAGMENTS) if place != WANTED]
    return Peers(**{f"t{number}": other for number, other in enumerate(others, 2)} | changed)


async def test_a_fragment_that_somebody_has_is_copied(rig):
    peers = holding(t9=FRAGMENTS[WANTED])
    async with opened(rig) as target:
        order = rebuilding((CopySource(TargetId(9), "memory:9"),))
        assert await copier.carry_out(target, order, peers) == (True, [])
    assert peers.asked == [9]


async def test_one_that_nobody_has_is_rebuilt_from_as_many_as_it_takes(rig):
    peers = holding()
    async with opened(rig) as target:
        assert await copier.carry_out(target, rebuilding(), peers) == (True, [])
        blocks = await target.get(CHUNK, 0, len(FRAGMENTS[WANTED]))
        assert bytes(blocks.data) == FRAGMENTS[WANTED]
        assert (blocks.ino, blocks.file_offset_bytes) == (9, 1 << 20)
        assert rig.store.counters["syncs"]
    assert sorted(peers.asked) == [2, 3, 4]


async def test_a_source_that_fails_is_made_up_for_by_another_and_named(rig):
    peers = holding(t3=ChunkCorrupt(), t9=ChunkMissing())
    async with opened(rig) as target:
        order = rebuilding((CopySource(TargetId(9), "memory:9"),))
        copied, failures = await copier.carry_out(target, order, peers)
        assert copied
        assert bytes((await target.get(CHUNK, 0, len(FRAGMENTS[WANTED]))).data) == FRAGMENTS[WANTED]
    assert failures == [
        CopyFailed(CHUNK, TargetId(9), ChunkMissing.code),
        CopyFailed(CHUNK, TargetId(3), ChunkCorrupt.code),
    ]


async def test_with_too_few_fragments_nothing_is_stored(rig):
    async with opened(rig) as target:
        copied, failures = await copier.carry_out(
            target, rebuilding(), holding(t3=PeerUnreachable(), t5=ChunkMissing())
        )
        assert (copied, sorted(failed.source for failed in failures)) == (False, [3, 5])
        with pytest.raises(ChunkMissing):
            await target.get(CHUNK, 0, 10)


async def test_the_same_fragment_twice_counts_once(rig):
    order = rebuilding()
    plan = order.rebuild
    doubled = replace(plan, sources=(plan.sources[0], replace(plan.sources[0], target=TargetId(7)), *plan.sources[1:]))
    peers = holding(t7=FRAGMENTS[0], t5=ChunkMissing())
    async with opened(rig) as target:
        assert (await copier.carry_out(target, replace(order, rebuild=doubled), peers))[0]
    assert 7 not in peers.asked


async def test_what_does_not_come_out_right_is_not_stored(rig, monkeypatch):
    monkeypatch.setattr(erasure, "rebuild", lambda *_: [memoryview(FRAGMENTS[0])])
    async with opened(rig) as target:
        copied, failures = await copier.carry_out(target, rebuilding(), holding())
        assert (copied, failures) == (False, [CopyFailed(CHUNK, TargetId(0), ChunkCorrupt.code)])
        with pytest.raises(ChunkMissing):
            await target.get(CHUNK, 0, 10)
