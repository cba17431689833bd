"""Clients of a metadata group that remember what they were told, and find out whether it is still so.

    python metadata_load.py CONFIG.json

Each client works in a directory of its own, one operation at a time, so what it must find there at the end is known;
besides, each has a register (an extended attribute) that it counts up, and reads the registers of the others. Every
read is checked at once: it must not be older than what had been acknowledged before it began, nor newer than what was
ever asked for. One reader per node asks that node directly, whether it leads or not: a node that was stopped or cut off
must refuse, or tell the newest.

Runs until the file ``stop`` appears, then compares everything, and writes the file ``report``.
"""

import errno
import json
import os
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, caches_nothing, open_session
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.network import Network, open_network
from shoalfs.transport.session import Hello
from shoalfs.transport.tls import TlsPaths

CLIENTS = 4
WHO = m.ROOT_CREDENTIALS
REGISTER = b"user.register"


class Register:
    """A number that only one client writes. Invariant: acknowledged <= asked."""

    def __init__(self, ino: InodeId) -> None:
        self.ino = ino
        self.asked = 0
        self.acknowledged = 0

    def check(self, before: int, value: bytes | None, who: str) -> str | None:
        found = int(value or b"0")
        if before <= found <= self.asked:
            return None
        return f"{who} reads {found} in a register that was {before} when it asked, and never more than {self.asked}"


class Client:
    def __init__(self, number: int, session: MdsClient, directory: InodeId, register: Register) -> None:
        self.number, self.session, self.directory, self.register = number, session, directory, register
        self.chance = random.Random(number)
        self.names: dict[bytes, tuple[InodeId, int]] = {}  # what must be there: inode, permission bits
        self.count = 0
        self.done = 0
        self.longest_s = 0.0
        self.last_at = time.monotonic()

    async def step(self) -> None:
        began = time.monotonic()
        action = self.chance.choice(
            [self.create, self.create, self.count_up, self.rename, self.unlink, self.link, self.chmod]
        )
        await action()
        self.done += 1
        self.last_at = time.monotonic()
        self.longest_s = max(self.longest_s, self.last_at - began)

    async def create(self) -> None:
        self.count += 1
        name = b"f%07d" % self.count
        made = await self.session.mutate(m.Op.CREATE, m.Create(WHO, self.directory, name, 0o644, True), m.Created)
        self.names[name] = (made.inode.ino, 0o644)
        if self.chance.random() < 0.3:
            patch = m.Patch(0, name * 20)
            await self.session.mutate(m.Op.COMMIT_INLINE, m.CommitInline(made.inode.ino, (patch,)), m.Committed)

    async def count_up(self) -> None:
        register = self.register
        register.asked += 1
        value = b"%d" % register.asked
        await self.session.mutate(m.Op.SETXATTR, m.SetXattr(WHO, register.ino, REGISTER, value, 0), m.Entry)
        register.acknowledged = register.asked

    async def rename(self) -> None:
        if self.names:
            old = self.chance.choice(list(self.names))
            new = b"r-" + old[-12:] + b"%d" % self.done
            request = m.Rename(WHO, self.directory, old, self.directory, new)
            await self.session.mutate(m.Op.RENAME, request, m.Renamed)
            self.names[new] = self.names.pop(old)

    async def unlink(self) -> None:
        if len(self.names) > 20:
            name = self.chance.choice(list(self.names))
            await self.session.mutate(m.Op.UNLINK, m.Unlink(WHO, self.directory, name), m.Unlinked)
            del self.names[name]

    async def link(self) -> None:
        if self.names:
            name = self.chance.choice(list(self.names))
            new = b"l%07d" % self.done
            request = m.Link(WHO, self.names[name][0], self.directory, new)
            await self.session.mutate(m.Op.LINK, request, m.Entry)
            self.names[new] = self.names[name]

    async def chmod(self) -> None:
        if self.names:
            ino, _ = self.names[self.chance.choice(list(self.names))]
            mode = self.chance.choice([0o600, 0o640, 0o755])
            await self.session.mutate(m.Op.SETATTR, m.SetAttr(WHO, ino, mode=mode), m.Entry)
            self.names = {n: (i, mode if i == ino else old) for n, (i, old) in self.names.items()}

    async def verify(self) -> list[str]:
        """What is there against what was acknowledged."""
        found: dict[bytes, tuple[InodeId, int]] = {}
        cookie = 0
        while True:
            page = (await self.session.read(m.READDIR, m.ReadDir(WHO, self.directory, cookie, 1000))).body
            found |= {entry.name: (entry.inode.ino, entry.inode.mode & 0o7777) for entry in page.entries}
            if page.eof:
                break
            cookie = page.entries[-1].cookie
        wrong = [f"client {self.number}: lost: {name!r}" for name in self.names.keys() - found.keys()]
        wrong += [f"client {self.number}: came back, or twice: {name!r}" for name in found.keys() - self.names.keys()]
        wrong += [
            f"client {self.number}: {name!r} is {found[name]}, was acknowledged as {self.names[name]}"
            for name in found.keys() & self.names.keys()
            if found[name] != self.names[name]
        ]
        return wrong


class Load:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.clients: list[Client] = []
        self.wrong: list[str] = []
        self.reads = 0
        self.answers: dict[str, int] = {}  # of each node that was asked directly
        self.stopping = False

    async def run(self) -> None:
        tls = self.config.get("tls")
        carriers = Carriers.standard(TlsPaths(**tls) if tls else None)
        hello = Hello(role=m.CLIENT, name="load")
        async with AsyncExitStack() as stack:
            for number in range(CLIENTS):
                network = await stack.enter_async_context(open_network(carriers, hello, caches_nothing()))
                session = await stack.enter_async_context(
                    open_session(network, self.config["addresses"], f"load-{number}")
                )
                self.clients.append(await self._client(number, session))
            network = await stack.enter_async_context(open_network(carriers, hello, caches_nothing()))
            async with trio.open_nursery() as nursery:
                for client in self.clients:
                    nursery.start_soon(self._work, client)
                    nursery.start_soon(self._read, client)
                async with trio.open_nursery() as askers:
                    for address in self.config["addresses"]:
                        askers.start_soon(self._ask, network, address)
                    await self._until_stopped()
                    askers.cancel_scope.cancel()
            for client in self.clients:
                self.wrong += await client.verify()
        self._write("report", finished=True)

    async def _client(self, number: int, session: MdsClient) -> Client:
        made = await session.mutate(m.Op.MKDIR, m.Mkdir(WHO, ROOT_INODE, b"client-%d" % number, 0o755), m.Entry)
        request = m.Create(WHO, ROOT_INODE, b"register-%d" % number, 0o644, True)
        register = await session.mutate(m.Op.CREATE, request, m.Created)
        return Client(number, session, made.inode.ino, Register(register.inode.ino))

    async def _work(self, client: Client) -> None:
        while not self.stopping:
            try:
                await client.step()
            except PosixError as error:
                # None of what is asked for can be refused: a name that is there already was made twice.
                self.wrong.append(f"client {client.number}: {errno.errorcode[error.errno]}: {error}")
                return

    async def _read(self, reader: Client) -> None:
        """Registers of all, through the leader."""
        while not self.stopping:
            register = reader.chance.choice(self.clients).register
            await self._look(register, reader.session.read, f"client {reader.number}")
            await trio.sleep(0.005)

    async def _look(self, register: Register, call: Any, who: str) -> None:
        before = register.acknowledged
        try:
            value = (await call(m.GETXATTR, m.GetXattr(WHO, register.ino, REGISTER))).body.value
        except PosixError as error:
            if error.errno != errno.ENODATA:
                raise
            value = None
        self.reads += 1
        wrong = register.check(before, value, who)
        if wrong:
            self.wrong.append(wrong)

    async def _ask(self, network: Network, address: str) -> None:
        """Registers, of one node, whatever it is; up to 20 s, so that a stopped node answers when it goes on."""

        async def call(method: Any, request: Any) -> Any:
            return await network.call(address, method, request, timeout_ms=20_000)

        chance = random.Random(address)
        while True:
            try:
                await self._look(chance.choice(self.clients).register, call, address)
                self.answers[address] = self.answers.get(address, 0) + 1
            except ShoalError:
                await trio.sleep(0.02)
            await trio.sleep(0.005)

    async def _until_stopped(self) -> None:
        while not os.path.exists(self.config["stop"]):  # noqa: ASYNC240 - a look at a local file
            self._write("progress", finished=False)
            await trio.sleep(0.1)
        self.stopping = True

    def _write(self, key: str, *, finished: bool) -> None:
        path = Path(self.config[key])
        told = {
            "finished": finished,
            "operations": sum(client.done for client in self.clients),
            "reads": self.reads,
            "answers": self.answers,
            "longest_s": max((client.longest_s for client in self.clients), default=0.0),
            "waiting_s": max((time.monotonic() - client.last_at for client in self.clients), default=0.0),
            "names": sum(len(client.names) for client in self.clients),
            "wrong": self.wrong[:20],
        }
        path.with_suffix(".new").write_text(json.dumps(told))
        path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    trio.run(Load(json.loads(Path(sys.argv[1]).read_text())).run)
