"""One connection's conversation: hello, requests and their answers, credits, roles. Pure: no sockets, no clock.

Both sides are the same machine; the dialler only speaks first. Either side may ask, and whoever has a table of
methods answers.

The one rule: every request is answered exactly once, by a REPLY or an ERROR, however it ends. So a request id is
remembered until its answer comes, also when nobody waits for it any more; a peer never has more than ``credits``
requests outstanding; and an answer to an id that is not outstanding is a violation.

=========  ============================  ==========================================
state      frames allowed                leaves it
=========  ============================  ==========================================
GREETING   HELLO, ERROR                  a good HELLO -> OPEN
OPEN       REQUEST REPLY ERROR NOTIFY    :meth:`Session.close` -> CLOSED
CLOSED     none
=========  ============================  ==========================================

Every ShoalError that :meth:`Session.admit` or :meth:`Session.receive` raises ends the connection;
:meth:`Session.refusal` makes the frame that tells the peer why.
"""

import enum
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

import msgspec

from shoalfs.transport.errors import (
    BadMessage,
    NotAllowed,
    PeerUnreachable,
    ProtocolViolation,
    ShoalError,
    UnknownMethod,
    VersionMismatch,
    WrongCluster,
    from_wire,
    wire_code,
)
from shoalfs.transport.frame import Frame, Header, Kind, encode_head
from shoalfs.transport.limits import (
    CONTROL_BYTES_MAX,
    CREDITS_DEFAULT,
    CREDITS_MAX,
    ERROR_TEXT_BYTES_MAX,
    HELLO_BYTES_MAX,
    LINK_REASON_CHARS_MAX,
    REQUEST_TIMEOUT_MS_MAX,
)
from shoalfs.transport.method import AnyMethod, Message

PROTOCOL_VERSION: Final = 5


class Hello(Message, frozen=True):
    """What each side says first. ``cluster_id`` is 16 bytes, or empty: "any", for one that does not know it yet.

    ``role`` is "client", "chunkserver", "mds" or "admin"; ``name`` is for people; ``credits`` is how many requests
    the receiver of this hello may have outstanding at its sender. ``no_verbs``: why a dialler that may use verbs does
    not; empty if it does, or never meant to.
    """

    version: int = PROTOCOL_VERSION
    cluster_id: bytes = b""
    role: str = "client"
    name: str = ""
    credits: int = CREDITS_DEFAULT
    no_verbs: str = ""


class State(enum.Enum):
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


_LEGAL: Final = {
    State.GREETING: frozenset({Kind.HELLO, Kind.ERROR}),
    State.OPEN: frozenset({Kind.REQUEST, Kind.REPLY, Kind.ERROR, Kind.NOTIFY}),
    State.CLOSED: frozenset[Kind](),
}


# --- what a received frame means -------------------------------------------------------------------------------------
class Greeted(msgspec.Struct, frozen=True):
    """The peer's hello is good. ``answer`` is our own, to be sent (empty if it was sent before)."""

    answer: bytes


class Asked(msgspec.Struct, frozen=True):
    """Carry out this request and answer it, or, with request id 0, carry out this notification."""

    request_id: int
    method: AnyMethod
    request: Any
    payload: memoryview
    deadline: float  # on the clock of `now`; a notification has none (inf)


class Answered(msgspec.Struct, frozen=True):
    """A request of ours is answered, and its credit is back. ``outcome`` is the reply or the error that it met."""

    request_id: int
    outcome: Any
    payload: memoryview


class Late(msgspec.Struct, frozen=True):
    """An answer came that nobody waits for. Its credit is back."""


class Rejected(msgspec.Struct, frozen=True):
    """The request is not carried out. ``answer`` is to be sent (empty for a notification)."""

    answer: bytes
    reason: ShoalError


class Refused(msgspec.Struct, frozen=True):
    """The peer closes the connection for this reason."""

    reason: ShoalError


Event = Greeted | Asked | Answered | Late | Rejected | Refused

_encode: Final = msgspec.msgpack.Encoder().encode


_decoders: Final[dict[type[Any], Callable[[bytes], Any]]] = {}  # made once; bounded by the number of our messages


def _decode(kind: type[Any], control: bytes) -> Any:
    decode = _decoders.get(kind)
    if decode is None:
        decode = _decoders[kind] = msgspec.msgpack.Decoder(kind).decode
    try:
        return decode(control)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadMessage(f"{kind.__name__}: {error}") from None


class Session:
    """The state of one connection. ``methods`` is what this side answers to, by number."""

    def __init__(self, hello: Hello, methods: Mapping[int, AnyMethod], *, dialler: bool) -> None:
        assert 0 < hello.credits <= CREDITS_MAX, hello.credits
        assert len(hello.cluster_id) in (0, 16), hello.cluster_id
        self.state = State.GREETING
        self.peer = hello  # until the peer's own has come
        self._hello = hello
        self._methods = methods
        self._dialler = dialler
        self._last_id = 0
        self._abandoned: set[int] = set()  # Invariant: a subset of the keys of _outstanding
        self._outstanding: dict[int, AnyMethod] = {}  # Invariant: at most peer.credits
        self._serving: set[int] = set()  # Invariant: at most hello.credits

    # --- what the owner asks ---
    @property
    def may_request(self) -> bool:
        """There is credit for another request."""
        return len(self._outstanding) < self.peer.credits

    @property
    def in_flight(self) -> int:
        """Requests of both directions that are not answered yet."""
        return len(self._outstanding) + len(self._serving)

    # --- sending: each returns the bytes that precede the payload ---
    def greeting(self, no_verbs: str = "") -> bytes:
        """The hello of this side."""
        hello = msgspec.structs.replace(self._hello, no_verbs=no_verbs[:LINK_REASON_CHARS_MAX])
        return encode_head(Kind.HELLO, _encode(hello))

    def request(
        self, method: AnyMethod, body: msgspec.Struct, payload_bytes: int, timeout_ms: int
    ) -> tuple[int, bytes]:
        """A request and its id. Raises PeerUnreachable once closed, BadMessage if it is too large. Needs credit."""
        self._require_open()
        assert self.may_request
        assert 0 <= timeout_ms <= REQUEST_TIMEOUT_MS_MAX, timeout_ms
        control = _encode_bounded(method, body, payload_bytes, method.request_payload_bytes_max)
        self._last_id += 1
        self._outstanding[self._last_id] = method
        return self._last_id, encode_head(
            Kind.REQUEST,
            control,
            method=method.number,
            request_id=self._last_id,
            payload_bytes=payload_bytes,
            deadline_ms=timeout_ms,
        )

    def notification(self, method: AnyMethod, body: msgspec.Struct, payload_bytes: int) -> bytes:
        """A one-way message. Raises as :meth:`request`."""
        self._require_open()
        control = _encode_bounded(method, body, payload_bytes, method.request_payload_bytes_max)
        return encode_head(Kind.NOTIFY, control, method=method.number, payload_bytes=payload_bytes)

    def abandon(self, request_id: int) -> None:
        """Nobody waits for this answer any more. Its credit comes back with it. Unknown ids are ignored."""
        if request_id in self._outstanding:
            self._abandoned.add(request_id)

    def reply(self, request_id: int, method: AnyMethod, body: msgspec.Struct, payload_bytes: int) -> bytes:
        """Answer a request. Raises BadMessage, and has answered nothing, if the answer is too large."""
        control = _encode_bounded(method, body, payload_bytes, method.reply_payload_bytes_max)
        self._serving.remove(request_id)
        return encode_head(Kind.REPLY, control, request_id=request_id, payload_bytes=payload_bytes)

    def error(self, request_id: int, error: ShoalError) -> bytes:
        """Answer a request with an error."""
        self._serving.remove(request_id)
        return _error_frame(request_id, error)

    def refusal(self, reason: ShoalError) -> bytes:
        """The last frame to a peer whose connection is closed for this reason."""
        return _error_frame(0, reason)

    def close(self) -> None:
        self.state = State.CLOSED
        self._outstanding.clear()
        self._abandoned.clear()

    # --- receiving ---
    def admit(self, header: Header) -> bool:
        """Judge a frame by its header: see :class:`~shoalfs.transport.frame.Decoder`."""
        if header.kind not in _LEGAL[self.state]:
            raise ProtocolViolation(f"{header.kind.name} is not allowed while {self.state.value}")
        if self.state is State.GREETING:
            if header.control_bytes > HELLO_BYTES_MAX or header.payload_bytes:
                raise ProtocolViolation(f"a {header.kind.name} of {header.control_bytes} bytes before the hello")
            return False
        return _ADMIT[header.kind](self, header)

    def receive(self, frame: Frame, now: float) -> Event:
        """Take an admitted frame that came at ``now`` (seconds of the clock that deadlines are in)."""
        return _RECEIVE[frame.header.kind](self, frame, now)

    def _admit_request(self, header: Header) -> bool:
        if header.request_id == 0 or header.request_id in self._serving:
            raise ProtocolViolation(f"request id {header.request_id} is in use")
        if len(self._serving) >= self._hello.credits:
            raise ProtocolViolation(f"more than the granted {self._hello.credits} requests")
        return self._admit_notify(header)

    def _admit_notify(self, header: Header) -> bool:
        method = self._methods.get(header.method)
        if method is None or not self._allowed(method):
            return False
        if header.payload_bytes > method.request_payload_bytes_max:
            raise ProtocolViolation(f"{method} with {header.payload_bytes} payload bytes")
        return True

    def _admit_reply(self, header: Header) -> bool:
        method = self._outstanding.get(header.request_id)
        if method is None:
            raise ProtocolViolation(f"an answer to request {header.request_id}, which was not asked")
        if header.payload_bytes > method.reply_payload_bytes_max:
            raise ProtocolViolation(f"a reply to {method} with {header.payload_bytes} payload bytes")
        return header.request_id not in self._abandoned

    def _admit_error(self, header: Header) -> bool:
        if header.request_id and header.request_id not in self._outstanding:
            raise ProtocolViolation(f"an error to request {header.request_id}, which was not asked")
        if header.payload_bytes or header.status == 0 or header.control_bytes > ERROR_TEXT_BYTES_MAX:
            raise ProtocolViolation("a malformed error")
        return True

    def _receive_hello(self, frame: Frame, now: float) -> Event:
        try:
            peer: Hello = _decode(Hello, frame.control)
        except BadMessage as error:
            raise ProtocolViolation(str(error)) from None
        if peer.version != self._hello.version:
            raise VersionMismatch(f"peer speaks version {peer.version}, this side {self._hello.version}")
        if len(peer.cluster_id) not in (0, 16) or not 0 < peer.credits <= CREDITS_MAX:
            raise ProtocolViolation("a malformed hello")
        if peer.cluster_id and self._hello.cluster_id and peer.cluster_id != self._hello.cluster_id:
            raise WrongCluster(
                f"peer is of cluster {peer.cluster_id.hex()}, this side of {self._hello.cluster_id.hex()}"
            )
        self.peer = peer
        self.state = State.OPEN
        return Greeted(b"" if self._dialler else self.greeting())

    def _receive_request(self, frame: Frame, now: float) -> Event:
        header = frame.header
        if header.request_id:
            self._serving.add(header.request_id)
        try:
            method = self._method(header.method)
            request = _decode(method.request, frame.control)
        except ShoalError as error:
            return Rejected(self.error(header.request_id, error) if header.request_id else b"", error)
        deadline = now + min(header.deadline_ms, REQUEST_TIMEOUT_MS_MAX) / 1000 if header.request_id else inf
        return Asked(header.request_id, method, request, frame.payload, deadline)

    def _receive_reply(self, frame: Frame, now: float) -> Event:
        request_id = frame.header.request_id
        method = self._outstanding.pop(request_id)
        if request_id in self._abandoned:
            self._abandoned.remove(request_id)
            return Late()
        try:
            outcome: object = _decode(method.reply, frame.control)
        except BadMessage as error:
            outcome = error
        return Answered(request_id, outcome, frame.payload)

    def _receive_error(self, frame: Frame, now: float) -> Event:
        request_id = frame.header.request_id
        error = from_wire(frame.header.status, frame.control.decode("utf-8", "replace"))
        if request_id == 0 or self.state is State.GREETING:
            return Refused(error)
        del self._outstanding[request_id]
        if request_id in self._abandoned:
            self._abandoned.remove(request_id)
            return Late()
        return Answered(request_id, error, frame.payload)

    def _allowed(self, method: AnyMethod) -> bool:
        return not method.roles or self.peer.role in method.roles

    def _method(self, number: int) -> AnyMethod:
        method = self._methods.get(number)
        if method is None:
            raise UnknownMethod(f"method {number} is not offered here")
        if not self._allowed(method):
            raise NotAllowed(f"{method} is not for a peer of role {self.peer.role!r}: use a certificate of another")
        return method

    def _require_open(self) -> None:
        if self.state is not State.OPEN:
            raise PeerUnreachable("the connection is closed")


_ADMIT: Final[dict[Kind, Callable[[Session, Header], bool]]] = {
    Kind.REQUEST: Session._admit_request,
    Kind.NOTIFY: Session._admit_notify,
    Kind.REPLY: Session._admit_reply,
    Kind.ERROR: Session._admit_error,
}
_RECEIVE: Final[dict[Kind, Callable[[Session, Frame, float], Event]]] = {
    Kind.HELLO: Session._receive_hello,
    Kind.REQUEST: Session._receive_request,
    Kind.NOTIFY: Session._receive_request,
    Kind.REPLY: Session._receive_reply,
    Kind.ERROR: Session._receive_error,
}


def _encode_bounded(method: AnyMethod, body: msgspec.Struct, payload_bytes: int, payload_bytes_max: int) -> bytes:
    control = _encode(body)
    if len(control) > CONTROL_BYTES_MAX:
        raise BadMessage(f"{method}: {len(control)} control bytes; at most {CONTROL_BYTES_MAX} are allowed")
    if payload_bytes > payload_bytes_max:
        raise BadMessage(f"{method}: {payload_bytes} payload bytes; at most {payload_bytes_max} are allowed")
    return control


def _error_frame(request_id: int, error: ShoalError) -> bytes:
    text = str(error).encode("utf-8", "replace")[:ERROR_TEXT_BYTES_MAX]
    return encode_head(Kind.ERROR, text, status=wire_code(error), request_id=request_id)
