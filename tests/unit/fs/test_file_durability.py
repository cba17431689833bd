"""FileData over a cluster in memory: what is on disk after an fsync."""

import errno

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from shoalfs.transport.errors import (
    PeerUnreachable,
    PosixError,
)
from shoalfs.transport.ids import chunk_pg
from unit.fs.world import CHUNK, World, durable_copies, new_file, noise


async def test_fsync_makes_streamed_committed_and_dirty_bytes_durable() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        await file.write(0, noise(CHUNK))
        await file.flush(durable=False)  # committed, not on disk
        assert durable_copies(world, file.ino) == [0]
        await file.write(CHUNK, noise(CHUNK))
        await trio.testing.wait_all_tasks_blocked()  # streamed
        await file.write(2 * CHUNK, b"dirty")
        assert file.needs_fsync
        await file.flush(durable=True)
    assert durable_copies(world, file.ino) == [2, 2, 2]
    assert not file.needs_fsync
    assert len(world.servers.puts) == 6


async def test_fsync_of_a_chunk_that_was_overwritten_and_collected_is_fine() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    old = world.service.files[file.ino].extents[0].chunk
    await file.write(0, b"2" * CHUNK)
    await file.flush(durable=False)
    for held in world.servers.chunks.values():
        held.pop(old, None)
    await file.flush(durable=True)
    assert not file.needs_fsync


async def test_fsync_of_a_committed_chunk_that_a_target_lost_fails_every_time() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    extent = world.service.files[file.ino].extents[0]
    holder = next(t for t, held in world.servers.chunks.items() if extent.chunk in held)
    world.servers.restart(holder, lose=True)
    for _ in range(2):
        with pytest.raises(PosixError) as caught:
            await file.flush(durable=True)
        assert caught.value.errno == errno.EIO
    assert bytes(await file.read(0, 4)) == b"1111"  # the other replica has it


async def test_an_fsync_after_the_pool_asked_for_more_and_the_group_moved(autojump_clock) -> None:
    """What was committed by the rules of then can be synced by those of now, wherever it is by now."""
    world = World(targets=4, replicas=2, min_ack=1)
    file = await new_file(world, world.mount())
    world.servers.on_put = lambda target, chunk: PeerUnreachable() if world.servers.puts[:-1] else None
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    world.servers.on_put = lambda target, chunk: None
    chunk = world.service.files[file.ino].extents[0].chunk
    ((had, _),) = [(target, held) for target, held in world.servers.chunks.items() if chunk in held]
    pool = msgspec.structs.replace(world.service.map.pools[0], min_ack=2)
    free = [target.id for target in world.service.map.targets if target.id != had][:2]
    groups = tuple(
        msgspec.structs.replace(group, targets=tuple(free)) if group.id == chunk_pg(chunk) else group
        for group in world.service.map.groups
    )
    world.service.map = msgspec.structs.replace(world.service.map, epoch=2, pools=(pool,), groups=groups)
    await world.clients[0].refresh_map()
    for target in free:
        world.servers.chunks[target][chunk] = world.servers.chunks[had][chunk]
    del world.servers.chunks[had][chunk]
    await file.flush(durable=True)
    assert not file.needs_fsync
    assert any(chunk in world.servers.durable[target] for target in free)
