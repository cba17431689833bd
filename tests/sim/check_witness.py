"""The log as witness: every answer carries the index of the entry that it was given at.

So nobody has to search for an order of the calls: the committed one is replayed through an independent model, which
predicts every outcome and every read; and the order of the log must agree with the order in time, which makes the
history linearizable.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoalfs.mds import messages as m
from shoalfs.mds.entry import decode_entry
from sim.broken import Broken
from sim.calls import Call
from sim.model import Judged, Model, summary_of

_DECODERS = {op: msgspec.msgpack.Decoder(types[0]) for op, types in m.OP_TYPES.items()}
_Key = tuple[int, int, int] | bytes


class _Replay:
    """The log through the model, and what it says of the calls."""

    def __init__(self, calls: Sequence[Call], history: Mapping[int, tuple[int, int, bytes]]) -> None:
        self.model = Model()
        self.took_effect: dict[_Key, int] = {}  # index of the entry that carried it out
        self.answers: defaultdict[tuple[int, _Key], list[Judged]] = defaultdict(list)
        self._history = history
        self._reads: defaultdict[int, list[Call]] = defaultdict(list)
        for call in calls:
            if call.op is None and call.answer is not None:
                self._reads[call.index].append(call)

    def run(self) -> None:
        self._check_reads(0)
        for index in range(1, len(self._history) + 1):
            data = self._history[index][2]
            if data:
                for session, command in decode_entry(data).commands:
                    self._apply(index, session, command)
            self._check_reads(index)

    def _apply(self, index: int, session: int, command: m.Command) -> None:
        request = _DECODERS[m.Op(command.op)].decode(command.body)
        key = request.nonce if session == 0 else (session, command.slot, command.seq)
        judged, is_new = self.model.apply(session, command.slot, command.seq, command.op, request)
        self.answers[index, key].append(judged)  # an entry may hold two copies of one command
        if is_new:
            self.took_effect.setdefault(key, index)

    def _check_reads(self, index: int) -> None:
        for call in self._reads.pop(index, ()):
            _compare(call, [self.model.read(call.request)])


def check_witness(calls: Sequence[Call], history: Mapping[int, tuple[int, int, bytes]]) -> None:
    """Raises Broken."""
    replay = _Replay(calls, history)
    replay.run()
    points: list[tuple[Call, int]] = []  # calls that were answered, and the entry at which they happened
    for call in calls:
        if call.answer is None:
            continue
        if call.op is None:
            if call.index not in history and call.index:
                raise Broken(f"a read saw entry {call.index}, which does not exist: {call}")
            points.append((call, call.index))
            continue
        key: _Key = call.request.nonce if call.op is m.Op.OPEN_SESSION else call.key
        if (call.index, key) not in replay.answers:
            raise Broken(f"acknowledged and not in the log at {call.index}: {call}")
        _compare(call, replay.answers[call.index, key])
        # One that found its session gone changed nothing: it happened where it was refused.
        points.append((call, replay.took_effect.get(key, call.index)))
    check_real_time(points)


def _compare(call: Call, judged: Sequence[Judged]) -> None:
    assert call.answer is not None
    code, reply = call.answer
    seen: tuple[int, Any] = (code, summary_of(reply) if code == 0 else ())
    if seen not in judged:
        raise Broken(f"{call} was answered {seen}; by the log it is {judged}")


def check_real_time(points: Sequence[tuple[Call, int]]) -> None:
    """What was answered before another call began lies before it in the log, strictly so if that one is a mutation."""
    ends = sorted((call.answered_at or 0.0, index) for call, index in points)
    newest, done = 0, 0
    for call, index in sorted(points, key=lambda point: point[0].called_at):
        while done < len(ends) and ends[done][0] < call.called_at:
            newest = max(newest, ends[done][1])
            done += 1
        if index < newest + (call.op is not None and newest > 0):
            raise Broken(f"{call} happened at {index}, after an answer of entry {newest} was given")
