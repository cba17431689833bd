"""COMMIT_INLINE: write bytes into a file that lives in the metadata.

Who may write was decided when the file was opened. Set-id bits and capabilities go with every commit, whoever
wrote: the command does not say on whose behalf it comes. A client that wants to set them after writing commits
first.
"""

import errno

from shoalfs.mds import inline, privileges
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import CommitInline, Committed, Inode, Storage
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, LayoutConflict, PosixError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, INLINE_BYTES_MAX


def commit_inline(txn: Txn, context: Context, request: CommitInline) -> Committed:
    inode = load_file(txn, request.ino)
    if inode.storage is not Storage.INLINE:
        raise LayoutConflict("the file has moved to chunks")
    before = inline.load(txn, inode.ino)
    after, size_bytes, first_bytes = _patched(request, inode, before)
    inline.store(txn, inode.ino, before, after)
    written = inodes.content_changed(
        inode,
        context.now_ns,
        size_bytes=size_bytes,
        used_bytes=len(after),
        **privileges.dropped(txn, inode),
    )
    inodes.store(txn, written)
    return Committed(written, first_bytes, inode.data_version)


def load_file(txn: ReadTxn, ino: InodeId) -> Inode:
    """The regular file to be written. Raises ESTALE, EISDIR, EINVAL."""
    inode = inodes.load(txn, ino)
    if not inode.is_file:
        raise PosixError(errno.EISDIR if inode.is_dir else errno.EINVAL)
    return inode


def _patched(request: CommitInline, inode: Inode, before: bytes) -> tuple[bytes, int, int]:
    """The inline bytes and size after the patches, and where the first patch landed."""
    data, size_bytes, first_bytes = bytearray(before), inode.size_bytes, inode.size_bytes
    bytes_max = min(inode.inline_bytes_max, INLINE_BYTES_MAX)
    for number, patch in enumerate(request.patches):
        start = size_bytes if request.append else patch.offset_bytes
        end = start + len(patch.data)
        if start < 0:
            raise BadMessage("a patch has a negative offset")
        if end > FILE_SIZE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        if number == 0:
            first_bytes = start
        if not patch.data:
            continue
        if end > bytes_max:
            raise LayoutConflict(f"the file grows past the {bytes_max} bytes that are kept in the metadata")
        if start > len(data):
            data.extend(bytes(start - len(data)))
        data[start:end] = patch.data
        size_bytes = max(size_bytes, end)
    return bytes(data), size_bytes, first_bytes
