"""Finds the leader among the members, repeats calls there, and notices a leader that hangs.

A leader that is killed breaks its connections, and one that is deposed says so; both are noticed at once. One that is
stopped, or whose machine is, does neither: its connections stay, and what was asked of it would wait for its whole
timeout, while the others have long elected another. So :meth:`Leader.watch` looks once a second whether anything was
heard of the leader; if not, it asks it, and if that is not answered, it asks the others who leads. When they name
another one, the connection to the silent one is closed: everything that waits there fails at once and is asked anew.

Nothing depends on these answers but where a request goes first: a member that does not lead refuses it.
"""

import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from shoalfs.mds.group_messages import WHO_LEADS, LeaderIs, WhoLeads
from shoalfs.transport.errors import DeadlineExceeded, NotLeader, PeerUnreachable, Retry, ShoalError
from shoalfs.transport.method import Method
from shoalfs.transport.rpc import Reply

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

PATIENCE_MS = 120_000  # how long a call stalls through failovers before it fails
_ATTEMPT_MS = 10_000
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.02, 1.0
_PAUSE_SHARE = 1 / 8
_LOOK_MS = 1_000  # about an election: before that nobody could name another one


class Members(Protocol):
    """What is needed of transport.network.Network."""

    async def call(self, address: str, method: Method[Any, Any], request: Any, *, timeout_ms: int) -> Reply[Any]: ...

    async def wait_broken(self, address: str) -> None: ...

    async def drop(self, address: str) -> None: ...

    def heard_at(self, address: str) -> float: ...


def pause_after(stalled_s: float) -> float:
    """How long a caller rests that has met no leader for so long: a share of that, so that it comes back at most so
    much later than it could have, and so that a long stall costs few questions."""
    return min(_PAUSE_MAX_S, max(_PAUSE_MIN_S, stalled_s * _PAUSE_SHARE))


class Leader:
    """Knows nothing of sessions. ``addresses`` must not be empty; further members are learned from redirects."""

    def __init__(self, network: Members, addresses: Sequence[str], patience_ms: int = PATIENCE_MS) -> None:
        assert addresses
        self._network = network
        self._addresses = list(addresses)
        self._at = 0
        self._moved = trio.Event()  # set when another member is asked; then there is a new one
        self._patience_ms = patience_ms

    @property
    def address(self) -> str:
        """The member that is asked next."""
        return self._addresses[self._at]

    async def wait_doubtful(self) -> None:
        """Return when what was told to the member that is asked may have to be told again: another one is asked now,
        or the connection has ended."""
        async with trio.open_nursery() as nursery:

            async def wait(happens: Any, *arguments: str) -> None:
                await happens(*arguments)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._moved.wait)
            nursery.start_soon(wait, self._network.wait_broken, self.address)

    async def call(self, method: Method[Q, A], request: Q, attempt_ms: int | None = None) -> Reply[A]:
        """Ask the leader; stall while there is none; ask again after ``attempt_ms`` without an answer, if there is
        patience left: it is how long to look for a leader, not how long that one may take.

        Raises what the service answers, and the last transport error
        once the patience is over. Cancelled: a mutation may still be applied."""
        began = trio.current_time()
        give_up = began + self._patience_ms / 1000
        hints = 0
        while True:
            asked, asked_at = self.address, trio.current_time()
            left_ms = int((give_up - asked_at) * 1000)
            timeout_ms = attempt_ms or max(1, min(_ATTEMPT_MS, left_ms))
            try:
                return await self._network.call(asked, method, request, timeout_ms=timeout_ms)
            except NotLeader as error:
                hinted = self._follow(asked, str(error))
                failure: ShoalError = PeerUnreachable("the metadata service has no leader")
            except DeadlineExceeded as error:
                # Who says other things meanwhile is alive, and has a reason: a new leader waits for old leases to end.
                if self._network.heard_at(asked) < asked_at:
                    self._pass_over(asked)
                hinted, failure = False, error
            except PeerUnreachable as error:
                hinted = self._pass_over(asked)
                failure = error
            except ShoalError as error:
                if error.retry is not Retry.SAME:
                    raise
                hinted, failure = False, error
            if trio.current_time() >= give_up:
                raise failure
            # Two members may each hold the other for the leader, so not every hint is followed at once.
            hints = hints + 1 if hinted else 0
            if hints % len(self._addresses) == 0:
                pause_s = pause_after(trio.current_time() - began)
                await trio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, no secret

    async def watch(self) -> None:
        """Leave a leader that hangs, and one that has been deposed while nobody asked it, until cancelled."""
        while True:
            await trio.sleep(_LOOK_MS / 1000)
            address = self.address
            if trio.current_time() - self._network.heard_at(address) < _LOOK_MS / 1000:
                continue
            told = await self._who_leads(address)
            if told is not None:
                self._follow(address, told.address)
            else:
                await self._leave_silent(address)

    async def _leave_silent(self, silent: str) -> None:
        """Go where the others say the leader is, if that is not who keeps silent."""
        told: list[LeaderIs] = []

        async def ask(address: str) -> None:
            answer = await self._who_leads(address)
            if answer is not None and answer.address:
                told.append(answer)

        async with trio.open_nursery() as nursery:
            for address in self._addresses:
                if address != silent:
                    nursery.start_soon(ask, address)
        newest = max(told, key=lambda one: one.term, default=None)
        if newest is not None and newest.address != silent:
            self._follow(silent, newest.address)
            await self._network.drop(silent)

    async def _who_leads(self, address: str) -> LeaderIs | None:
        try:
            reply: Reply[LeaderIs] = await self._network.call(address, WHO_LEADS, WhoLeads(), timeout_ms=_LOOK_MS)
        except ShoalError:
            return None
        return reply.body

    def _follow(self, asked: str, hint: str) -> bool:
        """``asked`` does not lead, or says who does: go where it says. False if that tells nothing new."""
        if asked != self.address:
            return True  # somebody has been told more in the meantime
        if hint == asked:
            return False
        if not hint:
            self._pass_over(asked)
            return False
        if hint not in self._addresses:
            self._addresses.append(hint)
        self._go(self._addresses.index(hint))
        return True

    def _pass_over(self, asked: str) -> bool:
        """``asked`` is of no use: try the next one. True if that was done already; many may be told at a time, and
        if each went one further, they would come back to where they were."""
        if asked != self.address:
            return True
        self._go((self._at + 1) % len(self._addresses))
        return False

    def _go(self, at: int) -> None:
        if at != self._at:
            self._at = at
            self._moved.set()
            self._moved = trio.Event()
