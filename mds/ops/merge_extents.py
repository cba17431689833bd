"""MERGE_EXTENTS: one chunk takes the place of many small ones.

Who has a file's extents cached goes on reading the old chunks, which are garbage from now on and stay for the grace;
they hold the same bytes. So nobody is told, and the data version stays. What the writer has read and stored again is
right only for what it read: whatever was committed since, by whomever, is found by comparing where each byte lies.
(Rows are not compared: neighbours of one chunk may be one row here and two there.)
"""

from collections.abc import Sequence
from itertools import islice, pairwise

import msgspec

from shoalfs.mds import extents
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import NOT_CUT_OFF, Committed, Extent, MergeExtents, Storage
from shoalfs.mds.ops.commit_extents import check_replacement
from shoalfs.mds.ops.commit_inline import load_file
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage, LayoutConflict
from shoalfs.transport.limits import MERGED_EXTENTS_MAX


def merge_extents(txn: Txn, context: Context, request: MergeExtents) -> Committed:
    inode = load_file(txn, request.ino)
    pieces, extent = request.pieces, request.extent
    if not 1 < len(pieces) <= MERGED_EXTENTS_MAX:
        raise BadMessage(f"2 to {MERGED_EXTENTS_MAX} extents are merged at a time")
    if any(piece.length_bytes <= 0 for piece in pieces):
        raise BadMessage("an extent that is merged has no bytes")
    if any(one.end_bytes != other.offset_bytes for one, other in pairwise(pieces)):
        raise BadMessage("extents that are merged lie one behind the other")
    if (extent.offset_bytes, extent.end_bytes) != (pieces[0].offset_bytes, pieces[-1].end_bytes):
        raise BadMessage("the merged extent lies where its pieces lie")
    check_replacement(txn, context.session, inode.ino, extent, request.receipts)
    rows_max = context.bounds.rows_max
    found = list(islice(extents.visible(txn, inode, extent.offset_bytes, extent.end_bytes), rows_max + 1))
    is_cut_off = inode.cut_off_bytes != NOT_CUT_OFF and inode.cut_off_bytes < extent.end_bytes
    if inode.storage is not Storage.EXTENTS or is_cut_off or len(found) > rows_max:
        raise LayoutConflict("the extents have changed")
    if _places(found, extent) != _places(pieces, extent):
        raise LayoutConflict("the extents have changed")
    edit = extents.Edit(txn, inode, context.bounds.rows_max)
    edit.link(extent)
    merged = msgspec.structs.replace(inode, version=inode.version + 1, **edit.settle(context.now_ns, merged=True))
    inodes.store(txn, merged)
    return Committed(merged, extent.offset_bytes, inode.data_version)


def _places(found: Sequence[Extent], whole: Extent) -> list[Extent]:
    """Where the bytes lie that are where ``whole`` is: its parts, those that follow each other in one chunk as one."""
    places: list[Extent] = []
    for one in found:
        part = one.part(max(one.offset_bytes, whole.offset_bytes), min(one.end_bytes, whole.end_bytes))
        if places:
            before = places[-1]
            joined = msgspec.structs.replace(before, length_bytes=before.length_bytes + part.length_bytes)
            if before.end_bytes == part.offset_bytes and joined.part(part.offset_bytes, joined.end_bytes) == part:
                places[-1] = joined
                continue
        places.append(part)
    return places
