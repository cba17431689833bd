"""A client's mutations on their way to the leader: those under way at one time share a few requests.

One request with twenty commands costs both sides little more than one with a single command. So a few workers carry
requests, and each takes all that has gathered while the others were under way; there is no timer, and a lone mutation
leaves at once. What travels together is answered together, but each command has its own slot and its own outcome.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import E2BIG
from typing import NamedTuple, Protocol

import trio

from shoalfs.mds.messages import MUTATE, Command, Inode, Mutate, Mutated, Outcome
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import (
    COMMAND_BYTES_MAX,
    COMMAND_OVERHEAD_BYTES,
    MUTATES_IN_FLIGHT_MAX,
    SHARED_COMMANDS_MAX,
)
from shoalfs.transport.method import Method
from shoalfs.transport.rpc import Reply


class Caller(Protocol):
    """What is needed of mds.client.Leader."""

    async def call(self, method: Method[Mutate, Mutated], request: Mutate) -> Reply[Mutated]: ...


class Carried(NamedTuple):
    """What became of a command. ``leased``: the inodes in the outcome are. ``directories``: those that this or what
    travelled with it has changed, as they are now, under leases."""

    outcome: Outcome
    leased: bool
    directories: tuple[Inode, ...]


@dataclass(slots=True)
class _Mutation:
    session: SessionId
    command: Command
    size_bytes: int
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome | None = None
    leased: bool = False
    directories: tuple[Inode, ...] = ()
    settled: Callable[[], None] | None = None  # set once nobody waits for it any more
    error: ShoalError | None = None

    def result(self) -> Carried | ShoalError:
        if self.error is not None:
            return self.error
        assert self.outcome is not None
        return Carried(self.outcome, self.leased, self.directories)


def _size_bytes(command: Command) -> int:
    return len(memoryview(command.body)) + COMMAND_OVERHEAD_BYTES


def _take(queue: deque[_Mutation]) -> list[_Mutation]:
    """Those of the first one's session that fit one request, in their order."""
    first = queue.popleft()
    taken, size_bytes = [first], first.size_bytes
    while queue and len(taken) < SHARED_COMMANDS_MAX and queue[0].session == first.session:
        size_bytes += queue[0].size_bytes
        if size_bytes > COMMAND_BYTES_MAX:
            break
        taken.append(queue.popleft())
    return taken


class Mutations:
    """``run`` must be running for anything to be answered. The queue is bounded by the slots of the session."""

    def __init__(self, leader: Caller) -> None:
        self._leader = leader
        self._queue: deque[_Mutation] = deque()
        self._work = trio.lowlevel.ParkingLot()

    async def carry_out(
        self, session: SessionId, commands: Sequence[Command], settled: Callable[[], None] = lambda: None
    ) -> list[Carried | ShoalError]:
        """Have commands applied, each once: of each the outcome, or what kept it from one: PosixError(E2BIG) if it is
        too large, and what the leader's call raises. Cancelled: they may still be applied; ``settled`` is called,
        perhaps several times, when more of that is decided, or never will be."""
        mutations = [_Mutation(session, command, _size_bytes(command)) for command in commands]
        for mutation in mutations:
            if mutation.size_bytes > COMMAND_BYTES_MAX:
                mutation.error = PosixError(E2BIG, f"an operation is larger than {COMMAND_BYTES_MAX} bytes")
                mutation.done.set()
            else:
                self._queue.append(mutation)
                self._work.unpark()
        try:
            for mutation in mutations:
                if not mutation.done.is_set():
                    await mutation.done.wait()
        except trio.Cancelled:
            for mutation in mutations:
                mutation.settled = settled
            raise
        return [mutation.result() for mutation in mutations]

    async def run(self) -> None:
        """Carry out until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(MUTATES_IN_FLIGHT_MAX):
                nursery.start_soon(self._carry)

    async def _carry(self) -> None:
        while True:
            while not self._queue:
                await self._work.park()
            taken = _take(self._queue)
            try:
                reply = await self._leader.call(MUTATE, Mutate(taken[0].session, tuple(m.command for m in taken)))
                outcomes = reply.body.outcomes
            except ShoalError as error:
                for mutation in taken:
                    mutation.error = error
            else:
                assert len(outcomes) == len(taken), (len(outcomes), len(taken))
                for mutation, outcome in zip(taken, outcomes, strict=True):
                    mutation.outcome = outcome
                    mutation.directories = reply.body.directories
                for mutation, leased in zip(taken, reply.body.leased, strict=False):
                    mutation.leased = leased
            for mutation in taken:
                mutation.done.set()
                if mutation.settled is not None:
                    mutation.settled()
