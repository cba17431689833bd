"""A small service for the tests of the transport, and a place (carrier and address) to run it at."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotLeader, PosixError
from shoalfs.transport.limits import MIB
from shoalfs.transport.link import Link
from shoalfs.transport.method import Message, Method
from shoalfs.transport.network import Network, open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Call, Done, Service
from shoalfs.transport.session import Hello

CLUSTER = bytes(range(16))


class Number(Message, frozen=True):
    value: int


class Text(Message, frozen=True):
    text: str


ECHO = Method(1, "test.echo", Number, Number, 64 * MIB, 64 * MIB)
WAIT = Method(2, "test.wait", Number, Number)  # answers when `released`
FAIL = Method(3, "test.fail", Number, Number)
BACKWARDS = Method(4, "test.backwards", Number, Number)  # 0 waits until the others have been answered
ADMIN = Method(5, "test.admin", Number, Number, 64 * MIB, roles=frozenset({"admin"}))
BUG = Method(6, "test.bug", Number, Number)
NOTE = Method(7, "test.note", Number, Number, MIB)
KEEP = Method(8, "test.keep", Number, Number, 4 * MIB)  # holds its payload until `released`
CALL_BACK = Method(9, "test.call_back", Number, Number)
PROMPT = Method(10, "test.prompt", Number, Number, MIB, MIB)  # see `Server.prompt`
MISSING = Method(99, "test.missing", Number, Number, MIB)
ECHO_OF_TEXT = Method(1, "test.echo", Text, Text)  # what a client with another idea of method 1 sends


@dataclass
class Server:
    """A service, and what its handlers saw."""

    service: Service = field(default_factory=Service)
    released: trio.Event = field(default_factory=trio.Event)
    running: int = 0
    running_most: int = 0
    cancelled: int = 0
    notes: list[int] = field(default_factory=list)
    address: str = ""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    held: list[tuple[Done[Number], Number]] = field(default_factory=list)  # requests that a prompt has taken

    def __post_init__(self) -> None:
        self.service.add(ECHO, self.echo)
        self.service.add(WAIT, self.wait)
        self.service.add(FAIL, self.fail)
        self.service.add(BACKWARDS, self.backwards)
        self.service.add(ADMIN, self.echo_body)
        self.service.add(BUG, self.bug)
        self.service.add(NOTE, self.note)
        self.service.add(KEEP, self.wait)
        self.service.add(CALL_BACK, self.call_back)
        self.service.add(PROMPT, self.fail, self.prompt)

    async def echo(self, call: Call, request: Number, payload: memoryview) -> tuple[Number, memoryview]:
        return request, payload

    async def echo_body(self, call: Call, request: Number, payload: memoryview) -> Number:
        return request

    async def wait(self, call: Call, request: Number, payload: memoryview) -> Number:
        self.running += 1
        self.running_most = max(self.running, self.running_most)
        try:
            await self.released.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return request

    async def fail(self, call: Call, request: Number, payload: memoryview) -> Number:
        if request.value == 0:
            raise NotLeader("tcp:10.1.2.3:7400")
        raise PosixError(request.value, "no such thing")

    async def backwards(self, call: Call, request: Number, payload: memoryview) -> Number:
        if request.value == 0:
            await self.released.wait()
        return request

    def prompt(self, call: Call, request: Number, payload: memoryview, done: Done[Number]) -> bool:
        """Below 1,000 the handler is to do it; the rest are answered, kept in ``held``, or fail."""
        if request.value < 1000:
            return False
        if request.value == 1000:
            raise PosixError(errno.EPERM)
        if request.value == 1001:
            self.held.append((done, request))
        else:
            done((request, payload))
        return True

    async def bug(self, call: Call, request: Number, payload: memoryview) -> Number:
        raise ZeroDivisionError

    async def note(self, call: Call, request: Number, payload: memoryview) -> Number:
        await trio.lowlevel.checkpoint()
        self.notes.append(request.value)
        return request

    async def call_back(self, call: Call, request: Number, payload: memoryview) -> Number:
        reply = await call.connection.call(ECHO, Number(request.value + 1))
        return reply.body


@dataclass
class Place:
    """A carrier and an address on it."""

    carriers: Carriers
    address: str
    nursery: trio.Nursery

    async def start(self, server: Server | None = None, **hello: Any) -> Server:
        server = server or Server()
        greeting = Hello(**{"cluster_id": CLUSTER, "role": "mds", "name": "server"} | hello)

        async def run(task_status: trio.TaskStatus[str]) -> None:
            with server.scope:
                await serve(self.carriers, self.address, server.service, greeting, task_status=task_status)

        server.address = await self.nursery.start(run)
        return server

    @asynccontextmanager
    async def network(self, service: Service | None = None, **hello: Any) -> AsyncIterator[Network]:
        greeting = Hello(**{"cluster_id": CLUSTER, "role": "client", "name": "test"} | hello)
        async with open_network(self.carriers, greeting, service) as network:
            yield network

    async def raw_link(self, server: Server) -> Link:
        """A connection that says what the test likes."""
        link = await self.carriers.dial(server.address)
        try:
            await link.handshake()
        except BaseException:
            link.close()
            raise
        return link
