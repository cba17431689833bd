"""Calls that Python has no function for: renameat2(2), utimensat(2) with UTIME_NOW and UTIME_OMIT, fallocate(2), and
directory streams with telldir(3) and seekdir(3)."""

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.readdir64.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]


def _failure(path: object) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(path))


def renameat2(source: Path | bytes, target: Path | bytes, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        raise _failure(source)


class DirStream:
    """One open directory stream: opendir(3) and its relatives."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            raise _failure(path)

    def __enter__(self) -> "DirStream":
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def read(self) -> bytes | None:
        """The next name, "." and ".." included; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if entry:
            return bytes(entry.contents.d_name)
        if ctypes.get_errno():
            raise _failure("readdir")
        return None

    def rest(self) -> list[bytes]:
        """All names to the end, without "." and ".."."""
        names = []
        while (name := self.read()) is not None:
            if name not in (b".", b".."):
                names.append(name)
        return names

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)


FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20

_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def fallocate(descriptor: int, mode: int, offset_bytes: int, length_bytes: int) -> None:
    """The system call itself; posix_fallocate(3) would write zeros where it is not supported."""
    if _libc.fallocate(descriptor, mode, offset_bytes, length_bytes) != 0:
        raise _failure(descriptor)


_AT_SYMLINK_FOLLOW = 0x400


def give_name(descriptor: int, path: Path) -> None:
    """linkat(2) of an open file, as open(2) recommends for O_TMPFILE. os.link() does not follow the link in /proc."""
    source = b"/proc/self/fd/%d" % descriptor
    if _libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_FOLLOW) != 0:
        raise _failure(path)


UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def utimensat(path: Path | bytes, atime_ns: int, mtime_ns: int, *, follow: bool = True) -> None:
    """Nanoseconds since 1970, or one of the two numbers above: this call cannot say so few nanoseconds."""
    times = (_Timespec * 2)()
    for place, time_ns in zip(times, (atime_ns, mtime_ns), strict=True):
        special = time_ns in (UTIME_NOW, UTIME_OMIT)
        place.tv_sec, place.tv_nsec = (0, time_ns) if special else divmod(time_ns, _NS)
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    if _libc.utimensat(_AT_FDCWD, os.fsencode(path), times, flags) != 0:
        raise _failure(path)
