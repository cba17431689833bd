"""Access control lists as the extended attributes of an inode: who may set them, and what the mode becomes. Pure.

As Linux's fs/posix_acl.c (set_posix_acl, posix_acl_update_mode) and ext4. Everybody may read the lists of what they
can look up; the owner sets them.
"""

import errno
import stat

from shoalfs.mds import acl, permission
from shoalfs.mds.messages import ACL_DEFAULT, Credentials, Inode
from shoalfs.transport.errors import PosixError


def change(who: Credentials, inode: Inode, name: bytes, value: bytes | None) -> dict[str, object]:
    """The inode's fields that setting (None: removing) the attribute changes. Removing what is not there changes
    nothing and is no error. Raises EOPNOTSUPP, EPERM, EACCES for a default list of what is no directory, and as
    :func:`acl.decode`."""
    if inode.is_symlink:
        raise PosixError(errno.EOPNOTSUPP)
    permission.check_owner(who, inode)
    entries = () if value is None else acl.decode(value)
    if name == ACL_DEFAULT:
        if entries and not inode.is_dir:
            raise PosixError(errno.EACCES)
        return {"default_acl": acl.encode(entries)}
    if not entries:
        return {"acl": b""}
    mode = inode.mode & ~0o777 | acl.permission_bits(entries)
    if who.uid != 0 and not permission.in_group(who, inode.gid):
        mode &= ~stat.S_ISGID
    return {"mode": mode, "acl": b"" if acl.is_minimal(entries) else acl.encode(entries)}
