"""A queue pair without a device, for tests of what lies above it: two blocks of memory and tasks that move bytes.

Operations complete in the order in which they were posted, each after a pause of the test's choosing, as on a
reliable connection. A send that finds no receive posted is a failure of the test.
"""

from collections import deque
from collections.abc import Callable, Sequence

import pytest
import trio

from shoalfs.transport import network, rdma_setup, rpc
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.link import Link
from shoalfs.transport.rdma_link import Event, What
from shoalfs.transport.rdma_memory import SEND_SLOTS, Block, Pool
from shoalfs.transport.rdma_table import DevicePort, NoVerbs, choose_port
from shoalfs.transport.rdma_wire import RDMA_VERSION, Endpoint, Offer


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated machine on a busy one is a hundred times slower: limits that a test is not about are wide."""
    monkeypatch.setattr(rdma_setup, "RDMA_PROBE_MS", 60_000)
    monkeypatch.setattr(network, "DIAL_TIMEOUT_MS", 60_000)
    monkeypatch.setattr(rpc, "HELLO_TIMEOUT_MS", 60_000)
    for call in (network.Network.call, rpc.Connection.call):
        monkeypatch.setitem(call.__kwdefaults__, "timeout_ms", 60_000)


class SimulatedPair:
    """One end. ``pause_s`` is asked before each operation is carried out."""

    def __init__(self, name: str, pool: Pool, nursery: trio.Nursery, pulls: bool, pause_s: Callable[[], float]) -> None:
        block = pool.take()
        assert block is not None
        self.name = name
        self.device = "simulated"
        self.pulls = pulls
        self.block: Block = block
        self.peer: SimulatedPair = self
        self.peer_gone = False
        self.closed = False
        self.beside: Link | None = None  # the TCP link, if it was made beside one
        self.broken = False
        self.posted: deque[int] = deque(range(len(block.receives)))
        self.receives_least = len(block.receives)
        self._pool = pool
        self._pause_s = pause_s
        self._sends = 0
        self._completed = 0
        self._events: list[Event] = []
        self._news = trio.Event()
        self._to_do, self._done = trio.open_memory_channel[tuple[object, ...]](1000)
        nursery.start_soon(self._run)

    @property
    def may_post(self) -> bool:
        return self._sends - self._completed < SEND_SLOTS

    @property
    def sends_done(self) -> bool:
        return self._sends == self._completed

    def message(self) -> memoryview:
        return self.block.sends[self._sends % SEND_SLOTS]

    def bulk_out(self, slot: int) -> memoryview:
        return self.block.bulk_out[slot]

    def bulk_in(self, slot: int) -> memoryview:
        return self.block.bulk_in[slot]

    def received(self, number: int) -> memoryview:
        return self.block.receives[number]

    def post_message(self, size_bytes: int, slot: int | None, bulk_bytes: int, *, last: bool = False) -> None:
        assert not self.closed
        if slot is not None and self.pulls:
            self._to_do.send_nowait(("write", slot, bulk_bytes))
        self._to_do.send_nowait(("send", self._sends % SEND_SLOTS, size_bytes))
        self._sends += 1

    def post_read(self, slot: int, size_bytes: int) -> None:
        assert self.pulls
        self._to_do.send_nowait(("read", slot, size_bytes))

    def post_receive(self, number: int) -> None:
        assert number not in self.posted
        self.posted.append(number)

    def poll(self) -> Sequence[Event]:
        if self.broken:
            raise PeerUnreachable(f"{self.name}: broken")
        events, self._events = self._events, []
        return events

    async def wait(self) -> None:
        if not self._events and not self.peer_gone and not self.broken:
            self._news = trio.Event()
            await self._news.wait()

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        if self.beside is not None:
            self.beside.close()
        self.peer.peer_gone = True
        self.peer._news.set()
        self._to_do.close()
        self._pool.give_back(self.block)

    def fail(self) -> None:
        self.broken = True
        self._news.set()

    async def _run(self) -> None:
        async for what, number, size in self._done:
            await trio.sleep(self._pause_s())
            peer = self.peer
            if peer.closed or self.closed:
                self.fail()
                continue
            assert isinstance(number, int)
            assert isinstance(size, int)
            if what == "send":
                assert peer.posted, "a send without a receive: the credits are wrong"
                peer.receives_least = min(peer.receives_least, len(peer.posted) - 1)
                receive = peer.posted.popleft()
                peer.block.receives[receive][:size] = self.block.sends[number][:size]
                self._completed += 1
                peer._tell(Event(What.RECEIVED, receive, size))
            elif what == "write":
                peer.block.bulk_in[number][:size] = self.block.bulk_out[number][:size]
            else:
                self.block.bulk_in[number][:size] = peer.block.bulk_out[number][:size]
                self._tell(Event(What.READ, number, size))
            self._news.set()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()


def simulated_pairs(
    nursery: trio.Nursery, pause_s: Callable[[], float], pool: Pool | None = None
) -> tuple[SimulatedPair, SimulatedPair]:
    """The dialler's end and the acceptor's."""
    pool = pool or Pool(8)
    dialler = SimulatedPair("dialler", pool, nursery, False, pause_s)
    acceptor = SimulatedPair("acceptor", pool, nursery, True, pause_s)
    dialler.peer, acceptor.peer = acceptor, dialler
    return dialler, acceptor


class _SetUpPair(SimulatedPair):
    """One that is connected in the course of a set-up, by its number."""

    def __init__(self, devices: "SimulatedDevices", number: int, gid: bytes, name: str, pulls: bool) -> None:
        super().__init__(name, devices.pool, devices.nursery, pulls, devices.pause_s)
        self._devices = devices
        self.endpoint = Endpoint(number, 0, gid, 5)
        self.offer = Offer(RDMA_VERSION, self.endpoint, 0, 0, 0, 0)

    def connect(self, peer: Endpoint, offer: Offer | None = None) -> None:
        if self._devices.cut:
            return  # as a device that sends into the void
        self.peer = self._devices.made[peer.queue_pair]

    def post_message(self, size_bytes: int, slot: int | None, bulk_bytes: int, *, last: bool = False) -> None:
        if self.peer is not self:
            super().post_message(size_bytes, slot, bulk_bytes, last=last)
        else:
            self._sends += 1  # and never completes

    def keep(self, beside: Link) -> None:
        self.beside = beside


class SimulatedDevices:
    """The devices of one machine, for connections to itself: ``table`` says which there are. ``cut``: queue pairs can
    be made, and nothing that they send arrives."""

    def __init__(self, nursery: trio.Nursery, table: Sequence[DevicePort]) -> None:
        self.nursery = nursery
        self.table = table
        self.cut = False
        self.pool = Pool(8)
        self.made: dict[int, _SetUpPair] = {}

    @staticmethod
    def pause_s() -> float:
        return 0

    def pair(self, local_ip: str, fd: int, name: str, *, pulls: bool) -> _SetUpPair:
        port = choose_port(self.table, local_ip)
        if len(self.made) == 8:
            raise NoVerbs("all registered memory is in use")
        number = len(self.made) + 1
        self.made[number] = pair = _SetUpPair(self, number, port.gid, f"{name} verbs {port.device}", pulls)
        pair.device = port.device
        return pair
