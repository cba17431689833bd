"""Repairs of rows that belong to no single inode: chunks, garbage, sessions, counters. Pure."""

from shoalfs.mds import keys, records
from shoalfs.mds.mend_view import Change, View, gone, unrepaired
from shoalfs.mds.messages import Finding
from shoalfs.transport.ids import ChunkId, SessionId


def chunk_use(view: View, finding: Finding) -> Change:
    """Count the extents again. A chunk that none uses is not counted; that it is deleted in time is the inventories'
    business."""
    chunk = ChunkId(keys.first_field(finding.key))
    extents = view.extents(chunk)
    if not extents:
        change = Change(f"forget that chunk {chunk:016x} is in use")
        view.drop(change, keys.chunk_use(chunk))
        return change
    kinds = {(e.chunk_bytes, e.chunk_hash, e.fragments) for e in extents}
    if len(kinds) > 1:
        return unrepaired("its extents have several lengths or hashes: restore the files from copies")
    change = Change(f"note that {len(extents)} extents use chunk {chunk:016x}, with their length and hash")
    view.put(change, keys.chunk_use(chunk), records.CHUNK_USE.encode(records.ChunkUse(len(extents), *kinds.pop())))
    return change


def used_garbage(view: View, finding: Finding) -> Change:
    """A chunk that is in use must not be deleted. The row that has its place in time goes too."""
    chunk = ChunkId(keys.first_field(finding.key))
    row = records.GARBAGE.load(view.txn, keys.garbage(chunk))
    if row is None or not view.extents(chunk):
        return gone()
    change = Change(f"take chunk {chunk:016x} off the garbage: it is in use")
    view.drop(change, keys.garbage(chunk))
    view.drop(change, keys.garbage_by_time(row.since_ns, chunk))
    return change


def garbage(view: View, finding: Finding) -> Change:
    """``Z`` without ``z``: give it its place in time. ``z`` without ``Z``, or another time's: remove it."""
    if finding.key[:1] == b"Z":
        chunk = ChunkId(keys.first_field(finding.key))
        row = records.GARBAGE.load(view.txn, finding.key)
        if row is None:
            return gone()
        text = f"have chunk {chunk:016x} deleted in its turn"
        return _beside(view, finding.key, text, keys.garbage_by_time(row.since_ns, chunk))
    change = Change(f"strike chunk {keys.second_field(finding.key):016x} from the list of what is to be deleted")
    view.drop(change, finding.key)
    return change if change.is_repair else gone()


def nonce(view: View, finding: Finding) -> Change:
    session = SessionId(keys.first_field(finding.key))
    row = records.SESSION.load(view.txn, finding.key)
    if row is None:
        return gone()
    text = f"let session {session} be found by its nonce"
    return _beside(view, finding.key, text, keys.nonce(row.nonce), session.to_bytes(8, "big"))


def chunk_range(view: View, finding: Finding) -> Change:
    row = records.RANGE.load(view.txn, finding.key)
    if row is None:
        return gone()
    first = keys.first_field(finding.key)
    if view.txn.get(keys.session(row.session)) is None:
        change = Change(f"forget range {first}: its session {row.session} has ended")
        view.drop(change, finding.key)
        return change
    text = f"let range {first} end with its session {row.session}"
    return _beside(view, finding.key, text, keys.chunk_range_of(row.session, first))


def _beside(view: View, seen: bytes, text: str, key: bytes, value: bytes = b"") -> Change:
    """Put the row that has to stand beside one that was seen."""
    change = Change(text)
    view.see(change, seen)
    view.put(change, key, value)
    return change


def counter(view: View, finding: Finding) -> Change:
    """``key`` is the counter's name. What is added is the difference, so that it holds while others count too."""
    if not finding.key:
        return unrepaired("the counters are gone, without them nothing can be changed: load a dump")
    name = finding.key.decode("ascii", "replace")
    should = view.counted().get(name)
    counters = records.COUNTERS.require(view.txn, keys.COUNTERS)
    if should is None:
        return unrepaired("this counter is not known")
    is_highest = name.startswith("next_")
    delta = should - getattr(counters, name)
    if delta == 0 or (is_highest and delta < 0):
        return gone()
    return Change(f"correct {name} by {delta:+d}", counters={name: delta})
