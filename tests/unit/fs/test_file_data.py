"""FileData over a cluster in memory: what is visible when, and how many requests it takes."""

import errno

import pytest
import trio
import trio.lowlevel
import trio.testing

from shoalfs.mds.messages import Op, SetAttr, Storage
from shoalfs.transport.errors import (
    LayoutConflict,
    PosixError,
)
from shoalfs.transport.limits import COMMIT_ATTEMPTS_MAX, FILE_SIZE_BYTES_MAX
from unit.fs.world import CHUNK, INLINE, KIB, WHO, World, new_file, noise


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
