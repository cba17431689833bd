"""Two sessions that talk over an unreliable schedule: any order of asking, answering, abandoning and delivering.

And one session that hears arbitrary frames: it refuses or goes on, and breaks none of its bounds.
"""

from collections import deque

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from shoalfs.transport.errors import ProtocolViolation, ShoalError, TargetFull, VersionMismatch, WrongCluster
from shoalfs.transport.frame import Decoder, Frame, Header, Kind
from shoalfs.transport.method import Message, Method
from shoalfs.transport.session import (
    Answered,
    Asked,
    Greeted,
    Hello,
    Late,
    Refused,
    Rejected,
    Session,
    State,
)


class Number(Message, frozen=True):
    value: int


ECHO = Method(1, "echo", Number, Number, 1000, 1000)
UNKNOWN = Method(2, "unknown", Number, Number, 1000, 1000)
METHODS = {1: ECHO}
CREDITS = 3


def frames_in(session, data):
    """Decode as a connection does: each frame is received before the next header is judged."""
    decoder = Decoder(session.admit)
    while data:
        view = decoder.writable()
        count = min(len(view), len(data))
        view[:count] = data[:count]
        decoder.received(count)
        data = data[count:]
        while (frame := decoder.next_frame()) is not None:
            yield session.receive(frame, 0.0)
    decoder.end()


class Conversation(RuleBasedStateMachine):
    """A client and a server, each of which may ask. Each direction delivers in order, when the schedule says so."""

    asked = Bundle("asked")
    arrived = Bundle("arrived")

    def __init__(self):
        super().__init__()
        self.sides = [
            Session(Hello(credits=CREDITS, name=name), METHODS, dialler=dialler)
            for name, dialler in (("client", True), ("server", False))
        ]
        self.wires = [deque(), deque()]  # towards side 0, towards side 1
        self.waiting = [{}, {}]  # of each side: request id -> value asked
        self.abandoned = [set(), set()]
        self.wires[1].append(self.sides[0].greeting())

    def say(self, side, data):
        if data:
            self.wires[1 - side].append(data)

    @rule(
        target=asked,
        side=st.integers(0, 1),
        value=st.integers(0, 100),
        known=st.booleans(),
        size=st.integers(0, 9),
    )
    def ask(self, side, value, known, size):
        session = self.sides[side]
        if session.state is not State.OPEN or not session.may_request:
            return multiple()
        request_id, head = session.request(ECHO if known else UNKNOWN, Number(value), size, 1000)
        self.waiting[side][request_id] = value if known else None
        self.say(side, head + bytes(size))
        return (side, request_id)

    @rule(side=st.integers(0, 1), value=st.integers(0, 100))
    def notify(self, side, value):
        if self.sides[side].state is State.OPEN:
            self.say(side, self.sides[side].notification(ECHO, Number(value), 0))

    @rule(one=consumes(asked))
    def abandon(self, one):
        side, request_id = one
        self.sides[side].abandon(request_id)
        if request_id in self.waiting[side]:
            self.abandoned[side].add(request_id)

    @rule(target=arrived, side=st.integers(0, 1))
    @precondition(lambda self: any(self.wires))
    def deliver(self, side):
        if not self.wires[side]:
            return multiple()
        results = []
        for event in frames_in(self.sides[side], self.wires[side].popleft()):
            if isinstance(event, Greeted | Rejected):
                self.say(side, event.answer)
            elif isinstance(event, Asked):
                if event.request_id:
                    results.append((side, event.request_id, event.request.value))
            elif isinstance(event, Late):
                assert self.abandoned[side]
            else:
                assert isinstance(event, Answered), event
                self.check_answer(side, event)
        return multiple(*results)

    def check_answer(self, side, event):
        value = self.waiting[side].pop(event.request_id)
        assert event.request_id not in self.abandoned[side]
        if value is None:
            assert isinstance(event.outcome, ShoalError)
        else:
            assert isinstance(event.outcome, TargetFull) or event.outcome == Number(value)

    @rule(one=consumes(arrived), fails=st.booleans(), size=st.integers(0, 9))
    def answer(self, one, fails, size):
        side, request_id, value = one
        if fails:
            self.say(side, self.sides[side].error(request_id, TargetFull()))
        else:
            self.say(side, self.sides[side].reply(request_id, ECHO, Number(value), size) + bytes(size))

    @invariant()
    def credits_hold(self):
        for session in self.sides:
            assert 0 <= session.in_flight <= 2 * CREDITS
            assert len(session._serving) <= CREDITS
            assert len(session._outstanding) <= CREDITS
            assert session._abandoned <= session._outstanding.keys()


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase

CONTROLS = st.one_of(
    st.binary(max_size=30),
    st.just(msgspec.msgpack.encode(Hello())),
    st.just(msgspec.msgpack.encode(Number(1))),
    st.builds(lambda value: msgspec.msgpack.encode([value]), st.integers(-(2**63), 2**64 - 1)),
    st.just(b"\x91" * 30_000),  # nested deeper than a decoder's stack
    st.just(b"\x91\xa1\xff"),  # not UTF-8
)
HEADERS = st.tuples(
    st.sampled_from(Kind), st.integers(0, 3), st.integers(0, 2000), st.integers(0, 5), st.integers(0, 1500)
)


@settings(deadline=None, max_examples=300)
@given(
    dialler=st.booleans(),
    greeted=st.booleans(),
    received=st.lists(st.tuples(HEADERS, CONTROLS), max_size=12),
)
def test_arbitrary_frames_break_nothing(dialler, greeted, received):
    session = Session(Hello(credits=CREDITS), METHODS, dialler=dialler)
    if greeted:
        received = [((Kind.HELLO, 0, 0, 0, 0), msgspec.msgpack.encode(Hello(credits=2))), *received]
    for (kind, method, status, request_id, payload_bytes), control in received:
        header = Header(kind, method, status, request_id, len(control), payload_bytes, 10)
        try:
            wanted = session.admit(header)
            event = session.receive(Frame(header, control, memoryview(bytes(payload_bytes if wanted else 0))), 0.0)
        except (ProtocolViolation, VersionMismatch, WrongCluster):
            return
        if isinstance(event, Refused):
            return
        assert len(session._serving) <= CREDITS
        if session.state is State.OPEN and session.may_request:
            session.request(ECHO, Number(1), 0, 10)
