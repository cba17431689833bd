"""What two sides say to each other about a verbs connection, and the header of each message on it. Pure.

Over the TCP connection, before the first frame, in this order; each is a magic number, a length and msgpack:

1. :class:`Offer`, dialler to acceptor: a queue pair is ready here.
2. :class:`Answer`, back: one is ready here, too, or why not.
3. :class:`Verdict`, dialler to acceptor: the probe went through, or it did not and TCP goes on.

A dialler that does not want verbs says nothing of this; the magic number differs from that of a frame, so the
acceptor sees which it is after four bytes.

On the queue pair each SEND carries a header, then stream bytes; and more stream bytes may lie in the next bulk slot.
"""

import struct
from typing import Final, NamedTuple, TypeVar

import msgspec

from shoalfs.transport.errors import ProtocolViolation
from shoalfs.transport.limits import (
    RDMA_BULK_SLOT_BYTES,
    RDMA_BULK_SLOTS,
    RDMA_CREDITS,
    RDMA_MESSAGE_BYTES,
    RDMA_SETUP_BYTES_MAX,
)
from shoalfs.transport.method import Message

MAGIC: Final = b"\x89SHR"
RDMA_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<4sH")
PREFIX_BYTES: Final = _PREFIX.size
_HEADER: Final = struct.Struct("<IHHHH")
HEADER_BYTES: Final = _HEADER.size
INLINE_BYTES_MAX: Final = RDMA_MESSAGE_BYTES - HEADER_BYTES
_END: Final = 1
_T = TypeVar("_T", bound=Message)


class Endpoint(Message, frozen=True):
    """One side's queue pair: what the other needs to connect its own to it. ``gid`` is 16 bytes; ``mtu`` the verbs'
    code 1..5 for 256..4096 bytes; ``lid`` is 0 except on InfiniBand."""

    queue_pair: int
    first_psn: int
    gid: bytes
    mtu: int
    lid: int = 0


class Offer(Message, frozen=True):
    """``landing`` and ``outgoing`` are address and remote key of the dialler's bulk slots: those the acceptor writes
    into, and those it reads from. The acceptor exposes no memory. The four sizes must be the acceptor's own."""

    version: int
    endpoint: Endpoint
    landing_address: int
    landing_key: int
    outgoing_address: int
    outgoing_key: int
    credits: int = RDMA_CREDITS
    message_bytes: int = RDMA_MESSAGE_BYTES
    bulk_slots: int = RDMA_BULK_SLOTS
    bulk_slot_bytes: int = RDMA_BULK_SLOT_BYTES

    @property
    def fits(self) -> bool:
        """The sides agree on the shape of things."""
        return (self.version, self.credits, self.message_bytes, self.bulk_slots, self.bulk_slot_bytes) == (
            RDMA_VERSION,
            RDMA_CREDITS,
            RDMA_MESSAGE_BYTES,
            RDMA_BULK_SLOTS,
            RDMA_BULK_SLOT_BYTES,
        )


class Answer(Message, frozen=True):
    """``endpoint`` None: no verbs, for this ``reason``."""

    endpoint: Endpoint | None = None
    reason: str = ""


class Verdict(Message, frozen=True):
    """``verbs``: what follows goes over the queue pair. Else over TCP, for this ``reason``."""

    verbs: bool
    reason: str = ""


def encode_setup(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    assert len(body) <= RDMA_SETUP_BYTES_MAX, len(body)
    return _PREFIX.pack(MAGIC, len(body)) + body


def setup_length(prefix: bytes) -> int:
    """How many bytes follow these PREFIX_BYTES. Raises ProtocolViolation."""
    magic, length = _PREFIX.unpack(prefix)
    if magic != MAGIC or length > RDMA_SETUP_BYTES_MAX:
        raise ProtocolViolation("malformed set-up of a verbs connection")
    return int(length)


def decode_setup(kind: type[_T], body: bytes) -> _T:
    """Raises ProtocolViolation."""
    try:
        message = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolViolation(f"{kind.__name__}: {error}") from None
    endpoint = getattr(message, "endpoint", None)
    if endpoint is not None and (len(endpoint.gid) != 16 or not 1 <= endpoint.mtu <= 5):
        raise ProtocolViolation(f"{kind.__name__}: a malformed end point")
    return message


class MessageHeader(NamedTuple):
    """``credits`` and ``slots`` are given back to the receiver of the message: receives posted again, bulk slots
    emptied. ``end``: no byte comes after those of this message."""

    inline_bytes: int
    bulk_bytes: int
    credits: int
    slots: int
    end: bool


def encode_header(header: MessageHeader, into: memoryview) -> None:
    _HEADER.pack_into(
        into, 0, header.bulk_bytes, header.inline_bytes, header.credits, header.slots, _END if header.end else 0
    )


def decode_header(message: memoryview) -> MessageHeader:
    """Raises ProtocolViolation."""
    if len(message) < HEADER_BYTES:
        raise ProtocolViolation(f"a verbs message of {len(message)} bytes")
    bulk_bytes, inline_bytes, credits_back, slots, flags = _HEADER.unpack_from(message)
    if bulk_bytes > RDMA_BULK_SLOT_BYTES or inline_bytes != len(message) - HEADER_BYTES or flags & ~_END:
        raise ProtocolViolation("a malformed verbs message")
    return MessageHeader(inline_bytes, bulk_bytes, credits_back, slots, bool(flags))
