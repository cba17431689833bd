"""The calling side: dialling once for all, resting after a failure, coming back."""

from functools import partial

import pytest
import trio
import trio.lowlevel

from harness.echo_server import ECHO, NOTE, WAIT, Number, Place, Server
from shoalfs.transport import network as network_module
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import DeadlineExceeded, Overloaded, PeerUnreachable, UserError
from shoalfs.transport.limits import REDIAL_MS_MAX
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.method import Method
from shoalfs.transport.network import open_network, rest_ms
from shoalfs.transport.session import Hello

DEAF = Method(50, "test.deaf", Number, Number)


class Fabric(MemoryFabric):
    """Counts dials, and can make them hang."""

    def __init__(self):
        super().__init__()
        self.dials = 0
        self.reachable = trio.Event()
        self.reachable.set()

    async def dial(self, place):
        self.dials += 1
        await self.reachable.wait()
        return await super().dial(place)


@pytest.fixture
def fabric():
    return Fabric()


@pytest.fixture
def place(fabric, nursery):
    return Place(Carriers(fabric), "memory:server", nursery)


def test_rests_double_up_to_the_longest():
    assert [rest_ms(n, 0.999999) for n in (1, 2, 3, 4, 5, 6, 7)] == [50, 100, 200, 400, 800, 1600, 2000]
    assert rest_ms(10**6, 0.999999) == REDIAL_MS_MAX
    assert [rest_ms(n, 0.0) for n in (1, 2)] == [25, 50]


async def test_many_callers_share_one_dial(place, fabric, autojump_clock):
    server = await place.start()
    fabric.reachable = trio.Event()
    async with place.network() as network, trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(network.call, server.address, ECHO, Number(n))
        await trio.sleep(1)
        fabric.reachable.set()
    assert fabric.dials == 1


async def test_a_caller_that_gives_up_does_not_end_the_dial(place, fabric, autojump_clock):
    server = await place.start()
    fabric.reachable = trio.Event()
    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(partial(network.call, server.address, ECHO, Number(1), timeout_ms=4_000))
        with trio.move_on_after(1):
            await network.call(server.address, ECHO, Number(2))
        with pytest.raises(DeadlineExceeded):
            await network.call(server.address, ECHO, Number(3), timeout_ms=500)
        fabric.reachable.set()
    assert fabric.dials == 1


async def test_a_dial_that_hangs_is_given_up(place, fabric, autojump_clock):
    fabric.reachable = trio.Event()
    async with place.network() as network:
        with pytest.raises(PeerUnreachable, match="no connection within 5000 ms"):
            await network.call("memory:server", ECHO, Number(1))
    assert trio.current_time() >= 5


async def test_an_address_rests_after_a_failed_dial(place, fabric, autojump_clock):
    async with open_network(place.carriers, Hello(), chance=lambda: 0.999999) as network:
        for expected_dials, pause in ((1, 0.04), (1, 0.02), (2, 0.09), (2, 0.02), (3, 0.21)):
            with pytest.raises(PeerUnreachable, match="nobody listens"):
                await network.call("memory:server", ECHO, Number(1))
            assert fabric.dials == expected_dials
            await trio.sleep(pause)
        server = Server()
        server.service.counters.clear()
        await place.start(server, cluster_id=b"")
        assert (await network.call("memory:server", ECHO, Number(2))).body == Number(2)
        # Success ends the back-off: the next failure rests for the shortest time again.
        server.scope.cancel()
        await trio.sleep(0.001)
        with pytest.raises(PeerUnreachable):
            await network.call("memory:server", ECHO, Number(3))
        await trio.sleep(0.051)
        await place.start(cluster_id=b"")
        assert (await network.call("memory:server", ECHO, Number(4))).body == Number(4)


async def test_calls_fail_at_once_when_the_server_dies_and_work_when_it_is_back(place, autojump_clock):
    first = await place.start()
    async with place.network() as network, trio.open_nursery() as nursery:

        async def call():
            with pytest.raises(PeerUnreachable):
                await network.call("memory:server", WAIT, Number(1))

        nursery.start_soon(call)
        await trio.sleep(0.1)
        first.scope.cancel()
        await trio.sleep(0.1)
        assert not nursery.child_tasks
        await place.start()
        assert (await network.call("memory:server", ECHO, Number(2))).body == Number(2)


async def test_a_notification_dials_in_the_background(place, fabric, autojump_clock):
    server = await place.start()
    async with place.network() as network:
        await network.notify("memory:server", NOTE, Number(1))
        await trio.sleep(0.1)
        await network.notify("memory:server", NOTE, Number(2))
        await trio.sleep(0.1)
    assert server.notes == [2]
    assert fabric.dials == 1


async def test_dropping_during_the_dial(place, fabric, autojump_clock):
    fabric.reachable = trio.Event()
    async with place.network() as network, trio.open_nursery() as nursery:

        async def call():
            with pytest.raises(PeerUnreachable, match="dropped"):
                await network.call("memory:server", ECHO, Number(1))

        nursery.start_soon(call)
        await trio.sleep(0.1)
        await network.drop("memory:server")


async def test_too_many_peers(place, monkeypatch):
    monkeypatch.setattr(network_module, "CONNECTIONS_MAX", 2)
    async with place.network() as network:
        for name in ("a", "b"):
            with pytest.raises(PeerUnreachable):
                await network.call(f"memory:{name}", ECHO, Number(1))
        with pytest.raises(Overloaded):
            await network.call("memory:c", ECHO, Number(1))
        await network.drop("memory:a")
        with pytest.raises(PeerUnreachable):
            await network.call("memory:c", ECHO, Number(1))


async def test_an_address_that_never_works_is_the_users_mistake(place):
    async with place.network() as network:
        with pytest.raises(UserError, match="must begin with"):
            await network.call("ftp:server", ECHO, Number(1))


async def test_callers_keep_their_own_deadlines_when_the_server_is_deaf(place, autojump_clock):
    server = Server()

    async def deaf(call, request, payload):
        with trio.CancelScope(shield=True):  # not even its deadline stops it
            await trio.sleep(request.value)
        return request

    server.service.add(DEAF, deaf)
    await place.start(server)
    ended = {}

    async def call(network, timeout_ms):
        with pytest.raises(DeadlineExceeded):
            await network.call(server.address, DEAF, Number(20), timeout_ms=timeout_ms)
        ended[timeout_ms] = trio.current_time()

    async with place.network() as network:
        await network.call(server.address, DEAF, Number(0))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for timeout_ms in (9_000, 300, 4_000):
                nursery.start_soon(call, network, timeout_ms)
                await trio.lowlevel.checkpoint()
        for timeout_ms, end in ended.items():
            assert end - began == pytest.approx(timeout_ms / 1000, abs=0.01)
        await trio.sleep(20)  # the late answers come, and their credits with them
        await network.call(server.address, ECHO, Number(1))
    assert server.service.counters["connections"] == 1
