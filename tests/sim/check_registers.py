"""Linearizability of registers, by search (Wing and Gong 1993, with Lowe's memory of states that were tried).

It knows nothing of logs and indices: only when calls began and ended, and what they wrote or saw. A call without an
answer may have happened at any later moment, or never.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoalfs.mds import messages as m
from shoalfs.transport.errors import SessionGone
from sim.broken import Broken
from sim.calls import Call

STEPS_MAX = 500_000
_NO_ATTRIBUTE = 61  # ENODATA


@dataclass(frozen=True)
class RegisterCall:
    called_at: float
    answered_at: float  # infinity: nobody knows whether it happened
    is_write: bool
    value: Any


class Undecided(Exception):
    """The search was given up."""


def is_linearizable(calls: Sequence[RegisterCall], initial: Any) -> bool:
    """Whether there is an order of the calls that a register could have had. Raises Undecided."""
    seen = {call.value for call in calls if not call.is_write}
    # A write of unknown fate that nobody saw may as well not have happened; a read without an answer says nothing.
    calls = [c for c in calls if c.answered_at < math.inf or (c.is_write and c.value in seen)]
    calls.sort(key=lambda call: call.called_at)
    must = sum(1 << n for n, call in enumerate(calls) if call.answered_at < math.inf)
    tried: set[tuple[int, Any]] = set()
    stack = [(0, initial)]
    while stack:
        state = stack.pop()
        if state in tried:
            continue
        tried.add(state)
        if len(tried) > STEPS_MAX:
            raise Undecided(f"{len(calls)} calls, {len(tried)} states")
        done, value = state
        if done & must == must:
            return True
        # Next comes a call that began before any other that is left was answered.
        left = [n for n in range(len(calls)) if not done >> n & 1]
        first_end = min(calls[n].answered_at for n in left)
        for n in left:
            call = calls[n]
            if call.called_at > first_end:
                break
            if call.is_write:
                stack.append((done | 1 << n, call.value))
            elif call.value == value:
                stack.append((done | 1 << n, value))
    return False


def check_registers(calls: Sequence[Call]) -> int:
    """Attributes and modes, each for itself. Returns how many registers there are. Raises Broken."""
    registers = _attributes(calls) | _modes(calls)
    for (kind, ino), (initial, history) in registers.items():
        if not is_linearizable(history, initial):
            raise Broken(f"the {kind} of inode {ino} is no register: {sorted(history, key=lambda c: c.called_at)}")
    return len(registers)


def _result(call: Call) -> tuple[int | None, Any, float]:
    """(code, reply, when), as far as the client knows. A session that is gone does not say whether the first attempt
    was in time."""
    if call.answer is None or call.answered_at is None or call.answer[0] == SessionGone.code:
        return None, None, math.inf
    return *call.answer, call.answered_at


_Registers = dict[tuple[str, int], tuple[Any, list[RegisterCall]]]


def _attributes(calls: Sequence[Call]) -> _Registers:
    found: defaultdict[int, list[RegisterCall]] = defaultdict(list)
    for call in calls:
        code, reply, end = _result(call)
        if isinstance(call.request, m.SetXattr) and code in (None, 0):
            found[call.request.ino].append(RegisterCall(call.called_at, end, True, call.request.value))
        elif isinstance(call.request, m.GetXattr) and code in (0, _NO_ATTRIBUTE):
            value = reply.value if reply else None
            found[call.request.ino].append(RegisterCall(call.called_at, end, False, value))
    return {("attribute", ino): (None, history) for ino, history in found.items()}


def _modes(calls: Sequence[Call]) -> _Registers:
    found: defaultdict[int, list[RegisterCall]] = defaultdict(list)
    is_dir: dict[int, bool] = {}
    for call in calls:
        code, reply, end = _result(call)
        request = call.request
        if isinstance(request, m.SetAttr) and request.mode is not None and code in (None, 0):
            found[request.ino].append(RegisterCall(call.called_at, end, True, request.mode))
        elif isinstance(request, m.GetAttr | m.Lookup | m.SetXattr) and code == 0:
            inode = reply.inode
            is_dir[inode.ino] = inode.is_dir
            found[inode.ino].append(RegisterCall(call.called_at, end, False, inode.mode & 0o7777))
    return {("mode", ino): (0o755 if is_dir.get(ino) else 0o644, history) for ino, history in found.items()}
