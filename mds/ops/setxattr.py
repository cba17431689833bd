"""SETXATTR: set an extended attribute. As setxattr(2)."""

import errno

from shoalfs.mds import acl_attributes, cluster, keys, layout, xattr
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import ACL_NAMES, Entry, SetXattr, XattrFlags
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import XATTR_TOTAL_BYTES_MAX, XATTR_VALUE_BYTES_MAX


def setxattr(txn: Txn, context: Context, request: SetXattr) -> Entry:
    if request.flags & ~int(XattrFlags.CREATE | XattrFlags.REPLACE):
        raise PosixError(errno.EINVAL)
    xattr.check_name(request.name)
    if len(request.value) > XATTR_VALUE_BYTES_MAX:
        raise PosixError(errno.E2BIG)
    inode = inodes.load(txn, request.ino)
    if request.name in ACL_NAMES:
        fields = acl_attributes.change(request.who, inode, request.name, request.value)
        return Entry(inodes.store_if_changed(txn, inode, context.now_ns, **fields))
    xattr.check_write(request.who, inode, request.name)
    if layout.is_layout(request.name):
        fields = layout.change(inode, request.name, request.value, cluster.load_pools(txn))
        return Entry(inodes.store_if_changed(txn, inode, context.now_ns, **fields))
    key = keys.xattr(inode.ino, request.name)
    before = txn.get(key)
    if before is not None and request.flags & XattrFlags.CREATE:
        raise PosixError(errno.EEXIST)
    if before is None and request.flags & XattrFlags.REPLACE:
        raise PosixError(errno.ENODATA)
    if before == request.value:
        return Entry(inode)
    xattr_bytes = inode.xattr_bytes + len(request.value)
    xattr_bytes += len(request.name) if before is None else -len(before)
    if xattr_bytes > XATTR_TOTAL_BYTES_MAX:
        raise PosixError(errno.ENOSPC)
    txn.put(key, request.value)
    return Entry(inodes.store_changed(txn, inode, context.now_ns, xattr_bytes=xattr_bytes))
