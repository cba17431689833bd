"""What clients of the simulated service asked, and what they were told: the history that checkers judge."""

from dataclasses import dataclass
from typing import Any

import msgspec

from shoalfs.mds import messages as m
from shoalfs.transport.ids import SessionId

Answer = tuple[int, Any]
"""(code, reply struct or None); code 0 is success, see transport.errors."""


@dataclass
class Call:
    """One operation of a client, with all its repetitions. Times are of the world, not of any clock in it."""

    client: int
    op: m.Op | None  # None: a read
    request: Any
    session: SessionId
    slot: int
    seq: int
    called_at: float
    answered_at: float | None = None
    answer: Answer | None = None  # None: the client gave up, it may have happened or may yet
    index: int = 0  # of the entry whose application gave the answer; of a read: the last entry that it saw
    was_given_up: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """The same in all repetitions of a mutation."""
        return self.session, self.slot, self.seq

    def command(self) -> m.Command:
        assert self.op is not None
        return m.Command(self.slot, self.seq, self.op, msgspec.Raw(msgspec.msgpack.encode(self.request)))


def answer_of(op: m.Op, outcome: m.Outcome) -> Answer:
    if outcome.code:
        return outcome.code, None
    return 0, msgspec.msgpack.decode(outcome.body, type=m.OP_TYPES[op][1])
