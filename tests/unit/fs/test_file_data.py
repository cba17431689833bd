"""FileData over a cluster in memory: what is visible when, how many requests it takes, and what failures
do."""

import errno
import random

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from shoalfs.mds.messages import Op, SetAttr, Storage, TargetState
from shoalfs.transport.errors import (
    ChunkCorrupt,
    ChunkMissing,
    DeadlineExceeded,
    LayoutConflict,
    PeerUnreachable,
    PosixError,
    SessionGone,
    StaleReceipt,
    TargetDown,
    TargetFull,
)
from shoalfs.transport.ids import TargetId, chunk_pg
from shoalfs.transport.limits import COMMIT_ATTEMPTS_MAX, FILE_SIZE_BYTES_MAX, WRITE_BACK_MS
from unit.fs.world import CHUNK, INLINE, KIB, WHO, World


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


async def new_file(world: World, mount, **options):
    return await world.opened(mount, world.service.create(**options).ino)


async def test_small_file_is_one_inline_commit_and_no_chunk() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"hello")
    await file.write(5, b" world")
    assert bytes(await file.read(0, 100)) == b"hello world"
    assert file.inode.size_bytes == 11
    await file.flush(durable=True)
    assert world.service.calls == {Op.COMMIT_INLINE: 1}
    assert world.servers.puts == []
    assert world.service.read_back(file.ino) == b"hello world"
    assert not file.needs_fsync
    assert bytes(await file.read(6, 5)) == b"world"


@pytest.mark.parametrize("chunks", [1, 7])
async def test_sequential_write_is_one_put_per_chunk_and_replica_and_one_commit(chunks: int) -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        data = noise(chunks * CHUNK)
        for at in range(0, len(data), 16 * KIB):
            await file.write(at, data[at : at + 16 * KIB])
            await trio.testing.wait_all_tasks_blocked()
        await file.flush(durable=False)
    assert len(world.servers.puts) == 2 * chunks
    assert world.service.calls == {Op.COMMIT_EXTENTS: 1}
    assert world.service.read_back(file.ino) == data


async def test_streaming_stores_full_windows_before_anybody_asks_for_a_commit() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        await file.write(0, noise(3 * CHUNK + 10))
        await trio.testing.wait_all_tasks_blocked(0.0)
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.0)
        assert len(world.servers.puts) == 2 * 3
        assert not world.service.calls
        assert file.has_backlog


async def test_scattered_small_writes_share_one_chunk() -> None:
    world = World()
    file = await new_file(world, world.mount())
    for at in range(0, 100 * CHUNK, CHUNK):
        await file.write(at + 5, b"x" * 100)
    await file.flush(durable=False)
    assert len(world.servers.puts) == 2
    assert len(world.service.files[file.ino].extents) == 100
    assert len({e.chunk for e in world.service.files[file.ino].extents}) == 1
    expected = b"".join(bytes(5) + b"x" * 100 + bytes(CHUNK - 105) for _ in range(100))
    assert world.service.read_back(file.ino) == expected[: 99 * CHUNK + 105]


async def test_file_leaves_its_inode_with_all_its_bytes() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"a" * 1000)
    await file.flush(durable=False)
    assert world.service.inode(file.ino).storage == Storage.INLINE
    await file.write(500, b"b" * INLINE)
    await file.flush(durable=False)
    assert world.service.inode(file.ino).storage == Storage.EXTENTS
    assert world.service.read_back(file.ino) == b"a" * 500 + b"b" * INLINE
    assert bytes(await file.read(0, 10_000)) == b"a" * 500 + b"b" * INLINE


async def test_promotion_meets_another_client_that_wrote_inline_meanwhile() -> None:
    world = World()
    first = await new_file(world, world.mount())
    await first.write(0, b"a" * 1000)
    await first.flush(durable=False)
    second = await world.opened(world.mount(), first.ino)
    await second.write(200, b"Z" * 100)
    await second.flush(durable=False)
    await first.write(900, b"b" * INLINE)
    await first.flush(durable=False)
    expected = b"a" * 200 + b"Z" * 100 + b"a" * 600 + b"b" * INLINE
    assert world.service.read_back(first.ino) == expected
    assert bytes(await first.read(0, 10_000)) == expected


async def test_inline_commit_meets_a_file_that_has_left_its_inode() -> None:
    world = World()
    first = await new_file(world, world.mount())
    second = await world.opened(world.mount(), first.ino)
    await second.write(0, b"S" * 2 * INLINE)
    await second.flush(durable=False)
    await first.write(10, b"first")
    await first.flush(durable=False)
    assert world.service.read_back(first.ino) == b"S" * 10 + b"first" + b"S" * (2 * INLINE - 15)


async def test_a_layout_that_never_settles_ends_in_an_error_and_keeps_the_data() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"x")
    world.service.before = lambda op, request: LayoutConflict()
    with pytest.raises(LayoutConflict):
        await file.flush(durable=False)
    assert world.service.calls[Op.COMMIT_INLINE] == COMMIT_ATTEMPTS_MAX
    world.service.before = lambda op, request: None
    await file.flush(durable=False)
    assert world.service.read_back(file.ino) == b"x"


async def test_later_write_wins_over_bytes_in_flight() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        world.servers.gate = trio.Event()
        await file.write(0, b"1" * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        assert file.has_backlog
        await file.write(100, b"2" * 10)
        expected = b"1" * 100 + b"2" * 10 + b"1" * (CHUNK - 110)
        assert bytes(await file.read(0, CHUNK)) == expected
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: file.flush(durable=False))
            await trio.testing.wait_all_tasks_blocked()
            await file.write(200, b"3")  # during the commit
            world.servers.gate.set()
        expected = expected[:200] + b"3" + expected[201:]
        assert bytes(await file.read(0, CHUNK)) == expected
        await file.flush(durable=False)
        assert world.service.read_back(file.ino) == expected


async def test_a_window_taken_during_the_commit_of_an_older_one_stays_on_top() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        world.servers.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            await file.write(0, b"1" * CHUNK)
            nursery.start_soon(lambda: file.flush(durable=False))
            await trio.testing.wait_all_tasks_blocked()
            await file.write(0, b"2" * CHUNK)  # full again, so it is taken while the first is on its way
            await trio.testing.wait_all_tasks_blocked()
            world.servers.gate.set()
        assert world.service.read_back(file.ino) == b"1" * CHUNK
        assert bytes(await file.read(0, CHUNK)) == b"2" * CHUNK
        await file.flush(durable=False)
        assert world.service.read_back(file.ino) == b"2" * CHUNK


async def test_reads_see_holes_as_zeros_and_nothing_beyond_the_end() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(3 * CHUNK, b"end")
    assert bytes(await file.read(0, 5)) == bytes(5)
    assert bytes(await file.read(3 * CHUNK, 100)) == b"end"
    assert bytes(await file.read(3 * CHUNK + 3, 100)) == b""
    await file.flush(durable=False)
    assert bytes(await file.read(3 * CHUNK - 2, 100)) == b"\0\0end"


async def test_efbig() -> None:
    world = World()
    file = await new_file(world, world.mount())
    for call in (
        lambda: file.write(FILE_SIZE_BYTES_MAX - 1, b"ab"),
        lambda: file.setattr(SetAttr(WHO, file.ino, size_bytes=FILE_SIZE_BYTES_MAX + 1)),
    ):
        with pytest.raises(PosixError) as caught:
            await call()
        assert caught.value.errno == errno.EFBIG
    assert not file.is_dirty


# --- append ----------------------------------------------------------------------------------------------------------


async def test_appends_of_two_clients_land_once_each_and_whole() -> None:
    world = World()
    files = [await new_file(world, world.mount())]
    files += [await world.opened(world.mount(), files[0].ino)]
    landed: dict[int, bytes] = {}

    async def appender(index: int) -> None:
        for turn in range(30):
            record = bytes([65 + index]) * (100 + 37 * turn)
            landed[await files[index].append(record)] = record

    async with trio.open_nursery() as nursery:
        for index in range(2):
            nursery.start_soon(appender, index)
    content = b"".join(landed[offset] for offset in sorted(landed))
    assert len(landed) == 60
    assert all(content[offset : offset + len(record)] == record for offset, record in landed.items())
    assert world.service.read_back(files[0].ino) == content
    assert world.service.inode(files[0].ino).storage == Storage.EXTENTS


async def test_append_commits_earlier_writes_first_and_may_span_chunks() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"head")
    data = noise(2 * CHUNK + 5)
    assert await file.append(data) == 4
    assert world.service.read_back(file.ino) == b"head" + data
    assert bytes(await file.read(0, 1 << 20)) == b"head" + data
    assert await file.append(b"") == 4 + len(data)


async def test_append_when_the_file_grew_elsewhere_forgets_the_old_map() -> None:
    world = World()
    first = await new_file(world, world.mount())
    await first.append(b"1" * INLINE + b"1")
    second = await world.opened(world.mount(), first.ino)
    await second.append(b"2" * 50)
    assert await first.append(b"3" * 7) == INLINE + 51
    assert bytes(await first.read(INLINE, 100)) == b"1" + b"2" * 50 + b"3" * 7


# --- size ------------------------------------------------------------------------------------------------------------


async def truncate(file, size: int) -> None:
    await file.setattr(SetAttr(WHO, file.ino, size_bytes=size, by_handle=True))


async def test_truncate_drops_what_is_dirty_in_flight_and_committed() -> None:
    world = World()
    async with world.running() as mount:
        file = await new_file(world, mount)
        await file.write(0, b"c" * 2 * CHUNK)
        await file.flush(durable=False)
        world.servers.gate = trio.Event()
        await file.write(CHUNK, b"t" * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        await file.write(2 * CHUNK, b"d" * 100)
        await truncate(file, CHUNK + 10)
        assert bytes(await file.read(CHUNK - 1, 100)) == b"c" + b"t" * 10
        await truncate(file, CHUNK - 5)
        await truncate(file, CHUNK + 5)
        assert bytes(await file.read(CHUNK - 6, 100)) == b"c" + bytes(10)
        world.servers.gate.set()
        await file.flush(durable=False)
        assert world.service.read_back(file.ino) == b"c" * (CHUNK - 5) + bytes(10)
        assert mount.dirty_bytes == 0


async def test_setting_a_time_commits_first_so_that_the_time_stays() -> None:
    world = World()
    file = await new_file(world, world.mount())
    await file.write(0, b"x")
    inode = await file.setattr(SetAttr(WHO, file.ino, mtime_ns=77))
    await file.flush(durable=False)
    assert inode.mtime_ns == world.service.inode(file.ino).mtime_ns == 77


# --- coherence -------------------------------------------------------------------------------------------------------


async def test_open_after_close_elsewhere_sees_the_new_bytes_and_keeps_its_own_dirty_ones() -> None:
    world = World()
    first = await new_file(world, world.mount())
    await first.write(0, b"1" * CHUNK)
    await first.flush(durable=False)
    second_mount = world.mount()
    second = await world.opened(second_mount, first.ino)
    assert bytes(await second.read(0, 3)) == b"111"
    await first.write(0, b"2" * 10)
    await first.flush(durable=False)
    await second.write(5, b"x")
    second = await world.opened(second_mount, first.ino)
    assert bytes(await second.read(0, 12)) == b"22222x222211"


async def test_reopen_of_an_unchanged_file_asks_for_nothing() -> None:
    world = World()
    mount = world.mount()
    file = await new_file(world, mount)
    await file.write(0, b"1" * CHUNK)
    await file.flush(durable=False)
    await file.read(0, 10)
    gets = len(world.servers.gets)
    again = await world.opened(mount, file.ino)
    assert again is file
    assert not again.changed_elsewhere(world.service.inode(file.ino))
    assert bytes(await again.read(0, 10)) == b"1" * 10
    assert len(world.servers.gets) == gets


async def test_an_older_answer_does_not_undo_a_newer_one() -> None:
    world = World()
    file = await new_file(world, world.mount())
    old = file.inode
    await file.write(0, b"new")
    await file.flush(durable=False)
    file.refresh(old, b"")
    assert file.inode.size_bytes == 3
    assert bytes(await file.read(0, 3)) == b"new"


# --- durability ------------------------------------------------------------------------------------------------------


def durable_copies(world: World, ino) -> list[int]:
    chunks = {e.chunk for e in world.service.files[ino].extents}
    return [sum(chunk in held for held in world.servers.durable.values()) for chunk in chunks]


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


# --- failures of chunkservers ----------------------------------------------------------------------------------------


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


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [8 * KIB, 48 * KIB])
async def test_the_budget_bounds_what_is_dirty_by_one_request(step: int, autojump_clock) -> None:
    world = World()
    limit = 4 * CHUNK
    async with world.running(dirty_bytes=limit) as mount:
        files = [await new_file(world, mount) for _ in range(3)]
        data = noise(12 * CHUNK)
        highest = 0

        async def writer(file) -> None:
            nonlocal highest
            for at in range(0, len(data), step):
                await file.write(at, data[at : at + step])
                highest = max(highest, mount.dirty_bytes)

        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(writer, file)
        for file in files:
            await file.flush(durable=False)
            assert world.service.read_back(file.ino) == data
        assert highest <= limit + step + KIB
        assert mount.dirty_bytes == 0


async def test_writers_are_told_when_no_room_can_be_made(autojump_clock) -> None:
    world = World()
    world.servers.on_put = lambda target, chunk: TargetFull()
    async with world.running(dirty_bytes=2 * CHUNK) as mount:
        file, other = await new_file(world, mount), await new_file(world, mount)
        await file.write(0, noise(2 * CHUNK))
        with pytest.raises(PosixError) as caught:
            await other.write(0, b"x")
        assert caught.value.errno == errno.ENOSPC
        world.servers.on_put = lambda target, chunk: None
        await trio.sleep(60)
        await other.write(0, b"x")
        await other.flush(durable=False)
    assert world.service.read_back(other.ino) == b"x"


async def test_age_commits_what_nobody_flushes(autojump_clock) -> None:
    world = World()
    async with world.running() as mount:
        files = [await new_file(world, mount) for _ in range(40)]
        for file in files:
            await file.write(0, b"x" * 10)
        await trio.sleep(WRITE_BACK_MS / 1000 - 1)
        assert not world.service.calls
        await trio.sleep(1.5)
        assert world.service.calls == {Op.COMMIT_INLINE: 40}
        assert mount.dirty_bytes == 0


async def test_discard_gives_the_memory_back() -> None:
    world = World()
    mount = world.mount()
    file = await new_file(world, mount)
    await file.write(0, noise(CHUNK))
    assert mount.dirty_bytes > CHUNK
    file.discard()
    assert mount.dirty_bytes == 0
    assert not file.needs_fsync


async def test_a_crash_leaves_a_prefix_of_the_commits_each_whole() -> None:
    world = World()
    file = await new_file(world, world.mount())
    for at in range(3000):
        await file.write(at * 100, bytes([1 + at % 255]) * 50)
    commits = 0

    def die_at_third(op, request):
        nonlocal commits
        commits += 1
        return PeerUnreachable() if commits == 3 else None

    world.service.before = die_at_third
    with pytest.raises(PeerUnreachable):
        await file.flush(durable=False)
    data = world.service.read_back(file.ino)
    records = len(data) // 100 + 1
    assert 1000 < records < 3000
    assert all(data[i * 100 : i * 100 + 50] == bytes([1 + i % 255]) * 50 for i in range(records))


async def test_flush_all_and_stale_error() -> None:
    world = World()
    mount = world.mount()
    files = [await new_file(world, mount) for _ in range(5)]
    for file in files:
        await file.write(0, noise(CHUNK))
    world.service.before = lambda op, request: StaleReceipt() if request.ino == files[2].ino else None
    failures = await mount.flush_all(durable=True)
    assert [type(failure) for failure in failures] == [StaleReceipt]
    assert [file.needs_fsync for file in files] == [False, False, True, False, False]


async def test_files_are_forgotten_only_when_they_are_on_disk(monkeypatch, autojump_clock) -> None:
    monkeypatch.setattr("shoalfs.fs.data_path.FILES_KEPT_MAX", 3)
    world = World()
    async with world.running() as mount:
        files = [await new_file(world, mount) for _ in range(3)]
        for file in files:
            await file.write(0, noise(CHUNK))
            await file.flush(durable=False)
        gone = files[1]
        del world.service.files[gone.ino]  # removed meanwhile, and its chunks collected
        lost = files[2]  # committed, and then lost by its targets before they synced
        for held in world.servers.chunks.values():
            for chunk in [*gone._committer.undurable, *lost._committer.undurable]:
                held.pop(chunk, None)
        for _ in range(9):
            await new_file(world, mount)
        await trio.sleep(1)
        assert mount.find(files[0].ino) is None
        assert durable_copies(world, files[0].ino) == [2]
        assert mount.find(gone.ino) is None
        assert mount.find(lost.ino) is lost
        assert lost.needs_fsync


async def test_writers_readers_and_flushes_side_by_side(autojump_clock) -> None:
    """Eight tasks own interleaved stripes of one file and check what they wrote while others write, flush and fail."""
    world = World()
    chance = random.Random(3)
    world.servers.on_put = lambda target, chunk: PeerUnreachable() if chance.random() < 0.05 else None
    stripe, stripes = 10_000, 64
    model = bytearray(stripe * stripes)
    async with world.running(dirty_bytes=3 * CHUNK) as mount:
        file = await new_file(world, mount)
        await file.setattr(SetAttr(WHO, file.ino, size_bytes=len(model)))

        async def owner(number: int) -> None:
            mine = random.Random(number)
            for turn in range(40):
                start = mine.randrange(number, stripes, 8) * stripe
                at = start + mine.randrange(stripe)
                piece = mine.randbytes(mine.randrange(1, start + stripe - at + 1))
                await file.write(at, piece)
                model[at : at + len(piece)] = piece
                if turn % 10 == number:
                    await file.flush(durable=number % 2 == 0)
                read = await file.read(start, stripe)
                assert bytes(read) == model[start : start + stripe]

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(owner, number)
        world.servers.on_put = lambda target, chunk: None
        await file.flush(durable=True)
        assert world.service.read_back(file.ino) == model
        assert bytes(await file.read(0, len(model))) == model
        assert mount.dirty_bytes == 0
    assert mount.counters["puts_failed"] > 0


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
