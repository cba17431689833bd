"""A directory's layout, seen as extended attributes: how files made in it are stored. Pure.

``trusted.shoal.inline_bytes`` (how large a file may grow inside its inode) and ``trusted.shoal.chunk_bytes`` (its
largest chunk) are fields of the inode record, shown and set as decimal numbers by root. They count for what is made in
the directory from then on, directories included; a file keeps the layout that it was made with. They are not listed,
so that copying a tree with its attributes does not copy layouts.
"""

import errno
from typing import Final

from shoalfs.mds.messages import Inode
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, INLINE_BYTES_MAX

PREFIX: Final = b"trusted.shoal."
_FIELDS: Final = {PREFIX + b"inline_bytes": "inline_bytes_max", PREFIX + b"chunk_bytes": "chunk_bytes"}


def is_layout(name: bytes) -> bool:
    """Whether the attribute of this name is one of the layout's; the whole prefix is taken."""
    return name.startswith(PREFIX)


def read(inode: Inode, name: bytes) -> bytes:
    """Raises ENODATA for what is no directory, and for a name that is none of the layout's."""
    if not inode.is_dir or name not in _FIELDS:
        raise PosixError(errno.ENODATA)
    return b"%d" % getattr(inode, _FIELDS[name])


def change(inode: Inode, name: bytes, value: bytes) -> dict[str, object]:
    """The inode's fields that setting the attribute changes. Raises EOPNOTSUPP for what is no directory or no such
    attribute, EINVAL for a value that is out of range."""
    if not inode.is_dir or name not in _FIELDS:
        raise PosixError(errno.EOPNOTSUPP)
    number = int(value) if value.isdigit() and len(value) <= len(str(CHUNK_BYTES_MAX)) else -1
    if name.endswith(b"inline_bytes"):
        fits = 0 <= number <= INLINE_BYTES_MAX
    else:
        fits = CHUNK_BYTES_MIN <= number <= CHUNK_BYTES_MAX and number % BLOCK_BYTES == 0
    if not fits:
        raise PosixError(errno.EINVAL)
    return {_FIELDS[name]: number}
