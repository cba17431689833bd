"""The part of the namespace check that looks at all rows at once: chunks, sessions, counters, rows of nothing. Pure.

Whatever is joined is either in the same order already and read side by side, or goes through
:class:`~shoalfs.mds.buckets.Buckets`, so that memory is bounded by a range and not by the filesystem. All functions are
generators that stop now and then (TICK_ROWS), for whoever drives them to do something else.
"""

import heapq
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Final

from xxhash import xxh3_64_intdigest

from shoalfs.mds import keys, records
from shoalfs.mds.buckets import Buckets, Ranges
from shoalfs.mds.check_findings import TICK_ROWS, Findings, NewFile
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, InodeId, SessionId, chunk_sequence

_NONE: Final = InodeId(0)  # what belongs to no inode
_CHUNKS_PER_RANGE = 100_000
_OWNED: Final = (b"D", b"E", b"L", b"X", b"C", b"A", b"O", b"Q")


def check(txn: ReadTxn, new_file: NewFile, findings: Findings) -> Iterator[None]:
    yield from _check_chunks(txn, new_file, findings)
    yield from _check_garbage(txn, findings)
    yield from _check_sessions(txn, findings)
    yield from _check_trash(txn, findings)
    counts = yield from counted(txn, findings)
    _check_counters(txn, counts, findings)


# --- chunks ------------------------------------------------------------------------------------------------------


class _Used:
    """What the extents say of one chunk; what the first of them says of its length and hash."""

    __slots__ = ("chunk_bytes", "digest", "extents")

    def __init__(self, chunk_bytes: int, digest: int) -> None:
        self.extents = 0
        self.chunk_bytes = chunk_bytes
        self.digest = digest


def _digest(chunk_hash: bytes, fragments: bytes) -> int:
    return xxh3_64_intdigest(chunk_hash + fragments)


def _check_chunks(txn: ReadTxn, new_file: NewFile, findings: Findings) -> Iterator[None]:
    """Each chunk is counted as often as extents use it, with its length, and none of them is garbage."""
    starts: list[int] = []
    for number, (key, _) in enumerate(findings.rows(txn, *keys.all_of(b"K"), _NONE)):
        if number % _CHUNKS_PER_RANGE == 0:
            starts.append(keys.first_field(key))
        if number % TICK_ROWS == TICK_ROWS - 1:
            yield
    ranges = Ranges(starts)
    with new_file() as file:
        buckets = Buckets(file, len(ranges), 3)
        for number, (key, value) in enumerate(findings.rows(txn, *keys.all_of(b"X")), 1):
            extent = findings.decoded(records.EXTENT, key, value, InodeId(keys.first_field(key)))
            if extent is not None:
                digest = _digest(extent.chunk_hash, extent.fragments)
                buckets.add(ranges.of(extent.chunk), (extent.chunk, extent.chunk_bytes, digest))
            if number % TICK_ROWS == 0:
                yield
        for at in range(len(ranges)):
            used: dict[int, _Used] = {}
            for number, (chunk, chunk_bytes, digest) in enumerate(buckets.read(at), 1):
                used.setdefault(chunk, _Used(chunk_bytes, digest)).extents += 1
                if number % TICK_ROWS == 0:
                    yield
            yield from _check_range(txn, ranges.bounds(at), used, findings)


def _check_range(
    txn: ReadTxn, bounds: tuple[int, int | None], used: dict[int, _Used], findings: Findings
) -> Iterator[None]:
    first, end = bounds
    behind = keys.all_of(b"K")[1] if end is None else keys.chunk_use(ChunkId(end))
    for number, (key, value) in enumerate(findings.rows(txn, keys.chunk_use(ChunkId(first)), behind, _NONE), 1):
        chunk = ChunkId(keys.first_field(key))
        _check_chunk(txn, key, value, used.pop(chunk, None), findings)
        if number % TICK_ROWS == 0:
            yield
    for number, (left, uses) in enumerate(used.items(), 1):
        text = f"chunk {left} is used by {uses.extents} extents and not counted"
        findings.add("chunk-not-counted", _NONE, text, keys.chunk_use(ChunkId(left)))
        _check_no_garbage(txn, ChunkId(left), findings)
        if number % TICK_ROWS == 0:
            yield


def _check_chunk(txn: ReadTxn, key: bytes, value: bytes, used: _Used | None, findings: Findings) -> None:
    use = findings.decoded(records.CHUNK_USE, key, value, _NONE)
    chunk = ChunkId(keys.first_field(key))
    extents = 0 if used is None else used.extents
    if use is not None and use.extents != extents:
        text = f"chunk {chunk} counts {use.extents} extents, there are {extents}"
        findings.add("wrong-chunk-count", _NONE, text, key)
    if use is not None and used is not None:
        if use.chunk_bytes != used.chunk_bytes:
            findings.add("wrong-chunk-length", _NONE, f"chunk {chunk} is noted with {use.chunk_bytes} bytes", key)
        if use.chunk_hash and _digest(use.chunk_hash, use.fragments) != used.digest:
            text = f"chunk {chunk} is noted with another hash than its extents have"
            findings.add("wrong-chunk-hash", _NONE, text, key)
    _check_no_garbage(txn, chunk, findings)


def _check_no_garbage(txn: ReadTxn, chunk: ChunkId, findings: Findings) -> None:
    if findings.get(txn, keys.garbage(chunk), _NONE) is not None:
        text = f"chunk {chunk} is used and would be deleted"
        findings.add("used-chunk-is-garbage", _NONE, text, keys.garbage(chunk))


def _check_garbage(txn: ReadTxn, findings: Findings) -> Iterator[None]:
    """The two orders of the garbage agree."""
    for number, (key, value) in enumerate(findings.rows(txn, *keys.all_of(b"Z"), _NONE), 1):
        row = findings.decoded(records.GARBAGE, key, value, _NONE)
        chunk = ChunkId(keys.first_field(key))
        if row is not None and findings.get(txn, keys.garbage_by_time(row.since_ns, chunk), _NONE) is None:
            findings.add("wrong-garbage", _NONE, f"chunk {chunk} is garbage and would never be deleted", key)
        if number % TICK_ROWS == 0:
            yield
    for number, (key, _) in enumerate(findings.rows(txn, *keys.all_of(b"z"), _NONE), 1):
        chunk = ChunkId(keys.second_field(key))
        row = findings.load(records.GARBAGE, txn, keys.garbage(chunk), _NONE)
        if row is None or row.since_ns != keys.first_field(key):
            findings.add("wrong-garbage", _NONE, f"chunk {chunk} waits for its deletion and is no garbage", key)
        if number % TICK_ROWS == 0:
            yield


# --- trash and sessions --------------------------------------------------------------------------------------------


def _check_trash(txn: ReadTxn, findings: Findings) -> Iterator[None]:
    """The two orders of the trash agree."""
    for number, (key, value) in enumerate(findings.rows(txn, *keys.all_of(b"Q")), 1):
        ino = InodeId(keys.first_field(key))
        row = findings.decoded(records.TRASH, key, value, ino)
        if row is not None and findings.get(txn, keys.trash_by_time(row.deleted_ns, ino), ino) is None:
            findings.add("wrong-trash", ino, "it is in the trash and would stay there for ever", key)
        if number % TICK_ROWS == 0:
            yield
    for number, (key, _) in enumerate(findings.rows(txn, *keys.all_of(b"q")), 1):
        ino = InodeId(keys.second_field(key))
        row = findings.load(records.TRASH, txn, keys.trash(ino), ino)
        if row is None or row.deleted_ns != keys.first_field(key):
            findings.add("wrong-trash", ino, "it would be taken out of the trash, and is not in it", key)
        if number % TICK_ROWS == 0:
            yield


def _check_sessions(txn: ReadTxn, findings: Findings) -> Iterator[None]:
    """What is kept for a session ends with it, and a session is found by its nonce."""
    sessions: set[int] = set()
    for key, value in findings.rows(txn, *keys.all_of(b"S"), _NONE):
        session = SessionId(keys.first_field(key))
        sessions.add(session)
        row = findings.decoded(records.SESSION, key, value, _NONE)
        if row is not None and findings.get(txn, keys.nonce(row.nonce), _NONE) != session.to_bytes(8, "big"):
            findings.add("wrong-nonce", _NONE, f"session {session} is not found by its nonce", key)
    rows = chain(findings.rows(txn, *keys.all_of(b"R"), _NONE), findings.rows(txn, *keys.all_of(b"n"), _NONE))
    for number, (key, _) in enumerate(rows, 1):
        if keys.first_field(key) not in sessions:
            text = f"a row {key[:1]!r} is of session {keys.first_field(key)}, which is gone"
            findings.add("stray-row", _NONE, text, key)
        if number % TICK_ROWS == 0:
            yield
    for number, (key, value) in enumerate(findings.rows(txn, *keys.all_of(b"N"), _NONE), 1):
        first = keys.first_field(key)
        chunks = findings.decoded(records.RANGE, key, value, _NONE)
        if chunks is not None and findings.get(txn, keys.chunk_range_of(chunks.session, first), _NONE) is None:
            findings.add("wrong-chunk-range", _NONE, f"range {first} is not found by its session {chunks.session}", key)
        if number % TICK_ROWS == 0:
            yield


# --- counters --------------------------------------------------------------------------------------------------------


def counted(txn: ReadTxn, findings: Findings) -> Generator[None, None, Counter[str]]:
    """What each counter should be; of those that are handed out next, the least that it may be. Rows whose inode is not
    there are findings."""
    seen: Counter[str] = Counter(dict.fromkeys(("inline_files", "inline_bytes", "orphans", "trashed"), 0))
    yield from _count_owned(txn, seen, findings)
    seen["next_session"] = 1
    for key, _ in findings.rows(txn, *keys.all_of(b"S"), _NONE):
        seen["sessions"] += 1
        seen["next_session"] = 1 + keys.first_field(key)
    seen["next_sequence"] = 1
    for prefix in (b"K", b"Z"):
        for number, (key, value) in enumerate(findings.rows(txn, *keys.all_of(prefix), _NONE), 1):
            if prefix == b"Z":
                row = findings.decoded(records.GARBAGE, key, value, _NONE)
                seen["garbage_chunks"] += 1
                seen["merged_garbage"] += row is not None and row.merged
            seen["next_sequence"] = max(seen["next_sequence"], 1 + chunk_sequence(ChunkId(keys.first_field(key))))
            if number % TICK_ROWS == 0:
                yield
    for name in ("sessions", "garbage_chunks", "merged_garbage"):
        seen[name] += 0
    return seen


def _count_owned(txn: ReadTxn, seen: Counter[str], findings: Findings) -> Iterator[None]:
    """All rows that are of an inode, beside the inodes: all of them are in the order of their numbers."""

    def tagged(order: int, prefix: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
        for key, value in findings.rows(txn, *keys.all_of(prefix)):
            yield keys.first_field(key), order, key, value

    present, is_symlink = -1, False
    seen["inodes"], seen["next_ino"] = 0, 1
    rows = heapq.merge(*(tagged(order, prefix) for order, prefix in enumerate((b"I", *_OWNED))))
    for number, (ino, order, key, value) in enumerate(rows, 1):
        if order == 0:
            present = ino
            inode = findings.decoded(records.INODE, key, value, InodeId(ino))
            is_symlink = inode is not None and inode.is_symlink
            seen["inodes"] += 1
            seen["next_ino"] = 1 + ino
        else:
            prefix = _OWNED[order - 1]
            if ino != present:
                text = f"a row {prefix.decode()} is of an inode that is not there"
                findings.add("stray-row", InodeId(ino), text, key)
            if prefix == b"L" and not (ino == present and is_symlink):
                seen["inline_files"] += 1
                seen["inline_bytes"] += len(value)
            seen["orphans"] += prefix == b"O"
            seen["trashed"] += prefix == b"Q"
        if number % TICK_ROWS == 0:
            yield


def _check_counters(txn: ReadTxn, counts: Counter[str], findings: Findings) -> None:
    counters = findings.load(records.COUNTERS, txn, keys.COUNTERS, _NONE)
    if counters is None:
        findings.add("wrong-counter", _NONE, "the counters are not there")
        return
    for name, value in counts.items():
        said = getattr(counters, name)
        if name.startswith("next_"):
            if said < value:
                text = f"{name} is {said}, but {value - 1} is in use"
                findings.add("wrong-counter", _NONE, text, name.encode())
        elif said != value:
            findings.add("wrong-counter", _NONE, f"{name} is {said}, there are {value}", name.encode())
