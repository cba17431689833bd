"""The one error table: what can go wrong, its wire code, its errno, and whether trying again can help.

Three kinds, and nothing between them:

* An expected outcome of a call (``ENOENT``) is a :class:`PosixError`. It carries an errno and is final.
* Everything else that a peer can answer is a subclass of :class:`ShoalError` with a code of its own. Its ``retry``
  says once, here, what a caller may do; its ``errno`` is what a program sees when the caller gives up.
* A broken invariant of our own code is an ``AssertionError``. It has no code and is never caught: the process ends.

A user's mistake (wrong option, missing directory) is a :class:`UserError`: one line, exit code 2, no traceback.
"""

import enum
import errno as _errno
import os
from typing import ClassVar, Final


class Retry(enum.Enum):
    """What may help after an error."""

    NEVER = "never"  # the answer is final
    SAME = "same"  # the same peer, after a pause
    OTHER = "other"  # another peer: the leader, another replica
    REFRESH = "refresh"  # the caller's knowledge is old: fetch it again, then repeat


class ShoalError(Exception):
    """Base of all errors that may cross the wire. ``str(error)`` is one line for people."""

    code: ClassVar[int] = 1000
    errno: int = _errno.EIO
    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(self, text: str = "") -> None:
        super().__init__(text or (self.__doc__ or "").partition("\n")[0])


class PosixError(ShoalError):
    """An outcome that POSIX names. Its wire code is the errno itself (1..999)."""

    def __init__(self, errno: int, text: str = "") -> None:
        assert 0 < errno < 1000, errno
        super().__init__(text or os.strerror(errno))
        self.errno = errno


# --- transport (1000..1999) ------------------------------------------------------------------------------------------
class PeerUnreachable(ShoalError):
    """The peer could not be reached, or the connection broke before an answer came."""

    code = 1001
    retry = Retry.OTHER


class DeadlineExceeded(ShoalError):
    """The request's time ran out before an answer came; it may or may not have been carried out."""

    code = 1002
    errno = _errno.ETIMEDOUT
    retry = Retry.OTHER


class ProtocolViolation(ShoalError):
    """The peer sent something that the protocol does not allow; the connection is closed."""

    code = 1003


class WrongCluster(ShoalError):
    """The peer belongs to another cluster."""

    code = 1004


class VersionMismatch(ShoalError):
    """The peer speaks another version of the protocol."""

    code = 1005


class Overloaded(ShoalError):
    """The peer has no room for this request now."""

    code = 1006
    errno = _errno.EBUSY
    retry = Retry.SAME


class UnknownMethod(ShoalError):
    """The peer does not offer this method."""

    code = 1007
    errno = _errno.ENOSYS


class BadMessage(ShoalError):
    """The message does not fit its schema or its limits."""

    code = 1008
    errno = _errno.EINVAL


class NotAllowed(ShoalError):
    """The peer's role or certificate does not permit this method."""

    code = 1009
    errno = _errno.EPERM


# --- metadata service (2000..2999) -----------------------------------------------------------------------------------
class NotLeader(ShoalError):
    """This metadata node does not lead the group. The text is the leader's address, or empty when unknown."""

    code = 2001
    retry = Retry.OTHER

    def __init__(self, leader_address: str = "") -> None:
        Exception.__init__(self, leader_address)


class SessionGone(ShoalError):
    """The session has ended or was fenced; what it had not committed is lost."""

    code = 2002


class StaleOperation(ShoalError):
    """An operation came after a later one of the same slot; it was not applied and never will be."""

    code = 2003


class StaleReceipt(ShoalError):
    """A receipt is of an old target epoch, of a wrong target, or too few came: store the data again."""

    code = 2004
    retry = Retry.REFRESH


class LayoutConflict(ShoalError):
    """The file changed between inline and extents, or its inline bytes changed: fetch it again and repeat."""

    code = 2005
    retry = Retry.REFRESH


class DamagedRecord(ShoalError):
    """A metadata record does not match its checksum."""

    code = 2006

    def __init__(self, text: str = "", key: bytes = b"") -> None:
        super().__init__(text)
        self.key = key  # the row, so that a check can go on behind it; not sent


class ChunkNotReserved(ShoalError):
    """A commit names a chunk that this session never reserved."""

    code = 2007


# --- chunkserver (3000..3999) ----------------------------------------------------------------------------------------
class ChunkMissing(ShoalError):
    """The target does not have this chunk."""

    code = 3001
    retry = Retry.OTHER


class ChunkCorrupt(ShoalError):
    """The bytes do not match their checksum; they are never returned."""

    code = 3002
    retry = Retry.OTHER


class ChunkConflict(ShoalError):
    """The target already has this chunk with other bytes; a chunk is written once."""

    code = 3003


class TargetFull(ShoalError):
    """The target takes no more data."""

    code = 3004
    errno = _errno.ENOSPC
    retry = Retry.REFRESH


class TargetDown(ShoalError):
    """The target is out of service: unknown here, or its disk failed."""

    code = 3005
    retry = Retry.REFRESH


class TargetRemoved(ShoalError):
    """The target was removed from the cluster: its directory can be used again once it is empty."""

    code = 3006


class StorageFailed(Exception):
    """This node's own disk is full, failing or damaged: one line for the operator. The process ends."""


class UserError(Exception):
    """A mistake of the person at the keyboard: what, where, and what to do next, in one line."""

    exit_code: Final = 2


_BY_CODE: Final[dict[int, type[ShoalError]]] = {
    cls.code: cls
    for cls in (
        PeerUnreachable, DeadlineExceeded, ProtocolViolation, WrongCluster, VersionMismatch, Overloaded, UnknownMethod,
        BadMessage, NotAllowed, NotLeader, SessionGone, StaleOperation, StaleReceipt, LayoutConflict, DamagedRecord,
        ChunkNotReserved, ChunkMissing, ChunkCorrupt, ChunkConflict, TargetFull, TargetDown,
        TargetRemoved,
    )
}  # fmt: skip


def wire_code(error: ShoalError) -> int:
    """The number that stands for ``error`` on the wire and in recorded answers."""
    return error.errno if isinstance(error, PosixError) else error.code


def from_wire(code: int, text: str) -> ShoalError:
    """The error that a peer meant. An unknown code becomes a plain :class:`ShoalError`, which is final (EIO)."""
    if 0 < code < 1000:
        return PosixError(code, text)
    return _BY_CODE.get(code, ShoalError)(text)
