"""What programs on several mounts did to names in one directory and saw, and whether one directory could have done it
(linearizability, Wing and Gong 1993): made exclusively or not at all, removed once, seen by everybody from then on.

The exceptions are those of file_histories.py: a file that its mount had not told of when its session ended is lost, and
one that could not be called back comes late. To its own mount it was there meanwhile.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shoalfs.transport.ids import InodeId
from sim.broken import Broken

STEPS_MAX = 500_000

Kind = Literal["make", "exists", "remove", "absent", "see"]
"""make: O_EXCL made ``ino``; exists: it said EEXIST; remove: unlink did; absent: it said ENOENT; see: a lookup found
``ino`` (None: nothing)."""


@dataclass(eq=False)
class NameCall:
    """``ended`` infinity: it failed, or nobody knows. Then a "make", of an inode that may be unknown, or a "remove" may
    have happened."""

    mount: int
    session: int
    name: str
    kind: Kind
    began: float
    ended: float = math.inf
    ino: InodeId | None = None
    told: float = math.inf  # of a make: when the metadata service first had the file
    excused: str = ""


def check_names(calls: Sequence[NameCall]) -> int:
    """Returns how many calls were taken into account. Raises Broken."""
    of: defaultdict[str, list[NameCall]] = defaultdict(list)
    for call in calls:
        of[call.name].append(call)
    for name, history in of.items():
        _name_unknown(history)
        told = _with_exceptions(history)
        if not _fits(told):
            raise Broken(f"no directory could have done this to {name}:\n" + "\n".join(map(_line, told)))
    return len(calls)


def _name_unknown(history: Sequence[NameCall]) -> None:
    """Inodes that were seen and that nobody says to have made are those of makes whose answer never came. The others of
    these may have made a file, too, that somebody removed before it was seen."""
    made = {call.ino for call in history if call.kind == "make"}
    lost = sorted((c for c in history if c.kind == "make" and c.ino is None), key=lambda call: call.began)
    for call in sorted(history, key=lambda call: call.began):
        if call.kind == "see" and call.ino is not None and call.ino not in made:
            if not lost or lost[0].began > call.ended:
                raise Broken(f"nobody made inode {call.ino}: {_line(call)}")
            lost.pop(0).ino = call.ino
            made.add(call.ino)
    for number, call in enumerate(lost, 1):
        call.ino = InodeId(-number)


def _with_exceptions(history: Sequence[NameCall]) -> list[NameCall]:
    """The calls as they count. A make that is excused counts as one whose answer came when the service was told; and
    what its own mount was told before is no matter of the others."""
    excused = [call for call in history if call.kind == "make" and call.excused]
    counted = []
    for call in history:
        beside = any(_is_beside(call, make) for make in excused)
        if call in excused:
            counted.append(_changed(call, call.told))
        elif beside and call.kind == "remove":
            counted.append(_changed(call, math.inf))  # of the file that was lost, perhaps
        elif (
            not beside
            or call.kind in ("make", "absent")
            or (call.kind == "see" and call.ino not in {make.ino for make in excused})
        ):
            counted.append(call)
    return counted


def _changed(call: NameCall, ended: float) -> NameCall:
    return NameCall(**{**vars(call), "ended": ended})


def _is_beside(call: NameCall, make: NameCall) -> bool:
    """The call's own mount had made a file of which the others knew nothing."""
    return call.session == make.session and make.began < call.ended and make.told > call.began


def _fits(history: Sequence[NameCall]) -> bool:
    seen = {call.ino for call in history if call.kind == "see"}
    calls = [c for c in history if c.ended < math.inf or c.kind == "remove" or _may_have_made(c, seen)]
    calls.sort(key=lambda call: call.began)
    must = sum(1 << n for n, call in enumerate(calls) if call.ended < math.inf)
    tried: set[tuple[int, InodeId | None]] = set()
    stack: list[tuple[int, InodeId | None]] = [(0, None)]
    while stack:
        state = stack.pop()
        if state in tried:
            continue
        tried.add(state)
        assert len(tried) < STEPS_MAX, f"{len(calls)} calls: too many orders"
        done, ino = state
        if done & must == must:
            return True
        left = [n for n in range(len(calls)) if not done >> n & 1]
        first_end = min(calls[n].ended for n in left)
        for n in left:
            call = calls[n]
            if call.began > first_end:
                break
            for after in _after(call, ino):
                stack.append((done | 1 << n, after))
    return False


def _may_have_made(call: NameCall, seen: Collection[InodeId | None]) -> bool:
    return call.kind == "make" and call.ino is not None and (call.ino in seen or call.ino < 0)


def _after(call: NameCall, ino: InodeId | None) -> Sequence[InodeId | None]:
    """What the name may lead to after the call, if it led to ``ino`` before; nothing: it cannot have been then."""
    if call.kind == "make":
        return [call.ino] if ino is None else []
    if call.kind == "remove":
        return [None] if ino is not None else []
    if call.kind == "exists":
        return [ino] if ino is not None else []
    if call.kind == "absent":
        return [None] if ino is None else []
    return [ino] if call.ino == ino else []


def _line(call: NameCall) -> str:
    times = f"{call.began:9.4f} {call.ended:9.4f}"
    return f"{times} mount {call.mount} {call.kind} {call.ino} told {call.told:.4f} {call.excused}"
