"""SYMLINK: make a symbolic link; its target is kept where a small file keeps its bytes. As symlink(2)."""

import errno
import stat

from shoalfs.mds import keys
from shoalfs.mds.messages import Entry, Symlink
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import PATH_BYTES_MAX


def symlink(txn: Txn, context: Context, request: Symlink) -> Entry:
    if not request.target:
        raise PosixError(errno.ENOENT)
    if len(request.target) > PATH_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    if b"\0" in request.target:
        raise PosixError(errno.EINVAL)
    parent = make_entry.check_new(txn, request.who, request.parent, request.name)
    mode, size_bytes = stat.S_IFLNK | 0o777, len(request.target)
    inode = make_entry.make(txn, context, request.who, parent, request.name, mode, size_bytes=size_bytes)
    txn.put(keys.inline(inode.ino), request.target)
    return Entry(inode)
