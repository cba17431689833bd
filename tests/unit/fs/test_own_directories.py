"""Directories that one mount writes to alone: what it makes there nobody has to be told of, until somebody looks."""

import errno
import os
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from harness.vfs_world import MDS, world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ADMIN
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PeerUnreachable, PosixError
from shoalfs.transport.ids import ROOT_INODE, SessionId
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello
from unit.fs.test_coherent import leased, live_sessions
from unit.fs.test_write_leases import counted

TTL_MS = 2_000


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1, session_ttl_ms=TTL_MS) as running:
        yield running


@asynccontextmanager
async def alone(cluster):
    """A mount, and a directory that it has to itself."""
    async with cluster.client() as one:
        await leased(one)
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
        await one.own(directory)
        yield one, directory


def changes(sent):
    """The mutations among them, but for reservations."""
    return [what for what in sent if isinstance(what, int) and what != m.Op.RESERVE_CHUNKS]


async def listed(client, directory):
    number = client.vfs.opendir(ROOT, directory)
    found, cookie = [], 0
    while entries := await client.vfs.readdir(number, cookie):
        found += [entry.name for entry in entries]
        cookie = entries[-1].cookie
    client.vfs.releasedir(number)
    return found


async def test_a_small_file_is_one_command(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        for number in range(5):
            await one.write_file(b"f%d" % number, b"data", directory)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE] * 5
        assert "mds.lookup" not in sent


async def test_it_is_told_when_it_is_closed_and_not_before(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        _, number = await one.make(b"f", directory)
        await one.vfs.write(number, 0, b"data")
        await one.vfs.write(number, 6, b"more")
        assert not changes(sent)
        await one.close(number)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        async with cluster.client() as two:
            await leased(two)
            assert await two.read_file(b"f", directory) == b"data\0\0more"


async def test_an_empty_file_is_told_when_it_is_closed(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        await one.write_file(b"f", b"", directory)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]


async def test_a_large_file_is_told_with_its_close(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        sent = counted(one)
        await one.write_file(b"f", b"x" * 100_000, directory)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        assert await two.read_file(b"f", directory) == b"x" * 100_000


async def test_one_that_stays_open_is_told_after_a_while(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        await one.make(b"f", directory)
        with trio.fail_after(5):
            while m.Op.CREATE not in sent:
                await trio.sleep(0.05)


async def test_what_it_is_like_is_what_the_leader_would_have_made(cluster):
    async with alone(cluster) as (one, directory):
        who = m.Credentials(1000, 1001)
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o1777))
        await one.own(directory)
        sent = counted(one)
        here, number, _ = await one.vfs.create(who, directory, b"f", 0o664, os.O_RDWR | os.O_CREAT, umask=0o22)
        assert not changes(sent)
        await one.close(number)
        await one.vfs.closing.settle()
        there = (await one.session.read(m.GETATTR, m.GetAttr(here.ino))).body.inode
        times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"), 0)
        assert msgspec.structs.replace(here, **times) == msgspec.structs.replace(there, **times)
        assert (there.uid, there.gid, there.mode) == (1000, 1001, 0o100644)


async def test_where_more_is_inherited_the_leader_is_asked(cluster):
    async with alone(cluster) as (one, directory):
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o2775, gid=7))
        await one.own(directory)
        sent = counted(one)
        inode, number, _ = await one.vfs.create(ROOT, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        assert changes(sent) == [m.Op.CREATE]
        assert inode.gid == 7
        await one.close(number)


async def test_who_made_it_sees_it_at_once(cluster):
    async with alone(cluster) as (one, directory):
        before = await one.vfs.getattr(directory)
        ino, number = await one.make(b"f", directory)
        await one.vfs.write(number, 0, b"data")
        assert (await one.vfs.lookup(ROOT, directory, b"f")).ino == ino
        assert (await one.vfs.getattr(ino)).size_bytes == 4
        after = await one.vfs.getattr(directory)
        assert after.size_bytes == before.size_bytes + 1
        assert after.mtime_ns > before.mtime_ns
        assert b"f" in await listed(one, directory)
        again, _ = await one.vfs.open(ROOT, ino, os.O_RDONLY)
        assert await one.vfs.read(again, 0, 10) == b"data"


async def test_a_directory_that_is_asked_for_while_it_is_told_counts_each_file_once(cluster):
    async with alone(cluster) as (one, directory), trio.open_nursery() as nursery:
        before = await one.vfs.getattr(directory)
        told, let_go, change = trio.Event(), trio.Event(), one.session.change

        async def hear_late(op, requests, *more):
            answer = await change(op, requests, *more)
            if op == m.Op.CREATE and b"f" in [request.name for request in requests]:
                told.set()
                await let_go.wait()
            return answer

        one.session.change = hear_late
        nursery.start_soon(one.write_file, b"f", b"data", directory)
        await told.wait()
        seen = []
        for _ in range(2):
            one.coherent.cache.drop(inodes=(directory,))
            seen.append(await one.vfs.getattr(directory))
        let_go.set()
        await one.vfs.closing.settle()
        seen.append(await one.vfs.getattr(directory))
        assert [each.size_bytes for each in seen] == [before.size_bytes + 1] * 3


@pytest.mark.parametrize("ask", ["getattr", "lookup"])
async def test_an_answer_that_is_older_than_what_was_told_meanwhile_is_not_believed(cluster, ask):
    async with alone(cluster) as (one, directory):
        _, number = await one.make(b"f", directory)
        before, read = await one.vfs.getattr(directory), one.session.read

        async def tell_meanwhile(method, request):
            reply = await read(method, request)
            if method not in (m.GETATTR, m.LOOKUP):
                return reply  # of what was done before
            one.session.read = read
            await one.close(number)
            await one.vfs.closing.settle()
            return reply

        one.coherent.cache.drop([(ROOT_INODE, b"d")], [directory])
        one.session.read = tell_meanwhile
        if ask == "getattr":
            after = await one.vfs.getattr(directory)
        else:
            after = await one.vfs.lookup(ROOT, ROOT_INODE, b"d")
        assert len(one.coherent.new_files) == 0
        assert after.size_bytes == before.size_bytes
        assert after.mtime_ns >= before.mtime_ns


async def look_up(two, directory):
    assert (await two.vfs.lookup(ROOT, directory, b"f")).size_bytes in (0, 4)
    assert await two.read_file(b"f", directory) == b"data"


async def list_(two, directory):
    assert b"f" in await listed(two, directory)


async def make_the_same(two, directory):
    with pytest.raises(PosixError) as error:
        await two.vfs.create(ROOT, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert error.value.errno == errno.EEXIST


async def open_the_same(two, directory):
    _, number, _ = await two.vfs.create(ROOT, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT)
    assert await two.vfs.read(number, 0, 10) == b"data"


async def remove(two, directory):
    await two.vfs.unlink(ROOT, directory, b"f")
    assert b"f" not in await listed(two, directory)


async def remove_the_directory(two, directory):
    with pytest.raises(PosixError) as error:
        await two.vfs.rmdir(ROOT, ROOT_INODE, b"d")
    assert error.value.errno == errno.ENOTEMPTY


async def rename_it(two, directory):
    await two.vfs.rename(ROOT, directory, b"f", ROOT_INODE, b"g", 0)
    assert await two.read_file(b"g") == b"data"


async def rename_over_it(two, directory):
    await two.write_file(b"g", b"other")
    await two.vfs.rename(ROOT, ROOT_INODE, b"g", directory, b"f", 0)
    assert await two.read_file(b"f", directory) == b"other"


async def look_at_the_directory(two, directory):
    assert (await two.vfs.getattr(directory)).size_bytes == len(await listed(two, directory))


@pytest.mark.parametrize(
    "look",
    [look_up, list_, make_the_same, open_the_same, remove, remove_the_directory, rename_it, rename_over_it,
     look_at_the_directory],
    ids=lambda look: look.__name__,
)  # fmt: skip
async def test_who_looks_elsewhere_finds_what_was_made(cluster, look):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        _, number = await one.make(b"f", directory)
        await one.vfs.write(number, 0, b"data")
        with trio.fail_after(TTL_MS / 1000 / 2):  # nobody waits for a session to end
            await look(two, directory)
        await one.close(number)


async def test_names_that_are_made_there_are_seen_here(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        await two.write_file(b"theirs", b"x", directory)
        assert await one.read_file(b"theirs", directory) == b"x"
        with pytest.raises(PosixError) as error:
            await one.vfs.create(ROOT, directory, b"theirs", 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        assert error.value.errno == errno.EEXIST


async def test_two_that_fill_one_directory_lose_nothing(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)

        async def fill(client, name):
            for number in range(40):
                await client.write_file(b"%s%d" % (name, number), b"x", directory)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, one, b"a")
                nursery.start_soon(fill, two, b"b")
        expected = {b"%s%d" % (name, number) for name in (b"a", b"b") for number in range(40)}
        for client in (one, two):
            assert {name for name in await listed(client, directory) if not name.startswith(b"own")} == expected


@pytest.mark.parametrize("count", [1, 3])
async def test_mutations_of_what_is_new_come_after_it(cluster, count):
    async with alone(cluster) as (one, directory):
        for number in range(count):
            await one.make(b"f%d" % number, directory)
        inode = await one.vfs.lookup(ROOT, directory, b"f0")
        await one.vfs.link(ROOT, inode.ino, ROOT_INODE, b"linked")
        await one.vfs.setattr(m.SetAttr(ROOT, inode.ino, mode=0o600))
        await one.vfs.xattrs.set(ROOT, inode.ino, b"user.a", b"1")
        await one.vfs.rename(ROOT, directory, b"f0", directory, b"g", 0)
        found = await one.vfs.getattr(inode.ino)
        assert (found.nlink, found.mode & 0o777) == (2, 0o600)
        await one.vfs.unlink(ROOT, directory, b"g")
        with pytest.raises(PosixError) as error:
            await one.vfs.rmdir(ROOT, ROOT_INODE, b"d")
        assert error.value.errno == errno.ENOTEMPTY


async def test_a_temporary_file_that_is_removed_while_it_is_open(cluster):
    async with alone(cluster) as (one, directory):
        _, number = await one.make(b"f", directory)
        await one.vfs.unlink(ROOT, directory, b"f")
        await one.vfs.write(number, 0, b"data")
        assert await one.vfs.read(number, 0, 10) == b"data"
        await one.close(number)
        assert await one.vfs.lookup_or_none(ROOT, directory, b"f") is None


async def test_rights_of_the_directory_change_after_what_was_made(cluster):
    async with alone(cluster) as (one, directory):
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o777))
        await one.own(directory)
        who = m.Credentials(1000, 1000)
        inode, number, _ = await one.vfs.create(who, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        assert inode.ino in one.coherent.new_files
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o700))
        assert inode.ino not in one.coherent.new_files
        await one.vfs.write(number, 0, b"data")
        await one.close(number)
        assert await one.read_file(b"f", directory) == b"data"


async def test_fsync_of_the_directory_tells_all_of_it(cluster):
    async with alone(cluster) as (one, directory):
        for number in range(3):
            await one.make(b"f%d" % number, directory)
        sent = counted(one)
        await one.vfs.fsyncdir(one.vfs.opendir(ROOT, directory))
        assert changes(sent) == [m.Op.CREATE] * 3
        assert not len(one.coherent.new_files)


async def test_a_new_leader_is_told_what_was_made(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        _, number = await one.make(b"f", directory)
        await one.vfs.write(number, 0, b"data")
        await cluster.stop_mds()
        await cluster.start_mds()
        with trio.fail_after(30):
            assert await two.read_file(b"f", directory) == b"data"
            await one.vfs.write(number, 4, b"more")
            await one.close(number)
            assert await two.read_file(b"f", directory) == b"datamore"


async def late(request):
    """Longer than the leader waits."""
    await trio.sleep(1.5)
    raise PeerUnreachable("the leader was not to be reached")


async def test_who_does_not_tell_in_time_has_lost_what_it_made(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        ino, number = await one.make(b"f", directory)
        await one.vfs.write(number, 0, b"data")
        one.coherent.new_files._tell = late
        with trio.fail_after(30):
            await two.write_file(b"f", b"theirs", directory)
            one.coherent.new_files._tell = one.coherent.making._tell
            with pytest.raises(PosixError):
                await one.close(number)
            assert await one.read_file(b"f", directory) == b"theirs"
            with pytest.raises(PosixError):
                await one.vfs.getattr(ino)


async def test_it_is_given_back_when_nothing_is_made_any_more(cluster, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.own_directories._IDLE_S", 0.3)
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        with trio.fail_after(5):
            while one.coherent.keeps_writes(directory):
                await trio.sleep(0.05)
        await trio.sleep(0.2)  # the release is on its way
        sent = counted(two)
        await two.vfs.lookup(ROOT, directory, b"own0")
        await two.vfs.lookup(ROOT, directory, b"own0")
        assert sent == ["mds.lookup"], "it is leased again"
        await one.own(directory)


async def test_a_large_directory_that_is_not_known_is_neither_listed_nor_asked_for(cluster, monkeypatch):
    """It was listed to the bound, taken, and given back for not being known, again with every eighth file."""
    monkeypatch.setattr("shoalfs.fs.own_directories._LISTED_MAX", 20)
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        for number in range(40):
            await one.write_file(b"old-%d" % number, b"", directory)
        sent = counted(two)
        for number in range(40):
            await two.write_file(b"new-%d" % number, b"", directory)
        await trio.sleep(0.2)
        assert not {"mds.lease_write", "mds.readdir"} & set(sent), sent


async def test_a_name_is_made_once_whoever_asks_how_often(cluster):
    async with alone(cluster) as (one, directory):
        made = []

        async def make():
            inode, number, _ = await one.vfs.create(ROOT, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT)
            made.append(inode.ino)
            await one.close(number)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(make)
        assert len(set(made)) == 1
        with pytest.raises(PosixError):
            await one.vfs.create(ROOT, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)


async def administer(cluster, op, request):
    async with open_network(cluster.carriers, Hello(PROTOCOL_VERSION, b"", ADMIN, "operator")) as network:
        command = m.Command(0, 0, op, msgspec.Raw(msgspec.msgpack.encode(request)))
        answer = await network.call(MDS, m.MUTATE, m.Mutate(SessionId(0), (command,)))
        assert not answer.body.outcomes[0].code, answer.body.outcomes


@pytest.mark.parametrize("known", [True, False], ids=["the map says so", "the map is old"])
@pytest.mark.parametrize("size", [4, 100_000], ids=["inline", "chunks"])
async def test_a_pool_that_is_being_removed_takes_no_new_file(cluster, known, size):
    async with cluster.client() as one:
        await leased(one)
        await administer(cluster, m.Op.CREATE_POOL, m.CreatePool("second", 1))
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
        await one.vfs.xattrs.set(ROOT, directory, b"trusted.shoal.pool", b"second")
        await one.session.refresh_map()
        await one.own(directory)
        await administer(cluster, m.Op.SET_POOL, m.SetPool("second", closing=True))
        if known:
            await one.session.refresh_map()
        ino = await one.write_file(b"f", b"x" * size, directory)
        await one.vfs.closing.settle()
        root = await one.vfs.getattr(ROOT_INODE)
        assert (await one.vfs.getattr(ino)).pool == root.pool
        assert await one.read_file(b"f", directory) == b"x" * size


async def opens_are(cluster, client, count):
    with trio.fail_after(5):
        while (await live_sessions(cluster))[client.session.session].opens != count:
            await trio.sleep(0.02)


async def test_a_directory_that_was_called_back_is_not_open_any_more(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        await opens_are(cluster, one, 1)  # the directory; the files that made it so are closed a moment later
        await two.vfs.lookup(ROOT, directory, b"own0")
        await opens_are(cluster, one, 0)
        await one.write_file(b"f", b"data", directory)
        assert await two.read_file(b"f", directory) == b"data"
