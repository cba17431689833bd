"""The memory carrier: "memory:name". Links between tasks of one process, for tests.

Each direction holds a bounded number of bytes, like a socket's buffer, so that partial sends and waiting really
happen. Bytes are copied once, when they are sent.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from shoalfs.transport.errors import PeerUnreachable, UserError
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import KIB, LISTEN_BACKLOG
from shoalfs.transport.link import LinkInfo, stall_limit, unsent_part

_PIPE_BYTES_MAX: Final = 256 * KIB


class _Pipe:
    """One direction. Invariant: held_bytes is the size of all parts, at most _PIPE_BYTES_MAX."""

    def __init__(self) -> None:
        self.parts: deque[memoryview] = deque()
        self.held_bytes = 0
        self.writer_closed = False
        self.reader_closed = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def wait_change(self) -> None:
        await self._waiting.park()

    def changed(self) -> None:
        self._waiting.unpark_all()


class MemoryLink:
    def __init__(self, name: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._name = name
        self._incoming = incoming
        self._outgoing = outgoing
        self._unsent: list[Buffer] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def info(self) -> LinkInfo:
        return LinkInfo("memory")

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_into(self, view: memoryview) -> int:
        pipe = self._incoming
        await trio.lowlevel.checkpoint()
        while not pipe.parts:
            if pipe.writer_closed:
                return 0
            await pipe.wait_change()
        count = 0
        while pipe.parts and count < len(view):
            part = pipe.parts.popleft()
            taken = min(len(part), len(view) - count)
            view[count : count + taken] = part[:taken]
            if taken < len(part):
                pipe.parts.appendleft(part[taken:])
            count += taken
        pipe.held_bytes -= count
        pipe.changed()
        return count

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        assert not self._unsent
        pipe = self._outgoing
        if pipe.reader_closed or pipe.writer_closed:
            raise PeerUnreachable(f"{self._name}: closed")
        sent = 0
        for buffer in buffers:
            part = memoryview(buffer).cast("B")[: _PIPE_BYTES_MAX - pipe.held_bytes]
            if not part:
                break
            pipe.parts.append(memoryview(bytes(part)))
            pipe.held_bytes += len(part)
            sent += len(part)
        pipe.changed()
        self._unsent = unsent_part(buffers, sent)
        return not self._unsent

    async def drain(self) -> None:
        while self._unsent:
            if self._outgoing.held_bytes == _PIPE_BYTES_MAX and not self._outgoing.reader_closed:
                with stall_limit(self):
                    await self._outgoing.wait_change()
            buffers, self._unsent = self._unsent, []
            self.send_now(buffers)

    def close(self) -> None:
        self._outgoing.writer_closed = True
        self._incoming.reader_closed = True
        self._outgoing.changed()
        self._incoming.changed()


class MemoryListener:
    def __init__(self, fabric: "MemoryFabric", name: str) -> None:
        self._fabric = fabric
        self._name = name
        self._dialled = 0
        self._send, self._receive = trio.open_memory_channel[MemoryLink](LISTEN_BACKLOG)

    @property
    def address(self) -> str:
        return f"memory:{self._name}"

    async def accept(self) -> MemoryLink:
        return await self._receive.receive()

    def close(self) -> None:
        del self._fabric.listeners[self._name]
        self._send.close()
        while True:
            try:
                waiting = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            waiting.close()
        self._receive.close()

    def connect(self) -> MemoryLink:
        self._dialled += 1
        there, here = _Pipe(), _Pipe()
        try:
            self._send.send_nowait(MemoryLink(f"{self.address}#{self._dialled}", there, here))
        except trio.WouldBlock:
            raise PeerUnreachable(f"{self.address}: too many wait to be accepted") from None
        return MemoryLink(self.address, here, there)


class MemoryFabric:
    """The carrier, and the namespace in which its listeners are found: processes of one test share one."""

    scheme: Final = "memory"

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryListener] = {}

    async def dial(self, place: str) -> MemoryLink:
        await trio.lowlevel.checkpoint()
        listener = self.listeners.get(place)
        if listener is None:
            raise PeerUnreachable(f"memory:{place}: nobody listens there")
        return listener.connect()

    async def listen(self, place: str) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        if place in self.listeners:
            raise UserError(f"cannot listen on memory:{place}: another listens there")
        listener = self.listeners[place] = MemoryListener(self, place)
        return listener
