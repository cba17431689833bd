"""Extended attributes of one mount, as far as they can be answered from the inode."""

import errno
from collections.abc import Callable

from shoalfs.fs.coherent import Coherent
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_LAYOUT = b"trusted.shoal."  # attributes that the service makes up from the inode


def _may_be_absent(name: bytes) -> bool:
    """Whether an inode without attributes answers ENODATA: the service has other errors for what is no name. The same
    rule as in fs/native/bare.c."""
    return name.startswith(_NAMESPACES) and not name.startswith(_LAYOUT) and not name.endswith(b".")


class Xattrs:
    """``seen`` is told of each inode that an answer brings. All methods raise ShoalError."""

    def __init__(self, metadata: Coherent, seen: Callable[[m.Inode], m.Inode]) -> None:
        self._metadata = metadata
        self._seen = seen

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
        by asking first."""
        request = m.SetXattr(who, ino, name, value, flags)
        self._seen((await self._metadata.mutate(m.Op.SETXATTR, request, m.Entry)).inode)

    async def remove(self, who: m.Credentials, ino: InodeId, name: bytes) -> None:
        """As removexattr(2)."""
        request = m.RemoveXattr(who, ino, name)
        self._seen((await self._metadata.mutate(m.Op.REMOVEXATTR, request, m.Entry)).inode)
