"""A cluster in this process over the memory carrier, and mounts of it without a kernel: real services, real disks."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.keeper import TargetOptions
from shoalfs.chunkserver.server import ServerOptions
from shoalfs.chunkserver.server import run as run_chunkserver
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.handles import OPENED_NATIVELY, Handles
from shoalfs.fs.parts import Parts
from shoalfs.fs.releases import Releases
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.client import MdsClient, open_session
from shoalfs.mds.messages import CLIENT, INVALIDATE, ROOT_CREDENTIALS, WRITE_BACK
from shoalfs.mds.server import MdsOptions
from shoalfs.mds.server import run as run_mds
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import SessionGone
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import SESSION_TTL_MS
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.service import Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

MDS = "memory:mds"


@dataclass
class Kernel:
    """Writes down what the kernel would be told."""

    pages: list[InodeId] = field(default_factory=list)
    attributes: list[InodeId] = field(default_factory=list)
    names: int = 0

    def forget_names(self) -> None:
        self.names += 1

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        self.pages += inodes
        await trio.lowlevel.checkpoint()

    def forget_pages(self, ino: InodeId) -> None:
        self.pages.append(ino)

    def forget_attributes(self, ino: InodeId) -> None:
        self.attributes.append(ino)

    async def forgotten_pages(self, ino: InodeId) -> None:
        self.pages.append(ino)


def node_of(attributes: bytes) -> int:
    """The number in a struct fuse_attr."""
    return int.from_bytes(attributes[:8], sys.byteorder)


@dataclass
class CompiledPart:
    """What the compiled part looks up, opens, closes and answers by itself (fs/native/opens.h, names.h, bare.h), in
    Python."""

    opens: dict[int, int] = field(default_factory=dict)  # of each inode that is offered
    data: dict[int, bytes] = field(default_factory=dict)  # of those whose bytes are there
    through: list[int] = field(default_factory=list)
    names: dict[tuple[int, bytes], bytes] = field(default_factory=dict)  # attributes of what they lead to
    bare: set[int] = field(default_factory=set)
    number: int = OPENED_NATIVELY

    def offer(self, node: int, keep: bool, data: bytes | memoryview | None = None, /) -> bool:
        self.opens.setdefault(node, 0)
        self.data.pop(node, None)
        if data is not None:
            self.data[node] = bytes(data)
        return True

    def withdraw(self, node: int, /) -> int:
        self.data.pop(node, None)
        self.names = {name: told for name, told in self.names.items() if node_of(told) != node}
        return self.opens.pop(node, 0)

    def offer_name(self, parent: int, name: bytes, attributes: bytes, /) -> bool:
        node = node_of(attributes)
        if node not in self.opens:
            return False
        self.names = {other: told for other, told in self.names.items() if node_of(told) != node}
        self.names[parent, name] = attributes
        return True

    def withdraw_name(self, parent: int, name: bytes, /) -> None:
        self.names.pop((parent, name), None)

    def withdraw_names(self) -> None:
        self.names.clear()

    def offer_bare(self, nodes: Sequence[int], /) -> None:
        self.bare.update(nodes)

    def withdraw_bare(self, node: int, /) -> None:
        self.bare.discard(node)

    def withdraw_all_bare(self) -> None:
        self.bare.clear()

    def lookup(self, parent: int, name: bytes) -> bytes | None:
        """struct fuse_attr of the inode that it leads to; None: Python has to be asked."""
        return self.names.pop((parent, name), None)

    def read_through(self) -> list[int]:
        through, self.through = self.through, []
        return through

    def read(self, ino: InodeId) -> bytes | None:
        """All of an open file; None: Python has to be asked."""
        if not self.opens.get(ino) or ino not in self.data:
            return None
        self.through.append(ino)
        return self.data[ino]

    def withdraw_all(self) -> list[tuple[int, int]]:
        opens, self.opens = self.opens, {}
        self.data.clear()
        self.names.clear()
        return [(node, count) for node, count in opens.items() if count]

    def any_open(self) -> bool:
        return any(self.opens.values())

    def believe_until(self, boottime_s: float, /) -> None:
        pass

    def open(self, ino: InodeId) -> int | None:
        """The handle; None: Python has to be asked."""
        if ino not in self.opens:
            return None
        self.opens[ino] += 1
        self.number += 1
        return self.number

    def release(self, ino: InodeId) -> bool:
        if not self.opens.get(ino):
            return False
        self.opens[ino] -= 1
        return True


@dataclass
class Client:
    """One mount without a kernel."""

    vfs: Vfs
    session: MdsClient
    data_path: DataPath
    handles: Handles
    kernel: "Kernel"
    coherent: Coherent
    releases: Releases
    compiled: CompiledPart
    _made: int = 0

    async def write_file(self, name: bytes, data: bytes, parent: InodeId = ROOT_INODE) -> InodeId:
        inode, number, _ = await self.vfs.create(ROOT_CREDENTIALS, parent, name, 0o644, os.O_WRONLY | os.O_CREAT)
        await self.vfs.write(number, 0, data)
        await self.close(number)
        return inode.ino

    async def read_file(self, name: bytes, parent: InodeId = ROOT_INODE) -> bytes:
        inode = await self.vfs.lookup(ROOT_CREDENTIALS, parent, name)
        number, _ = await self.vfs.open(ROOT_CREDENTIALS, inode.ino, os.O_RDONLY)
        data = bytes(await self.vfs.read(number, 0, 1 << 30))
        await self.close(number)
        return data

    async def open(self, name: bytes, flags: int) -> tuple[int, bool]:
        """The handle, and whether the kernel may keep its pages."""
        inode = await self.vfs.lookup(ROOT_CREDENTIALS, ROOT_INODE, name)
        number, caching = await self.vfs.open(ROOT_CREDENTIALS, inode.ino, flags)
        return number, caching.keep

    async def make(self, name: bytes, parent: InodeId = ROOT_INODE, flags: int = os.O_RDWR) -> tuple[InodeId, int]:
        """Create a file and leave it open: its inode and its handle."""
        inode, number, _ = await self.vfs.create(ROOT_CREDENTIALS, parent, name, 0o644, flags | os.O_CREAT)
        return inode.ino, number

    async def own(self, directory: InodeId) -> None:
        """Fill the directory until this mount has it to itself."""
        with trio.fail_after(10):
            while not (self.coherent.keeps_writes(directory) and self.coherent.cache.is_complete(directory)):
                await self.write_file(b"own%d" % self._made, b"", directory)
                self._made += 1
                await trio.sleep(0.01)

    async def close(self, number: int) -> None:
        await self.vfs.flush(number)
        await self.vfs.release(number)


@dataclass
class World:
    """The services; ``client()`` mounts."""

    carriers: Carriers
    mds_options: MdsOptions
    nursery: trio.Nursery
    mds_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    mds_ended: trio.Event = field(default_factory=trio.Event)

    async def start_mds(self) -> None:
        """Start the metadata node; returns when it answers."""
        await self.nursery.start(self._run_mds)

    async def _run_mds(self, task_status: "trio.TaskStatus[str]") -> None:
        self.mds_ended = trio.Event()
        with trio.CancelScope() as self.mds_scope:
            await run_mds(self.mds_options, self.carriers, task_status=task_status)
        self.mds_ended.set()

    async def stop_mds(self) -> None:
        """End it as a signal would; :meth:`start_mds` begins where it stopped."""
        self.mds_scope.cancel()
        await self.mds_ended.wait()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        compiled = CompiledPart()
        handles = Handles(native=compiled)
        lost: list[DataPath] = []
        kernel = Kernel()
        coherent = Coherent(kernel, handles)
        service = Service()
        service.add(INVALIDATE, coherent.handle_invalidate)
        service.add(WRITE_BACK, coherent.handle_write_back)

        def session_lost() -> None:
            coherent.session_lost()
            handles.registered.clear()
            for data_path in lost:
                data_path.lose_all(SessionGone())

        async with AsyncExitStack() as stack:
            network = await stack.enter_async_context(
                open_network(self.carriers, Hello(PROTOCOL_VERSION, b"", CLIENT, "test"), service)
            )
            session = await stack.enter_async_context(
                open_session(
                    network,
                    [MDS],
                    "test",
                    opens=handles.reported,
                    writes=coherent.kept_writes,
                    on_lost=session_lost,
                    on_new_leader=coherent.meet_new_leader,
                )
            )
            coherent.begin(session)
            nursery = await stack.enter_async_context(trio.open_nursery())
            data_path = DataPath(coherent, ChunkClient(network), is_open=handles.is_held)
            lost.append(data_path)
            coherent.attach(data_path)
            parts = Parts(coherent, data_path, handles, kernel)
            nursery.start_soon(parts.run)
            yield Client(parts.vfs, session, data_path, handles, kernel, coherent, parts.releases, compiled)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def world(
    path: Path, *, chunkservers: int = 2, replicas: int = 2, session_ttl_ms: int = SESSION_TTL_MS
) -> AsyncIterator[World]:
    """One metadata node and chunkservers with one target each, below ``path``."""
    carriers = Carriers(MemoryFabric())
    async with trio.open_nursery() as nursery:
        options = MdsOptions(str(path / "mds"), MDS, replicas=replicas, session_ttl_ms=session_ttl_ms)
        ready = World(carriers, options, nursery)
        await ready.start_mds()
        for number in range(chunkservers):
            target = TargetOptions(str(path / f"target{number}"))
            options = ServerOptions(f"node{number}", f"memory:chunks{number}", (target,), (MDS,))
            await nursery.start(run_chunkserver, options, carriers)
        async with ready.client() as client:
            with trio.fail_after(10):
                while len((await client.session.refresh_map()).groups) == 0:
                    await trio.sleep(0.05)
        yield ready
        nursery.cancel_scope.cancel()
