"""The rules of extended attributes, as in Linux's fs/xattr.c: namespaces, who may touch which, and limits.
Pure.

``user.*`` is for regular files and directories and follows the mode bits; ``trusted.*`` is root's and hidden
from others; ``security.*`` everybody may read and root may write. Of ``system.*`` there are the access control lists,
whose rules are in mds/acl_attributes.py.
"""

import errno
import stat

from shoalfs.mds import permission
from shoalfs.mds.messages import ACL_NAMES, Credentials, Inode
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import XATTR_NAME_BYTES_MAX

USER = b"user."
TRUSTED = b"trusted."
SECURITY = b"security."
CAPABILITY = b"security.capability"


def check_name(name: bytes) -> None:
    """Raises ERANGE, EOPNOTSUPP or EINVAL for what cannot be the name of an attribute."""
    if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
        raise PosixError(errno.ERANGE)
    if name in ACL_NAMES:
        return
    if not name.startswith((USER, TRUSTED, SECURITY)):
        raise PosixError(errno.EOPNOTSUPP)
    if (name.endswith(b".") and name.count(b".") == 1) or b"\0" in name:
        raise PosixError(errno.EINVAL)


def check_read(who: Credentials, inode: Inode, name: bytes) -> None:
    """Raises ENODATA or EACCES unless ``who`` may read the attribute."""
    if name.startswith(TRUSTED) and who.uid != 0:
        raise PosixError(errno.ENODATA)
    if name.startswith(USER):
        if not (inode.is_file or inode.is_dir):
            raise PosixError(errno.ENODATA)
        permission.check(who, inode, permission.READ)


def check_write(who: Credentials, inode: Inode, name: bytes) -> None:
    """Raises EPERM or EACCES unless ``who`` may set or remove the attribute."""
    if not name.startswith(USER):
        if who.uid != 0:
            raise PosixError(errno.EPERM)
        return
    if not (inode.is_file or inode.is_dir):
        raise PosixError(errno.EPERM)
    if inode.is_dir and inode.mode & stat.S_ISVTX and not permission.is_owner(who, inode):
        raise PosixError(errno.EPERM)
    permission.check(who, inode, permission.WRITE)


def check_remove(who: Credentials, inode: Inode, name: bytes) -> None:
    """As :func:`check_write`. But whoever writes to a file takes its capabilities away, and Linux asks for that as a
    removal on behalf of the writer (security/commoncap.c, cap_inode_killpriv)."""
    if name == CAPABILITY and inode.is_file:
        permission.check(who, inode, permission.WRITE)
    else:
        check_write(who, inode, name)


def visible(who: Credentials, name: bytes) -> bool:
    """Whether a listing shows the name."""
    return who.uid == 0 or not name.startswith(TRUSTED)
