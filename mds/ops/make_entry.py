"""What create, mknod, mkdir and symlink have in common: check that a name is free, make an inode, link it
in."""

import errno
import stat

from shoalfs.mds import acl, dentry, permission
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Credentials, Inode
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId

PERMISSION_BITS = 0o7777


def check_new(txn: ReadTxn, who: Credentials, parent: InodeId, name: bytes, *, subdirectory: bool = False) -> Inode:
    """The directory in which ``who`` may make ``name``, which is free. Raises what mkdir(2) does."""
    inodes.check_credentials(who)
    directory = dentry.search(txn, who, parent)
    dentry.check_name(name)
    if name in dentry.DOTS or dentry.find(txn, directory, name) is not None:
        raise PosixError(errno.EEXIST)
    dentry.check_insert(who, directory, subdirectory=subdirectory)
    return directory


def make(
    txn: Txn,
    context: Context,
    who: Credentials,
    parent: Inode,
    name: bytes,
    mode: int,
    *,
    umask: int = 0,
    rdev: int = 0,
    size_bytes: int = 0,
    ino: int = 0,
) -> Inode:
    """As :func:`make_inode`, and link it under a name that was checked to be free."""
    child = make_inode(txn, context, who, parent, mode, umask=umask, rdev=rdev, size_bytes=size_bytes, ino=ino)
    inodes.store(txn, dentry.insert(txn, parent, name, child, context.now_ns))
    return child


def make_inode(
    txn: Txn,
    context: Context,
    who: Credentials,
    parent: Inode,
    mode: int,
    *,
    umask: int = 0,
    rdev: int = 0,
    size_bytes: int = 0,
    ino: int = 0,
) -> Inode:
    """Make an inode of this type and these permission bits, to be linked in ``parent``, whose default access control
    list takes the place of the umask; symlinks inherit none."""
    mode, gid = permission.inherited(who, parent, stat.S_IFMT(mode) | mode & PERMISSION_BITS)
    access: acl.Acl = ()
    if not parent.default_acl or stat.S_ISLNK(mode):
        mode &= ~(umask & 0o777)
    else:
        access, mode = acl.inherited(acl.decode(parent.default_acl), mode)
    return inodes.make(
        txn,
        parent,
        mode=mode,
        uid=who.uid,
        gid=gid,
        now_ns=context.now_ns,
        rdev=rdev,
        size_bytes=size_bytes,
        acl=acl.encode(access),
        default_acl=parent.default_acl if stat.S_ISDIR(mode) else b"",
        ino=ino,
    )
