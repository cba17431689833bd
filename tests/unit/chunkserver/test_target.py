"""A target as the server uses it: threads, group sync, receipts."""

import errno
import threading
from functools import partial

import pytest
import trio
import trio.testing

from chunkserver_support import CLUSTER, TARGET, UUID, Rig, content, hash_of
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.store import ChunkStore
from shoalfs.chunkserver.target import Target, open_target
from shoalfs.mds.messages import Receipt
from shoalfs.transport.aligned import aligned
from shoalfs.transport.errors import ChunkMissing, TargetDown
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import DIRECT_BYTES_MIN, DIRECT_PUT_THREADS, SYNC_PERIOD_MS


@pytest.fixture
def disk():
    return MemoryDisk()


@pytest.fixture
def open_it(disk, tmp_path):
    make = partial(
        ChunkStore,
        disk,
        TARGET,
        cluster_id=CLUSTER,
        fresh_uuid=UUID,
        clock_ns=lambda: 1,
        segment_bytes_max=100_000,
        index_path=str(tmp_path / "index"),
    )
    return partial(open_target, make)


async def put(target: Target, chunk: int, data: bytes, *, durable: bool = False) -> Receipt:
    return await target.put(
        chunk=ChunkId(chunk),
        ino=InodeId(1),
        offset_bytes=0,
        data=[data],
        chunk_hash=hash_of(data),
        durable=durable,
    )


async def test_receipts_say_what_is_true(open_it):
    async with open_it() as target:
        target.enrol(TargetId(5), 17)
        assert await put(target, 1, b"abc") == Receipt(ChunkId(1), TargetId(5), 17, False, hash_of(b"abc"))
        assert await put(target, 1, b"abc", durable=True) == Receipt(ChunkId(1), TargetId(5), 17, True, hash_of(b"abc"))
        target.enrol(TargetId(5), 18)
        assert await target.sync([ChunkId(1)]) == (Receipt(ChunkId(1), TargetId(5), 18, True, hash_of(b"abc")),)
        with pytest.raises(ChunkMissing):
            await target.sync([ChunkId(1), ChunkId(2)])


async def test_small_and_large_ranges_are_read(open_it):
    data = content(1, 400_000)
    async with open_it() as target:
        await put(target, 1, data)
        assert bytes((await target.get(ChunkId(1), 0, 400_000)).data) == data
        assert bytes((await target.get(ChunkId(1), 70_000, 5)).data) == data[65_536:131_072]


async def test_a_durable_put_is_on_disk_when_it_returns(open_it, disk, tmp_path):
    async with open_it() as target:
        await put(target, 1, b"abc", durable=True)
        assert disk.calls["fdatasync"] >= 1
        rig_disk_dirty = [file.dirty for name, file in disk._names.items() if name.endswith(".open")]
        assert rig_disk_dirty == [set()]


async def test_many_durable_puts_share_syncs(open_it, disk):
    async with open_it() as target:
        disk.calls.clear()
        async with trio.open_nursery() as nursery:
            for chunk in range(1, 101):
                nursery.start_soon(partial(put, target, chunk, content(chunk, 100), durable=True))
        assert 1 <= disk.calls["fdatasync"] < 70


async def test_a_failed_sync_fails_all_who_waited_for_it(open_it, disk):
    failures = []

    async def attempt(target: Target, chunk: int) -> None:
        try:
            await put(target, chunk, content(chunk, 100), durable=True)
        except TargetDown:
            failures.append(chunk)

    async with open_it() as target:
        disk.fail("fdatasync", errno.EIO)
        async with trio.open_nursery() as nursery:
            for chunk in range(1, 11):
                nursery.start_soon(attempt, target, chunk)
        assert sorted(failures) == list(range(1, 11))
        assert "a sync failed" in target.failed
        with pytest.raises(TargetDown):
            await put(target, 50, b"x")


async def test_a_cancelled_waiter_disturbs_nobody(open_it):
    async with open_it() as target, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            await put(target, 1, b"abc", durable=True)
        nursery.start_soon(partial(put, target, 2, b"abc", durable=True))
        assert (await put(target, 3, b"abc", durable=True)).durable


async def test_everything_is_synced_after_a_while(open_it, disk, patient_clock):
    async with open_it() as target:
        for chunk in range(1, 10):
            await put(target, chunk, content(chunk, 30_000))
        await trio.sleep(2.5 * SYNC_PERIOD_MS / 1000)
        assert sum(name.endswith(".open") for name in disk.list_dir(f"{TARGET}/segments")) == 1
        assert not any(file.dirty for name, file in disk._names.items() if "/segments/" in name)


async def test_after_the_block_everything_is_on_disk(open_it, disk, tmp_path):
    async with open_it() as target:
        await put(target, 1, b"abc")
    rig = Rig(tmp_path / "index", disk=disk)
    rig.power_cut(1)
    assert rig.get(1) == b"abc"
    rig.store.close()


async def test_large_puts_leave_threads_to_others_and_are_waited_for_when_the_target_stops(open_it, disk):
    going_on = threading.Event()
    written, pwritev_direct = [], disk.pwritev_direct

    def slow(fd, buffers, offset):
        going_on.wait()
        written.append(pwritev_direct(fd, buffers, offset))
        return written[-1]

    async with open_it() as target:
        await put(target, 1, b"abc")
        disk.pwritev_direct = slow
        receipts = []

        async def put_large(chunk: int) -> None:
            data = aligned(DIRECT_BYTES_MIN)
            receipts.append(await put(target, chunk, data))

        async with trio.open_nursery() as nursery:
            try:
                for chunk in range(2, 30):
                    nursery.start_soon(put_large, chunk)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(10):
                    assert bytes((await target.get(ChunkId(1), 0, 3)).data) == b"abc"
                nursery.cancel_scope.cancel()  # who waits for a thread is gone; what is in one goes on
            finally:
                threading.Timer(0.1, going_on.set).start()
        await target.stop()
        assert 1 <= len(written) <= DIRECT_PUT_THREADS
        assert receipts == []


async def test_deleting_and_listing(open_it):
    async with open_it() as target:
        for chunk in (1, 2, 3):
            await put(target, chunk, b"abc")
        await target.delete([ChunkId(2)])
        assert [chunk for chunk, _ in await target.chunks_after(ChunkId(0), 10)] == [1, 3]
        assert (await target.usage()).chunks == 2
        assert (await target.verify(ChunkId(1), deep=True)).chunk_bytes == 3
