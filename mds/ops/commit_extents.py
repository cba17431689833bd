"""COMMIT_EXTENTS: link stored chunks into a file.

This is the moment when data becomes part of the filesystem, so everything that a dead or confused writer
could get wrong is checked here: that it may use these chunk numbers, that the chunks are still there (not
garbage), and that enough targets in their present life said that they have them. Set-id bits go as in
COMMIT_INLINE.

Where too many extents lie under the new ones for one command, it ends in front of the rest, which the writer commits
with another one: as if it had sent that much. An append is never divided; it waits until there is room behind the end.
"""

import errno
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from shoalfs.mds import extents, inline, keys, privileges, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.bounds import Bounds
from shoalfs.mds.messages import CommitExtents, Committed, Extent, Inode, Pool, Receipt, Storage
from shoalfs.mds.ops.commit_inline import load_file
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.checksum import CHUNK_HASH_BYTES, chunk_hash
from shoalfs.transport.errors import BadMessage, ChunkNotReserved, LayoutConflict, PosixError, StaleReceipt
from shoalfs.transport.fragments import fragment_hash
from shoalfs.transport.ids import ChunkId, InodeId, PoolId, SessionId, TargetId, chunk_pg, chunk_sequence
from shoalfs.transport.limits import (
    CHUNK_BYTES_MAX,
    CREATE_EXTENTS_MAX,
    EXTENTS_PER_COMMIT_MAX,
    FILE_SIZE_BYTES_MAX,
)


def commit_extents(txn: Txn, context: Context, request: CommitExtents) -> Committed:
    inode = load_file(txn, request.ino)
    inline_bytes = _check_layout(txn, inode, request)
    base_bytes = inode.size_bytes if request.append else 0
    placed = [msgspec.structs.replace(e, offset_bytes=e.offset_bytes + base_bytes) for e in request.extents]
    size_bytes = _check_extents(request, placed, inode.size_bytes)
    _check_chunks(txn, context.session, request)

    edit = extents.Edit(txn, inode, context.bounds.rows_max)
    if placed and inode.storage is Storage.INLINE:
        edit.used_bytes -= len(inline_bytes)
        inline.store(txn, inode.ino, inline_bytes, b"")
    left, left_from_bytes = 0, 0
    if placed and _has_room(txn, inode, edit, placed, context.bounds, append=request.append):
        left, left_from_bytes = _link(edit, placed)
    elif placed:
        left, left_from_bytes = len(placed), placed[0].offset_bytes
    if left:
        ends = [extent.end_bytes for extent in placed[: len(placed) - left]]
        if left_from_bytes > placed[-left].offset_bytes:
            ends.append(left_from_bytes)
        size_bytes = max([inode.size_bytes, *ends])
    written = inodes.content_changed(
        inode,
        context.now_ns,
        size_bytes=size_bytes,
        storage=Storage.EXTENTS if placed else inode.storage,
        **edit.settle(context.now_ns),
        **privileges.dropped(txn, inode),
    )
    inodes.store(txn, written)
    first_bytes = placed[0].offset_bytes if placed else base_bytes
    return Committed(written, first_bytes, inode.data_version, left, left_from_bytes)


def check_replacement(
    txn: ReadTxn, session: SessionId, ino: InodeId, extent: Extent, receipts: tuple[Receipt, ...]
) -> None:
    """Whether the file may be linked to this extent instead of what is on disk already (MERGE_EXTENTS). Raises what
    COMMIT_EXTENTS does."""
    request = CommitExtents(ino, (extent,), receipts, durable=True)
    _check_extents(request, [extent], 0)
    _check_chunks(txn, session, request)


def check_first(
    txn: ReadTxn, session: SessionId, pool: PoolId, placed: Sequence[Extent], receipts: tuple[Receipt, ...]
) -> None:
    """Whether a file of ``pool`` may be made with these extents (CREATE). Raises what COMMIT_EXTENTS does; StaleReceipt
    also for a chunk of another pool: the directory's was about to be removed, and who stored it did not know."""
    if len(placed) > CREATE_EXTENTS_MAX:
        raise BadMessage(f"a file is made with at most {CREATE_EXTENTS_MAX} extents")
    if any(one.end_bytes > other.offset_bytes for one, other in pairwise(placed)):
        raise BadMessage("the extents that a file is made with lie one behind the other")
    request = CommitExtents(InodeId(0), tuple(placed), receipts)
    _check_extents(request, list(placed), 0)
    _check_chunks(txn, session, request)
    for extent in placed:
        if records.GROUP.require(txn, keys.group(chunk_pg(extent.chunk))).pool != pool:
            raise StaleReceipt(f"chunk {extent.chunk} is not in pool {pool}, where the file is")


def link_first(txn: Txn, context: Context, inode: Inode, placed: Sequence[Extent]) -> Inode:
    """Link extents that :func:`check_first` has let pass into a file that holds nothing yet."""
    edit = extents.Edit(txn, inode, context.bounds.rows_max)
    for extent in placed:
        edit.put(extent)
    written = inodes.content_changed(
        inode,
        context.now_ns,
        size_bytes=placed[-1].end_bytes,
        storage=Storage.EXTENTS,
        **edit.settle(context.now_ns),
        **privileges.dropped(txn, inode),
    )
    inodes.store(txn, written)
    return written


def _has_room(
    txn: Txn, inode: Inode, edit: extents.Edit, placed: list[Extent], bounds: Bounds, *, append: bool
) -> bool:
    """Whether linking may begin. If not, some of the extents that were cut off before are removed. Raises EFBIG."""
    ranges = [(extent.offset_bytes, extent.end_bytes) for extent in placed]
    if not extents.check_count(txn, inode, ranges, len(placed), bounds):
        edit.uncover(FILE_SIZE_BYTES_MAX)
        return False
    if append:
        if not edit.uncover(max(extent.end_bytes for extent in placed)):
            return False
        edit.rows_left = bounds.rows_max  # nothing lies there but extents of this commit under later ones
    return True


def _link(edit: extents.Edit, placed: list[Extent]) -> tuple[int, int]:
    """Returns how many of the last extents are left, and where the first of these continues."""
    for number, extent in enumerate(placed):
        done_bytes = edit.link(extent)
        if done_bytes < extent.end_bytes:
            return len(placed) - number, done_bytes
    return 0, 0


def _check_layout(txn: ReadTxn, inode: Inode, request: CommitExtents) -> bytes:
    """The inline bytes that the extents replace. Raises LayoutConflict if the writer has not seen exactly
    these."""
    if request.inline_version is not None:
        if inode.storage is not Storage.INLINE:
            raise LayoutConflict("the file has moved to chunks")
        if inode.data_version != request.inline_version:
            raise LayoutConflict("the file's inline bytes have changed")
    inline_bytes = inline.load(txn, inode.ino) if inode.storage is Storage.INLINE else b""
    if inline_bytes and request.extents:
        if request.inline_version is None:
            raise LayoutConflict("the file has inline bytes")
        if request.append:
            raise BadMessage("extents that replace inline bytes say where they lie")
    return inline_bytes


def _check_extents(request: CommitExtents, placed: list[Extent], size_bytes: int) -> int:
    """The file's size afterwards. Raises BadMessage or EFBIG if the extents make no sense by themselves."""
    if len(placed) > EXTENTS_PER_COMMIT_MAX:
        raise BadMessage(f"a commit has at most {EXTENTS_PER_COMMIT_MAX} extents")
    for asked, extent in zip(request.extents, placed, strict=True):
        inside = extent.chunk_offset_bytes >= 0 and extent.length_bytes > 0 and asked.offset_bytes >= 0
        fits = extent.chunk_offset_bytes + extent.length_bytes <= extent.chunk_bytes <= CHUNK_BYTES_MAX
        if not inside or not fits or len(extent.chunk_hash) != CHUNK_HASH_BYTES:
            raise BadMessage("an extent does not lie within its chunk")
        size_bytes = max(size_bytes, extent.end_bytes)
    if request.size_bytes is not None:
        size_bytes = max(size_bytes, request.size_bytes)
    if size_bytes > FILE_SIZE_BYTES_MAX:
        raise PosixError(errno.EFBIG)
    return size_bytes


# --- chunks and receipts ------------------------------------------------------------------------------------


def _check_chunks(txn: ReadTxn, session: SessionId, request: CommitExtents) -> None:
    receipts: dict[ChunkId, list[Receipt]] = defaultdict(list)
    for receipt in request.receipts:
        receipts[receipt.chunk].append(receipt)
    epochs: dict[TargetId, int] = {}
    known: dict[ChunkId, tuple[int, bytes, bytes]] = {}
    for extent in request.extents:
        chunk = extent.chunk
        if chunk not in known:
            use = _check_reserved(txn, session, chunk)
            known[chunk] = (
                (use.chunk_bytes, use.chunk_hash or extent.chunk_hash, use.fragments) if use else _identity(extent)
            )
            _check_receipts(txn, extent, receipts[chunk], epochs, durable=request.durable)
        if _identity(extent) != known[chunk]:
            raise BadMessage(f"chunk {chunk} has two lengths or two hashes")


def _identity(extent: Extent) -> tuple[int, bytes, bytes]:
    return extent.chunk_bytes, extent.chunk_hash, extent.fragments


def _check_reserved(txn: ReadTxn, session: SessionId, chunk: ChunkId) -> records.ChunkUse | None:
    """What is noted of the chunk if an extent uses it already. Raises ChunkNotReserved if the session may not link
    it."""
    if not 0 < chunk <= keys.U64_MAX or not chunk_pg(chunk) or not chunk_sequence(chunk):
        raise BadMessage(f"{chunk} is no chunk")
    use = records.CHUNK_USE.load(txn, keys.chunk_use(chunk))
    if use is not None:
        return use
    if txn.get(keys.garbage(chunk)) is not None:
        raise ChunkNotReserved(f"chunk {chunk} is garbage")
    if reserved_by(txn, chunk) != session:
        raise ChunkNotReserved(f"chunk {chunk} is not reserved by session {session}")
    return None


def reserved_by(txn: ReadTxn, chunk: ChunkId) -> SessionId | None:
    """The session that holds the range with the chunk's sequence number, if any does."""
    sequence = chunk_sequence(chunk)
    first, _ = keys.all_of(b"N")
    for key, value in txn.range(first, keys.chunk_range(sequence + 1), reverse=True):
        row = records.RANGE.decode(key, value)
        return row.session if sequence < keys.first_field(key) + row.count else None
    return None


def _check_receipts(
    txn: ReadTxn, extent: Extent, receipts: list[Receipt], epochs: dict[TargetId, int], *, durable: bool
) -> None:
    """Raises StaleReceipt unless ``min_ack`` targets of the chunk's group hold what they should, as of their current
    epochs; BadMessage if the extent is not of a chunk of that pool.

    What is not durable yet is synced later on the targets that gave receipts, and their word is then taken for it. So
    one of a target that is not a member (any more) is refused: nobody reads from there, and the copy will be deleted.
    Whoever is a member now is let go only once the others were seen to have the chunk."""
    chunk = extent.chunk
    group = records.GROUP.load(txn, keys.group(chunk_pg(chunk)))
    if group is None:
        raise StaleReceipt(f"chunk {chunk} is of an unknown placement group")
    pool = records.POOL.require(txn, keys.pool(group.pool))
    _check_fragments(extent, pool)
    holders: set[TargetId] = set()
    for receipt in receipts:
        if receipt.target not in group.targets and not durable:
            raise StaleReceipt(f"target {receipt.target} is no member of the group of chunk {chunk}: the map is old")
        if receipt.target not in group.targets or (durable and not receipt.durable):
            continue
        place = group.place(receipt.target)
        expected = fragment_hash(extent.fragments, place) if pool.data > 1 else extent.chunk_hash
        if receipt.chunk_hash != expected:
            continue
        if receipt.target not in epochs:
            epochs[receipt.target] = records.TARGET.require(txn, keys.target(receipt.target)).epoch
        if receipt.target_epoch == epochs[receipt.target]:
            holders.add(receipt.target)
    if len(holders) < pool.min_ack:
        raise StaleReceipt(f"chunk {chunk} has {len(holders)} valid receipts and needs {pool.min_ack}")


def _check_fragments(extent: Extent, pool: Pool) -> None:
    """Raises BadMessage unless the extent names the fragments that a chunk of this pool has."""
    wanted = pool.replicas * CHUNK_HASH_BYTES if pool.data > 1 else 0
    if len(extent.fragments) != wanted:
        raise BadMessage(f"chunk {extent.chunk} is of a pool of {pool.redundancy}, its extent is not")
    if wanted and chunk_hash(extent.fragments) != extent.chunk_hash:
        raise BadMessage(f"the hash of chunk {extent.chunk} is not that of its fragments")
