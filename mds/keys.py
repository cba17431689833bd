"""The keys of the metadata store: one byte of prefix, then fixed-width big-endian fields, then bytes. Pure.

The one rule: the order of the bytes is the order that the service scans in. What each row holds is in
:mod:`shoalfs.mds.records`; every invariant between rows is checked by :mod:`shoalfs.mds.check`.

===== ============================== ========================================================================
key   fields (bits)                  value
===== ============================== ========================================================================
``D`` parent (64), name              Dentry: inode, type, cookie
``E`` parent (64), cookie (64)       ListingRow: name, inode. Entries in the order in which they were made
``I`` inode (64)                     Inode, in its wire encoding
``L`` inode (64)                     inline bytes of a small file (never empty), or the target of a symlink
``X`` inode (64), file offset (64)   Extent
``C`` inode (64)                     empty: extents of the file were cut off and are not removed yet
``A`` inode (64), name               value of an extended attribute
``O`` inode (64)                     empty: nlink is 0, the inode waits for its last close
``Q`` inode (64)                     TrashRow: nlink is 0, the inode is kept until its retention is over
``q`` time (64), inode (64)          empty: the same, oldest first
``K`` chunk (64)                     ChunkUse: number of extents that use the chunk, its length
``Z`` chunk (64)                     GarbageRow: since when no extent uses the chunk
``z`` time (64), chunk (64)          empty: the same, oldest first
``N`` first sequence (64)            RangeRow: session and count of a range of reserved chunk sequence numbers
``n`` session (64), first (64)       empty: the same, by session
``S`` session (64)                   SessionRow
``s`` nonce (128)                    session (64): finds a session again when its opening is repeated
``R`` session (64), slot (16)        Recorded: the last command of the slot and its outcome
``T`` target (32)                    Target
``U`` uuid (128)                     target (32)
``P`` pool (32)                      Pool
``G`` group (16)                     PlacementGroup
``M`` name                           one row each: ``format``, ``map_epoch``, ``counters``, ``applied``,
                                     ``members``, ``upkeep``
===== ============================== ========================================================================
"""

import struct
from typing import Final

from shoalfs.transport.ids import ChunkId, InodeId, PgId, PoolId, SessionId, TargetId

U64_MAX: Final = (1 << 64) - 1
_U64: Final = struct.Struct(">cQ")
_U64_U64: Final = struct.Struct(">cQQ")
_U64_U16: Final = struct.Struct(">cQH")
_U32: Final = struct.Struct(">cI")
_U16: Final = struct.Struct(">cH")

FORMAT: Final = b"Mformat"
MAP_EPOCH: Final = b"Mmap_epoch"
COUNTERS: Final = b"Mcounters"
APPLIED: Final = b"Mapplied"
MEMBERS: Final = b"Mmembers"
UPKEEP: Final = b"Mupkeep"


def dentry(parent: InodeId, name: bytes) -> bytes:
    return _U64.pack(b"D", parent) + name


def listing(parent: InodeId, cookie: int) -> bytes:
    return _U64_U64.pack(b"E", parent, cookie)


def inode(ino: InodeId) -> bytes:
    return _U64.pack(b"I", ino)


def inline(ino: InodeId) -> bytes:
    return _U64.pack(b"L", ino)


def extent(ino: InodeId, offset_bytes: int) -> bytes:
    return _U64_U64.pack(b"X", ino, offset_bytes)


def cut_off(ino: InodeId) -> bytes:
    return _U64.pack(b"C", ino)


def xattr(ino: InodeId, name: bytes) -> bytes:
    return _U64.pack(b"A", ino) + name


def orphan(ino: InodeId) -> bytes:
    return _U64.pack(b"O", ino)


def trash(ino: InodeId) -> bytes:
    return _U64.pack(b"Q", ino)


def trash_by_time(deleted_ns: int, ino: InodeId) -> bytes:
    return _U64_U64.pack(b"q", deleted_ns, ino)


def chunk_use(chunk: ChunkId) -> bytes:
    return _U64.pack(b"K", chunk)


def garbage(chunk: ChunkId) -> bytes:
    return _U64.pack(b"Z", chunk)


def garbage_by_time(since_ns: int, chunk: ChunkId) -> bytes:
    return _U64_U64.pack(b"z", since_ns, chunk)


def chunk_range(first_sequence: int) -> bytes:
    return _U64.pack(b"N", first_sequence)


def chunk_range_of(session: SessionId, first_sequence: int) -> bytes:
    return _U64_U64.pack(b"n", session, first_sequence)


def session(session: SessionId) -> bytes:
    return _U64.pack(b"S", session)


def nonce(nonce: bytes) -> bytes:
    assert len(nonce) == 16, nonce
    return b"s" + nonce


def slot(session: SessionId, slot: int) -> bytes:
    return _U64_U16.pack(b"R", session, slot)


def target(target: TargetId) -> bytes:
    return _U32.pack(b"T", target)


def target_uuid(uuid: bytes) -> bytes:
    assert len(uuid) == 16, uuid
    return b"U" + uuid


def pool(pool: PoolId) -> bytes:
    return _U32.pack(b"P", pool)


def group(group: PgId) -> bytes:
    return _U16.pack(b"G", group)


# --- ranges -------------------------------------------------------------------------------------------------


def all_of(prefix: bytes) -> tuple[bytes, bytes]:
    """First key and end of all rows with this one-byte prefix."""
    assert len(prefix) == 1, prefix
    return prefix, bytes([prefix[0] + 1])


def under(prefix: bytes, ident: int) -> tuple[bytes, bytes]:
    """First key and end of the rows whose first 64-bit field is ``ident``: a directory's entries, a file's
    extents."""
    first = _U64.pack(prefix, ident)
    return first, (_U64.pack(prefix, ident + 1) if ident < U64_MAX else all_of(prefix)[1])


def first_field(key: bytes) -> int:
    """The 64-bit field behind the prefix."""
    return int.from_bytes(key[1:9], "big")


def second_field(key: bytes) -> int:
    """The 64-bit field behind the first one."""
    return int.from_bytes(key[9:17], "big")


def name_of(key: bytes) -> bytes:
    """The name at the end of a ``D`` or ``A`` key."""
    return key[9:]
