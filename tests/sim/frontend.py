"""A member's metadata service, as clients see it: mds/service.py, batcher.py and raft_node.py without trio.

It has their rules and none of their tasks: reads under the lease or by a read index, with a second look at the lease
after reading; commands of many clients in one entry; what was proposed under a leadership that is over gets
PeerUnreachable.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.raft_guard import Applied
from shoalfs.transport.errors import NotLeader, PeerUnreachable, ShoalError, wire_code
from shoalfs.transport.ids import NodeId, SessionId
from shoalfs.transport.limits import ENTRIES_IN_FLIGHT_MAX
from sim.calls import Answer
from sim.machines import StoreMachine

if TYPE_CHECKING:
    from sim.process import Process

BATCH_MAX = 8
_LOOK_AGAIN_SECONDS = 0.02
_READS: dict[type, Callable[[Any, Any], Any]] = {
    m.Lookup: reads.lookup,
    m.GetAttr: reads.getattr_,
    m.GetXattr: reads.getxattr,
}


@dataclass(frozen=True)
class Reply:
    """``error``: the node did not do it, or does not know. ``hint``: who leads, as far as it knows."""

    answer: Answer | m.Outcome | None
    index: int = 0
    error: type[ShoalError] | None = None
    hint: NodeId | None = None


Respond = Callable[[Reply], None]
_Waiting = tuple[SessionId, m.Command, Respond]


class Frontend:
    """Of one life of one process."""

    def __init__(self, process: "Process", *, has_lease: bool) -> None:
        self._process = process
        self._has_lease = has_lease
        self._queue: deque[_Waiting] = deque()
        self._in_flight: list[list[_Waiting]] = []
        self._term = 0

    # --- mutations ------------------------------------------------------------------------------------------
    def mutate(self, session: SessionId, command: m.Command, respond: Respond) -> None:
        self._once_it_serves(respond, lambda _: self._enqueue(session, command, respond))

    def _enqueue(self, session: SessionId, command: m.Command, respond: Respond) -> None:
        self._queue.append((session, command, respond))
        self._propose()

    def _propose(self) -> None:
        """Everything that waits goes into the next entry, while fewer than so many are under way."""
        process = self._process
        while self._queue and len(self._in_flight) < ENTRIES_IN_FLIGHT_MAX:
            batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
            now_ns = int(process.now * 1e9)
            entry = encode_entry(now_ns, [(session, command) for session, command, _ in batch])
            self._in_flight.append(batch)
            self._term = process.guard.term

            def done(applied: Applied, batch: list[_Waiting] = batch) -> None:
                if batch in self._in_flight:
                    self._in_flight.remove(batch)
                    for (_, _, respond), outcome in zip(batch, applied.result, strict=True):
                        respond(Reply(outcome, applied.index))

            if not process.propose(entry, done) and batch in self._in_flight:
                self._in_flight.remove(batch)
                self._fail(batch, NotLeader)

    def settled(self) -> None:
        """After each step of the process."""
        guard = self._process.guard
        if self._in_flight and (not guard.is_leader or guard.term != self._term):
            lost, self._in_flight = self._in_flight, []
            for batch in lost:
                self._fail(batch, PeerUnreachable)
        if not guard.is_leader:
            waiting, self._queue = list(self._queue), deque()
            self._fail(waiting, NotLeader)
        elif self._queue:
            self._propose()

    def _fail(self, batch: list[_Waiting], error: type[ShoalError]) -> None:
        for _, _, respond in batch:
            respond(Reply(None, error=error, hint=self._process.guard.leader))

    # --- reads ----------------------------------------------------------------------------------------------
    def read(self, request: Any, respond: Respond) -> None:
        self._once_it_serves(respond, lambda since: self._read(request, respond, since))

    def _read(self, request: Any, respond: Respond, since: float) -> None:
        """Between the look at the lease and the reading, the process may be stalled for any time."""
        process = self._process
        chance = process.world.chance

        def look() -> None:
            machine = process.machine
            assert isinstance(machine, StoreMachine)
            with machine.store.read() as txn:
                try:
                    answer: Answer = (0, _READS[type(request)](txn, request))
                except ShoalError as error:
                    answer = (wire_code(error), None)
            reply = Reply(answer, machine.applied_index)
            if self._may_serve(since):
                respond(reply)
            else:
                self.read(request, respond)

        process.later(0.0 if chance.random() < 0.5 else chance.uniform(0.0, 0.002), look)

    def _may_serve(self, since: float) -> bool:
        guard, now = self._process.guard, self._process.now
        return guard.may_serve_reads(now) if self._has_lease else guard.confirmed_at(now) >= since

    def _once_it_serves(self, respond: Respond, action: Callable[[float], None]) -> None:
        """As MdsService._lead and RaftNode.read_barrier. ``action`` gets the moment at which this began."""
        process = self._process
        since = process.now

        def look() -> None:
            if not process.guard.is_leader:
                respond(Reply(None, error=NotLeader, hint=process.guard.leader))
            elif self._may_serve(since):
                action(since)
            else:
                process.guard.ask_round(process.now)
                process.later(_LOOK_AGAIN_SECONDS, look)
                process.settle()

        look()
