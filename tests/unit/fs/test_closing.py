"""Closes of new files: committed a moment later, many at a time, and nobody can tell (fs/closing.py)."""

import errno
import os

import pytest
import trio
import trio.testing

from harness.vfs_world import world
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PeerUnreachable, PosixError
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import CLOSED_BYTES_MAX
from unit.fs.test_coherent import leased
from unit.fs.test_own_directories import ROOT, TTL_MS, alone, changes, listed
from unit.fs.test_write_leases import counted


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1, session_ttl_ms=TTL_MS) as running:
        yield running


@pytest.fixture
def nothing_by_itself(monkeypatch):
    """Nothing is committed before somebody looks."""
    monkeypatch.setattr("shoalfs.fs.closing._PAUSE_S", 3600.0)


def requests(client):
    """How many commands each request has that changes something, from now on."""
    sent = []
    call = client.session._leader.call

    async def noted(method, request, *rest):
        if method is m.MUTATE:
            sent.append(len(request.commands))
        return await call(method, request, *rest)

    client.session._leader.call = noted
    return sent


async def test_a_close_is_committed_by_itself(cluster):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        assert ino in one.coherent.new_files
        with trio.fail_after(5):
            while ino in one.coherent.new_files:
                await trio.sleep(0.005)
        assert (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode.size_bytes == 4


async def test_what_is_closed_at_one_time_travels_together(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        sent = requests(one)
        for number in range(40):
            await one.write_file(b"f%d" % number, b"data%d" % number, directory)
        await one.vfs.closing.settle()
        assert sent == [40]
        async with cluster.client() as two:
            for number in range(40):
                assert await two.read_file(b"f%d" % number, directory) == b"data%d" % number


def shown(inode):
    """What stat(2) tells of it."""
    times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
    return (inode.ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.size_bytes, inode.used_bytes, *times)


@pytest.mark.parametrize("data", [b"", b"data", b"x" * 100_000], ids=["empty", "in its inode", "in a chunk"])
async def test_it_does_not_change_after_a_close(cluster, nothing_by_itself, data):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        ino = await one.write_file(b"f", data, directory)
        seen = shown(await one.vfs.getattr(ino))
        assert not changes(sent), "it need not be committed for that"
        await trio.sleep(0.05)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        assert shown(await one.vfs.getattr(ino)) == seen
        assert shown((await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode) == seen


async def test_a_change_after_a_look_is_seen(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        seen = await one.vfs.getattr(ino)
        await trio.sleep(0.01)
        changed = await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))
        assert changed.ctime_ns > seen.ctime_ns
        assert changed.mtime_ns == seen.mtime_ns
        await one.vfs.closing.settle()
        assert shown(await one.vfs.getattr(ino)) == shown(changed)
        number, _ = await one.vfs.open(ROOT, ino, os.O_RDWR)
        await one.vfs.write(number, 4, b"more")
        await one.close(number)
        after = await one.vfs.getattr(ino)
        assert after.mtime_ns > seen.mtime_ns
        assert after.size_bytes == 8


async def test_one_that_is_written_to_again_after_a_look_has_other_times(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        seen = await one.vfs.getattr(ino)
        number, _ = await one.vfs.open(ROOT, ino, os.O_RDWR)
        await trio.sleep(0.01)
        await one.vfs.write(number, 4, b"more")
        await one.close(number)
        await one.vfs.closing.settle()
        after = await one.vfs.getattr(ino)
        assert after.mtime_ns > seen.mtime_ns
        assert after.ctime_ns > seen.ctime_ns


async def test_one_with_a_hole_is_committed_for_a_look(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        ino, number = await one.make(b"f", directory)
        await one.vfs.write(number, 10, b"data")
        await one.close(number)
        await one.vfs.getattr(ino)
        assert changes(sent) == [m.Op.CREATE]


@pytest.mark.parametrize("size", [0, 4, 100_000])
async def test_who_looks_elsewhere_finds_what_was_closed(cluster, nothing_by_itself, size):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        await one.write_file(b"f", b"x" * size, directory)
        assert b"f" in await listed(two, directory)
        assert await two.read_file(b"f", directory) == b"x" * size


async def test_a_look_from_elsewhere_has_name_and_bytes_told_in_one(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        for number in range(3):
            await one.write_file(b"f%d" % number, b"data", directory)
        sent = counted(one)
        assert (await two.vfs.lookup(ROOT, directory, b"f1")).size_bytes == 4
        assert changes(sent) == [m.Op.CREATE] * 3


async def test_a_look_at_the_directory_here_has_them_committed_together_and_in_order(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        sent = requests(one)
        names = [b"f%02d" % number for number in range(20)]
        for name in names:
            await one.write_file(name, b"data", directory)
        assert [name for name in await listed(one, directory) if name in names] == names
        assert sent == [20]


async def test_fsync_of_the_directory_covers_it(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        await one.vfs.fsyncdir(one.vfs.opendir(ROOT, directory))
        assert (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode.size_bytes == 4


async def test_it_is_open_until_it_is_committed(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        assert one.handles.holders(ino) == 1
        await one.vfs.closing.settle()
        with trio.fail_after(5):
            while one.handles.holders(ino):
                await trio.sleep(0.005)


async def open_again(one, directory, ino):
    number, _ = await one.vfs.open(ROOT, ino, os.O_RDWR)
    assert await one.vfs.read(number, 0, 100) == b"data"
    await one.vfs.write(number, 4, b"more")
    await one.close(number)
    assert await one.read_file(b"f", directory) == b"datamore"


async def append(one, directory, ino):
    number, _ = await one.vfs.open(ROOT, ino, os.O_WRONLY | os.O_APPEND)
    await one.vfs.write(number, 4, b"more")
    await one.close(number)
    assert await one.read_file(b"f", directory) == b"datamore"


async def unlink(one, directory, ino):
    await one.vfs.unlink(ROOT, directory, b"f")
    assert b"f" not in await listed(one, directory)


async def rename(one, directory, ino):
    await one.vfs.rename(ROOT, directory, b"f", ROOT_INODE, b"g", 0)
    assert await one.read_file(b"g") == b"data"


async def truncate(one, directory, ino):
    await one.vfs.setattr(m.SetAttr(ROOT, ino, size_bytes=2))
    assert await one.read_file(b"f", directory) == b"da"


async def set_times(one, directory, ino):
    await one.vfs.setattr(m.SetAttr(ROOT, ino, mtime_ns=10**18))
    await one.vfs.closing.settle()
    assert (await one.vfs.getattr(ino)).mtime_ns == 10**18


async def replace(one, directory, ino):
    await one.vfs.unlink(ROOT, directory, b"f")
    await one.write_file(b"f", b"other", directory)
    assert await one.read_file(b"f", directory) == b"other"


async def link(one, directory, ino):
    await one.vfs.link(ROOT, ino, ROOT_INODE, b"linked")
    assert await one.read_file(b"linked") == b"data"


@pytest.mark.parametrize(
    "change",
    [open_again, append, unlink, rename, truncate, set_times, replace, link],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("waits", [True, False], ids=["nothing is committed", "it may be under way"])
async def test_what_comes_after_the_close_comes_after_it(cluster, change, waits, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.closing._PAUSE_S", 3600.0 if waits else 0.0)
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", b"data", directory)
        await change(one, directory, ino)
        await one.vfs.closing.settle()
        assert not len(one.coherent.new_files)


async def test_pages_that_are_written_between_close_and_release_are_committed(cluster, nothing_by_itself):
    """As the kernel does with a mapping that outlives its descriptor."""
    async with alone(cluster) as (one, directory):
        ino, number = await one.make(b"f", directory)
        await one.vfs.flush(number)
        await one.vfs.write(number, 0, b"mapped")
        await one.vfs.release(number)
        await one.vfs.closing.settle()
        assert (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode.size_bytes == 6


async def test_a_large_file_is_committed_before_its_close_returns(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        ino = await one.write_file(b"f", bytes(CLOSED_BYTES_MAX + 1), directory)
        assert ino not in one.coherent.new_files


async def test_so_many_wait_and_no_more(cluster, nothing_by_itself, monkeypatch):
    async with alone(cluster) as (one, directory):
        monkeypatch.setattr("shoalfs.fs.closing.CLOSED_FILES_MAX", 5)
        mutate, gate = one.coherent.making._mutate, trio.Event()

        async def held(op, requests, reply):
            await gate.wait()
            return await mutate(op, requests, reply)

        monkeypatch.setattr(one.coherent.making, "_mutate", held)
        for number in range(10):  # five are under way, and five wait
            await one.write_file(b"f%d" % number, b"x", directory)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.3) as scope:
            await one.write_file(b"more", b"x", directory)
        assert scope.cancelled_caught, "its close waits for its commit"
        gate.set()
        await one.vfs.closing.settle()
        assert await listed(one, directory)


async def test_with_durable_closes_each_waits(cluster, nothing_by_itself):
    async with alone(cluster) as (one, directory):
        one.vfs._durable_close = True
        ino = await one.write_file(b"f", b"data", directory)
        assert ino not in one.coherent.new_files


async def test_outside_of_own_directories_each_waits(cluster, nothing_by_itself):
    async with cluster.client() as one:
        ino = await one.write_file(b"f", b"data")
        assert (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode.size_bytes == 4


@pytest.fixture
async def failing(cluster, monkeypatch):
    """A mount, its own directory, and a switch: while it is on, the metadata service is full."""
    async with alone(cluster) as (one, directory):
        await one.vfs.closing.settle()
        mutate, making, metadata, is_full = one.coherent.making._mutate, one.coherent.making, one.coherent, [True]
        mutate_one = metadata.mutate

        async def full(op, requests, reply):
            if is_full[0]:
                return [PosixError(errno.ENOSPC, "the metadata service is full") for _ in requests]
            return await mutate(op, requests, reply)

        async def full_one(op, request, reply):
            if is_full[0] and op in (m.Op.COMMIT_INLINE, m.Op.COMMIT_EXTENTS):
                raise PosixError(errno.ENOSPC, "the metadata service is full")
            return await mutate_one(op, request, reply)

        monkeypatch.setattr(making, "_mutate", full)
        monkeypatch.setattr(metadata, "mutate", full_one)
        yield one, directory, is_full


async def test_after_a_commit_that_failed_a_close_tells_the_error(cluster, failing, monkeypatch):
    one, directory, is_full = failing
    await one.write_file(b"first", b"data", directory)
    await one.vfs.closing.settle()
    with pytest.raises(PosixError) as error:
        await one.write_file(b"second", b"data", directory)
    assert error.value.errno == errno.ENOSPC
    is_full[0] = False
    await one.write_file(b"third", b"data", directory)
    async with cluster.client() as two:
        assert await two.read_file(b"third", directory) == b"data"
        assert await two.read_file(b"first", directory) == b"data", "what failed is tried again, and not lost"
    await one.own(directory)
    await one.vfs.closing.settle()
    monkeypatch.setattr("shoalfs.fs.closing._PAUSE_S", 3600.0)
    sent = requests(one)
    for number in range(5):
        await one.write_file(b"f%d" % number, b"data", directory)
    assert not sent, "they wait again"


async def test_what_failed_is_open_and_written_to_until_it_succeeds(cluster, failing, monkeypatch):
    """So that somebody else who looks at it has it committed first, however long after the failure."""
    monkeypatch.setattr("shoalfs.fs.closing._AGAIN_S", 3600.0)
    one, directory, is_full = failing
    first = await one.write_file(b"first", b"data", directory)
    await one.vfs.closing.settle()
    assert one.handles.holders(first) == 1
    is_full[0] = False
    with trio.fail_after(10):
        async with cluster.client() as two:
            assert await two.read_file(b"first", directory) == b"data"
    await wait_until(lambda: not one.handles.holders(first))


async def test_what_failed_is_tried_again_by_itself(failing, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.closing._AGAIN_S", 0.05)
    one, directory, is_full = failing
    first = await one.write_file(b"first", b"data", directory)
    await one.vfs.closing.settle()
    is_full[0] = False
    await wait_until(lambda: not one.handles.holders(first))
    assert (await one.session.read(m.GETATTR, m.GetAttr(first))).body.inode.size_bytes == 4


async def test_a_close_that_told_the_error_leaves_the_file_open_until_it_succeeds(cluster, failing, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.closing._AGAIN_S", 3600.0)
    one, directory, is_full = failing
    await one.write_file(b"first", b"data", directory)
    await one.vfs.closing.settle()
    ino, number = await one.make(b"second", directory)
    await one.vfs.write(number, 0, b"data")
    with pytest.raises(PosixError):
        await one.vfs.flush(number)
    await one.vfs.release(number)
    assert one.handles.holders(ino) == 1
    with pytest.raises(PosixError) as error:
        await one.vfs.fsyncdir(one.vfs.opendir(ROOT, directory))
    assert error.value.errno == errno.ENOSPC
    is_full[0] = False
    await one.vfs.fsyncdir(one.vfs.opendir(ROOT, directory))
    await wait_until(lambda: not one.handles.holders(ino))
    async with cluster.client() as two:
        assert await two.read_file(b"second", directory) == b"data"


async def test_a_release_that_fails_while_the_file_is_under_way_is_counted_with_it(failing):
    one, directory, _ = failing
    ino, number = await one.make(b"f", directory)
    await one.vfs.write(number, 0, b"data")
    file = one.data_path.find(ino)
    closing = one.vfs.closing
    closing.failed(file)
    closing._under_way, closing._waiting = closing._waiting, {}
    closing.failed(file)
    assert not closing._waiting
    assert closing._under_way[ino].handles == 2
    closing._under_way.clear()


async def test_a_success_has_what_failed_tried_at_once(failing, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.closing._AGAIN_S", 3600.0)
    one, directory, is_full = failing
    first = await one.write_file(b"first", b"data", directory)
    await one.vfs.closing.settle()
    is_full[0] = False
    await one.write_file(b"second", b"data", directory)
    await wait_until(lambda: not one.handles.holders(first))


async def test_what_failed_and_is_unlinked_is_dropped(failing, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.closing._AGAIN_S", 0.01)
    one, directory, is_full = failing
    ino, number = await one.make(b"f", directory)
    is_full[0] = False
    await one.coherent.new_files.tell(ino)
    is_full[0] = True
    await one.vfs.write(number, 0, b"data")
    with pytest.raises(PosixError):
        await one.vfs.flush(number)
    await one.vfs.release(number)
    await one.vfs.unlink(ROOT, directory, b"f")
    await wait_until(lambda: not one.handles.holders(ino))
    assert not one.data_path.dirty_bytes


async def wait_until(holds):
    with trio.fail_after(5):
        while not holds():
            await trio.sleep(0.005)


async def test_a_leader_that_cannot_be_reached_loses_nothing(cluster, monkeypatch):
    async with alone(cluster) as (one, directory):

        async def away(op, requests, reply):
            return [PeerUnreachable("no leader") for _ in requests]

        with monkeypatch.context() as patch:
            patch.setattr(one.coherent.making, "_mutate", away)
            ino = await one.write_file(b"f", b"data", directory)
            await one.vfs.closing.settle()
            assert ino in one.coherent.new_files
        async with cluster.client() as two:
            assert await two.read_file(b"f", directory) == b"data"


async def test_when_nobody_commits_any_more_nobody_waits(cluster, nothing_by_itself):
    """The end of a mount that is told to end by a signal: its tasks are cancelled, and requests are still answered."""
    async with alone(cluster) as (one, directory):
        ended, number = trio.CancelScope(), 0
        one.vfs.closing = closing = type(one.vfs.closing)(
            one.coherent.making, one.vfs._commit_closed, lambda file: one.vfs._unhold(file.ino, file)
        )

        async def run():
            with ended:
                await closing.run()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            ino, number = await one.make(b"f", directory)
            await one.vfs.write(number, 0, b"data")
            await one.vfs.flush(number)
            assert ino in closing
            with trio.fail_after(5):
                nursery.start_soon(one.vfs.getattr, ino)
                await trio.testing.wait_all_tasks_blocked()
                ended.cancel()
        with trio.fail_after(5):
            await one.vfs.getattr(ino)
            await one.vfs.release(number)
            assert await one.write_file(b"g", b"data", directory) not in one.coherent.new_files
        assert not await one.data_path.flush_all(durable=True)
        await one.coherent.new_files.tell_all()
        assert (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode.size_bytes == 4
