"""Calls and their serving: one :class:`Connection` joins a link and a session, :func:`serve` accepts connections.

Tasks of a connection: a reader (the one that :meth:`Connection.run` runs in), a writer, one that carries out
notifications in their order, and one per request that waits for something. The session's credits bound the last.

The one rule: nothing that a peer sends disturbs another connection. A bad frame ends its own connection, is counted
and logged once. An exception of a handler that is not a ShoalError is a bug: it leaves :func:`serve`.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final, Generic, NamedTuple, Never

import msgspec
import trio

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import (
    DeadlineExceeded,
    PeerUnreachable,
    ProtocolViolation,
    ShoalError,
    VersionMismatch,
    WrongCluster,
)
from shoalfs.transport.frame import Buffer, Decoder, Frame, Kind, Payload
from shoalfs.transport.limits import (
    ACCEPT_PAUSE_MS,
    CONNECTIONS_MAX,
    HELLO_TIMEOUT_MS,
    LINK_REASON_CHARS_MAX,
    NOTIFIES_QUEUED_MAX,
    PAYLOAD_IN_FLIGHT_BYTES_MAX,
    REQUEST_TIMEOUT_MS_DEFAULT,
    REQUEST_TIMEOUT_MS_MAX,
    STALL_TIMEOUT_MS,
)
from shoalfs.transport.link import Link, Listener, buffers_of, size_of
from shoalfs.transport.links import LinkStatus
from shoalfs.transport.method import A, AnyMethod, Method, Q
from shoalfs.transport.outbox import Outbox
from shoalfs.transport.room import PayloadRoom
from shoalfs.transport.service import Call, Prompt, Service
from shoalfs.transport.session import (
    Answered,
    Asked,
    Event,
    Greeted,
    Hello,
    Late,
    Refused,
    Rejected,
    Session,
)

log = logging.getLogger("shoal.transport.rpc")
_NAME_CHARS_MAX: Final = 100  # of a peer's name, where it is shown
_CARRY_REQUESTS: Final = frozenset({Kind.REQUEST, Kind.NOTIFY})

_NO_PAYLOAD: Final = memoryview(b"")


class Reply(NamedTuple, Generic[A]):
    """What a call returns. The payload's memory belongs to the caller."""

    body: A
    payload: memoryview


@dataclass(slots=True)
class _Waiter:
    """A task that is parked until its call is answered."""

    task: trio.lowlevel.Task
    deadline: float
    answer: Answered | None = None  # set before the task is woken; None then: its time is up


class Connection:
    """One connection, either side. :meth:`greet`, then :meth:`run`, which lasts as long as the connection."""

    def __init__(self, link: Link, hello: Hello, service: Service, room: PayloadRoom, *, dialler: bool) -> None:
        self._link = link
        self._service = service
        self._room = room
        self._dialler = dialler
        self._prompts = service.prompts
        self._session = Session(hello, service.methods, dialler=dialler)
        self._decoder = Decoder(self._session.admit)
        self._scope = trio.CancelScope()
        self._ended: str | None = None  # why; set once
        self.heard_at = trio.current_time()  # when the peer last sent anything
        self._fault: ShoalError | None = None  # what a send met; ends the connection
        # Calls:
        self._waiting: dict[int, _Waiter] = {}  # by request id
        self._want_credit = trio.lowlevel.ParkingLot()
        self._next_expiry = inf  # the timer is set to this; no deadline in _waiting lies before it
        self._expires_sooner = trio.lowlevel.ParkingLot()
        self._outbox = Outbox(link, self._broken)
        # Receiving: room that is taken for the large frame being received.
        self._reserved_bytes = 0
        self._stalled_at = inf  # when the frame that is being received will have stalled
        self._notify_in, self._notify_out = trio.open_memory_channel[Asked](NOTIFIES_QUEUED_MAX)

    def __repr__(self) -> str:
        return f"<Connection {self._link.name} to {self.peer.role} {self.peer.name!r}>"

    @property
    def peer(self) -> Hello:
        """What the other side said of itself."""
        return self._session.peer

    @property
    def status(self) -> LinkStatus:
        """Whom it leads to, and how."""
        info, peer = self._link.info, self.peer
        reason = "" if info.carrier == "verbs" else peer.no_verbs or info.reason
        return LinkStatus(
            peer.role[:_NAME_CHARS_MAX],
            peer.name[:_NAME_CHARS_MAX],
            info.carrier,
            info.device,
            reason[:LINK_REASON_CHARS_MAX],
            dict(info.counters),
        )

    @property
    def backlogged(self) -> bool:
        """More is queued for this peer than it should be."""
        return self._outbox.backlogged

    # --- the calling side --------------------------------------------------------------------------------------------
    async def call(
        self,
        method: Method[Q, A],
        request: Q,
        payload: Payload = b"",
        *,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> Reply[A]:
        """Ask the peer and wait for its answer; waits for credit first if too many requests are outstanding.

        Raises the error that the peer answered; DeadlineExceeded; PeerUnreachable if the connection is or gets closed;
        BadMessage if the request is too large or the answer does not fit its schema.

        Cancelled: the request may or may not be carried out; a late answer is dropped. The payload's buffers may
        still be waiting to be sent then: they must not be changed afterwards.
        """
        assert 0 < timeout_ms <= REQUEST_TIMEOUT_MS_MAX, timeout_ms
        deadline = trio.current_time() + timeout_ms / 1000
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._session.may_request:
            await self._wait_credit(deadline)
        request_id = self._ask(method, request, payload, deadline)
        answer = await self._answer_to(request_id, deadline)
        if answer is None:
            raise DeadlineExceeded(f"{method} to {self._link.name}: no answer within {timeout_ms} ms")
        if isinstance(answer.outcome, ShoalError):
            raise answer.outcome
        return Reply(answer.outcome, answer.payload)

    async def notify(self, method: Method[Q, A], request: Q, payload: Payload = b"") -> None:
        """Send a one-way message; in order with others. Waits while this connection is backlogged.

        Raises PeerUnreachable if the connection is closed, BadMessage if it is too large. Returning says nothing
        about its arrival.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.backlogged and self._ended is None:
            await self._outbox.wait_shrunk()
        buffers = buffers_of(payload)
        self._send([self._session.notification(method, request, size_of(buffers)), *buffers])

    def close(self, reason: str = "closed by this side") -> None:
        """End the connection: outstanding calls raise PeerUnreachable, :meth:`run` returns soon."""
        if self._ended is not None:
            return
        self._ended = f"{self._link.name}: {reason}"
        self._session.close()
        for request_id in list(self._waiting):
            self._wake(request_id, Answered(request_id, PeerUnreachable(self._ended), _NO_PAYLOAD))
        self._want_credit.unpark_all()
        self._outbox.release()
        self._scope.cancel()

    async def _wait_credit(self, deadline: float) -> None:
        """Until the session has credit, or has ended, or the deadline has passed."""
        with trio.move_on_at(deadline):
            while not self._session.may_request and self._ended is None:
                await self._want_credit.park()

    def _ask(self, method: AnyMethod, request: msgspec.Struct, payload: Payload, deadline: float) -> int:
        """Send a request: its id. Raises as :meth:`call`."""
        buffers = buffers_of(payload)
        try:
            remaining_ms = round((deadline - trio.current_time()) * 1000)
            if remaining_ms <= 0:
                raise DeadlineExceeded(f"{method} to {self._link.name}: no credit in time")
            request_id, head = self._session.request(method, request, size_of(buffers), remaining_ms)
        except ShoalError:
            self._want_credit.unpark()  # another may use the credit for which this caller was woken
            raise
        self._send([head, *buffers])
        return request_id

    async def _answer_to(self, request_id: int, deadline: float) -> Answered | None:
        """Park this task until the answer comes or the connection ends; None when the deadline has passed."""

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[request_id]
            self._session.abandon(request_id)
            return trio.lowlevel.Abort.SUCCEEDED

        waiter = self._waiting[request_id] = _Waiter(trio.lowlevel.current_task(), deadline)
        if deadline < self._next_expiry:
            self._expires_sooner.unpark()
        await trio.lowlevel.wait_task_rescheduled(abort)
        return waiter.answer

    def _wake(self, request_id: int, answer: Answered | None) -> None:
        waiter = self._waiting.pop(request_id)
        waiter.answer = answer
        trio.lowlevel.reschedule(waiter.task)

    async def _expire_loop(self) -> None:
        """Wake the calls whose time is up. One timer for all: a cancel scope for each costs a tenth of a call."""
        while True:
            self._next_expiry = min((waiter.deadline for waiter in self._waiting.values()), default=inf)
            with trio.move_on_at(self._next_expiry):
                await self._expires_sooner.park()
            now = trio.current_time()
            for request_id in [one for one, waiter in self._waiting.items() if waiter.deadline <= now]:
                self._session.abandon(request_id)
                self._wake(request_id, None)

    # --- the life of the connection ----------------------------------------------------------------------------------
    async def greet(self) -> None:
        """Handshake and hello. The caller bounds the time. Raises ShoalError, and has closed the link then, also when
        cancelled; the peer is told why it is refused."""
        try:
            await self._link.handshake()
            if self._dialler:
                await self._send_first(self._session.greeting(self._link.info.reason))
            event = await self._first_event()
            if isinstance(event, Refused):
                raise event.reason
            assert isinstance(event, Greeted), event
            if event.answer:
                await self._send_first(event.answer)
        except BaseException as error:
            if isinstance(error, (ProtocolViolation, VersionMismatch, WrongCluster)):
                self._refuse(error)
            self._link.close()
            raise

    async def run(self) -> None:
        """Serve and carry calls until the connection ends or is closed, or this is cancelled; then it is closed.

        Raises what a handler raises, unless that is a ShoalError.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._outbox.run)
                    nursery.start_soon(self._notify_loop)
                    nursery.start_soon(self._expire_loop)
                    nursery.start_soon(self._stall_loop)
                    try:
                        await self._read_loop(nursery)
                    finally:
                        # At once, and not only when the tasks in the nursery have ended.
                        self.close(str(self._fault) if self._fault else "cancelled")
        finally:
            self._room.give_back(self._reserved_bytes)
            self._link.close()

    async def _first_event(self) -> Event:
        while (frame := self._decoder.next_frame()) is None:
            if not await self._receive():
                raise PeerUnreachable(f"{self._link.name}: closed before its hello")
        return self._session.receive(frame, trio.current_time())

    async def _read_loop(self, nursery: trio.Nursery) -> None:
        try:
            while True:
                while (frame := self._decoder.next_frame()) is not None:
                    await self._dispatch(frame, nursery)
                await self._make_room()
                if not await self._receive():
                    return self.close("closed by the peer")
        except ProtocolViolation as error:
            self._service.counters["frames_bad"] += 1
            log.warning("closing %s: %s", self._link.name, error)
            self._refuse(error)
            self.close(str(error))
        except ShoalError as error:
            self.close(str(error))

    async def _receive(self) -> bool:
        """Receive some bytes; False at the end of the stream. Raises ProtocolViolation if that is inside a frame."""
        decoder = self._decoder
        if decoder.inside_frame:
            self._stalled_at = trio.current_time() + STALL_TIMEOUT_MS / 1000
        count = await self._link.receive_into(decoder.writable())
        self._stalled_at = inf
        if count == 0:
            decoder.end()
            return False
        decoder.received(count)
        self.heard_at = trio.current_time()
        return True

    async def _stall_loop(self) -> None:
        """End the connection when a frame has begun to come and its rest does not. One timer that looks now and then: a
        cancel scope for each receive costs a tenth of receiving a block."""
        while True:
            now = trio.current_time()
            if now >= self._stalled_at:
                break
            await trio.sleep_until(min(self._stalled_at, now + STALL_TIMEOUT_MS / 1000))
        self._broken(PeerUnreachable(f"{self._link.name}: no byte moved for {STALL_TIMEOUT_MS} ms"))

    async def _make_room(self) -> None:
        """Wait until it is right to receive more.

        A peer that does not fetch its answers gets no more requests taken. Our own requests do not count: who reads
        no answers because the other side reads no requests would wait for ever.
        """
        while self._outbox.unfetched:
            await self._outbox.wait_shrunk()
        large = self._decoder.large
        if large is None or large.kind not in _CARRY_REQUESTS:
            await self._room.wait_for(0)
        elif not self._reserved_bytes:
            await self._room.wait_for(large.payload_bytes)
            self._room.take(large.payload_bytes)
            self._reserved_bytes = large.payload_bytes

    async def _dispatch(self, frame: Frame, nursery: trio.Nursery) -> None:
        event = self._session.receive(frame, trio.current_time())
        if isinstance(event, Answered):
            self._wake(event.request_id, event)
            self._want_credit.unpark()
        elif isinstance(event, Asked):
            self._room.take(frame.payload.nbytes - self._reserved_bytes)
            self._reserved_bytes = 0
            if event.request_id:
                prompt = self._prompts.get(event.method.number)
                if prompt is None or not self._answer_promptly(prompt, event):
                    nursery.start_soon(self._serve_request, event)
            else:
                await self._notify_in.send(event)
        elif isinstance(event, Late):
            self._want_credit.unpark()
        elif isinstance(event, Rejected):
            self._service.counters["requests_refused"] += 1
            self._room.give_back(self._reserved_bytes)
            self._reserved_bytes = 0
            if event.answer:
                self._send([event.answer], answer=True)
        else:
            assert isinstance(event, Refused), event
            raise PeerUnreachable(f"the peer closed it: {event.reason}")

    # --- the serving side --------------------------------------------------------------------------------------------
    async def _serve_request(self, asked: Asked) -> None:
        try:
            answer = await self._answer(asked)
            if self._ended is None:
                self._send(answer, answer=True)
        finally:
            self._room.give_back(asked.payload.nbytes)

    def _answer_promptly(self, prompt: Prompt[Any, Any], asked: Asked) -> bool:
        """Let the request be carried out without a task of its own; False if that cannot be."""
        if trio.current_time() >= asked.deadline:
            return False
        done = partial(self._done, asked)
        try:
            taken = prompt(Call(self.peer, asked.deadline, self), asked.request, asked.payload, done)
        except ShoalError as error:
            done(error)
            taken = True
        self._service.counters["requests"] += taken
        return taken

    def _done(self, asked: Asked, result: Any) -> None:
        """What a prompt calls. Its request holds its room until then."""
        self._room.give_back(asked.payload.nbytes)
        if self._ended is None:
            self._send(self._frame_of(asked, result), answer=True)

    def _frame_of(self, asked: Asked, result: Any) -> list[Buffer]:
        """The frame of an answer: a body, a body and a payload, or an error."""
        if not isinstance(result, ShoalError):
            body, payload = result if isinstance(result, tuple) else (result, b"")
            buffers = buffers_of(payload)
            try:
                return [self._session.reply(asked.request_id, asked.method, body, size_of(buffers)), *buffers]
            except ShoalError as error:
                result = error
        return [self._session.error(asked.request_id, result)]

    async def _answer(self, asked: Asked) -> list[Buffer]:
        """Carry out a request: the frame of its answer."""
        counters = self._service.counters
        counters["requests"] += 1
        try:
            with trio.move_on_at(asked.deadline):
                return self._frame_of(asked, await self._handle(asked))
            counters["requests_expired"] += 1
            return self._frame_of(asked, DeadlineExceeded(f"{asked.method}: not done in time"))
        except ShoalError as error:
            return self._frame_of(asked, error)

    async def _handle(self, asked: Asked) -> Any:
        if trio.current_time() >= asked.deadline:
            raise DeadlineExceeded(f"{asked.method}: expired before it was begun")
        call = Call(self.peer, asked.deadline, self)
        return await self._service.handler(asked.method)(call, asked.request, asked.payload)

    async def _notify_loop(self) -> None:
        async for asked in self._notify_out:
            self._service.counters["notifications"] += 1
            try:
                await self._handle(asked)
            except ShoalError as error:
                log.debug("%s from %s failed: %s", asked.method, self._link.name, error)
            finally:
                self._room.give_back(asked.payload.nbytes)

    # --- sending -----------------------------------------------------------------------------------------------------
    def _send(self, frame: list[Buffer], *, answer: bool = False) -> None:
        """Send or queue a frame. Never raises: a broken link ends the connection."""
        self._outbox.send(frame, alone=self._session.in_flight <= 1, answer=answer)

    def _broken(self, error: ShoalError) -> None:
        """The link does not send. The reader closes: a caller may not be parked yet."""
        self._fault = error
        self._scope.cancel()

    async def _send_first(self, head: bytes) -> None:
        if not self._link.send_now([head]):
            await self._link.drain()

    def _refuse(self, reason: ShoalError) -> None:
        """Tell the peer why, if that is possible without waiting and without cutting a frame in two."""
        if not self._outbox.empty:
            return
        try:
            self._link.send_now([self._session.refusal(reason)])
        except ShoalError as error:
            log.debug("%s did not hear that it was refused: %s", self._link.name, error)


async def serve(
    carriers: Carriers,
    address: str,
    service: Service,
    hello: Hello,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Listen on ``address`` and serve every connection, until cancelled; then all connections are closed.

    Started with ``await nursery.start(...)`` it returns the actual address once it listens. Raises UserError if it
    cannot listen, and whatever a handler raises that is not a ShoalError.
    """
    listener = await carriers.listen(address)
    room = PayloadRoom(PAYLOAD_IN_FLIGHT_BYTES_MAX)
    counters = service.counters
    try:
        async with trio.open_nursery() as nursery:
            task_status.started(listener.address)
            while True:
                link = await _accept(listener, counters)
                if len(nursery.child_tasks) >= CONNECTIONS_MAX:
                    counters["connections_refused"] += 1
                    link.close()
                    continue
                counters["connections"] += 1
                connection = Connection(link, hello, service, room, dialler=False)
                nursery.start_soon(_serve_connection, connection, link.name, service)
    finally:
        listener.close()


async def _accept(listener: Listener, counters: Counter[str]) -> Link:
    while True:
        try:
            return await listener.accept()
        except OSError as error:  # out of descriptors or memory: some come back when connections end
            counters["accepts_failed"] += 1
            log.warning("cannot accept on %s: %s", listener.address, error)
            await trio.sleep(ACCEPT_PAUSE_MS / 1000)


async def _serve_connection(connection: Connection, name: str, service: Service) -> None:
    counters = service.counters
    try:
        with trio.fail_after(HELLO_TIMEOUT_MS / 1000):
            await connection.greet()
    except PeerUnreachable as error:  # somebody looked whether the port answers
        counters["hellos_missing"] += 1
        log.debug("no hello: %s", error)
    except trio.TooSlowError:
        counters["hellos_missing"] += 1
        log.warning("closing %s: no hello within %d ms", name, HELLO_TIMEOUT_MS)
    except ShoalError as error:
        counters["frames_bad" if isinstance(error, ProtocolViolation) else "hellos_refused"] += 1
        log.warning("closing %s: %s", name, error)
    else:
        service.accepted.add(connection)
        try:
            await connection.run()
        finally:
            service.accepted.discard(connection)
