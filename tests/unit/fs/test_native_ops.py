"""Requests from the compiled part: each is answered once, whatever happens to its handler."""

import errno
import struct

import pytest
import trio
import trio.testing

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.credentials import CredentialsCache
from shoalfs.fs.directory_pages import Timeouts
from shoalfs.fs.fuse_wire import Opcode
from shoalfs.fs.native_ops import NativeOps
from shoalfs.mds.messages import Lock, LockKind
from shoalfs.transport.errors import DeadlineExceeded, PosixError
from shoalfs.transport.ids import InodeId

LSEEK = struct.Struct("=QQII")
LOCK = struct.Struct("=4Q4I")


class Shim:
    def __init__(self):
        self.answers = []
        self.taken = b""
        self.take = None
        self.fails = None

    def install(self, take, opcodes, flags, max_background):
        self.take, self.taken = take, opcodes

    def opened(self):
        return 0

    def looked_up(self):
        return 0

    def made(self):
        return 0

    def found_bare(self):
        return 0

    def detach(self):
        self.take = None

    def reply(self, unique, error, body):
        self.answers.append((unique, error, body))
        if self.fails:
            raise self.fails
        return True

    def ask(self, opcode, unique, body):
        assert opcode in self.taken
        return self.take(opcode, unique, 7, 1000, 100, 42, body)


class Ranges:
    """``answer``: what a seek does."""

    async def seek(self, number, offset, whence):
        result = self.answer
        if isinstance(result, BaseException):
            raise result
        if isinstance(result, trio.Event):
            await result.wait()
            return 1
        return result


class Locks:
    def __init__(self):
        self.asked = []
        self.free = trio.Event()

    async def set(self, handle, lock, *, wait):
        self.asked.append((handle, lock, wait))
        if wait:
            await self.free.wait()

    async def test(self, lock):
        return self.found


@pytest.fixture
def shim():
    return Shim()


@pytest.fixture
def ranges():
    return Ranges()


@pytest.fixture
def locks():
    return Locks()


@pytest.fixture
def ops(shim, ranges, locks):
    credentials = CredentialsCache(lambda pid: set(), lambda: 0.0)
    return NativeOps(shim, None, locks, ranges, credentials, None, Timeouts(1.0, 1.0))


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def ask(ops, shim, ranges, answer):
    ranges.answer = answer
    async with ops.running():
        assert shim.ask(Opcode.LSEEK, 2, LSEEK.pack(1, 5, 4, 0))
        await settled()
    return shim.answers


async def test_an_answer(ops, shim, ranges):
    assert await ask(ops, shim, ranges, 77) == [(2, 0, wire.offset(77))]


@pytest.mark.parametrize(
    ("error", "number"), [(PosixError(errno.ENXIO), errno.ENXIO), (DeadlineExceeded("late"), DeadlineExceeded.errno)]
)
async def test_an_error_is_an_errno(ops, shim, ranges, error, number):
    assert await ask(ops, shim, ranges, error) == [(2, number, b"")]


async def test_a_short_request_is_refused(ops, shim):
    async with ops.running():
        shim.ask(Opcode.LSEEK, 2, b"short")
        await settled()
    assert shim.answers == [(2, errno.EINVAL, b"")]


async def test_a_broken_invariant_ends_the_mount_and_still_is_answered(ops, shim, ranges):
    with pytest.raises(BaseExceptionGroup) as raised:
        await ask(ops, shim, ranges, AssertionError("broken"))
    assert raised.group_contains(AssertionError, match="broken")
    assert shim.answers == [(2, errno.EIO, b"")]


async def test_at_the_end_what_is_open_is_answered(ops, shim, ranges):
    assert await ask(ops, shim, ranges, trio.Event()) == [(2, errno.EIO, b"")]
    assert shim.take is None


async def test_an_answer_that_nobody_waits_for_harms_nobody(ops, shim, ranges):
    shim.fails = OSError(errno.ENODEV, "unmounted")
    assert len(await ask(ops, shim, ranges, 77)) == 1


async def test_a_signal_ends_a_wait_for_a_lock(ops, shim, locks):
    async with ops.running():
        shim.ask(Opcode.SETLKW, 2, LOCK.pack(3, 9, 0, 99, LockKind.WRITE, 4, 0, 0))
        await settled()
        shim.ask(Opcode.SETLKW, 4, LOCK.pack(3, 9, 5, 6, LockKind.READ, 4, 1, 0))
        await settled()
        assert locks.asked == [
            (3, Lock(InodeId(7), False, 9, 0, 99, LockKind.WRITE, 4), True),
            (3, Lock(InodeId(7), True, 9, 0, (1 << 63) - 1, LockKind.READ, 4), True),
        ]
        assert shim.ask(Opcode.INTERRUPT, 5, struct.pack("=Q", 2)) is True
        await settled()
        assert shim.answers == [(2, errno.EINTR, b"")]
        locks.free.set()
        await settled()
    assert shim.answers == [(2, errno.EINTR, b""), (4, 0, b"")]


async def test_a_signal_ends_nothing_else(ops, shim, ranges):
    ranges.answer = trio.Event()
    async with ops.running():
        shim.ask(Opcode.LSEEK, 2, LSEEK.pack(1, 5, 4, 0))
        await settled()
        assert shim.ask(Opcode.INTERRUPT, 3, struct.pack("=Q", 2)) is True
        assert shim.ask(Opcode.INTERRUPT, 5, struct.pack("=Q", 99)) is False  # of pyfuse3's
        await settled()
        assert shim.answers == []
        ranges.answer.set()
        await settled()
    assert shim.answers == [(2, 0, wire.offset(1))]


async def test_getlk(ops, shim, locks):
    async with ops.running():
        locks.found = None
        shim.ask(Opcode.GETLK, 2, LOCK.pack(3, 9, 5, 6, LockKind.WRITE, 4, 0, 0))
        await settled()
        locks.found = Lock(InodeId(7), False, 8, 1, 2, LockKind.READ, 55)
        shim.ask(Opcode.GETLK, 4, LOCK.pack(3, 9, 5, 6, LockKind.WRITE, 4, 0, 0))
        await settled()
    assert shim.answers == [(2, 0, wire.locked(5, 6, LockKind.UNLOCK, 0)), (4, 0, wire.locked(1, 2, LockKind.READ, 55))]
