"""Snapshots between real nodes: kept for who reads them and no longer, and good for catching up while others write."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from harness.metadata import CLUSTER, Metadata, contents
from shoalfs.mds import catch_up, install
from shoalfs.mds import messages as m
from shoalfs.mds.client import open_session
from shoalfs.mds.raft_messages import peer_name
from shoalfs.mds.server import MdsOptions, run
from shoalfs.mds.snapshot_messages import OPEN_SNAPSHOT, READ_SNAPSHOT, OpenSnapshot, ReadSnapshot
from shoalfs.mds.snapshots import SnapshotSource
from shoalfs.mds.store import LmdbStore
from shoalfs.transport import limits
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import BadMessage, NotAllowed, Overloaded, StorageFailed
from shoalfs.transport.ids import ROOT_INODE, NodeId
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

NODES = [NodeId(1), NodeId(2), NodeId(3)]
EMPTY = memoryview(b"")


def call_of(node):
    return SimpleNamespace(peer=Hello(role="mds", name=peer_name(node)))


@pytest.fixture
def store(tmp_path):
    store = LmdbStore.open(str(tmp_path / "store"))
    metadata = Metadata(store)
    for number in range(300):
        metadata.write_inline(metadata.create(b"f%d" % number).ino, 0, b"x" * 90)
    yield store
    store.close()


@pytest.fixture
def source(store, tmp_path):
    (tmp_path / "sending" / "7").mkdir(parents=True)  # left by an earlier life
    return SnapshotSource(store, tmp_path / "sending", lambda: 600)


async def test_what_is_read_is_the_store(source, store, tmp_path, monkeypatch):
    monkeypatch.setattr("shoalfs.mds.snapshots.SNAPSHOT_CHUNK_BYTES", 10_000)
    offer = await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    assert source.held_index() == offer.index == 601
    pieces = []
    while sum(map(len, pieces)) < offer.size_bytes:
        offset = sum(map(len, pieces))
        pieces.append((await source.handle_read(call_of(2), ReadSnapshot(2, offer.number, offset), EMPTY))[1])
    assert max(map(len, pieces)) == 10_000
    assert not list((tmp_path / "sending").iterdir()), "what was read to its end is removed at once"
    assert source.held_index() == offer.index, "but the log behind it is still needed"
    with pytest.raises(BadMessage, match="open a new one"):
        await source.handle_read(call_of(2), ReadSnapshot(2, offer.number, 0), EMPTY)
    (tmp_path / install.RECEIVING).mkdir()
    (tmp_path / install.RECEIVING / "data.mdb").write_bytes(b"".join(pieces))
    install.stage(tmp_path, CLUSTER, offer)
    copy = LmdbStore.open(str(tmp_path / install.INSTALLING))
    assert contents(copy) == contents(store)
    copy.close()


async def test_one_for_each_member_and_a_bound_for_all(source, tmp_path):
    first = await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    second = await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    with pytest.raises(BadMessage, match="open a new one"):
        await source.handle_read(call_of(2), ReadSnapshot(2, first.number, 0), EMPTY)
    for number in range(3, 2 + limits.SNAPSHOTS_KEPT_MAX):
        await source.handle_open(call_of(number), OpenSnapshot(number), EMPTY)
    with pytest.raises(Overloaded):
        await source.handle_open(call_of(99), OpenSnapshot(99), EMPTY)
    kept = {path.name for path in (tmp_path / "sending").iterdir()}
    assert len(kept) == limits.SNAPSHOTS_KEPT_MAX
    assert str(second.number) in kept


@pytest.mark.parametrize("offset", [-1, 1 << 40])
async def test_no_bytes_outside_of_it(source, offset):
    offer = await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    with pytest.raises(BadMessage):
        await source.handle_read(call_of(2), ReadSnapshot(2, offer.number, offset), EMPTY)


async def test_only_the_member_itself_may_ask(source):
    offer = await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    with pytest.raises(NotAllowed):
        await source.handle_open(call_of(3), OpenSnapshot(2), EMPTY)
    with pytest.raises(NotAllowed):
        await source.handle_read(call_of(3), ReadSnapshot(2, offer.number, 0), EMPTY)


async def test_what_nobody_reads_any_more_is_removed(source, tmp_path, autojump_clock):
    await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(limits.SNAPSHOT_LEASE_MS / 2000)
        assert source.held_index() == 601
        await trio.sleep(limits.SNAPSHOT_LEASE_MS / 1000)
        assert source.held_index() is None
        while list((tmp_path / "sending").iterdir()):
            await trio.lowlevel.checkpoint()  # a thread removes it
        nursery.cancel_scope.cancel()


async def test_no_room_for_a_copy_is_told_and_nothing_is_left(source, tmp_path, monkeypatch):
    def full(self, directory):
        raise StorageFailed("cannot copy the metadata store: no space left")

    monkeypatch.setattr(LmdbStore, "copy_to", full)
    with pytest.raises(Overloaded, match="no space left"):
        await source.handle_open(call_of(2), OpenSnapshot(2), EMPTY)
    assert source.held_index() is None
    assert not list((tmp_path / "sending").iterdir())


@asynccontextmanager
async def serving(source):
    carriers = Carriers(MemoryFabric())
    service = Service()
    service.add(OPEN_SNAPSHOT, source.handle_open)
    service.add(READ_SNAPSHOT, source.handle_read)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, carriers, "memory:1", service, Hello(cluster_id=CLUSTER, role="mds", name="mds-1"))
        async with open_network(carriers, Hello(cluster_id=CLUSTER, role="mds", name="mds-2")) as network:
            yield network
        nursery.cancel_scope.cancel()


async def test_a_copy_that_changes_on_the_way_is_refused(source, tmp_path, monkeypatch):
    real = source.handle_read

    async def flipped(call, request, payload):
        reply, data = await real(call, request, payload)
        return reply, bytes([data[0] ^ 1]) + data[1:]

    monkeypatch.setattr(source, "handle_read", flipped)
    async with serving(source) as network:
        with pytest.raises(StorageFailed, match="not the snapshot that was sent"):
            await catch_up.fetch(network, "memory:1", 2, tmp_path, CLUSTER)
    assert not (tmp_path / install.INSTALLING).exists()


async def test_an_older_one_is_not_taken(source, tmp_path):
    async with serving(source) as network:
        with pytest.raises(StorageFailed, match="this node is at 601"):
            await catch_up.fetch(network, "memory:1", 2, tmp_path, CLUSTER, lambda: 601)
        await catch_up.fetch(network, "memory:1", 2, tmp_path, CLUSTER, lambda: 600)
    assert (tmp_path / install.INSTALLING).exists()


async def test_a_failure_is_loud_and_tried_again(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(catch_up, "SNAPSHOT_RETRY_MS", 1)
    attempts = []
    real = source.handle_open

    async def flaky(call, request, payload):
        attempts.append(request)
        if len(attempts) < 3:
            raise Overloaded("not now")
        return await real(call, request, payload)

    monkeypatch.setattr(source, "handle_open", flaky)
    async with serving(source) as network:
        await catch_up.run(lambda: "memory:1", lambda: 0, network, 2, tmp_path, CLUSTER)
    assert (tmp_path / install.INSTALLING).exists()
    assert sum("this node stays behind" in record.message for record in caplog.records) == 2


# --- whole nodes --------------------------------------------------------------------------------------------


class Group:
    def __init__(self, directory, nursery):
        self.directory, self.nursery = directory, nursery
        self.carriers = Carriers(MemoryFabric())
        self.members = {int(n): f"memory:{n}" for n in NODES}
        self.scopes = {}

    async def start(self, node):
        await self.nursery.start(self._live, node)

    async def _live(self, node, *, task_status):
        path = str(self.directory / str(node))
        options = MdsOptions(path, self.members[node], node, self.members, CLUSTER)
        with trio.CancelScope() as self.scopes[node]:
            await run(options, self.carriers, task_status=task_status)


async def test_a_node_that_was_away_catches_up_by_snapshot_while_others_write(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    for place, value in [
        ("raft_guard.LOG_BEHIND_ENTRIES_MAX", 20),
        ("journal.LOG_SEGMENT_BYTES", 4096),
        ("raft_node._COMPACT_SECONDS", 0.05),
        ("server.CHECKPOINT_MS", 50),
    ]:
        monkeypatch.setattr(f"shoalfs.mds.{place}", value)
    made = []
    async with trio.open_nursery() as nursery:
        group = Group(tmp_path, nursery)
        for node in NODES:
            await group.start(node)
        hello = Hello(cluster_id=CLUSTER, role=m.CLIENT, name="test")
        with trio.fail_after(30):
            async with (
                open_network(group.carriers, hello) as network,
                open_session(network, list(group.members.values()), "test") as session,
            ):

                async def write(count):
                    for _ in range(count):
                        name = b"f%d" % len(made)
                        request = m.Create(m.ROOT_CREDENTIALS, ROOT_INODE, name, 0o644, exclusive=True)
                        await session.mutate(m.Op.CREATE, request, m.Created)
                        made.append(name)

                await write(20)
                status = (await session.read(m.STATUS, m.GetStatus())).body.raft
                away = next(node for node in NODES if node != status.leader)
                group.scopes[away].cancel()
                for _ in range(5):
                    await write(40)
                    await trio.sleep(0.1)
                await group.start(away)
                while not any("installed a snapshot" in record.message for record in caplog.records):
                    await write(5)
                await write(50)
            for scope in group.scopes.values():
                await trio.sleep(0.3)
                scope.cancel()
    rows = []
    for node in NODES:
        store = LmdbStore.open(str(tmp_path / str(node) / install.STORE))
        rows.append({key: value for key, value in contents(store).items() if key[:1] == b"D"})
        store.close()
    assert len(rows[away - 1]) == len(made)
    assert rows[0] == rows[1] == rows[2]
