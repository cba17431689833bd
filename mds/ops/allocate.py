"""ALLOCATE: make a file longer, or a range of it a hole. As fallocate(2).

Nothing is set aside for later writes: a chunk is written once, when its bytes are there. So ENOSPC can still come at
close or fsync. All modes take set-id bits away, as file_modified() does on Linux.
"""

import errno

from shoalfs.mds import extents, holes, privileges
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Allocate, AllocateMode, Committed
from shoalfs.mds.ops.commit_inline import load_file
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

_HOLE = AllocateMode.PUNCH_HOLE | AllocateMode.ZERO_RANGE
_MODES = (
    AllocateMode.NONE,
    AllocateMode.KEEP_SIZE,
    AllocateMode.PUNCH_HOLE | AllocateMode.KEEP_SIZE,
    AllocateMode.ZERO_RANGE,
    AllocateMode.ZERO_RANGE | AllocateMode.KEEP_SIZE,
)


def allocate(txn: Txn, context: Context, request: Allocate) -> Committed:
    inode = load_file(txn, request.ino)
    first, end = request.offset_bytes, request.offset_bytes + request.length_bytes
    if request.mode not in _MODES:
        raise PosixError(errno.EOPNOTSUPP)
    if first < 0 or request.length_bytes <= 0:
        raise PosixError(errno.EINVAL)
    if end > FILE_SIZE_BYTES_MAX:
        raise PosixError(errno.EFBIG)
    fields: dict[str, int] = {}
    done_bytes = end
    if request.mode & _HOLE:
        fits = extents.check_count(txn, inode, [(first, end)], 0, context.bounds)
        edit = extents.Edit(txn, inode, context.bounds.rows_max)
        done_bytes = holes.punch(txn, inode, edit, first, end) if fits else first
        if not fits:
            edit.uncover(FILE_SIZE_BYTES_MAX)
        fields = edit.settle(context.now_ns)
    written = inodes.content_changed(
        inode,
        context.now_ns,
        size_bytes=inode.size_bytes if request.mode & AllocateMode.KEEP_SIZE else max(inode.size_bytes, done_bytes),
        **fields,
        **privileges.dropped(txn, inode),
    )
    inodes.store(txn, written)
    return Committed(written, first, inode.data_version, int(done_bytes < end), done_bytes)
