"""How two sides of a TCP connection come to use verbs, or do not.

The dialler decides: it offers, if it wants verbs and has a device; the acceptor answers; a probe shows whether the path
carries; a verdict ends the set-up. With ``auto`` everything that fails on the way leaves the TCP connection as it was,
and that goes on. With ``rdma`` it is an error of the dial.

The TCP connection (with its certificates) stays open below the verbs: whoever was authenticated on it is whom the keys
were told, and its end is the first sign that the peer died.
"""

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Final, Protocol, TypeVar

import trio

from shoalfs.transport.errors import PeerUnreachable, ProtocolViolation
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import RDMA_PROBE_MS
from shoalfs.transport.link import Link, LinkInfo
from shoalfs.transport.method import Message
from shoalfs.transport.rdma_link import QueuePair, VerbsLink
from shoalfs.transport.rdma_rest import Rests
from shoalfs.transport.rdma_table import NoVerbs
from shoalfs.transport.rdma_wire import (
    MAGIC,
    PREFIX_BYTES,
    Answer,
    Endpoint,
    Offer,
    Verdict,
    decode_setup,
    encode_setup,
    setup_length,
)

log = logging.getLogger("shoal.transport.rdma")
_T = TypeVar("_T", bound=Message)
_NO_DATA: Final = b""


class Transport(Enum):
    """What a process wants between machines."""

    AUTO = "auto"  # verbs where both sides have them and they carry, else TCP
    RDMA = "rdma"  # dial with verbs or not at all
    TCP = "tcp"


class Pair(QueuePair, Protocol):
    """A queue pair that is not connected yet. `transport/rdma.py` has the real one."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def offer(self) -> Offer:
        """What a dialler says of itself."""
        ...

    def connect(self, peer: Endpoint, offer: Offer | None = None) -> None:
        """Connect to the peer's queue pair; an acceptor gives the dialler's ``offer``. Raises NoVerbs."""
        ...

    def keep(self, beside: Link) -> None:
        """The TCP link is closed together with this pair."""
        ...


class Devices(Protocol):
    """What a machine has of verbs."""

    def pair(self, local_ip: str, fd: int, name: str, *, pulls: bool) -> Pair:
        """A queue pair on the port that ``local_ip`` belongs to. ``fd`` is of the TCP socket. Raises NoVerbs."""
        ...


class Choice:
    """What this process does about verbs. pyverbs is loaded here if they are wanted and no ``devices`` are given, so
    that no dial waits for it."""

    def __init__(
        self, transport: Transport, devices: Devices | None = None, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self.transport = transport
        self.clock = clock
        self.rests = Rests()
        self._verbs = None if transport is Transport.TCP else devices
        self._unavailable = f'transport is "{transport.value}"'
        if transport is not Transport.TCP and devices is None:
            try:
                from shoalfs.transport import rdma
            except ImportError as error:
                self._unavailable = f"pyverbs cannot be loaded: {error}"
            else:
                self._verbs = rdma.process_verbs()

    @property
    def unavailable(self) -> str:
        """Why this process uses no verbs at all; empty if it may."""
        return self._unavailable if self._verbs is None else ""

    def pair(self, sock: socket.socket, name: str, *, pulls: bool) -> Pair:
        """A queue pair beside this socket. Raises PeerUnreachable, with the reason, if there can be none."""
        if self._verbs is None:
            raise PeerUnreachable(self._unavailable)
        local_ip = sock.getsockname()[0]
        if not pulls and self.transport is Transport.AUTO and _is_loopback(local_ip):
            raise PeerUnreachable("a loopback address")
        try:
            return self._verbs.pair(local_ip, sock.fileno(), name, pulls=pulls)
        except NoVerbs as error:
            raise PeerUnreachable(str(error)) from error


class _Switch:
    """A link that decides in its handshake which other link it is from then on."""

    def __init__(self, below: Link, sock: socket.socket, choice: Choice) -> None:
        self._path: Link = below
        self._sock = sock
        self._choice = choice
        self.reason = ""  # why it is not verbs

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def info(self) -> LinkInfo:
        return self._path.info if isinstance(self._path, VerbsLink) else replace(self._path.info, reason=self.reason)

    async def receive_into(self, view: memoryview) -> int:
        return await self._path.receive_into(view)

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        return self._path.send_now(buffers)

    async def drain(self) -> None:
        await self._path.drain()

    def close(self) -> None:
        self._path.close()

    # --- the messages of the set-up ---
    async def _say(self, message: Message) -> None:
        if not self._path.send_now([encode_setup(message)]):
            await self._path.drain()

    async def _hear(self, kind: type[_T], have: bytes = _NO_DATA) -> _T:
        """``have``: what is read already. Raises PeerUnreachable at the end of the stream, ProtocolViolation if it is
        something else."""
        have += await self._read(PREFIX_BYTES - len(have))
        whole = PREFIX_BYTES + setup_length(have[:PREFIX_BYTES]) if len(have) >= PREFIX_BYTES else PREFIX_BYTES + 1
        have += await self._read(whole - len(have))
        if len(have) < whole:
            raise PeerUnreachable(f"{self.name}: closed while verbs were set up")
        if len(have) > whole:
            raise ProtocolViolation("more than was due while verbs were set up")
        return decode_setup(kind, have[PREFIX_BYTES:])

    async def _read(self, size_bytes: int) -> bytes:
        """So many bytes, fewer at the end of the stream."""
        data = _NO_DATA
        while len(data) < size_bytes and (more := await self._read_some(size_bytes - len(data))):
            data += more
        return data

    async def _read_some(self, size_bytes_max: int) -> bytes:
        view = memoryview(bytearray(size_bytes_max))
        return bytes(view[: await self._path.receive_into(view)])

    def _use(self, link: VerbsLink, pair: Pair) -> None:
        pair.keep(self._path)
        self._path = link
        log.info("%s: over verbs", link.name)


class Dialled(_Switch):
    def __init__(self, below: Link, sock: socket.socket, choice: Choice) -> None:
        super().__init__(below, sock, choice)
        self._place = below.name

    async def handshake(self) -> None:
        await self._path.handshake()
        if self._choice.transport is Transport.AUTO:
            resting = self._choice.rests.reason(self._place, self._choice.clock())
            if resting:
                self._stay(resting)
                return
        try:
            pair = self._choice.pair(self._sock, self.name, pulls=False)
        except PeerUnreachable as error:
            self._stay(str(error))
            return
        link = VerbsLink(pair)
        try:
            self.reason = await self._connect(pair, link)
        except BaseException:
            pair.close()
            raise
        if self.reason:
            pair.close()
            self._stay(self.reason)
        else:
            self._use(link, pair)

    async def receive_into(self, view: memoryview) -> int:
        with self._watched():
            return await super().receive_into(view)

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        with self._watched():
            return super().send_now(buffers)

    async def drain(self) -> None:
        with self._watched():
            await super().drain()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Verbs that break while the peer is there are left alone for a while."""
        try:
            yield
        except PeerUnreachable as error:
            if isinstance(self._path, VerbsLink) and not self._path.peer_gone and not _has_hung_up(self._sock):
                self._choice.rests.begin(self._place, f"verbs broke: {error}", self._choice.clock())
            raise

    async def _connect(self, pair: Pair, link: VerbsLink) -> str:
        """Why it cannot be; empty: the verbs carry."""
        await self._say(pair.offer)
        answer = await self._hear(Answer)
        if answer.endpoint is None:
            return f"the peer declined: {answer.reason}"
        reason = ""
        try:
            pair.connect(answer.endpoint)
            with trio.fail_after(RDMA_PROBE_MS / 1000):
                await link.probe()
        except (NoVerbs, PeerUnreachable) as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = f"the verbs path carried nothing within {RDMA_PROBE_MS} ms"
            self._choice.rests.begin(self._place, reason, self._choice.clock())
        await self._say(Verdict(not reason, reason))
        return reason

    def _stay(self, reason: str) -> None:
        if self._choice.transport is Transport.RDMA:
            raise PeerUnreachable(f'{self.name}: transport is "rdma", but: {reason}')
        self.reason = reason
        log.info("%s: over TCP: %s", self.name, reason)


class Accepted(_Switch):
    """Whether the dialler offers is seen in the first bytes that it sends, so the choice falls in the first receive."""

    def __init__(self, below: Link, sock: socket.socket, choice: Choice) -> None:
        super().__init__(below, sock, choice)
        self._settled = False
        self._first = _NO_DATA  # of the stream, read while looking for an offer

    async def handshake(self) -> None:
        await self._path.handshake()

    async def receive_into(self, view: memoryview) -> int:
        while not self._settled:
            count = await super().receive_into(view[len(self._first) :])
            self._first += bytes(view[len(self._first) :][:count])  # kept here if a later receive is cancelled
            view[: len(self._first)] = self._first
            if count and len(self._first) < min(len(MAGIC), len(view)) and MAGIC.startswith(self._first):
                continue
            self._settled = True
            first, self._first = self._first, _NO_DATA
            if not first.startswith(MAGIC):
                self.reason = self._choice.unavailable or "the dialler did not ask for verbs"
                return len(first)
            await self._answer(first)
        return await super().receive_into(view)

    async def _answer(self, first: bytes) -> None:
        offer = await self._hear(Offer, first)
        try:
            pair = self._prepare(offer)
        except PeerUnreachable as error:
            self.reason = str(error)
            await self._say(Answer(None, self.reason))
            return
        try:
            await self._say(Answer(pair.endpoint))
            verdict = await self._hear(Verdict)
        except BaseException:
            pair.close()
            raise
        if verdict.verbs:
            self._use(VerbsLink(pair), pair)
        else:
            self.reason = verdict.reason
            pair.close()

    def _prepare(self, offer: Offer) -> Pair:
        if not offer.fits:
            raise PeerUnreachable("another version of the verbs carrier")
        pair = self._choice.pair(self._sock, self.name, pulls=True)
        try:
            pair.connect(offer.endpoint, offer)
        except NoVerbs as error:
            pair.close()
            raise PeerUnreachable(str(error)) from error
        return pair


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip.partition("%")[0]).is_loopback


def _has_hung_up(sock: socket.socket) -> bool:
    """The peer has closed this connection, or died: which may be known before anybody was woken for it."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == _NO_DATA
    except BlockingIOError:
        return False
    except OSError:
        return True
