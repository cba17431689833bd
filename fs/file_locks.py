"""Locks as programs see them: what they hold off elsewhere, and what of the file is known once one is there.

A lock is worth something only if its holder sees what the last holder wrote. So what this mount has written to a file
is committed before a lock on it is given back or weakened, and after one was taken the attributes are asked for again;
if others have changed the file, the kernel forgets its pages before the program goes on. As NFS does.

fcntl(2) locks end when their owner closes *any* descriptor of the file, flock(2) ones with the last close of the open
file; so do those of F_OFD_SETLK, of which the kernel tells nobody: what was locked through one handle only ends with
it.
"""

import errno
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import trio

from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import LOCK_END, Lock, LockKind
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.fs.file_locks")


class Locks(Protocol):
    """The session's locks: :class:`~shoalfs.mds.lock_client.LockClient`."""

    def holds(self, ino: InodeId, owner: int, *, flock: bool) -> bool: ...

    async def test(self, lock: Lock) -> Lock | None: ...

    async def set(self, lock: Lock) -> Lock | None: ...

    async def wait(self, lock: Lock) -> None: ...


class FileLocks:
    """The locks of one mount."""

    def __init__(self, locks: Locks, vfs: Vfs) -> None:
        self._locks = locks
        self._vfs = vfs
        # Through which handles each owner has locked with fcntl, since it last held nothing.
        self._handles: defaultdict[tuple[InodeId, int], set[int]] = defaultdict(set)
        # Of each file, the last closes that are under way. Invariant: no empty sets.
        self._closing: defaultdict[InodeId, set[trio.Event]] = defaultdict(set)

    @contextmanager
    def closing(self, ino: InodeId) -> Iterator[None]:
        """While the last close of an open file is carried out. The kernel does not wait for that, and close(2) has
        returned; so whoever asks for a lock meanwhile waits until those of that open file are gone. To be entered
        before anything is awaited: the kernel's requests come in order."""
        done = trio.Event()
        self._closing[ino].add(done)
        try:
            yield
        finally:
            self._closing[ino].remove(done)
            if not self._closing[ino]:
                del self._closing[ino]
            done.set()

    async def _closed_before(self, ino: InodeId) -> None:
        for done in tuple(self._closing.get(ino, ())):
            await done.wait()

    async def test(self, lock: Lock) -> Lock | None:
        """F_GETLK: the lock that is in the way."""
        await self._closed_before(lock.ino)
        return await self._locks.test(lock)

    async def set(self, handle: int, lock: Lock, *, wait: bool) -> None:
        """F_SETLK and F_SETLKW, LOCK_NB or not. Raises PosixError: EAGAIN if somebody else has it, EDEADLK, ENOLCK.
        Cancelled: there is no lock, or it is there and this returns."""
        if lock.kind != LockKind.WRITE and self._locks.holds(lock.ino, lock.owner, flock=lock.flock):
            await self._commit(lock.ino)
        if lock.kind == LockKind.UNLOCK:
            await self._locks.set(lock)
            return
        await self._closed_before(lock.ino)
        self._vfs.check_lockable(handle)
        if not lock.flock:
            self._handles[lock.ino, lock.owner].add(handle)
        if wait:
            await self._locks.wait(lock)
        elif await self._locks.set(lock) is not None:
            raise PosixError(errno.EAGAIN)
        with trio.CancelScope(shield=True):
            # The lock is there: an interrupt comes too late.
            try:
                await self._vfs.revalidate(lock.ino)
            except ShoalError:
                await self._unlock(lock.ino, lock.owner, flock=lock.flock)
                raise

    async def closed(self, ino: InodeId, owner: int) -> None:
        """close(2) of a descriptor, committed already: the owner's fcntl locks on the file are gone."""
        self._handles.pop((ino, owner), None)
        await self._unlock(ino, owner, flock=False)

    async def released(self, ino: InodeId, handle: int, flock_owner: int | None) -> None:
        """The last close of an open file: its flock is gone, and what was locked through it only."""
        if flock_owner is not None:
            await self._unlock(ino, flock_owner, flock=True)
        for key in [key for key, handles in self._handles.items() if key[0] == ino and handles == {handle}]:
            del self._handles[key]
            await self._unlock(*key, flock=False)

    async def _unlock(self, ino: InodeId, owner: int, *, flock: bool) -> None:
        if self._locks.holds(ino, owner, flock=flock):
            lock = Lock(ino, flock, owner, 0, LOCK_END, LockKind.UNLOCK, 0)
            try:
                await self._locks.set(lock)
            except ShoalError as error:
                # With the session the locks are gone too; a leader that is new is not told of this one.
                log.warning("inode %d: a lock could not be given back: %s", ino, error)

    async def _commit(self, ino: InodeId) -> None:
        """What was written under the lock has to be there for the next one who takes it. An error is for close(2) and
        fsync(2) to tell, which try again; the lock is given back all the same."""
        try:
            await self._vfs.commit(ino)
        except ShoalError as error:
            log.error("inode %d: unlocked with bytes that are not committed: %s", ino, error)


def whole_file(lock: Lock) -> Lock:
    """flock(2) knows no ranges."""
    return msgspec.structs.replace(lock, start_bytes=0, end_bytes=LOCK_END)
