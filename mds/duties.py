"""What the leader does on its own: end silent sessions, declare silent targets down, move placement groups, remove
orphans, free chunks.

What is due is decided in :mod:`~shoalfs.mds.rounds`; here it is proposed, as ordinary commands of session 0. Nothing is
lost when the leader dies in the middle: the next leader looks again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing

import msgspec
import trio

from shoalfs.mds import messages as m
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.replicated import ReplicatedLog
from shoalfs.mds.rounds import Clock, Rounds
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.method import Message

log = logging.getLogger("shoal.mds.duties")

ROUND_MS = 200  # how long an orphan or an expired session may wait to be noticed
_NOBODY = SessionId(0)
_encode = msgspec.msgpack.Encoder().encode


class Duties:
    """The leader's background work. ``grace_ms`` and ``out_ms``: see :class:`~shoalfs.mds.rounds.Rounds`."""

    def __init__(
        self,
        store: LmdbStore,
        log: ReplicatedLog,
        batcher: Batcher,
        state: LeaderState,
        *,
        now_ms: Callable[[], int],
        now_ns: Callable[[], int],
        grace_ms: int,
        out_ms: int,
    ) -> None:
        self._log = log
        self._batcher = batcher
        self._state = state
        self._rounds = Rounds(store, state, Clock(now_ms, now_ns), grace_ms=grace_ms, out_ms=out_ms)

    async def run(self) -> None:
        """One round every ROUND_MS while this node leads, until cancelled."""
        while True:
            await trio.sleep(ROUND_MS / 1000)
            # The memory of a leadership begins with the first request that it answers (a renewal or a heartbeat).
            if self._log.may_serve_reads() and self._state.term == self._log.term_as_leader():
                try:
                    await self.one_round()
                except ShoalError as error:
                    log.warning("the leader's duties were cut short, the next round repeats them: %s", error)

    async def one_round(self) -> None:
        """Do what is due now. Raises what proposing raises; what was decided is decided again next time."""
        with closing(self._rounds.one()) as steps:
            proposal = next(steps, None)
            while proposal is not None:
                if proposal.text:
                    log.log(proposal.level, "%s", proposal.text)
                outcomes = await self._propose(proposal.op, proposal.requests)
                try:
                    proposal = steps.send(outcomes)
                except StopIteration:
                    return

    async def _propose(self, op: m.Op, requests: Sequence[Message]) -> list[m.Outcome]:
        commands = [m.Command(0, 0, op, msgspec.Raw(_encode(request))) for request in requests]
        _, outcomes = await self._batcher.submit(_NOBODY, commands)
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.code:
                log.warning("%s was refused: %s", request, outcome.text)
        return outcomes
