"""Clients of the simulated service: mds/client.py without trio.

Each has a session with slots and sequence numbers. A call is repeated with the same (session, slot, sequence) at
whichever member leads, until it is answered or the client gives up; then its result is unknown for ever.
"""

from typing import TYPE_CHECKING, Any

from shoalfs.mds import messages as m
from shoalfs.transport.errors import NotLeader, SessionGone
from shoalfs.transport.ids import NodeId, SessionId
from sim.calls import Call, answer_of
from sim.frontend import Reply
from sim.workload import Workload

if TYPE_CHECKING:
    from sim.state_world import StoreWorld

SLOTS = 2
_FIRST_ID = 1000  # above all nodes
_ATTEMPT_SECONDS = 0.4


class Client:
    """One session at a time, and one call at a time in each of its slots."""

    def __init__(self, world: "StoreWorld", number: int, workload: Workload) -> None:
        self.world, self.id = world, _FIRST_ID + number
        self._workload = workload
        self._at = world.chance.choice(world.nodes)
        self._session = SessionId(0)
        self._seq = [0] * SLOTS
        self._opened = 0  # sessions
        self.outstanding = 0
        self._open_session()

    # --- sessions -------------------------------------------------------------------------------------------
    def _open_session(self) -> None:
        """Repeated, it is the same session: its nonce says so."""
        self._opened += 1
        nonce = b"%08d%08d" % (self.id, self._opened)
        request = m.OpenSession(nonce, f"client {self.id}")
        # The slot and sequence of these are not looked at; here they tell calls apart.
        _Running(self, self._call(m.Op.OPEN_SESSION, request, SessionId(0), self.id, self._opened), patient=True)

    def _call(self, op: m.Op | None, request: Any, session: SessionId, slot: int, seq: int) -> Call:
        call = Call(self.id, op, request, session, slot, seq, self.world.now)
        self.world.calls.append(call)
        return call

    # --- calls ----------------------------------------------------------------------------------------------
    def _next(self, slot: int, session: SessionId) -> None:
        """The slot is free: use it after a moment of thought."""

        def begin() -> None:
            if session != self._session or not self.world.clients_on:
                return
            op, request = self._workload.next_operation(session)
            if op is not None:
                self._seq[slot] += 1
            call = self._call(op, request, session, slot, self._seq[slot] if op is not None else 0)
            _Running(self, call, patient=self.world.chance.random() < 0.9)

        self.world.at(self.world.now + self.world.chance.expovariate(self.world.rate), begin)

    def ended(self, call: Call) -> None:
        """Answered or given up."""
        if call.answer is not None:
            self._workload.learn(call)
        if call.op is m.Op.OPEN_SESSION:
            if call.answer is None:
                self._open_session()
                return
            self._session = call.answer[1].session
            self._seq = [0] * SLOTS
            for slot in range(SLOTS):
                self._next(slot, self._session)
        elif call.session == self._session:
            is_gone = call.answer is not None and call.answer[0] == SessionGone.code
            if call.op is m.Op.END_SESSION or is_gone:
                self._session = SessionId(0)
                self._open_session()
            else:
                self._next(call.slot, call.session)

    def ask(self, running: "_Running") -> None:
        """Send it to the member where the leader is thought to be."""
        world, call, node = self.world, running.call, self._at
        attempt = running.attempt

        def respond(reply: Reply) -> None:
            world.network.carry(node, self.id, lambda: running.heard(attempt, node, reply))

        def deliver() -> None:
            process = world.processes.get(node)
            if process is None or not process.up:
                return
            front = world.frontends[node]
            if call.op is None:
                process.later(0.0, lambda: front.read(call.request, respond))
            else:
                process.later(0.0, lambda: front.mutate(call.session, call.command(), respond))

        world.network.carry(self.id, node, deliver)

    def go_on(self, hint: NodeId | None) -> None:
        """The next member to ask: who is said to lead, or the next one in turn."""
        nodes = self.world.nodes
        if hint is not None and hint != self._at and hint in nodes:
            self._at = hint
        else:
            self._at = nodes[(nodes.index(self._at) + 1) % len(nodes)] if self._at in nodes else nodes[0]


class _Running:
    """A call that is being asked, with its repetitions."""

    def __init__(self, client: Client, call: Call, *, patient: bool) -> None:
        self._client, self.call = client, call
        self._is_over = False
        self.attempt = 0
        client.outstanding += 1
        if not patient:
            client.world.at(client.world.now + client.world.chance.uniform(0.05, 1.0), self._give_up)
        self._ask()

    def _ask(self) -> None:
        if self._is_over:
            return
        self.attempt += 1
        attempt, world = self.attempt, self._client.world
        self._client.ask(self)
        world.at(world.now + _ATTEMPT_SECONDS, lambda: self._time_out(attempt))

    def _time_out(self, attempt: int) -> None:
        if not self._is_over and attempt == self.attempt:
            self._client.world.met["attempt timed out"] += 1
            self._client.go_on(None)
            self._ask()

    def heard(self, attempt: int, node: NodeId, reply: Reply) -> None:
        """An answer to any attempt will do; a refusal counts for the latest one only."""
        if self._is_over:
            return
        if reply.error is None:
            answer = reply.answer
            if isinstance(answer, m.Outcome):
                assert self.call.op is not None
                answer = answer_of(self.call.op, answer)
            assert answer is not None
            self._end(answer, reply.index)
        elif attempt == self.attempt:
            self.attempt += 1  # the time-out of this attempt is void
            self._client.go_on(reply.hint if reply.error is NotLeader else None)
            world = self._client.world
            world.met[f"answer {reply.error.__name__}"] += 1
            world.at(world.now + world.chance.uniform(0.01, 0.1), self._ask)

    def _give_up(self) -> None:
        if not self._is_over:
            self._client.world.met["given up"] += 1
            self.call.was_given_up = True
            self._end(None, 0)

    def _end(self, answer: tuple[int, Any] | None, index: int) -> None:
        self._is_over = True
        call = self.call
        call.answer, call.index = answer, index
        if answer is not None:
            call.answered_at = self._client.world.now
        self._client.outstanding -= 1
        self._client.ended(call)
