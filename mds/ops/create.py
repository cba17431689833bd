"""CREATE: make a regular file, or find the one that has the name. As open(2) with O_CREAT."""

import errno
import stat

from shoalfs.mds import dentry, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import CommitInline, Create, Created, Inode, Patch
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.commit_inline import commit_inline
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, LayoutConflict, PosixError
from shoalfs.transport.limits import INLINE_BYTES_MAX


def create(txn: Txn, context: Context, request: Create) -> Created:
    """Permission to open a file that exists already is not checked here: that is the open that follows."""
    who = request.who
    inodes.check_credentials(who)
    parent = dentry.search(txn, who, request.parent)
    dentry.check_name(request.name)
    if request.name in dentry.DOTS:
        raise PosixError(errno.EEXIST if request.exclusive else errno.EISDIR)
    found = dentry.find(txn, parent, request.name)
    if found is not None and request.ino == found.ino:
        return Created(_filled(txn, context, request, inodes.load(txn, found.ino)), created=True)
    if found is not None:
        if request.exclusive or request.ino:
            raise PosixError(errno.EEXIST)
        if found.kind == stat.S_IFDIR:
            raise PosixError(errno.EISDIR)
        return Created(inodes.load(txn, found.ino), created=False)
    dentry.check_insert(who, parent, subdirectory=False)
    _check_number(txn, context, request, parent)
    mode = stat.S_IFREG | request.mode & make_entry.PERMISSION_BITS
    child = make_entry.make(txn, context, who, parent, request.name, mode, umask=request.umask, ino=request.ino)
    return Created(_filled(txn, context, request, child), created=True)


def _check_number(txn: ReadTxn, context: Context, request: Create, parent: Inode) -> None:
    """The number is free and the session's to give, and the bytes will find room: checked before the first write."""
    if not request.ino:
        if request.data:
            raise BadMessage("a file that is made with bytes has a number")
        return
    row = records.SESSION.load(txn, keys.session(context.session))
    if row is None or not any(first <= request.ino < end for first, end in row.inodes):
        raise BadMessage(f"inode number {request.ino} is not reserved for this session")
    if records.INODE.load(txn, keys.inode(request.ino)) is not None:
        raise PosixError(errno.EEXIST, f"inode {request.ino} exists under another name")
    if len(request.data) > min(parent.inline_bytes_max, INLINE_BYTES_MAX):
        raise LayoutConflict("the file is too large for the metadata")


def _filled(txn: Txn, context: Context, request: Create, child: Inode) -> Inode:
    """The file with the bytes that it is made with, once."""
    if not request.data or child.data_version > 1:
        return child
    return commit_inline(txn, context, CommitInline(child.ino, (Patch(0, request.data),))).inode
