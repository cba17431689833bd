"""UNLINK: take a name off something that is no directory. As unlink(2)."""

import errno

from shoalfs.mds import dentry
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Unlink, Unlinked
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError


def unlink(txn: Txn, context: Context, request: Unlink) -> Unlinked:
    parent = dentry.search(txn, request.who, request.parent)
    dentry.check_name(request.name)
    if request.name in dentry.DOTS:
        raise PosixError(errno.EISDIR)
    entry = dentry.require(txn, parent, request.name)
    child = inodes.load(txn, entry.ino)
    dentry.check_remove(request.who, parent, child, directory=False)
    inodes.store(txn, dentry.remove(txn, parent, request.name, entry, context.now_ns))
    return Unlinked(inodes.unlinked(txn, child, context.now_ns, parent.ino, request.name))
