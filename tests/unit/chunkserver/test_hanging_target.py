"""A target whose disk hangs: a call that does not return. Nobody waits for it for longer than the limit, and nothing
that comes back late counts."""

import errno
import os
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from chunkserver_support import CLUSTER, TARGET, UUID, HangingDisk, Rig, content, hash_of
from shoalfs.chunkserver.directory import TargetInUse
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.store import ChunkStore
from shoalfs.chunkserver.target import Target, open_target
from shoalfs.chunkserver.watch import Watch
from shoalfs.transport.aligned import aligned
from shoalfs.transport.errors import ChunkMissing, TargetDown
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import DIRECT_BYTES_MIN, DISK_THREADS_PER_TARGET

LIMIT_MS = 400
SOON_S = 5.0  # far less than the minute after which the test's disk gives in
CHUNK = ChunkId(1)
SMALL, MIDDLE = b"abc", 300_000


@pytest.fixture
def disk():
    disk = HangingDisk(MemoryDisk())
    yield disk
    disk.come_back()


@pytest.fixture
def open_it(disk, tmp_path):
    make = partial(
        ChunkStore,
        disk,
        TARGET,
        cluster_id=CLUSTER,
        fresh_uuid=UUID,
        clock_ns=lambda: 1,
        index_path=str(tmp_path / "index"),
    )
    return partial(open_target, make, LIMIT_MS)


async def put(target: Target, chunk: int, data, *, durable: bool = False):
    return await target.put(
        chunk=ChunkId(chunk), ino=InodeId(1), offset_bytes=0, data=[data], chunk_hash=hash_of(data), durable=durable
    )


async def hangs(disk: HangingDisk, count: int = 1) -> None:
    with trio.fail_after(SOON_S):
        while disk.hung < count:
            await trio.sleep(0.005)


@contextmanager
def at_once():
    """The event loop did not wait, and neither did the task."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_MS / 1000


WORK = {
    "small put": ("pwritev", lambda target: put(target, 50, SMALL)),
    "put": ("pwritev", lambda target: put(target, 50, content(1, MIDDLE))),
    "large put": ("pwritev_direct", lambda target: put(target, 50, aligned(DIRECT_BYTES_MIN))),
    "how much room": ("space", lambda target: put(target, 50, SMALL)),
    "durable put": ("fdatasync", lambda target: put(target, 50, SMALL, durable=True)),
    "sync": ("fdatasync", lambda target: target.sync([CHUNK])),
    "get": ("preadv", lambda target: target.get(CHUNK, 0, 3)),
    "get many": ("preadv", lambda target: target.get_many([CHUNK])),
    "verify": ("preadv", lambda target: target.verify(CHUNK, deep=True)),
    "delete": ("preadv", lambda target: target.delete([CHUNK])),
    "usage": ("space", lambda target: target.usage()),
    "scrub file": ("open", lambda target: target.read_scrub()),
}


@pytest.mark.parametrize("name", WORK)
async def test_who_waits_for_a_call_that_does_not_return_is_told_in_time(open_it, disk, name):
    operation, work = WORK[name]
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        await put(target, CHUNK, SMALL)
        disk.hang(operation)
        began = time.monotonic()
        with trio.fail_after(SOON_S), pytest.raises(TargetDown):
            await work(target)
        assert time.monotonic() - began >= LIMIT_MS / 1000
        assert "its disk does not answer" in target.failed
        assert "\n" not in target.failed
        for again in WORK:
            with at_once(), pytest.raises(TargetDown):
                await WORK[again][1](target)
        assert disk.hung == 1, "who comes later is not sent after the first"


async def test_those_behind_a_call_that_hangs_are_told_too(open_it, disk):
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        await put(target, CHUNK, SMALL)
        disk.hang("pwritev", "preadv", "fdatasync", "space")
        told = []

        async def attempt(work) -> None:
            with pytest.raises(TargetDown):
                await work()
            told.append(work)

        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                for number in range(100, 100 + 3 * DISK_THREADS_PER_TARGET):
                    nursery.start_soon(attempt, partial(put, target, number, SMALL, durable=True))
                    nursery.start_soon(attempt, partial(put, target, number, content(number, MIDDLE)))
                    nursery.start_soon(attempt, partial(target.get, CHUNK, 0, 3))
                    nursery.start_soon(attempt, partial(target.sync, [CHUNK]))
        assert len(told) == 4 * 3 * DISK_THREADS_PER_TARGET


async def test_what_is_in_memory_is_read_whatever_hangs(open_it, disk):
    """In the event loop, so it must wait for nothing: not for the disk, not for the index, not for who has a lock."""
    data = content(1, 100_000)
    async with open_it() as target:
        await put(target, CHUNK, data)
        assert bytes(target.get_now(CHUNK, 0, 100_000).data) == data
        disk.hang()
        async with trio.open_nursery() as nursery:

            async def attempt() -> None:
                with pytest.raises(TargetDown):
                    await put(target, 2, content(2, MIDDLE))

            nursery.start_soon(attempt)
            await hangs(disk)
            with at_once():
                assert bytes(target.get_now(CHUNK, 0, 100_000).data) == data
        with at_once():
            assert bytes(target.get_now(CHUNK, 0, 100_000).data) == data, "also when it has failed"


async def test_a_read_that_would_have_to_wait_is_left_to_a_thread(open_it, disk, monkeypatch):
    async with open_it() as target:
        await put(target, CHUNK, SMALL)
        store = target._store
        with monkeypatch.context() as patch:
            patch.setattr(store._index, "_env", None)  # a look into it would wait, or fail here
            assert target.get_now(CHUNK, 0, 3) is not None
            assert target.get_now(ChunkId(99), 0, 3) is None, "others may know"
            assert store._segments._lock.acquire(blocking=False)
            assert target.get_now(CHUNK, 0, 3) is None, "somebody opens or removes a file"
            store._segments._lock.release()
            patch.setattr(disk._disk, "preadv_nowait", lambda *_: False)
            assert target.get_now(CHUNK, 0, 3) is None
        with pytest.raises(ChunkMissing):
            await target.get(ChunkId(99), 0, 3)


async def test_a_row_that_is_remembered_is_the_one_in_the_index(open_it):
    async with open_it() as target:
        for number in range(10):
            data = content(number, 1000)
            await target.put(
                chunk=CHUNK,
                ino=InodeId(1),
                offset_bytes=0,
                data=[data],
                chunk_hash=hash_of(data),
                durable=False,
                replaces_other=True,
            )
            found = target.get_now(CHUNK, 0, 1000) or await target.get(CHUNK, 0, 1000)
            assert bytes(found.data) == data
            assert bytes(target.get_now(CHUNK, 0, 1000).data) == data
        await target.delete([CHUNK])
        assert target.get_now(CHUNK, 0, 1000) is None


async def test_a_disk_that_comes_back_is_read_and_not_written(open_it, disk):
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        await put(target, CHUNK, SMALL)
        disk.hang("fdatasync")
        with pytest.raises(TargetDown):
            await put(target, 2, SMALL, durable=True)
        with pytest.raises(TargetDown):
            await target.get(CHUNK, 0, 3)
        disk.come_back()
        with trio.fail_after(SOON_S):
            while disk.hung:
                await trio.sleep(0.01)
            await trio.sleep(0.05)
        assert bytes((await target.get(CHUNK, 0, 3)).data) == SMALL
        assert [chunk for chunk, _ in await target.chunks_after(ChunkId(0), 10)] == [1, 2]
        for work in (partial(put, target, 3, SMALL), partial(target.sync, [CHUNK]), partial(target.delete, [CHUNK])):
            with at_once(), pytest.raises(TargetDown, match="does not answer"):
                await work()
        assert "does not answer" in target.failed
    async with open_it() as target:
        assert target.failed == "", "a start that finds it well uses it again"
        target.enrol(TargetId(1), 8)
        assert (await put(target, CHUNK, SMALL, durable=True)).target_epoch == 8


async def test_a_call_that_comes_back_late_makes_no_receipt(open_it, disk):
    """Whoever asked was told something else by then; this is about the moment between."""
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        await put(target, CHUNK, SMALL)
        disk.hang("fdatasync")
        receipts = []

        async def attempt() -> None:
            with pytest.raises(TargetDown):
                receipts.append(await target.sync([CHUNK]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            await hangs(disk)
            target._store.give_up("it was decided")
            disk.come_back()
        assert receipts == []


async def test_a_deletion_that_comes_back_late_is_not_gone_on_with(open_it, disk):
    async with open_it() as target:
        for chunk in range(1, 11):
            await put(target, chunk, SMALL)
        disk.hang("preadv")
        with pytest.raises(TargetDown):
            await target.delete([ChunkId(chunk) for chunk in range(1, 11)])
        disk.come_back()
        with trio.fail_after(SOON_S):
            while disk.hung:
                await trio.sleep(0.01)
        for chunk in range(1, 11):
            assert bytes((await target.get(ChunkId(chunk), 0, 3)).data) == SMALL


async def test_a_failure_after_coming_back_is_written_down(open_it, disk):
    async with open_it() as target:
        await put(target, CHUNK, SMALL)
        disk.hang("fdatasync")
        disk.raises = OSError(errno.EIO, os.strerror(errno.EIO))
        with pytest.raises(TargetDown):
            await target.sync([CHUNK])
        disk.hang()  # all that were at it go on, and nothing else is hindered
        disk.come_back()
        with trio.fail_after(SOON_S):
            while "a sync failed" not in target.failed:
                await trio.sleep(0.01)
        disk.raises = None
    with pytest.raises(TargetDown, match="was taken out of service"):
        async with open_it():
            pass


async def test_a_disk_that_is_slow_is_not_dead(open_it, disk, monkeypatch):
    """Each call returns in half of the limit; the queue takes many times as long."""
    fdatasync, pwritev = disk._disk.fdatasync, disk._disk.pwritev

    def slow(work):
        def call(*arguments):
            time.sleep(LIMIT_MS / 2000)
            return work(*arguments)

        return call

    monkeypatch.setattr(disk._disk, "fdatasync", slow(fdatasync))
    monkeypatch.setattr(disk._disk, "pwritev", slow(pwritev))
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for chunk in range(1, 11):
                nursery.start_soon(partial(put, target, chunk, SMALL, durable=True))
        assert time.monotonic() - began > 2 * LIMIT_MS / 1000
        assert target.failed == ""


async def test_who_gives_up_waiting_leaves_nothing_queued(open_it, disk):
    async with open_it() as target:
        disk.hang("space")
        for _ in range(100):
            with trio.move_on_after(0.001):
                await put(target, 5, SMALL)
        assert len(target._small_puts._jobs) == 0


async def test_much_is_not_held_for_a_disk_that_has_not_answered_for_long(open_it, disk, monkeypatch):
    """What connections hold is for all targets of a server; before, nobody is turned away."""
    monkeypatch.setattr("shoalfs.chunkserver.target.DISK_SHED_MS", LIMIT_MS // 2)
    monkeypatch.setattr("shoalfs.chunkserver.target.STALLED_BYTES_MAX", 3 * MIDDLE)
    async with open_it() as target:
        target.enrol(TargetId(1), 7)
        disk.hang("pwritev")
        errors = []

        async def attempt(chunk: int) -> None:
            with pytest.raises(TargetDown) as caught:
                await put(target, chunk, content(chunk, MIDDLE))
            errors.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for chunk in range(1, 6):
                nursery.start_soon(attempt, chunk)
            await hangs(disk)
            assert target._held_bytes == 5 * MIDDLE
            await trio.sleep(LIMIT_MS / 1000 * 0.6)
            assert errors == []
            await attempt(7)
            assert "much waits for it" in errors[0]
        assert len(errors) == 6
        assert target._held_bytes == 0


async def test_closing_takes_no_longer_than_the_limit_and_leaves_the_directory_locked(open_it, disk, tmp_path):
    with trio.fail_after(SOON_S):
        async with open_it() as target:
            await put(target, CHUNK, SMALL)
            disk.hang("fdatasync", "rename")
    assert disk.hung == 1
    with pytest.raises(TargetInUse):
        Rig(tmp_path / "index", disk=disk)
    disk.come_back()


async def test_a_disk_that_hangs_when_it_is_opened_is_refused_in_time_and_can_be_opened_later(open_it, disk):
    async with open_it() as target:
        await put(target, CHUNK, SMALL)
    disk.hang("fdatasync")
    with trio.fail_after(SOON_S), pytest.raises(TargetDown, match="fdatasync has not returned"):
        async with open_it():
            pass
    disk.come_back()
    with trio.fail_after(SOON_S):
        while True:  # the thread that was left behind lets go of the directory
            try:
                async with open_it() as target:
                    assert bytes((await target.get(CHUNK, 0, 3)).data) == SMALL
                break
            except TargetInUse:
                await trio.sleep(0.01)


async def test_a_target_that_is_stopped_does_not_wait_for_a_disk_that_hangs(open_it, disk):
    async with open_it() as target:
        disk.hang("space")
        async with trio.open_nursery() as nursery:

            async def attempt() -> None:
                with pytest.raises(TargetDown):
                    await put(target, 2, content(2, MIDDLE))

            nursery.start_soon(attempt)
            await hangs(disk)
            with trio.fail_after(SOON_S):
                await target.stop()


def test_calls_are_timed_one_by_one():
    now = [0.0]
    watch = Watch(10_000, lambda: now[0])
    assert (watch.late, watch.longest_s) == ("", 0.0)
    with watch.call("a look into its index"):
        now[0] = 8.0
        with watch.call("read"):
            now[0] = 17.0
            assert (watch.late, watch.longest_s) == ("", 9.0)
        now[0] = 26.0
        assert watch.late == "", "that the inner one returned was progress"
        now[0] = 28.0
        assert watch.late == "its disk does not answer: a look into its index has not returned for 11 s"
    assert (watch.late, watch.longest_s) == ("", 0.0)


def test_threads_do_not_disturb_each_other():
    watch = Watch(0)
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with watch.call("write"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(10)
    with watch.call("read"):
        pass
    time.sleep(0.01)
    assert "write has not returned" in watch.late
    leave.set()
    thread.join()
    assert watch.late == ""


def test_reading_does_not_change_the_times_of_a_file(tmp_path):
    """What is read from memory must not wait for the disk to take the time of it."""
    disk = RealDisk()
    fd = disk.open(str(tmp_path / "file"), create=True)
    disk.pwritev(fd, [b"abc"], 0)
    os.utime(tmp_path / "file", ns=(1, 2_000_000_000))
    assert disk.preadv_nowait(fd, [bytearray(3)], 0)
    assert os.stat(tmp_path / "file").st_atime_ns == 1
    disk.close(fd)
