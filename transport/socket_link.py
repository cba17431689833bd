"""A link over a connected stream socket: what the unix and the tcp carrier share.

Works on the non-blocking socket itself, with recv_into and sendmsg: a receive that goes through a stream object
costs a copy of the payload and about 6 us more per round trip.
"""

import socket
from collections.abc import Sequence
from typing import Final

import trio

from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.frame import Buffer
from shoalfs.transport.link import LinkInfo, stall_limit, unsent_part

_BUFFERS_PER_SEND: Final = 1024  # IOV_MAX of Linux
_SOCKET_BUFFER_BYTES: Final = 1 << 20  # asked for; the kernel's wmem_max and rmem_max may allow less


class SocketLink:
    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._name = name
        self._emptied = True  # the last receive took all there was, so the next one must wait
        self._unsent: list[Buffer] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def info(self) -> LinkInfo:
        return LinkInfo(self._name.partition(":")[0])

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_into(self, view: memoryview) -> int:
        if not self._emptied:
            await trio.lowlevel.checkpoint()
        while True:
            if self._emptied:
                await trio.lowlevel.wait_readable(self._sock)
            try:
                count = self._sock.recv_into(view)
            except BlockingIOError:
                self._emptied = True
                continue
            except OSError as error:
                raise self._broken(error) from error
            self._emptied = count < len(view)
            return count

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        assert not self._unsent
        try:
            sent = self._sock.sendmsg(buffers[:_BUFFERS_PER_SEND])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._broken(error) from error
        self._unsent = unsent_part(buffers, sent)
        return not self._unsent

    async def drain(self) -> None:
        while self._unsent:
            with stall_limit(self):
                await trio.lowlevel.wait_writable(self._sock)
            buffers, self._unsent = self._unsent, []
            self.send_now(buffers)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def _broken(self, error: OSError) -> PeerUnreachable:
        return PeerUnreachable(f"{self._name}: {error.strerror}")


def widen_buffers(sock: socket.socket) -> None:
    """Ask for socket buffers that hold a good part of a chunk. For unix sockets: tcp sizes its own."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)


async def connect(sock: socket.socket, address: str | tuple[object, ...]) -> None:
    """Connect a socket. Raises OSError. Cancelled or failed: the caller still has to close it."""
    sock.setblocking(False)
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        sock.connect(address)
    except BlockingIOError:
        if sock.family == socket.AF_UNIX:
            raise  # the listener's queue is full, and nothing says when it is not
    else:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return
    await trio.lowlevel.wait_writable(sock)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "connect failed")


async def accept(sock: socket.socket) -> tuple[socket.socket, object]:
    """The next connection of a listening socket that does not block. Raises OSError."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue  # it went away between the queue and us
