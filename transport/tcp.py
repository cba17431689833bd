"""The tcp carrier: "tcp:host:port", "tcp:[::1]:7400", port 0 for any.

With ``transport`` "auto" or "rdma" a connection may go on over verbs: see rdma_setup.

Without certificates it serves loopback addresses only, on both sides: what crosses a network is authenticated.
"""

import ipaddress
import socket
from typing import Final

import trio

from shoalfs.transport import socket_link
from shoalfs.transport.errors import PeerUnreachable, UserError
from shoalfs.transport.limits import (
    LISTEN_BACKLOG,
    TCP_KEEPALIVE_IDLE_S,
    TCP_KEEPALIVE_INTERVAL_S,
    TCP_KEEPALIVE_PROBES,
    TCP_USER_TIMEOUT_MS,
)
from shoalfs.transport.link import Link
from shoalfs.transport.rdma_setup import Accepted, Choice, Dialled, Transport
from shoalfs.transport.socket_link import SocketLink, connect
from shoalfs.transport.tls import TlsContexts, TlsLink, TlsPaths

_Endpoint = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class TcpCarrier:
    scheme: Final = "tcp"

    def __init__(self, tls: TlsPaths | None, choice: Choice | None = None) -> None:
        self._tls = TlsContexts(tls) if tls is not None else None
        self._choice = choice or Choice(Transport.TCP)

    async def dial(self, place: str) -> Link:
        host, port = _parse(place)
        failure: OSError | None = None
        for family, address in await _resolve(host, port):
            self._check_loopback(place, address[0])
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                await connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            link: Link = _link(sock, f"tcp:{place}")
            if self._tls is not None:
                link = TlsLink(link, self._tls.dialler, host)
            return link if self._choice.transport is Transport.TCP else Dialled(link, sock, self._choice)
        raise PeerUnreachable(f"tcp:{place}: {failure.strerror if failure else 'no address'}") from failure

    async def listen(self, place: str) -> "TcpListener":
        host, port = _parse(place)
        try:
            family, address = (await _resolve(host, port))[0]
        except PeerUnreachable as error:
            raise UserError(f"cannot listen on {error}") from error
        self._check_loopback(place, address[0])
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(LISTEN_BACKLOG)
        except OSError as error:
            sock.close()
            raise UserError(f"cannot listen on tcp:{place}: {error.strerror}") from error
        sock.setblocking(False)
        return TcpListener(sock, self._tls, self._choice)

    def _check_loopback(self, place: str, ip: str) -> None:
        if self._tls is None and not ipaddress.ip_address(ip.partition("%")[0]).is_loopback:
            raise UserError(
                f"tcp:{place} is not a loopback address and needs TLS: give the paths of ca, cert and key,"
                " or use 127.0.0.1 or a unix: address"
            )


class TcpListener:
    def __init__(self, sock: socket.socket, tls: TlsContexts | None, choice: Choice) -> None:
        self._sock = sock
        self._tls = tls
        self._choice = choice
        self._address = _format(sock.getsockname())

    @property
    def address(self) -> str:
        return self._address

    async def accept(self) -> Link:
        sock, peer = await socket_link.accept(self._sock)
        link: Link = _link(sock, _format(peer))
        if self._tls is not None:
            link = TlsLink(link, self._tls.acceptor, None)
        return Accepted(link, sock, self._choice)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


def _link(sock: socket.socket, name: str) -> SocketLink:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TCP_KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
    return SocketLink(sock, name)


def _parse(place: str) -> tuple[str, int]:
    host, colon, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(f"tcp:{place}: expected tcp:host:port, or tcp:[address]:port for IPv6")
    return host, int(port)


def _format(address: object) -> str:
    assert isinstance(address, tuple)
    host, port = address[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


async def _resolve(host: str, port: int) -> list[_Endpoint]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PeerUnreachable(f"tcp:{host}:{port}: {error.strerror}") from error
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]
