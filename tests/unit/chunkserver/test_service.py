"""Chunkserver and client end to end over the memory carrier, with a stand-in for the metadata service."""

from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import pytest
import trio

from chunkserver_support import CLUSTER, content, hash_of
from shoalfs.chunkserver import server
from shoalfs.chunkserver.client import ChunkClient, hash_chunk
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.keeper import TargetOptions
from shoalfs.chunkserver.messages import ChunksRead, FoundChunk, Wanted
from shoalfs.chunkserver.record import record_bytes
from shoalfs.chunkserver.server import ServerOptions
from shoalfs.mds import messages as m
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.checksum import block_hashes
from shoalfs.transport.errors import (
    BadMessage,
    ChunkConflict,
    ChunkCorrupt,
    ChunkMissing,
    NotLeader,
    PeerUnreachable,
    ProtocolViolation,
    ShoalError,
    TargetDown,
    TargetFull,
    UserError,
    wire_code,
)
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import (
    BLOCK_BYTES,
    DIRECT_BYTES_MIN,
    GET_MANY_BYTES_MAX,
    GET_MANY_CHUNK_BYTES_MAX,
    GET_MANY_CHUNKS_MAX,
)
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import Reply, serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

MIB = 1 << 20


class FakeMds:
    """Registers targets and answers heartbeats. ``leading`` False: sends everybody to memory:leader."""

    def __init__(self) -> None:
        self.targets: dict[bytes, m.Target] = {}
        self.heartbeats: list[m.Heartbeat] = []
        self.delete: dict[TargetId, tuple[ChunkId, ...]] = {}
        self.forget = False
        self.leading = True
        self.beat = trio.Event()
        self.service = Service()
        self.service.add(m.MUTATE, self._mutate)
        self.service.add(m.HEARTBEAT, self._heartbeat)
        self.service.add(m.GET_MAP, self._map)

    def target(self, number: int) -> m.Target:
        return next(target for target in self.targets.values() if target.id == number)

    async def wait_beats(self, count: int) -> m.Heartbeat:
        """Wait for that many further heartbeats; the last one."""
        for _ in range(count):
            self.beat = trio.Event()
            await self.beat.wait()
        return self.heartbeats[-1]

    async def _mutate(self, call, request, payload) -> m.Mutated:
        if not self.leading:
            raise NotLeader("memory:leader")
        assert request.session == 0
        (command,) = request.commands
        assert command.op == m.Op.REGISTER_TARGET
        asked = msgspec.msgpack.decode(command.body, type=m.RegisterTarget)
        old = self.targets.get(asked.uuid)
        number, epoch = (old.id, old.epoch + 1) if old else (TargetId(len(self.targets) + 1), 1)
        target = m.Target(number, asked.uuid, asked.node, asked.address, epoch, m.TargetState.UP, asked.capacity_bytes)
        self.targets[asked.uuid] = target
        body = msgspec.msgpack.encode(m.TargetRegistered(target, 1))
        return m.Mutated(1, (m.Outcome(0, "", msgspec.Raw(body)),))

    async def _heartbeat(self, call, request, payload) -> m.HeartbeatReply:
        if not self.leading:
            raise NotLeader("memory:leader")
        self.heartbeats.append(request)
        orders = []
        for report in request.targets:
            self.delete[report.target] = tuple(
                chunk for chunk in self.delete.get(report.target, ()) if chunk not in report.deleted
            )
            orders.append(m.TargetOrders(report.target, not self.forget, self.delete[report.target]))
        self.forget = False
        self.beat.set()
        return m.HeartbeatReply(1, tuple(orders))

    async def _map(self, call, request, payload) -> m.ClusterMap:
        return m.ClusterMap(CLUSTER, 1, (), (), ())


class Cluster:
    """One chunkserver with two targets, a metadata service, and a client."""

    def __init__(self, tmp_path, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.tmp_path = tmp_path
        self.carriers = Carriers(MemoryFabric())
        self.mds = FakeMds()
        self.server_scope = trio.CancelScope()
        self.server_done = trio.Event()
        self.client: ChunkClient

    def options(self, **changes) -> ServerOptions:
        defaults = {
            "node": "node1",
            "listen": "memory:cs",
            "targets": (
                TargetOptions(str(self.tmp_path / "a"), 16 * MIB),
                TargetOptions(str(self.tmp_path / "b"), 16 * MIB),
            ),
            "mds": ("memory:mds",),
        }
        return ServerOptions(**{**defaults, **changes})

    async def start_mds(self, address: str = "memory:mds", mds: FakeMds | None = None) -> None:
        hello = Hello(cluster_id=CLUSTER, role="mds", name="mds")
        await self.nursery.start(serve, self.carriers, address, (mds or self.mds).service, hello)

    async def start_server(self, **changes) -> None:
        self.server_scope = trio.CancelScope()
        self.server_done = trio.Event()

        async def run(*, task_status) -> None:
            with self.server_scope:
                await server.run(self.options(**changes), self.carriers, task_status=task_status)
            self.server_done.set()

        await self.nursery.start(run)

    async def stop_server(self) -> None:
        self.server_scope.cancel()
        await self.server_done.wait()

    async def put(self, target: int, chunk: int, data: bytes, *, durable: bool = False, **changes) -> m.Receipt:
        arguments = {
            "chunk": ChunkId(chunk),
            "ino": InodeId(1),
            "offset_bytes": 0,
            "payload": data,
            "chunk_hash": hash_of(data),
            "durable": durable,
            **changes,
        }
        return await self.client.put(self.mds.target(target), **arguments)

    async def get(self, target: int, chunk: int, data: bytes, offset: int = 0, length: int | None = None) -> bytes:
        view = await self.client.get(
            self.mds.target(target),
            chunk=ChunkId(chunk),
            chunk_bytes=len(data),
            chunk_hash=hash_of(data),
            offset_bytes=offset,
            length_bytes=len(data) - offset if length is None else length,
        )
        return bytes(view)


@asynccontextmanager
async def running(tmp_path, role: str = "client"):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(tmp_path, nursery)
        await cluster.start_mds()
        await cluster.start_server()
        await cluster.mds.wait_beats(1)
        async with open_network(cluster.carriers, Hello(cluster_id=CLUSTER, role=role, name="test")) as network:
            cluster.client = ChunkClient(network)
            yield cluster
        nursery.cancel_scope.cancel()


@contextmanager
def refused(error: type[ShoalError], match: str | None = None) -> Iterator[None]:
    with pytest.raises(error, match=match):
        yield


async def test_put_sync_get_from_both_targets(tmp_path):
    data = content(1, 3 * MIB + 77)
    async with running(tmp_path) as cluster:
        for target in (1, 2):
            receipt = await cluster.put(target, 5, data)
            assert receipt == m.Receipt(ChunkId(5), TargetId(target), 1, False, hash_of(data))
            (synced,) = await cluster.client.sync(cluster.mds.target(target), [ChunkId(5)])
            assert synced == m.Receipt(ChunkId(5), TargetId(target), 1, True, hash_of(data))
            assert await cluster.get(target, 5, data) == data
            for offset, length in [(0, 1), (BLOCK_BYTES - 1, 2), (len(data) - 1, 1), (100_000, 1_000_000)]:
                assert await cluster.get(target, 5, data, offset, length) == data[offset : offset + length]


async def test_a_chunk_is_written_from_where_it_was_received(tmp_path, monkeypatch):
    """Past the page cache, and without a copy, whatever the length of what came before it in its frame."""
    (tmp_path / "file").touch()
    if RealDisk().open_direct(str(tmp_path / "file")) is None:
        pytest.skip("this filesystem has no descriptors for direct writes")
    written, pwritev_direct = [], RealDisk.pwritev_direct

    def note(disk, fd, buffers, offset):
        written.append((pwritev_direct(disk, fd, buffers, offset), offset))
        return written[-1][0]

    monkeypatch.setattr(RealDisk, "pwritev_direct", note)
    async with running(tmp_path) as cluster:
        for number in range(4):
            data = content(number, DIRECT_BYTES_MIN + number)
            await cluster.put(1, 1 << (16 * number), data)
            assert await cluster.get(1, 1 << (16 * number), data) == data
    sizes = [record_bytes(DIRECT_BYTES_MIN + number) for number in range(4)]
    assert written == [(size, sum(sizes[:number])) for number, size in enumerate(sizes)]


async def test_a_payload_may_be_many_buffers(tmp_path):
    pieces = [content(1, 100), content(2, MIB), content(3, 5)]
    whole = b"".join(pieces)
    assert await hash_chunk(pieces) == await hash_chunk(whole) == hash_of(whole)
    async with running(tmp_path) as cluster:
        receipt = await cluster.put(1, 5, whole, durable=True, payload=pieces)
        assert receipt.durable
        assert await cluster.get(1, 5, whole) == whole


async def test_refusals_reach_the_caller(tmp_path):
    data = content(1, 1000)
    async with running(tmp_path) as cluster:
        await cluster.put(1, 5, data)
        with refused(ChunkConflict):
            await cluster.put(1, 5, data + b"x")
        with refused(ChunkCorrupt, "arrived"):
            await cluster.put(1, 6, data, chunk_hash=b"x" * 16)
        with refused(ChunkMissing):
            await cluster.get(2, 5, data)
        with refused(BadMessage):
            await cluster.get(1, 5, data, 0, 1001)
        with refused(BadMessage):
            await cluster.put(1, -1, data)
        with refused(BadMessage):
            await cluster.put(1, 7, b"")
        with refused(TargetDown):
            stranger = msgspec.structs.replace(cluster.mds.target(1), id=TargetId(99))
            await cluster.client.sync(stranger, [ChunkId(5)])
        with refused(ChunkMissing):
            await cluster.client.sync(cluster.mds.target(1), [ChunkId(5), ChunkId(6)])
        for chunk in range(100, 116):
            try:
                await cluster.put(1, chunk, content(chunk, MIB))
            except TargetFull:
                break
        else:
            raise AssertionError("16 MiB took more than 98 %")


async def test_the_client_refuses_another_chunk_than_the_file_has(tmp_path):
    data = content(1, 100_000)
    async with running(tmp_path) as cluster:
        await cluster.put(1, 5, data)
        with refused(ChunkCorrupt, "another chunk"):
            await cluster.client.get(
                cluster.mds.target(1),
                chunk=ChunkId(5),
                chunk_bytes=100_000,
                chunk_hash=b"x" * 16,
                offset_bytes=0,
                length_bytes=5,
            )
        with refused(ChunkCorrupt, "another range"):
            await cluster.client.get(
                cluster.mds.target(1),
                chunk=ChunkId(5),
                chunk_bytes=50_000,
                chunk_hash=hash_of(data),
                offset_bytes=0,
                length_bytes=5,
            )


async def test_many_small_chunks_in_one_answer(tmp_path):
    """Those that are not here, damaged, too large or too many are said to be so; the others come all the same."""
    stored = {number: content(number, 40_000 + number) for number in range(10, 20)}
    async with running(tmp_path) as cluster:
        for number, data in stored.items():
            await cluster.put(1, number, data)
        large = content(1, GET_MANY_CHUNK_BYTES_MAX + 1)
        await cluster.put(1, 30, large)
        wanted = [Wanted(ChunkId(number), len(data), hash_of(data)) for number, data in stored.items()]
        target = cluster.mds.target(1)
        strangers = [wanted[0]._replace(chunk=ChunkId(99)), Wanted(ChunkId(30), len(large), hash_of(large))]
        other = [wanted[0]._replace(chunk_hash=b"x" * 16), wanted[1]._replace(chunk_bytes=40_000)]
        segment = next((tmp_path / "a").rglob("*.open"))
        written = segment.read_bytes()
        segment.write_bytes(written.replace(stored[12][-1_000:], b"damage".ljust(1_000)))
        found = await cluster.client.get_many(target, [*reversed(wanted), *strangers, *other])
        assert [type(one) for one in found[10:]] == [ChunkMissing, BadMessage, ChunkCorrupt, ChunkCorrupt]
        for number, one in zip(reversed(stored), found, strict=False):
            assert isinstance(one, ChunkCorrupt) if number == 12 else bytes(one) == stored[number]
        with refused(BadMessage):
            await cluster.client.get_many(target, [])
        with refused(BadMessage):
            await cluster.client.get_many(target, wanted[:1] * (GET_MANY_CHUNKS_MAX + 1))
        many = await cluster.client.get_many(target, wanted[:1] * 60)
        fit = GET_MANY_BYTES_MAX // 40_010
        assert [isinstance(one, BadMessage) for one in many] == [at >= fit for at in range(60)]


async def test_the_client_believes_no_server_that_sends_other_bytes(tmp_path):
    data = content(1, 100_000)

    class Liar:
        async def call(self, address, method, request, payload, *, timeout_ms):
            return answer

    hashes = block_hashes([data])
    good = FoundChunk(len(data), hashes)
    wanted = [Wanted(ChunkId(5), len(data), hash_of(data))] * 2
    target = m.Target(TargetId(1), b"u" * 16, "n", "memory:liar", 1, m.TargetState.UP, 1 << 30)
    damaged = bytearray(2 * data)
    damaged[170_000] ^= 1
    for chunks, payload, verdicts in [
        ((good, good), 2 * data, [True, True]),
        ((good, good), damaged, [True, False]),
        ((good, good), data, [True, False]),
        ((FoundChunk(len(data), hashes[:8]), good), 2 * data, [False, True]),
        ((FoundChunk(-5, hashes), good), 2 * data, [False, False]),
        ((FoundChunk(code=-7), good), data, [False, True]),
    ]:
        answer = Reply(ChunksRead(chunks), memoryview(payload))
        found = await ChunkClient(Liar()).get_many(target, wanted)
        assert [not isinstance(one, ShoalError) for one in found] == verdicts
        assert all(bytes(one) == data for one in found if not isinstance(one, ShoalError))
    answer = Reply(ChunksRead((good,)), memoryview(data))
    with refused(ProtocolViolation):
        await ChunkClient(Liar()).get_many(target, wanted)


async def test_listing_verifying_and_status(tmp_path):
    async with running(tmp_path, role="admin") as cluster:
        target = cluster.mds.target(1)
        for chunk in (3, 1, 2):
            await cluster.put(1, chunk, content(chunk, 5000 * chunk))
        first = await cluster.client.list(target, after=ChunkId(0), count=2)
        assert [(item.chunk, item.chunk_bytes) for item in first.chunks] == [(1, 5000), (2, 10_000)]
        assert not first.eof
        rest = await cluster.client.list(target, after=ChunkId(2), count=2)
        assert ([item.chunk for item in rest.chunks], rest.eof) == ([3], True)
        (segment,) = (tmp_path / "a" / "segments").iterdir()
        image = bytearray(segment.read_bytes())
        image[image.index(content(2, 10_000)[:100])] ^= 1
        segment.write_bytes(image)
        verified = await cluster.client.verify(target, [ChunkId(n) for n in (1, 2, 3, 4)], deep=True)
        assert [item.code for item in verified] == [
            0,
            wire_code(ChunkCorrupt()),
            0,
            wire_code(ChunkMissing()),
        ]
        assert verified[0].chunk_hash == hash_of(content(1, 5000))
        shallow = await cluster.client.verify(target, [ChunkId(2)], deep=False)
        assert shallow[0].code == 0
        status = await cluster.client.status("memory:cs")
        assert [(each.target, each.chunks, each.failed) for each in status.targets] == [
            (1, 3, ""),
            (2, 0, ""),
        ]
        assert status.targets[0].capacity_bytes == 16 * MIB
        assert status.counters["puts"] == 3


async def test_delete_orders_are_carried_out_and_reported(tmp_path, patient_clock):
    async with running(tmp_path) as cluster:
        for chunk in (1, 2, 3):
            await cluster.put(1, chunk, b"abc")
        report = (await cluster.mds.wait_beats(2)).targets[0]
        assert report.inventory == (1, 2, 3)
        cluster.mds.delete[TargetId(1)] = (ChunkId(1), ChunkId(3), ChunkId(77))
        while cluster.mds.delete[TargetId(1)]:
            await cluster.mds.wait_beats(1)
        report = (await cluster.mds.wait_beats(1)).targets[0]
        assert (report.inventory, report.chunks, report.deleted) == ((2,), 1, ())
        with refused(ChunkMissing):
            await cluster.get(1, 1, b"abc")


async def test_a_forgotten_target_registers_again_and_its_receipts_change(tmp_path, patient_clock):
    async with running(tmp_path) as cluster:
        cluster.mds.forget = True
        await cluster.mds.wait_beats(2)
        assert (await cluster.put(1, 1, b"abc")).target_epoch == 2


async def test_the_leader_is_followed(tmp_path, patient_clock):
    async with running(tmp_path) as cluster:
        leader = FakeMds()
        leader.targets = dict(cluster.mds.targets)
        await cluster.start_mds("memory:leader", leader)
        cluster.mds.leading = False
        await leader.wait_beats(2)


async def test_without_the_metadata_service_reads_go_on(tmp_path, patient_clock):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(tmp_path, nursery)
        mds_scope = trio.CancelScope()

        async def mds(*, task_status) -> None:
            with mds_scope:
                hello = Hello(cluster_id=CLUSTER, role="mds", name="mds")
                await serve(cluster.carriers, "memory:mds", cluster.mds.service, hello, task_status=task_status)

        await nursery.start(mds)
        await cluster.start_server()
        await cluster.mds.wait_beats(1)
        async with open_network(cluster.carriers, Hello(cluster_id=CLUSTER, name="test")) as network:
            cluster.client = ChunkClient(network)
            await cluster.put(1, 1, b"abc")
            mds_scope.cancel()
            await trio.sleep(8)
            assert await cluster.get(1, 1, b"abc") == b"abc"
            mds_scope = trio.CancelScope()
            await nursery.start(mds)
            await cluster.mds.wait_beats(1)
        nursery.cancel_scope.cancel()


async def test_a_restarted_server_has_its_chunks_and_a_new_epoch(tmp_path, patient_clock):
    data = content(1, 200_000)
    async with running(tmp_path) as cluster:
        await cluster.put(1, 1, data)
        await cluster.stop_server()
        await cluster.start_server(cluster_id=CLUSTER)
        await cluster.mds.wait_beats(1)
        assert await cluster.get(1, 1, data) == data
        assert (await cluster.put(1, 1, data)).target_epoch == 2


async def test_a_server_of_another_cluster_is_refused(tmp_path):
    async with running(tmp_path) as cluster:
        await cluster.stop_server()
        with pytest.RaisesGroup(UserError, allow_unwrapped=True, flatten_subgroups=True):
            await server.run(cluster.options(cluster_id=b"x" * 16), cluster.carriers)


async def test_a_target_that_cannot_be_opened_is_left_out(tmp_path):
    async with running(tmp_path, role="admin") as cluster:
        await cluster.stop_server()
        state = tmp_path / "a" / "segments"
        for file in state.iterdir():
            file.unlink()
        state.rmdir()
        state.write_bytes(b"a file where a directory was")
        await cluster.start_server()
        await cluster.mds.wait_beats(1)
        status = await cluster.client.status("memory:cs")
        assert [bool(each.failed) for each in status.targets] == [False, True]
        assert await cluster.put(2, 1, b"abc")
        with refused(TargetDown):
            await cluster.put(1, 1, b"abc")


@pytest.mark.parametrize("changes", [{"mds": ()}, {"targets": ()}])
async def test_options_that_cannot_work_are_refused(tmp_path, changes):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(tmp_path, nursery)
        with pytest.raises(UserError):
            await server.run(cluster.options(**changes), cluster.carriers)


async def test_a_registered_address_that_cannot_be_dialled_is_a_server_that_is_not_there():
    carriers = Carriers(MemoryFabric())
    async with open_network(carriers, Hello(cluster_id=CLUSTER, name="test")) as network:
        with pytest.raises(PeerUnreachable, match="unix:"):
            await ChunkClient(network).status("unix:/unknown")
