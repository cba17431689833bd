"""A peer that does not keep to the protocol loses its connection, and nobody else notices."""

import logging
import os

import msgspec
import pytest
import trio

from harness.echo_server import CLUSTER, ECHO, KEEP, WAIT, Number
from shoalfs.transport import outbox, rpc
from shoalfs.transport.errors import ShoalError, from_wire
from shoalfs.transport.frame import HEADER_BYTES, Decoder, Kind, encode_head
from shoalfs.transport.limits import MIB
from shoalfs.transport.session import Hello

ROGUE = Hello(cluster_id=CLUSTER, role="client", name="rogue")


def hello_bytes(hello=ROGUE):
    return encode_head(Kind.HELLO, msgspec.msgpack.encode(hello))


def request_bytes(request_id=1, method=ECHO, **fields):
    control = msgspec.msgpack.encode(Number(1))
    return encode_head(Kind.REQUEST, control, method=method.number, request_id=request_id, deadline_ms=1000, **fields)


def altered(frame, position, value):
    return frame[:position] + bytes([value]) + frame[position + 1 :]


async def send(link, data):
    if not link.send_now([data]):
        await link.drain()


async def greet(link):
    """Exchange hellos. Reads the server's, since a socket that is closed over unread bytes resets the connection."""
    await send(link, hello_bytes())
    assert await link.receive_into(memoryview(bytearray(1000)))


async def frames_until_closed(link):
    """What the server says until it closes, which it must do."""
    decoder = Decoder(lambda header: True)
    frames = []
    with trio.fail_after(30):
        try:
            while count := await link.receive_into(decoder.writable()):
                decoder.received(count)
                while (frame := decoder.next_frame()) is not None:
                    frames.append(frame)
        except ShoalError:
            pass  # a reset: the server closed while we were still sending
    return frames


BEFORE_HELLO = {
    "garbage": os.urandom(300),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(HEADER_BYTES, b" "),
    "request": request_bytes(),
    "huge hello": encode_head(Kind.HELLO, bytes(5000)),
    "hello with payload": encode_head(Kind.HELLO, msgspec.msgpack.encode(ROGUE), payload_bytes=10),
    "hello of another shape": encode_head(Kind.HELLO, msgspec.msgpack.encode({"a": 1})),
    "hello with a short cluster id": hello_bytes(Hello(cluster_id=b"abc")),
    "hello without credits": hello_bytes(Hello(cluster_id=CLUSTER, credits=0)),
    "wrong checksum": altered(hello_bytes(), HEADER_BYTES - 1, hello_bytes()[HEADER_BYTES - 1] ^ 1),
    "another frame version": altered(hello_bytes(), 4, 9),
}
AFTER_HELLO = {
    "garbage": os.urandom(300),
    "unknown kind": altered(request_bytes(), 5, 77),
    "second hello": hello_bytes(),
    "unasked reply": encode_head(Kind.REPLY, b"\x91\x01", request_id=5),
    "unasked error": encode_head(Kind.ERROR, b"text", request_id=5, status=2),
    "payload beyond the method's": request_bytes(method=WAIT, payload_bytes=1),
    "payload of 64 MiB for 4": request_bytes(method=KEEP, payload_bytes=64 * MIB),
    "request id 0": request_bytes(0),
    "request id in use": request_bytes(1, WAIT) + request_bytes(1, WAIT),
    "more than its credit": b"".join(request_bytes(n, WAIT) for n in range(1, 5)),
}


@pytest.mark.parametrize("data", BEFORE_HELLO.values(), ids=BEFORE_HELLO)
async def test_bad_bytes_before_the_hello(place, data, caplog):
    await check_that_only_the_rogue_suffers(place, data, caplog, greeted=False)


@pytest.mark.parametrize("data", AFTER_HELLO.values(), ids=AFTER_HELLO)
async def test_bad_bytes_after_the_hello(place, data, caplog):
    await check_that_only_the_rogue_suffers(place, hello_bytes() + data, caplog, greeted=True)


async def check_that_only_the_rogue_suffers(place, data, caplog, *, greeted):
    server = await place.start(credits=3)
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(1))
        link = await place.raw_link(server)
        with caplog.at_level(logging.WARNING, "shoal"):
            await send(link, data)
            frames = await frames_until_closed(link)
        link.close()
        assert (await network.call(server.address, ECHO, Number(2))).body == Number(2)
    kinds = [frame.header.kind for frame in frames]
    if frames:  # a closed socket may lose what it still had to say; see the next test for when it may not
        assert kinds == ([Kind.HELLO, Kind.ERROR] if greeted else [Kind.ERROR])
        assert frames[-1].header.request_id == 0
    assert server.service.counters["frames_bad"] == 1
    assert server.service.counters["connections"] == 2
    assert len(caplog.records) == 1, caplog.text


async def test_the_refusal_says_why(place):
    server = await place.start()
    link = await place.raw_link(server)
    await send(link, hello_bytes() + encode_head(Kind.REPLY, request_id=5))
    *_, last = await frames_until_closed(link)
    link.close()
    assert last.header.kind is Kind.ERROR
    assert "not asked" in str(from_wire(last.header.status, last.control.decode()))


@pytest.mark.parametrize("sent", [HEADER_BYTES // 2, HEADER_BYTES, HEADER_BYTES + 1])
async def test_a_frame_that_is_cut_off(place, until, sent):
    server = await place.start()
    link = await place.raw_link(server)
    await greet(link)
    await send(link, request_bytes(payload_bytes=10 * MIB)[:sent])
    link.close()
    await until(lambda: server.service.counters["frames_bad"] == 1)
    assert server.service.counters["requests"] == 0


async def test_death_in_the_middle_of_a_large_payload_gives_its_room_back(place, until, monkeypatch):
    rooms = []
    real_room = rpc.PayloadRoom
    monkeypatch.setattr(rpc, "PayloadRoom", lambda limit: rooms.append(real_room(limit)) or rooms[-1])
    server = await place.start()
    link = await place.raw_link(server)
    await greet(link)
    await send(link, request_bytes(payload_bytes=10 * MIB) + bytes(100_000))
    await until(lambda: rooms[0].held_bytes == 10 * MIB)
    link.close()
    await until(lambda: server.service.counters["frames_bad"] == 1)
    await until(lambda: rooms[0].held_bytes == 0)


async def test_a_stall_inside_a_frame(place, until, monkeypatch):
    for module in ("link", "rpc"):
        monkeypatch.setattr(f"shoalfs.transport.{module}.STALL_TIMEOUT_MS", 30)
    server = await place.start()
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(1))
        link = await place.raw_link(server)
        await send(link, hello_bytes() + request_bytes(payload_bytes=100))
        await frames_until_closed(link)
        link.close()
        await network.call(server.address, ECHO, Number(1))


async def test_no_hello_in_time(place, monkeypatch):
    monkeypatch.setattr(rpc, "HELLO_TIMEOUT_MS", 500)  # enough for a TLS handshake on a busy machine
    server = await place.start()
    link = await place.raw_link(server)
    await send(link, hello_bytes()[:10])
    assert await frames_until_closed(link) == []
    link.close()
    assert server.service.counters["hellos_missing"] == 1


async def test_a_look_at_the_port_is_no_offence(place, until, caplog):
    server = await place.start()
    link = await place.raw_link(server)
    link.close()
    with caplog.at_level(logging.WARNING, "shoal"):
        await until(lambda: server.service.counters["hellos_missing"] == 1)
    assert not caplog.records


async def test_an_answer_that_is_never_fetched_stops_the_intake(place, until, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_QUEUED_BYTES_MAX", 1 * MIB)
    server = await place.start()
    link = await place.raw_link(server)
    await send(link, hello_bytes())

    async def ask():
        for n in range(1, 100):
            await send(link, request_bytes(n, payload_bytes=MIB) + bytes(MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: server.service.counters["requests"] >= 1)
        await trio.sleep(0.1)
        assert server.service.counters["requests"] < 20
        nursery.cancel_scope.cancel()
    link.close()
