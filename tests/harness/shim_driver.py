"""Drives the compiled part as the kernel would, through a socket instead of /dev/fuse; run in a process of its own.

    PYTHONPATH=tests python -m harness.shim_driver SHIM.so

The parent runs it plainly and under AddressSanitizer. Prints "passed" at the end; anything else is a failure.
"""

import ctypes
import errno
import importlib.util
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter

from harness.shim_driver_makes import check_makes

HEADER = struct.Struct("=IIQQIIIHH")
REPLY = struct.Struct("=IiQ")
INIT, GETATTR, IOCTL, LSEEK, STATX, DESTROY = 26, 3, 39, 46, 52, 38
LOOKUP, OPEN, READ, RELEASE, FLUSH = 1, 14, 15, 18, 25
GETXATTR, LISTXATTR = 22, 23
KILLPRIV_V2 = 1 << 28
KEEP_CACHE = 2
NATIVE = 1 << 63
FOREVER_S = 1e12


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


def request(opcode: int, unique: int, body: bytes, node: int) -> bytes:
    return HEADER.pack(HEADER.size + len(body), opcode, unique, node, 1000, 100, 42, 0, 0) + body


def open_body(flags: int = os.O_RDONLY) -> bytes:
    return struct.pack("=II", flags, 0)


def close_body(handle: int) -> bytes:
    return struct.pack("=QIIQ", handle, 0, 0, 5)


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

    def ask(self, opcode: int, unique: int, body: bytes = b"", node: int = 7) -> None:
        self.process(request(opcode, unique, body, node))

    def send(self, opcode: int, unique: int, body: bytes = b"", node: int = 7) -> None:
        """To be received."""
        self.kernel.send(request(opcode, unique, body, node))

    def receive(self, buf: Buf) -> int:
        return self._library.fuse_session_receive_buf(self._session, ctypes.byref(buf))

    def answer(self) -> tuple[int, int, bytes]:
        raw = self.kernel.recv(1 << 18)
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


def opened(session: Session, unique: int, node: int) -> tuple[int, int]:
    """Open it, natively: the handle and the flags of the answer."""
    session.ask(OPEN, unique, open_body(), node)
    answered, error, body = session.answer()
    assert (answered, error) == (unique, 0), (answered, error)
    return struct.unpack_from("=QI", body)


def check_opens(shim, session: Session) -> None:
    """What is offered is opened, flushed and closed without a word, and nothing else."""
    taken = []
    shim.install(lambda *request: taken.append(request) or True, bytes([OPEN, FLUSH, RELEASE]), 0, 0)

    def passed_on() -> bool:
        return bool(taken) and taken.pop()[1] == 1000 and session.silent()

    session.ask(OPEN, 1000, open_body())
    assert passed_on()
    assert shim.offer(7, True) is True
    session.ask(OPEN, 1000, open_body())
    assert passed_on(), "nobody has said that leases may be believed"
    shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001)
    session.ask(OPEN, 1000, open_body())
    assert passed_on()
    shim.believe_until(FOREVER_S)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_SYNC, os.O_DSYNC):
        session.ask(OPEN, 1000, open_body(flags))
        assert passed_on(), flags
    session.ask(OPEN, 1000, b"short")
    assert passed_on()
    assert shim.any_open() is False
    first, flags = opened(session, 1000, 7)
    second, _ = opened(session, 1002, 7)
    assert first >= NATIVE < second != first
    assert flags == KEEP_CACHE
    assert shim.any_open() is True
    for opcode, handle in ((FLUSH, first), (RELEASE, first), (FLUSH, second)):
        session.ask(opcode, 1004, close_body(handle))
        assert session.answer() == (1004, 0, b"")
    session.ask(RELEASE, 1000, close_body(1))
    assert passed_on(), "a handle of Python's"
    assert shim.withdraw(7) == 1
    assert shim.withdraw(7) == 0
    assert shim.any_open() is False
    for opcode in (FLUSH, RELEASE):
        session.ask(opcode, 1000, close_body(second))
        assert passed_on(), "it is Python's now"
    shim.offer(8, False)
    assert [opened(session, n, 8)[1] for n in (1006, 1008)] == [0, KEEP_CACHE], "the first open drops what was there"
    assert shim.withdraw_all() == [(8, 2)]
    assert shim.withdraw_all() == []
    assert not shim.offer(0, True)
    assert shim.opened() == 4


def check_reads(shim, session: Session) -> None:
    """A file that is offered with its bytes is read without a word, and its bytes are let go of once they were."""
    taken = []
    shim.install(lambda *request: taken.append(request) or True, bytes([OPEN, READ, FLUSH, RELEASE]), 0, 0)
    data = bytes(random.Random(1).randbytes(1000))
    references = sys.getrefcount(data)

    def read(handle: int, offset: int, size: int, node: int = 9) -> bytes | None:
        session.ask(READ, 1000, struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0), node)
        if taken:
            assert taken.pop()[0] == READ
            assert session.silent()
            return None
        unique, error, body = session.answer()
        assert (unique, error) == (1000, 0)
        return body

    shim.offer(9, False, data)
    handle, _ = opened(session, 1000, 9)
    assert read(handle, 0, 300) == data[:300]
    assert shim.read_through() == [], "not to its end"
    assert [read(handle, at, 4096) for at in (0, 900, 1000, 1 << 62)] == [data, data[900:], b"", b""]
    assert read(handle, 0, 0) == b""
    assert read(3, 0, 10) is None, "a handle of Python's"
    session.ask(READ, 1000, b"short", 9)
    assert taken.pop()[0] == READ
    assert shim.read_through() == [9]
    assert shim.read_through() == []
    assert read(handle, 0, 10) is None, "the kernel has its bytes; Python is asked if it has not"
    assert opened(session, 1000, 9)[1] == KEEP_CACHE
    assert shim.withdraw(9) == 2
    # Read, and withdrawn and offered anew before anybody asked: what was read then is not what is offered now.
    shim.offer(9, False, data)
    handle, _ = opened(session, 1000, 9)
    assert read(handle, 0, 4096) == data
    shim.withdraw(9)
    shim.offer(9, False, data[:5])
    assert shim.read_through() == []
    handle, _ = opened(session, 1000, 9)
    assert read(handle, 0, 4096) == data[:5]
    shim.offer(9, True, data)
    assert shim.read_through() == [], "other bytes are offered now"
    shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001)
    assert read(handle, 0, 4096) is None, "the lease may be over"
    shim.believe_until(FOREVER_S)
    shim.offer(9, True, b"")
    assert read(handle, 0, 4096) == b""
    assert shim.read_through() == [9]
    for node in range(1, 3000):
        shim.offer(node, True, data)
    for node in range(1, 1000):
        shim.offer(node, True, data if node % 2 else None)
    for node in range(1000, 2000):
        shim.withdraw(node)
    shim.withdraw_all()
    # A view, which whoever gave it may release; and of something large.
    large = bytes(random.Random(2).randbytes(1_000_000))
    view = memoryview(large)[:300_000]
    shim.offer(9, False, view)
    view.release()
    handle, _ = opened(session, 1000, 9)
    assert [read(handle, at, 131_072) for at in (0, 131_072, 262_144)] == [
        large[:131_072],
        large[131_072:262_144],
        large[262_144:300_000],
    ]
    assert shim.read_through() == [9]
    assert shim.withdraw(9) == 1
    assert sys.getrefcount(data) == references
    for wrong in (bytearray(5), memoryview(bytearray(5)), memoryview(data)[::2], 5):
        try:
            shim.offer(9, True, wrong)
        except TypeError:
            continue
        raise AssertionError(f"taken: {wrong!r}")


ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")


def attributes(node: int) -> bytes:
    return ATTR.pack(node, 100 + node % 50, 1, 2, 3, 4, 5, 6, 7, 0o100644, 1, 8, 9, 0, 4096, 0)


def check_names(shim, session: Session) -> None:
    """A name that leads to what is offered is looked up without a word, once, and no longer than that is offered."""
    taken = []
    shim.install(lambda *request: taken.append(request) or True, bytes([LOOKUP]), 0, 0)

    def lookup(parent: int, name: bytes) -> tuple[float, float, bytes] | None:
        session.ask(LOOKUP, 2000, name + b"\0", parent)
        if taken:
            assert taken.pop()[2] == parent
            assert session.silent()
            return None
        unique, error, body = session.answer()
        assert (unique, error) == (2000, 0)
        node, generation, entry_s, attr_s, entry_ns, attr_ns = ENTRY.unpack_from(body)
        told = body[ENTRY.size :]
        assert (node, generation) == (ATTR.unpack(told)[0], 0)
        return entry_s + entry_ns / 1e9, attr_s + attr_ns / 1e9, told

    assert shim.offer(9, True)
    assert not shim.offer_name(1, b"nine", attributes(9)), "the kernel may keep none"
    shim.keep_names(30.0, 0.5)
    assert not shim.offer_name(1, b"ten", attributes(10)), "it is not offered"
    assert shim.offer_name(1, b"nine", attributes(9))
    assert [lookup(*other) for other in ((1, b"nin"), (1, b"nine9"), (2, b"nine"), (1, b""), (1, b"n" * 300))] == [
        None
    ] * 5
    session.ask(LOOKUP, 2000, b"nine", 1)  # no end
    assert taken.pop()[6] == b"nine"
    assert lookup(1, b"nine") == (30.0, 0.5, attributes(9))
    assert lookup(1, b"nine") is None, "the kernel knows it"
    for end in (
        lambda: shim.withdraw(9),
        lambda: shim.withdraw_all(),
        lambda: shim.withdraw_name(1, b"nine"),
        lambda: shim.withdraw_names(),
        lambda: shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001),
    ):
        shim.offer(9, True)
        assert shim.offer_name(1, b"nine", attributes(9))
        end()
        assert lookup(1, b"nine") is None
    shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) + 5.0)
    shim.offer_name(1, b"nine", attributes(9))
    entry_s, attr_s, _ = lookup(1, b"nine")
    assert 4.5 < entry_s <= 5.0
    assert attr_s == 0.5, "no longer than the lease"
    shim.believe_until(FOREVER_S)
    shim.offer_name(1, b"nine", attributes(9))
    shim.offer_name(1, b"other", attributes(9))
    assert lookup(1, b"nine") is None, "one name at a time"
    shim.offer(10, True)
    shim.offer_name(1, b"other", attributes(10))
    assert lookup(1, b"other")[2] == attributes(10), "it leads elsewhere now"
    shim.offer_name(1, b"other", attributes(10))
    assert shim.offer(10, False), "it is still offered"
    assert lookup(1, b"other")[2] == attributes(10)
    for wrong in (
        (1, b"", attributes(9)),
        (1, b"n" * 256, attributes(9)),
        (1, b"a\0b", attributes(9)),
        (1, b"n", b"short"),
    ):
        try:
            shim.offer_name(*wrong)
        except ValueError:
            continue
        raise AssertionError(f"taken: {wrong!r}")
    shim.withdraw_all()

    rng = random.Random(6)
    model: dict[int, tuple[int, bytes]] = {}
    offered: set[int] = set()
    for step in range(20_000):
        node, parent, name = rng.randrange(1, 2000), rng.randrange(1, 4), b"name-%d" % rng.randrange(3000)
        what = rng.random()
        if what < 0.3:
            shim.offer(node, True)
            offered.add(node)
        elif what < 0.4:
            shim.withdraw(node)
            offered.discard(node)
            model.pop(node, None)
        elif what < 0.7:
            assert shim.offer_name(parent, name, attributes(node)) == (node in offered)
            if node in offered:
                model = {other: led for other, led in model.items() if led != (parent, name)}
                model[node] = parent, name
        elif what < 0.8:
            shim.withdraw_name(parent, name)
            model = {other: led for other, led in model.items() if led != (parent, name)}
        else:
            (node,) = [other for other, led in model.items() if led == (parent, name)] or [0]
            answer = lookup(parent, name)
            assert (answer and answer[2]) == (attributes(node) if node else None), step
            model.pop(node, None)
    for node, led in model.items():
        assert lookup(*led)[2] == attributes(node)
    shim.withdraw_all()
    shim.keep_names(0.0, 0.0)


def check_bare(shim, session: Session) -> None:
    """Of what is offered as having no attributes nobody is told any, and of nothing else."""
    taken = []
    shim.install(lambda *request: taken.append(request) or True, bytes([GETXATTR, LISTXATTR]), 0, 0)

    def asked(opcode: int, body: bytes, node: int) -> tuple[int, bytes] | None:
        session.ask(opcode, 3000, body, node)
        if taken:
            assert taken.pop()[0] == opcode
            assert session.silent()
            return None
        unique, error, answer = session.answer()
        assert unique == 3000
        return error, answer

    def get(name: bytes, node: int = 9) -> tuple[int, bytes] | None:
        return asked(GETXATTR, struct.pack("=II", 255, 0) + name + b"\0", node)

    assert get(b"user.a") is None
    shim.offer_bare([9])
    absent = (b"user.a", b"security.selinux", b"trusted.x", b"system.posix_acl_access", b"system.posix_acl_default")
    assert [get(name) for name in absent] == [(errno.ENODATA, b"")] * 5
    others = (b"", b"user", b"user.", b"trusted.shoal.pool", b"system.other", b"os2.a", b"system.posix_acl_access2")
    assert [get(name) for name in others] == [None] * 7, "Python has other answers"
    assert asked(GETXATTR, struct.pack("=II", 0, 0) + b"user.a", 9) is None, "no end"
    assert asked(GETXATTR, b"short", 9) is None
    assert asked(LISTXATTR, struct.pack("=II", 0, 0), 9) == (0, struct.pack("=II", 0, 0)), "how long it would be"
    assert asked(LISTXATTR, struct.pack("=II", 100, 0), 9) == (0, b"")
    assert asked(LISTXATTR, b"short", 9) is None
    assert get(b"user.a", 8) is None
    assert shim.found_bare() == 7
    for end in (
        lambda: shim.withdraw_bare(9),
        lambda: shim.withdraw_all_bare(),
        lambda: shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001),
    ):
        shim.offer_bare((9,))
        end()
        assert get(b"user.a") is None
    shim.believe_until(FOREVER_S)
    for wrong in ([1, -1], ["1"], 1):
        try:
            shim.offer_bare(wrong)
        except (OverflowError, TypeError):
            continue
        raise AssertionError(f"taken: {wrong!r}")
    shim.withdraw_all_bare()
    rng = random.Random(8)
    nodes = [rng.randrange(1, 1 << rng.choice((8, 20, 63))) for _ in range(3000)]
    model: set[int] = set()
    for _ in range(20_000):
        node, what = rng.choice(nodes), rng.random()
        if what < 0.4:
            shim.offer_bare([node])
            model.add(node)
        elif what < 0.7:
            shim.withdraw_bare(node)
            model.discard(node)
        else:
            assert (get(b"user.a", node) is not None) == (node in model)
    shim.withdraw_all_bare()
    shim.offer_bare([0])
    assert get(b"user.a", 0) is None, "there is no such inode"
    shim.offer_bare(list(range(1, (1 << 18) + 2)))
    assert (get(b"user.a", 1 << 18), get(b"user.a", (1 << 18) + 1)) == ((errno.ENODATA, b""), None), "no room"
    shim.withdraw_all_bare()


def check_askers(shim, session: Session) -> None:
    """A thread is heard by what it waits for, from the moment on from which it is listened to."""
    shim.install(lambda *request: True, bytes([LOOKUP, READ, RELEASE, GETXATTR]), 0, 0)
    for node, length in ((7, 5), (9, 0)):
        session.ask(LOOKUP, 4000, b"x" * length, node)  # of thread 42, as all
    since = shim.listen_to(42)
    assert not shim.has_asked(42, since), "before"
    for opcode in (READ, RELEASE):
        session.ask(opcode, 4000, bytes(40))
    assert not shim.has_asked(42, since), "not waited for"
    other = shim.listen_to(43)
    session.ask(LOOKUP, 4000, b"name\0")
    assert shim.has_asked(42, since)
    assert not shim.has_asked(43, other)
    later = shim.listen_to(42)
    assert not shim.has_asked(42, later)
    assert shim.has_asked(42, since), "still"
    session.ask(GETXATTR, 4000, bytes(8) + b"user.a\0")
    assert shim.has_asked(42, later)
    later = shim.listen_to(42)
    for thread in range(100, 5000):
        shim.listen_to(thread)
    session.ask(LOOKUP, 4000, b"name\0")
    assert not shim.has_asked(42, later), "too many: it is forgotten, which is taken for silence"
    assert not shim.has_asked(0, shim.listen_to(0)), "a thread that the mount cannot see"
    later = shim.listen_to(42)
    session.ask(LOOKUP, 4000, b"name\0")
    assert shim.has_asked(42, later)


def check_table(shim, session: Session) -> None:
    """The table against a dictionary."""
    rng = random.Random(4)
    model: Counter[int] = Counter()
    offered: set[int] = set()
    nodes = [rng.randrange(1, 1 << rng.choice((8, 20, 63))) for _ in range(3000)]
    for step in range(20_000):
        node = rng.choice(nodes)
        if rng.random() < 0.5:
            assert shim.offer(node, True)
            offered.add(node)
        elif rng.random() < 0.5:
            assert shim.withdraw(node) == model.pop(node, 0)
            offered.discard(node)
        elif node in offered:
            opened(session, 1000 + 2 * step, node)
            model[node] += 1
    assert sorted(shim.withdraw_all()) == sorted(model.items())
    for node in range(1, (1 << 18) + 1):
        assert shim.offer(node, True), node
    assert not shim.offer(1 << 40, True), "no room"
    assert shim.offer(1, True), "there already"
    shim.withdraw(5)
    assert shim.offer(1 << 40, True)
    assert shim.withdraw_all() == []


def check_serving(shim, session: Session) -> None:
    """Receiving: what is answered here never comes out."""
    buf = Buf(0, 0, None, -1, 0)
    assert shim.serve(64) == 0
    assert session.receive(buf) == -errno.EINTR
    shim.offer(7, True)
    for n in range(3):
        session.send(OPEN, 10 + 2 * n, open_body())
    assert shim.serve(2) == 2
    assert shim.serve(64) == 0
    assert [session.answer()[:2] for _ in range(3)] == [(10, 0), (12, 0), (14, 0)]
    session.send(OPEN, 16, open_body())
    session.send(READ, 18, b"for Python" + bytes(30))
    session.send(OPEN, 20, open_body())
    assert shim.serve(64) == 1
    assert shim.serve(64) == 1, "it waits to be received"
    assert session.answer()[0] == 16
    assert session.silent()
    for expected in (READ, LSEEK):
        count = session.receive(buf)
        raw = ctypes.string_at(buf.mem, count)
        assert (buf.size, buf.flags, HEADER.unpack_from(raw)[:2]) == (count, 0, (count, expected))
        assert session.receive(buf) == -errno.EINTR
        session.send(LSEEK, 22, bytes(range(200)) * 300)
        assert shim.serve(64) == 1
    assert ctypes.string_at(buf.mem, count)[HEADER.size :] == bytes(range(200)) * 300
    session.receive(buf)
    assert session.answer()[0] == 20
    assert shim.withdraw(7) == 5
    ctypes.CDLL(None).free(ctypes.c_void_p(buf.mem))


def check_idling(shim, session: Session) -> None:
    """In the place of an event loop that sleeps."""
    buf = Buf(0, 0, None, -1, 0)
    wake, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    events = select.epoll()
    events.register(wake, select.EPOLLIN)
    events.register(other, select.EPOLLIN)

    def woken() -> list[int]:
        return [fd for fd, _ in events.poll(0)]

    shim.offer(7, True)
    began = time.monotonic()
    shim.idle(events.fileno(), wake, 0.05)
    assert time.monotonic() - began >= 0.05
    assert woken() == [wake], "the loop's time has passed"
    shim.idle(events.fileno(), wake, 60.0)  # returns: who was woken has not come yet
    assert shim.serve(64) == 0
    assert woken() == []
    shim.idle(events.fileno(), wake, 0.0)
    assert woken() == []

    def soon(*steps) -> threading.Thread:
        def run() -> None:
            for step in steps:
                time.sleep(0.02)
                step()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    thread = soon(
        lambda: session.send(OPEN, 30, open_body()),
        lambda: session.send(OPEN, 32, open_body()),
        lambda: os.eventfd_write(other, 1),
    )
    shim.idle(events.fileno(), wake, 60.0)
    thread.join()
    assert [session.answer()[:2] for _ in range(2)] == [(30, 0), (32, 0)], "answered while the loop slept"
    assert woken() == [other]
    os.eventfd_read(other)
    thread = soon(lambda: session.send(OPEN, 34, open_body()), lambda: session.send(READ, 36, bytes(40)))
    shim.idle(events.fileno(), wake, 60.0)
    thread.join()
    assert session.answer()[0] == 34
    assert woken() == [wake]
    assert shim.serve(64) == 1
    assert woken() == []
    shim.idle(events.fileno(), wake, 60.0)  # returns: one waits to be received
    assert session.receive(buf) == HEADER.size + 40
    for n in range(70):
        session.send(OPEN, 100 + 2 * n, open_body())
    shim.idle(events.fileno(), wake, 0.0)
    assert woken() == [wake], "there may be more, and the loop has something else to do"
    assert shim.serve(64) == 0
    assert [session.answer()[0] for _ in range(70)] == [100 + 2 * n for n in range(70)]
    assert shim.withdraw(7) == 73
    session.kernel.close()
    shim.idle(events.fileno(), wake, 60.0)
    assert woken() == [wake], "the session ends"
    assert shim.serve(64) == 1
    assert session.receive(buf) <= 0
    ctypes.CDLL(None).free(ctypes.c_void_p(buf.mem))


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

    check_opens(shim, session)
    check_reads(shim, session)
    check_names(shim, session)
    check_bare(shim, session)
    check_askers(shim, session)
    check_table(shim, session)
    check_serving(shim, session)
    check_makes(shim, session)

    shim.offer(7, True)
    shim.detach()
    shim.detach()
    assert shim.withdraw(7) == 0
    assert shim.serve(64) == -1
    assert shim.granted() is None
    try:
        shim.reply(4, 0, b"")
        raise SystemExit("nothing is written after the end")
    except OSError as failure:
        assert failure.errno == errno.ENOTCONN
    session.ask(LSEEK, 18, b"body")
    assert session.answer() == (18, errno.ENOSYS, b"")
    shim.install(take, b"", 0, 0)
    session = Session(library)
    session.ask(INIT, 2, struct.pack("=IIII", 7, 38, 1 << 17, KILLPRIV_V2 | 1) + bytes(48))
    session.answer()
    shim.believe_until(FOREVER_S)
    check_idling(shim, session)
    shim.detach()
    print("passed")


if __name__ == "__main__":
    main(sys.argv[1])
