"""Brings the index of a target up to its segments when the target is opened.

How much is done depends on how the last run ended:

====================================  ==============================================================================
the machine kept running, or clean    unsealed segments are scanned from their watermark on
the machine restarted, not clean      the index is thrown away; every header is read, unsealed segments' data too
state unknown or marked failed        as before, and the data of sealed segments is verified as well, from the disk
====================================  ==============================================================================

An index that is missing, damaged, or knows of more than the files hold is thrown away as after a restart.

What is found and what becomes of it: a valid live record is indexed; a dead one is skipped; a torn tail (the file ends
inside a record, or the header was never written) is cut off an unsealed segment; everything else that is not a valid
record of this place and cluster goes to quarantine: not indexed, counted, logged, left on disk. Of two records of one
chunk the intact one is indexed, of two intact ones the first. Doing it again gives the same index.
"""

import logging
from typing import Final

from shoalfs.chunkserver import index as index_module
from shoalfs.chunkserver import scan
from shoalfs.chunkserver.directory import StateFile, TargetDirectory
from shoalfs.chunkserver.disk import Disk
from shoalfs.chunkserver.index import Changes, Index, IndexDamaged, Row, row_of
from shoalfs.chunkserver.reader import check_row
from shoalfs.chunkserver.record import Header, State, aligned
from shoalfs.chunkserver.segments import Segments, parse_name
from shoalfs.chunkserver.watch import Watch
from shoalfs.transport.ids import ChunkId

_log: Final = logging.getLogger("shoal.chunkserver.recovery")


def open_index(
    disk: Disk,
    directory: TargetDirectory,
    segments: Segments,
    *,
    cluster_id: bytes,
    index_path: str,
    state: StateFile | None,
    watch: Watch,
) -> Index:
    """Adopt the segment files into ``segments`` and return an index that matches them. Raises OSError, IndexDamaged.

    The caller has recorded "not clean" before: from here on a crash is repaired by the next call.
    """
    files = _segment_files(disk, directory.segments_path)
    trusted = state is not None and not state.failed and (state.clean or state.boot_id == disk.boot_id())
    index = _existing_index(index_path, files, disk, segments, watch) if trusted else None
    if index is None:
        _log.info("target %s: rebuilding the index from %d segments", directory.path, len(files))
        with watch.call("removing its old index"):
            index_module.destroy(index_path)
        index = Index(index_path, watch)
    recovery = _Recovery(disk, segments, index, cluster_id, check_all=state is None or bool(state.failed))
    for number, sealed in sorted(files.items()):
        recovery.segment(number, sealed=sealed)
    return index


def _segment_files(disk: Disk, path: str) -> dict[int, bool]:
    """Number -> sealed. Files of other names are left alone."""
    return dict(filter(None, map(parse_name, disk.list_dir(path))))


def _existing_index(path: str, files: dict[int, bool], disk: Disk, segments: Segments, watch: Watch) -> Index | None:
    """The index in ``path`` if it can be opened and knows of nothing that the files do not hold."""
    if not index_module.exists(path):
        return None
    try:
        index = Index(path, watch)
    except IndexDamaged as error:
        _log.warning("the index in %s cannot be opened (%s)", path, error)
        return None
    for number, row in index.segments().items():
        if number in files:
            fd = disk.open(segments.file(number, sealed=files[number]))
            size = disk.size(fd)
            disk.close(fd)
        else:
            size = 0
        if size < row.watermark_bytes or (row.live_records and number not in files):
            _log.warning("segment %d is shorter than the index in %s says", number, path)
            index.abandon()
            return None
    return index


class _Recovery:
    def __init__(self, disk: Disk, segments: Segments, index: Index, cluster_id: bytes, *, check_all: bool) -> None:
        self._disk = disk
        self._segments = segments
        self._index = index
        self._cluster_id = cluster_id
        self._check_all = check_all

    def segment(self, number: int, *, sealed: bool) -> None:
        """Index what the segment holds past its watermark, in one transaction, and adopt it."""
        watermark = self._index.segment(number).watermark_bytes
        if sealed and watermark:
            self._segments.adopt(number, sealed=True)
            return
        fd = self._disk.open(self._segments.file(number, sealed=sealed))
        try:
            if self._check_all:
                self._disk.drop_cache(fd)
            segment = scan.Segment(self._disk, fd, number, self._cluster_id, self._disk.size(fd))
            with self._index.write() as changes:
                end = self._enter_all(changes, segment, watermark, sealed=sealed)
                changes.raise_watermark(number, end)
            if not sealed and end < segment.size_bytes:
                _log.info("segment %d: cutting %d bytes of torn tail", number, segment.size_bytes - end)
                self._disk.truncate(fd, end)
        finally:
            self._disk.close(fd)
        self._segments.adopt(number, sealed=sealed, end_bytes=end)

    def _enter_all(self, changes: Changes, segment: scan.Segment, start: int, *, sealed: bool) -> int:
        """Returns where the segment ends."""
        end = start
        for item in scan.walk(segment, start):
            if isinstance(item, scan.Damage):
                self._set_aside(changes, segment.number, item.position_bytes, item.reason)
                end = aligned(item.end_bytes)
            elif isinstance(item, scan.Gap):
                if sealed or item.end_bytes < segment.size_bytes:
                    end = item.end_bytes
            elif item.whole:
                self._enter(changes, segment, item.header, check=not sealed or self._check_all)
                end = item.header.position_bytes + item.header.record_bytes
            elif sealed:
                self._set_aside(changes, segment.number, item.header.position_bytes, "the file ends inside the record")
                end = segment.size_bytes
        return end

    def _enter(self, changes: Changes, segment: scan.Segment, header: Header, *, check: bool) -> None:
        if header.state is State.DEAD:
            return
        row = row_of(header)
        there = changes.get(header.chunk)
        if there == row:
            return
        reason = scan.check_data(segment, header) if check or there is not None else ""
        if not reason and there is not None:
            reason = self._displace_damaged(changes, header.chunk, there)
        if reason:
            self._set_aside(changes, segment.number, header.position_bytes, reason)
        else:
            changes.put(header.chunk, row)

    def _displace_damaged(self, changes: Changes, chunk: ChunkId, there: Row) -> str:
        """Make room for a second, intact record of the chunk if the first is damaged; else say why not."""
        for sealed in (True, False):
            try:
                fd = self._disk.open(self._segments.file(there.segment, sealed=sealed))
            except FileNotFoundError:
                continue
            try:
                old = scan.Segment(self._disk, fd, there.segment, self._cluster_id, self._disk.size(fd))
                reason = check_row(old, chunk, there)
            finally:
                self._disk.close(fd)
            if not reason:
                return f"a second record of chunk {chunk:#x}"
            changes.drop(chunk, there)
            self._set_aside(changes, there.segment, there.position_bytes, reason)
            return ""
        raise AssertionError(f"segment {there.segment} was indexed a moment ago")

    def _set_aside(self, changes: Changes, segment: int, position_bytes: int, reason: str) -> None:
        _log.warning("segment %d, offset %d: quarantined: %s", segment, position_bytes, reason)
        changes.set_aside(segment, position_bytes, reason)
