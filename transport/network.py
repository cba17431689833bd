"""The calling side: one connection to each address, dialled when it is needed and dialled again after it broke.

A dial is made once for all who wait for it, in a task of the network, so that a caller who gives up hurts nobody.
After a failed dial the address rests, doubly as long each time, up to REDIAL_MS_MAX, and calls fail at once with what
that dial met: whether another peer will do is for the caller to say.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Final

import trio

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import DeadlineExceeded, Overloaded, PeerUnreachable, ShoalError, UserError
from shoalfs.transport.frame import Payload
from shoalfs.transport.limits import (
    CONNECTIONS_MAX,
    DIAL_TIMEOUT_MS,
    PAYLOAD_IN_FLIGHT_BYTES_MAX,
    REDIAL_MS_MAX,
    REDIAL_MS_MIN,
    REQUEST_TIMEOUT_MS_DEFAULT,
)
from shoalfs.transport.method import A, Method, Q
from shoalfs.transport.room import PayloadRoom
from shoalfs.transport.rpc import Connection, Reply
from shoalfs.transport.service import Service
from shoalfs.transport.session import Hello

_RANDOM: Final = secrets.SystemRandom()


def rest_ms(failures: int, chance: float) -> int:
    """How long an address rests after its ``failures``-th failed dial in a row. ``chance`` is in [0, 1)."""
    longest = min(REDIAL_MS_MAX, REDIAL_MS_MIN << min(failures - 1, 16))
    return round(longest * (0.5 + chance / 2))


class _Peer:
    """What is known of one address. It is connected, or being dialled, or at rest until a time (which may be past)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.dialling: trio.Event | None = None  # set when that dial has ended either way
        self.broken = trio.Event()  # set when the connection ends
        self.scope = trio.CancelScope()  # of the task that dials and then runs the connection
        self.failure: ShoalError | UserError | None = None  # of the last dial
        self.failures = 0
        self.rests_until = -inf


class Network:
    """See :func:`open_network`. ``counters``: dials, dials_failed, notifications_dropped, ..."""

    def __init__(
        self,
        carriers: Carriers,
        hello: Hello,
        nursery: trio.Nursery,
        service: Service,
        chance: Callable[[], float],
    ) -> None:
        self.counters = service.counters
        self._carriers = carriers
        self._hello = hello
        self._nursery = nursery
        self._service = service
        self._chance = chance
        self._room = PayloadRoom(PAYLOAD_IN_FLIGHT_BYTES_MAX)
        self._peers: dict[str, _Peer] = {}  # Invariant: at most CONNECTIONS_MAX

    async def call(
        self,
        address: str,
        method: Method[Q, A],
        request: Q,
        payload: Payload = b"",
        *,
        timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    ) -> Reply[A]:
        """:meth:`Connection.call` to the peer at ``address``; ``timeout_ms`` covers dialling, too.

        Raises in addition WrongCluster, VersionMismatch and NotAllowed if the peer refuses this process, UserError if
        the address can never work, Overloaded if there are too many connections. Nothing is repeated.
        """
        peer = self._peer(address)
        if peer.connection is None:
            deadline = trio.current_time() + timeout_ms / 1000
            with trio.move_on_at(deadline):
                await self._wait_connected(peer)
            timeout_ms = round((deadline - trio.current_time()) * 1000)
        if peer.connection is None or timeout_ms <= 0:
            raise DeadlineExceeded(f"{method} to {address}: not connected in time")
        return await peer.connection.call(method, request, payload, timeout_ms=timeout_ms)

    async def hello(self, address: str) -> Hello:
        """What the peer at ``address`` says of itself; connects if necessary. Raises as :meth:`call`."""
        peer = self._peer(address)
        if peer.connection is None:
            await self._wait_connected(peer)
        assert peer.connection is not None
        return peer.connection.peer

    async def notify(self, address: str, method: Method[Q, A], request: Q, payload: Payload = b"") -> None:
        """Send a one-way message if this address is connected and takes it; else drop and count it, and dial.

        Messages that arrive do so in the order in which they were sent. Raises UserError, BadMessage, Overloaded.
        """
        peer = self._peer(address)
        if peer.connection is None or peer.connection.backlogged:
            self.counters["notifications_dropped"] += 1
            if peer.connection is None:
                self._dial(peer)
            return
        try:
            await peer.connection.notify(method, request, payload)
        except PeerUnreachable:
            self.counters["notifications_dropped"] += 1

    def heard_at(self, address: str) -> float:
        """When anything was last received from this address, on trio's clock; -inf if there is no connection."""
        peer = self._peers.get(address)
        return -inf if peer is None or peer.connection is None else peer.connection.heard_at

    async def wait_broken(self, address: str) -> None:
        """Return when the connection to this address has ended; at once if there is none."""
        peer = self._peer(address)
        if peer.connection is not None:
            await peer.broken.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def drop(self, address: str) -> None:
        """Close the connection to this address, if there is one, and forget what was known of it."""
        peer = self._peers.pop(address, None)
        if peer is not None:
            if peer.connection is not None:
                peer.connection.close()
            peer.scope.cancel()
        await trio.lowlevel.checkpoint()

    def _peer(self, address: str) -> _Peer:
        peer = self._peers.get(address)
        if peer is None:
            if len(self._peers) >= CONNECTIONS_MAX:
                raise Overloaded(f"{address}: already {CONNECTIONS_MAX} peers")
            peer = self._peers[address] = _Peer(address)
        return peer

    async def _wait_connected(self, peer: _Peer) -> None:
        """Raises what the dial met."""
        self._dial(peer)
        if peer.dialling is not None:
            await peer.dialling.wait()
        if peer.connection is None:
            raise peer.failure or PeerUnreachable(f"{peer.address}: dropped")

    def _dial(self, peer: _Peer) -> None:
        """Begin to dial, unless that is being done or the address rests."""
        if peer.dialling is None and trio.current_time() >= peer.rests_until:
            peer.dialling = trio.Event()
            peer.scope = trio.CancelScope()  # a scope serves once
            self._nursery.start_soon(self._connect_and_run, peer)

    async def _connect_and_run(self, peer: _Peer) -> None:
        assert peer.dialling is not None
        with peer.scope:
            try:
                peer.connection = await self._connect(peer.address)
            except (ShoalError, UserError) as error:
                self.counters["dials_failed"] += 1
                peer.failure = error
                peer.failures += 1
                peer.rests_until = trio.current_time() + rest_ms(peer.failures, self._chance()) / 1000
                return
            finally:
                peer.dialling.set()
                peer.dialling = None
            peer.failures = 0
            peer.broken = trio.Event()
            try:
                await peer.connection.run()
            finally:
                peer.connection = None
                peer.broken.set()

    async def _connect(self, address: str) -> Connection:
        self.counters["dials"] += 1
        try:
            with trio.fail_after(DIAL_TIMEOUT_MS / 1000):
                link = await self._carriers.dial(address)
                connection = Connection(link, self._hello, self._service, self._room, dialler=True)
                await connection.greet()
        except trio.TooSlowError:
            raise PeerUnreachable(f"{address}: no connection within {DIAL_TIMEOUT_MS} ms") from None
        return connection


@asynccontextmanager
async def open_network(
    carriers: Carriers,
    hello: Hello,
    service: Service | None = None,
    *,
    chance: Callable[[], float] = _RANDOM.random,
) -> AsyncIterator[Network]:
    """A :class:`Network` for as long as the block lasts. ``service`` answers what the peers ask over the connections
    that this side dialled (a server's push); nothing, if it is not given. ``chance`` spreads the pauses."""
    async with trio.open_nursery() as nursery:
        try:
            yield Network(carriers, hello, nursery, service or Service(), chance)
        finally:
            nursery.cancel_scope.cancel()
