"""Carrying out the order to have a chunk: what is here, what comes from peers, what is kept."""

from contextlib import asynccontextmanager

import pytest
import trio

from chunkserver_support import SEGMENTS, content, hash_of
from shoalfs.chunkserver import copier
from shoalfs.chunkserver.client import Fetched
from shoalfs.chunkserver.target import open_target
from shoalfs.mds.messages import CopyFailed, CopyOrder, CopySource
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
