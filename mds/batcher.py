"""Group commit: operations that arrive while an entry is in flight are merged into the next entry.

One entry costs one disk sync on each node and one store transaction whatever the number of operations in it, so under
load the batches grow by themselves and an idle service adds no delay: there is no timer. Each entry is stamped here
with the leader's time, the only clock that the state machine ever sees.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import trio

from shoalfs.mds.entry import encode_entry
from shoalfs.mds.messages import Command, Outcome
from shoalfs.mds.replicated import ReplicatedLog
from shoalfs.transport.errors import NotLeader, Overloaded, PosixError, ShoalError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import (
    COMMAND_BYTES_MAX,
    COMMAND_OVERHEAD_BYTES,
    ENTRIES_IN_FLIGHT_MAX,
    ENTRY_BYTES_MAX,
    ENTRY_COMMANDS_MAX,
    PROPOSALS_QUEUED_MAX,
)

_E2BIG = 7


Done = Callable[[int, list[Outcome]], None]
Failed = Callable[[ShoalError], None]


@dataclass(slots=True)
class _Submission:
    """Commands that came together and are answered together, though they may end up in more than one entry."""

    done: Done
    failed: Failed
    is_valid: Callable[[], bool]
    outcomes: list[Outcome | None]
    missing: int  # commands of which it is not known yet what became of them
    index: int = 0
    error: ShoalError | None = None

    def fail(self, error: ShoalError) -> None:
        self.error = self.error or error
        self._one_less()

    def answer(self, position: int, index: int, outcome: Outcome) -> None:
        self.outcomes[position] = outcome
        self.index = max(self.index, index)
        self._one_less()

    def _one_less(self) -> None:
        self.missing -= 1
        if self.missing:
            return
        if self.error is not None:
            self.failed(self.error)
        else:
            self.done(self.index, cast("list[Outcome]", self.outcomes))


def _always() -> bool:
    return True


@dataclass(eq=False, slots=True)
class _Waiting:
    """One command, and where its answer goes."""

    session: SessionId
    command: Command
    size_bytes: int
    submission: _Submission
    position: int


def take_batch(queue: deque[_Waiting]) -> list[_Waiting]:
    """The next entry's commands, in order of arrival: at most ENTRY_COMMANDS_MAX and ENTRY_BYTES_MAX together."""
    batch: list[_Waiting] = []
    size_bytes = COMMAND_OVERHEAD_BYTES
    while queue and len(batch) < ENTRY_COMMANDS_MAX:
        if batch and size_bytes + queue[0].size_bytes > ENTRY_BYTES_MAX:
            break
        waiting = queue.popleft()
        size_bytes += waiting.size_bytes
        batch.append(waiting)
    return batch


class Batcher:
    """Turns commands into entries. ``run`` must be running for anything to be answered."""

    def __init__(self, log: ReplicatedLog, now_ns: Callable[[], int]) -> None:
        self._log = log
        self._now_ns = now_ns
        self._queue: deque[_Waiting] = deque()
        self._work = trio.lowlevel.ParkingLot()
        self.entries = 0
        self.commands = 0

    async def submit(self, session: SessionId, commands: Sequence[Command]) -> tuple[int, list[Outcome]]:
        """Have the commands committed and applied, in order.

        Returns the index of the entry that held the last one, and their outcomes. Raises as :meth:`begin`, and what
        :meth:`ReplicatedLog.propose` raises. Cancelled: the commands may still be applied.
        """
        if not commands:
            await trio.lowlevel.checkpoint()
            return 0, []
        answered = trio.Event()
        index, outcomes, failure = 0, list[Outcome](), None

        def done(last_index: int, all_outcomes: list[Outcome]) -> None:
            nonlocal index, outcomes
            index, outcomes = last_index, all_outcomes
            answered.set()

        def failed(error: ShoalError) -> None:
            nonlocal failure
            failure = error
            answered.set()

        self.begin(session, commands, done, failed)
        await answered.wait()
        if failure is not None:
            raise failure
        return index, outcomes

    def begin(
        self,
        session: SessionId,
        commands: Sequence[Command],
        done: Done,
        failed: Failed,
        is_valid: Callable[[], bool] = _always,
    ) -> None:
        """As :meth:`submit`, at least one command, without waiting: one of the two is called later, once, when it is
        known of all commands what became of them, in the step in which the last was applied. ``is_valid`` is asked
        just before they are proposed; if it says False they are not, and fail with NotLeader.

        Raises Overloaded when too many wait already, PosixError(E2BIG); nothing was queued then.
        """
        assert commands
        if len(self._queue) + len(commands) > PROPOSALS_QUEUED_MAX:
            raise Overloaded("the metadata service has too many operations waiting")
        submission = _Submission(done, failed, is_valid, [None] * len(commands), len(commands))
        waiting = [
            _Waiting(session, command, len(memoryview(command.body)) + COMMAND_OVERHEAD_BYTES, submission, position)
            for position, command in enumerate(commands)
        ]
        if any(w.size_bytes > COMMAND_BYTES_MAX for w in waiting):
            raise PosixError(_E2BIG, f"an operation is larger than {COMMAND_BYTES_MAX} bytes")
        self._queue.extend(waiting)
        self._work.unpark()

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
        refused = [w for w in batch if not w.submission.is_valid()]
        if refused:
            batch = [w for w in batch if w not in refused]
            for w in refused:
                w.submission.fail(NotLeader())
            if not batch:
                return
        entry = encode_entry(self._now_ns(), [(w.session, w.command) for w in batch])
        assert len(entry) <= ENTRY_BYTES_MAX, len(entry)
        try:
            index, outcomes = await self._log.propose(entry)
        except ShoalError as error:
            for w in batch:
                w.submission.fail(error)
            return
        assert len(outcomes) == len(batch), (len(outcomes), len(batch))
        self.entries += 1
        self.commands += len(batch)
        for w, outcome in zip(batch, outcomes, strict=True):
            w.submission.answer(w.position, index, outcome)
