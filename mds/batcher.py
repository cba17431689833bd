"""Group commit: operations that arrive while an entry is in flight are merged into the next entry.

One entry costs one disk sync on each node and one store transaction whatever the number of operations in it, so under
load the batches grow by themselves and an idle service adds no delay: there is no timer. Each entry is stamped here
with the leader's time, the only clock that the state machine ever sees.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from shoalfs.mds.entry import encode_entry
from shoalfs.mds.messages import Command, Outcome
from shoalfs.mds.replicated import ReplicatedLog
from shoalfs.transport.errors import Overloaded, PosixError, ShoalError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import (
    COMMAND_BYTES_MAX,
    ENTRIES_IN_FLIGHT_MAX,
    ENTRY_BYTES_MAX,
    ENTRY_COMMANDS_MAX,
    PROPOSALS_QUEUED_MAX,
)

_COMMAND_OVERHEAD_BYTES = 64  # session, slot, sequence, number and array headers of one command in an entry
_E2BIG = 7


@dataclass(slots=True)
class _Waiting:
    """One command, and where its answer goes."""

    session: SessionId
    command: Command
    size_bytes: int
    done: trio.Event = field(default_factory=trio.Event)
    index: int = 0
    outcome: Outcome | None = None
    error: ShoalError | None = None


def take_batch(queue: deque[_Waiting]) -> list[_Waiting]:
    """The next entry's commands, in order of arrival: at most ENTRY_COMMANDS_MAX and ENTRY_BYTES_MAX together."""
    batch: list[_Waiting] = []
    size_bytes = _COMMAND_OVERHEAD_BYTES
    while queue and len(batch) < ENTRY_COMMANDS_MAX:
        if batch and size_bytes + queue[0].size_bytes > ENTRY_BYTES_MAX:
            break
        waiting = queue.popleft()
        size_bytes += waiting.size_bytes
        batch.append(waiting)
    return batch


class Batcher:
    """Turns commands into entries. ``run`` must be running for ``submit`` to return."""

    def __init__(self, log: ReplicatedLog, now_ns: Callable[[], int]) -> None:
        self._log = log
        self._now_ns = now_ns
        self._queue: deque[_Waiting] = deque()
        self._work = trio.lowlevel.ParkingLot()
        self.entries = 0
        self.commands = 0

    async def submit(self, session: SessionId, commands: Sequence[Command]) -> tuple[int, list[Outcome]]:
        """Have the commands committed and applied, in order.

        Returns the index of the entry that held the last one, and their outcomes. Raises what
        :meth:`ReplicatedLog.propose` raises; Overloaded when too many wait already (nothing was queued). Cancelled:
        the commands may still be applied.
        """
        if len(self._queue) + len(commands) > PROPOSALS_QUEUED_MAX:
            raise Overloaded("the metadata service has too many operations waiting")
        waiting = [_Waiting(session, c, len(bytes(c.body)) + _COMMAND_OVERHEAD_BYTES) for c in commands]
        if any(w.size_bytes > COMMAND_BYTES_MAX for w in waiting):
            raise PosixError(_E2BIG, f"an operation is larger than {COMMAND_BYTES_MAX} bytes")
        self._queue.extend(waiting)
        self._work.unpark()
        outcomes: list[Outcome] = []
        for w in waiting:
            await w.done.wait()
            if w.error is not None:
                raise w.error
            assert w.outcome is not None
            outcomes.append(w.outcome)
        assert all(a.index <= b.index for a, b in pairwise(waiting))
        return (waiting[-1].index if waiting else 0), outcomes

    async def run(self) -> None:
        """Propose entries until cancelled, ENTRIES_IN_FLIGHT_MAX at a time."""
        async with trio.open_nursery() as nursery:
            for _ in range(ENTRIES_IN_FLIGHT_MAX):
                nursery.start_soon(self._propose_forever)

    async def _propose_forever(self) -> None:
        while True:
            while not self._queue:
                await self._work.park()
            batch = take_batch(self._queue)
            if self._queue:
                self._work.unpark()  # more than one entry is waiting: let the other proposer start too
            await self._propose(batch)

    async def _propose(self, batch: list[_Waiting]) -> None:
        entry = encode_entry(self._now_ns(), [(w.session, w.command) for w in batch])
        assert len(entry) <= ENTRY_BYTES_MAX, len(entry)
        try:
            index, outcomes = await self._log.propose(entry)
        except ShoalError as error:
            for w in batch:
                w.error = error
                w.done.set()
            return
        assert len(outcomes) == len(batch), (len(outcomes), len(batch))
        self.entries += 1
        self.commands += len(batch)
        for w, outcome in zip(batch, outcomes, strict=True):
            w.index, w.outcome = index, outcome
            w.done.set()
