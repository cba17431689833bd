"""Reading: few requests, each block once, several at a time, bounded; readahead helps a scan and harms
nobody."""

import errno
import random

import pytest
import trio
import trio.testing

from shoalfs.mds.messages import Extent
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, PeerUnreachable, PosixError
from shoalfs.transport.limits import BLOCK_BYTES, FETCH_BYTES_MAX, GETS_IN_FLIGHT_MAX, READAHEAD_BYTES_MAX
from unit.fs.world import CHUNK, KIB, World

MIB = 1024 * KIB


async def stored(world: World, mount, length: int, *, chunk_bytes: int = MIB) -> tuple:
    """A committed file of so many random bytes, opened by ``mount``."""
    writer = world.mount()
    ino = world.service.create(chunk_bytes=chunk_bytes).ino
    file = await world.opened(writer, ino)
    data = random.Random(length).randbytes(length)
    await file.write(0, data)
    await file.flush(durable=False)
    return await world.opened(mount, ino), data


async def test_one_byte_fetches_one_block_and_neighbours_come_from_the_cache(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, MIB)
    assert bytes(await file.read(3 * BLOCK_BYTES + 5, 1)) == data[3 * BLOCK_BYTES + 5 :][:1]
    assert bytes(await file.read(3 * BLOCK_BYTES, 100)) == data[3 * BLOCK_BYTES :][:100]
    assert [get[2:] for get in world.servers.gets] == [(3 * BLOCK_BYTES, BLOCK_BYTES)]


async def test_a_large_read_fetches_chunks_side_by_side_and_only_what_is_missing(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, 8 * MIB)
    await file.read(MIB + 2 * BLOCK_BYTES, 1)
    world.servers.gets.clear()
    assert bytes(await file.read(MIB, 4 * MIB)) == data[MIB : 5 * MIB]
    assert sum(get[3] for get in world.servers.gets) == 4 * MIB - BLOCK_BYTES
    assert world.servers.getting_max > 1
    assert all(length <= FETCH_BYTES_MAX for *_, length in world.servers.gets)


async def test_readers_of_the_same_block_share_one_request(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, MIB)
    spans = [(0, 10), (5, BLOCK_BYTES), (BLOCK_BYTES - 1, 2), (0, 3 * BLOCK_BYTES), (2 * BLOCK_BYTES, 1)] * 10

    async def read(start: int, length: int) -> None:
        assert bytes(await file.read(start, length)) == data[start : start + length]

    async with trio.open_nursery() as nursery:
        for span in spans:
            nursery.start_soon(read, *span)
    fetched = [
        (start + at) // BLOCK_BYTES
        for _, _, start, length in world.servers.gets
        for at in range(0, length, BLOCK_BYTES)
    ]
    assert sorted(fetched) == [0, 1, 2]


async def test_who_waits_for_a_cancelled_request_fetches_for_himself(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, MIB)
    done: list[bytes] = []

    async def patient() -> None:
        done.append(bytes(await file.read(0, 10)))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(file.read, 0, 10)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(patient)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert done == [data[:10]]


async def test_requests_in_flight_are_bounded(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, 100 * CHUNK, chunk_bytes=CHUNK)
    assert bytes(await file.read(0, len(data))) == data
    assert world.servers.getting_max == GETS_IN_FLIGHT_MAX


async def test_a_scan_is_read_ahead_and_each_byte_is_fetched_once(autojump_clock) -> None:
    world = World()
    async with world.running() as mount:
        file, data = await stored(world, mount, 24 * MIB)
        step = 128 * KIB
        for at in range(0, len(data), step):
            assert bytes(await file.read(at, step)) == data[at : at + step]
            assert mount._services.reader.cache.size_bytes <= at + step + READAHEAD_BYTES_MAX + MIB
        assert sum(get[3] for get in world.servers.gets) == len(data)
        assert world.servers.getting_max > 1


async def test_random_reads_are_not_read_ahead(autojump_clock) -> None:
    world = World()
    async with world.running() as mount:
        file, data = await stored(world, mount, 64 * MIB)
        chance = random.Random(1)
        for _ in range(50):
            at = chance.randrange(2 * MIB, len(data) - 4 * KIB)
            assert bytes(await file.read(at, 4 * KIB)) == data[at : at + 4 * KIB]
        assert sum(get[3] for get in world.servers.gets) <= 70 * 2 * BLOCK_BYTES


async def test_the_cache_keeps_its_bound(autojump_clock) -> None:
    world = World()
    async with world.running(cache_bytes=2 * MIB) as mount:
        file, data = await stored(world, mount, 10 * MIB)
        for at in range(0, len(data), 256 * KIB):
            assert bytes(await file.read(at, 256 * KIB)) == data[at : at + 256 * KIB]
            assert mount._services.reader.cache.size_bytes <= 2 * MIB


async def test_a_damaged_block_fails_only_who_asks_for_it(autojump_clock) -> None:
    world = World()
    async with world.running() as mount:
        file, data = await stored(world, mount, 6 * CHUNK, chunk_bytes=CHUNK)
        bad = world.service.files[file.ino].extents[3].chunk
        for target in world.servers.chunks:
            world.servers.unreadable[target, bad] = ChunkCorrupt()
        for at in range(0, 3 * CHUNK, 16 * KIB):
            assert bytes(await file.read(at, 16 * KIB)) == data[at : at + 16 * KIB]
        with pytest.raises(PosixError) as caught:
            await file.read(3 * CHUNK, 16 * KIB)
        assert caught.value.errno == errno.EIO
        assert bytes(await file.read(4 * CHUNK, 2 * CHUNK)) == data[4 * CHUNK :]


async def test_a_file_of_many_extents_is_mapped_page_by_page(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    ino = world.service.create().ino
    writer = await world.opened(world.mount(), ino)
    for at in range(1500):
        await writer.write(at * 20, bytes([at % 251 + 1]) * 10)
    await writer.flush(durable=False)
    expected = world.service.read_back(ino)
    file = await world.opened(mount, ino)
    assert bytes(await file.read(29_000, 100)) == expected[29_000:29_100]
    assert len(file._contents.extents) < 100
    assert bytes(await file.read(0, 60_000)) == expected


async def test_extent_slices_return_exactly_their_range(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, 3 * BLOCK_BYTES + 777)
    whole = world.service.files[file.ino].extents[0]
    chance = random.Random(2)
    for _ in range(100):
        start = chance.randrange(len(data))
        length = chance.randrange(1, len(data) - start + 1)
        part = Extent(start, length, whole.chunk, start, whole.chunk_bytes, whole.chunk_hash)
        assert b"".join(await mount._services.reader.read(part)) == data[start : start + length]


async def test_bad_copies_are_reported_and_good_ones_and_silence_are_not(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, 4 * MIB)
    extents = world.service.files[file.ino].extents
    held = {
        extent.chunk: [t for t, chunks in world.servers.chunks.items() if extent.chunk in chunks] for extent in extents
    }
    wrong = {
        (held[extents[0].chunk][0], extents[0].chunk): ChunkCorrupt(),
        (held[extents[1].chunk][1], extents[1].chunk): ChunkMissing(),
    }
    world.servers.unreadable.update(wrong)
    silent = (held[extents[2].chunk][0], extents[2].chunk)
    world.servers.unreadable[silent] = PeerUnreachable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.run)
        for salt in range(8):  # other sessions prefer other replicas
            reader = world.mount()
            nursery.start_soon(reader.run)
            assert bytes(await (await world.opened(reader, file.ino)).read(0, 4 * MIB)) == data, salt
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert {(bad.target, bad.chunk, bad.code) for bad in world.service.bad} == {
        (target, chunk, error.code) for (target, chunk), error in wrong.items()
    }


async def small_files(world: World, mount, count: int, length: int) -> list[tuple]:
    return [await stored(world, mount, length + number) for number in range(count)]


def chunks_of(world: World, files) -> list[Extent]:
    return [extent for file, _ in files for extent in world.service.files[file.ino].extents]


async def test_many_small_chunks_come_with_few_requests_and_are_read_without_another(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    files = await small_files(world, mount, 40, 100_000)
    extents = chunks_of(world, files)
    await mount.fetch_many([*extents, *extents[:5]])
    asked = [chunk for _, chunks in world.servers.together for chunk in chunks]
    assert sorted(asked) == sorted(extent.chunk for extent in extents), "each once"
    assert len(world.servers.together) <= 2 * len(world.servers.chunks)
    world.servers.gets.clear()
    for file, data in files:
        assert bytes(await file.read(0, len(data))) == data
    await mount.fetch_many(extents)
    assert not world.servers.gets, "all of it was here"


async def test_who_reads_what_is_being_fetched_with_others_waits_for_it(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    files = await small_files(world, mount, 40, 100_000)

    async def read(file, data) -> None:
        assert bytes(await file.read(0, len(data))) == data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.fetch_many, chunks_of(world, files))
        await trio.testing.wait_all_tasks_blocked()
        for one in files:
            nursery.start_soon(read, *one)
    assert len(world.servers.gets) == len(files)


async def test_what_cannot_be_fetched_with_others_is_read_from_another_replica(autojump_clock) -> None:
    """Missing or damaged where it was asked for, or the target does not answer: a hint fails nobody, and what was found
    is reported as by any read."""
    world = World()
    async with world.running() as mount:
        files = await small_files(world, mount, 12, 100_000)
        extents = chunks_of(world, files)
        await mount.fetch_many(extents[:1])
        first = world.servers.together[0][0]
        mount._services.reader.cache.__init__(mount._services.reader.cache.limit_bytes)
        for extent, error in zip(extents, [ChunkCorrupt(), ChunkMissing()] * 6, strict=True):
            world.servers.unreadable[first, extent.chunk] = error
        await mount.fetch_many(extents)
        for file, data in files:
            assert bytes(await file.read(0, len(data))) == data
        assert mount.counters["chunks_corrupt"] > 0
        assert mount.counters["chunks_missing"] > 0
        assert not mount._services.reader._flights

        world.servers.on_get = lambda target, chunk: PeerUnreachable("gone") if target == first else None
        more = await small_files(world, mount, 12, 90_000)
        await mount.fetch_many(chunks_of(world, more))
        for file, data in more:
            assert bytes(await file.read(0, len(data))) == data


async def test_chunks_that_are_large_are_not_fetched_with_others(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    file, data = await stored(world, mount, MIB)
    await mount.fetch_many(chunks_of(world, [(file, data)]))
    assert not world.servers.together


async def test_fetching_many_may_be_cancelled(autojump_clock) -> None:
    world = World()
    mount = world.mount()
    files = await small_files(world, mount, 4, 100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.fetch_many, chunks_of(world, files))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for file, data in files:
        assert bytes(await file.read(0, len(data))) == data
