"""CREATE: make a regular file, or find the one that has the name. As open(2) with O_CREAT."""

import errno
import stat

from shoalfs.mds import dentry
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Create, Created
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError


def create(txn: Txn, context: Context, request: Create) -> Created:
    """Permission to open a file that exists already is not checked here: that is the open that follows."""
    who = request.who
    inodes.check_credentials(who)
    parent = dentry.search(txn, who, request.parent)
    dentry.check_name(request.name)
    if request.name in dentry.DOTS:
        raise PosixError(errno.EEXIST if request.exclusive else errno.EISDIR)
    found = dentry.find(txn, parent, request.name)
    if found is not None:
        if request.exclusive:
            raise PosixError(errno.EEXIST)
        if found.kind == stat.S_IFDIR:
            raise PosixError(errno.EISDIR)
        return Created(inodes.load(txn, found.ino), created=False)
    dentry.check_insert(who, parent, subdirectory=False)
    mode = stat.S_IFREG | request.mode & make_entry.PERMISSION_BITS
    child = make_entry.make(txn, context, who, parent, request.name, mode, umask=request.umask)
    return Created(child, created=True)
