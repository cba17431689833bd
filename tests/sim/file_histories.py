"""What programs on several mounts did to files and saw, and whether that is what docs/leases.md promises. Pure.

**Registers**: eight bytes at some place of a file are one register for all mounts (linearizability, Herlihy and Wing
1990): a write is seen by every read that begins after it has returned. Three exceptions, which the page names:

* a program beside the writer, on its mount, may read what a write(2) is about to write before it has returned;
* what a mount kept is **lost** with its session. A write that was not committed when the session ended may be taken for
  one whose answer never came, and what its own mount read of it is no matter of the others;
* what a mount kept is committed **late** if it could not be called back: the mount did not report to a new leader for a
  quarter of a TTL, or said that it could not commit. Then the same holds until it is committed.

The world notes for which writes an exception may be made (:attr:`FileCall.excused`); that it makes few is for the tests
to say.

**A log**, to which all append: see :func:`check_log`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.broken import Broken
from sim.check_registers import RegisterCall, is_linearizable

_SHOWN = 20

Register = tuple[str, int]
"""A file, and where in it."""


@dataclass(eq=False)
class FileCall:
    """One read or write. ``ended`` infinity: it failed, or nobody knows."""

    mount: int
    session: int
    register: Register
    began: float
    is_write: bool
    value: bytes
    ended: float = math.inf
    committed: float = math.inf  # when the metadata service first had the value
    excused: str = ""


@dataclass(eq=False)
class LogCall:
    """An append of one record, or a read of the whole log."""

    mount: int
    began: float
    is_append: bool
    value: bytes
    ended: float = math.inf


@dataclass
class Histories:
    calls: list[FileCall] = field(default_factory=list)
    log: list[LogCall] = field(default_factory=list)


def check_registers(calls: Sequence[FileCall], initial: bytes) -> int:
    """Returns how many calls were taken into account. Raises Broken."""
    of: defaultdict[Register, list[FileCall]] = defaultdict(list)
    for call in calls:
        of[call.register].append(call)
    counted = 0
    for register, history in of.items():
        told = registers_of(history)
        counted += len(told)
        if not is_linearizable(told, initial):
            raise Broken(f"{register} is no register:\n{_where(history, initial)}")
    return counted


def _where(history: Sequence[FileCall], initial: bytes) -> str:
    """The calls before the first that does not fit."""
    ordered = sorted(history, key=lambda call: call.ended)
    fits, fails = 0, len(ordered)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        told = registers_of([call for call in history if call.is_write or call in ordered[:middle]])
        fits, fails = (middle, fails) if is_linearizable(told, initial) else (fits, middle)
    until = ordered[fails - 1].ended
    shown = [call for call in sorted(history, key=lambda call: call.began) if call.began <= until]
    return "\n".join(map(_line, shown[-_SHOWN:]))


def registers_of(history: Sequence[FileCall]) -> list[RegisterCall]:
    """The calls of one register, with the exceptions applied."""
    writes = {call.value: call for call in history if call.is_write}
    told = []
    for call in history:
        if call.is_write:
            told.append(RegisterCall(call.began, call.committed if call.excused else call.ended, True, call.value))
            continue
        if call.ended == math.inf:
            continue
        write = writes.get(call.value)
        if write is not None and write.mount == call.mount:
            if write.ended > call.began and write.began < call.ended:
                continue
            if write.excused and write.committed > call.began:
                continue
        told.append(RegisterCall(call.began, call.ended, False, call.value))
    return told


def check_log(calls: Sequence[LogCall], record_bytes: int) -> int:
    """Each read sees whole records, each once; all whose append had returned before it began, none whose append began
    after it ended; and of two reads, one of which ended before the other began, the later one sees what the earlier one
    saw, and then more. So records are never lost, doubled, torn or moved. Returns the number of records that the
    longest read saw. Raises Broken."""
    appends = {call.value: call for call in calls if call.is_append}
    reads = sorted((call for call in calls if not call.is_append and call.ended < math.inf), key=lambda c: c.ended)
    for read in reads:
        records = [read.value[at : at + record_bytes] for at in range(0, len(read.value), record_bytes)]
        if len(set(records)) != len(records):
            raise Broken(f"a record is there twice: {records}")
        unknown = [record for record in records if record not in appends or appends[record].began > read.ended]
        if unknown:
            raise Broken(f"nobody had appended {unknown}, read at {read.ended:.4f}")
        seen = set(records)
        missing = [call.value for call in appends.values() if call.ended < read.began and call.value not in seen]
        if missing:
            raise Broken(f"mount {read.mount}, read from {read.began:.4f}: {missing} had been appended: {records}")
    for number, read in enumerate(reads):
        before = max((r for r in reads[:number] if r.ended < read.began), key=lambda r: len(r.value), default=None)
        if before is not None and not read.value.startswith(before.value):
            raise Broken(f"the log at {read.began:.4f} does not continue what was read at {before.ended:.4f}")
    return max((len(read.value) // record_bytes for read in reads), default=0)


def _line(call: FileCall) -> str:
    what = f"{'writes' if call.is_write else 'reads'} {call.value!r}"
    note = f" committed {call.committed:.4f}" if call.is_write else ""
    return f"{call.began:9.4f} {call.ended:9.4f} mount {call.mount} {what}{note} {call.excused}"
