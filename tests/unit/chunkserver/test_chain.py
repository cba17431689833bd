"""Chunks that go from one chunkserver to the next, over the memory carrier: three servers with a target each."""

from contextlib import asynccontextmanager

import pytest
import trio

from chunkserver_support import CLUSTER, content, hash_of
from shoalfs.chunkserver import forwarder, server
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.keeper import TargetOptions
from shoalfs.chunkserver.messages import PUT_CHAIN, PutChain
from shoalfs.chunkserver.server import ServerOptions
from shoalfs.mds import messages as m
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import (
    BadMessage,
    ChunkConflict,
    ChunkCorrupt,
    DeadlineExceeded,
    Overloaded,
    PeerUnreachable,
    TargetDown,
    TargetFull,
)
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello
from unit.chunkserver.test_service import FakeMds

MIB = 1 << 20


class MapMds(FakeMds):
    """Tells the targets that have registered."""

    maps = 0

    async def _map(self, call, request, payload) -> m.ClusterMap:
        self.maps += 1
        return m.ClusterMap(CLUSTER, 1, (), tuple(self.targets.values()), ())


class Chain:
    def __init__(self, tmp_path, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.tmp_path = tmp_path
        self.carriers = Carriers(MemoryFabric())
        self.mds = MapMds()
        self.scopes: dict[int, tuple[trio.CancelScope, trio.Event]] = {}
        self.client: ChunkClient

    async def start(self, number: int, address: str | None = None, size_bytes: int = 64 * MIB) -> None:
        """A server; its target gets this number if servers start in order."""
        options = ServerOptions(
            node=f"n{number}",
            listen=address or f"memory:cs{number}",
            targets=(TargetOptions(str(self.tmp_path / f"t{number}"), size_bytes),),
            mds=("memory:mds",),
        )
        scope, done = self.scopes[number] = (trio.CancelScope(), trio.Event())

        async def run(*, task_status) -> None:
            with scope:
                await server.run(options, self.carriers, task_status=task_status)
            done.set()

        await self.nursery.start(run)
        await self.mds.wait_beats(1)

    async def stop(self, number: int) -> None:
        scope, done = self.scopes.pop(number)
        scope.cancel()
        await done.wait()

    async def put(self, chunk: int, data: bytes, targets=(1, 2, 3), **changes) -> list:
        """Along a chain: of each target its receipt or the code of its error."""
        arguments = {"durable": False, "chunk_hash": hash_of(data)} | changes
        numbers = tuple(map(TargetId, targets))
        request = PutChain(numbers, ChunkId(chunk), InodeId(1), 0, **arguments)
        links = await self.client.put_chain(self.mds.target(targets[0]), request, data)
        assert [link.target for link in links] == list(targets)
        return [link.receipt or link.code for link in links]

    async def get(self, target: int, chunk: int, data: bytes) -> bytes:
        view = await self.client.get(
            self.mds.target(target),
            chunk=ChunkId(chunk),
            chunk_bytes=len(data),
            chunk_hash=hash_of(data),
            offset_bytes=0,
            length_bytes=len(data),
        )
        return bytes(view)

    async def counters(self, number: int) -> dict[str, int]:
        return (await self.client.status(f"memory:cs{number}")).counters


@asynccontextmanager
async def running(tmp_path, *, sizes=(64, 64, 64), role: str = "client"):
    async with trio.open_nursery() as nursery:
        chain = Chain(tmp_path, nursery)
        hello = Hello(cluster_id=CLUSTER, role="mds", name="mds")
        await nursery.start(serve, chain.carriers, "memory:mds", chain.mds.service, hello)
        for number, size_mib in enumerate(sizes, 1):
            await chain.start(number, size_bytes=size_mib * MIB)
        async with open_network(chain.carriers, Hello(cluster_id=CLUSTER, role=role, name="test")) as network:
            chain.client = ChunkClient(network)
            yield chain
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("durable", [False, True])
async def test_one_request_stores_on_all_of_them(tmp_path, durable):
    data = content(1, 3 * MIB + 5)
    async with running(tmp_path) as chain:
        maps = chain.mds.maps
        receipts = await chain.put(7, data, (2, 3, 1), durable=durable)
        assert receipts == [m.Receipt(ChunkId(7), TargetId(t), 1, durable, hash_of(data)) for t in (2, 3, 1)]
        for target in (1, 2, 3):
            assert await chain.get(target, 7, data) == data
        assert (await chain.counters(2))["forwards"] == 2, "the second and the third"
        assert (await chain.counters(3))["forwards"] == 1
        assert await chain.put(7, data) == await chain.put(7, data), "the same again is harmless"
        assert chain.mds.maps - maps == 3, "one for each server that passed something on"


async def test_a_dead_middle_is_left_out(tmp_path):
    data = content(1, MIB)
    async with running(tmp_path) as chain:
        await chain.stop(2)
        first, second, third = await chain.put(7, data)
        assert (first.target, second, third.target) == (1, PeerUnreachable.code, 3)
        assert await chain.get(3, 7, data) == data


async def test_a_middle_that_is_full_passes_on_all_the_same(tmp_path):
    data = content(1, 3 * MIB)
    async with running(tmp_path, sizes=(64, 1, 64)) as chain:
        first, second, third = await chain.put(7, data)
        assert (first.target, second, third.target) == (1, TargetFull.code, 3)


async def test_a_first_that_is_full_passes_on_all_the_same(tmp_path):
    data = content(1, 3 * MIB)
    async with running(tmp_path, sizes=(1, 64, 64)) as chain:
        first, second, third = await chain.put(7, data)
        assert (first, second.target, third.target) == (TargetFull.code, 2, 3)


async def test_a_middle_that_hangs_leaves_time_for_the_next_and_for_the_answer(tmp_path, patient_clock):
    data = content(1, 1000)
    async with running(tmp_path) as chain:
        await chain.stop(2)
        silent = Service()

        async def hang(call, request, payload) -> None:
            await trio.sleep_forever()

        silent.add(PUT_CHAIN, hang)
        hello = Hello(cluster_id=CLUSTER, role="chunkserver", name="silent")
        await chain.nursery.start(serve, chain.carriers, "memory:cs2", silent, hello)
        first, second, third = await chain.put(7, data)
        assert (first.target, second, third.target) == (1, DeadlineExceeded.code, 3)


async def test_wrong_bytes_are_stored_nowhere(tmp_path):
    async with running(tmp_path) as chain:
        assert await chain.put(7, content(1, 1000), chunk_hash=b"x" * 16) == [ChunkCorrupt.code] * 3


async def test_a_chunk_that_one_has_with_other_bytes(tmp_path):
    data = content(1, 1000)
    async with running(tmp_path) as chain:
        await chain.put(7, data + b"x", (2,))
        first, second, third = await chain.put(7, data)
        assert (first.target, second, third.target) == (1, ChunkConflict.code, 3)
        assert await chain.get(2, 7, data + b"x") == data + b"x"


async def test_what_is_passed_on_is_bounded_and_nobody_waits_for_room(tmp_path, monkeypatch):
    data = content(1, 2 * MIB)
    async with running(tmp_path) as chain:
        monkeypatch.setattr(forwarder, "FORWARDED_BYTES_MAX", 2 * MIB - 1)
        first, second, third = await chain.put(7, data)
        assert (first.target, second, third) == (1, Overloaded.code, Overloaded.code)
        monkeypatch.setattr(forwarder, "FORWARDED_BYTES_MAX", 2 * MIB)
        assert all(isinstance(link, m.Receipt) for link in await chain.put(7, data)), "what was held is given back"


async def test_many_chains_in_a_circle(tmp_path, monkeypatch):
    """More than fits is passed on between all three, in all directions: all of it is stored or refused."""
    monkeypatch.setattr(forwarder, "FORWARDED_BYTES_MAX", 4 * MIB)
    payloads = {chunk: content(chunk, MIB) for chunk in range(1, 31)}
    found: dict[int, list] = {}
    async with running(tmp_path) as chain:

        async def put(chunk: int) -> None:
            at = chunk % 3
            order = (1, 2, 3)[at:] + (1, 2, 3)[:at]
            found[chunk] = await chain.put(chunk, payloads[chunk], order)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for chunk in payloads:
                    nursery.start_soon(put, chunk)
        assert all(isinstance(first, m.Receipt) for first, *_ in found.values())
        assert {link for _, *rest in found.values() for link in rest if isinstance(link, int)} <= {Overloaded.code}
        for chunk, links in found.items():
            for link in links:
                if isinstance(link, m.Receipt):
                    assert await chain.get(link.target, chunk, payloads[chunk]) == payloads[chunk]


async def test_a_target_that_nobody_knows(tmp_path):
    async with running(tmp_path) as chain:
        first, second, third = await chain.put(7, content(1, 1000), (1, 2, 3))
        assert third.target == 3
        request = PutChain((TargetId(1), TargetId(99)), ChunkId(8), InodeId(1), 0, hash_of(b"x"), durable=False)
        links = await chain.client.put_chain(chain.mds.target(1), request, b"x")
        assert [link.code for link in links] == [0, PeerUnreachable.code]
        request = PutChain((TargetId(99), TargetId(2)), ChunkId(9), InodeId(1), 0, hash_of(b"x"), durable=False)
        links = await chain.client.put_chain(chain.mds.target(1), request, b"x")
        assert [link.code for link in links] == [TargetDown.code, 0]
        assert (first.target, second.target) == (1, 2)


async def test_a_server_that_came_back_elsewhere_is_found_again(tmp_path, patient_clock):
    data = content(1, 1000)
    async with running(tmp_path) as chain:
        await chain.put(7, data)
        await chain.stop(2)
        await chain.start(2, address="memory:elsewhere")
        assert (await chain.put(8, data))[1] == PeerUnreachable.code
        await trio.sleep(2)
        assert (await chain.put(9, data))[1].target == 2


async def test_it_goes_on_with_the_map_that_is_known_when_there_is_no_metadata_service(tmp_path, patient_clock):
    data = content(1, 1000)
    async with running(tmp_path) as chain:
        await chain.put(7, data)
        chain.mds.leading = False
        await chain.stop(2)
        assert (await chain.put(8, data))[1] == PeerUnreachable.code
        await trio.sleep(2)
        _, second, third = await chain.put(9, data)
        assert (second, third.target) == (PeerUnreachable.code, 3)


@pytest.mark.parametrize("targets", [(), (1, 2, 1), tuple(range(1, 10))])
async def test_chains_that_make_no_sense_are_refused(tmp_path, targets):
    async with running(tmp_path) as chain:
        request = PutChain(tuple(map(TargetId, targets)), ChunkId(8), InodeId(1), 0, hash_of(b"x"), durable=False)
        with pytest.raises(BadMessage):
            await chain.client.put_chain(chain.mds.target(1), request, b"x")
