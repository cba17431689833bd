"""The bytes of the replicated log's files. Pure: bytes in, records out.

A segment is a header and then records, one after the other. A record says in ``number`` which one it is,
counted from the first ever written, and in ``synced`` up to which number records were on disk when it was
written. That is what tells a torn tail from damage: a power loss may keep any pages of the writes that no
sync had finished, so a bad record followed by a good one is an ordinary crash, unless the good one says that
the bad one had been synced.

Each segment has a random salt in its checksums, so that a copy of a log inside an entry never looks like a
record. Checksums are XXH3-64: they find accidents, not adversaries.
"""

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import xxhash

from shoalfs.transport.limits import ENTRY_BYTES_MAX

FORMAT_VERSION: Final = 2
_SEGMENT_MAGIC: Final = b"SHOALLOG"
_RECORD_MAGIC: Final = b"\xa7ShR"
_SEGMENT: Final = struct.Struct("<8sQII16s16sQQQQQQ")  # magic, checksum, then the fields of SegmentHeader
_SEGMENT_CHECKED: Final = 16  # the checksum covers what follows it
_RECORD: Final = struct.Struct("<4sQIBxxxQQQQ")  # magic, checksum, length, kind, number, synced, index, term
_RECORD_CHECKED: Final = 12

SEGMENT_HEADER_BYTES: Final = _SEGMENT.size
RECORD_HEADER_BYTES: Final = _RECORD.size
PAYLOAD_BYTES_MAX: Final = ENTRY_BYTES_MAX + 1  # an entry and its kind


class Kind(enum.IntEnum):
    ENTRY = 1  # index and term of an entry; the payload is its command
    HARD_STATE = 2  # term = the current term; index = who got this node's vote in it, 0 for nobody
    END = 3  # the log now ends with the entry (index, term): what came after it is void
    RESET = 4  # the log begins after the entry (index, term), which a snapshot holds: all before is void


class Record(msgspec.Struct, frozen=True, gc=False):
    kind: Kind
    index: int
    term: int
    payload: bytes = b""


class SegmentHeader(NamedTuple):
    """Who wrote a segment, and the state of the log where it begins, so that what lies before it can be
    deleted.
    """

    version: int
    node: int
    cluster_id: bytes
    log_id: bytes  # random, made with the log: who comes back with another one has lost its promises
    salt: int
    first_number: int  # the number of the first record in it
    end_index: int  # the log ended with this entry
    end_term: int
    current_term: int
    voted_for: int


class BadHeader(Exception):
    """The bytes are not a segment header. The journal turns this into an error that names the file."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds. ``end_offset`` is where its good records end.

    ``rest`` is empty, or says what follows there: "torn" (may be cut) or "damaged" (was once on disk).
    """

    records: tuple[Record, ...]
    end_offset: int
    rest: str


def encode_header(header: SegmentHeader) -> bytes:
    packed = _SEGMENT.pack(_SEGMENT_MAGIC, 0, *header)
    checksum = xxhash.xxh3_64_intdigest(packed[_SEGMENT_CHECKED:])
    return _SEGMENT.pack(_SEGMENT_MAGIC, checksum, *header)


def decode_header(data: bytes) -> SegmentHeader:
    """Raises BadHeader."""
    if len(data) < SEGMENT_HEADER_BYTES or data[:8] != _SEGMENT_MAGIC:
        raise BadHeader("not a segment of a log")
    fields = _SEGMENT.unpack_from(data)
    if xxhash.xxh3_64_intdigest(data[_SEGMENT_CHECKED:SEGMENT_HEADER_BYTES]) != fields[1]:
        raise BadHeader("the checksum of its header is wrong")
    header = SegmentHeader(*fields[2:])
    if header.version != FORMAT_VERSION:
        raise BadHeader(f"its format version is {header.version}, this program knows {FORMAT_VERSION}")
    return header


def encode_record(record: Record, number: int, synced: int, salt: int) -> bytes:
    payload = record.payload
    assert len(payload) <= PAYLOAD_BYTES_MAX, len(payload)
    assert synced < number, (synced, number)
    fields = (len(payload), record.kind, number, synced, record.index, record.term)
    checksum = _checksum(_RECORD.pack(_RECORD_MAGIC, 0, *fields), payload, salt)
    return _RECORD.pack(_RECORD_MAGIC, checksum, *fields) + payload


def scan_segment(data: bytes, header: SegmentHeader) -> Scan:
    """Read the records of a whole segment file."""
    records: list[Record] = []
    offset = SEGMENT_HEADER_BYTES
    number = header.first_number
    while offset < len(data):
        found = _decode_record(data, offset, header.salt)
        if found is None or found[1] != number:
            damaged = any(synced >= number for synced in _synced_claims(data, offset, header.salt))
            return Scan(tuple(records), offset, "damaged" if damaged else "torn")
        records.append(found[0])
        offset += RECORD_HEADER_BYTES + len(found[0].payload)
        number += 1
    return Scan(tuple(records), offset, "")


def _decode_record(data: bytes, offset: int, salt: int) -> tuple[Record, int, int] | None:
    """(record, number, synced) at ``offset``, or None if there is no whole, unharmed record."""
    if len(data) - offset < RECORD_HEADER_BYTES or data[offset : offset + 4] != _RECORD_MAGIC:
        return None
    _, checksum, length, kind, number, synced, index, term = _RECORD.unpack_from(data, offset)
    start = offset + RECORD_HEADER_BYTES
    if length > PAYLOAD_BYTES_MAX or start + length > len(data):
        return None
    payload = data[start : start + length]
    if _checksum(data[offset:start], payload, salt) != checksum:
        return None
    return Record(Kind(kind), index, term, payload), number, synced


def _synced_claims(data: bytes, offset: int, salt: int) -> Iterator[int]:
    """What the good records anywhere after ``offset`` say had been synced when they were written."""
    while (offset := data.find(_RECORD_MAGIC, offset + 1)) >= 0:
        found = _decode_record(data, offset, salt)
        if found is not None:
            yield found[2]


def _checksum(head: bytes, payload: bytes, salt: int) -> int:
    digest = xxhash.xxh3_64(seed=salt)
    digest.update(head[_RECORD_CHECKED:])
    digest.update(payload)
    return digest.intdigest()
