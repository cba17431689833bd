"""A directory's layout, seen as extended attributes: how files made in it are stored. Pure.

``trusted.shoal.inline_bytes`` (how large a file may grow inside its inode) and ``trusted.shoal.chunk_bytes`` (its
largest chunk) are fields of the inode record, shown and set as decimal numbers by root; ``trusted.shoal.pool`` is the
name of the pool that takes the chunks. They count for what is made in the directory from then on, directories included;
a file keeps the layout that it was made with, and shows its pool. They are not listed, so that copying a tree with its
attributes does not copy layouts.
"""

import errno
from collections.abc import Sequence
from typing import Final

from shoalfs.mds.messages import Inode, Pool
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, INLINE_BYTES_MAX

PREFIX: Final = b"trusted.shoal."
_POOL: Final = PREFIX + b"pool"
_FIELDS: Final = {PREFIX + b"inline_bytes": "inline_bytes_max", PREFIX + b"chunk_bytes": "chunk_bytes"}


def is_layout(name: bytes) -> bool:
    """Whether the attribute of this name is one of the layout's; the whole prefix is taken."""
    return name.startswith(PREFIX)


def read(inode: Inode, name: bytes, pools: Sequence[Pool]) -> bytes:
    """Raises ENODATA for what has no such attribute."""
    if name == _POOL and (inode.is_dir or inode.is_file):
        return next(pool.name for pool in pools if pool.id == inode.pool).encode()
    if not inode.is_dir or name not in _FIELDS:
        raise PosixError(errno.ENODATA)
    return b"%d" % getattr(inode, _FIELDS[name])


def change(inode: Inode, name: bytes, value: bytes, pools: Sequence[Pool]) -> dict[str, object]:
    """The inode's fields that setting the attribute changes. Raises EOPNOTSUPP for what is no directory or no such
    attribute, EINVAL for a value that is out of range, and for a pool that does not exist, EBUSY for one that is being
    removed."""
    if not inode.is_dir or (name not in _FIELDS and name != _POOL):
        raise PosixError(errno.EOPNOTSUPP)
    if name == _POOL:
        chosen = [pool for pool in pools if pool.name.encode() == value]
        if not chosen:
            raise PosixError(errno.EINVAL)
        if chosen[0].closing_epoch:
            raise PosixError(errno.EBUSY, f"pool {chosen[0].name} is being removed")
        return {"pool": chosen[0].id}
    number = int(value) if value.isdigit() and len(value) <= len(str(CHUNK_BYTES_MAX)) else -1
    if name.endswith(b"inline_bytes"):
        fits = 0 <= number <= INLINE_BYTES_MAX
    else:
        fits = CHUNK_BYTES_MIN <= number <= CHUNK_BYTES_MAX and number % BLOCK_BYTES == 0
    if not fits:
        raise PosixError(errno.EINVAL)
    return {_FIELDS[name]: number}
