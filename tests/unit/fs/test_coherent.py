"""Leases over real services: what one mount knows is dropped before the other's mutation returns, or the mount is
fenced; and what nobody changes is asked for once."""

import errno
import os

import pytest
import trio

from harness.vfs_world import MDS, world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ADMIN
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError, SessionGone
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

TTL_MS = 2_000


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1, session_ttl_ms=TTL_MS) as running:
        yield running


async def leased(*clients):
    """Wait until these clients may believe in leases: their first renewal was answered."""
    with trio.fail_after(5):
        for client in clients:
            while not client.coherent.left_s():
                await trio.sleep(0.01)


def asked(client):
    """Counts the questions that reach the leader, from now on."""
    counted = []
    original = client.session.read

    async def read(method, request):
        counted.append(method.name)
        return await original(method, request)

    client.session.read = read
    return counted


async def names(client):
    return await client.vfs.lookup_or_none(ROOT, ROOT_INODE, b"f")


async def test_what_nobody_changes_is_asked_for_once(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data")
        await trio.sleep(0.2)  # its write lease ends with its release
        questions = asked(two)
        for _ in range(5):
            assert (await two.vfs.lookup(ROOT, ROOT_INODE, b"f")).ino == ino
            assert (await two.vfs.getattr(ino)).size_bytes == 4
            assert await two.vfs.lookup_or_none(ROOT, ROOT_INODE, b"absent") is None
        assert questions == ["mds.lookup"] * 2
        assert two.vfs.attributes_left_s(ino) > 0
        assert two.vfs.name_left_s(ROOT_INODE, b"f", ino) > 0
        assert two.vfs.name_left_s(ROOT_INODE, b"absent", None) > 0


async def test_a_listing_teaches_all_names_in_it(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        for number in range(5):
            await one.write_file(b"%d" % number, b"x")
        await trio.sleep(0.2)
        directory = two.vfs.opendir(ROOT, ROOT_INODE)
        await two.vfs.readdir(directory, 0)
        questions = asked(two)
        for number in range(5):
            assert (await two.vfs.lookup(ROOT, ROOT_INODE, b"%d" % number)).size_bytes == 1
        assert questions == []


async def test_every_change_elsewhere_is_seen_by_the_next_question(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        assert await names(two) is None
        ino = await one.write_file(b"f", b"data")
        assert (await names(two)).size_bytes == 4
        await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))
        assert (await two.vfs.getattr(ino)).mode & 0o777 == 0o600
        await one.vfs.link(ROOT, ino, ROOT_INODE, b"g")
        assert (await two.vfs.getattr(ino)).nlink == 2
        await one.vfs.rename(ROOT, ROOT_INODE, b"g", ROOT_INODE, b"h", 0)
        assert (await two.vfs.lookup(ROOT, ROOT_INODE, b"h")).ino == ino
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert await names(two) is None
        assert (await two.vfs.getattr(ino)).nlink == 1
        made = await two.vfs.mkdir(ROOT, ROOT_INODE, b"f", 0o755)
        assert (await names(one)).ino == made.ino
        assert (await one.vfs.getattr(ROOT_INODE)).nlink == 3
        assert ino in two.kernel.attributes
        assert two.kernel.names


async def test_an_open_file_is_read_as_it_was_last_committed_elsewhere(cluster):
    """A log: the reader holds it open, and sees each record once the writer has closed or synced it."""
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        await one.write_file(b"f", b"")
        reader, _ = await two.open(b"f", os.O_RDONLY)
        writer, _ = await one.open(b"f", os.O_WRONLY | os.O_APPEND)
        for number in range(5):
            await one.vfs.write(writer, 0, b"%d" % number)
            assert bytes(await two.vfs.read(reader, 0, 100)) == b"01234"[: number + 1]


async def test_a_mutation_waits_until_it_is_dropped_elsewhere(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        await one.write_file(b"f", b"data")
        assert (await names(two)) is not None
        held, let_go = trio.Event(), trio.Event()

        async def drop_pages(inodes):
            held.set()
            await let_go.wait()

        two.kernel.drop_pages = drop_pages
        await two.open(b"f", os.O_RDONLY)
        done = trio.Event()

        async def mutate():
            await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mutate)
            with trio.fail_after(5):
                await held.wait()
            await trio.sleep(0.2)
            assert not done.is_set()
            assert (await names(two)) is not None, "it is there until everybody has dropped it"
            let_go.set()
            with trio.fail_after(5):
                await done.wait()
        assert await names(two) is None


async def test_a_mount_that_never_drops_is_ended_after_its_ttl_and_not_before(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data")
        await names(two)
        await two.open(b"f", os.O_RDONLY)
        session = two.session.session
        two.kernel.drop_pages = for_ever
        two.session._leader.call = for_ever  # as a process that is stopped
        began = trio.current_time()
        with trio.fail_after(4 * TTL_MS / 1000):
            await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))
        waited_s = trio.current_time() - began
        assert waited_s >= TTL_MS / 1000, "the mount may believe in its leases for so long"
        assert session not in await live_sessions(cluster)


async def for_ever(*_):
    await trio.sleep_forever()


async def live_sessions(cluster):
    async with open_network(cluster.carriers, Hello(PROTOCOL_VERSION, b"", ADMIN, "operator")) as network:
        status = (await network.call(MDS, m.STATUS, m.GetStatus())).body
    return {found.session: found for found in status.sessions}


async def evict(cluster, session):
    async with open_network(cluster.carriers, Hello(PROTOCOL_VERSION, b"", ADMIN, "operator")) as network:
        await network.call(MDS, m.EVICT, m.EvictSession(session))


async def test_an_evicted_session_has_dropped_everything_and_its_writes_are_lost(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        await one.write_file(b"f", b"data")
        await names(two)
        _, number, _ = await two.vfs.create(ROOT, ROOT_INODE, b"lost", 0o644, os.O_RDWR)
        await two.vfs.write(number, 0, b"never committed")
        session = two.session.session
        assert (await live_sessions(cluster))[session].leases > 0
        with trio.fail_after(1):
            await evict(cluster, session)
        assert session not in await live_sessions(cluster)
        with pytest.raises((PosixError, SessionGone)):
            await two.vfs.fsync(number)
        assert (await names(two)).size_bytes == 4, "under its new session it goes on"
        assert two.session.session != session
        assert await one.read_file(b"lost") == b""
        with pytest.RaisesGroup(PosixError, flatten_subgroups=True) as refused:
            await evict(cluster, SessionId(1 << 40))
        assert refused.value.exceptions[0].errno == errno.ENOENT


async def test_a_mount_that_is_cut_off_believes_nothing_after_its_lease(cluster):
    async with cluster.client() as one:
        await leased(one)
        ino = await one.write_file(b"f", b"data")
        await names(one)
        assert one.coherent.known(ino) is not None
        await cluster.stop_mds()
        await trio.sleep(TTL_MS * 0.8 / 1000 + 0.3)
        assert one.coherent.known(ino) is None
        assert one.vfs.attributes_left_s(ino) == 0
        assert one.vfs.name_left_s(ROOT_INODE, b"f", ino) == 0
        assert one.coherent.cache.inode(ino) is None
        assert ino in one.kernel.attributes
        with trio.move_on_after(0.3) as asking:
            await names(one)
        assert asking.cancelled_caught, "it stalls instead of answering from memory"
        await cluster.start_mds()
        with trio.fail_after(10):
            assert (await names(one)).ino == ino


async def test_a_new_leader_changes_nothing_until_those_who_may_hold_leases_have_reported(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data")
        await names(two)
        reports = trio.Event()
        meet = two.coherent.meet_new_leader

        async def late():
            await reports.wait()
            await meet()

        two.session._on_new_leader = late
        await cluster.stop_mds()
        await cluster.start_mds()
        with trio.move_on_after(0.5) as waiting:
            await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))
        assert waiting.cancelled_caught
        reports.set()
        with trio.fail_after(5):
            await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))
        assert two.coherent.known(ino) is None
        assert (await two.vfs.getattr(ino)).mode & 0o777 == 0o600


async def test_a_new_leader_waits_no_longer_than_a_ttl_for_a_mount_that_is_dead(cluster):
    async with cluster.client() as one:
        await leased(one)
        ino = await one.write_file(b"f", b"data")
        async with cluster.client() as two:
            await leased(two)
            await names(two)
            await cluster.stop_mds()
            two.session._leader.call = for_ever
            await cluster.start_mds()
            with trio.fail_after(4 * TTL_MS / 1000):
                await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o600))


async def test_an_open_of_what_is_known_is_not_asked_for_and_neither_is_its_release(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        for name, size in ((b"small", 100), (b"large", 100_000)):
            await one.write_file(name, b"x" * size)
            assert await two.read_file(name) == b"x" * size
        await trio.sleep(0.2)  # the first releases are on their way
        questions = asked(two)
        for _ in range(5):
            for name, size in ((b"small", 100), (b"large", 100_000)):
                number, keep = await two.open(name, os.O_RDONLY)
                assert keep, "and the kernel may keep its pages"
                assert len(await two.vfs.read(number, 0, 1 << 20)) == size
                await two.close(number)
        await trio.sleep(0.2)
        assert questions == []
        assert two.vfs.opens_here == 10
        assert (await live_sessions(cluster))[two.session.session].opens == 0


async def opened_unknown_to_the_leader(client, name):
    number, _ = await client.open(name, os.O_RDONLY)
    assert await client.vfs.read(number, 0, 1)
    await client.close(number)
    await trio.sleep(0.2)
    number, _ = await client.open(name, os.O_RDONLY)
    assert not client.handles.registered
    return number


@pytest.mark.parametrize("by", ["the other", "itself", "the other's rename", "its own rename"])
async def test_what_is_open_without_the_leader_knowing_outlives_its_last_name(cluster, by):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data" * 10_000)
        await one.write_file(b"g", b"")
        number = await opened_unknown_to_the_leader(two, b"f")
        mutator = two if by in ("itself", "its own rename") else one
        if by.endswith("rename"):
            await mutator.vfs.rename(ROOT, ROOT_INODE, b"g", ROOT_INODE, b"f", 0)
        else:
            await mutator.vfs.unlink(ROOT, ROOT_INODE, b"f")
        await trio.sleep(0.6)  # three rounds of the leader's duties
        assert (await one.vfs.getattr(ino)).nlink == 0
        assert bytes(await two.vfs.read(number, 0, 1 << 20)) == b"data" * 10_000
        await two.close(number)
        with trio.fail_after(5), pytest.raises(PosixError):
            while True:
                await one.vfs.getattr(ino)
                await trio.sleep(0.05)


async def test_a_leader_that_is_new_is_told_of_every_open(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data")
        number = await opened_unknown_to_the_leader(two, b"f")
        await cluster.stop_mds()
        await cluster.start_mds()
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        await trio.sleep(0.6)
        assert (await two.vfs.getattr(ino)).nlink == 0
        assert bytes(await two.vfs.read(number, 0, 10)) == b"data"
        await two.close(number)


async def test_what_a_removed_inode_was_is_not_remembered(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"data")
        await two.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert two.coherent.known(InodeId(ino)) is None
        with trio.fail_after(10), pytest.raises(PosixError):
            while True:
                await one.vfs.getattr(ino)
                await trio.sleep(0.05)


async def test_filling_a_directory_asks_for_neither_its_new_names_nor_its_times(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        made = await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)
        questions = asked(one)

        async def fill(numbers):
            for number in numbers:
                assert await one.vfs.lookup_or_none(ROOT, made.ino, b"%d" % number) is None
                await one.write_file(b"%d" % number, b"x", made.ino)
                await one.vfs.getattr(made.ino)

        first = 0
        with trio.fail_after(5):
            while not one.coherent.cache.is_complete(made.ino):
                await fill([first])  # a listing while a file is made there is not leased, and another one follows
                first += 1
                await trio.sleep(0.01)
        assert first < 20
        del questions[:]
        await fill(range(first, 30))
        assert set(questions) <= {"mds.release", "mds.renew", "mds.lease_write"}, questions
        # What another mount makes there is seen all the same, and what it finds there is all of it.
        await two.write_file(b"other", b"x", made.ino)
        assert (await one.vfs.lookup_or_none(ROOT, made.ino, b"other")) is not None
        assert (await one.vfs.getattr(made.ino)).mtime_ns == (await two.vfs.getattr(made.ino)).mtime_ns
        directory = two.vfs.opendir(ROOT, made.ino)
        assert len(await two.vfs.readdir(directory, 0)) == 31
        await two.vfs.unlink(ROOT, made.ino, b"7")
        assert (await one.vfs.lookup_or_none(ROOT, made.ino, b"7")) is None
        await one.write_file(b"7", b"again", made.ino)
        assert (await two.vfs.lookup(ROOT, made.ino, b"7")).size_bytes == 5
