"""What is chosen for a connection, and why: over TCP on the loopback, with devices of the test's own."""

import socket

import pytest
import trio

from harness.echo_server import ECHO, Number, Place, Server
from harness.verbs import SimulatedDevices
from shoalfs.transport import rdma_rest, rdma_setup
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import KIB
from shoalfs.transport.links import LINKS, GetLinks
from shoalfs.transport.rdma_setup import Choice, Transport
from shoalfs.transport.rdma_table import DevicePort, Gid, NoVerbs, choose_port, gid_of
from shoalfs.transport.tcp import TcpCarrier

PLACE = "tcp:127.0.0.1:0"


def roce(*ips, state="active", name="rxe0", v2=True):
    return DevicePort(name, 1, state, False, 5, 0, tuple(Gid(n, gid_of(ip), v2) for n, ip in enumerate(ips)))


IB = DevicePort("mlx5_0", 1, "active", True, 5, 7, (Gid(0, bytes.fromhex("fe80000000000000b8599f0300fc6b3e"), False),))


@pytest.mark.parametrize(
    ("table", "ip", "found"),
    [
        ([roce("fe80::1", "10.1.2.3")], "10.1.2.3", ("rxe0", 1)),
        ([roce("10.1.2.3"), roce("10.1.2.4", name="rxe1")], "10.1.2.4", ("rxe1", 0)),
        ([roce("10.1.2.3"), roce("fd00::4", name="rxe1")], "fd00::4", ("rxe1", 0)),
        ([roce("fe80::1", "10.1.2.3")], "127.0.0.1", ("rxe0", 1)),  # any device of this machine reaches this machine
        ([roce("10.1.2.3", state="down"), IB], "10.1.2.3", ("mlx5_0", 0)),  # IPoIB addresses are not in the GIDs
    ],
)
def test_which_port_serves_an_address(table, ip, found):
    port = choose_port(table, ip)
    assert (port.device, port.gid_index) == found


@pytest.mark.parametrize(
    ("table", "ip", "reason"),
    [
        ([], "10.1.2.3", "no RDMA device here"),
        ([roce("10.1.2.3", state="down")], "10.1.2.3", "no port of an RDMA device is active here: rxe0/1 down"),
        ([roce("10.1.2.3")], "10.1.2.4", "no RDMA device here carries 10.1.2.4"),
        ([roce("10.1.2.3", v2=False)], "10.1.2.3", "no RDMA device here carries 10.1.2.3"),
        ([roce("fe80::1")], "127.0.0.1", "no RDMA device here carries 127.0.0.1"),
    ],
)
def test_why_no_port_does(table, ip, reason):
    with pytest.raises(NoVerbs) as met:
        choose_port(table, ip)
    assert str(met.value) == reason


@pytest.fixture
def not_loopback(monkeypatch):
    """As if 127.0.0.1 were an address between machines."""
    monkeypatch.setattr(rdma_setup, "_is_loopback", lambda ip: False)


class Both:
    """A dialler and an acceptor, with the devices and the wish of each."""

    def __init__(self, nursery, dialler, acceptor):
        self.devices = SimulatedDevices(nursery, [roce("127.0.0.1")])
        self.server = Server()
        self._nursery = nursery
        self._dialler, self._acceptor = dialler, acceptor

    def place(self, transport, devices=None):
        choice = Choice(Transport(transport), self.devices if devices is None else devices)
        return Place(Carriers(TcpCarrier(None, choice)), PLACE, self._nursery)

    async def chosen(self, dialler_devices=None, acceptor_devices=None):
        """Make a call; what the server then says of that connection."""
        await self.place(self._acceptor, acceptor_devices).start(self.server)
        async with (
            self.place(self._dialler, dialler_devices).network() as network,
            self.place("tcp").network(role="admin", name="operator") as operator,
        ):
            payload = bytes(300 * KIB)
            reply = await network.call(self.server.address, ECHO, Number(1), payload)
            assert reply.payload == payload
            told = (await operator.call(self.server.address, LINKS, GetLinks())).body
            (link,) = [link for link in told.links if link.name != "operator"]
            return link


@pytest.mark.parametrize("dialler", ["auto", "rdma"])
@pytest.mark.parametrize("acceptor", ["auto", "rdma"])
async def test_verbs_where_both_have_them(nursery, not_loopback, dialler, acceptor):
    link = await Both(nursery, dialler, acceptor).chosen()
    assert (link.carrier, link.device, link.reason) == ("verbs", "rxe0", "")
    assert link.counters["bulk_received_bytes"] >= 256 * KIB
    assert link.counters["bulk_sent_bytes"] >= 256 * KIB


@pytest.mark.parametrize(
    ("dialler", "acceptor", "reason"),
    [
        ("tcp", "auto", "the dialler did not ask for verbs"),
        ("auto", "tcp", 'the peer declined: transport is "tcp"'),
        ("tcp", "tcp", 'transport is "tcp"'),
    ],
)
async def test_tcp_where_one_does_not_want_verbs(nursery, not_loopback, dialler, acceptor, reason):
    link = await Both(nursery, dialler, acceptor).chosen()
    assert (link.carrier, link.device, link.reason, link.counters) == ("tcp", "", reason, {})


async def test_tcp_on_the_loopback(nursery):
    link = await Both(nursery, "auto", "auto").chosen()
    assert (link.carrier, link.reason) == ("tcp", "a loopback address")


async def test_tcp_where_one_has_no_device(nursery, not_loopback):
    without = SimulatedDevices(nursery, [])
    link = await Both(nursery, "auto", "auto").chosen(dialler_devices=without)
    assert (link.carrier, link.reason) == ("tcp", "no RDMA device here")
    link = await Both(nursery, "auto", "auto").chosen(acceptor_devices=without)
    assert (link.carrier, link.reason) == ("tcp", "the peer declined: no RDMA device here")


async def test_tcp_where_the_device_reaches_nobody(nursery, not_loopback, monkeypatch):
    monkeypatch.setattr(rdma_setup, "RDMA_PROBE_MS", 50)
    both = Both(nursery, "auto", "auto")
    both.devices.cut = True
    link = await both.chosen()
    assert (link.carrier, link.reason) == ("tcp", "the verbs path carried nothing within 50 ms")


async def test_tcp_where_the_registered_memory_is_used_up(nursery, not_loopback):
    both = Both(nursery, "auto", "auto")
    for _ in range(8):
        both.devices.pair("127.0.0.1", 0, "another", pulls=False)
    link = await both.chosen()
    assert (link.carrier, link.reason) == ("tcp", "all registered memory is in use")


async def test_after_verbs_broke_tcp_is_taken_for_a_while(nursery, not_loopback):
    now = 0.0
    both = Both(nursery, "auto", "auto")
    await both.place("auto").start(both.server)
    choice = Choice(Transport.AUTO, both.devices, lambda: now)
    place = Place(Carriers(TcpCarrier(None, choice)), PLACE, nursery)

    async def carried():
        async with place.network() as network:
            reply = await network.call(both.server.address, ECHO, Number(1), bytes(100 * KIB))
            assert reply.payload == bytes(100 * KIB)
            (connection,) = [one for one in both.server.service.accepted if one.peer.name == "test"]
            for pair in list(both.devices.made.values()):
                if not pair.closed and not pair.pulls:
                    pair.fail()  # while the peer is there
                    with pytest.raises(PeerUnreachable, match="broken"):
                        await network.call(both.server.address, ECHO, Number(2))
            return connection.status

    assert (await carried()).carrier == "verbs"
    now = 20.0
    status = await carried()
    assert status.carrier == "tcp"
    assert status.reason.startswith("verbs broke: ")
    assert status.reason.endswith("tried again by a dial in 40 s")
    now = 61.0
    assert (await carried()).carrier == "verbs"


async def test_a_peer_that_died_is_no_reason_to_leave_verbs(nursery, not_loopback):
    """Its end may show in the device first."""
    both = Both(nursery, "auto", "auto")
    await both.place("auto").start(both.server)
    place = both.place("auto")
    async with place.network() as network:
        await network.call(both.server.address, ECHO, Number(1))
        (connection,) = both.server.service.accepted
        both.devices.made[2].beside._sock.shutdown(socket.SHUT_RDWR)
        both.devices.made[1].fail()
        with pytest.raises(PeerUnreachable):
            await network.call(both.server.address, ECHO, Number(2))
        await network.wait_broken(both.server.address)
        await network.call(both.server.address, ECHO, Number(3))
        assert {one.status.carrier for one in both.server.service.accepted if one is not connection} == {"verbs"}


def test_places_that_rest_are_bounded(monkeypatch):
    monkeypatch.setattr(rdma_rest, "CONNECTIONS_MAX", 3)
    rests = rdma_rest.Rests()
    for n in range(5):
        rests.begin(f"tcp:{n}", "broke", n)
    assert [bool(rests.reason(f"tcp:{n}", 5)) for n in range(5)] == [False, False, True, True, True]
    rests.begin("tcp:2", "broke again", 50)
    assert rests.reason("tcp:3", 64) == ""
    assert rests.reason("tcp:2", 64) == "broke again; tried again by a dial in 46 s"


@pytest.mark.parametrize("why", ["peer", "device", "path"])
async def test_rdma_or_nothing(nursery, not_loopback, monkeypatch, why):
    monkeypatch.setattr(rdma_setup, "RDMA_PROBE_MS", 50)
    both = Both(nursery, "rdma", "tcp" if why == "peer" else "auto")
    both.devices.cut = why == "path"
    without = SimulatedDevices(nursery, []) if why == "device" else None
    with pytest.raises(ExceptionGroup) as met:
        await both.chosen(dialler_devices=without)
    error = met.value
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, PeerUnreachable)
    assert str(error).startswith("tcp:127.0.0.1:")
    reason = {
        "peer": 'the peer declined: transport is "tcp"',
        "device": "no RDMA device here",
        "path": "the verbs path carried nothing within 50 ms",
    }[why]
    assert str(error).endswith(f': transport is "rdma", but: {reason}')
    assert "\n" not in str(error)


async def test_a_process_without_the_binding_says_so(nursery, not_loopback, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "shoalfs.transport.rdma", None)  # importing it fails
    choice = Choice(Transport.AUTO)
    with pytest.raises(PeerUnreachable, match="pyverbs cannot be loaded"), socket.socket() as sock:
        choice.pair(sock, "x", pulls=False)


async def test_only_an_operator_is_told_of_links(nursery):
    both = Both(nursery, "tcp", "tcp")
    await both.place("tcp").start(both.server)
    async with both.place("tcp").network() as network:
        with pytest.raises(Exception, match=r"net\.links"):
            await network.call(both.server.address, LINKS, GetLinks())


async def test_an_ended_connection_is_not_told_of(nursery, until_gone):
    both = Both(nursery, "tcp", "tcp")
    await both.chosen()
    await until_gone(lambda: not both.server.service.accepted)


@pytest.fixture
def until_gone():
    async def wait_until(condition):
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.002)

    return wait_until
