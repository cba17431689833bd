"""RESTORE_TRASH: give a removed file or directory a name again, with everything that it had but its other links."""

import errno

from shoalfs.mds import dentry, trash
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import ROOT_CREDENTIALS, Entry, RestoreTrash
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError


def restore_trash(txn: Txn, context: Context, request: RestoreTrash) -> Entry:
    """Raises ENOENT if it is not in the trash or its directory is gone, and what mkdir(2) raises for the name."""
    row = trash.row_of(txn, request.ino)
    if row is None:
        raise PosixError(errno.ENOENT, f"inode {request.ino} is not in the trash")
    inode = inodes.load(txn, request.ino)
    place = (request.parent, request.name) if request.parent else (row.parent, row.name)
    try:
        parent = make_entry.check_new(txn, ROOT_CREDENTIALS, *place, subdirectory=inode.is_dir)
    except PosixError as error:
        if error.errno == errno.ESTALE:
            raise PosixError(errno.ENOENT, "the directory that it was in is gone") from error
        raise
    trash.take_out(txn, inode.ino, row)
    fields = {"nlink": 2, "parent": parent.ino} if inode.is_dir else {"nlink": 1}
    inode = inodes.store_changed(txn, inode, context.now_ns, **fields)
    inodes.store(txn, dentry.insert(txn, parent, place[1], inode, context.now_ns))
    return Entry(inode)
