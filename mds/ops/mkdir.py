"""MKDIR: make a directory. As mkdir(2)."""

import stat

from shoalfs.mds.messages import Entry, Mkdir
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn


def mkdir(txn: Txn, context: Context, request: Mkdir) -> Entry:
    """The set-id bits of the mode are ignored, as on Linux; a set-group-id parent hands its bit on."""
    parent = make_entry.check_new(txn, request.who, request.parent, request.name, subdirectory=True)
    mode = stat.S_IFDIR | request.mode & (0o777 | stat.S_ISVTX)
    child = make_entry.make(txn, context, request.who, parent, request.name, mode, umask=request.umask)
    return Entry(child)
