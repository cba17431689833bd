"""Sessions: their renewal, their leases, their locks."""

import enum
from typing import Final

from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.method import Message


class Renew(Message, frozen=True):
    """Keep the session alive. ``opens`` (all inodes it has open) is sent when the last reply asked for it, with
    ``writes``, those of which it keeps written bytes under a write lease. Both count only for the leadership
    ``reported_term`` that asked: since then the session may have been leased more by it, which the next leader does not
    know of."""

    session: SessionId
    opens: tuple[InodeId, ...] | None = None
    writes: tuple[InodeId, ...] = ()
    reported_term: int = 0


class Renewed(Message, frozen=True):
    ttl_ms: int
    map_epoch: int
    want_opens: bool  # the leader is new: drop what is cached under leases, then send what is open
    term: int = 0  # the leadership; a session that told its opens or locks to another one tells them again


LOCK_END: Final = (1 << 63) - 1
"""The last byte of a lock to the end of the file, wherever that will be: OFFSET_MAX of Linux."""


class LockKind(enum.IntEnum):
    """As F_RDLCK, F_WRLCK and F_UNLCK."""

    READ = 0
    WRITE = 1
    UNLOCK = 2


class Lock(Message, frozen=True):
    """A lock on bytes ``start_bytes`` to ``end_bytes`` (the last one, not the one behind it).

    ``flock``: of flock(2), which knows nothing of those of fcntl(2). ``owner`` is what the kernel of the session's
    machine calls the owner: a process, or an open file. ``pid`` is for people.
    """

    ino: InodeId
    flock: bool
    owner: int
    start_bytes: int
    end_bytes: int
    kind: int  # LockKind
    pid: int


class SetLock(Message, frozen=True):
    """Take, change or give back a lock. ``term``: the leadership to which the session last told its locks.

    ``wait``: a number of the session's choice, used once: the request stays at the leader until the lock is there, or
    for LOCK_PARK_MS. 0: do not wait.
    """

    session: SessionId
    term: int
    lock: Lock
    wait: int = 0


class GetLock(Message, frozen=True):
    """Which lock is in the way of this one?"""

    session: SessionId
    term: int
    lock: Lock


class CancelLock(Message, frozen=True):
    """Have the SetLock with this number answered now."""

    session: SessionId
    wait: int


class TellLocks(Message, frozen=True):
    """All locks that the session holds: for a leader that is new. Later ones to the same leader are ignored."""

    session: SessionId
    term: int
    locks: tuple[Lock, ...]


class LocksTold(Message, frozen=True):
    """``lost``: files on which a lock could not be taken over, because somebody else has been given one meanwhile."""

    term: int
    lost: tuple[InodeId, ...] = ()


class LockOutcome(enum.IntEnum):
    DONE = 0
    CONFLICT = 1  # ``conflict`` is in the way
    WAITING = 2  # still not there: ask again
    CANCELLED = 3
    DEADLOCK = 4  # waiting would never end
    GRACE = 5  # the leader is new and does not know all locks yet: ask again soon
    TELL = 6  # the leader is new: tell it the session's locks, then ask again


class LockAnswer(Message, frozen=True):
    outcome: int  # LockOutcome
    term: int  # the leadership that answers
    conflict: Lock | None = None


class Invalidate(Message, frozen=True):
    """The leader asks a client to drop what it caches under leases: the answers for these names, all names of these
    directories, these inodes. ``everything``: all of it, and the session is about to be ended."""

    session: SessionId
    names: tuple[tuple[InodeId, bytes], ...] = ()
    inodes: tuple[InodeId, ...] = ()
    directories: tuple[InodeId, ...] = ()
    everything: bool = False


class Invalidated(Message, frozen=True):
    """It is dropped, in the client and in its kernel. ``opens``: those of the inodes that it has open."""

    opens: tuple[InodeId, ...] = ()


class LeaseWrite(Message, frozen=True):
    """The session has the file open and wants to keep what is written to it: a write lease, which one session has at a
    time while no other may cache the inode. It ends with the RELEASE of the inode, and when it is called back. A CREATE
    that made the inode gives one whenever its answer is leased."""

    session: SessionId
    ino: InodeId


class WriteLeased(Message, frozen=True):
    """``granted`` False: what is written now has to be committed before write(2) returns. ``through_ms``: so has what
    is written within so many milliseconds, without asking again."""

    granted: bool
    through_ms: int = 0


class WriteBack(Message, frozen=True):
    """The leader asks a client to commit what it keeps of this inode, and to keep nothing that is written from now on
    until it has a new lease."""

    session: SessionId
    ino: InodeId


class WrittenBack(Message, frozen=True):
    """``done``: all that was written before is committed. If not, it could not be in time, or not at all, and the
    client goes on trying."""

    done: bool


class EvictSession(Message, frozen=True):
    """End a session of somebody else: what it has not committed is lost. Returns when that is done."""

    session: SessionId
