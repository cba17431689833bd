"""What a file loses when its bytes, its size or its owner change: set-id bits and capabilities. Pure.

A mount asks the kernel not to see to this (FUSE_HANDLE_KILLPRIV_V2), which saves a question before every write, so it
is done here, with the change itself. As file_remove_privs() of Linux, except that root loses the bits too: a commit
does not say on whose behalf it comes.
"""

from typing import Any

from shoalfs.mds import keys, permission, xattr
from shoalfs.mds.messages import Inode
from shoalfs.mds.txn import Txn


def dropped(txn: Txn, inode: Inode) -> dict[str, Any]:
    """The fields of ``inode`` that change when it is written to. Removes the capabilities' row."""
    return {"mode": permission.without_set_id(inode.mode)} | without_capability(txn, inode)


def without_capability(txn: Txn, inode: Inode) -> dict[str, Any]:
    """As :func:`dropped`, of the capabilities alone."""
    if not inode.xattr_bytes:
        return {}
    key = keys.xattr(inode.ino, xattr.CAPABILITY)
    value = txn.get(key)
    if value is None:
        return {}
    txn.delete(key)
    return {"xattr_bytes": inode.xattr_bytes - len(xattr.CAPABILITY) - len(value)}
