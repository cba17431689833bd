"""A cluster in this process over the memory carrier, and mounts of it without a kernel: real services, real disks."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.server import ServerOptions, TargetOptions
from shoalfs.chunkserver.server import run as run_chunkserver
from shoalfs.fs.attributes import AttributeCache
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.handles import Handles
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.releases import Releases
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.client import MdsClient, open_session
from shoalfs.mds.messages import CLIENT, ROOT_CREDENTIALS
from shoalfs.mds.server import MdsOptions
from shoalfs.mds.server import run as run_mds
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import SessionGone
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

MDS = "memory:mds"


@dataclass
class Kernel:
    """Writes down what the kernel would be told."""

    pages: list[InodeId] = field(default_factory=list)
    attributes: list[InodeId] = field(default_factory=list)

    def forget_pages(self, ino: InodeId) -> None:
        self.pages.append(ino)

    def forget_attributes(self, ino: InodeId) -> None:
        self.attributes.append(ino)

    async def forgotten_pages(self, ino: InodeId) -> None:
        self.pages.append(ino)


@dataclass
class Client:
    """One mount without a kernel."""

    vfs: Vfs
    session: MdsClient
    data_path: DataPath
    handles: Handles
    kernel: "Kernel"

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

    async def close(self, number: int) -> None:
        await self.vfs.flush(number)
        await self.vfs.release(number)


@dataclass
class World:
    """The services; ``client()`` mounts."""

    carriers: Carriers

    @asynccontextmanager
    async def client(self, attr_timeout_s: float = 1.0) -> AsyncIterator[Client]:
        handles = Handles()
        lost: list[DataPath] = []

        def session_lost() -> None:
            for data_path in lost:
                data_path.lose_all(SessionGone())

        async with AsyncExitStack() as stack:
            network = await stack.enter_async_context(
                open_network(self.carriers, Hello(PROTOCOL_VERSION, b"", CLIENT, "test"))
            )
            session = await stack.enter_async_context(
                open_session(network, [MDS], "test", opens=handles.open_inodes, on_lost=session_lost)
            )
            nursery = await stack.enter_async_context(trio.open_nursery())
            data_path = DataPath(session, ChunkClient(network))
            lost.append(data_path)
            releases = Releases(session)
            kernel = Kernel()
            vfs = Vfs(
                session,
                data_path,
                handles,
                releases,
                AttributeCache(attr_timeout_s),
                KernelPages(),
                trio.current_time,
                kernel,
            )
            nursery.start_soon(data_path.run)
            nursery.start_soon(releases.run)
            yield Client(vfs, session, data_path, handles, kernel)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def world(path: Path, *, chunkservers: int = 2, replicas: int = 2) -> AsyncIterator[World]:
    """One metadata node and chunkservers with one target each, below ``path``."""
    carriers = Carriers(MemoryFabric())
    async with trio.open_nursery() as nursery:
        await nursery.start(run_mds, MdsOptions(str(path / "mds"), MDS, replicas=replicas), carriers)
        for number in range(chunkservers):
            target = TargetOptions(str(path / f"target{number}"))
            options = ServerOptions(f"node{number}", f"memory:chunks{number}", (target,), (MDS,))
            await nursery.start(run_chunkserver, options, carriers)
        ready = World(carriers)
        async with ready.client() as client:
            with trio.fail_after(10):
                while len((await client.session.refresh_map()).groups) == 0:
                    await trio.sleep(0.05)
        yield ready
        nursery.cancel_scope.cancel()
