"""Which directory the kernel's root inode is: the cluster's root, or the one that the option ``subdir`` names.

The kernel always calls the root of a mount inode 1. Every other number is the cluster's own, so this is the one number
that is translated, in requests and in what the kernel is told to forget. Nothing above the directory can be reached
through the mount, since the kernel resolves ``..`` of a root itself; that is a convenience, and no protection against
who runs the mount.
"""

from dataclasses import dataclass
from typing import Final

from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import ROOT_CREDENTIALS
from shoalfs.transport.errors import PosixError, UserError
from shoalfs.transport.ids import ROOT_INODE, InodeId

_KERNEL_ROOT: Final = 1  # FUSE_ROOT_ID


@dataclass(frozen=True, slots=True)
class Root:
    """The translation; the default is that of a mount of the whole cluster."""

    ino: InodeId = ROOT_INODE

    def inode(self, node: int) -> InodeId:
        """The inode that the kernel means."""
        return self.ino if node == _KERNEL_ROOT else InodeId(node)

    def node(self, ino: InodeId) -> int:
        """What the kernel calls the inode."""
        return _KERNEL_ROOT if ino == self.ino else ino


async def find_root(vfs: Vfs, subdir: str) -> Root:
    """The directory ``subdir``, a path from the cluster's root; symlinks are not followed.

    Raises UserError if there is no such directory, ShoalError if nobody answers.
    """
    ino = ROOT_INODE
    try:
        for name in filter(None, subdir.encode(errors="surrogateescape").split(b"/")):
            inode = await vfs.lookup(ROOT_CREDENTIALS, ino, name)
            if not inode.is_dir:
                raise UserError(f"mount: subdir={subdir}: not a directory in the cluster: name a directory")
            ino = inode.ino
    except PosixError as error:
        raise UserError(
            f"mount: subdir={subdir}: {error}: mount without subdir and make the directory first"
        ) from error
    return Root(ino)
