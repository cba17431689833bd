"""The FUSE messages that pyfuse3 does not know, between bytes and values. Pure.

Layouts are those of Linux's include/uapi/linux/fuse.h, protocol 7.45, in the machine's byte order. Requests may be
longer than what is read of them here (the kernel adds at the end); shorter ones are refused.
"""

import enum
import struct
from typing import Final, NamedTuple

from shoalfs.mds.messages import Inode
from shoalfs.transport.errors import BadMessage

SECTOR_BYTES: Final = 512
BLOCK_SIZE_BYTES: Final = 64 * 1024  # st_blksize: what stdio and cp read and write at a time


class Opcode(enum.IntEnum):
    """enum fuse_opcode, as far as it is spoken here."""

    SETATTR = 4
    SETXATTR = 21
    RELEASE = 18
    FLUSH = 25
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    INTERRUPT = 36
    FALLOCATE = 43
    READDIRPLUS = 44
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlags(enum.IntFlag):
    """Flags of FUSE_INIT."""

    POSIX_LOCKS = 1 << 1
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    HANDLE_KILLPRIV_V2 = 1 << 28


class Request(NamedTuple):
    """A request as it came: who asks for what on which inode."""

    opcode: int
    unique: int
    ino: int
    uid: int
    gid: int
    pid: int
    body: bytes


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise BadMessage(f"a FUSE request of {len(body)} bytes, {layout.size} expected")
    return layout.unpack_from(body)


# --- requests --------------------------------------------------------------------------------------------------------

_FALLOCATE = struct.Struct("=QQQII")
_LSEEK = struct.Struct("=QQII")
_READ = struct.Struct("=QQI")
_COPY = struct.Struct("=QQQQQQQ")
_STATX = struct.Struct("=IIQII")
_CREATE = struct.Struct("=IIII")
_LOCK = struct.Struct("=QQQQIIII")
_SETATTR_VALID = struct.Struct("=I")
_SETXATTR = struct.Struct("=II")
_INTERRUPT = struct.Struct("=Q")
_FLUSH = struct.Struct("=QIIQ")
_RELEASE = struct.Struct("=QIIQ")

_RELEASE_FLOCK_UNLOCK = 1 << 1
_LK_FLOCK = 1 << 0
_ATIME_NOW, _MTIME_NOW = 1 << 7, 1 << 8


class Fallocate(NamedTuple):
    handle: int
    offset_bytes: int
    length_bytes: int
    mode: int


class Lseek(NamedTuple):
    handle: int
    offset_bytes: int
    whence: int


class ReadDirPlus(NamedTuple):
    handle: int
    cookie: int
    size_bytes: int


class Copy(NamedTuple):
    handle: int
    offset_bytes: int
    target_ino: int
    target_handle: int
    target_offset_bytes: int
    length_bytes: int


class Tmpfile(NamedTuple):
    flags: int
    mode: int
    umask: int


class SetXattr(NamedTuple):
    name: bytes
    value: bytes
    flags: int


class Lock(NamedTuple):
    """``end_bytes`` is the last byte of the range, as in struct file_lock."""

    handle: int
    owner: int
    start_bytes: int
    end_bytes: int
    kind: int  # F_RDLCK, F_WRLCK or F_UNLCK
    pid: int
    is_flock: bool


def fallocate(body: bytes) -> Fallocate:
    return Fallocate(*_unpack(_FALLOCATE, body)[:4])


def lseek(body: bytes) -> Lseek:
    return Lseek(*_unpack(_LSEEK, body)[:3])


def readdirplus(body: bytes) -> ReadDirPlus:
    return ReadDirPlus(*_unpack(_READ, body))


def copy_file_range(body: bytes) -> Copy:
    return Copy(*_unpack(_COPY, body)[:6])


def tmpfile(body: bytes) -> Tmpfile:
    flags, mode, umask, _ = _unpack(_CREATE, body)
    return Tmpfile(flags, mode & 0o7777, umask & 0o777)


def lock(body: bytes) -> Lock:
    handle, owner, start, end, kind, pid, flags, _ = _unpack(_LOCK, body)
    return Lock(handle, owner, start, end, kind, pid, bool(flags & _LK_FLOCK))


def present_times(body: bytes) -> tuple[bool, bool]:
    """Of SETATTR: whether the time of access, and of modification, is to be the present one. What comes with it is the
    clock of the caller's kernel, up to a tick behind."""
    (valid,) = _unpack(_SETATTR_VALID, body)
    return bool(valid & _ATIME_NOW), bool(valid & _MTIME_NOW)


def setxattr(body: bytes) -> SetXattr:
    size, flags = _unpack(_SETXATTR, body)
    name, end, value = body[_SETXATTR.size :].partition(b"\0")
    if not end or len(value) < size:
        raise BadMessage(f"a FUSE request to set an attribute of {size} bytes brings {len(value)}")
    return SetXattr(name, value[:size], flags)


def interrupted(body: bytes) -> int:
    """Which request is to be given up."""
    return _unpack(_INTERRUPT, body)[0]


def flush_owner(body: bytes) -> int:
    """Whose fcntl locks end with this close."""
    return _unpack(_FLUSH, body)[3]


def flock_owner_released(body: bytes) -> int | None:
    """Whose flock ends with this last close, if it held one."""
    _, _, flags, owner = _unpack(_RELEASE, body)
    return owner if flags & _RELEASE_FLOCK_UNLOCK else None


# --- replies ---------------------------------------------------------------------------------------------------------

_ENTRY = struct.Struct("=QQQQII")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
_OPEN = struct.Struct("=QII")
_OFFSET = struct.Struct("=Q")
_WRITTEN = struct.Struct("=II")
_LOCKED = struct.Struct("=QQII")
_STATX_REPLY = struct.Struct("=QII16x" + "IIQIIIH2xQQQQ" + 4 * "qI4x" + "IIII112x")

_STATX_BASIC_AND_BIRTH = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME
_OPEN_DIRECT_IO, _OPEN_KEEP_CACHE = 1 << 0, 1 << 1
_NS = 1_000_000_000
_DIRENTPLUS_BYTES = 152  # without the name
_U64 = (1 << 64) - 1


def _seconds(timeout_s: float) -> tuple[int, int]:
    return divmod(int(timeout_s * _NS), _NS)


def _device(rdev: int) -> tuple[int, int]:
    """Major and minor number of what MKNOD brought: new_decode_dev() of Linux."""
    return (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)


def attributes(inode: Inode) -> bytes:
    """struct fuse_attr."""
    times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
    return _ATTRIBUTES.pack(
        inode.ino,
        inode.size_bytes,
        -(-inode.used_bytes // SECTOR_BYTES),
        *((time // _NS) & _U64 for time in times),
        *(time % _NS for time in times),
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        BLOCK_SIZE_BYTES,
        0,
    )


def created(
    inode: Inode, handle: int, *, entry_timeout_s: float, attr_timeout_s: float, keep: bool, direct: bool
) -> bytes:
    """The reply to CREATE and TMPFILE."""
    entry_s, entry_ns = _seconds(entry_timeout_s)
    attr_s, attr_ns = _seconds(attr_timeout_s)
    flags = _OPEN_DIRECT_IO * direct | _OPEN_KEEP_CACHE * keep
    entry = _ENTRY.pack(inode.ino, 0, entry_s, attr_s, entry_ns, attr_ns)
    return entry + attributes(inode) + _OPEN.pack(handle, flags, 0)


def statx(inode: Inode, attr_timeout_s: float) -> bytes:
    """The reply to STATX: all that stat(2) tells, and the time of birth."""
    times = (inode.atime_ns, inode.btime_ns, inode.ctime_ns, inode.mtime_ns)
    return _STATX_REPLY.pack(
        *_seconds(attr_timeout_s),
        0,
        _STATX_BASIC_AND_BIRTH,
        BLOCK_SIZE_BYTES,
        0,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.mode,
        inode.ino,
        inode.size_bytes,
        -(-inode.used_bytes // SECTOR_BYTES),
        0,
        *(part for time in times for part in divmod(time, _NS)),
        *_device(inode.rdev),
        0,
        0,
    )


def entry_bytes(name: bytes) -> int:
    """How much of a reply to READDIRPLUS an entry takes: struct fuse_direntplus, the name, and up to the next eight."""
    return (_DIRENTPLUS_BYTES + len(name) + 7) & ~7


def offset(offset_bytes: int) -> bytes:
    """The reply to LSEEK and to COPY_FILE_RANGE_64."""
    return _OFFSET.pack(offset_bytes)


def written(size_bytes: int) -> bytes:
    """The reply to COPY_FILE_RANGE."""
    return _WRITTEN.pack(size_bytes, 0)


def locked(start_bytes: int, end_bytes: int, kind: int, pid: int) -> bytes:
    """The reply to GETLK; ``end_bytes`` is the last byte."""
    return _LOCKED.pack(start_bytes, end_bytes, kind, pid)
