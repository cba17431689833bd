"""Drives the compiled part as the kernel would, through a socket instead of /dev/fuse; run in a process of its own.

    python shim_driver.py SHIM.so

The parent runs it plainly and under AddressSanitizer. Prints "passed" at the end; anything else is a failure.
"""

import ctypes
import errno
import importlib.util
import os
import socket
import struct
import sys

HEADER = struct.Struct("=IIQQIIIHH")
REPLY = struct.Struct("=IiQ")
INIT, GETATTR, IOCTL, LSEEK, STATX, DESTROY = 26, 3, 39, 46, 52, 38
KILLPRIV_V2 = 1 << 28


class Buf(ctypes.Structure):
    """struct fuse_buf"""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_int64),
    ]


class Args(ctypes.Structure):
    """struct fuse_args"""

    _fields_ = [("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int)]


def load(path: str):
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("_fuse_shim", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_GLOBAL)


class Session:
    """A libfuse session without handlers, whose descriptor is one end of a socket pair."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(5)
        self._library = library
        fuse = ctypes.CDLL("libfuse3.so.3")
        fuse.fuse_session_new.restype = ctypes.c_void_p
        argv = (ctypes.c_char_p * 1)(b"driver")
        operations = (ctypes.c_void_p * 64)()
        self._keep = (argv, operations)
        args = Args(1, argv, 0)
        self._session = ctypes.c_void_p(fuse.fuse_session_new(ctypes.byref(args), operations, 8 * 44, None))
        assert self._session.value
        assert fuse.fuse_session_mount(self._session, f"/dev/fd/{ours.detach()}".encode()) == 0

    def process(self, raw: bytes, size: int | None = None, flags: int = 0) -> None:
        # Memory of exactly this size, so that a read beyond its end is one that AddressSanitizer sees.
        memory = ctypes.create_string_buffer(raw, len(raw)) if raw else ctypes.create_string_buffer(1)
        buf = Buf(len(raw) if size is None else size, flags, ctypes.cast(memory, ctypes.c_void_p).value, -1, 0)
        self._library.fuse_session_process_buf(self._session, ctypes.byref(buf))

    def ask(self, opcode: int, unique: int, body: bytes = b"") -> None:
        self.process(HEADER.pack(HEADER.size + len(body), opcode, unique, 7, 1000, 100, 42, 0, 0) + body)

    def answer(self) -> tuple[int, int, bytes]:
        raw = self.kernel.recv(4096)
        length, error, unique = REPLY.unpack_from(raw)
        assert length == len(raw), (length, len(raw))
        return unique, -error, raw[REPLY.size :]

    def silent(self) -> bool:
        self.kernel.setblocking(False)
        try:
            self.kernel.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.kernel.settimeout(5)
        return False


def main(path: str) -> None:
    shim, library = load(path)
    session = Session(library)
    taken = []

    def take(*request):
        taken.append(request)
        if request[-1] == b"raise":
            raise ValueError("a handler that fails")
        return request[-1] != b"not mine"

    assert shim.granted() is None
    assert shim.current() is None
    try:
        shim.install(take, bytes([200]), 0, 0)
        raise SystemExit("200 is no operation")
    except ValueError:
        pass
    shim.install(take, bytes([LSEEK, STATX]), KILLPRIV_V2 | 1 << 2, 64)

    # Before INIT nothing is taken; INIT's reply gets what is wanted and offered.
    session.ask(INIT, 2, struct.pack("=IIII", 7, 38, 1 << 17, KILLPRIV_V2 | 1) + bytes(48))
    unique, error, body = session.answer()
    major, minor, _, flags, background, threshold = struct.unpack_from("=IIIIHH", body)
    assert (unique, error, major, minor > 30) == (2, 0, 7, True)
    assert flags & KILLPRIV_V2, hex(flags)
    assert not flags & 1 << 2, "not offered"
    assert (background, threshold) == (64, 48)
    assert shim.granted() == KILLPRIV_V2

    # Taken, and answered later, once.
    session.ask(LSEEK, 4, b"body")
    assert taken == [(LSEEK, 4, 7, 1000, 100, 42, b"body")]
    assert session.silent()
    assert shim.reply(4, 0, b"answer") is True
    assert session.answer() == (4, 0, b"answer")
    shim.reply(4, errno.EINTR, b"")
    assert session.answer() == (4, errno.EINTR, b"")

    # Passed on: libfuse has no handler for them, nor for what nobody asked for.
    for opcode, text in ((LSEEK, b"not mine" + bytes(0)), (GETATTR, bytes(16))):
        session.ask(opcode, 6, text.ljust(8, b"\0") if opcode == GETATTR else text)
        assert session.answer() == (6, errno.ENOSYS, b"")
    assert shim.current() == (GETATTR, 6, 7, bytes(16))

    # A handler that raises: EIO, and the exception is reported, not lost.
    seen = []
    sys.unraisablehook = seen.append
    session.ask(LSEEK, 8, b"raise")
    assert session.answer() == (8, errno.EIO, b"")
    assert len(seen) == 1

    session.ask(IOCTL, 10, bytes(32))
    assert session.answer() == (10, errno.ENOTTY, b"")

    # A long body is given whole, and kept in part.
    session.ask(STATX, 12, bytes(range(256)) * 16)
    assert taken[-1][-1] == bytes(range(256)) * 16
    assert shim.current()[3] == bytes(range(64))
    for _ in range(200):
        session.ask(STATX, 14, os.urandom(70))
        session.ask(LSEEK, 16)
    assert session.silent()

    shim.detach()
    shim.detach()
    assert shim.granted() is None
    try:
        shim.reply(4, 0, b"")
        raise SystemExit("nothing is written after the end")
    except OSError as failure:
        assert failure.errno == errno.ENOTCONN
    session.ask(LSEEK, 18, b"body")
    assert session.answer() == (18, errno.ENOSYS, b"")
    print("passed")


if __name__ == "__main__":
    main(sys.argv[1])
