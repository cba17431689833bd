"""The same call on two directories by the same user: what a filesystem under test does beside what a known one does.

One process per user, because a process that gave up root cannot take it back; it keeps that user's umask and open
files. A call is a name and arguments; paths are relative to the directory that the call is made on. The answer is a
value that can be compared, or ``errno.E...``. What no two filesystems agree on (inode numbers, sizes of directories,
times) is left out of answers; whether a call moved a time is in them.
"""

import errno
import mmap
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from harness.libc import UTIME_NOW, UTIME_OMIT, fallocate, renameat2, utimensat

ROOT, ALICE, BOB = "root", "alice", "bob"
USERS = {ROOT: (0, 0, ()), ALICE: (1000, 1000, (2000,)), BOB: (1001, 1001, (2000,))}

Answer = Any
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class Side:
    """One directory, as one user sees it."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._files: dict[int, int] = {}

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    # --- names ---

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self._at(path), mode, device)

    def bind(self, path: bytes) -> None:
        """Make a socket. Through a directory of the process, because names of sockets are short."""
        directory, name = os.path.split(self._at(path))
        back = os.open(".", os.O_RDONLY)
        try:
            os.chdir(directory)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(name)
        finally:
            os.fchdir(back)
            os.close(back)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def symlink_at(self, path: bytes, target: str) -> None:
        """The other way round, with a target that is no path of the call."""
        os.symlink(os.fsencode(target), self._at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def link(self, path: bytes, other: bytes, follow: bool) -> None:
        os.link(self._at(path), self._at(other), follow_symlinks=follow)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rename(self, path: bytes, other: bytes, flags: int) -> None:
        renameat2(self._at(path), self._at(other), flags)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    # --- attributes ---

    def stat(self, path: bytes, follow: bool) -> dict[str, int]:
        return self._told(os.stat(self._at(path), follow_symlinks=follow))

    def access(self, path: bytes, mask: int) -> bool:
        return os.access(self._at(path), mask)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def utime(self, path: bytes, times: list[int] | None, follow: bool) -> list[int] | None:
        """Nanoseconds, or None: the present."""
        if times is None:
            os.utime(self._at(path), follow_symlinks=follow)
            return None
        os.utime(self._at(path), ns=(times[0], times[1]), follow_symlinks=follow)
        status = os.stat(self._at(path), follow_symlinks=follow)
        return [status.st_atime_ns, status.st_mtime_ns]

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags)

    def getxattr(self, path: bytes, name: str) -> bytes:
        return os.getxattr(self._at(path), name)

    def removexattr(self, path: bytes, name: str) -> None:
        os.removexattr(self._at(path), name)

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(name for name in os.listxattr(self._at(path)) if not name.startswith("security."))

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int, follow: bool) -> list[int]:
        """utimensat(2); nanoseconds may be UTIME_OMIT and UTIME_NOW. The answer has the times that were chosen."""
        utimensat(self._at(path), atime_ns, mtime_ns, follow=follow)
        status = os.stat(self._at(path), follow_symlinks=follow)
        chosen = ((atime_ns, status.st_atime_ns), (mtime_ns, status.st_mtime_ns))
        return [found for asked, found in chosen if asked not in (UTIME_NOW, UTIME_OMIT)]

    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> int:
        """Of a file that is opened for it; its size afterwards."""
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NONBLOCK)
        try:
            fallocate(fd, mode, offset, length)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def open_once(self, path: bytes, flags: int, mode: int) -> dict[str, int]:
        """Open and close."""
        fd = os.open(self._at(path), flags | os.O_NONBLOCK, mode)
        try:
            return self._told(os.fstat(fd))
        finally:
            os.close(fd)

    # --- open files ---

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> dict[str, int]:
        self.close(slot)
        self._files[slot] = os.open(self._at(path), flags | os.O_NONBLOCK, mode)
        return self.fstat(slot)

    def close(self, slot: int) -> None:
        if slot in self._files:
            os.close(self._files.pop(slot))

    def _fd(self, slot: int) -> int:
        return self._files.get(slot, -1)  # EBADF

    def fstat(self, slot: int) -> dict[str, int]:
        return self._told(os.fstat(self._fd(slot)))

    def read(self, slot: int, offset: int, length: int) -> bytes:
        return os.pread(self._fd(slot), length, offset)

    def write(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._fd(slot), data, offset)

    def write_here(self, slot: int, data: bytes) -> list[int]:
        """At the file's own position: the end with O_APPEND."""
        fd = self._fd(slot)
        return [os.write(fd, data), os.lseek(fd, 0, os.SEEK_CUR)]

    def map_write(self, slot: int, offset: int, data: bytes) -> None:
        fd = self._fd(slot)
        with mmap.mmap(fd, os.fstat(fd).st_size) as mapped:
            mapped[offset : offset + len(data)] = data[: max(0, len(mapped) - offset)]

    def map_read(self, slot: int) -> bytes:
        fd = self._fd(slot)
        with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as mapped:
            return mapped[:]

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def umask(self, mask: int) -> None:
        os.umask(mask)

    # --- answers ---

    def moved(self, path: bytes) -> list[int]:
        """mtime and ctime of the name and of the directory it is in; 0 where there is nothing."""
        times: list[int] = []
        for place in (self._at(path), os.path.dirname(self._at(path))):
            try:
                status = os.lstat(place)
                times += [status.st_mtime_ns, status.st_ctime_ns]
            except OSError:
                times += [0, 0]
        return times

    def inodes(self, path: bytes) -> list[int]:
        """Of what :meth:`moved` tells the times of."""
        found = []
        for place in (self._at(path), os.path.dirname(self._at(path))):
            try:
                found.append(os.lstat(place).st_ino)
            except OSError:
                found.append(0)
        return found

    def around(self, path: bytes) -> list[dict[str, int] | None]:
        """The name and the directory that it is in, None where there is nothing."""
        found: list[dict[str, int] | None] = []
        for place in (self._at(path), os.path.dirname(self._at(path))):
            try:
                found.append(self._told(os.lstat(place)))
            except OSError:
                found.append(None)
        return found

    @staticmethod
    def _told(status: os.stat_result) -> dict[str, int]:
        told = {"mode": status.st_mode, "uid": status.st_uid, "gid": status.st_gid, "rdev": status.st_rdev}
        told["nlink"] = status.st_nlink
        if not stat.S_ISDIR(status.st_mode):
            told["size"] = status.st_size
        return told


MOVES_TIMES = frozenset(
    {
        "mkdir",
        "rmdir",
        "mknod",
        "bind",
        "symlink",
        "link",
        "unlink",
        "rename",
        "chmod",
        "chown",
        "setxattr",
        "removexattr",
    }
)
"""Calls that take a path first and leave the times of the file's bytes alone."""


def _carry_out(side: Side, name: str, arguments: list[Any]) -> Answer:
    if name == "effects":
        return _with_effects(side, *arguments)
    path = next((a for a in arguments if isinstance(a, bytes)), b"")
    timed = name in MOVES_TIMES
    before = side.moved(path) if timed else []
    answer = _answer(side, name, arguments)
    if not timed:
        return answer
    return [answer, [old != new for old, new in zip(before, side.moved(path), strict=True)]]


def _answer(side: Side, name: str, arguments: Sequence[Any]) -> Answer:
    try:
        return getattr(side, name)(*arguments)
    except OSError as error:
        return f"errno.{errno.errorcode.get(error.errno or 0, error.errno)}"
    except ValueError as error:  # mmap of nothing
        return f"ValueError: {error}"


def _with_effects(side: Side, name: str, *arguments: Any) -> Answer:
    """The answer, whether the times moved of everything that is named and of the directories it is in, and what is
    there afterwards."""
    paths = [argument for argument in arguments if isinstance(argument, bytes)]
    before = [(side.inodes(path), side.moved(path)) for path in paths]
    answer = _answer(side, name, arguments)
    moved = []
    for path, (inodes, times) in zip(paths, before, strict=True):
        found = [old != new for old, new in zip(times, side.moved(path), strict=True)]
        for number, same in enumerate(a == b for a, b in zip(inodes, side.inodes(path), strict=True)):
            if not same:  # another inode, whose times may happen to be the same
                found[2 * number : 2 * number + 2] = [True, True]
        moved.append(found)
    return [answer, moved, [side.around(path) for path in paths]]


class Person:
    """A process of one user, that makes each call on every root."""

    def __init__(self, user: str, roots: Sequence[str]) -> None:
        self._roots = [os.fsencode(root) for root in roots]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            try:
                self._serve(theirs, *USERS[user])
            finally:
                os._exit(0)
        theirs.close()
        self._channel = ours

    def call(self, name: str, *arguments: Any) -> list[Answer]:
        """The answers, one of each root."""
        _send(self._channel, [name, *arguments])
        return _receive(self._channel)

    def close(self) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)  # not only close: later children have copies of it
        self._channel.close()
        os.waitpid(self._pid, 0)

    def _serve(self, channel: socket.socket, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(0o022)
        os.chdir("/")
        sides = [Side(root) for root in self._roots]
        while True:
            try:
                name, *arguments = _receive(channel)
            except EOFError:
                return
            try:
                answers = [_carry_out(side, name, arguments) for side in sides]
            except BaseException as error:
                answers = [f"failed: {error!r}", "failed"]
            _send(channel, answers)


def _send(channel: socket.socket, message: Any) -> None:
    data = _encode(message)
    channel.sendall(len(data).to_bytes(4, "little") + data)


def _receive(channel: socket.socket) -> Any:
    return _decode(_exactly(channel.recv, int.from_bytes(_exactly(channel.recv, 4), "little")))


def _exactly(receive: Callable[[int], bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = receive(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
