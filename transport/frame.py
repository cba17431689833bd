"""Frames: how a message looks on the wire, and how it is cut out of a stream of bytes again. Pure.

A frame is a fixed header, then the control bytes (msgpack, or UTF-8 text in an error), then the raw payload. The
header's table is in docs/transport.md. This module does not know methods, credits or peers; whoever owns a
:class:`Decoder` says what it will take.

The one rule: a length is checked before a byte is allocated for it.

The header's checksum proves that the stream is still in step. It does not cover control and payload: between hosts
TLS does, and chunk data carry hashes of their own.
"""

import enum
import struct
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import xxhash

from shoalfs.transport.aligned import aligned
from shoalfs.transport.errors import ProtocolViolation
from shoalfs.transport.limits import (
    ALIGNED_PAYLOAD_BYTES_MIN,
    CONTROL_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    RECEIVE_SCRATCH_BYTES,
)

Buffer = bytes | bytearray | memoryview
Payload = Buffer | Sequence[Buffer]
"""Raw bytes that follow a message. Several buffers are sent one after the other, without joining them."""

FRAME_VERSION: Final = 1
MAGIC: Final = b"\x89SHL"  # not ASCII, so that no text protocol opens with it
_FIELDS: Final = struct.Struct("<4sBBHHHQIII")
_CHECKSUM: Final = struct.Struct("<I")
HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size
LARGE_BODY_BYTES: Final = RECEIVE_SCRATCH_BYTES // 2
"""A frame with a longer body gets a buffer of its own. Shorter ones always fit the scratch buffer and are copied."""


class Kind(enum.IntEnum):
    HELLO = 1  # the first frame of each side
    REQUEST = 2  # is answered by exactly one REPLY or ERROR with the same request id
    REPLY = 3
    ERROR = 4  # to a request; with request id 0 it is about the connection, which is closed after it
    NOTIFY = 5  # one way


_KINDS: Final = {int(kind): kind for kind in Kind}


class Header(msgspec.Struct, frozen=True, gc=False):
    """What precedes a frame's bytes. Fields that mean nothing to a kind are 0."""

    kind: Kind
    method: int  # REQUEST and NOTIFY
    status: int  # ERROR: the wire code
    request_id: int  # REQUEST, REPLY, ERROR
    control_bytes: int
    payload_bytes: int
    deadline_ms: int  # REQUEST: how long the caller still waits


class Frame(msgspec.Struct, frozen=True):
    """``payload`` is empty also if whoever owns the decoder did not want it (see :class:`Decoder`)."""

    header: Header
    control: bytes
    payload: memoryview


_NO_PAYLOAD: Final = memoryview(b"")


def encode_head(
    kind: Kind,
    control: bytes = b"",
    *,
    method: int = 0,
    status: int = 0,
    request_id: int = 0,
    payload_bytes: int = 0,
    deadline_ms: int = 0,
) -> bytes:
    """Header and control bytes of a frame. ``payload_bytes`` raw bytes must be sent right after them."""
    assert len(control) <= CONTROL_BYTES_MAX, len(control)
    assert payload_bytes <= PAYLOAD_BYTES_MAX, payload_bytes
    fields = _FIELDS.pack(
        MAGIC, FRAME_VERSION, kind, 0, method, status, request_id, len(control), payload_bytes, deadline_ms
    )
    return fields + _CHECKSUM.pack(_checksum(fields)) + control


def decode_header(buffer: Buffer) -> Header:
    """Parse HEADER_BYTES bytes. Raises ProtocolViolation."""
    fields = buffer[: _FIELDS.size]
    magic, version, kind, flags, method, status, request_id, control_bytes, payload_bytes, deadline_ms = _FIELDS.unpack(
        fields
    )
    if magic != MAGIC:
        raise ProtocolViolation(f"not a frame: it begins with {bytes(magic).hex()}")
    if version != FRAME_VERSION:
        raise ProtocolViolation(f"frame version {version}; this side speaks {FRAME_VERSION}")
    if _CHECKSUM.unpack(buffer[_FIELDS.size : HEADER_BYTES])[0] != _checksum(fields):
        raise ProtocolViolation("a header does not match its checksum")
    known = _KINDS.get(kind)
    if known is None:
        raise ProtocolViolation(f"unknown kind of frame {kind}")
    if flags != 0:
        raise ProtocolViolation(f"unknown flags {flags:#x}")
    if control_bytes > CONTROL_BYTES_MAX:
        raise ProtocolViolation(f"{control_bytes} control bytes; at most {CONTROL_BYTES_MAX} are allowed")
    if payload_bytes > PAYLOAD_BYTES_MAX:
        raise ProtocolViolation(f"{payload_bytes} payload bytes; at most {PAYLOAD_BYTES_MAX} are allowed")
    return Header(known, method, status, request_id, control_bytes, payload_bytes, deadline_ms)


def _checksum(fields: Buffer) -> int:
    return xxhash.xxh3_64_intdigest(fields) & 0xFFFF_FFFF


class Decoder:
    """Cuts frames out of a byte stream. Does no I/O: the owner receives into what :meth:`writable` offers.

    ::

        count = receive_into(decoder.writable())
        decoder.received(count)
        while (frame := decoder.next_frame()) is not None: ...

    ``admit(header)`` is asked as soon as a header is complete, before anything is allocated for its body, and after
    all earlier frames were handed out. It raises ProtocolViolation to refuse the frame, or returns False to have its
    payload skipped: the frame then comes without it.

    After a ProtocolViolation the decoder must not be used any more.
    """

    def __init__(self, admit: Callable[[Header], bool]) -> None:
        self._admit = admit
        self._scratch = memoryview(bytearray(RECEIVE_SCRATCH_BYTES))
        # Invariant: 0 <= start <= end <= len(scratch); scratch[start:end] is received and not yet parsed.
        self._start = 0
        self._end = 0
        self._header: Header | None = None  # parsed; its body is not complete
        self._body_bytes = 0  # of self._header: control, and the payload unless it is skipped
        self._body: memoryview | None = None  # a large body, of which the first `filled` bytes are received
        self._filled = 0
        self._skip_bytes = 0  # payload that is still to come and is thrown away

    @property
    def large(self) -> Header | None:
        """The frame for which the next :meth:`writable` allocates a buffer of its own, if it does."""
        return self._header if self._body is None and self._body_bytes > LARGE_BODY_BYTES else None

    @property
    def inside_frame(self) -> bool:
        """Part of a frame has come, and not all of it."""
        return self._header is not None or self._skip_bytes > 0 or self._end > self._start

    def writable(self) -> memoryview:
        """Where the next bytes go; never empty. Call it when :meth:`next_frame` has returned None."""
        if self.large is not None:
            self._begin_large()
        if self._body is not None:
            return self._body[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._scratch) or self._start + LARGE_BODY_BYTES > len(self._scratch):
            held = self._end - self._start
            self._scratch[:held] = self._scratch[self._start : self._end]
            self._start, self._end = 0, held
        return self._scratch[self._end :]

    def received(self, count: int) -> None:
        """``count`` > 0 bytes were written to the start of what :meth:`writable` offered."""
        if self._body is not None:
            self._filled += count
        else:
            self._end += count

    def next_frame(self) -> Frame | None:
        """The next complete frame; None when more bytes are needed. Raises ProtocolViolation."""
        if self._skip_bytes:
            skipped = min(self._skip_bytes, self._end - self._start)
            self._start += skipped
            self._skip_bytes -= skipped
        if self._header is None:
            if self._skip_bytes or self._end - self._start < HEADER_BYTES:
                return None
            self._begin_frame()
        if self._body is not None:
            return self._take(self._body, 0) if self._filled == len(self._body) else None
        if self._end - self._start < self._body_bytes:
            return None
        return self._take(self._scratch, self._start)

    def end(self) -> None:
        """The stream has ended. Raises ProtocolViolation if that was inside a frame."""
        if self.inside_frame:
            raise ProtocolViolation("the stream ended inside a frame")

    def _begin_frame(self) -> None:
        header = decode_header(self._scratch[self._start : self._start + HEADER_BYTES])
        wanted = self._admit(header)
        self._start += HEADER_BYTES
        self._header = header
        self._body_bytes = header.control_bytes + (header.payload_bytes if wanted else 0)

    def _begin_large(self) -> None:
        assert self._header is not None
        if self._body_bytes - self._header.control_bytes >= ALIGNED_PAYLOAD_BYTES_MIN:
            body = aligned(self._body_bytes, self._header.control_bytes)
        else:
            body = memoryview(bytearray(self._body_bytes))
        self._filled = self._end - self._start
        body[: self._filled] = self._scratch[self._start : self._end]
        self._start = self._end = 0
        self._body = body

    def _take(self, source: memoryview, start: int) -> Frame:
        """The frame whose complete body begins at ``start``. What is left in the scratch buffer outlives no frame,
        so small payloads are copied; a large one has its memory to itself."""
        header = self._header
        assert header is not None
        end = start + self._body_bytes
        middle = start + header.control_bytes
        control = bytes(source[start:middle])
        if middle == end:
            payload = _NO_PAYLOAD
            self._skip_bytes = header.payload_bytes
        else:
            payload = source[middle:end] if self._body is not None else memoryview(bytes(source[middle:end]))
        if self._body is None:
            self._start = end
        self._header = self._body = None
        self._body_bytes = 0
        return Frame(header, control, payload)
