"""A file's extents and the counts of the chunks they use.

Knows rows ``X``, ``K``, ``Z``, ``z`` and ``C``. Two rules:

Whoever adds or drops extent rows collects what that means for the chunks in a :class:`ChunkDelta` and settles it once
at the end, so a chunk that is cut in two and kept is not garbage in between. :class:`Edit` does.

One command touches a bounded number of rows (``rows_max``, EXTENT_ROWS_MAX), however many a file has. What does not fit
is left for later, in one of two ways:

* Making a hole, and linking over what is there, go from the front to the back and say how far they came. The rest is as
  it was before, and is asked for again.
* A file that is made shorter is shorter for everybody at once. The rows that could not be removed lie at or behind
  ``Inode.cut_off_bytes``: nobody sees them any more, the inode goes on counting them, and the row ``C`` notes that they
  are there. Whoever writes there removes them first; what nobody writes over, the leader's duties remove
  (:mod:`shoalfs.mds.ops.trim`).
"""

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.bounds import Bounds
from shoalfs.mds.messages import NOT_CUT_OFF, Extent, Inode
from shoalfs.mds.records import ChunkUse, GarbageRow
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX


class ChunkDelta:
    """How many extents of each chunk were added or dropped, and what chunk it is."""

    def __init__(self) -> None:
        self._extents: Counter[ChunkId] = Counter()
        self._chunks: dict[ChunkId, tuple[int, bytes, bytes]] = {}  # length, hash, hashes of its fragments

    def add(self, extent: Extent) -> None:
        self._extents[extent.chunk] += 1
        self._chunks[extent.chunk] = (extent.chunk_bytes, extent.chunk_hash, extent.fragments)

    def drop(self, extent: Extent) -> None:
        self._extents[extent.chunk] -= 1
        self._chunks[extent.chunk] = (extent.chunk_bytes, extent.chunk_hash, extent.fragments)

    def settle(self, txn: Txn, now_ns: int, *, merged: bool) -> None:
        """Bring the chunks' counts up to date; a chunk that no extent uses any more becomes garbage as of
        now. ``merged``: its bytes are in another one.

        Of a chunk that has more uses than were counted (its row is lost or wrong, which fsck repairs) it is not known
        whether any is left: it is not counted any more, and no garbage. If nobody uses it, that comes to light when a
        target reports it."""
        unused: list[ChunkId] = []
        for chunk, delta in self._extents.items():
            use = records.CHUNK_USE.load(txn, keys.chunk_use(chunk))
            extents = delta + (use.extents if use else 0)
            if extents < 0:
                txn.delete(keys.chunk_use(chunk))
            elif extents == 0:
                txn.delete(keys.chunk_use(chunk))
                unused.append(chunk)
            elif use is None or extents != use.extents:
                row = ChunkUse(extents, *self._chunks[chunk])
                records.CHUNK_USE.store(txn, keys.chunk_use(chunk), row)
        add_garbage(txn, unused, now_ns, merged=merged)


def add_garbage(txn: Txn, chunks: list[ChunkId], now_ns: int, *, merged: bool = False) -> None:
    """Note chunks that no extent uses and that are not garbage yet."""
    for chunk in chunks:
        records.GARBAGE.store(txn, keys.garbage(chunk), GarbageRow(now_ns, merged))
        txn.put(keys.garbage_by_time(now_ns, chunk), b"")
    if chunks:
        counters = inodes.load_counters(txn)
        counted = {"garbage_chunks": counters.garbage_chunks + len(chunks)}
        if merged:
            counted["merged_garbage"] = counters.merged_garbage + len(chunks)
        inodes.store_counters(txn, msgspec.structs.replace(counters, **counted))


def visible(txn: ReadTxn, inode: Inode, first_bytes: int, end_bytes: int) -> Iterator[Extent]:
    """The file's extents that reach into [first_bytes, end_bytes), in order, without those that were cut off."""
    if inode.cut_off_bytes != NOT_CUT_OFF:
        end_bytes = min(end_bytes, inode.cut_off_bytes)
    if first_bytes < end_bytes:
        before = _before(txn, inode.ino, first_bytes)
        yield from _overlapping(txn, inode.ino, before, first_bytes, end_bytes)


def _before(txn: ReadTxn, ino: InodeId, first_bytes: int) -> Extent | None:
    """The last extent that begins before ``first_bytes``."""
    start, _ = keys.under(b"X", ino)
    for key, value in txn.range(start, keys.extent(ino, first_bytes), reverse=True):
        return records.EXTENT.decode(key, value)
    return None


def _overlapping(
    txn: ReadTxn, ino: InodeId, before: Extent | None, first_bytes: int, end_bytes: int
) -> Iterator[Extent]:
    if before is not None and before.end_bytes > first_bytes:
        yield before
    for key, value in txn.range(keys.extent(ino, first_bytes), keys.extent(ino, end_bytes)):
        yield records.EXTENT.decode(key, value)


def check_count(txn: ReadTxn, inode: Inode, ranges: Sequence[tuple[int, int]], linked: int, bounds: Bounds) -> bool:
    """Whether the file has no more extents than it may once these ranges are holes and ``linked`` extents lie in them.
    False: it would have, but that may change, since some were cut off and still count. Raises EFBIG, as XFS does
    (xfs_iext_count_may_overflow() in fs/xfs/libxfs/xfs_inode_fork.c). Ranges that lie over each other are counted as if
    they did not."""
    count = inode.extents + linked + len(ranges)
    if count <= bounds.extents_max:
        return True
    count -= len(ranges)
    for first_bytes, end_bytes in ranges:
        found = list(islice(visible(txn, inode, first_bytes, end_bytes), bounds.rows_max + 1))
        left = [*(e for e in found[:1] if e.offset_bytes < first_bytes), *(e for e in found if e.end_bytes > end_bytes)]
        count += len(left) - len(found[: bounds.rows_max])
    if count <= bounds.extents_max:
        return True
    if inode.cut_off_bytes != NOT_CUT_OFF:
        return False
    raise PosixError(errno.EFBIG, f"the file has {inode.extents} extents")


class Edit:
    """What one command does to the extents of one file. The caller stores the inode with what :meth:`settle` returns.

    Invariants: ``extents`` and ``used_bytes`` are the number and the bytes of the file's rows, those that were cut off
    included; ``rows_left`` is how many more of them this command may remove.
    """

    def __init__(self, txn: Txn, inode: Inode, rows_max: int) -> None:
        self._txn = txn
        self._inode = inode
        self._delta = ChunkDelta()
        self.rows_left = rows_max
        self.extents = inode.extents
        self.used_bytes = inode.used_bytes
        self.cut_off_bytes = inode.cut_off_bytes
        self._before: Extent | None = None  # what lies before the place that was looked at last

    def link(self, extent: Extent) -> int:
        """Let the file have ``extent`` where it says, over what is there. Returns up to where that is so: the extent's
        end, unless there are too many rows; then it continues there with the next command."""
        first_bytes = extent.offset_bytes
        if not self.uncover(extent.end_bytes):
            return first_bytes
        end_bytes = self.hole(first_bytes, extent.end_bytes)
        if end_bytes == extent.end_bytes:
            self.put(extent)
        elif end_bytes > first_bytes:
            self.put(extent.part(first_bytes, end_bytes))
        return end_bytes

    def put(self, extent: Extent) -> None:
        """Add an extent where none lies, in a range that was just made a hole; the ones before it first. What goes on
        where the extent before it ends, in the file and in the chunk, becomes one with that."""
        before = self._before
        if before is not None and before.end_bytes == extent.offset_bytes:
            joined = msgspec.structs.replace(before, length_bytes=before.length_bytes + extent.length_bytes)
            if joined.part(extent.offset_bytes, joined.end_bytes) == extent:
                self._drop(before)
                extent = joined
        self._put(extent)
        self._before = extent

    def hole(self, first_bytes: int, end_bytes: int) -> int:
        """Make [first_bytes, end_bytes) a hole; what lies across its ends is shortened. Returns up to where it is one:
        ``end_bytes``, unless there are too many rows."""
        seen_bytes = end_bytes
        if self.cut_off_bytes != NOT_CUT_OFF:
            seen_bytes = min(end_bytes, self.cut_off_bytes)
        if first_bytes >= seen_bytes:
            return end_bytes
        before = self._before = _before(self._txn, self._inode.ino, first_bytes)
        rows = _overlapping(self._txn, self._inode.ino, before, first_bytes, seen_bytes)
        found = list(islice(rows, self.rows_left + 1))
        if len(found) > self.rows_left:
            end_bytes = max(first_bytes, found.pop().offset_bytes)
        for old in found:
            self._drop(old)
            if old.offset_bytes < first_bytes:
                self._before = old.part(old.offset_bytes, first_bytes)
                self._put(self._before)
            if old.end_bytes > end_bytes:
                self._put(old.part(end_bytes, old.end_bytes))
        self.rows_left -= len(found)
        return end_bytes

    def cut_off(self, size_bytes: int) -> None:
        """Let the file have nothing from ``size_bytes`` on: at once for everybody who reads it, and row by row as far
        as there is room."""
        end_bytes = self.hole(size_bytes, FILE_SIZE_BYTES_MAX)
        if end_bytes < FILE_SIZE_BYTES_MAX:
            self.cut_off_bytes = end_bytes
        self.uncover(FILE_SIZE_BYTES_MAX)

    def uncover(self, end_bytes: int) -> bool:
        """Remove rows that were cut off and begin before ``end_bytes``. False: there are too many, and some are
        left."""
        if self.cut_off_bytes == NOT_CUT_OFF or self.cut_off_bytes >= end_bytes:
            return True
        ino = self._inode.ino
        rows = self._txn.range(keys.extent(ino, self.cut_off_bytes), keys.extent(ino, FILE_SIZE_BYTES_MAX))
        found = [records.EXTENT.decode(key, value) for key, value in islice(rows, self.rows_left + 1)]
        removed = [extent for extent in found[: self.rows_left] if extent.offset_bytes < end_bytes]
        for old in removed:
            self._drop(old)
        self.rows_left -= len(removed)
        if len(removed) == len(found):
            self.cut_off_bytes = NOT_CUT_OFF
            return True
        left = found[len(removed)].offset_bytes
        self.cut_off_bytes = left
        return left >= end_bytes

    def remove_some(self) -> bool:
        """Remove as many rows as there is room for, whatever they are; the file is about to go. Whether that were all
        of them."""
        rows = self._txn.range(*keys.under(b"X", self._inode.ino))
        found = [records.EXTENT.decode(key, value) for key, value in islice(rows, self.rows_left + 1)]
        for old in found[: self.rows_left]:
            self._drop(old)
        if len(found) > self.rows_left:
            return False
        self.cut_off_bytes = NOT_CUT_OFF
        return True

    def settle(self, now_ns: int, *, merged: bool = False) -> dict[str, int]:
        """Bring chunks and the row ``C`` up to date. Returns the fields of the inode that have followed. ``merged``:
        the bytes of what was dropped are in what was put."""
        self._delta.settle(self._txn, now_ns, merged=merged)
        if (self.cut_off_bytes == NOT_CUT_OFF) != (self._inode.cut_off_bytes == NOT_CUT_OFF):
            key = keys.cut_off(self._inode.ino)
            if self.cut_off_bytes == NOT_CUT_OFF:
                self._txn.delete(key)
            else:
                self._txn.put(key, b"")
        return {"used_bytes": self.used_bytes, "extents": self.extents, "cut_off_bytes": self.cut_off_bytes}

    def _put(self, extent: Extent) -> None:
        records.EXTENT.store(self._txn, keys.extent(self._inode.ino, extent.offset_bytes), extent)
        self._delta.add(extent)
        self.extents += 1
        self.used_bytes += extent.length_bytes

    def _drop(self, extent: Extent) -> None:
        self._txn.delete(keys.extent(self._inode.ino, extent.offset_bytes))
        self._delta.drop(extent)
        self.extents -= 1
        self.used_bytes -= extent.length_bytes
