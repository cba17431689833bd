"""The store of one target: chunks in, verified chunks out. Synchronous and thread-safe; knows no network.

PUT, in durable order:

1. The bytes are checked against the hash.             A crash: nothing happened.
2. Room is taken, header and bytes are written.        A process crash: recovery finds the record, whole (indexed)
                                                       or torn (cut or a gap). A power loss: the same.
3. The index row is committed, without a sync.         Process crash: as 2. Power loss: the index is rebuilt.
4. If durable: fdatasync of the segment, together      The record survives everything from here on.
   with all others that wait for it.

DELETE, in durable order:

1. The header is rewritten in place as dead.           A power loss: dead or alive; the order is repeated.
2. fdatasync.                                          From here on the chunk stays deleted.
3. The data is punched out.                            Lost space at worst; header and index agree that it is dead.
4. The index row is removed.                           A process crash before: the row leads to a dead header, reads
                                                       say "missing", the repeated order removes it.
5. A sealed segment without live records is unlinked.  A crash before: the next deletion or seal does it.

A target fails for good when a write or a sync fails for any reason but lack of space: then pages may be lost that the
system calls clean. Nothing is written from then on; reads go on, since every byte is verified.
"""

import contextlib
import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from shoalfs.chunkserver import record
from shoalfs.chunkserver.directory import ScrubFile, TargetDirectory
from shoalfs.chunkserver.disk import Disk, Space
from shoalfs.chunkserver.index import IndexDamaged, IndexFull, Row, row_of
from shoalfs.chunkserver.reader import Reader
from shoalfs.chunkserver.recovery import open_index
from shoalfs.chunkserver.segments import Place, Segments
from shoalfs.chunkserver.watch import Watch, WatchedDisk
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import (
    BadMessage,
    ChunkConflict,
    ChunkCorrupt,
    ChunkMissing,
    TargetDown,
    TargetFull,
)
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.frame import Buffer
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import (
    CHUNK_BYTES_MAX,
    DIRECT_BYTES_MIN,
    DISK_CALL_MS_MAX,
    SEGMENT_BYTES_MAX,
    TARGET_FULL_PERCENT,
)

_log: Final = logging.getLogger("shoal.chunkserver.store")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Usage(NamedTuple):
    capacity_bytes: int
    used_bytes: int
    chunks: int
    segments: int
    quarantined: int


class ChunkStore:
    """One target directory, open. Use :meth:`close` or :meth:`abandon`; the methods may run in any thread.

    ``failed``: why nothing is written any more; empty while all is well, never cleared. ``given_up``: likewise, but it
    was somebody else's decision (:meth:`give_up`), and the next start may use the target again.
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        cluster_id: bytes,
        fresh_uuid: bytes,
        clock_ns: Callable[[], int],
        size_limit_bytes: int | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        direct_bytes_min: int = DIRECT_BYTES_MIN,
        index_path: str | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Open the target in ``path``, or make one with ``fresh_uuid``; recover its index.

        ``watch`` sees every call to the disk. ``index_path`` is for a disk that is not the system's: the index always
        is in real files. Raises UserError if the directory cannot be used (TargetInUse: by somebody else), TargetDown
        if it was marked failed, OSError and IndexDamaged.
        """
        watch = watch or Watch(DISK_CALL_MS_MAX)
        disk = WatchedDisk(disk, watch)
        self.failed = ""
        self.given_up = ""
        self.counters: Counter[str] = Counter()
        self._disk = disk
        self._cluster_id = cluster_id
        self._clock_ns = clock_ns
        self._size_limit_bytes = size_limit_bytes
        self._direct_bytes_min = direct_bytes_min
        self._seal_lock = threading.Lock()
        self._space = Space(0, 0)  # as its disk last said
        self._directory = TargetDirectory(disk, path, cluster_id=cluster_id, fresh_uuid=fresh_uuid)
        try:
            state = self._directory.read_state()
            if state is not None and state.failed:
                raise TargetDown(f"{path} was taken out of service: {state.failed}")
            self._directory.write_state(clean=False)
            self._segments = Segments(disk, self._directory.segments_path, segment_bytes_max)
            self._index = open_index(
                disk,
                self._directory,
                self._segments,
                cluster_id=cluster_id,
                index_path=index_path or self._directory.index_path,
                state=state,
                watch=watch,
            )
        except BaseException:
            self._directory.close()
            raise
        self.reader: Final = Reader(disk, cluster_id, self._index, self._segments, self.counters)

    @property
    def path(self) -> str:
        return self._directory.path

    @property
    def uuid(self) -> bytes:
        return self._directory.uuid

    # --- PUT ---------------------------------------------------------------------------------------------------------

    def put(
        self,
        *,
        chunk: ChunkId,
        ino: InodeId,
        offset_bytes: int,
        data: Sequence[Buffer],
        expected_hash: bytes,
        replaces_other: bool = False,
        fragment: Fragment | None = None,
    ) -> int:
        """Store the chunk and return the number of the segment to sync for it to be durable.

        The same bytes again are no error. ``replaces_other``: other bytes under this id are set aside (the metadata
        service knows which are the right ones); else they are ChunkConflict. Raises ChunkCorrupt if the bytes do not
        match ``expected_hash``, ChunkConflict, TargetFull, TargetDown, BadMessage. ``fragment`` is kept beside it.
        """
        length = sum(map(len, data))
        if not 0 < length <= CHUNK_BYTES_MAX:
            raise BadMessage(f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes, not {length}")
        hashes = block_hashes(data)
        if fragment is not None and (not fragment.fits(length) or fragment.hash != expected_hash):
            raise BadMessage(f"chunk {chunk:#x} is not the fragment that it is said to be")
        if chunk_hash(hashes) != expected_hash:
            self.counters["puts_corrupt"] += 1
            raise ChunkCorrupt(f"the bytes that arrived for chunk {chunk:#x} do not match their hash")
        self._require_healthy()
        with self._writing():
            there = self._index.get(chunk)
            if there is not None and self._is_intact(chunk, there, expected_hash, replaces_other=replaces_other):
                return there.segment
            row = self._append(chunk, ino, offset_bytes, data, hashes, fragment, replaces=there)
        if row.chunk_hash != expected_hash:
            raise ChunkConflict(f"chunk {chunk:#x} is here with other bytes")
        self.counters["puts"] += 1
        return row.segment

    def _is_intact(self, chunk: ChunkId, row: Row, expected_hash: bytes, *, replaces_other: bool) -> bool:
        """True if the chunk is here and every byte is right. A damaged one is to be replaced."""
        if row.chunk_hash == expected_hash:
            reason = self.reader.check(chunk, row)
        elif replaces_other:
            reason = "it is here with other bytes"
        else:
            raise ChunkConflict(f"chunk {chunk:#x} is here with other bytes")
        if reason:
            _log.warning("%s: chunk %#x is stored anew: %s", self.path, chunk, reason)
        return not reason

    def _append(
        self,
        chunk: ChunkId,
        ino: InodeId,
        offset_bytes: int,
        data: Sequence[Buffer],
        hashes: bytes,
        fragment: Fragment | None,
        *,
        replaces: Row | None,
    ) -> Row:
        """Write a record and enter it in the index. Returns the row that won."""
        length = sum(map(len, data))
        size = record.record_bytes(length)
        self._require_room(size)
        place = self._segments.allocate(size, large=length >= self._direct_bytes_min)
        try:
            header = record.Header(
                record.State.LIVE,
                place.segment,
                place.position_bytes,
                self._cluster_id,
                chunk,
                ino,
                offset_bytes,
                length,
                chunk_hash(hashes),
                self._clock_ns(),
            )
            padding = bytes(size - header.data_offset - length)
            self._segments.write(place, [record.head(header, hashes, fragment), *data, padding])
            watermark = self._segments.watermark(place.segment)
            row = self._index.add(chunk, row_of(header), watermark, replaces)
        except (OSError, IndexDamaged):
            self._withdraw(place)
            raise
        if row == row_of(header):
            self._segments.finish(place)
        else:  # another PUT of the chunk was first
            self._withdraw(place)
        return row

    def _withdraw(self, place: Place) -> None:
        try:
            self._segments.withdraw(place)
        except OSError as error:
            self._fail(f"cannot withdraw a record: {error}")

    def _require_room(self, size_bytes: int) -> None:
        """Raises TargetFull if a record of this size does not fit, TargetDown if the disk does not say."""
        with self._writing():
            capacity, free = self._disk.space(self.path)
        room = free - capacity * (100 - TARGET_FULL_PERCENT) // 100
        if self._size_limit_bytes is not None:
            used = self._index.live_bytes + self._segments.in_flight_bytes
            room = min(room, self._size_limit_bytes * TARGET_FULL_PERCENT // 100 - used)
        if size_bytes > room:
            self.counters["puts_full"] += 1
            raise TargetFull(f"{self.path} is full")

    # --- SYNC --------------------------------------------------------------------------------------------------------

    def sync(self, segment: int) -> None:
        """Return when all that was put into the segment before the call is on disk. Raises TargetDown."""
        self._require_healthy()
        with self._syncing():
            self._segments.sync(segment)
        self.counters["syncs"] += 1

    def rows_of(self, chunks: Iterable[ChunkId]) -> list[Row]:
        """What the index has of these chunks: their segments have to be synced for them to be durable. Raises
        ChunkMissing if one is not here."""
        rows = []
        for chunk in chunks:
            row = self._index.get(chunk)
            if row is None:
                raise ChunkMissing(f"chunk {chunk:#x} is not here")
            rows.append(row)
        return rows

    def sync_round(self) -> None:
        """Put everything on disk and seal the segments that are full, but for those with a record in quarantine. Raises
        TargetDown."""
        self._require_healthy()
        with self._writing():
            # Their data is verified after each loss of power, as no sealed segment's is: what a power cut left half
            # written would pass for a chunk once the index, which has it in quarantine, is rebuilt.
            kept = {segment for segment, _, _ in self._index.quarantined()}
        with self._seal_lock, self._syncing():
            for number in self._segments.dirty():
                self._require_healthy()
                self._segments.sync(number)
            sealed = self._segments.seal_full(kept)
        with self._writing():
            ends = {number: self._segments.end(number) for number in sealed} | self._segments.watermarks()
            with self._index.write() as changes:
                for number, watermark in ends.items():
                    changes.raise_watermark(number, watermark)
            self._remove_empty(sealed)

    # --- DELETE ------------------------------------------------------------------------------------------------------

    def delete(self, chunks: Iterable[ChunkId]) -> None:
        """When it returns the chunks are gone for good, also after a power loss. Chunks that are not here are fine.

        A record that is not what the index says is not touched but quarantined. Raises TargetDown, TargetFull.
        """
        self._require_healthy()
        with self._writing():
            rows = [(chunk, row) for chunk in chunks if (row := self._index.get(chunk)) is not None]
            verdicts = [self._mark_dead(chunk, row) for chunk, row in rows]
            self._require_healthy()  # what hung is not gone on with when it comes back: the order is an old one
            touched = {row.segment for (_, row), verdict in zip(rows, verdicts, strict=True) if not verdict}
            with self._syncing():
                for number in sorted(touched):
                    self._segments.sync_in_place_change(number)
            for (_, row), verdict in zip(rows, verdicts, strict=True):
                if not verdict:
                    self._punch(row)  # not below: whoever stores something waits for the index, and this may take long
            with self._index.write() as changes:
                for (chunk, row), verdict in zip(rows, verdicts, strict=True):
                    if verdict:
                        changes.set_aside(row.segment, row.position_bytes, verdict)
                    changes.drop(chunk, row)
            self._remove_empty({row.segment for _, row in rows})
        self.counters["deletes"] += len(rows)

    def _mark_dead(self, chunk: ChunkId, row: Row) -> str:
        """Rewrite the record's header as dead. Not empty: the record is not the chunk's; why."""
        buffer = bytearray(record.HEADER_BYTES)
        with self._segments.use(row.segment) as fd:
            self._disk.preadv(fd, [buffer], row.position_bytes)
            self._require_healthy()
            try:
                header = record.decode(
                    buffer,
                    segment=row.segment,
                    position_bytes=row.position_bytes,
                    cluster_id=self._cluster_id,
                )
            except ChunkCorrupt as bad:
                return str(bad)
            if header.chunk != chunk or row_of(header) != row:
                return "another record lies there"
            self._disk.pwritev(fd, [record.encode(header.dead())], row.position_bytes)
        return ""

    def _punch(self, row: Row) -> None:
        """Free the record's space but for its head, which says that it is dead."""
        head_bytes = record.data_offset(row.chunk_bytes)
        with self._segments.use(row.segment) as fd:
            self._disk.punch_hole(
                fd, row.position_bytes + head_bytes, record.record_bytes(row.chunk_bytes) - head_bytes
            )

    def _remove_empty(self, numbers: Iterable[int]) -> None:
        """Unlink those segments that are sealed and hold nothing alive and nothing in quarantine.

        In this order: nothing comes into a segment that is sealed, so what is counted afterwards stays so. Counted
        before, a segment may get a record and be sealed in between, and be removed with it.
        """
        for number in numbers:
            if not self._segments.is_sealed(number):
                continue
            empty = not self._index.segment(number).live_records and not self._index.has_quarantine(number)
            if empty and self._segments.remove(number):
                with self._index.write() as changes:
                    changes.drop_segment(number)

    # --- questions ---------------------------------------------------------------------------------------------------

    def chunks_after(self, chunk: ChunkId, count: int) -> list[tuple[ChunkId, Row]]:
        """Up to ``count`` chunks with a higher id, in rising order."""
        return self._index.after(chunk, count)

    def verify(self, chunk: ChunkId, *, deep: bool) -> Row:
        """The chunk's row. ``deep``: only after reading it all. Raises ChunkMissing, ChunkCorrupt."""
        row = self._index.get(chunk)
        if row is None:
            raise ChunkMissing(f"chunk {chunk:#x} is not here")
        reason = self.reader.check(chunk, row) if deep else ""
        if reason and self._index.get(chunk) != row:  # deleted or stored anew, while it was read
            raise ChunkMissing(f"chunk {chunk:#x} is not here any more")
        if reason:
            raise ChunkCorrupt(f"chunk {chunk:#x} is damaged: {reason}")
        return row

    def read_scrub(self) -> ScrubFile:
        return self._directory.read_scrub()

    def write_scrub(self, scrub: ScrubFile) -> None:
        """Note how far verifying everything is; nothing depends on it, so a disk that has no room for it is no
        failure."""
        try:
            self._directory.write_scrub(scrub)
        except OSError as error:
            _log.warning("%s: how far scrubbing is cannot be noted: %s", self.path, error)

    def quarantined(self) -> list[tuple[int, int, str]]:
        """(segment, offset, reason) of each record that is kept but not served."""
        return self._index.quarantined()

    def usage(self) -> Usage:
        """A directory that has vanished, or whose disk does not even say how large it is, takes the target out; then
        it is as large as it last said."""
        try:
            self._space = self._disk.space(self.path)
        except OSError as error:
            self._fail(f"its directory does not answer: {error}")
        space = self._space
        chunks, quarantined = self._index.counts()
        capacity, used = space.capacity_bytes, space.capacity_bytes - space.free_bytes
        if self._size_limit_bytes is not None:
            # What others store on the same filesystem takes from what is left, not from what is here.
            used = self._index.live_bytes
            capacity = min(self._size_limit_bytes, used + space.free_bytes)
        return Usage(capacity, used, chunks, self._segments.count, quarantined)

    # --- failure and the end -----------------------------------------------------------------------------------------

    def _require_healthy(self) -> None:
        if reason := self.failed or self.given_up:
            raise TargetDown(f"{self.path} is out of service: {reason}")

    def give_up(self, reason: str) -> None:
        """Nothing is begun any more that changes anything. It is not written down: the disk hangs, and has lost nothing
        by that. Does not wait."""
        if not self.given_up:
            self.given_up = reason
            _log.error("%s: taken out of service: %s", self.path, reason)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say of what goes wrong in the block: no space, or the target is finished."""
        try:
            yield
        except IndexFull as error:
            raise TargetFull(f"{self.path} has no room for its index") from error
        except (OSError, IndexDamaged) as error:
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                self.counters["puts_full"] += 1
                raise TargetFull(f"{self.path} is full") from error
            self._fail(f"a write failed: {error}")
            raise TargetDown(f"{self.path} is out of service: {self.failed}") from error

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        """A sync that fails, for whatever reason, finishes the target."""
        try:
            yield
        except OSError as error:
            self._fail(f"a sync failed: {error}")
            raise TargetDown(f"{self.path} is out of service: {self.failed}") from error

    def _fail(self, reason: str) -> None:
        if self.failed:
            return
        self.failed = reason
        _log.error("%s: taken out of service: %s", self.path, reason)
        try:
            self._directory.write_state(clean=False, failed=reason)
        except OSError as error:
            _log.error("%s: the failure cannot be recorded on the target itself: %s", self.path, error)

    def close(self) -> None:
        """Put everything on disk and record a clean end. Nobody uses the store any more."""
        try:
            if not self.failed and not self.given_up:
                self.sync_round()
                self._index.close()
                self._directory.write_state(clean=True)
        except (TargetDown, TargetFull, OSError) as error:
            _log.error("%s: not closed cleanly: %s", self.path, error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything at once, as a crash would."""
        self._index.abandon()
        self._segments.close()
        self._directory.close()
