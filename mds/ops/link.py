"""LINK: give an inode one more name, or its first (O_TMPFILE). As linkat(2)."""

import errno

from shoalfs.mds import dentry
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Entry, Link
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import LINK_COUNT_MAX


def link(txn: Txn, context: Context, request: Link) -> Entry:
    inode = inodes.load(txn, request.ino)
    parent = make_entry.check_new(txn, request.who, request.new_parent, request.new_name)
    if inode.is_dir:
        raise PosixError(errno.EPERM)
    if inode.nlink == 0 and not inode.linkable:
        raise PosixError(errno.ENOENT, "the file was removed")
    if inode.nlink >= LINK_COUNT_MAX:
        raise PosixError(errno.EMLINK)
    if inode.nlink == 0:
        inodes.adopt_orphan(txn, inode)
    inode = inodes.changed(inode, context.now_ns, nlink=inode.nlink + 1, linkable=False)
    inodes.store(txn, inode)
    inodes.store(txn, dentry.insert(txn, parent, request.new_name, inode, context.now_ns))
    return Entry(inode)
