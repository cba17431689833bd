"""Who may do what to an inode: mode bits, access control list, owner and groups, root, and the set-id and sticky
bits, as on Linux. Pure.

Knows inodes and credentials, not the store. Root (uid 0) passes every check except executing a file without
any execute bit; whether a client may claim to be root is decided before a request comes here.
"""

import errno
import stat
from typing import Final

from shoalfs.mds import acl
from shoalfs.mds.messages import Credentials, Inode
from shoalfs.transport.errors import PosixError

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1  # of a directory: search


def in_group(who: Credentials, gid: int) -> bool:
    return gid == who.gid or gid in who.groups


def is_owner(who: Credentials, inode: Inode) -> bool:
    """The owner, or root, who may do all that an owner may."""
    return who.uid in (0, inode.uid)


def permits(who: Credentials, inode: Inode, mask: int) -> bool:
    """Whether the mode bits and the access control list give ``who`` all of ``mask``."""
    if who.uid == 0:
        return not mask & EXECUTE or inode.is_dir or bool(inode.mode & 0o111)
    if who.uid == inode.uid:
        granted = inode.mode >> 6
    elif (
        inode.acl and inode.mode & stat.S_IRWXG
    ):  # an empty mask: Linux does not look at the list (acl_permission_check)
        return acl.permits(acl.decode(inode.acl), who, inode.gid, mask)
    elif in_group(who, inode.gid):
        granted = inode.mode >> 3
    else:
        granted = inode.mode
    return not mask & ~granted & 0o7


def check(who: Credentials, inode: Inode, mask: int) -> None:
    """Raises EACCES unless ``who`` may do all of ``mask``."""
    if not permits(who, inode, mask):
        raise PosixError(errno.EACCES)


def check_owner(who: Credentials, inode: Inode) -> None:
    if not is_owner(who, inode):
        raise PosixError(errno.EPERM)


def check_sticky(who: Credentials, parent: Inode, child: Inode) -> None:
    """Raises EPERM if ``parent`` is sticky and ``who`` owns neither it nor ``child``."""
    if parent.mode & stat.S_ISVTX and not is_owner(who, parent) and who.uid != child.uid:
        raise PosixError(errno.EPERM)


def without_set_id(mode: int) -> int:
    """The mode of a file after its bytes changed: set-user-id goes, set-group-id too if it means
    execution."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def inherited(who: Credentials, parent: Inode, mode: int) -> tuple[int, int]:
    """Mode and group of a new inode in ``parent``: a set-group-id directory hands its group on, and to a
    directory the bit itself; a file keeps a set-group-id bit that means execution only if its maker is in the
    group."""
    if not parent.mode & stat.S_ISGID:
        return mode, who.gid
    if stat.S_ISDIR(mode):
        return mode | stat.S_ISGID, parent.gid
    executable = mode & stat.S_ISGID and mode & stat.S_IXGRP
    if executable and who.uid != 0 and not in_group(who, parent.gid):
        mode &= ~stat.S_ISGID
    return mode, parent.gid
