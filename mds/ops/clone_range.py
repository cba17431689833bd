"""CLONE_RANGE: let one file share what another one has in a range. As FICLONERANGE, ioctl_ficlonerange(2), without its
alignment.

Chunks never change, so sharing one costs a row and a count. Holes are cloned as holes. Permission was checked when
both files were opened. The chunks are in the filesystem already, so there are no receipts to be checked.
"""

import errno
from itertools import islice

import msgspec

from shoalfs.mds import extents, holes, inline, privileges
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Cloned, CloneRange, Extent, Inode, Storage
from shoalfs.mds.ops.commit_inline import load_file
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import LayoutConflict, PosixError
from shoalfs.transport.limits import CLONE_EXTENTS_MAX, FILE_SIZE_BYTES_MAX, INLINE_BYTES_MAX


def clone_range(txn: Txn, context: Context, request: CloneRange) -> Cloned:
    source, target = load_file(txn, request.source), load_file(txn, request.ino)
    length = _length(request, source)
    if length == 0:
        return Cloned(target, 0)
    if source.storage is Storage.INLINE:
        fields = _clone_inline(txn, request, source, target, length)
    else:
        pieces, length = _pieces(txn, request, source, length)
        _check_chunks(txn, request, source, target, pieces, length)
        fields, length = _clone_extents(txn, request, target, pieces, length, context)
    end = request.offset_bytes + length
    written = inodes.content_changed(
        target,
        context.now_ns,
        size_bytes=max(target.size_bytes, end) if length else target.size_bytes,
        **fields,
        **privileges.dropped(txn, target),
    )
    inodes.store(txn, written)
    return Cloned(written, length, again=length == 0)


def _length(request: CloneRange, source: Inode) -> int:
    """How much of the range there is. Raises EINVAL, EFBIG."""
    first, at, length = request.source_offset_bytes, request.offset_bytes, request.length_bytes
    if first < 0 or at < 0 or length < 0:
        raise PosixError(errno.EINVAL)
    length = max(0, min(length, source.size_bytes - first))
    if request.source == request.ino and first < at + length and at < first + length:
        raise PosixError(errno.EINVAL, "the ranges overlap")
    if length and at + length > FILE_SIZE_BYTES_MAX:
        raise PosixError(errno.EFBIG)
    return length


def _clone_inline(txn: Txn, request: CloneRange, source: Inode, target: Inode, length: int) -> dict[str, int]:
    """Copy bytes within the metadata. Raises LayoutConflict if the target has chunks or would need one."""
    end = request.offset_bytes + length
    if target.storage is not Storage.INLINE or end > min(target.inline_bytes_max, INLINE_BYTES_MAX):
        raise LayoutConflict("the bytes have to be put into a chunk")
    first = request.source_offset_bytes
    piece = inline.load(txn, source.ino)[first : first + length]
    before = inline.load(txn, target.ino)
    after = bytearray(before.ljust(end, b"\0"))
    after[request.offset_bytes : end] = piece.ljust(length, b"\0")
    inline.store(txn, target.ino, before, bytes(after))
    return {"used_bytes": len(after)}


def _pieces(txn: ReadTxn, request: CloneRange, source: Inode, length: int) -> tuple[list[Extent], int]:
    """The extents of the range, where they will lie in the target; and how long the range is then."""
    first, end = request.source_offset_bytes, request.source_offset_bytes + length
    found = list(islice(extents.visible(txn, source, first, end), CLONE_EXTENTS_MAX + 1))
    if len(found) > CLONE_EXTENTS_MAX:
        end = found.pop().offset_bytes
    shift = request.offset_bytes - first
    pieces = [e.part(max(e.offset_bytes, first), min(e.end_bytes, end)) for e in found]
    return [msgspec.structs.replace(e, offset_bytes=e.offset_bytes + shift) for e in pieces], end - first


def _check_chunks(
    txn: ReadTxn, request: CloneRange, source: Inode, target: Inode, pieces: list[Extent], length: int
) -> None:
    """Raises LayoutConflict unless the target can take extents."""
    if source.pool != target.pool:
        raise LayoutConflict("the files are in different pools")
    if target.storage is Storage.INLINE and pieces:
        first, end = request.offset_bytes, request.offset_bytes + length
        bytes_ = inline.load(txn, target.ino)
        if bytes_[:first] or bytes_[end:]:
            raise LayoutConflict("the target's inline bytes have to be put into a chunk")


def _clone_extents(
    txn: Txn, request: CloneRange, target: Inode, pieces: list[Extent], length: int, context: Context
) -> tuple[dict[str, int], int]:
    """The fields of the target, and how much was cloned: less than asked for, or nothing yet, where the target has more
    extents than one command may remove."""
    first, end = request.offset_bytes, request.offset_bytes + length
    fits = extents.check_count(txn, target, [(first, end)], len(pieces), context.bounds)
    edit = extents.Edit(txn, target, context.bounds.rows_max)
    if not fits:
        edit.uncover(FILE_SIZE_BYTES_MAX)
        end = first
    elif not edit.uncover(end):
        end = min(max(first, edit.cut_off_bytes), end)
    if end > first:
        end = holes.punch(txn, target, edit, first, end)
    cloned = [e.part(e.offset_bytes, min(e.end_bytes, end)) for e in pieces if e.offset_bytes < end]
    for piece in cloned:
        edit.put(piece)
    fields = edit.settle(context.now_ns)
    return {**fields, "storage": Storage.EXTENTS if cloned else target.storage}, end - first
