"""A mount point: in which state it is, and how a mount is taken off it.

Knows nothing of the filesystem behind it.
"""

import enum
import errno
import os
import shutil
import subprocess
import time

from shoalfs.fs.cli import mountinfo
from shoalfs.transport.errors import ShoalError, UserError

_POLL_S = 0.05


class Condition(enum.Enum):
    MISSING = "missing"
    NOT_A_DIRECTORY = "not a directory"
    FREE = "free"
    NOT_EMPTY = "not empty"
    SHOAL = "shoalfs is mounted"
    OTHER = "another filesystem is mounted"
    DEAD = "mounted, but its process is gone"


def mounts() -> list[mountinfo.Mount]:
    """What is mounted now, as this process sees it."""
    # Bytes outside UTF-8 keep their place in paths; a line is never lost for them.
    with open(mountinfo.PATH, encoding="utf-8", errors="surrogateescape") as file:
        return mountinfo.parse(file.read())


def absolute(path: str) -> str:
    """``path`` as mountinfo spells it. The last part is not asked for its kind: a dead mount answers no
    question."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def condition(point: str) -> Condition:
    """In which state ``point`` (absolute) is. May wait as long as a filesystem mounted there takes to
    answer."""
    mounted = mountinfo.mounted_at(point, mounts())
    try:
        names = os.listdir(point)
    except FileNotFoundError:
        return Condition.MISSING
    except NotADirectoryError:
        return Condition.NOT_A_DIRECTORY
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # "Transport endpoint is not connected"
            return Condition.DEAD
        if mounted is None:
            raise
        names = []
    if mounted is not None:
        return Condition.SHOAL if mounted.is_shoal else Condition.OTHER
    return Condition.NOT_EMPTY if names else Condition.FREE


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
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = " ".join(done.stderr.split())
    if "busy" in said:
        raise ShoalError(
            f"umount: {point}: busy: end what uses it (fuser -vm {point}), or shoal umount -l {point}"
        )
    raise ShoalError(f"umount: {point}: {said or f'exit status {done.returncode}'}")


def wait_answers(point: str, timeout_s: float) -> None:
    """Return when shoalfs answers at ``point``. Raises ShoalError if it does not in time."""
    give_up = time.monotonic() + timeout_s
    while condition(point) is not Condition.SHOAL or not os.statvfs(point).f_bsize:
        if time.monotonic() >= give_up:
            raise ShoalError(f"mount: {point}: does not answer after {timeout_s:g} s: read its log")
        time.sleep(_POLL_S)
