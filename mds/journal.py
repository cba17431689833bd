"""The replicated log and Raft's hard state on disk: segments of checksummed records, in their own directory.

It does not know Raft's rules, nor what entries mean. The one rule: nothing counts as durable before
`batch_written`, and what was durable is never cut away; a log that lost such bytes refuses to open.

Three hands: the loop appends in memory and takes a batch of all that is new; one worker thread writes and
syncs that batch; the loop then notes that it is durable. One batch at a time is under way, and what is
appended meanwhile rides in the next. The loop never waits for the disk.

Durable steps, and what a crash in each gap leaves:

* Batch: (1) pwrite at the end of the last segment, (2) fdatasync. Before 2 is through, any part of the batch
  may be on disk, in any order; opening keeps its unharmed beginning and cuts the rest, none of which was
  acknowledged.
* New segment, before a batch, when the last one is full: (1) header into a temporary file, (2) fsync, (3)
  rename, (4) fsync the directory. Before 3: a temporary file, removed on opening. Before 4: the segment may
  be gone, and with it nothing, for its first record is written after 4. A segment under its final name always
  has a whole header.
* Truncation is a record (END): "the log ends here". Lost with its batch, the void entries are back; they were
  never committed, and the leader voids them again. What replaces them comes after it in the file, so it is
  never there without it.
* A reset is a record too (RESET): "the log begins after this entry", which a snapshot of the store holds. What was
  in the log before is void. Lost with its batch, the log is the old one, and the store must be the old one as well;
  `mds/install.py` has the order.
* Compaction unlinks whole segments, oldest first. In between, a prefix of them is gone; each segment's header
  says what the log was at its beginning.

A failed write or sync ends the node: after a failed fsync the kernel may drop the dirty pages and report
success the next time (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020), so
it is never repeated.

Doubt: rot in the very last batch looks like a torn tail, and is cut. The other members have those entries.
"""

import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoalfs.mds.journal_files import begin_segment, segment_name, sync_directory, write_all
from shoalfs.mds.journal_format import (
    FORMAT_VERSION,
    SEGMENT_HEADER_BYTES,
    BadHeader,
    Kind,
    Record,
    SegmentHeader,
    decode_header,
    encode_record,
    scan_segment,
)
from shoalfs.transport.errors import StorageFailed, UserError
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import LOG_SEGMENT_BYTES, NODE_MAX

log: Final = logging.getLogger("shoal.mds.journal")

Entry = tuple[bytes, int, int]
"""(command, index, term): the order in which pysyncobj keeps them."""


class JournalRefused(UserError):
    """The log cannot be opened: damaged, of another cluster or node, in use, or not there."""


class JournalFailed(StorageFailed):
    """The log's disk failed.

    Never caught, never retried: the process ends, and the group goes on without it.
    """


@dataclass(slots=True)
class _Segment:
    path: Path
    end_index: int  # the log ended here where the segment begins
    index_max: int  # the highest index of any entry in it, void ones included


@dataclass(frozen=True, slots=True)
class Batch:
    """All that was appended since the last batch. Opaque to the caller."""

    records: tuple[Record, ...]
    first_number: int
    synced: int
    salt: int
    last_index: int  # the log's end as of this batch
    segment: tuple[Path, SegmentHeader] | None  # begin this one first


class Journal:
    """The log of one node, opened by scanning it. One process at a time.

    ``sync_file`` is fdatasync, or a simulator's.
    """

    def __init__(
        self,
        directory: Path,
        cluster_id: bytes,
        node: NodeId,
        *,
        sync_file: Callable[[int], None] = os.fdatasync,
    ) -> None:
        """Raises JournalRefused."""
        self._directory = directory
        self._cluster_id = cluster_id
        self._node = node
        self._sync_file = sync_file
        self._entries: list[Entry] = []  # the first is the base: applied, its command dropped; never empty
        self._bytes = 0  # of the commands in _entries
        self._log_id = b""
        self._term = 0
        self._voted_for = 0
        self._position = 0  # number of the last record appended
        self._hard_state_position = 0  # number of the last record with a hard state. Invariant: <= _position
        self._durable_position = 0  # number of the last record that is on disk. Invariant: <= _position
        self._durable_index = 0  # Invariant: <= last_index
        self._lowest_cut: int | None = None  # the lowest END since the batch under way was taken
        self._pending: list[Record] = []
        self._under_way: Batch | None = None
        self._failed = False
        self._segments: list[_Segment] = []  # oldest first; the last one is written to
        self._salt = 0  # of the last segment
        self._tail_offset = 0  # where the next batch goes in the last segment; the worker thread's while under way
        self._lock = _lock_directory(directory)
        self._tail = -1  # the last segment's descriptor
        try:
            self._open_segments()
        except BaseException:
            self.close()
            raise
        self._taken = self._state()  # as of the last batch taken

    # --- what is in it --------------------------------------------------------------------------------------
    @property
    def log_id(self) -> bytes:
        """Made with the log and never changed."""
        return self._log_id

    @property
    def entries(self) -> list[Entry]:
        """The base and what follows it. Read only."""
        return self._entries

    @property
    def base_index(self) -> int:
        """Entries after this index are here; of this one only the term is known."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        return self._entries[-1][2]

    @property
    def bytes_in_memory(self) -> int:
        return self._bytes

    @property
    def current_term(self) -> int:
        return self._term

    @property
    def voted_for(self) -> int:
        """Who has this node's vote in the current term, 0 for nobody."""
        return self._voted_for

    @property
    def position(self) -> int:
        """Counts everything that was ever appended."""
        return self._position

    @property
    def hard_state_position(self) -> int:
        """The position at which term and vote last changed."""
        return self._hard_state_position

    @property
    def durable_position(self) -> int:
        return self._durable_position

    @property
    def durable_index(self) -> int:
        """The last entry that a power loss now would leave."""
        return self._durable_index

    def term_at(self, index: int) -> int | None:
        """The term of an entry, or None if it is not here."""
        offset = index - self.base_index
        return self._entries[offset][2] if 0 <= offset < len(self._entries) else None

    def check_holds(self, applied: int) -> None:
        """Raises JournalRefused unless what follows the store's last entry is here."""
        if not self.base_index <= applied <= self.last_index:
            raise JournalRefused(
                f"the store is at entry {applied}, but the log holds {self.base_index + 1} to {self.last_index}: "
                "they are not of the same node, or one is an old copy"
            )

    def slice(self, first: int, count: int) -> list[Entry]:
        """Up to ``count`` entries from index ``first`` on."""
        offset = first - self.base_index
        assert offset > 0, (first, self.base_index)
        return self._entries[offset : offset + count]

    # --- the loop's hand ------------------------------------------------------------------------------------
    def append(self, index: int, term: int, command: bytes) -> None:
        assert index == self.last_index + 1, (index, self.last_index)
        assert term >= self.last_term, (term, self.last_term)
        self._entries.append((command, index, term))
        self._bytes += len(command)
        self._add(Record(Kind.ENTRY, index, term, command))

    def truncate_after(self, index: int) -> None:
        """Void the entries after ``index``. The caller knows that none of them was ever committed."""
        term = self.term_at(index)
        assert term is not None, (index, self.base_index, self.last_index)
        self._cut(index, term)
        self._durable_index = min(self._durable_index, index)
        self._lowest_cut = index if self._lowest_cut is None else min(self._lowest_cut, index)
        self._add(Record(Kind.END, index, term))

    def reset(self, index: int, term: int) -> None:
        """Forget all entries; the log begins after (index, term), which the store is about to hold.

        The caller knows that nothing acknowledged is lost: the log did not have this entry.
        """
        assert index > 0, index
        assert self.term_at(index) != term, (index, term)
        self._replace_base(index, term)
        self._durable_index = min(self._durable_index, index)
        self._lowest_cut = index if self._lowest_cut is None else min(self._lowest_cut, index)
        self._add(Record(Kind.RESET, index, term))

    def set_hard_state(self, term: int, voted_for: int) -> None:
        assert term >= self._term, (term, self._term)
        assert term > self._term or self._voted_for in (0, voted_for), "a vote is never taken back"
        self._term, self._voted_for = term, voted_for
        self._add(Record(Kind.HARD_STATE, voted_for, term))
        self._hard_state_position = self._position

    def take_batch(self) -> Batch | None:
        """All that is new, to be given to `write` and then to `batch_written`; None if there is nothing."""
        assert self._under_way is None
        if not self._pending:
            return None
        first_number = self._position - len(self._pending) + 1
        segment = self._next_segment(first_number) if self._tail_offset >= LOG_SEGMENT_BYTES else None
        records = tuple(self._pending)
        self._pending.clear()
        self._lowest_cut = None
        self._taken = self._state()
        self._segments[-1].index_max = max(
            [self._segments[-1].index_max, *(r.index for r in records if r.kind is Kind.ENTRY)]
        )
        batch = Batch(records, first_number, self._durable_position, self._salt, self.last_index, segment)
        self._under_way = batch
        return batch

    def batch_written(self, batch: Batch) -> None:
        assert batch is self._under_way
        self._under_way = None
        self._durable_position = batch.first_number + len(batch.records) - 1
        # What was cut and appended again since the batch was taken is in the next one.
        lowest = batch.last_index if self._lowest_cut is None else self._lowest_cut
        self._durable_index = min(batch.last_index, lowest)

    def drop_through(self, index: int) -> tuple[Path, ...]:
        """Forget entries up to ``index`` at most, as far as whole segments hold them. Returns the files to
        `remove`.

        The caller knows that the state machine has them on disk, and that no member needs them from here.
        """
        # One segment stays, and it must be on disk: the newest is not, while the batch that begins it is under way.
        is_beginning = self._under_way is not None and self._under_way.segment is not None
        most = len(self._segments) - (2 if is_beginning else 1)
        count = 0
        while count < most and self._segments[count].index_max <= index:
            count += 1
        paths = tuple(segment.path for segment in self._segments[:count])
        del self._segments[:count]
        base_offset = self._segments[0].end_index - self.base_index
        if paths and base_offset > 0:
            self._bytes -= sum(len(entry[0]) for entry in self._entries[: base_offset + 1])
            _, base_index, base_term = self._entries[base_offset]
            self._entries[: base_offset + 1] = [(b"", base_index, base_term)]
        return paths

    # --- the worker thread's hand ---------------------------------------------------------------------------
    def write(self, batch: Batch) -> None:
        """Write and sync. Raises JournalFailed."""
        assert not self._failed
        try:
            if batch.segment is not None:
                os.close(self._tail)
                self._tail = -1
                self._tail = begin_segment(*batch.segment)
                self._tail_offset = SEGMENT_HEADER_BYTES
            data = encode_batch(batch)
            write_all(self._tail, data, self._tail_offset)
            self._sync_file(self._tail)
            self._tail_offset += len(data)
        except OSError as error:
            self._failed = True
            raise JournalFailed(f"cannot write the log in {self._directory}: {error}") from error

    def abandon_write(self) -> JournalFailed:
        """The thread has not come back from `write`: what to raise. It keeps the file; nothing else uses it."""
        self._failed = True
        self._tail = -1
        return JournalFailed(f"the disk of the log in {self._directory} hangs")

    def remove(self, paths: Iterable[Path]) -> None:
        """Unlink segments that were dropped, oldest first. Raises JournalFailed."""
        try:
            for path in paths:
                path.unlink()
                sync_directory(self._directory)
        except OSError as error:
            raise JournalFailed(f"cannot compact the log in {self._directory}: {error}") from error

    def sync(self) -> None:
        """Make all that was appended durable, in this thread."""
        while (batch := self.take_batch()) is not None:
            self.write(batch)
            self.batch_written(batch)

    def close(self) -> None:
        """Let go of the files; what no batch carried is lost, as in a crash.

        No batch may be with the thread.
        """
        for descriptor in (self._tail, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._tail = self._lock = -1

    # --- inside ---------------------------------------------------------------------------------------------
    def _add(self, record: Record) -> None:
        self._pending.append(record)
        self._position += 1

    def _cut(self, index: int, term: int) -> None:
        """The log ends with (index, term), which may lie before the base when an old segment is read
        again.
        """
        keep = index - self.base_index + 1
        if keep <= 0:
            self._replace_base(index, term)
            return
        self._bytes -= sum(len(entry[0]) for entry in self._entries[keep:])
        del self._entries[keep:]

    def _replace_base(self, index: int, term: int) -> None:
        self._bytes = 0
        self._entries = [(b"", index, term)]

    def _state(self) -> tuple[int, int, int, int]:
        return self.last_index, self.last_term, self._term, self._voted_for

    def _next_segment(self, first_number: int) -> tuple[Path, SegmentHeader]:
        self._salt = secrets.randbits(64)
        header = SegmentHeader(
            FORMAT_VERSION, self._node, self._cluster_id, self._log_id, self._salt, first_number, *self._taken
        )
        path = self._directory / segment_name(first_number)
        self._segments.append(_Segment(path, header.end_index, 0))
        return path, header

    # --- opening --------------------------------------------------------------------------------------------
    def _open_segments(self) -> None:
        for leftover in self._directory.glob("*.tmp"):
            log.warning("%s: a new segment was not finished; removed", leftover)
            leftover.unlink()
        paths = sorted(self._directory.glob("*.log"))
        if not paths:
            raise JournalRefused(f"{self._directory}: there is no log here; a new node must be initialised first")
        for path in paths:
            self._read_segment(path, is_last=path is paths[-1])
        self._tail = os.open(paths[-1], os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(self._tail).st_size > self._tail_offset:
            os.ftruncate(self._tail, self._tail_offset)
        # What a killed process had written may still be in the page cache only.
        os.fsync(self._tail)
        sync_directory(self._directory)
        self._durable_index = self.last_index
        self._durable_position = self._position

    def _read_segment(self, path: Path, *, is_last: bool) -> None:
        data = path.read_bytes()
        header = self._checked_header(path, data)
        scan = scan_segment(data, header)
        if scan.rest and (scan.rest == "damaged" or not is_last):
            raise JournalRefused(
                f"{path}: damaged at offset {scan.end_offset}, in bytes that had been synced; "
                "restore its data_dir from a copy if it is the only node; otherwise let it leave and join again"
            )
        if scan.rest:
            log.warning(
                "%s: cut a torn tail of %d bytes at offset %d",
                path, len(data) - scan.end_offset, scan.end_offset,
            )  # fmt: skip
        segment = _Segment(path, header.end_index, 0)
        for record in scan.records:
            self._replay(path, segment, record)
        self._segments.append(segment)
        self._salt = header.salt
        self._tail_offset = scan.end_offset

    def _checked_header(self, path: Path, data: bytes) -> SegmentHeader:
        """The header, if it is of this node and goes on where the segments read so far end."""
        try:
            header = decode_header(data)
        except BadHeader as error:
            raise JournalRefused(f"{path}: {error}") from error
        if header.cluster_id != self._cluster_id:
            raise JournalRefused(
                f"{path}: this log is of cluster {header.cluster_id.hex()}, not of {self._cluster_id.hex()}"
            )
        if header.node != self._node:
            raise JournalRefused(f"{path}: this log is of node {header.node}, not of node {self._node}")
        state = (header.end_index, header.end_term, header.current_term, header.voted_for)
        if not self._segments:
            self._entries = [(b"", header.end_index, header.end_term)]
            self._term, self._voted_for = header.current_term, header.voted_for
            self._position = header.first_number - 1
            self._log_id = header.log_id
        elif header.log_id != self._log_id or header.first_number != self._position + 1 or state != self._state():
            raise JournalRefused(f"{path}: it does not continue the segment before it; one is missing or damaged")
        return header

    def _replay(self, path: Path, segment: _Segment, record: Record) -> None:
        index, term = record.index, record.term
        if record.kind is Kind.ENTRY:
            if index != self.last_index + 1 or term < self.last_term:
                raise JournalRefused(f"{path}: entry {index} of term {term} does not follow {self.last_index}")
            self._entries.append((record.payload, index, term))
            self._bytes += len(record.payload)
            segment.index_max = max(segment.index_max, index)
        elif record.kind is Kind.HARD_STATE:
            self._term, self._voted_for = term, index
        elif record.kind is Kind.RESET:
            self._replace_base(index, term)
        else:
            self._cut(index, term)
        self._position += 1


def read_owner(directory: Path) -> SegmentHeader | None:
    """Whose log is in this directory, as its newest segment says; None if there is no log. Raises JournalRefused."""
    paths = sorted(directory.glob("*.log"))
    if not paths:
        return None
    try:
        with paths[-1].open("rb") as file:
            return decode_header(file.read(SEGMENT_HEADER_BYTES))
    except BadHeader as error:
        raise JournalRefused(f"{paths[-1]}: {error}") from error


def create_journal(directory: Path, cluster_id: bytes, node: NodeId, log_id: bytes = b"") -> None:
    """Begin the log of a node that never had one. Raises JournalRefused if there is one already.

    Only for a new node: a member that lost its disk has forgotten its vote and what it acknowledged, and must
    come back under another id (Ongaro, "Consensus: Bridging Theory and Practice", section 11.7.2 on lost
    disks).
    """
    assert len(cluster_id) == 16, cluster_id
    assert 1 <= node <= NODE_MAX, node
    log_id = log_id or secrets.token_bytes(16)
    directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(directory.parent)
    if any(directory.glob("*.log")):
        raise JournalRefused(f"{directory}: there is a log already")
    header = SegmentHeader(FORMAT_VERSION, node, cluster_id, log_id, secrets.randbits(64), 1, 0, 0, 0, 0)
    os.close(begin_segment(directory / segment_name(1), header))


def encode_batch(batch: Batch) -> bytes:
    """The bytes of a batch in the file."""
    return b"".join(
        encode_record(record, batch.first_number + nth, batch.synced, batch.salt)
        for nth, record in enumerate(batch.records)
    )


def _lock_directory(directory: Path) -> int:
    """Hold the directory for this process. Raises JournalRefused."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise JournalRefused(f"{directory}: there is no log here; a new node must be initialised first") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise JournalRefused(f"{directory}: in use by another process") from error
    return descriptor
