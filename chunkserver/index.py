"""The index of a target: where each chunk is. A cache of the segments, over LMDB, which nothing else here imports.

Three tables. ``chunks``: chunk id -> :class:`Row`. ``segments``: number -> :class:`SegmentRow`. ``quarantine``:
(segment, offset) of a damaged or foreign record -> why. All keys are big-endian, so LMDB's order is numeric order.

The one rule: it may be lost at any time and is rebuilt from the segments. So it is never synced while running; the
kernel keeps its pages through a crash of the process, and after a crash of the machine it is thrown away. A damaged
entry cannot lead to wrong bytes, because each record is verified against the id and hash that the index and the
reader expect.

Writers on several threads are grouped: whoever gets the write lock commits for all that queued up meanwhile.

Any look into LMDB may wait for the disk, for a page that has to be read. So all of them are noted in the target's
watch, and what was looked up lately is remembered, for those who must not wait (:meth:`Index.known`).

LMDB's own locks are not used: they are in a mapped file in which every reader enters itself, which waits for a disk
that hangs, at times with the interpreter's lock held, and then the whole server waits. One process has the index, by
the lock of the target's directory; its threads take turns (:class:`_Turns`), since without those locks no reader may
be there while something is written.
"""

import contextlib
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple

import lmdb

from shoalfs.chunkserver.record import Header, record_bytes
from shoalfs.chunkserver.watch import Call, Watch
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import INDEX_MAP_BYTES, INDEX_ROWS_KNOWN_MAX

IndexDamaged: Final = lmdb.Error
"""What every call here may raise: the index is unusable (or its disk is)."""
IndexFull: Final = (lmdb.DiskError, lmdb.MapFullError)
"""Those of them that mean: no space. Nothing was changed."""

_CHUNK_KEY: Final = struct.Struct(">Q")
_SEGMENT_KEY: Final = struct.Struct(">I")
_PLACE_KEY: Final = struct.Struct(">IQ")
_ROW: Final = struct.Struct("<IQIQ16s")
_SEGMENT_ROW: Final = struct.Struct("<QQI")


class Row(NamedTuple):
    """Where a chunk lies, and what LIST and VERIFY say of it without reading the segment."""

    segment: int
    position_bytes: int
    chunk_bytes: int
    stored_ns: int
    chunk_hash: bytes


def row_of(header: Header) -> Row:
    """What the index says of this record."""
    return Row(header.segment, header.position_bytes, header.chunk_bytes, header.stored_ns, header.chunk_hash)


class SegmentRow(NamedTuple):
    """Invariant: every record below ``watermark_bytes`` is in the index, dead, or in quarantine; ``live_*`` are sums
    over the rows of ``chunks`` that point into the segment."""

    watermark_bytes: int = 0
    live_bytes: int = 0
    live_records: int = 0


class Changes:
    """One write transaction. Used inside :meth:`Index.write` only."""

    def __init__(
        self,
        txn: lmdb.Transaction,
        chunks: lmdb._Database,
        segments: lmdb._Database,
        quarantine: lmdb._Database,
    ) -> None:
        self._txn = txn
        self._chunks = chunks
        self._segments = segments
        self._quarantine = quarantine
        self.live_bytes_delta = 0
        self.dropped: list[ChunkId] = []

    def get(self, chunk: ChunkId) -> Row | None:
        value = self._txn.get(_CHUNK_KEY.pack(chunk), db=self._chunks)
        return Row._make(_ROW.unpack(value)) if value is not None else None

    def put(self, chunk: ChunkId, row: Row) -> None:
        """Enter a chunk that is not in the index."""
        fresh = self._txn.put(_CHUNK_KEY.pack(chunk), _ROW.pack(*row), db=self._chunks, overwrite=False)
        assert fresh, chunk
        self._account(row, +1)

    def drop(self, chunk: ChunkId, row: Row) -> None:
        """Forget the chunk if it still is at this row."""
        if self.get(chunk) == row:
            self._txn.delete(_CHUNK_KEY.pack(chunk), db=self._chunks)
            self._account(row, -1)
            self.dropped.append(chunk)

    def set_aside(self, segment: int, position_bytes: int, reason: str) -> None:
        """Put what lies there into quarantine."""
        self._txn.put(_PLACE_KEY.pack(segment, position_bytes), reason.encode(), db=self._quarantine)

    def raise_watermark(self, number: int, watermark_bytes: int) -> None:
        row = self._segment(number)
        if watermark_bytes > row.watermark_bytes:
            self._put_segment(number, row._replace(watermark_bytes=watermark_bytes))

    def drop_segment(self, number: int) -> None:
        self._txn.delete(_SEGMENT_KEY.pack(number), db=self._segments)

    def _segment(self, number: int) -> SegmentRow:
        value = self._txn.get(_SEGMENT_KEY.pack(number), db=self._segments)
        return SegmentRow._make(_SEGMENT_ROW.unpack(value)) if value is not None else SegmentRow()

    def _put_segment(self, number: int, row: SegmentRow) -> None:
        self._txn.put(_SEGMENT_KEY.pack(number), _SEGMENT_ROW.pack(*row), db=self._segments)

    def _account(self, row: Row, sign: int) -> None:
        delta = sign * record_bytes(row.chunk_bytes)
        self.live_bytes_delta += delta
        old = self._segment(row.segment)
        live_bytes, live_records = old.live_bytes + delta, old.live_records + sign
        self._put_segment(row.segment, SegmentRow(old.watermark_bytes, live_bytes, live_records))


@dataclass(eq=False, slots=True)
class _Addition:
    chunk: ChunkId
    row: Row
    watermark_bytes: int
    replaces: Row | None
    done: bool = False
    winner: Row | None = None  # the row that is in the index now
    error: Exception | None = None


def destroy(path: str) -> None:
    """Remove the index in ``path``, if there is one: the next :class:`Index` starts empty."""
    shutil.rmtree(path, ignore_errors=True)


def exists(path: str) -> bool:
    return os.path.exists(f"{path}/data.mdb")


class _Turns:
    """Any number of readers or one writer. Who wants to write lets no further reader in."""

    def __init__(self) -> None:
        self.gate: Final = threading.Lock()  # held by the writer, and for a moment by who comes to read
        self.room: Final = threading.Lock()  # held while anybody reads, or somebody writes
        self.counting: Final = threading.Lock()
        self.readers = 0


class _Read:
    """A look into LMDB, while nobody writes."""

    __slots__ = ("_call", "_turns")

    def __init__(self, turns: _Turns, call: Call) -> None:
        self._turns = turns
        self._call = call

    def __enter__(self) -> None:
        self._call.__enter__()
        turns = self._turns
        with turns.gate, turns.counting:
            turns.readers += 1
            if turns.readers == 1:
                turns.room.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        turns = self._turns
        with turns.counting:
            turns.readers -= 1
            if not turns.readers:
                turns.room.release()
        self._call.__exit__(kind, error, at)


class _Known:
    """Rows that were looked up lately. The lock is never held while anything waits for the disk.

    Invariant: each is what the index has, or had a moment ago: who looks one up says of when that is, and it is not
    remembered if anything was dropped since.
    """

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._rows: dict[ChunkId, bytes] = {}  # the oldest first
        self._lock = threading.Lock()
        self.drops = 0  # goes up when something was dropped

    def get(self, chunk: ChunkId) -> bytes | None:
        return self._rows.get(chunk)

    def remember(self, chunk: ChunkId, value: bytes, drops: int) -> None:
        """``drops``: as it was before the row was looked up."""
        with self._lock:
            if drops != self.drops:
                return
            if len(self._rows) >= self._rows_max:
                del self._rows[next(iter(self._rows))]
            self._rows[chunk] = value

    def forget(self, chunks: list[ChunkId]) -> None:
        """They were dropped."""
        with self._lock:
            self.drops += 1
            for chunk in chunks:
                self._rows.pop(chunk, None)


class Index:
    """Opens (or makes) the index in ``path``, a directory of its own. Thread-safe. Raises IndexDamaged."""

    def __init__(self, path: str, watch: Watch) -> None:
        self._watch = watch
        self._turns = _Turns()
        self._known = _Known(INDEX_ROWS_KNOWN_MAX)
        with self._look():
            os.makedirs(path, mode=0o700, exist_ok=True)
            # No sync, no locks: see the module.
            self._env = lmdb.open(path, map_size=INDEX_MAP_BYTES, max_dbs=3, sync=False, metasync=False, lock=False)
            self._chunks = self._env.open_db(b"chunks")
            self._segments = self._env.open_db(b"segments")
            self._quarantine = self._env.open_db(b"quarantine")
        self._write_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Addition] = []  # bounded by the target's threads: each waits for its own
        # Invariant: the sum of live_bytes over all segments.
        self.live_bytes = sum(row.live_bytes for row in self.segments().values())

    def close(self) -> None:
        """Put it on disk, so that the next start of the machine may use it, and close it."""
        with self._look():
            self._env.sync(True)
        self.abandon()

    def abandon(self) -> None:
        """Close it as a crash would."""
        with self._look():
            self._env.close()

    def _look(self) -> Call:
        return Call(self._watch, "a look into its index")

    def _read(self) -> _Read:
        return _Read(self._turns, Call(self._watch, "a look into its index"))

    # --- reading -----------------------------------------------------------------------------------------------------

    def known(self, chunk: ChunkId) -> Row | None:
        """The chunk's row if it is remembered; None says nothing. Does not wait."""
        value = self._known.get(chunk)
        return Row._make(_ROW.unpack(value)) if value is not None else None

    def get(self, chunk: ChunkId) -> Row | None:
        drops = self._known.drops
        with self._read(), self._env.begin(self._chunks) as txn:
            value = txn.get(_CHUNK_KEY.pack(chunk))
        if value is None:
            return None
        self._known.remember(chunk, value, drops)
        return Row._make(_ROW.unpack(value))

    def after(self, chunk: ChunkId, count: int) -> list[tuple[ChunkId, Row]]:
        """Up to ``count`` chunks with a higher id, in order."""
        found: list[tuple[ChunkId, Row]] = []
        with self._read(), self._env.begin(self._chunks) as txn:
            cursor = txn.cursor()
            more = cursor.set_range(_CHUNK_KEY.pack(chunk + 1))
            while more and len(found) < count:
                (number,) = _CHUNK_KEY.unpack(cursor.key())
                found.append((ChunkId(number), Row._make(_ROW.unpack(cursor.value()))))
                more = cursor.next()
        return found

    def segments(self) -> dict[int, SegmentRow]:
        """Of every segment that the index knows."""
        with self._read(), self._env.begin(self._segments) as txn:
            return {
                _SEGMENT_KEY.unpack(key)[0]: SegmentRow._make(_SEGMENT_ROW.unpack(value)) for key, value in txn.cursor()
            }

    def segment(self, number: int) -> SegmentRow:
        with self._read(), self._env.begin(self._segments) as txn:
            value = txn.get(_SEGMENT_KEY.pack(number))
        return SegmentRow._make(_SEGMENT_ROW.unpack(value)) if value is not None else SegmentRow()

    def quarantined(self) -> list[tuple[int, int, str]]:
        """(segment, offset, reason) of every record in quarantine."""
        with self._read(), self._env.begin(self._quarantine) as txn:
            return [(*_PLACE_KEY.unpack(key), value.decode()) for key, value in txn.cursor()]

    def has_quarantine(self, number: int) -> bool:
        """True if a record of this segment is in quarantine."""
        with self._read(), self._env.begin(self._quarantine) as txn:
            cursor = txn.cursor()
            found = cursor.set_range(_PLACE_KEY.pack(number, 0))
            return found and _PLACE_KEY.unpack(cursor.key())[0] == number

    def counts(self) -> tuple[int, int]:
        """Number of chunks, and of records in quarantine."""
        with self._read(), self._env.begin() as txn:
            return txn.stat(self._chunks)["entries"], txn.stat(self._quarantine)["entries"]

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Changes]:
        """One transaction: all of it or nothing."""
        with self._write_lock, self._transaction() as changes:
            yield changes

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Changes]:
        with self._look(), self._turns.gate, self._turns.room, self._env.begin(write=True) as txn:
            changes = Changes(txn, self._chunks, self._segments, self._quarantine)
            yield changes
        self.live_bytes += changes.live_bytes_delta
        if changes.dropped:
            self._known.forget(changes.dropped)

    def add(self, chunk: ChunkId, row: Row, watermark_bytes: int, replaces: Row | None = None) -> Row:
        """Enter the chunk and return the row that is in the index now: this one, or that of whoever was first.

        ``replaces``: a row whose record is known to be damaged; if it is still there, it goes to quarantine.
        """
        addition = _Addition(chunk, row, watermark_bytes, replaces)
        with self._queue_lock:
            self._queue.append(addition)
        with self._write_lock:
            if not addition.done:  # else another thread committed it together with its own
                self._commit_queue()
        if addition.error is not None:
            raise addition.error
        assert addition.winner is not None
        return addition.winner

    def _commit_queue(self) -> None:
        with self._queue_lock:
            batch, self._queue = self._queue, []
        error: Exception | None = None
        drops = self._known.drops
        try:
            with self._transaction() as changes:
                for addition in batch:
                    addition.winner = _enter(changes, addition)
        except lmdb.Error as failure:
            error = failure
        for addition in batch:
            if error is None and addition.winner == addition.row:
                self._known.remember(addition.chunk, _ROW.pack(*addition.row), drops)
            addition.error = error
            addition.done = True


def _enter(changes: Changes, addition: _Addition) -> Row:
    there = changes.get(addition.chunk)
    if there is not None and there != addition.replaces:
        return there
    if there is not None:
        changes.drop(addition.chunk, there)
        changes.set_aside(
            there.segment, there.position_bytes, "replaced: its bytes were damaged, or other than the files'"
        )
    changes.put(addition.chunk, addition.row)
    changes.raise_watermark(addition.row.segment, addition.watermark_bytes)
    return addition.row
