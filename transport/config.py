"""The one configuration file: what may stand in it, and what is said when something else does.

TOML, one table per part of the system; every process reads the tables it needs and ignores the others, so
that one file can be copied to all machines. Precedence: a flag on the command line, then the file, then the
default here.

The one rule: a mistake is answered with its path in the file and what to write instead, in one line
(``UserError``).

Knows nothing of the servers: each service turns its table into its own options.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, inspect

from shoalfs.transport.errors import UserError
from shoalfs.transport.limits import (
    BACKUP_INTERVAL_MS_DEFAULT,
    BACKUPS_KEPT_DEFAULT,
    BLOCK_BYTES,
    CHUNK_BYTES_DEFAULT,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    DIRTY_BYTES_DEFAULT,
    DISK_CALL_MS_MAX,
    GARBAGE_GRACE_MS_DEFAULT,
    INLINE_BYTES_DEFAULT,
    INLINE_BYTES_MAX,
    READ_CACHE_BYTES_DEFAULT,
    REPAIR_BYTES_PER_S_DEFAULT,
    SCRUB_BYTES_PER_S_DEFAULT,
    SCRUB_PERIOD_MS_DEFAULT,
    SESSION_TTL_MS,
    TARGET_OUT_MS_DEFAULT,
    TARGETS_PER_SERVER_MAX,
)

if TYPE_CHECKING:
    from shoalfs.transport.tls import TlsPaths

UNIX_PATH_BYTES_MAX: Final = 107
"""sockaddr_un holds 108 bytes with the closing NUL; see unix(7)."""

_UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE: Final = re.compile(r"(\d+)\s*([A-Za-z]*)")
_TCP: Final = re.compile(r"tcp:(\[[0-9A-Fa-f:.%]+\]|[^:\[\]/\s]+):(\d{1,5})")


class ByteSize(int):
    """A number of bytes; in the file an integer or text such as "64KiB", "4 MiB", "1GiB".

    Only in the configuration: whoever makes options of it takes ``int`` of it, and ``str`` of an
    :class:`Address`, because messages carry nothing but the plain types.
    """

    @classmethod
    def parse(cls, value: object) -> "ByteSize":
        """Raises ValueError, with what is expected, unless ``value`` is a size."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f'expected a size like "64KiB", "4MiB" or a number of bytes, got {value!r}')
        return cls(int(match[1]) * _UNITS[match[2].upper()])


class Address(str):
    """Where a service listens: "unix:/path/to.sock" or "tcp:host:port" ("tcp:[::1]:7400")."""

    @classmethod
    def parse(cls, value: object) -> "Address":
        """Raises ValueError, with what is expected, unless ``value`` is an address."""
        text = value if isinstance(value, str) else ""
        if text.startswith("unix:/"):
            length = len(text.removeprefix("unix:").encode())
            if length > UNIX_PATH_BYTES_MAX:
                raise ValueError(
                    f"socket path of {length} bytes, the kernel allows {UNIX_PATH_BYTES_MAX}: "
                    "choose a directory with a shorter path"
                )
            return cls(text)
        match = _TCP.fullmatch(text)
        if match is None or int(match[2]) > 65_535:
            raise ValueError(f'expected "unix:/path" or "tcp:host:port", got {value!r}')
        return cls(text)


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables in the file."""


class ClusterTable(_Table, frozen=True, kw_only=True):
    id: Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")] = ""  # 32 hex digits; empty: whichever answers
    name: str = "shoal"

    @property
    def id_bytes(self) -> bytes:
        return bytes.fromhex(self.id)


class MdsTable(_Table, frozen=True, kw_only=True):
    """``replicas``, ``min_ack``, ``chunk_bytes`` and ``inline_bytes`` are taken over when the cluster is
    made, and not again. ``min_ack`` 0 means replicas - replicas // 2: one of two, two of three."""

    node: Annotated[int, Meta(ge=1, le=255)] = 1
    listen: Address = Address("tcp:127.0.0.1:7400")
    peers: dict[int, Address] = {}  # who makes the group, by number, this one included; empty: it is alone
    data_dir: str = "/var/lib/shoalfs/mds"
    replicas: Annotated[int, Meta(ge=1, le=8)] = 1
    min_ack: Annotated[int, Meta(ge=0, le=8)] = 0
    chunk_bytes: ByteSize = ByteSize(CHUNK_BYTES_DEFAULT)
    inline_bytes: ByteSize = ByteSize(INLINE_BYTES_DEFAULT)
    # How long a chunk that no file uses any more is kept for readers with an old extent map.
    garbage_grace_ms: Annotated[int, Meta(ge=2 * SESSION_TTL_MS)] = GARBAGE_GRACE_MS_DEFAULT
    # False where the nodes' clocks may run apart by more than 15 %: each read then waits for a round of messages.
    read_lease: bool = True
    # A client that was not heard of for so long has lost its session; others may have to wait for it until then.
    session_ttl_ms: Annotated[int, Meta(ge=2_000, le=SESSION_TTL_MS)] = SESSION_TTL_MS
    target_out_ms: Annotated[int, Meta(ge=1_000)] = TARGET_OUT_MS_DEFAULT  # down for so long: others take its place
    repair_bytes_per_s: ByteSize = ByteSize(REPAIR_BYTES_PER_S_DEFAULT)  # of one target, to copy what others lack
    scrub_period_ms: Annotated[int, Meta(ge=1_000)] = SCRUB_PERIOD_MS_DEFAULT  # every byte is verified once in this
    scrub_bytes_per_s: ByteSize = ByteSize(SCRUB_BYTES_PER_S_DEFAULT)  # of one target, at most
    backup_dir: str = ""  # dumps of all metadata are written here, by each node that has this set; empty: none are
    backup_interval_ms: Annotated[int, Meta(ge=1_000)] = BACKUP_INTERVAL_MS_DEFAULT
    backup_keep: Annotated[int, Meta(ge=1, le=10_000)] = BACKUPS_KEPT_DEFAULT  # so many are there, the oldest goes

    def __post_init__(self) -> None:
        if self.min_ack > self.replicas:
            raise ValueError(f"min_ack is {self.min_ack}, more than replicas = {self.replicas}")
        if not CHUNK_BYTES_MIN <= self.chunk_bytes <= CHUNK_BYTES_MAX or self.chunk_bytes % BLOCK_BYTES:
            raise ValueError("chunk_bytes: expected 64KiB to 64MiB, a multiple of 64KiB")
        if self.inline_bytes > INLINE_BYTES_MAX:
            raise ValueError(f"inline_bytes: expected 0 to {INLINE_BYTES_MAX}")
        if not self.repair_bytes_per_s or not self.scrub_bytes_per_s:
            raise ValueError("repair_bytes_per_s, scrub_bytes_per_s: expected more than 0: nothing would ever be done")
        if self.peers and self.node not in self.peers:
            raise ValueError(f"peers: expected an entry for this node, {self.node}")

    @property
    def acknowledgements(self) -> int:
        """How many replicas must be stored before a commit; ``min_ack`` with its default worked out."""
        return self.min_ack or self.replicas - self.replicas // 2


class TargetTable(_Table, frozen=True, kw_only=True):
    path: str
    size: ByteSize | None = None  # None: as large as its filesystem


class ChunkserverTable(_Table, frozen=True, kw_only=True):
    name: str = ""  # failure domain; empty: the host's name
    rack: Annotated[str, Meta(max_length=255)] = ""  # failure domain above it; empty: none is known
    listen: Address = Address("tcp:127.0.0.1:7410")
    advertise: Address | None = None  # what clients are told; None: the address it listens on
    targets: Annotated[tuple[TargetTable, ...], Meta(max_length=TARGETS_PER_SERVER_MAX)] = ()
    added_targets: str = ""  # the file for those of `shoal target add`; empty: this one's name with .targets behind it
    mds: tuple[Address, ...] = ()
    # A disk one of whose calls takes longer has failed; more where a disk may be slow for so long and is not dead.
    disk_call_ms_max: Annotated[int, Meta(ge=1_000)] = DISK_CALL_MS_MAX


class MountTable(_Table, frozen=True, kw_only=True):
    mds: tuple[Address, ...] = ()
    # At most so long the kernel keeps what is leased; never longer than the lease.
    attr_timeout_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 300_000
    entry_timeout_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 300_000
    dirty_bytes: ByteSize = ByteSize(DIRTY_BYTES_DEFAULT)
    cache_bytes: ByteSize = ByteSize(READ_CACHE_BYTES_DEFAULT)
    # "chain": a chunk is sent once, and chunkservers pass it on; for a link that is slower than those between them.
    replication: Literal["fanout", "chain"] = "fanout"
    close: Literal["commit", "durable"] = "commit"
    allow_other: bool | None = None  # None: if root mounts
    read_only: bool = False
    no_exec: bool = False  # no program of the mount is run
    no_lock: bool = False  # locks hold on this machine only; with read_only nobody is told of opens (docs/posix.md)
    subdir: str = ""  # a directory of the cluster that becomes the root of the mount; empty: all of it


class TlsTable(_Table, frozen=True, kw_only=True):
    """Paths of PEM files. All three or none."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if any((self.ca, self.cert, self.key)) and not all((self.ca, self.cert, self.key)):
            raise ValueError("ca, cert and key are needed together")

    @property
    def paths(self) -> "TlsPaths | None":
        """As the carriers take them; None: connections are not encrypted."""
        from shoalfs.transport.tls import TlsPaths  # brings trio, which a configuration can do without

        return TlsPaths(self.ca, self.cert, self.key) if self.ca else None


class NetTable(_Table, frozen=True, kw_only=True):
    """``transport`` between machines: see docs/rdma.md. Verbs are not encrypted, so somebody has to ask for them."""

    transport: Literal["auto", "rdma", "tcp"] = "tcp"


class Config(_Table, frozen=True, kw_only=True):
    """The whole file."""

    cluster: ClusterTable = ClusterTable()
    mds: MdsTable = MdsTable()
    chunkserver: ChunkserverTable = ChunkserverTable()
    mount: MountTable = MountTable()
    tls: TlsTable = TlsTable()
    net: NetTable = NetTable()


def load(path: str | None, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration of the file at ``path`` (None: no file) with ``overrides`` on top.

    An override is named by its path in the file, ``"mount.dirty_bytes"``; None means that the flag was not
    given. Raises UserError for a missing or malformed file and for every wrong key, type or value.
    """
    tables = _read(path) if path is not None else {}
    for dotted, value in (overrides or {}).items():
        if value is not None:
            table, key = dotted.split(".")
            tables.setdefault(table, {})[key] = value
    return parse(tables, origin=path or "command line")


def parse(tables: Mapping[str, Any], origin: str) -> Config:
    """The configuration that ``tables`` spell. Raises UserError: ``origin``, the path in it, the remedy."""
    for wrong, known in _unknown_keys(tables, inspect.type_info(Config), ""):
        raise UserError(f"configuration: {origin}: {wrong}: unknown key{_suggestion(wrong, known)}")
    try:
        return msgspec.convert(tables, Config, dec_hook=_decode_custom, str_keys=True)
    except msgspec.ValidationError as error:
        raise UserError(f"configuration: {origin}: {_explain(str(error))}") from error


def render(tables: Mapping[str, Mapping[str, object]]) -> str:
    """TOML text of ``tables``. Values: text, whole numbers, truth values, lists and dicts of these."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_render_value(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"configuration: {path}: no such file: create it, or leave --config out") from None
    except OSError as error:
        raise UserError(f"configuration: {path}: {error.strerror}: make it a readable file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"configuration: {path}: not valid TOML: {error}") from error


def _decode_custom(kind: type, value: object) -> object:
    assert issubclass(kind, (ByteSize, Address)), kind
    return kind.parse(value)


def _unknown_keys(value: object, kind: inspect.Type, at: str) -> Iterator[tuple[str, list[str]]]:
    """Pairs of a wrong key's path and the paths of the keys that may stand beside it."""
    if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, inner in value.items():
            path = f"{at}.{key}" if at else str(key)
            if key in fields:
                yield from _unknown_keys(inner, fields[key], path)
            else:
                yield path, [f"{at}.{name}" if at else name for name in fields]
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unknown_keys(inner, kind.item_type, f"{at}[{index}]")


def _suggestion(wrong: str, siblings: list[str]) -> str:
    """The key of exactly this name in another table if there is one, else the nearest in the same table."""
    name = wrong.rpartition(".")[2]
    for table in msgspec.structs.fields(Config):
        if any(field.encode_name == name for field in msgspec.structs.fields(table.type)):
            return f"; did you mean {table.encode_name}.{name}?"
    by_name = {path.rpartition(".")[2]: path for path in siblings}
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
    return f"; did you mean {by_name[near[0]]}?" if near else f"; known here: {', '.join(by_name)}"


def _explain(text: str) -> str:
    """msgspec's message as "path: what is expected"."""
    what, _, where = text.rpartition(" - at ")
    path = re.sub(r"^.*\$\.?", "", where.replace("`", ""))
    what = what.replace("`object`", "a table").replace("`array`", "a list").replace("`", "")
    missing = re.fullmatch(r"Object missing required field (\w+)", what)
    if missing:
        return f"{path}.{missing[1]}: missing: it has no default"
    return f"{path}: {what[:1].lower()}{what[1:]}"


def _render_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return json.dumps(value)  # a JSON string is a TOML basic string
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(str(key))} = {_render_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}"
    assert isinstance(value, (list, tuple)), value
    return f"[{', '.join(_render_value(item) for item in value)}]"
