"""A server one of whose disks hangs: the other targets are reported, stored to, read, verified, copied to and deleted
from as if nothing were the matter, and the server starts and ends in bounded time."""

from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec
import pytest
import trio

from chunkserver_support import CLUSTER, HangingDisk, content, hash_of
from shoalfs.chunkserver import heartbeat, server
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.keeper import TargetOptions
from shoalfs.mds import messages as m
from shoalfs.transport.errors import TargetDown
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import COPIES_AT_ONCE_MAX, DISK_THREADS_PER_TARGET, TARGET_DOWN_MS
from shoalfs.transport.network import open_network
from shoalfs.transport.session import Hello
from unit.chunkserver.test_service import MIB, Cluster, FakeMds

LIMIT_MS = 2_500
SOON_S = 20.0
HUNG, WELL = 1, 2  # numbers of the targets in the directories a and b


class Watching(FakeMds):
    """Remembers when it heard what of each target, orders copies, and knows the map."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[float, m.TargetReport]] = []
        self.copy: dict[TargetId, tuple[m.CopyOrder, ...]] = {}
        self.copied: set[tuple[TargetId, ChunkId]] = set()
        self.scrub: m.ScrubOrder | None = None

    async def _heartbeat(self, call, request, payload) -> m.HeartbeatReply:
        for report in request.targets:
            self.heard.append((trio.current_time(), report))
            self.copied.update((report.target, chunk) for chunk in report.copied)
        reply = await super()._heartbeat(call, request, payload)
        orders = tuple(
            msgspec.structs.replace(
                order,
                scrub=self.scrub,
                copy=tuple(
                    copy for copy in self.copy.get(order.target, ()) if (order.target, copy.chunk) not in self.copied
                ),
            )
            for order in reply.orders
        )
        return m.HeartbeatReply(1, orders)

    async def _map(self, call, request, payload) -> m.ClusterMap:
        return m.ClusterMap(CLUSTER, 1, tuple(self.targets.values()), (), ())

    def of(self, target: int) -> list[tuple[float, m.TargetReport]]:
        return [(at, report) for at, report in self.heard if report.target == target]

    def longest_silence_s(self, target: int, since: float) -> float:
        times = [since, *(at for at, _ in self.of(target) if at >= since), trio.current_time()]
        return max(later - earlier for earlier, later in pairwise(times))


class Shaky(Cluster):
    """Its targets are on one HangingDisk, of which a part may hang."""

    def __init__(self, tmp_path, nursery: trio.Nursery) -> None:
        super().__init__(tmp_path, nursery)
        self.mds = Watching()
        self.disk = HangingDisk(RealDisk())

    def options(self, **changes) -> server.ServerOptions:
        targets = tuple(TargetOptions(str(self.tmp_path / name)) for name in "ab")
        return super().options(**{"targets": targets, "disk_call_ms_max": LIMIT_MS, **changes})

    def hang(self, *operations: str) -> None:
        self.disk.hang(*operations, below=f"{self.tmp_path}/a")

    async def failed(self) -> dict[str, str]:
        async with open_network(self.carriers, Hello(cluster_id=CLUSTER, role="admin", name="operator")) as network:
            status = await ChunkClient(network).status("memory:cs")
        return {target.path.rpartition("/")[2]: target.failed for target in status.targets}

    async def until(self, condition) -> None:
        with trio.fail_after(SOON_S):
            while not condition():
                await trio.sleep(0.02)


@asynccontextmanager
async def shaky(tmp_path, monkeypatch):
    async with trio.open_nursery() as nursery:
        cluster = Shaky(tmp_path, nursery)
        monkeypatch.setattr(server, "RealDisk", lambda: cluster.disk)
        monkeypatch.setattr(heartbeat, "HEARTBEAT_MS", 200)
        await cluster.start_mds()
        await cluster.start_server()
        await cluster.mds.wait_beats(1)
        async with open_network(cluster.carriers, Hello(cluster_id=CLUSTER, role="client", name="test")) as network:
            cluster.client = ChunkClient(network)
            try:
                yield cluster
            finally:
                cluster.disk.come_back()
        nursery.cancel_scope.cancel()


async def use(cluster: Cluster, target: int, chunk: int) -> None:
    small, large = content(chunk, 1000), content(chunk, 2 * MIB)
    await cluster.put(target, chunk, small, durable=True)
    await cluster.put(target, chunk + 1, large, durable=True)
    assert await cluster.get(target, chunk, small) == small
    assert await cluster.get(target, chunk + 1, large) == large


async def test_a_disk_that_hangs_costs_its_target_and_nothing_else(tmp_path, monkeypatch):
    async with shaky(tmp_path, monkeypatch) as cluster:
        await use(cluster, HUNG, 10)
        await use(cluster, WELL, 10)
        began = trio.current_time()
        cluster.hang()
        told = []

        async def wait_in_vain(chunk: int) -> None:
            try:
                await cluster.put(HUNG, chunk, content(chunk, 1000), durable=True)
            except TargetDown as error:
                told.append(str(error))

        async with trio.open_nursery() as nursery:
            for chunk in range(1000, 1100):
                nursery.start_soon(wait_in_vain, chunk)
            chunk = 2000
            while not cluster.mds.of(HUNG)[-1][1].failed:
                await use(cluster, WELL, chunk)
                assert (await cluster.failed())["b"] == ""
                chunk += 2
                assert trio.current_time() - began < SOON_S
        assert len(told) == 100
        assert trio.current_time() - began >= LIMIT_MS / 1000
        assert "its disk does not answer" in cluster.mds.of(HUNG)[-1][1].failed
        assert "its disk does not answer" in (await cluster.failed())["a"]
        assert chunk > 2000
        for target in (HUNG, WELL):
            assert cluster.mds.longest_silence_s(target, began) * 1000 < TARGET_DOWN_MS / 2
        await use(cluster, WELL, chunk)
        with pytest.raises(TargetDown):
            await cluster.put(HUNG, 5000, b"x")


async def test_what_is_said_of_a_target_that_has_not_answered_yet(tmp_path, monkeypatch):
    """What it said last, and nothing of its chunks: what it does not name is not missing."""
    async with shaky(tmp_path, monkeypatch) as cluster:
        await cluster.put(HUNG, 5, b"abc")
        await cluster.until(lambda: cluster.mds.of(HUNG)[-1][1].inventory == (5,))
        before = cluster.mds.of(HUNG)[-1][1]
        assert before.inventory_through > 5
        cluster.hang("space")
        at = trio.current_time()
        await cluster.until(lambda: cluster.mds.of(HUNG)[-1][1].failed)
        between = [report for when, report in cluster.mds.of(HUNG) if when > at + 1.0 and not report.failed]
        assert len(between) > 3
        for report in between:
            assert (report.inventory, report.inventory_after, report.inventory_through) == ((), 0, 0)
            assert (report.capacity_bytes, report.chunks) == (before.capacity_bytes, before.chunks)


async def test_orders_for_other_targets_are_carried_out(tmp_path, monkeypatch):
    data = content(1, 100_000)
    chunks = [ChunkId(number) for number in range(1, 4 * COPIES_AT_ONCE_MAX)]
    async with shaky(tmp_path, monkeypatch) as cluster:
        mds = cluster.mds
        for target in (HUNG, WELL):
            for chunk in chunks:
                await cluster.put(target, chunk, data)
            await cluster.put(target, 90, data)
        cluster.hang("preadv")
        began = trio.current_time()
        for target in (HUNG, WELL):
            mds.copy[TargetId(target)] = tuple(m.CopyOrder(c, len(data), hash_of(data), (), True) for c in chunks)
            mds.delete[TargetId(target)] = (ChunkId(90),)
        mds.scrub = m.ScrubOrder(1_000_000_000, 1, 1 << 30)
        await cluster.until(lambda: cluster.disk.hung >= COPIES_AT_ONCE_MAX)
        most_hung = COPIES_AT_ONCE_MAX + 2  # and one deletion, and one that verifies
        await cluster.until(lambda: {(TargetId(WELL), chunk) for chunk in chunks} <= mds.copied)
        await cluster.until(lambda: not mds.delete[TargetId(WELL)])
        await cluster.until(lambda: mds.of(WELL)[-1][1].scrub.finished_ns > 0)
        assert trio.current_time() - began < LIMIT_MS / 1000, "while nobody says that anything has failed"
        assert not mds.of(HUNG)[-1][1].failed
        await cluster.until(lambda: mds.of(HUNG)[-1][1].failed)
        assert cluster.disk.hung <= most_hung < DISK_THREADS_PER_TARGET, "no more are begun where none ends"
        mds.delete[TargetId(WELL)] = tuple(chunks)
        await cluster.until(lambda: not mds.delete[TargetId(WELL)])
        assert not any(target == HUNG for target, _ in mds.copied)


async def test_a_server_ends_and_starts_while_a_disk_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("shoalfs.chunkserver.keeper.OPEN_PATIENCE_MS", 300)
    async with shaky(tmp_path, monkeypatch) as cluster:
        await use(cluster, HUNG, 10)
        cluster.hang()
        with trio.fail_after(SOON_S):
            await cluster.stop_server()
        before = len(cluster.mds.heard)
        with trio.fail_after(SOON_S):
            await cluster.start_server()
        assert "is being opened" in (await cluster.failed())["a"]
        await cluster.until(lambda: any(report.target == WELL for _, report in cluster.mds.heard[before:]))
        await use(cluster, WELL, 10)

        async def left_out() -> str:
            return (await cluster.failed())["a"]

        with trio.fail_after(SOON_S):
            while "does not answer" not in await left_out():
                await trio.sleep(0.05)
        with trio.fail_after(SOON_S):
            await cluster.stop_server()
        cluster.disk.come_back()
        await cluster.until(lambda: not cluster.disk.hung)
        await trio.sleep(0.5)  # until the threads that were left behind have let go of the directory
        await cluster.start_server()
        await cluster.until(lambda: cluster.mds.target(HUNG).epoch == 2)
        assert await cluster.get(HUNG, 10, content(10, 1000)) == content(10, 1000)
        assert (await cluster.put(HUNG, 10, content(10, 1000), durable=True)).target_epoch == 2


async def test_a_target_that_opens_late_is_served_then(tmp_path, monkeypatch):
    monkeypatch.setattr("shoalfs.chunkserver.keeper.OPEN_PATIENCE_MS", 300)
    async with shaky(tmp_path, monkeypatch) as cluster:
        await use(cluster, HUNG, 10)
        await cluster.stop_server()
        cluster.hang("fdatasync")
        await cluster.start_server()
        await cluster.until(lambda: cluster.mds.target(WELL).epoch == 2)
        await use(cluster, WELL, 10)
        cluster.disk.come_back()
        with trio.fail_after(SOON_S):
            while (await cluster.failed())["a"]:
                await trio.sleep(0.02)
        await cluster.until(lambda: cluster.mds.target(HUNG).epoch == 2)
        await use(cluster, HUNG, 10)


async def test_without_any_target_that_opens_the_start_fails_in_bounded_time(tmp_path, monkeypatch):
    async with shaky(tmp_path, monkeypatch) as cluster:
        await cluster.stop_server()
        cluster.hang()
        only = (TargetOptions(str(tmp_path / "a")),)
        with (
            trio.fail_after(SOON_S),
            pytest.RaisesGroup(server.UserError, allow_unwrapped=True, flatten_subgroups=True),
        ):
            await server.run(cluster.options(targets=only, cluster_id=CLUSTER), cluster.carriers)


async def test_a_target_that_hangs_before_it_registered_is_registered_when_it_answers(tmp_path, monkeypatch):
    async with shaky(tmp_path, monkeypatch) as cluster:
        await cluster.stop_server()
        cluster.hang("space")
        before = len(cluster.mds.heard)
        await cluster.start_server()
        await cluster.until(lambda: {report.target for _, report in cluster.mds.heard[before:]} == {WELL})
        assert cluster.mds.target(HUNG).epoch == 1
        cluster.disk.come_back()
        await cluster.until(lambda: HUNG in {report.target for _, report in cluster.mds.heard[before:]})
        assert cluster.mds.target(HUNG).epoch == 2
