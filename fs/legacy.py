"""What a mount leaves to the next one at its point, should it be killed: the nonce of its session.

The session of a mount that is gone holds what it had: write leases, locks, files that are open. Everybody else waits
for them until it has been silent for its TTL. But who mounts at the same point after a crash can end it at once
(:class:`~shoalfs.mds.client.Legacy`), if it knows that nobody is there any more.

**Knowing that.** A mount holds a lock (flock(2)) on its file as long as its process lives, whatever becomes of its
mount point, and of its process id in some container. Who gets the lock is the heir; who does not, because the last
mount was only taken out of sight (``umount -l``), leaves nothing and inherits nothing.

**The file**: 32 hex digits and a newline, or nothing. The nonce is written before the session is opened, so a crash in
between leaves one that opens, and ends, a session of nobody. Not synced: if a power cut takes it, others wait for the
TTL. Anything else that stands there is taken for nothing. The file is removed when the session has ended in order.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("shoal.fs.legacy")

_TRIES: Final = 5  # to find the file that was locked still in its place
_LINE: Final = re.compile(rb"[0-9a-f]{32}\n")
_MODE: Final = 0o600  # who knows the nonce can end the session


class Legacy:
    """``nonce``: of the session that the last mount has left; empty if there is none."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        line = os.pread(fd, 64, 0)
        self.nonce = bytes.fromhex(line.decode()) if _LINE.fullmatch(line) else b""

    def remember(self, nonce: bytes) -> None:
        """See :class:`~shoalfs.mds.client.Legacy`. What cannot be written is left: others will wait for the TTL."""
        try:
            os.ftruncate(self._fd, 0)
            if nonce:
                os.pwrite(self._fd, f"{nonce.hex()}\n".encode(), 0)
            else:
                os.unlink(self._path)
        except OSError as error:
            log.warning("%s: %s: if this mount is killed, others wait for its session", self._path, error.strerror)


@contextmanager
def legacy_at(path: str) -> Iterator[Legacy | None]:
    """What is left at ``path``, whose directory is made if it is missing, for as long as the block lasts. None: nothing
    can be inherited or left, because the last mount's process lives, or because the place cannot be written to."""
    fd = _locked(path)
    try:
        yield None if fd is None else Legacy(path, fd)
    finally:
        if fd is not None:
            os.close(fd)


def _locked(path: str) -> int | None:
    """A descriptor of the file that is at ``path``, locked."""
    for _ in range(_TRIES):
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        except OSError as error:
            log.info("%s: %s: if this mount is killed, others wait for its session", path, error.strerror)
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            log.info(
                "%s: the process of the last mount lives: if this one is killed, others wait for its session", path
            )
            os.close(fd)
            return None
        except FileNotFoundError:
            pass
        os.close(fd)  # it was removed between the two calls
    return None
