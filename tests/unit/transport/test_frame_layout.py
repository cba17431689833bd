"""The layout of a frame is a contract with peers of other releases: these bytes must never change."""

import pytest

from shoalfs.transport.aligned import is_aligned
from shoalfs.transport.errors import ProtocolViolation
from shoalfs.transport.frame import (
    HEADER_BYTES,
    LARGE_BODY_BYTES,
    Decoder,
    Header,
    Kind,
    decode_header,
    encode_head,
)
from shoalfs.transport.limits import ALIGNED_PAYLOAD_BYTES_MIN, CONTROL_BYTES_MAX, MIB, RECEIVE_SCRATCH_BYTES

GOLDEN = (
    "8953484c" "01" "02" "0000" "6400" "0000" "0700000000000000" "03000000" "00004000" "10270000"
)  # fmt: skip


def test_a_request_is_these_bytes():
    head = encode_head(Kind.REQUEST, b"abc", method=100, request_id=7, payload_bytes=4 * MIB, deadline_ms=10_000)
    assert head[:32].hex() == GOLDEN
    assert head[36:] == b"abc"
    assert HEADER_BYTES == 36
    assert decode_header(head) == Header(Kind.REQUEST, 100, 0, 7, 3, 4 * MIB, 10_000)


def test_the_checksum_is_these_bytes():
    assert encode_head(Kind.HELLO)[32:].hex() == "25a07d67"


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [(0, 0, "not a frame"), (4, 2, "frame version 2"), (8, 1, "checksum"), (35, 0xFF, "checksum")],
)
def test_what_is_wrong_is_said(position, value, text):
    header = bytearray(encode_head(Kind.REQUEST, request_id=1))
    header[position] = value
    with pytest.raises(ProtocolViolation, match=text):
        decode_header(header)


def received(decoder, data):
    view = decoder.writable()
    assert len(data) <= len(view)
    view[: len(data)] = data
    decoder.received(len(data))
    return view


def test_a_large_payload_is_received_into_its_own_memory():
    decoder = Decoder(lambda header: True)
    size = LARGE_BODY_BYTES * 4
    received(decoder, encode_head(Kind.REPLY, b"cc", payload_bytes=size) + b"p" * 100)
    assert decoder.next_frame() is None
    assert decoder.large is not None
    view = decoder.writable()
    assert decoder.large is None  # it is allocated now
    assert len(view) == size - 100  # exactly the rest of this frame, so that nothing is read beyond it
    view[:] = b"q" * len(view)
    decoder.received(len(view))
    frame = decoder.next_frame()
    assert frame.control == b"cc"
    assert frame.payload.obj is view.obj  # not copied
    assert bytes(frame.payload) == b"p" * 100 + b"q" * (size - 100)
    assert not decoder.inside_frame


@pytest.mark.parametrize("control_bytes", [0, 1, 27, 4095, 4096])
def test_a_payload_of_a_chunk_begins_where_a_page_does(control_bytes):
    decoder = Decoder(lambda header: True)
    payloads = []
    for number in range(3):
        size = ALIGNED_PAYLOAD_BYTES_MIN + number
        received(decoder, encode_head(Kind.REQUEST, b"c" * control_bytes, request_id=number, payload_bytes=size))
        assert decoder.next_frame() is None
        view = decoder.writable()
        view[:] = bytes([number]) * len(view)
        decoder.received(len(view))
        payloads.append(decoder.next_frame().payload)
    assert all(map(is_aligned, payloads))
    # Each is its own, and none is used again while somebody has it.
    assert all(payload == bytes([number]) * len(payload) for number, payload in enumerate(payloads))


def test_small_payloads_outlive_the_scratch_buffer():
    decoder = Decoder(lambda header: True)
    received(decoder, encode_head(Kind.REPLY, payload_bytes=3) + b"one")
    first = decoder.next_frame()
    received(decoder, encode_head(Kind.REPLY, payload_bytes=3) + b"two")
    assert bytes(decoder.next_frame().payload) == b"two"
    assert bytes(first.payload) == b"one"


def test_several_frames_of_one_read_are_judged_one_after_the_other():
    log = []
    decoder = Decoder(lambda header: log.append(("admit", header.request_id)) or True)
    received(decoder, b"".join(encode_head(Kind.REPLY, request_id=n) for n in (1, 2)))
    while (frame := decoder.next_frame()) is not None:
        log.append(("frame", frame.header.request_id))
    assert log == [("admit", 1), ("frame", 1), ("admit", 2), ("frame", 2)]


def test_an_unwanted_payload_is_skipped_without_memory():
    decoder = Decoder(lambda header: header.request_id != 1)
    received(decoder, encode_head(Kind.REPLY, b"c", request_id=1, payload_bytes=MIB))
    assert decoder.next_frame().payload.nbytes == 0
    left = MIB
    while left:
        assert decoder.inside_frame
        count = min(left, 50_000)
        assert len(received(decoder, bytes(count))) <= RECEIVE_SCRATCH_BYTES
        assert decoder.next_frame() is None
        left -= count
    decoder.end()
    received(decoder, encode_head(Kind.REPLY, request_id=2))
    assert decoder.next_frame().header.request_id == 2


def test_a_length_is_refused_before_anything_is_allocated():
    def admit(header):
        raise ProtocolViolation("too much")

    decoder = Decoder(admit)
    received(decoder, encode_head(Kind.REPLY, bytes(10), payload_bytes=64 * MIB))
    with pytest.raises(ProtocolViolation, match="too much"):
        decoder.next_frame()
    assert decoder.large is None


def test_our_own_frames_respect_the_limits():
    with pytest.raises(AssertionError):
        encode_head(Kind.REPLY, bytes(CONTROL_BYTES_MAX + 1))
