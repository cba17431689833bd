"""A method: a number on the wire, and the shape of its question and its answer."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False):
    """Base of everything that is sent as msgpack: an array of the fields in their order.

    Fields are only ever added at the end, with a default, so that an old reader skips what it does not know and a new
    reader fills in what an old writer did not send.
    """


class Nothing(Message, frozen=True):
    """The empty message."""


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """One remote method.

    ``number`` is 1..65535 and never reused; 100.. metadata, 200.. chunkserver, 300.. Raft peers.
    ``request_payload_bytes_max`` and ``reply_payload_bytes_max`` bound the raw bytes that may follow the message.
    ``roles`` are the peers that may call it (see :class:`~shoalfs.transport.session.Hello`); empty means any.
    """

    number: int
    name: str
    request: type[Q]
    reply: type[A]
    request_payload_bytes_max: int = 0
    reply_payload_bytes_max: int = 0
    roles: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<{self.name}>"


AnyMethod = Method[Any, Any]
