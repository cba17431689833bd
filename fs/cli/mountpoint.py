"""A mount point: in which state it is, and how a mount is taken off it.

Knows nothing of the filesystem behind it.
"""

import enum
import errno
import os
import shutil
import subprocess
import threading
import time
from queue import Empty, SimpleQueue
from typing import Final

from shoalfs.fs import mountinfo
from shoalfs.transport.errors import ShoalError, UserError

ANSWER_S: Final = 10.0  # for a mount to list its root; a cluster that fails over takes a few seconds
_POLL_S: Final = 0.05
_UMOUNT_S: Final = 120.0  # umount(8) waits while the last dirty pages are written


class Condition(enum.Enum):
    MISSING = "missing"
    NOT_A_DIRECTORY = "not a directory"
    FREE = "free"
    NOT_EMPTY = "not empty"
    SHOAL = "shoalfs is mounted"
    OTHER = "another filesystem is mounted"
    DEAD = "mounted, but its process is gone"
    SILENT = "mounted, but it does not answer"


def absolute(path: str) -> str:
    """``path`` as mountinfo spells it. The last part is not asked for its kind: a dead mount answers no
    question."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def condition(point: str) -> Condition:
    """In which state ``point`` (absolute) is. Waits at most ANSWER_S for a filesystem that is mounted
    there."""
    mounted = mountinfo.mounted_at(point, mountinfo.mounts())
    try:
        names = _list(point)
    except FileNotFoundError:
        return Condition.MISSING
    except NotADirectoryError:
        return Condition.NOT_A_DIRECTORY
    except TimeoutError:
        return Condition.SILENT
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # "Transport endpoint is not connected"
            return Condition.DEAD
        if mounted is None:
            raise
        names = []
    if mounted is not None:
        return Condition.SHOAL if mounted.is_shoal else Condition.OTHER
    return Condition.NOT_EMPTY if names else Condition.FREE


def _list(point: str) -> list[str]:
    """As os.listdir. Raises TimeoutError after ANSWER_S.

    The system call that waits cannot be called back: it is left behind in a thread, which ends with this
    process.
    """
    answer: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(os.listdir(point))
        except OSError as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answered = answer.get(timeout=ANSWER_S)
    except Empty:
        raise TimeoutError(errno.ETIMEDOUT, "does not answer", point) from None
    if isinstance(answered, OSError):
        raise answered
    return answered


def make_ready(point: str, *, create: bool) -> None:
    """See to it that something can be mounted at ``point``; a dead mount is taken off first.

    Raises UserError if it cannot be, with the remedy.
    """
    found = condition(point)
    if found is Condition.DEAD:
        unmount(point, lazy=True)
        found = condition(point)
    if found is Condition.MISSING and create:
        os.makedirs(point)
        return
    remedy = {
        Condition.MISSING: "no such directory: create it, or add --mkdir",
        Condition.NOT_A_DIRECTORY: "not a directory: name an empty directory",
        Condition.NOT_EMPTY: "not empty: name an empty directory",
        Condition.SHOAL: f"shoalfs is mounted there already: shoal umount {point}",
        Condition.OTHER: f"another filesystem is mounted there: umount {point}, or name another directory",
        Condition.DEAD: f"a dead mount that cannot be taken off: umount -l {point}",
        Condition.SILENT: f"a mount that does not answer: shoal umount -l {point}",
    }
    if found is not Condition.FREE:
        raise UserError(f"mount point: {point}: {remedy[found]}")


def unmount(point: str, *, lazy: bool) -> None:
    """Take the mount off ``point``. ``lazy``: out of sight at once, gone when nobody uses it any more.

    Raises ShoalError if it is in use or the caller may not.
    """
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), point]
    else:
        tool = shutil.which("fusermount3")
        if tool is None:
            raise UserError("umount: fusermount3: not found: install the package fuse3")
        command = [tool, "-u", *(["-z"] if lazy else []), point]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_UMOUNT_S
        )
    except subprocess.TimeoutExpired:
        raise ShoalError(f"umount: {point}: not done after {_UMOUNT_S:g} s: shoal umount -l {point}") from None
    if done.returncode == 0:
        return
    said = " ".join(done.stderr.split())
    if "busy" in said:
        raise ShoalError(f"umount: {point}: busy: end what uses it (fuser -vm {point}), or shoal umount -l {point}")
    raise ShoalError(f"umount: {point}: {said or f'exit status {done.returncode}'}")


def wait_answers(point: str, timeout_s: float) -> None:
    """Return when shoalfs lists its root at ``point``. Raises ShoalError if it does not in time."""
    give_up = time.monotonic() + timeout_s
    why = "nothing is mounted"
    while time.monotonic() < give_up:
        mounted = mountinfo.mounted_at(point, mountinfo.mounts())
        if mounted is not None and mounted.is_shoal:
            try:
                _list(point)
            except OSError as error:
                why = error.strerror or str(error)
            else:
                return
        time.sleep(_POLL_S)
    raise ShoalError(f"mount: {point}: does not answer after {timeout_s:g} s ({why}): read its log")
