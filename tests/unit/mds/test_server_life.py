"""A whole metadata node over the memory carrier: sessions, open files, orphans, redirects, restarts."""

import errno
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, caches_nothing, open_session
from shoalfs.mds.leader import Leader
from shoalfs.mds.server import MdsOptions, run
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotAllowed, PosixError, SessionGone, UserError, WrongCluster
from shoalfs.transport.ids import ROOT_INODE, SessionId
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.method import Nothing
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

ROOT = m.ROOT_CREDENTIALS
ADDRESS = "memory:mds"


def hello(role=m.CLIENT, cluster_id=b""):
    return Hello(PROTOCOL_VERSION, cluster_id, role, "test")


@asynccontextmanager
async def node(path, **options):
    """One node on ``path``; yields the carriers to reach it by."""
    carriers = Carriers(MemoryFabric())
    async with trio.open_nursery() as nursery:
        await nursery.start(run, MdsOptions(str(path), ADDRESS, **options), carriers)
        yield carriers
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client(carriers, **callbacks):
    """A session that keeps nothing under leases, and says so when they are called back."""
    async with (
        open_network(carriers, hello(), caches_nothing()) as network,
        open_session(network, [ADDRESS], "test", **callbacks) as session,
    ):
        yield session


async def create(session, name, parent=ROOT_INODE):
    request = m.Create(ROOT, parent, name, 0o644, exclusive=True)
    return (await session.mutate(m.Op.CREATE, request, m.Created)).inode


async def inodes(session):
    return (await session.read(m.STATUS, m.GetStatus())).body.inodes


async def eventually(condition, timeout_s=10):
    with trio.fail_after(timeout_s):
        while not await condition():
            await trio.sleep(0.05)


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as session:
        made = await create(session, b"kept")
    async with node(tmp_path) as carriers, client(carriers) as session:
        found = (await session.read(m.LOOKUP, m.Lookup(ROOT, ROOT_INODE, b"kept"))).body.inode
        assert found == made


async def test_an_unlinked_file_lives_until_its_last_close(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as session:
        before = await inodes(session)
        made = await create(session, b"x")
        await session.mutate(m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, b"x"), m.Unlinked)
        await trio.sleep(0.6)
        assert (await session.read(m.GETATTR, m.GetAttr(made.ino))).body.inode.nlink == 0
        await session.read(m.RELEASE, m.Release(session.session, (made.ino,)))

        async def gone():
            return await inodes(session) == before

        await eventually(gone)
        with pytest.raises(PosixError) as caught:
            await session.read(m.GETATTR, m.GetAttr(made.ino))
        assert caught.value.errno in (errno.ENOENT, errno.ESTALE)


async def test_an_unlinked_file_that_is_open_survives_a_restart_of_the_service(tmp_path, monkeypatch):
    async def no_goodbye(self):
        """As a client that was killed, or cut off while the service restarted."""
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("shoalfs.mds.client.MdsClient.close", no_goodbye)
    async with node(tmp_path) as carriers, client(carriers) as session:
        ino = (await create(session, b"x")).ino
        await session.mutate(m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, b"x"), m.Unlinked)
        number = session.session
    async with node(tmp_path) as carriers, open_network(carriers, hello()) as network:
        leader = Leader(network, [ADDRESS])
        told = (await leader.call(m.RENEW, m.Renew(number))).body
        assert told.want_opens, "a new leader asks what is open"
        late = m.Renew(number, opens=(), reported_term=told.term - 1)
        assert (await leader.call(m.RENEW, late)).body.want_opens, "what was reported to another one does not count"
        await trio.sleep(0.6)
        assert (await leader.call(m.GETATTR, m.GetAttr(ino))).body.inode.nlink == 0
        assert not (await leader.call(m.RENEW, m.Renew(number, opens=(), reported_term=told.term))).body.want_opens

        async def gone():
            try:
                await leader.call(m.GETATTR, m.GetAttr(ino))
            except PosixError:
                return True
            return False

        await eventually(gone)


async def test_a_session_that_ends_takes_its_opens_with_it(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as keeper:
        before = await inodes(keeper)
        async with client(carriers) as session:
            await create(session, b"x")
            await session.mutate(m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, b"x"), m.Unlinked)

        async def gone():
            return await inodes(keeper) == before

        await eventually(gone)


async def test_a_lost_session_is_told_and_replaced(tmp_path):
    lost = []
    async with node(tmp_path) as carriers, client(carriers, on_lost=lambda: lost.append(True)) as session:
        first = session.session
        async with client(carriers) as other:
            await other.mutate(m.Op.END_SESSION, m.EndSession(other.session), Nothing)
        request = m.EndSession(first)
        await session.mutate(m.Op.END_SESSION, request, Nothing)
        with pytest.raises(SessionGone):
            await create(session, b"x")
        assert lost == [True]
        assert session.session != first
        await create(session, b"x")


class Kept:
    """What clients of one place leave to one another, in memory."""

    def __init__(self, nonce=b""):
        self.nonce = nonce
        self.remembered = []

    def remember(self, nonce):
        self.remembered.append(nonce)
        self.nonce = nonce


@pytest.fixture
def goodbyes(monkeypatch):
    """Sessions whose clients end without a word, as one that was killed: an empty set, to be filled."""
    close, without = MdsClient.close, set()

    async def maybe(self):
        if self.session in without:
            await trio.lowlevel.checkpoint()
        else:
            await close(self)

    monkeypatch.setattr(MdsClient, "close", maybe)
    return without


async def sessions(session):
    return [told.session for told in (await session.read(m.STATUS, m.GetStatus())).body.sessions]


def whole(ino):
    return m.Lock(ino, False, 1, 0, m.LOCK_END, m.LockKind.WRITE, 4)


async def test_who_comes_after_one_that_was_killed_ends_its_session_at_once(tmp_path, goodbyes):
    async with node(tmp_path) as carriers:
        kept = Kept()
        async with client(carriers, legacy=kept) as killed:
            made = await create(killed, b"x")
            assert await killed.locks.set(whole(made.ino)) is None
            await killed.mutate(m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, b"x"), m.Unlinked)
            goodbyes.add(killed.session)
            left = killed.session
        assert kept.remembered == [kept.nonce] != [b""]
        async with client(carriers) as other:
            assert left in await sessions(other), "nobody has ended it yet"
            assert (await other.locks.set(whole(made.ino))).kind == m.LockKind.WRITE
            with trio.fail_after(5):  # its TTL is 20 s
                async with client(carriers, legacy=kept) as heir:
                    assert await sessions(other) == [other.session, heir.session]
                    assert await other.locks.set(whole(made.ino)) is None
                    await other.locks.set(msgspec.structs.replace(whole(made.ino), kind=m.LockKind.UNLOCK))

                    async def gone():
                        return await inodes(other) == 1

                    await eventually(gone)  # what it had open
                    await create(heir, b"y")
        assert kept.nonce == b"", "the heir has ended in order"


@pytest.mark.parametrize("ended", [False, True])
async def test_a_nonce_of_nobody_costs_nothing(tmp_path, ended):
    async with node(tmp_path) as carriers, client(carriers) as other:
        kept = Kept(b"" if ended else b"n" * 16)
        if ended:
            async with client(carriers, legacy=kept) as session:
                await create(session, b"x")
            kept.nonce = kept.remembered[0]
        async with client(carriers, legacy=kept) as heir:
            assert await sessions(other) == [other.session, heir.session]


async def test_an_heir_that_is_killed_before_it_has_ended_the_session_is_followed_by_another(tmp_path, goodbyes):
    async with node(tmp_path) as carriers, client(carriers) as other:
        kept = Kept()
        async with client(carriers, legacy=kept) as killed:
            goodbyes.add(killed.session)
        async with open_network(carriers, hello()) as network:
            leader = Leader(network, [ADDRESS])
            body = msgspec.Raw(msgspec.msgpack.encode(m.OpenSession(kept.nonce, "first heir")))
            await leader.call(m.MUTATE, m.Mutate(SessionId(0), (m.Command(0, 0, m.Op.OPEN_SESSION, body),)))
        async with client(carriers, legacy=kept) as heir:
            assert await sessions(other) == [other.session, heir.session]


async def test_a_session_that_took_the_place_of_a_lost_one_is_remembered(tmp_path, goodbyes):
    async with node(tmp_path) as carriers, client(carriers) as other:
        kept = Kept()
        async with client(carriers, legacy=kept) as session:
            await session.mutate(m.Op.END_SESSION, m.EndSession(session.session), Nothing)
            with pytest.raises(SessionGone):
                await create(session, b"x")
            goodbyes.add(session.session)
        assert len(set(kept.remembered)) == 2
        assert kept.nonce == kept.remembered[-1]
        async with client(carriers, legacy=kept) as heir:
            assert await sessions(other) == [other.session, heir.session]


async def test_one_session_cannot_end_another(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as one, client(carriers) as two:
        with pytest.raises((NotAllowed, PosixError)):
            await one.mutate(m.Op.END_SESSION, m.EndSession(two.session), Nothing)
        await create(two, b"still alive")


async def test_a_chunkserver_may_not_touch_the_namespace(tmp_path):
    async with node(tmp_path) as carriers, open_network(carriers, hello(m.CHUNKSERVER)) as network:
        body = msgspec.Raw(msgspec.msgpack.encode(m.Mkdir(ROOT, ROOT_INODE, b"d", 0o755)))
        request = m.Mutate(SessionId(0), (m.Command(0, 0, m.Op.MKDIR, body),))
        with pytest.raises(NotAllowed):
            await network.call(ADDRESS, m.MUTATE, request)
        with pytest.raises(NotAllowed):
            await network.call(ADDRESS, m.LOOKUP, m.Lookup(ROOT, ROOT_INODE, b"d"))


async def test_a_client_may_not_do_the_leaders_work(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as session:
        for op, request in [(m.Op.REAP, m.Reap(ROOT_INODE)), (m.Op.ADD_GARBAGE, m.ChunkList(()))]:
            with pytest.raises(NotAllowed):
                await session.mutate(op, request, Nothing)


async def test_names_with_a_slash_or_a_nul_are_refused_over_the_wire(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as session:
        for name in (b"a/b", b"a\0b", b"", b"x" * 256):
            with pytest.raises(PosixError) as caught:
                await create(session, name)
            assert caught.value.errno in (errno.EINVAL, errno.ENAMETOOLONG)


async def test_a_client_of_another_cluster_is_refused(tmp_path):
    async with (
        node(tmp_path, cluster_id=b"A" * 16) as carriers,
        open_network(carriers, hello(cluster_id=b"B" * 16)) as network,
    ):
        with pytest.raises(WrongCluster):
            await network.call(ADDRESS, m.GET_MAP, m.GetMap())


async def test_a_store_of_another_cluster_is_refused(tmp_path):
    async with node(tmp_path, cluster_id=b"A" * 16):
        pass
    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="holds cluster"), flatten_subgroups=True):
        async with node(tmp_path, cluster_id=b"B" * 16):
            pass


async def test_a_store_without_its_log_is_refused(tmp_path):
    async with node(tmp_path) as carriers, client(carriers) as session:
        await create(session, b"x")
    for path in (tmp_path / "log").iterdir():
        path.unlink()
    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="the log is gone"), flatten_subgroups=True):
        async with node(tmp_path):
            pass


async def test_chunk_numbers_are_never_handed_out_twice(tmp_path):
    seen = set()
    for _ in range(2):
        async with node(tmp_path) as carriers, client(carriers) as one, client(carriers) as two:
            for session in (one, two):
                for _ in range(5):
                    sequence = await session.chunk_sequence()
                    assert sequence not in seen
                    seen.add(sequence)
