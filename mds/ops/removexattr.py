"""REMOVEXATTR: remove an extended attribute. As removexattr(2)."""

import errno

from shoalfs.mds import acl_attributes, keys, xattr
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import ACL_NAMES, Entry, RemoveXattr
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError


def removexattr(txn: Txn, context: Context, request: RemoveXattr) -> Entry:
    xattr.check_name(request.name)
    inode = inodes.load(txn, request.ino)
    if request.name in ACL_NAMES:
        fields = acl_attributes.change(request.who, inode, request.name, None)
        return Entry(inodes.store_if_changed(txn, inode, context.now_ns, **fields))
    xattr.check_remove(request.who, inode, request.name)
    key = keys.xattr(inode.ino, request.name)
    value = txn.get(key)
    if value is None:
        raise PosixError(errno.ENODATA)
    txn.delete(key)
    xattr_bytes = inode.xattr_bytes - len(request.name) - len(value)
    return Entry(inodes.store_changed(txn, inode, context.now_ns, xattr_bytes=xattr_bytes))
