"""TMPFILE: make a regular file without a name. As open(2) with O_TMPFILE.

It begins as an orphan: the session that made it has it open, and when nobody has, it is removed. LINK may give it a
name if it was made ``linkable`` (without O_EXCL).
"""

import stat

import msgspec

from shoalfs.mds import dentry
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Entry, Tmpfile
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn


def tmpfile(txn: Txn, context: Context, request: Tmpfile) -> Entry:
    who = request.who
    inodes.check_credentials(who)
    parent = dentry.search(txn, who, request.parent)
    dentry.check_insert(who, parent, subdirectory=False)
    mode = stat.S_IFREG | request.mode & make_entry.PERMISSION_BITS
    inode = make_entry.make_inode(txn, context, who, parent, mode, umask=request.umask)
    inode = msgspec.structs.replace(inode, nlink=0, linkable=request.linkable)
    inodes.store(txn, inode)
    inodes.add_orphan(txn, inode)
    return Entry(inode)
