"""Frames survive any cutting of the stream, and no bytes at all get the decoder to do anything but refuse."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoalfs.transport.errors import ProtocolViolation
from shoalfs.transport.frame import HEADER_BYTES, LARGE_BODY_BYTES, Decoder, Kind, decode_header, encode_head
from shoalfs.transport.limits import CONTROL_BYTES_MAX, KIB, PAYLOAD_BYTES_MAX, RECEIVE_SCRATCH_BYTES

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
SIZES = st.one_of(
    st.integers(0, 200),
    st.integers(LARGE_BODY_BYTES - 2, LARGE_BODY_BYTES + 2),
    st.integers(RECEIVE_SCRATCH_BYTES - 40, RECEIVE_SCRATCH_BYTES + 2),
    st.integers(0, 200 * KIB),
)


@st.composite
def frames(draw):
    """A frame as it was meant: its encoded head, control, payload, and whether the receiver wants the payload."""
    control = bytes([draw(st.integers(0, 255))]) * draw(SIZES)
    payload = bytes([draw(st.integers(0, 255))]) * draw(SIZES)
    fields = {
        "method": draw(U16),
        "status": draw(U16),
        "request_id": draw(U64),
        "deadline_ms": draw(U32),
    }
    kind = draw(st.sampled_from(Kind))
    head = encode_head(kind, control, payload_bytes=len(payload), **fields)
    return kind, fields, head, control, payload, draw(st.booleans())


def feed(decoder, data, cuts):
    """Hand over ``data`` in pieces; yield the frames as they come."""
    position = turn = 0
    while position < len(data):
        view = decoder.writable()
        count = min(len(view), len(data) - position, cuts[turn % len(cuts)])
        view[:count] = data[position : position + count]
        decoder.received(count)
        position += count
        turn += 1
        while (frame := decoder.next_frame()) is not None:
            yield frame


@settings(deadline=None, max_examples=150)
@given(
    meant=st.lists(frames(), max_size=6),
    cuts=st.lists(st.one_of(st.integers(1, 100), st.integers(1, 100 * KIB)), min_size=1, max_size=10),
)
def test_any_cutting_yields_the_same_frames(meant, cuts):
    data = b"".join(head + payload for _, _, head, _, payload, _ in meant)
    if len(data) > 1000 and max(cuts) < 100:
        cuts = [cut * 50 for cut in cuts]  # the same, in fewer steps
    wishes = iter([wanted for *_, wanted in meant])
    decoder = Decoder(lambda header: next(wishes))
    got = list(feed(decoder, data, cuts))
    assert len(got) == len(meant)
    for frame, (kind, fields, _, control, payload, wanted) in zip(got, meant, strict=True):
        assert frame.header.kind is kind
        assert {name: getattr(frame.header, name) for name in fields} == fields
        assert frame.control == control
        assert frame.payload == (payload if wanted else b"")
        assert frame.header.payload_bytes == len(payload)
    assert not decoder.inside_frame
    decoder.end()


@settings(deadline=None, max_examples=100)
@given(meant=frames(), cut=st.integers(1, 10**9))
def test_a_stream_that_ends_inside_a_frame_is_a_violation(meant, cut):
    *_, head, _, payload, wanted = meant
    data = head + payload
    decoder = Decoder(lambda header: wanted)
    list(feed(decoder, data[: 1 + cut % (len(data) - 1)], [RECEIVE_SCRATCH_BYTES]))
    with pytest.raises(ProtocolViolation):
        decoder.end()


class Watched(Decoder):
    """Notes the largest buffer that the decoder offers."""

    def __init__(self, admit):
        super().__init__(admit)
        self.offered_most = 0

    def writable(self):
        view = super().writable()
        self.offered_most = max(self.offered_most, len(view))
        return view


CAP = 100 * KIB


def capped(header):
    if header.control_bytes + header.payload_bytes > CAP:
        raise ProtocolViolation("beyond the cap")
    return True


def survive(data, cuts):
    decoder = Watched(capped)
    try:
        list(feed(decoder, data, cuts))
        decoder.end()
    except ProtocolViolation:
        pass
    assert decoder.offered_most <= max(CAP, RECEIVE_SCRATCH_BYTES)


@given(data=st.binary(max_size=500), cut=st.integers(1, 100))
def test_arbitrary_bytes_are_refused(data, cut):
    survive(data, [cut])


@given(
    meant=frames(),
    changes=st.lists(st.tuples(st.integers(0, HEADER_BYTES + 10), st.integers(0, 255)), max_size=4),
    cut=st.integers(1, 10_000),
)
@settings(deadline=None)
def test_damaged_frames_are_refused_or_read(meant, changes, cut):
    data = bytearray(meant[2] + meant[4])
    for position, value in changes:
        data[position % len(data)] = value
    survive(bytes(data), [cut])


@given(control=U32, payload=U32, kind=st.integers(0, 255), flags=U16)
def test_a_header_with_a_right_checksum_is_still_held_to_the_limits(control, payload, kind, flags):
    import xxhash

    fields = struct.pack("<4sBBHHHQIII", b"\x89SHL", 1, kind, flags, 0, 0, 0, control, payload, 0)
    header = fields + struct.pack("<I", xxhash.xxh3_64_intdigest(fields) & 0xFFFFFFFF)
    good = control <= CONTROL_BYTES_MAX and payload <= PAYLOAD_BYTES_MAX and kind in set(Kind) and flags == 0
    if good:
        assert decode_header(header).control_bytes == control
    else:
        with pytest.raises(ProtocolViolation):
            decode_header(header)


@given(position=st.integers(0, HEADER_BYTES - 1), bit=st.integers(0, 7), meant=frames())
@settings(deadline=None)
def test_one_flipped_bit_in_a_header_is_noticed(position, bit, meant):
    header = bytearray(meant[2][:HEADER_BYTES])
    header[position] ^= 1 << bit
    with pytest.raises(ProtocolViolation):
        decode_header(header)
