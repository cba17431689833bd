"""The network of the worlds of leases: what mounts send and are sent is late, is held up while a line is cut, and is
gone when it is reset. Virtual time, one seed."""

import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, open_session
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.link import LinkInfo
from shoalfs.transport.memory import MemoryFabric, MemoryLink
from shoalfs.transport.network import open_network
from shoalfs.transport.service import Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello


class Line:
    """What happens to the bytes of one mount, both ways: they are late; while it is cut they wait."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.cuts = 0  # not healed yet: faults overlap
        self.lot = trio.lowlevel.ParkingLot()
        self.links: list[MemoryLink] = []

    async def late(self) -> None:
        await trio.sleep(self.chance.choice((0.0, 0.0002, 0.001, 0.005)))
        while self.cuts:
            await self.lot.park()

    def cut(self) -> None:
        self.cuts += 1

    def heal(self) -> None:
        self.cuts -= 1
        self.lot.unpark_all()

    def reset(self) -> None:
        """Break all connections; what was on its way is gone."""
        for link in self.links:
            link.close()
        self.links.clear()


class LateLink:
    """A link whose arriving bytes pass a :class:`Line`."""

    def __init__(self, link: MemoryLink, line: Line) -> None:
        self._link, self._line = link, line
        self.send_now, self.drain = link.send_now, link.drain
        self.close, self.handshake = link.close, link.handshake

    @property
    def name(self) -> str:
        return self._link.name

    @property
    def info(self) -> LinkInfo:
        return self._link.info

    async def receive_into(self, view: memoryview) -> int:
        count = await self._link.receive_into(view)
        await self._line.late()
        return count


class SimFabric(MemoryFabric):
    """Links of a mount pass its line, whichever side receives."""

    def __init__(self) -> None:
        super().__init__()
        self.dialling: defaultdict[str, deque[Line]] = defaultdict(deque)  # by place, in the order of dialling

    async def listen(self, place: str) -> Any:
        return _LateListener(self.dialling[place], await super().listen(place))


class _LateListener:
    def __init__(self, dialling: deque[Line], listener: Any) -> None:
        self._dialling, self._listener = dialling, listener
        self.address = listener.address

    async def accept(self) -> LateLink:
        link = await self._listener.accept()
        line = self._dialling.popleft()
        line.links.append(link)
        return LateLink(link, line)

    def close(self) -> None:
        self._listener.close()
        self._dialling.clear()


class MountFabric:
    """The same for the side that dials: each mount has its own view."""

    scheme = "memory"

    def __init__(self, fabric: SimFabric, line: Line) -> None:
        self._fabric, self._line = fabric, line

    async def dial(self, place: str) -> LateLink:
        while self._line.cuts:
            await self._line.lot.park()
        link = await self._fabric.dial(place)
        self._fabric.dialling[place].append(self._line)
        self._line.links.append(link)
        return LateLink(link, self._line)

    async def listen(self, place: str) -> Any:
        raise AssertionError(place)


@asynccontextmanager
async def session_of(
    fabric: SimFabric, line: Line, addresses: list[str], name: str, coherent: Coherent, **how: Callable[..., Any]
) -> AsyncIterator[MdsClient]:
    """The session of one mount over its line, with the pushes of the leader going to ``coherent``."""
    service = Service()
    service.add(m.INVALIDATE, coherent.handle_invalidate)
    service.add(m.WRITE_BACK, coherent.handle_write_back)
    carriers = Carriers(MountFabric(fabric, line))
    hello = Hello(PROTOCOL_VERSION, b"", m.CLIENT, name)
    async with (
        open_network(carriers, hello, service, chance=line.chance.random) as network,
        open_session(
            network,
            addresses,
            name,
            writes=coherent.kept_writes,
            on_new_leader=coherent.meet_new_leader,
            **how,
        ) as session,
    ):
        coherent.begin(session)
        yield session
