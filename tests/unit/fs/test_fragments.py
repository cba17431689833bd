"""Files in a pool of fragments: what is stored where, what is fetched, and what is read when targets are lost."""

import random
from itertools import combinations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shoalfs.fs.placement import Placement
from shoalfs.mds import messages as m
from shoalfs.transport import erasure
from shoalfs.transport.checksum import chunk_hash
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, PeerUnreachable, PosixError, ShoalError
from shoalfs.transport.fragments import fragment_bytes, fragment_hash
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import BLOCK_BYTES
from unit.fs.test_chunk_reader import stored
from unit.fs.world import CHUNK, KIB, World, hash_of

MIB = 1024 * KIB
WIDTH, DATA = 4, 2
ERRORS = (ChunkMissing, ChunkCorrupt, PeerUnreachable)


def fragmented(**options: int) -> World:
    return World(**{"targets": 6, "replicas": WIDTH, "min_ack": DATA + 1, "data": DATA} | options)


def extents(world: World, file) -> list[m.Extent]:
    return world.service.files[file.ino].extents


def holders(world: World, extent: m.Extent) -> tuple[TargetId, ...]:
    (group,) = [group for group in world.service.map.groups if group.id == extent.chunk >> 48]
    return group.targets


@pytest.mark.parametrize("length", [4_065, 64 * KIB, 100_001, MIB + 1])
async def test_every_target_of_the_group_has_its_own_fragment(autojump_clock, length) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), length)
    assert bytes(await file.read(0, length)) == data
    at = 0
    for extent in extents(world, file):
        each = fragment_bytes(extent.chunk_bytes, DATA)
        held = [world.servers.chunks[target][extent.chunk] for target in holders(world, extent)]
        assert [len(fragment) for fragment in held] == [each] * WIDTH
        assert b"".join(held[:DATA])[: extent.chunk_bytes] == data[at : at + extent.chunk_bytes]
        assert [hash_of(fragment) for fragment in held] == [fragment_hash(extent.fragments, p) for p in range(WIDTH)]
        assert chunk_hash(extent.fragments) == extent.chunk_hash
        at += extent.chunk_bytes
    assert sum(map(len, world.servers.chunks[TargetId(1)].values())) < length, "nobody has all of it"


async def test_a_small_file_stays_in_its_inode(autojump_clock) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), 4_000)
    assert bytes(await file.read(0, 4_000)) == data
    assert not world.servers.puts


async def test_a_range_is_read_from_the_one_target_that_has_it(autojump_clock) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), MIB)
    (extent,) = extents(world, file)
    at = MIB // 2 + 5 * BLOCK_BYTES + 7
    assert bytes(await file.read(at, 10)) == data[at : at + 10]
    assert world.servers.gets == [(holders(world, extent)[1], extent.chunk, 5 * BLOCK_BYTES, BLOCK_BYTES)]


async def test_a_range_across_two_fragments(autojump_clock) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), 100_001)
    assert bytes(await file.read(49_990, 30)) == data[49_990:50_020]
    assert {get[0] for get in world.servers.gets} == set(holders(world, extents(world, file)[0])[:2])


@pytest.mark.parametrize("lost", [lost for count in (1, 2) for lost in combinations(range(WIDTH), count)])
@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_may_be_lost_is_made_up_for(autojump_clock, lost, error) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), 300_000)
    for extent in extents(world, file):
        for place in lost:
            world.servers.unreadable[holders(world, extent)[place], extent.chunk] = error()
    assert bytes(await file.read(200_000, 5)) == data[200_000:200_005]
    assert bytes(await file.read(0, 300_000)) == data


@pytest.mark.parametrize("error", ERRORS)
async def test_with_too_few_left_there_is_an_error_and_no_bytes(autojump_clock, error) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), 300_000)
    (extent,) = extents(world, file)
    for place in (0, 2, 3):
        world.servers.unreadable[holders(world, extent)[place], extent.chunk] = error()
    with pytest.raises(ShoalError) as failed:
        await file.read(0, 300_000)
    assert failed.value.errno
    assert bytes(await file.read(200_000, 1_000)) == data[200_000:201_000], "what is whole is read as ever"


async def test_wrong_fragments_are_reported_and_silence_is_not(autojump_clock) -> None:
    world = fragmented()
    mount = world.mount()
    file, data = await stored(world, mount, MIB)
    (extent,) = extents(world, file)
    first, second, *_ = holders(world, extent)
    world.servers.unreadable[first, extent.chunk] = ChunkCorrupt()
    world.servers.unreadable[second, extent.chunk] = PeerUnreachable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.run)
        assert bytes(await file.read(0, MIB)) == data
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert {(bad.target, bad.chunk, bad.code) for bad in world.service.bad} == {
        (first, extent.chunk, ChunkCorrupt.code)
    }


async def test_who_failed_is_left_alone_and_what_was_rebuilt_is_kept(autojump_clock) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), MIB)
    (extent,) = extents(world, file)
    gone = holders(world, extent)[0]
    world.servers.unreadable[gone, extent.chunk] = PeerUnreachable()
    assert bytes(await file.read(10, 10)) == data[10:20]
    world.servers.gets.clear()
    for at in range(0, MIB, 100_000):
        assert bytes(await file.read(at, 1_000)) == data[at : at + 1_000]
    assert world.servers.gets == [], "all of it had to be fetched for the first bytes"


async def test_readers_of_a_lost_fragment_rebuild_it_once(autojump_clock, monkeypatch) -> None:
    world = fragmented()
    file, data = await stored(world, world.mount(), MIB)
    (extent,) = extents(world, file)
    world.servers.unreadable[holders(world, extent)[0], extent.chunk] = ChunkMissing()
    calls = []
    rebuild = erasure.rebuild
    monkeypatch.setattr(erasure, "rebuild", lambda *arguments: calls.append(arguments) or rebuild(*arguments))

    async def read(at: int) -> None:
        assert bytes(await file.read(at, 50)) == data[at : at + 50]

    async with trio.open_nursery() as nursery:
        for at in range(0, MIB // 2, 50_000):
            nursery.start_soon(read, at)
    assert len(calls) == 1


async def test_a_rebuilt_fragment_that_is_not_right_is_an_error(autojump_clock, monkeypatch) -> None:
    world = fragmented()
    file, _ = await stored(world, world.mount(), 300_000)
    (extent,) = extents(world, file)
    world.servers.unreadable[holders(world, extent)[0], extent.chunk] = ChunkMissing()
    monkeypatch.setattr(erasure, "rebuild", lambda found, lost, *_: [memoryview(found[min(found)])] * len(lost))
    with pytest.raises(ShoalError):
        await file.read(0, 10)


async def test_one_target_that_takes_nothing_is_made_up_for_and_two_are_not(autojump_clock) -> None:
    world = fragmented(targets=4)
    mount = world.mount()
    refusing = {TargetId(1)}
    world.servers.on_put = lambda target, chunk: PeerUnreachable() if target in refusing else None
    file = await world.opened(mount, world.service.create().ino)
    await file.write(0, bytes(CHUNK))
    await file.flush(durable=True)
    (extent,) = extents(world, file)
    assert sum(extent.chunk in held for held in world.servers.durable.values()) == DATA + 1
    refusing.add(TargetId(2))
    await file.write(0, b"x" * CHUNK)
    with pytest.raises(ShoalError):
        await file.flush(durable=True)
    assert extents(world, file) == [extent], "less than min_ack is never acknowledged"


async def test_fsync_of_what_was_committed_without_syncs_the_fragments(autojump_clock) -> None:
    world = fragmented()
    file = await world.opened(world.mount(), world.service.create().ino)
    await file.write(0, random.Random(1).randbytes(CHUNK))
    await file.flush(durable=False)
    (extent,) = extents(world, file)
    assert not any(extent.chunk in held for held in world.servers.durable.values())
    await file.flush(durable=True)
    assert sum(extent.chunk in held for held in world.servers.durable.values()) == WIDTH


async def test_without_the_library_a_write_fails_with_one_line_and_other_pools_do_not(
    autojump_clock, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(erasure, "_LIBRARY", "libisal-is-not-there.so")
    for cached in (erasure._library, erasure._generator, erasure._tables):
        cached.cache_clear()
    try:
        world = fragmented()
        file = await world.opened(world.mount(), world.service.create().ino)
        await file.write(0, bytes(CHUNK))
        with pytest.raises(PosixError, match="install libisal2"):
            await file.flush(durable=False)
        assert "install libisal2" in caplog.text
        other = World()
        await stored(other, other.mount(), MIB)
    finally:
        monkeypatch.undo()
        erasure._library.cache_clear()


def test_a_fragment_is_asked_of_its_member_and_of_who_leaves_with_it():
    world = fragmented()
    group = world.service.map.groups[0]
    outsider = next(t.id for t in world.service.map.targets if t.id not in group.targets)
    members = (group.targets[0], outsider, *group.targets[2:])
    moved = m.PlacementGroup(group.id, group.pool, members, (group.targets[1],), 5, (1,))
    map_ = m.ClusterMap(b"c" * 16, 9, world.service.map.pools, world.service.map.targets, (moved,))
    found = Placement(map_).fragments(group.id << 48 | 1, ())
    assert {place: [t.id for t in targets] for place, targets in found.items()} == {
        0: [members[0]],
        1: [outsider, group.targets[1]],
        2: [members[2]],
        3: [members[3]],
    }


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_ranges_with_random_losses(data) -> None:
    trio.run(_random_ranges, data)


async def _random_ranges(data) -> None:
    world = fragmented(targets=7, replicas=5, data=3, min_ack=4)
    length = data.draw(st.integers(4_100, 400_000))
    file, content = await stored(world, world.mount(cache_bytes=data.draw(st.sampled_from([0, 200_000, MIB]))), length)
    for extent in extents(world, file):
        for place in data.draw(st.sets(st.integers(0, 4), max_size=2)):
            world.servers.unreadable[holders(world, extent)[place], extent.chunk] = ChunkMissing()
    for _ in range(5):
        start = data.draw(st.integers(0, length - 1))
        count = data.draw(st.integers(1, length - start))
        assert bytes(await file.read(start, count)) == content[start : start + count]
