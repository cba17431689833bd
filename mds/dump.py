"""A dump of all metadata as JSON lines, and reading one. Pure: rows in, lines out, and back.

::

    {"shoal_dump": 1, "cluster_id": HEX, "index": N, "term": N, "time_ns": N}
    {"row": "inode", "key": [1], "value": {"ino": 1, "mode": 16877, ...}}
    ...
    {"end": true, "rows": N, "xxh3_128": HEX}

One line per row of the store, in the order of their keys, as of one entry of the log. Numbers in keys are numbers;
bytes (names, hashes, inline bytes) are base64. A record is an object of its fields by name: fields that are missing
have their default, unknown ones are refused, because a newer program wrote them. The last line holds the hash of all
bytes before it; without it the dump is not whole.

What belongs to one life of the group is left out: sessions with their chunk ranges and recorded answers, the members,
the last applied entry.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
import xxhash

from shoalfs.mds import keys, records
from shoalfs.mds.machine import FORMAT_VERSION, load_applied
from shoalfs.mds.messages import Extent, Inode, PlacementGroup, Pool, Target, Upkeep
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import DamagedRecord, UserError
from shoalfs.transport.method import Message

VERSION: Final = 1
LINE_BYTES_MAX: Final = 1 << 20
T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Kind:
    """Rows of one prefix. ``fields``: struct format of the fixed fields behind it; ``named``: a name follows;
    ``codec`` None: the value is raw bytes."""

    name: str
    prefix: bytes
    fields: str
    codec: records.Codec[Any] | None = None
    record: type[Message] | None = None
    named: bool = False


_KINDS: Final = (
    _Kind("xattr", b"A", ">Q", named=True),
    _Kind("cut_off", b"C", ">Q"),
    _Kind("dentry", b"D", ">Q", records.DENTRY, records.Dentry, named=True),
    _Kind("listing", b"E", ">QQ", records.LISTING, records.ListingRow),
    _Kind("group", b"G", ">H", records.GROUP, PlacementGroup),
    _Kind("inode", b"I", ">Q", records.INODE, Inode),
    _Kind("chunk", b"K", ">Q", records.CHUNK_USE, records.ChunkUse),
    _Kind("inline", b"L", ">Q"),
    _Kind("orphan", b"O", ">Q"),
    _Kind("pool", b"P", ">I", records.POOL, Pool),
    _Kind("trash", b"Q", ">Q", records.TRASH, records.TrashRow),
    _Kind("target", b"T", ">I", records.TARGET, Target),
    _Kind("target_uuid", b"U", ">16s"),
    _Kind("extent", b"X", ">QQ", records.EXTENT, Extent),
    _Kind("garbage", b"Z", ">Q", records.GARBAGE, records.GarbageRow),
    _Kind("trash_time", b"q", ">QQ"),
    _Kind("garbage_time", b"z", ">QQ"),
)
_SINGLE: Final = (
    _Kind("counters", keys.COUNTERS, "", records.COUNTERS, records.Counters),
    _Kind("format", keys.FORMAT, "", records.FORMAT, records.Format),
    _Kind("map_epoch", keys.MAP_EPOCH, "", records.MAP_EPOCH, records.MapEpoch),
    _Kind("upkeep", keys.UPKEEP, "", records.UPKEEP, Upkeep),
)
_LEFT_OUT: Final = frozenset({b"N", b"n", b"S", b"s", b"R"})
"""Prefixes of what belongs to sessions. A test holds the two lists complete."""
_BY_NAME: Final = {kind.name: kind for kind in (*_KINDS, *_SINGLE)}


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``index`` and ``term``: of the last entry whose effects are in the dump."""

    shoal_dump: int
    cluster_id: str
    index: int
    term: int
    time_ns: int


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    row: str
    key: tuple[int | str, ...]
    value: dict[str, Any] | str


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    end: bool
    rows: int
    xxh3_128: str


# --- writing --------------------------------------------------------------------------------------------------------


def lines(txn: ReadTxn) -> Iterator[bytes]:
    """The whole dump, line by line. Raises DamagedRecord at a row that cannot be read: no dump is better than one that
    lacks something."""
    digest = xxhash.xxh3_128()
    rows = 0
    for line in _body(txn):
        digest.update(line)
        rows += 1
        yield line
    yield _encode(_End(True, rows - 1, digest.hexdigest())) + b"\n"


def _body(txn: ReadTxn) -> Iterator[bytes]:
    made = records.FORMAT.require(txn, keys.FORMAT)
    applied = load_applied(txn)
    yield _encode(Header(VERSION, made.cluster_id.hex(), applied.index, applied.term, applied.now_ns)) + b"\n"
    for kind in _KINDS:
        for key, value in txn.range(*keys.all_of(kind.prefix)):
            yield _line(kind, key, value)
    for kind in _SINGLE:
        found = txn.get(kind.prefix)
        if found is not None:
            yield _line(kind, kind.prefix, found)


def _line(kind: _Kind, key: bytes, value: bytes) -> bytes:
    at = len(kind.prefix) + struct.calcsize(kind.fields)
    parts: list[int | bytes] = list(struct.unpack(kind.fields, key[len(kind.prefix) : at]))
    if kind.named:
        parts.append(key[at:])
    shown: Any = value
    if kind.codec is not None:
        record = kind.codec.decode(key, value)
        shown = {name: getattr(record, name) for name in record.__struct_fields__}
    return _encode({"row": kind.name, "key": parts, "value": shown}) + b"\n"


# --- reading --------------------------------------------------------------------------------------------------------


def read_header(line: bytes) -> Header:
    """Raises UserError if this is not the first line of a dump that this program reads."""
    header = _decoded(line, Header, 1)
    if header.shoal_dump != VERSION:
        raise UserError(f"load: the dump has version {header.shoal_dump}, this program reads {VERSION}")
    return header


def rows(source: Iterable[bytes]) -> Iterator[tuple[Header | None, bytes, bytes]]:
    """First the header, then (None, key, value) of each row. Raises UserError, with the number of the line, at the
    first one that is not as it should be, and at the end if the dump is cut short or its hash is another."""
    digest = xxhash.xxh3_128()
    before = b""
    count = 0
    for number, line in enumerate(source, 1):
        if len(line) > LINE_BYTES_MAX:
            raise _refused(number, f"it is longer than {LINE_BYTES_MAX} bytes")
        if number == 1:
            yield read_header(line), b"", b""
        elif line.startswith(b'{"end":'):
            end = _decoded(line, _End, number)
            if (end.rows, end.xxh3_128) != (count, digest.hexdigest()):
                raise _refused(number, "the lines before it are not those that were written")
            return
        else:
            kind, key, value = _row(line, number)
            place = bytes([kind in _SINGLE]) + key
            if place <= before:
                raise _refused(number, "the rows are not in order")
            before, count = place, count + 1
            yield None, key, value
        digest.update(line)
    raise UserError("load: the dump is cut short: its last line is missing")


def _row(line: bytes, number: int) -> tuple[_Kind, bytes, bytes]:
    row = _decoded(line, _Row, number)
    kind = _BY_NAME.get(row.row)
    if kind is None:
        raise _refused(number, f"rows of kind {row.row!r} are unknown")
    try:
        key = kind.prefix + _key(kind, row.key)
        if kind.codec is None or kind.record is None:
            return kind, key, msgspec.convert(row.value, bytes)
        value = kind.codec.encode(_record(kind.record, row.value))
        kind.codec.decode(key, value)
    except (msgspec.ValidationError, struct.error, ValueError, TypeError, DamagedRecord) as error:
        raise _refused(number, str(error)) from error
    return kind, key, value


def _key(kind: _Kind, parts: tuple[int | str, ...]) -> bytes:
    codes = kind.fields.removeprefix(">")
    fixed = [msgspec.convert(part, bytes) if isinstance(part, str) else part for part in parts]
    count = 1 if "s" in codes else len(codes)
    if len(fixed) != count + kind.named:
        raise ValueError(f"a key of {kind.name} has {count + kind.named} parts")
    name = fixed[count] if kind.named else b""
    if not isinstance(name, bytes) or (kind.named and not 0 < len(name) <= 255):
        raise ValueError("the name in the key is none")
    if "s" in codes and (not isinstance(fixed[0], bytes) or len(fixed[0]) != struct.calcsize(kind.fields)):
        raise ValueError("the key has another length")
    return struct.pack(kind.fields, *fixed[:count]) + name


def _record(record: type[Message], value: dict[str, Any] | str) -> Message:
    """Of its fields by name; on the wire and on disk it is an array, so it is put in order first."""
    if isinstance(value, str):
        raise ValueError("a record is expected, not bytes")
    fields = {field.name: field for field in msgspec.structs.fields(record)}
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"unknown field {sorted(unknown)[0]}: a newer program wrote it")
    ordered = []
    for name, field in fields.items():
        if name in value:
            ordered.append(value[name])
        elif field.default is not msgspec.NODEFAULT:
            ordered.append(msgspec.to_builtins(field.default))
        else:
            raise ValueError(f"field {name} is missing")
    return msgspec.convert(ordered, record)


def _decoded(line: bytes, type_: type[T], number: int) -> T:
    try:
        return msgspec.json.decode(line, type=type_)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refused(number, str(error)) from error


def _refused(number: int, why: str) -> UserError:
    return UserError(f"load: line {number} of the dump: {why}")


assert FORMAT_VERSION == 2, "a new format of the store may want a new version of the dump"
