"""MKNOD: make a regular file, fifo, socket or device node. As mknod(2)."""

import errno
import stat

from shoalfs.mds.messages import Entry, Mknod
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError

_DEVICES = (stat.S_IFBLK, stat.S_IFCHR)
_RDEV_MAX = (1 << 32) - 1  # Linux's device numbers have 12 + 20 bits


def mknod(txn: Txn, context: Context, request: Mknod) -> Entry:
    kind = stat.S_IFMT(request.mode & 0xFFFF) or stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise PosixError(errno.EPERM)
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES):
        raise PosixError(errno.EINVAL)
    parent = make_entry.check_new(txn, request.who, request.parent, request.name)
    whiteout = kind == stat.S_IFCHR and request.rdev == 0  # marks a removed name for overlays; no device
    if kind in _DEVICES and not whiteout and request.who.uid != 0:
        raise PosixError(errno.EPERM)
    if not 0 <= request.rdev <= _RDEV_MAX:
        raise PosixError(errno.EINVAL)
    rdev = request.rdev if kind in _DEVICES else 0
    mode = kind | request.mode & make_entry.PERMISSION_BITS
    who, umask = request.who, request.umask
    return Entry(make_entry.make(txn, context, who, parent, request.name, mode, umask=umask, rdev=rdev))
