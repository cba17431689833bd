"""One entry of the replicated log: the leader's time and the commands of many sessions. Pure.

A version byte, then msgpack. Each version is as the one before, and

====== ====================================================================================================
2      its commands are bounded (:mod:`shoalfs.mds.bounds`): what one of version 1 does, it does at once
3      files may be made with extents
4      files may be made with attributes
5      extents may be merged
====== ====================================================================================================

A program that does not know these would come to another state, and must not apply the entry. The commands' bodies are
the bytes that the clients sent. An empty entry is the no-op with which a leader begins its term; it is never encoded
here.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shoalfs.mds.messages import Command
from shoalfs.transport.errors import StorageFailed
from shoalfs.transport.ids import SessionId
from shoalfs.transport.method import Message

_UNBOUNDED_VERSION: Final = b"\x01"
_VERSION: Final = b"\x05"
_KNOWN_VERSIONS: Final = frozenset({_UNBOUNDED_VERSION, b"\x02", b"\x03", b"\x04", _VERSION})
_TIME_MAX_NS: Final = (1 << 63) - 1


class LogEntry(Message, frozen=True):
    now_ns: int
    commands: tuple[tuple[SessionId, Command], ...]


def is_bounded(data: bytes) -> bool:
    """Whether the commands of this entry are."""
    return data[:1] != _UNBOUNDED_VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogEntry)


def encode_entry(now_ns: int, commands: Sequence[tuple[SessionId, Command]]) -> bytes:
    """``now_ns`` is the leader's clock; applying makes it monotone."""
    return _VERSION + _encoder.encode(LogEntry(now_ns, tuple(commands)))


def decode_entry(data: bytes) -> LogEntry:
    """Raises StorageFailed: a committed entry that cannot be read was written by a newer program, or the log
    is damaged, and a node that skipped what others apply would differ from them for ever."""
    if bytes(data[:1]) not in _KNOWN_VERSIONS:
        raise StorageFailed(
            f"a log entry has format {data[:1].hex() or 'nothing'}; this program reads {_VERSION.hex()}"
        )
    try:
        entry = _decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise StorageFailed(f"a log entry does not decode: {error}") from error
    if not 0 <= entry.now_ns <= _TIME_MAX_NS:
        raise StorageFailed(f"a log entry is stamped {entry.now_ns}")
    return entry
