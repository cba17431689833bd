"""The part of the namespace check that looks at all rows at once: chunks, sessions, counters, rows of
nothing. Pure.

Holds one number per chunk in memory, and one per inode.
"""

from collections import Counter
from itertools import chain

from shoalfs.mds import keys, records
from shoalfs.mds.check_findings import Findings
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, InodeId, SessionId, chunk_sequence

_NONE = InodeId(0)  # what belongs to no inode


def check(txn: ReadTxn, findings: Findings) -> None:
    _check_chunks(txn, findings)
    _check_garbage(txn, findings)
    _check_sessions(txn, findings)
    _check_trash(txn, findings)
    files = _check_owners(txn, findings)
    _check_counters(txn, files, findings)


def _check_chunks(txn: ReadTxn, findings: Findings) -> None:
    """Each chunk is counted as often as extents use it, with its length, and none of them is garbage."""
    extents: Counter[ChunkId] = Counter()
    chunks: dict[ChunkId, tuple[int, bytes, bytes]] = {}
    for key, value in findings.rows(txn, *keys.all_of(b"X")):
        extent = findings.decoded(records.EXTENT, key, value, InodeId(keys.first_field(key)))
        if extent is not None:
            extents[extent.chunk] += 1
            chunks.setdefault(extent.chunk, (extent.chunk_bytes, extent.chunk_hash, extent.fragments))
    for key, value in findings.rows(txn, *keys.all_of(b"K"), _NONE):
        use = findings.decoded(records.CHUNK_USE, key, value, _NONE)
        chunk = ChunkId(keys.first_field(key))
        used = extents.pop(chunk, 0)
        if use is not None and use.extents != used:
            findings.add(
                "wrong-chunk-count", _NONE, f"chunk {chunk} counts {use.extents} extents, there are {used}", key
            )
        if use is not None and used and use.chunk_bytes != chunks[chunk][0]:
            findings.add("wrong-chunk-length", _NONE, f"chunk {chunk} is noted with {use.chunk_bytes} bytes", key)
        if use is not None and used and use.chunk_hash and (use.chunk_hash, use.fragments) != chunks[chunk][1:]:
            text = f"chunk {chunk} is noted with another hash than its extents have"
            findings.add("wrong-chunk-hash", _NONE, text, key)
        if findings.get(txn, keys.garbage(chunk), _NONE) is not None:
            findings.add(
                "used-chunk-is-garbage", _NONE, f"chunk {chunk} is used and would be deleted", keys.garbage(chunk)
            )
    for chunk, used in extents.items():
        text = f"chunk {chunk} is used by {used} extents and not counted"
        findings.add("chunk-not-counted", _NONE, text, keys.chunk_use(chunk))
        if findings.get(txn, keys.garbage(chunk), _NONE) is not None:
            findings.add(
                "used-chunk-is-garbage", _NONE, f"chunk {chunk} is used and would be deleted", keys.garbage(chunk)
            )


def _check_garbage(txn: ReadTxn, findings: Findings) -> None:
    """The two orders of the garbage agree."""
    for key, value in findings.rows(txn, *keys.all_of(b"Z"), _NONE):
        row = findings.decoded(records.GARBAGE, key, value, _NONE)
        chunk = ChunkId(keys.first_field(key))
        if row is not None and findings.get(txn, keys.garbage_by_time(row.since_ns, chunk), _NONE) is None:
            findings.add("wrong-garbage", _NONE, f"chunk {chunk} is garbage and would never be deleted", key)
    for key, _ in findings.rows(txn, *keys.all_of(b"z"), _NONE):
        chunk = ChunkId(keys.second_field(key))
        row = findings.load(records.GARBAGE, txn, keys.garbage(chunk), _NONE)
        if row is None or row.since_ns != keys.first_field(key):
            findings.add("wrong-garbage", _NONE, f"chunk {chunk} waits for its deletion and is no garbage", key)


def _check_trash(txn: ReadTxn, findings: Findings) -> None:
    """The two orders of the trash agree."""
    for key, value in findings.rows(txn, *keys.all_of(b"Q")):
        ino = InodeId(keys.first_field(key))
        row = findings.decoded(records.TRASH, key, value, ino)
        if row is not None and findings.get(txn, keys.trash_by_time(row.deleted_ns, ino), ino) is None:
            findings.add("wrong-trash", ino, "it is in the trash and would stay there for ever", key)
    for key, _ in findings.rows(txn, *keys.all_of(b"q"), _NONE):
        ino = InodeId(keys.second_field(key))
        row = findings.load(records.TRASH, txn, keys.trash(ino), ino)
        if row is None or row.deleted_ns != keys.first_field(key):
            findings.add("wrong-trash", ino, "it would be taken out of the trash, and is not in it", key)


def _check_sessions(txn: ReadTxn, findings: Findings) -> None:
    """What is kept for a session ends with it, and a session is found by its nonce."""
    sessions: set[int] = set()
    for key, value in findings.rows(txn, *keys.all_of(b"S"), _NONE):
        session = SessionId(keys.first_field(key))
        sessions.add(session)
        row = findings.decoded(records.SESSION, key, value, _NONE)
        if row is not None and findings.get(txn, keys.nonce(row.nonce), _NONE) != session.to_bytes(8, "big"):
            findings.add("wrong-nonce", _NONE, f"session {session} is not found by its nonce", key)
    for key, _ in chain(findings.rows(txn, *keys.all_of(b"R"), _NONE), findings.rows(txn, *keys.all_of(b"n"), _NONE)):
        if keys.first_field(key) not in sessions:
            text = f"a row {key[:1]!r} is of session {keys.first_field(key)}, which is gone"
            findings.add("stray-row", _NONE, text, key)
    for key, value in findings.rows(txn, *keys.all_of(b"N"), _NONE):
        first = keys.first_field(key)
        chunks = findings.decoded(records.RANGE, key, value, _NONE)
        if chunks is None:
            continue
        if findings.get(txn, keys.chunk_range_of(chunks.session, first), _NONE) is None:
            findings.add("wrong-chunk-range", _NONE, f"range {first} is not found by its session {chunks.session}", key)


def _check_owners(txn: ReadTxn, findings: Findings) -> Counter[str]:
    """Rows whose inode is not there. Returns counts of what was seen, by the names of the counters."""
    seen: Counter[str] = Counter()
    inos: set[int] = set()
    symlinks: set[int] = set()
    for key, value in findings.rows(txn, *keys.all_of(b"I")):
        ino = keys.first_field(key)
        inos.add(ino)
        inode = findings.decoded(records.INODE, key, value, InodeId(ino))
        if inode is not None and inode.is_symlink:
            symlinks.add(ino)
    seen["inodes"] = len(inos)
    for prefix in (b"D", b"E", b"L", b"X", b"C", b"A", b"O", b"Q"):
        for key, value in findings.rows(txn, *keys.all_of(prefix)):
            ino = keys.first_field(key)
            if ino not in inos:
                text = f"a row {prefix.decode()} is of an inode that is not there"
                findings.add("stray-row", InodeId(ino), text, key)
            if prefix == b"L" and ino not in symlinks:
                seen["inline_files"] += 1
                seen["inline_bytes"] += len(value)
            seen["orphans"] += prefix == b"O"
            seen["trashed"] += prefix == b"Q"
    return seen


def _check_counters(txn: ReadTxn, seen: Counter[str], findings: Findings) -> None:
    counters = findings.load(records.COUNTERS, txn, keys.COUNTERS, _NONE)
    if counters is None:
        findings.add("wrong-counter", _NONE, "the counters are not there")
        return
    _count_others(txn, seen, findings)
    for name, value in seen.items():
        said = getattr(counters, name)
        if name.startswith("next_"):
            if said < value:
                text = f"{name} is {said}, but {value - 1} is in use"
                findings.add("wrong-counter", _NONE, text, name.encode())
        elif said != value:
            findings.add("wrong-counter", _NONE, f"{name} is {said}, there are {value}", name.encode())


def _count_others(txn: ReadTxn, seen: Counter[str], findings: Findings) -> None:
    """Counts of what is counted here only, and the lowest value of what is handed out next."""
    seen["garbage_chunks"] = sum(1 for _ in findings.rows(txn, *keys.all_of(b"Z"), _NONE))
    seen["sessions"] = sum(1 for _ in findings.rows(txn, *keys.all_of(b"S"), _NONE))
    for name in ("inodes", "inline_files", "inline_bytes", "orphans", "trashed"):
        seen[name] += 0
    for name, prefix in {"next_ino": b"I", "next_session": b"S"}.items():
        rows = findings.rows(txn, *keys.all_of(prefix), _NONE)
        seen[name] = 1 + max((keys.first_field(key) for key, _ in rows), default=0)
    chunks = chain.from_iterable(findings.rows(txn, *keys.all_of(prefix), _NONE) for prefix in (b"K", b"Z"))
    seen["next_sequence"] = 1 + max((chunk_sequence(ChunkId(keys.first_field(key))) for key, _ in chunks), default=0)


def counted(txn: ReadTxn, findings: Findings) -> Counter[str]:
    """What each counter should be; of those that are handed out next, the least that it may be."""
    seen = _check_owners(txn, findings)
    _count_others(txn, seen, findings)
    return seen
