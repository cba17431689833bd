"""A file's extents and the counts of the chunks they use.

Knows rows ``X``, ``K``, ``Z`` and ``z``. The one rule: whoever adds or drops extent rows collects what that
means for the chunks in a :class:`ChunkDelta` and settles it once at the end, so a chunk that is cut in two
and kept is not garbage in between.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, records
from shoalfs.mds.messages import Extent
from shoalfs.mds.records import ChunkUse, GarbageRow
from shoalfs.mds.txn import ReadTxn, Txn
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

    def settle(self, txn: Txn, now_ns: int) -> None:
        """Bring the chunks' counts up to date; a chunk that no extent uses any more becomes garbage as of
        now.

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
        add_garbage(txn, unused, now_ns)


def add_garbage(txn: Txn, chunks: list[ChunkId], now_ns: int) -> None:
    """Note chunks that no extent uses and that are not garbage yet."""
    for chunk in chunks:
        records.GARBAGE.store(txn, keys.garbage(chunk), GarbageRow(now_ns))
        txn.put(keys.garbage_by_time(now_ns, chunk), b"")
    if chunks:
        counters = inodes.load_counters(txn)
        garbage = counters.garbage_chunks + len(chunks)
        inodes.store_counters(txn, msgspec.structs.replace(counters, garbage_chunks=garbage))


def overlapping(txn: ReadTxn, ino: InodeId, first_bytes: int, end_bytes: int) -> Iterator[Extent]:
    """The file's extents that reach into [first_bytes, end_bytes), in order."""
    start, _ = keys.under(b"X", ino)
    for key, value in txn.range(start, keys.extent(ino, first_bytes), reverse=True):
        before = records.EXTENT.decode(key, value)
        if before.end_bytes > first_bytes:
            yield before
        break
    for key, value in txn.range(keys.extent(ino, first_bytes), keys.extent(ino, end_bytes)):
        yield records.EXTENT.decode(key, value)


def put(txn: Txn, ino: InodeId, extent: Extent, delta: ChunkDelta) -> None:
    """Add an extent where none lies."""
    records.EXTENT.store(txn, keys.extent(ino, extent.offset_bytes), extent)
    delta.add(extent)


def cut(txn: Txn, ino: InodeId, first_bytes: int, end_bytes: int, delta: ChunkDelta) -> int:
    """Make [first_bytes, end_bytes) a hole; what lies across its ends is shortened. Returns the bytes that
    went."""
    gone_bytes = 0
    for old in list(overlapping(txn, ino, first_bytes, end_bytes)):
        txn.delete(keys.extent(ino, old.offset_bytes))
        delta.drop(old)
        gone_bytes += min(old.end_bytes, end_bytes) - max(old.offset_bytes, first_bytes)
        if old.offset_bytes < first_bytes:
            put(txn, ino, part(old, old.offset_bytes, first_bytes), delta)
        if old.end_bytes > end_bytes:
            put(txn, ino, part(old, end_bytes, old.end_bytes), delta)
    return gone_bytes


def part(extent: Extent, first_bytes: int, end_bytes: int) -> Extent:
    """The piece of ``extent`` that covers [first_bytes, end_bytes) of the file."""
    return msgspec.structs.replace(
        extent,
        offset_bytes=first_bytes,
        length_bytes=end_bytes - first_bytes,
        chunk_offset_bytes=extent.chunk_offset_bytes + first_bytes - extent.offset_bytes,
    )


def drop_some(txn: Txn, ino: InodeId, count: int, delta: ChunkDelta) -> tuple[int, bool]:
    """Remove up to ``count`` extents. Returns the bytes that went and whether any extent is left."""
    found = list(islice(overlapping(txn, ino, 0, FILE_SIZE_BYTES_MAX), count + 1))
    for extent in found[:count]:
        txn.delete(keys.extent(ino, extent.offset_bytes))
        delta.drop(extent)
    return sum(extent.length_bytes for extent in found[:count]), len(found) > count
