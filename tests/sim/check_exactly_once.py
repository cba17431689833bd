"""Exactly once, by the ids that everybody appends to one file: what was acknowledged is there once, what was not at
most once, and in the order in which it was acknowledged."""

from collections import Counter
from collections.abc import Mapping, Sequence

from shoalfs.mds import inline
from shoalfs.mds import messages as m
from shoalfs.mds.memory import MemoryStore
from shoalfs.transport.errors import SessionGone
from shoalfs.transport.ids import InodeId
from sim.broken import Broken
from sim.calls import Call
from sim.workload import ID_BYTES


def check_exactly_once(
    calls: Sequence[Call], history: Mapping[int, tuple[int, int, bytes]], store: MemoryStore
) -> None:
    appends = [call for call in calls if call.op is m.Op.COMMIT_INLINE]
    for ino in {call.request.ino for call in appends}:
        with store.read() as txn:
            content = inline.load(txn, InodeId(ino))
        check_ids(content, [call for call in appends if call.request.ino == ino])
    for call in calls:
        if call.answer is not None and call.index > len(history):
            raise Broken(f"answered at entry {call.index}, which does not exist: {call}")


def check_ids(content: bytes, appends: Sequence[Call]) -> None:
    """``content``: all that was appended, ids of ID_BYTES."""
    there = [content[at : at + ID_BYTES] for at in range(0, len(content), ID_BYTES)]
    counts = Counter(there)
    twice = [each for each, count in counts.items() if count > 1]
    if twice:
        raise Broken(f"done twice: {twice[:5]}")
    sent = {call.request.patches[0].data for call in appends}
    if set(there) - sent:
        raise Broken(f"nobody asked for {sorted(set(there) - sent)[:5]}")
    for call in appends:
        if call.answer is None or call.answer[0]:
            continue
        data, offset = call.request.patches[0].data, call.answer[1].offset_bytes
        if content[offset : offset + ID_BYTES] != data:
            raise Broken(f"acknowledged at {offset} and not there: {data!r}")
    # A repetition that finds its session ended does not say what became of the first attempt.
    codes = {call.request.patches[0].data: call.answer[0] for call in appends if call.answer is not None}
    refused = {data for data, code in codes.items() if code not in (0, SessionGone.code)}
    if refused & set(there):
        raise Broken(f"refused and yet done: {sorted(refused & set(there))[:5]}")
