"""Extended attributes of one mount, as far as they can be answered from the inode."""

import errno
import struct
from collections.abc import Callable

from shoalfs.fs.coherent import Coherent
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_LIST = struct.Struct("<I" + 3 * "HHI")
_LIST_VERSION = 2
_LIST_TAGS = (0x01, 0x04, 0x20)  # ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER
_LAYOUT = b"trusted.shoal."  # attributes that the service makes up from the inode


def _may_be_absent(name: bytes) -> bool:
    """Whether an inode without attributes answers ENODATA: the service has other errors for what is no name. The same
    rule as in fs/native/bare.c."""
    return name.startswith(_NAMESPACES) and not name.startswith(_LAYOUT) and not name.endswith(b".")


def _permissions_of(value: bytes) -> int | None:
    """The permission bits that an access control list stands for that has the three entries which each file has, and no
    other: posix_acl_equiv_mode of fs/posix_acl.c. The form is that of linux/posix_acl_xattr.h. None: it is another."""
    if len(value) != _LIST.size:
        return None
    version, *entries = _LIST.unpack(value)
    if version != _LIST_VERSION or tuple(entries[::3]) != _LIST_TAGS or any(bits > 7 for bits in entries[1::3]):
        return None
    owner, group, other = map(int, entries[1::3])
    return owner << 6 | group << 3 | other


class Xattrs:
    """``seen`` is told of each inode that an answer brings; ``set_here`` sets attributes of a file that was made here,
    if that can be done without the leader. All methods raise ShoalError."""

    def __init__(
        self,
        metadata: Coherent,
        seen: Callable[[m.Inode], m.Inode],
        set_here: Callable[[m.SetAttr], m.Inode | None] = lambda request: None,
    ) -> None:
        self._metadata = metadata
        self._seen = seen
        self._set_here = set_here

    async def get(self, who: m.Credentials, ino: InodeId, name: bytes) -> bytes:
        """As getxattr(2). Access control lists, for which the kernel asks before it checks permissions, and attributes
        that an inode cannot have are answered from its record."""
        if name in m.ACL_NAMES:
            try:
                return (await self._metadata.getattr(ino)).access_lists[name]
            except KeyError:
                self._metadata.offer_bare(ino)
                raise PosixError(errno.ENODATA) from None
        if _may_be_absent(name) and not (await self._metadata.getattr(ino)).xattr_bytes:
            self._metadata.offer_bare(ino)
            raise PosixError(errno.ENODATA)
        return (await self._metadata.read(m.GETXATTR, m.GetXattr(who, ino, name))).body.value

    async def list(self, who: m.Credentials, ino: InodeId) -> tuple[bytes, ...]:
        """As listxattr(2)."""
        inode = await self._metadata.getattr(ino)
        if not inode.xattr_bytes:
            self._metadata.offer_bare(ino)
            return tuple(inode.access_lists)
        return (await self._metadata.read(m.LISTXATTR, m.ListXattr(who, ino))).body.names

    async def set(self, who: m.Credentials, ino: InodeId, name: bytes, value: bytes, flags: int = 0) -> None:
        """As setxattr(2). Without the compiled part no flags come here: pyfuse3 checks XATTR_CREATE and XATTR_REPLACE
        by asking first.

        `cp -a` gives each file that it makes a list that is nothing but its permissions."""
        permissions = _permissions_of(value) if name == m.ACL_ACCESS and not flags else None
        if permissions is not None and self._set_here(m.SetAttr(who, ino, mode=permissions)) is not None:
            return
        request = m.SetXattr(who, ino, name, value, flags)
        self._seen((await self._metadata.mutate(m.Op.SETXATTR, request, m.Entry)).inode)

    async def remove(self, who: m.Credentials, ino: InodeId, name: bytes) -> None:
        """As removexattr(2)."""
        request = m.RemoveXattr(who, ino, name)
        self._seen((await self._metadata.mutate(m.Op.REMOVEXATTR, request, m.Entry)).inode)
