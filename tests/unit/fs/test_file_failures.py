"""FileData over a cluster in memory: what failures of chunkservers and sessions do, and what programs see of them."""

import errno

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import (
    ChunkCorrupt,
    ChunkMissing,
    DeadlineExceeded,
    PeerUnreachable,
    PosixError,
    SessionGone,
    TargetDown,
    TargetFull,
)
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import WRITE_BACK_MS
from unit.fs.world import CHUNK, World, durable_copies, new_file, noise


async def test_stale_receipts_store_the_data_again() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        data = noise(3 * CHUNK)
        await file.write(0, data)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.servers.puts) == 6
        for target in world.servers.chunks:
            world.servers.restart(target, lose=True)
        world.service.refresh_targets()
        await file.flush(durable=True)
    assert world.service.read_back(file.ino) == data
    assert durable_copies(world, file.ino) == [2, 2, 2]


async def test_only_units_with_stale_receipts_are_stored_again() -> None:
    world = World(targets=8)
    async with world.running() as mount:
        file = await new_file(world, mount)
        data = noise(8 * CHUNK)
        await file.write(0, data)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.servers.puts) == 16
        hit = len({chunk for target, chunk, _ in world.servers.puts if target == 1})
        world.servers.restart(TargetId(1), lose=True)
        world.service.refresh_targets()
        await file.flush(durable=False)
    assert 0 < hit < 8
    assert len(world.servers.puts) == 16 + 2 * hit
    assert world.service.read_back(file.ino) == data


@pytest.mark.parametrize("error", [TargetFull, TargetDown, PeerUnreachable, DeadlineExceeded])
async def test_a_failing_target_is_left_out(error, autojump_clock) -> None:
    world = World()
    file = await new_file(world, world.mount())
    world.servers.on_put = lambda target, chunk: error() if target == 1 else None
    data = noise(10 * CHUNK)
    await file.write(0, data)
    await file.flush(durable=False)
    assert world.service.read_back(file.ino) == data
    assert all(e.chunk not in world.servers.chunks[TargetId(1)] for e in world.service.files[file.ino].extents)


async def test_all_full_is_enospc_and_the_data_waits_for_room(autojump_clock) -> None:
    world = World()
    file = await new_file(world, world.mount())
    world.servers.on_put = lambda target, chunk: TargetFull()
    await file.write(0, b"1" * CHUNK)
    for _ in range(2):
        with pytest.raises(PosixError) as caught:
            await file.flush(durable=True)
        assert caught.value.errno == errno.ENOSPC
    world.servers.on_put = lambda target, chunk: None
    await trio.sleep(60)
    await file.flush(durable=True)
    assert world.service.read_back(file.ino) == b"1" * CHUNK


async def test_no_group_up_is_an_error_and_a_new_map_mends_it(autojump_clock) -> None:
    world = World()
    file = await new_file(world, world.mount())
    up = world.service.map
    down = tuple(msgspec.structs.replace(t, state=TargetState.DOWN) for t in up.targets)
    world.service.map = msgspec.structs.replace(up, epoch=2, targets=down)
    await file.write(0, b"1" * CHUNK)
    await world.clients[0].refresh_map()
    with pytest.raises(TargetDown):
        await file.flush(durable=False)
    world.service.map = msgspec.structs.replace(up, epoch=3)
    await file.flush(durable=False)
    assert world.service.read_back(file.ino) == b"1" * CHUNK


def silent_until(seconds: float):
    """Targets that do not answer before this time on trio's clock."""
    return lambda *_: PeerUnreachable() if trio.current_time() < seconds else None


async def test_while_the_targets_restart_writing_and_syncing_stalls_and_does_not_fail(autojump_clock) -> None:
    world = World()
    file = await new_file(world, world.mount())
    world.servers.on_put = silent_until(trio.current_time() + 3)
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    world.servers.on_sync = silent_until(trio.current_time() + 3)
    await file.flush(durable=True)
    assert not file.needs_fsync
    assert world.service.read_back(file.ino) == b"1" * CHUNK


async def test_while_the_targets_restart_reading_stalls_and_once_they_are_down_it_fails(autojump_clock) -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    other = await world.opened(world.mount(), file.ino)
    world.servers.on_get = silent_until(trio.current_time() + 3)
    assert bytes(await other.read(0, 3)) == b"111"

    gone = await world.opened(world.mount(), file.ino)
    world.servers.on_get = silent_until(float("inf"))
    up = world.service.map
    down = tuple(msgspec.structs.replace(t, state=TargetState.DOWN) for t in up.targets)
    world.service.map = msgspec.structs.replace(up, epoch=2, targets=down)
    began = trio.current_time()
    with pytest.raises(PosixError) as caught:
        await gone.read(0, 3)
    assert caught.value.errno == errno.EIO
    assert trio.current_time() - began < 1


async def test_with_a_target_declared_down_the_others_take_what_min_ack_allows() -> None:
    world = World(targets=2, min_ack=1)
    file = await new_file(world, world.mount())
    up = world.service.map
    states = (TargetState.DOWN, TargetState.UP)
    targets = tuple(msgspec.structs.replace(t, state=s) for t, s in zip(up.targets, states, strict=True))
    world.service.map = msgspec.structs.replace(up, epoch=2, targets=targets)
    await world.clients[0].refresh_map()
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=True)
    assert world.service.read_back(file.ino) == b"1" * CHUNK
    assert {target for target, _, _ in world.servers.puts} == {2}, "the one that is down is not asked"


@pytest.mark.parametrize("append", [False, True])
async def test_who_did_not_take_a_chunk_is_told_to_fetch_it_once_it_is_committed(append, autojump_clock) -> None:
    world = World(targets=2, min_ack=1)
    mount = world.mount()
    file = await new_file(world, mount)
    failures = [PeerUnreachable()]
    world.servers.on_put = lambda target, chunk: failures.pop() if target == 1 and failures else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.run)
        if append:
            await file.append(b"1" * CHUNK)
        else:
            await file.write(0, b"1" * CHUNK)
            await file.flush(durable=False)
        await file.write(CHUNK, b"2" * CHUNK)
        await file.flush(durable=False)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    lacking = [
        e.chunk for e in world.service.files[file.ino].extents if e.chunk not in world.servers.chunks[TargetId(1)]
    ]
    assert len(lacking) == 1
    assert [(bad.target, bad.chunk) for bad in world.service.bad] == [(1, lacking[0])]


async def test_a_target_that_came_back_is_written_to_at_once(autojump_clock) -> None:
    world = World(targets=2, min_ack=1)
    file = await new_file(world, world.mount())
    world.servers.on_put = lambda target, chunk: PeerUnreachable() if target == 1 else None
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    world.servers.on_put = lambda target, chunk: None
    world.servers.restart(TargetId(1), lose=False)
    world.service.refresh_targets()
    await world.clients[0].refresh_map()
    await file.write(CHUNK, b"2" * CHUNK)
    await file.flush(durable=False)
    last = world.service.files[file.ino].extents[-1].chunk
    assert all(last in held for held in world.servers.chunks.values())


async def test_reads_go_to_another_replica_and_only_then_fail_and_never_return_zeros() -> None:
    world = World()
    mount = world.mount(cache_bytes=0)
    file = await new_file(world, mount)
    data = noise(2 * CHUNK)
    await file.write(0, data)
    await file.flush(durable=False)
    chunk = world.service.files[file.ino].extents[0].chunk
    holders = [t for t, held in world.servers.chunks.items() if chunk in held]
    for error in (ChunkMissing(), ChunkCorrupt(), PeerUnreachable(), DeadlineExceeded()):
        for holder in holders:
            world.servers.unreadable = {(holder, chunk): error}
            assert bytes(await file.read(0, 100)) == data[:100]
    world.servers.unreadable = {(holder, chunk): ChunkCorrupt() for holder in holders}
    for offset in (0, CHUNK - 1):
        with pytest.raises(PosixError) as caught:
            await file.read(offset, 10)
        assert caught.value.errno == errno.EIO
    assert bytes(await file.read(CHUNK, 10)) == data[CHUNK : CHUNK + 10]
    assert mount.counters["chunks_corrupt"] > 0


async def test_a_chunk_that_was_replaced_and_collected_is_found_by_a_new_map() -> None:
    world = World()
    first = await new_file(world, world.mount())
    await first.write(0, b"1" * CHUNK)
    await first.flush(durable=False)
    second = await world.opened(world.mount(cache_bytes=0), first.ino)
    assert bytes(await second.read(0, 1)) == b"1"
    old = world.service.files[first.ino].extents[0].chunk
    await first.write(0, b"2" * CHUNK)
    await first.flush(durable=False)
    for held in world.servers.chunks.values():
        held.pop(old, None)
    assert bytes(await second.read(0, 3)) == b"222"


# --- errors that programs see ----------------------------------------------------------------------------------------


async def test_a_background_failure_that_lasts_is_told_at_every_flush_and_one_that_passes_never(
    autojump_clock,
) -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        world.service.before = lambda op, request: PeerUnreachable()
        await file.write(0, b"x")
        await trio.sleep(WRITE_BACK_MS / 1000 + 1)
        assert file.is_dirty
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                await file.flush(durable=False)
        world.service.before = lambda op, request: None
        await trio.sleep(WRITE_BACK_MS / 1000 + 1)
        assert not file.is_dirty
        await file.flush(durable=True)
    assert world.service.read_back(file.ino) == b"x"


async def test_a_lost_session_poisons_dirty_files_and_no_others() -> None:
    world = World()
    mount = world.mount()
    dirty, clean = await new_file(world, mount), await new_file(world, mount)
    await clean.write(0, b"kept")
    await clean.flush(durable=False)
    await dirty.write(0, b"lost")
    world.clients[0].gone = True
    with pytest.raises(SessionGone):
        await dirty.flush(durable=True)
    for _ in range(2):
        for call in (
            lambda: dirty.read(0, 1),
            lambda: dirty.write(0, b"x"),
            lambda: dirty.flush(durable=True),
            lambda: dirty.append(b"x"),
        ):
            with pytest.raises(PosixError) as caught:
                await call()
            assert caught.value.errno == errno.EIO
    mount.lose_all(SessionGone())
    assert bytes(await clean.read(0, 4)) == b"kept"
    assert mount.dirty_bytes == 0


async def test_a_file_that_is_gone_does_not_keep_its_bytes_for_ever() -> None:
    world = World()
    mount = world.mount()
    file = await new_file(world, mount)
    await file.write(0, b"x")
    del world.service.files[file.ino]
    with pytest.raises(PosixError) as caught:
        await file.flush(durable=False)
    assert caught.value.errno == errno.ESTALE
    assert mount.dirty_bytes == 0


async def test_a_cancelled_flush_leaves_the_bytes_for_the_next() -> None:
    world = World()
    file = await new_file(world, world.mount())
    data = noise(3 * CHUNK)
    await file.write(0, data)
    world.servers.gate = trio.Event()
    with trio.move_on_after(0) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: file.flush(durable=False))
    assert scope.cancelled_caught
    assert bytes(await file.read(0, len(data))) == data
    world.servers.gate = None
    await file.flush(durable=False)
    assert world.service.read_back(file.ino) == data
