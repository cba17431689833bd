"""What breaks a verbs connection, and that it breaks like any other: PeerUnreachable, soon, and the next dial works."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from harness.echo_server import ECHO, KEEP, Number, Place
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import KIB, MIB, RDMA_BULK_SLOT_BYTES, RDMA_CREDITS
from shoalfs.transport.method import Method
from shoalfs.transport.rdma_link import VerbsLink
from shoalfs.transport.rdma_memory import OUT_AT, Pool
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


GIVE = Method(60, "test.give", Number, Number, 0, 64 * MIB)

PEER = """
import os, signal, sys, trio
from harness.echo_server import Place, Server
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.limits import MIB
from shoalfs.transport.method import Method
from harness.echo_server import Number

transport, dies_when = sys.argv[1:]

def mortal(link):
    '''The process dies in the middle of what is received, or of what is sent.'''
    received = 0
    receive_into, drain = link.receive_into, link.drain

    async def receive(view):
        nonlocal received
        count = await receive_into(view)
        received += count
        if dies_when == "receiving" and received > 5 * MIB:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    async def send_the_rest():
        if dies_when == "sending":  # the first part is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        await drain()

    link.receive_into, link.drain = receive, send_the_rest
    return link

class Mortal(Carriers):
    async def listen(self, address):
        listener = await super().listen(address)
        accept = listener.accept
        async def accept_mortal():
            return mortal(await accept())
        listener.accept = accept_mortal
        return listener

async def give(call, request, payload):
    return request, bytes(64 * MIB)

async def main():
    async with trio.open_nursery() as nursery:
        server = Server()
        server.service.add(Method(60, "test.give", Number, Number, 0, 64 * MIB), give)
        await Place(Mortal.standard(None, transport), "tcp:127.0.0.1:0", nursery).start(server)
        print(server.address, flush=True)

trio.run(main)
"""


@pytest.mark.parametrize("transport", ["rdma", "tcp"])  # which is to make no difference
@pytest.mark.parametrize("dies_when", ["receiving", "sending"])
async def test_the_peer_dies_in_the_middle_of_a_bulk_transfer(nursery, transport, dies_when):
    place = Place(Carriers.standard(None, transport), PLACE, nursery)
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:tests"}
    command = [sys.executable, "-c", PEER, transport, dies_when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as peer:  # noqa: ASYNC220 - starts first
        try:
            address = (await trio.to_thread.run_sync(peer.stdout.readline)).decode().strip()
            async with place.network() as network:
                await network.call(address, ECHO, Number(1))
                if dies_when == "receiving":
                    call = partial(network.call, address, ECHO, Number(2), bytes(64 * MIB), timeout_ms=60_000)
                else:
                    call = partial(network.call, address, GIVE, Number(2), timeout_ms=60_000)
                await fails_within(60, call)
                with pytest.raises(PeerUnreachable):  # nobody is there any more
                    await network.call(address, ECHO, Number(3))
        finally:
            peer.kill()
    server = await place.start()
    async with place.network() as network:  # and the memory serves the next one
        reply = await network.call(server.address, ECHO, Number(3), bytes(3 * MIB))
        assert reply.payload == bytes(3 * MIB)


async def test_a_key_that_is_revoked_during_a_write_path(place):
    ours, theirs = await linked()
    await send(ours, b"head", bytes(MIB))
    ours._path._pair.outgoing.close()
    assert await theirs.receive_into(memoryview(bytearray(4))) == 4
    text = await fails_within(60, partial(receive_all, theirs, MIB))
    assert "rem access" in text, text
    theirs.close()
    ours.close()


async def test_a_key_that_is_revoked_during_a_read_path():
    ours, theirs = await linked()
    ours._path._pair.landing.close()

    async def answer():
        await send(theirs, b"head", bytes(MIB))
        await receive_all(theirs, 1)

    text = await fails_within(60, answer)
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

    text = await fails_within(60, flood)
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
    with pytest.raises(Exception, match="credits do not add up"), trio.fail_after(60):
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

    text = await fails_within(60, ask)
    assert "retry exc" in text, text
    ours.close()
    theirs.close()


async def test_a_completion_queue_that_overflows(monkeypatch):
    """Sized for the credits it cannot. One that is too small ends the connection, and no message of it is skipped."""
    monkeypatch.setattr("shoalfs.transport.rdma._COMPLETIONS_MAX", 8)
    ours, theirs = await linked()

    sent = b"".join(n.to_bytes(4, "little") for n in range(2000))

    async def flood():
        for start in range(0, len(sent), 4):
            await send(ours, sent[start : start + 4])
        await receive_all(ours, 1)

    await fails_within(60, flood)
    got, view = bytearray(), memoryview(bytearray(64 * KIB))
    with suppress(PeerUnreachable), trio.move_on_after(2):
        while count := await theirs.receive_into(view):
            got += view[:count]
    assert sent.startswith(got)
    assert len(got) < len(sent)
    ours.close()
    theirs.close()


async def test_a_partial_write_is_never_seen():
    """The acceptor writes into the dialler's memory, whole slots and a part of one, and dies before it says so."""
    ours, theirs = await linked()
    pair = theirs._path._pair
    landing = ours._path._pair.bulk_in
    requests = pair._requests
    from shoalfs.transport.rdma import _aim as aim
    from shoalfs.transport.rdma_ports import verbs

    for slot, size in ((0, RDMA_BULK_SLOT_BYTES), (1, 100 * KIB)):
        pair.bulk_out(slot)[:size] = bytes([slot + 1]) * size
        write = requests.read  # a request that is not chained to a SEND
        aim(requests.read_part, pair._block.address + OUT_AT + slot * RDMA_BULK_SLOT_BYTES, size, pair._key)
        write.opcode, write.send_flags, write.wr_id = verbs.IBV_WR_RDMA_WRITE, 0, 0
        address, key = pair._peer_landing
        write.set_wr_rdma(key, address + slot * RDMA_BULK_SLOT_BYTES)
        pair._post(write)
    with trio.fail_after(60):
        while landing(0)[-1] != 1 or landing(1)[100 * KIB - 1] != 2:  # it is there
            await trio.sleep(0.01)
    theirs._path._pair.close()
    await fails_or_ends(ours)
    ours.close()


async def fails_or_ends(link):
    """The stream ends, as that of TCP does when the peer has died, with not one byte."""
    with trio.fail_after(60), suppress(PeerUnreachable):
        assert await link.receive_into(memoryview(bytearray(MIB))) == 0


async def test_a_connection_that_broke_is_dialled_again(place):
    server = await place.start()
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(1))
        connection = network._peers[server.address].connection
        break_pair(connection._link)
        with pytest.raises(PeerUnreachable):
            await network.call(server.address, KEEP, Number(2))
        with trio.fail_after(60):
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


def test_memory_in_huge_pages():
    """Where the administrator set some aside. Registered and used like any other."""
    amount = Path("/proc/sys/vm/nr_hugepages")
    if not amount.exists():
        pytest.skip("NOT RUN: this kernel has no huge pages")
    from shoalfs.transport.rdma_device import Device

    before = amount.read_text()
    amount.write_text("12")
    try:
        pool = Pool(4)
        assert pool.huge
        block = pool.take()
        device = Device("rxe0")
        region = device.register(block)
        assert region.lkey
        device.close()
        pool.give_back(block)
    finally:
        amount.write_text(before)


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
    with trio.fail_after(60):
        while len(free) < settled:
            await trio.sleep(0.05)
