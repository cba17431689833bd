"""What breaks a verbs connection, and that it breaks like any other: PeerUnreachable, soon, and the next dial works."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import trio

from harness.echo_server import ECHO, KEEP, Number, Place
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import KIB, MIB, RDMA_CREDITS
from shoalfs.transport.rdma_link import VerbsLink
from shoalfs.transport.rdma_setup import Accepted, Dialled
from shoalfs.transport.rdma_wire import HEADER_BYTES, MessageHeader, encode_header

PLACE = "tcp:127.0.0.1:0"


@pytest.fixture
def place(nursery):
    return Place(Carriers.standard(None, "rdma"), PLACE, nursery)


async def linked():
    """Both ends of one verbs connection."""
    carriers = Carriers.standard(None, "rdma")
    listener = await carriers.listen(PLACE)
    ends = []

    async def accept():
        link = await listener.accept()
        await link.handshake()
        assert await link.receive_into(memoryview(bytearray(100))) == 5
        ends.append(link)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        ours = await carriers.dial(listener.address)
        await ours.handshake()
        assert ours.send_now([b"hello"])
    listener.close()
    (theirs,) = ends
    assert isinstance(ours, Dialled)
    assert isinstance(theirs, Accepted)
    assert isinstance(ours._path, VerbsLink)
    assert isinstance(theirs._path, VerbsLink)
    return ours, theirs


async def receive_all(link, count):
    view = memoryview(bytearray(64 * KIB))
    while count:
        got = await link.receive_into(view[: min(count, len(view))])
        if not got:
            raise PeerUnreachable("the stream ended")
        count -= got


async def send(link, *buffers):
    if not link.send_now(buffers):
        await link.drain()


async def fails_within(seconds, what):
    with trio.fail_after(seconds), pytest.raises(PeerUnreachable) as met:
        await what()
    return str(met.value)


PEER = """
import sys, trio
from harness.echo_server import Place
from shoalfs.transport.carrier import Carriers
async def main():
    async with trio.open_nursery() as nursery:
        server = await Place(Carriers.standard(None, "rdma"), "tcp:127.0.0.1:0", nursery).start()
        print(server.address, flush=True)
trio.run(main)
"""


@pytest.mark.parametrize("killed_at_ms", [20, 150])
async def test_the_peer_dies_in_the_middle_of_a_bulk_transfer(place, killed_at_ms):
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:tests"}
    with subprocess.Popen(  # noqa: ASYNC220 - it starts before anything else runs
        [sys.executable, "-c", PEER], stdout=subprocess.PIPE, env=environment
    ) as peer:
        address = (await trio.to_thread.run_sync(peer.stdout.readline)).decode().strip()
        async with place.network() as network:
            await network.call(address, ECHO, Number(1))

            async def kill():
                await trio.sleep(killed_at_ms / 1000)
                os.kill(peer.pid, signal.SIGKILL)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                began = time.monotonic()
                await fails_within(5, partial(network.call, address, ECHO, Number(2), bytes(64 * MIB)))
                assert time.monotonic() - began < 4
    server = await place.start()
    async with place.network() as network:  # and the memory serves the next one
        reply = await network.call(server.address, ECHO, Number(3), bytes(3 * MIB))
        assert reply.payload == bytes(3 * MIB)


async def test_a_key_that_is_revoked_during_a_write_path(place):
    ours, theirs = await linked()
    await send(ours, b"head", bytes(MIB))
    ours._path._pair.outgoing.close()
    assert await theirs.receive_into(memoryview(bytearray(4))) == 4
    text = await fails_within(5, partial(receive_all, theirs, MIB))
    assert "rem access" in text, text
    theirs.close()
    ours.close()


async def test_a_key_that_is_revoked_during_a_read_path():
    ours, theirs = await linked()
    ours._path._pair.landing.close()

    async def answer():
        await send(theirs, b"head", bytes(MIB))
        await receive_all(theirs, 1)

    text = await fails_within(5, answer)
    assert "rem access" in text, text
    theirs.close()
    ours.close()


def break_pair(link):
    """As if the device had found a fault."""
    from pyverbs.qp import QPAttr

    from shoalfs.transport.rdma_ports import verbs

    link._path._pair._pair.modify(QPAttr(qp_state=verbs.IBV_QPS_ERR), verbs.IBV_QP_STATE)


def rogue_message(link):
    """Send a message without a credit for it."""
    pair = link._path._pair
    encode_header(MessageHeader(1, 0, 0, 0, end=False), pair.message())
    pair.post_message(HEADER_BYTES + 1, None, 0, last=True)


async def test_a_peer_without_receives_is_not_waited_for():
    """The acceptor sends more than there are receives; the dialler, which is not read, posts none again."""
    ours, theirs = await linked()

    async def flood():
        for _ in range(RDMA_CREDITS + 8):
            rogue_message(theirs)
        await receive_all(theirs, 1)

    text = await fails_within(5, flood)
    assert "rnr retry exc" in text, text
    theirs.close()
    ours.close()


async def test_a_peer_that_ignores_its_credits_is_cut_off():
    """Its surplus came out of the shared receives; they are given back."""
    ours, theirs = await linked()
    for _ in range(RDMA_CREDITS - 4):
        rogue_message(ours)
    await trio.sleep(0.5)
    spare = theirs._path._pair._receives
    theirs._path._flow._held = RDMA_CREDITS - 3  # as if the others were not taken yet
    for _ in range(8):
        rogue_message(ours)
    with pytest.raises(Exception, match="credits do not add up"), trio.fail_after(5):
        while True:
            theirs._path._progress()
            await trio.sleep(0.01)
    theirs.close()
    ours.close()
    assert spare is not None


async def test_retries_that_are_exceeded():
    """The other queue pair is gone, its TCP connection is not: as if the fabric had lost the path."""
    ours, theirs = await linked()
    break_pair(theirs)

    async def ask():
        await send(ours, b"are you there")
        for _ in range(20):  # a send that is not signalled is only seen to fail with one that is
            rogue_message(ours)
        await receive_all(ours, 1)

    text = await fails_within(8, ask)
    assert "retry exc" in text, text
    ours.close()


async def test_a_completion_queue_that_overflows(monkeypatch):
    """Sized for the credits it cannot; with one that is too small the connection ends instead of losing a message."""
    monkeypatch.setattr("shoalfs.transport.rdma._COMPLETIONS_MAX", 8)
    ours, theirs = await linked()

    async def flood():
        for n in range(2000):
            await send(ours, n.to_bytes(4, "little"))
        await receive_all(ours, 1)

    text = await fails_within(10, flood)
    assert text
    ours.close()
    theirs.close()


async def test_a_partial_write_is_never_seen():
    """Bulk that was written but not announced is not part of the stream."""
    ours, theirs = await linked()
    pair = theirs._path._pair
    post = pair._post
    pair._post = lambda request: None  # the write and its announcement are lost together; nothing may be taken
    await send(theirs, b"head", bytes(MIB))
    pair._post = post
    theirs._path._pair.close()
    with trio.fail_after(5), pytest.raises(PeerUnreachable):
        await receive_all(ours, 1)
    ours.close()


async def test_a_connection_that_broke_is_dialled_again(place):
    server = await place.start()
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(1))
        connection = network._peers[server.address].connection
        break_pair(connection._link)
        with pytest.raises(PeerUnreachable):
            await network.call(server.address, KEEP, Number(2), timeout_ms=8000)
        with trio.fail_after(10):
            while True:
                try:
                    assert (await network.call(server.address, ECHO, Number(3), bytes(MIB))).payload == bytes(MIB)
                    break
                except PeerUnreachable:
                    await trio.sleep(0.05)


async def test_with_certificates_over_the_devices_own_address(nursery, tmp_path):
    import trustme

    from shoalfs.transport.tls import TlsPaths

    address = os.environ["SHOAL_TEST_RDMA"]
    authority = trustme.CA()
    certificate = authority.issue_cert(address)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    paths = TlsPaths(*(str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")))
    for transport in ("auto", "rdma"):
        place = Place(Carriers.standard(paths, transport), f"tcp:{address}:0", nursery)
        server = await place.start()
        async with place.network() as network:
            payload = os.urandom(3 * MIB)
            assert (await network.call(server.address, ECHO, Number(1), payload)).payload == payload
            assert "verbs rxe0" in repr(network._peers[server.address].connection)


async def test_auto_takes_tcp_where_the_peer_declines(nursery):
    server = await Place(Carriers.standard(None, "tcp"), PLACE, nursery).start()
    refusing = Place(Carriers.standard(None, "rdma"), PLACE, nursery)
    async with refusing.network() as network:
        with pytest.raises(PeerUnreachable, match='transport is "tcp"'):
            await network.call(server.address, ECHO, Number(1))
    async with Place(Carriers.standard(None, "auto"), PLACE, nursery).network() as network:
        assert (await network.call(server.address, ECHO, Number(1))).body == Number(1)


async def test_memory_comes_back_after_many_connections(place):
    from shoalfs.transport.rdma import process_verbs

    server = await place.start()
    free = process_verbs().pool._free
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(0))  # the shared receives keep a block
    await trio.sleep(2.5)  # longer than a closed connection lingers
    settled = len(free)
    for n in range(20):
        async with place.network() as network:
            await network.call(server.address, ECHO, Number(n), bytes(20 * KIB))
    with trio.fail_after(5):
        while len(free) < settled:
            await trio.sleep(0.05)
