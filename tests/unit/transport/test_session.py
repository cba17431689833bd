"""The session's table, state by state, and what its answers are."""

import itertools

import msgspec
import pytest

from shoalfs.transport.errors import (
    BadMessage,
    NotAllowed,
    PeerUnreachable,
    ProtocolViolation,
    TargetFull,
    UnknownMethod,
    VersionMismatch,
    WrongCluster,
    from_wire,
)
from shoalfs.transport.frame import Decoder, Frame, Header, Kind
from shoalfs.transport.limits import (
    CONTROL_BYTES_MAX,
    ERROR_TEXT_BYTES_MAX,
    HELLO_BYTES_MAX,
    REQUEST_TIMEOUT_MS_MAX,
)
from shoalfs.transport.method import Message, Method
from shoalfs.transport.session import (
    PROTOCOL_VERSION,
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


class Blob(Message, frozen=True):
    data: bytes


ECHO = Method(1, "echo", Number, Number, 100, 100)
ADMIN = Method(2, "admin", Number, Number, 100, 100, frozenset({"admin"}))
BLOB = Method(3, "blob", Blob, Blob)
METHODS = {method.number: method for method in (ECHO, ADMIN, BLOB)}
ONE, TWO = bytes(16), bytes(range(16))


def receive(session, data, now=0.0):
    decoder = Decoder(session.admit)
    view = decoder.writable()
    view[: len(data)] = data
    decoder.received(len(data))
    frame = decoder.next_frame()
    assert frame is not None
    return session.receive(frame, now)


def pair(client=None, server=None):
    """Two sessions after their hellos."""
    one = Session(client or Hello(name="client"), {}, dialler=True)
    two = Session(server or Hello(name="server", role="mds", credits=2), METHODS, dialler=False)
    event = receive(two, one.greeting())
    assert receive(one, event.answer) == Greeted(b"")
    return one, two


def header(kind, method=0, status=0, request_id=0, control_bytes=0, payload_bytes=0):
    return Header(kind, method, status, request_id, control_bytes, payload_bytes, 0)


def test_hellos_are_exchanged():
    one, two = pair()
    assert (one.peer.name, two.peer.name) == ("server", "client")
    assert one.state is two.state is State.OPEN


LEGAL = {
    (State.GREETING, Kind.HELLO),
    (State.GREETING, Kind.ERROR),
    *((State.OPEN, kind) for kind in (Kind.REQUEST, Kind.REPLY, Kind.ERROR, Kind.NOTIFY)),
}


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, Kind)))
def test_every_kind_in_every_state(state, kind):
    one, _ = pair()
    one.request(ECHO, Number(1), 0, 10)
    one.state = state
    fitting = header(kind, method=1, status=2 if kind is Kind.ERROR else 0, request_id=1)
    if (state, kind) in LEGAL:
        one.admit(fitting)
    else:
        with pytest.raises(ProtocolViolation, match="not allowed while"):
            one.admit(fitting)


@pytest.mark.parametrize(
    ("mine", "theirs", "fine"),
    [(ONE, ONE, True), (ONE, TWO, False), (ONE, b"", True), (b"", ONE, True), (b"", b"", True)],
)
def test_clusters_match_or_are_unknown(mine, theirs, fine):
    session = Session(Hello(cluster_id=mine), {}, dialler=False)
    hello = Session(Hello(cluster_id=theirs), {}, dialler=True).greeting()
    if fine:
        assert isinstance(receive(session, hello), Greeted)
    else:
        with pytest.raises(WrongCluster):
            receive(session, hello)


def test_another_version_is_refused_by_name():
    with pytest.raises(VersionMismatch):
        receive(
            Session(Hello(), {}, dialler=False),
            Session(Hello(version=PROTOCOL_VERSION + 1), {}, dialler=True).greeting(),
        )


def test_a_refusal_is_heard_before_and_after_the_hello():
    refusal = Session(Hello(), {}, dialler=False).refusal(WrongCluster("not ours"))
    for session in (Session(Hello(), {}, dialler=True), pair()[0]):
        event = receive(session, refusal)
        assert isinstance(event, Refused)
        assert isinstance(event.reason, WrongCluster)
        assert str(event.reason) == "not ours"


def test_only_small_frames_before_the_hello():
    session = Session(Hello(), METHODS, dialler=False)
    session.admit(header(Kind.HELLO, control_bytes=HELLO_BYTES_MAX))
    with pytest.raises(ProtocolViolation):
        session.admit(header(Kind.HELLO, control_bytes=HELLO_BYTES_MAX + 1))
    with pytest.raises(ProtocolViolation):
        session.admit(header(Kind.HELLO, control_bytes=5, payload_bytes=1))


def test_a_request_and_its_reply():
    one, two = pair()
    request_id, data = one.request(ECHO, Number(5), 0, 1500)
    asked = receive(two, data, now=100.0)
    assert asked == Asked(request_id, ECHO, Number(5), memoryview(b""), 101.5)
    assert (one.in_flight, two.in_flight) == (1, 1)
    answered = receive(one, two.reply(request_id, ECHO, Number(6), 0))
    assert answered == Answered(request_id, Number(6), memoryview(b""))
    assert (one.in_flight, two.in_flight) == (0, 0)


def test_a_deadline_is_cut_to_the_longest_allowed():
    _, two = pair()
    two.admit(header(Kind.REQUEST, method=1, request_id=9))
    frame = Frame(Header(Kind.REQUEST, 1, 0, 9, 2, 0, 2**32 - 1), b"\x91\x05", memoryview(b""))
    assert two.receive(frame, 0.0).deadline == REQUEST_TIMEOUT_MS_MAX / 1000


def test_an_error_as_the_answer():
    one, two = pair()
    request_id, data = one.request(ECHO, Number(5), 0, 1500)
    receive(two, data)
    answered = receive(one, two.error(request_id, TargetFull("98 %")))
    assert isinstance(answered.outcome, TargetFull)
    assert str(answered.outcome) == "98 %"


def test_the_text_of_an_error_is_cut():
    one, two = pair()
    request_id, data = one.request(ECHO, Number(5), 0, 1500)
    receive(two, data)
    answered = receive(one, two.error(request_id, TargetFull("é" * ERROR_TEXT_BYTES_MAX)))
    assert len(str(answered.outcome)) == ERROR_TEXT_BYTES_MAX // 2


@pytest.mark.parametrize(
    ("method", "body", "error"),
    [
        (Method(50, "none", Number, Number, 100), Number(1), UnknownMethod),
        (ADMIN, Number(1), NotAllowed),
        (Method(1, "echo", Blob, Blob, 100), Blob(b"x"), BadMessage),
    ],
)
def test_a_rejected_request_is_answered_and_gives_its_credit_back(method, body, error):
    one, two = pair()
    for _ in range(5):  # more than the credit
        request_id, data = one.request(method, body, 0, 10)
        event = receive(two, data)
        assert isinstance(event, Rejected)
        assert isinstance(event.reason, error)
        answered = receive(one, event.answer)
        assert answered.request_id == request_id
        assert isinstance(answered.outcome, error)


def test_a_rejected_notification_is_not_answered():
    one, two = pair()
    event = receive(two, one.notification(ADMIN, Number(1), 0))
    assert isinstance(event, Rejected)
    assert event.answer == b""


def test_credit_runs_out_and_comes_back():
    one, two = pair()
    first, data = one.request(ECHO, Number(1), 0, 10)
    receive(two, data)
    _, data = one.request(ECHO, Number(2), 0, 10)
    receive(two, data)
    assert not one.may_request
    receive(one, two.reply(first, ECHO, Number(1), 0))
    assert one.may_request
    one.request(ECHO, Number(3), 0, 10)


def test_an_abandoned_request_keeps_its_credit_until_the_answer():
    one, two = pair()
    asked = []
    for n in range(2):
        request_id, data = one.request(ECHO, Number(n), 0, 10)
        receive(two, data)
        one.abandon(request_id)
        asked.append(request_id)
    assert not one.may_request
    assert not one.admit(header(Kind.REPLY, request_id=asked[0], payload_bytes=50))  # nobody wants its payload
    assert receive(one, two.reply(asked[0], ECHO, Number(0), 0)) == Late()
    assert receive(one, two.error(asked[1], TargetFull())) == Late()
    assert one.in_flight == 0
    with pytest.raises(ProtocolViolation, match="not asked"):
        one.admit(header(Kind.REPLY, request_id=asked[0]))


def test_payloads_are_held_to_the_method():
    one, two = pair()
    request_id, _ = one.request(ECHO, Number(1), 100, 10)
    two.admit(header(Kind.REQUEST, 1, request_id=1, payload_bytes=100))
    with pytest.raises(ProtocolViolation):
        two.admit(header(Kind.REQUEST, 1, request_id=1, payload_bytes=101))
    assert one.admit(header(Kind.REPLY, request_id=request_id, payload_bytes=100))
    with pytest.raises(ProtocolViolation):
        one.admit(header(Kind.REPLY, request_id=request_id, payload_bytes=101))
    with pytest.raises(ProtocolViolation):
        one.admit(header(Kind.ERROR, status=2, request_id=request_id, payload_bytes=1))
    with pytest.raises(ProtocolViolation):
        one.admit(header(Kind.ERROR, status=0, request_id=request_id))


def test_a_payload_for_a_method_that_is_refused_is_not_kept():
    _, two = pair()
    assert two.admit(header(Kind.REQUEST, 1, request_id=1, payload_bytes=1))
    assert not two.admit(header(Kind.REQUEST, 2, request_id=1, payload_bytes=1))
    assert not two.admit(header(Kind.REQUEST, 77, request_id=1, payload_bytes=10**6))


def test_too_large_an_answer_can_still_be_answered_with_an_error():
    one, two = pair()
    request_id, data = one.request(BLOB, Blob(b""), 0, 10)
    receive(two, data)
    with pytest.raises(BadMessage):
        two.reply(request_id, BLOB, Blob(bytes(CONTROL_BYTES_MAX)), 0)
    with pytest.raises(BadMessage):
        two.reply(request_id, BLOB, Blob(b""), 1)
    assert isinstance(receive(one, two.error(request_id, BadMessage())).outcome, BadMessage)


def test_a_reply_that_does_not_decode_is_the_callers_error():
    one, two = pair()
    request_id, data = one.request(ECHO, Number(1), 0, 10)
    receive(two, data)
    answered = receive(one, two.reply(request_id, ECHO, Blob(b"not a number"), 0))
    assert isinstance(answered.outcome, BadMessage)
    assert one.state is State.OPEN


def test_a_closed_session_asks_nothing():
    one, _ = pair()
    one.close()
    with pytest.raises(PeerUnreachable):
        one.request(ECHO, Number(1), 0, 10)
    with pytest.raises(PeerUnreachable):
        one.notification(ECHO, Number(1), 0)


def test_a_newer_peer_may_send_more_fields():
    _, two = pair()
    control = msgspec.msgpack.encode([5, "a field of a later release"])
    frame = Frame(Header(Kind.REQUEST, 1, 0, 9, len(control), 0, 10), control, memoryview(b""))
    assert two.receive(frame, 0.0).request == Number(5)


def test_an_unknown_error_code_is_final():
    error = from_wire(4321, "from the future")
    assert str(error) == "from the future"
