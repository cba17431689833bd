"""Closes of new files that do not fit into their inodes: their chunks are stored together, and then one request tells
of all of them with their extents (fs/closing.py)."""

import msgspec
import pytest
import trio
import trio.testing

from harness.vfs_world import world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import DeadlineExceeded, StaleReceipt, TargetDown
from unit.fs.test_closing import requests, wait_until
from unit.fs.test_own_directories import TTL_MS, alone, changes
from unit.fs.test_write_leases import counted

LARGE = b"0123456789" * 10_000


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=2, replicas=2, session_ttl_ms=TTL_MS) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_by_itself(monkeypatch):
    """Nothing is committed before somebody looks."""
    monkeypatch.setattr("shoalfs.fs.closing._PAUSE_S", 3600.0)


@pytest.fixture
async def mount(cluster):
    """A mount that has a directory to itself, and chunk numbers."""
    async with alone(cluster) as (one, directory):
        await one.write_file(b"first", LARGE, directory)
        await one.vfs.closing.settle()
        yield one, directory


def telling(one, monkeypatch, change):
    """Let ``change(mutate, requests)`` answer what is told of files, each time."""
    making, mutate = one.coherent.making, one.coherent.making._mutate

    async def changed(op, told, reply):
        return await change(lambda those: mutate(op, those, reply), told)

    monkeypatch.setattr(making, "_mutate", changed)


async def is_there(cluster, directory, files):
    async with cluster.client() as two:
        for name, data in files.items():
            assert await two.read_file(name, directory) == data


async def test_chunks_are_stored_and_then_one_request_tells_of_all(cluster, mount):
    one, directory = mount
    sent = requests(one)
    files = {b"f%d" % number: LARGE + b"%d" % number for number in range(30)}
    for name, data in files.items():
        await one.write_file(name, data, directory)
    await one.vfs.closing.settle()
    assert sent == [30]
    for name, data in files.items():
        assert await one.read_file(name, directory) == data
    await is_there(cluster, directory, files)


async def test_small_ones_among_them_travel_by_themselves(cluster, mount):
    one, directory = mount
    sent = requests(one)
    files = {b"f%d" % number: LARGE if number % 3 else b"small" for number in range(30)}
    for name, data in files.items():
        await one.write_file(name, data, directory)
    await one.vfs.closing.settle()
    assert sorted(sent) == [10, 20]
    await is_there(cluster, directory, files)


async def test_a_file_with_a_hole_and_one_in_pieces(cluster, mount):
    one, directory = mount
    sent = counted(one)
    _, number = await one.make(b"f", directory)
    for at in range(10):
        await one.vfs.write(number, at * 50_000, b"piece%d" % at)
    await one.close(number)
    await one.vfs.closing.settle()
    assert changes(sent) == [m.Op.CREATE]
    expected = bytearray(450_006)
    for at in range(10):
        expected[at * 50_000 : at * 50_000 + 6] = b"piece%d" % at
    await is_there(cluster, directory, {b"f": bytes(expected)})


async def test_one_in_very_many_pieces_is_committed_alone(cluster, mount):
    one, directory = mount
    sent = counted(one)
    _, number = await one.make(b"f", directory)
    for at in range(100):
        await one.vfs.write(number, at * 1_000, b"p")
    await one.close(number)
    await one.vfs.closing.settle()
    assert changes(sent) == [m.Op.CREATE, m.Op.COMMIT_EXTENTS]
    await is_there(cluster, directory, {b"f": (b"p" + bytes(999)) * 99 + b"p"})


async def test_what_it_wrote_is_synced_by_a_later_fsync(cluster, mount):
    """The receipts were of pages in memory: who fsyncs has to know of these chunks."""
    one, directory = mount
    ino = await one.write_file(b"f", LARGE, directory)
    await one.vfs.closing.settle()
    assert one.data_path.find(ino).needs_fsync
    number, _ = await one.vfs.open(ROOT, ino, 0)
    await one.vfs.fsync(number)
    assert not one.data_path.find(ino).needs_fsync
    await one.close(number)


async def test_refused_receipts_have_it_stored_again(cluster, mount, monkeypatch):
    """As after a restart of a chunkserver between the two steps. The others of its batch are told."""
    one, directory = mount
    spoiled = []

    async def spoil(mutate, told):
        if told[0].receipts and not spoiled:
            receipts = tuple(msgspec.structs.replace(r, target_epoch=r.target_epoch - 1) for r in told[0].receipts)
            spoiled.append(told[0].name)
            told = [msgspec.structs.replace(told[0], receipts=receipts), *told[1:]]
            answers = await mutate(told)
            assert isinstance(answers[0], StaleReceipt)
            assert all(isinstance(answer, m.Created) for answer in answers[1:])
            return answers
        return await mutate(told)

    telling(one, monkeypatch, spoil)
    files = {b"f%d" % number: LARGE for number in range(3)}
    for name, data in files.items():
        await one.write_file(name, data, directory)
    assert await one.vfs.closing.settle() is None
    assert spoiled == [b"f0"]
    await is_there(cluster, directory, files)


async def test_what_cannot_be_stored_is_not_told_and_is_tried_again(cluster, mount, monkeypatch):
    one, directory = mount
    uploader = one.data_path._services.uploader

    async def away(*_, **__):
        raise TargetDown("nobody is there")

    with monkeypatch.context() as patch:
        patch.setattr(uploader, "store", away)
        ino = await one.write_file(b"f", LARGE, directory)
        small = await one.write_file(b"small", b"data", directory)
        assert isinstance(await one.vfs.closing.settle(), TargetDown)
        assert ino in one.coherent.new_files
        assert small not in one.coherent.new_files, "it waits for no chunkserver"
        assert one.handles.holders(ino) == 1
    await is_there(cluster, directory, {b"f": LARGE})
    await wait_until(lambda: not one.handles.holders(ino))


@pytest.mark.parametrize("first", [b"data", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
async def test_after_an_answer_that_was_lost_what_was_written_since_counts(cluster, mount, monkeypatch, first, applied):
    """The leader may have made the file as it was then. Telling again would change nothing, whatever it says."""
    one, directory = mount
    lost = []

    async def lose(mutate, told):
        if (told[0].data or told[0].extents) and not lost:
            lost.append(told[0].name)
            if applied:
                await mutate(told)
            return [DeadlineExceeded("no answer") for _ in told]
        return await mutate(told)

    telling(one, monkeypatch, lose)
    ino, number = await one.make(b"f", directory)
    await one.vfs.write(number, 0, first)
    await one.vfs.flush(number)
    assert isinstance(await one.vfs.closing.settle(), DeadlineExceeded)
    assert ino in one.coherent.new_files
    await one.vfs.write(number, 1, b"XYZ")
    await one.close(number)
    assert await one.vfs.closing.settle() is None
    expected = first[:1] + b"XYZ" + first[4:]
    assert await one.read_file(b"f", directory) == expected
    await is_there(cluster, directory, {b"f": expected})


async def test_a_file_that_is_told_of_while_it_is_stored_is_committed_alone(cluster, mount, monkeypatch):
    one, directory = mount
    uploader, gate = one.data_path._services.uploader, trio.Event()
    store = uploader.store

    async def held(*arguments, **options):
        await gate.wait()
        return await store(*arguments, **options)

    monkeypatch.setattr(uploader, "store", held)
    sent = counted(one)
    ino = await one.write_file(b"f", LARGE, directory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.vfs.closing.settle)
        await trio.testing.wait_all_tasks_blocked()
        await one.coherent.new_files.tell(ino)
        gate.set()
    assert changes(sent) == [m.Op.CREATE, m.Op.COMMIT_EXTENTS]
    await is_there(cluster, directory, {b"f": LARGE})


@pytest.mark.parametrize("first", [b"data", LARGE], ids=["small", "large"])
async def test_a_window_that_is_full_while_the_file_is_told_of_stays(cluster, mount, monkeypatch, first):
    """It is taken for a chunk without waiting for the commit, which is not of it."""
    one, directory = mount
    gate = trio.Event()

    async def held(mutate, told):
        answers = await mutate(told)
        await gate.wait()
        return answers

    telling(one, monkeypatch, held)
    ino, number = await one.make(b"f", directory)
    await one.vfs.write(number, 0, first)
    await one.vfs.flush(number)
    window = b"w" * one.data_path.find(ino).committed_inode.chunk_bytes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.vfs.closing.settle)
        await trio.testing.wait_all_tasks_blocked()
        for start in range(0, len(window), 1 << 20):
            await one.vfs.write(number, len(window) + start, window[start : start + (1 << 20)])
        await wait_until(lambda: one.data_path.find(ino).has_backlog)
        await trio.sleep(0.1)
        gate.set()
    await one.close(number)
    await one.vfs.closing.settle()
    whole = first + bytes(len(window) - len(first)) + window
    await is_there(cluster, directory, {b"f": whole})


async def test_closes_wait_when_many_bytes_do(cluster, mount, monkeypatch):
    one, directory = mount
    monkeypatch.setattr("shoalfs.fs.closing.CLOSED_WAITING_BYTES_MAX", 3 * len(LARGE))
    files = {b"f%d" % number: LARGE for number in range(4)}
    for name, data in list(files.items())[:3]:
        assert await one.write_file(name, data, directory) in one.coherent.new_files
    assert await one.write_file(b"f3", LARGE, directory) not in one.coherent.new_files
    await is_there(cluster, directory, files)


async def test_a_close_that_waits_with_the_others_tells_the_error(cluster, mount, monkeypatch):
    one, directory = mount
    monkeypatch.setattr("shoalfs.fs.closing.CLOSED_WAITING_BYTES_MAX", len(LARGE))

    async def away(*_, **__):
        raise TargetDown("nobody is there")

    with monkeypatch.context() as patch:
        patch.setattr(one.data_path._services.uploader, "store", away)
        await one.write_file(b"f0", LARGE, directory)
        ino, number = await one.make(b"f1", directory)
        await one.vfs.write(number, 0, LARGE)
        with pytest.raises(TargetDown):
            await one.vfs.flush(number)
        await one.vfs.release(number)
        assert one.handles.holders(ino) == 1
    await is_there(cluster, directory, {b"f0": LARGE, b"f1": LARGE})


async def test_what_is_about_to_be_committed_is_not_told_of_for_its_age(cluster, mount):
    one, directory = mount
    closed = await one.write_file(b"closed", LARGE, directory)
    still_open, number = await one.make(b"open", directory)
    await one.coherent.making.tell_older(0)
    assert closed in one.coherent.new_files
    assert still_open not in one.coherent.new_files
    await one.close(number)
