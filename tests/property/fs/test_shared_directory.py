"""Two mounts work on one directory, in turns, against a model: whoever of them makes files there without asking, the
other finds what a single filesystem would have."""

import errno
import os
import random
from dataclasses import dataclass, field

import pytest
import trio

from harness.vfs_world import Client, world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from unit.fs.test_coherent import leased

NAMES = (b"a", b"b", b"c", b"d", b"e")
STEPS = 120
SEEDS = 8


@dataclass(eq=False)
class File:
    """What the model knows of one inode."""

    ino: InodeId
    data: bytes = b""
    nlink: int = 1


@dataclass
class Model:
    names: dict[bytes, File] = field(default_factory=dict)

    def drop(self, name: bytes) -> None:
        self.names.pop(name).nlink -= 1


@dataclass(eq=False)
class Open:
    client: Client
    number: int
    file: File


class History:
    """One seed: one directory, and what the two mounts do in it."""

    def __init__(self, seed: int, clients: list[Client], directory: InodeId) -> None:
        self.chance = random.Random(seed)
        self.clients = clients
        self.directory = directory
        self.model = Model()
        self.opens: list[Open] = []
        self.done: list[str] = []
        self.favourite = clients[0]
        self.filled = 0

    async def step(self) -> None:
        # Mostly one of them: else nobody ever has the directory to itself.
        if self.chance.random() < 0.05:
            self.favourite = self.chance.choice(self.clients)
        client = self.favourite if self.chance.random() < 0.93 else self.chance.choice(self.clients)
        act = self.chance.choices(
            [self.make, self.fill, self.close, self.write, self.read, self.look, self.unlink, self.rename, self.link,
             self.list_, self.chmod, self.sync],
            [10, 2, 4, 5, 4, 4, 3, 3, 1, 1, 1, 1],
        )[0]  # fmt: skip
        name = self.chance.choice(NAMES)
        self.done.append(f"{self.clients.index(client)} {act.__name__} {name.decode()}")
        await act(client, name)

    async def expect(self, code: int, call) -> None:
        with pytest.raises(PosixError) as error:
            await call
        assert error.value.errno == code, error.value

    async def make(self, client: Client, name: bytes) -> None:
        exclusive = self.chance.random() < 0.5
        flags = os.O_RDWR | os.O_CREAT | (os.O_EXCL if exclusive else 0)
        call = client.vfs.create(ROOT, self.directory, name, 0o644, flags)
        if exclusive and name in self.model.names:
            await self.expect(errno.EEXIST, call)
            return
        inode, number, _ = await call
        file = self.model.names.setdefault(name, File(inode.ino))
        assert file.ino == inode.ino
        self.opens.append(Open(client, number, file))

    async def fill(self, client: Client, name: bytes) -> None:
        """Make so many files that the directory is asked for."""
        for _ in range(9):
            filled = b"%d" % self.filled
            self.model.names[filled] = File(await client.write_file(filled, b"x", self.directory), b"x")
            self.filled += 1
        await trio.sleep(0.02)

    async def close(self, client: Client, name: bytes) -> None:
        if self.opens:
            opened = self.opens.pop(self.chance.randrange(len(self.opens)))
            await opened.client.close(opened.number)

    async def write(self, client: Client, name: bytes) -> None:
        if self.opens:
            opened = self.chance.choice(self.opens)
            data = bytes(self.chance.choices(b"xyz", k=self.chance.choice((1, 50, 9_000))))
            at = self.chance.choice((0, len(opened.file.data), 100))
            await opened.client.vfs.write(opened.number, at, data)
            before = opened.file.data.ljust(at, b"\0")
            opened.file.data = before[:at] + data + before[at + len(data) :]

    async def read(self, client: Client, name: bytes) -> None:
        if name in self.model.names:
            assert await client.read_file(name, self.directory) == self.model.names[name].data

    async def look(self, client: Client, name: bytes) -> None:
        inode = await client.vfs.lookup_or_none(ROOT, self.directory, name)
        file = self.model.names.get(name)
        assert (None if inode is None else inode.ino) == (None if file is None else file.ino)
        if inode is not None:
            inode = await client.vfs.getattr(inode.ino)
            assert (inode.size_bytes, inode.nlink) == (len(file.data), file.nlink)
        assert (await client.vfs.getattr(self.directory)).size_bytes == len(self.model.names)

    async def unlink(self, client: Client, name: bytes) -> None:
        call = client.vfs.unlink(ROOT, self.directory, name)
        if name in self.model.names:
            await call
            self.model.drop(name)
        else:
            await self.expect(errno.ENOENT, call)

    async def rename(self, client: Client, name: bytes) -> None:
        new = self.chance.choice(NAMES)
        call = client.vfs.rename(ROOT, self.directory, name, self.directory, new, 0)
        if name not in self.model.names:
            await self.expect(errno.ENOENT, call)
            return
        await call
        file = self.model.names[name]
        if self.model.names.get(new) is not file:
            if new in self.model.names:
                self.model.drop(new)
            self.model.names[new] = self.model.names.pop(name)

    async def link(self, client: Client, name: bytes) -> None:
        new = self.chance.choice(NAMES)
        if name in self.model.names and new not in self.model.names:
            file = self.model.names[new] = self.model.names[name]
            file.nlink += 1
            await client.vfs.link(ROOT, file.ino, self.directory, new)

    async def list_(self, client: Client, name: bytes) -> None:
        number, cookie, found = client.vfs.opendir(ROOT, self.directory), 0, {}
        while entries := await client.vfs.readdir(number, cookie):
            found |= {entry.name: entry.inode.ino for entry in entries}
            cookie = entries[-1].cookie
        client.vfs.releasedir(number)
        assert found == {name: file.ino for name, file in self.model.names.items()}

    async def chmod(self, client: Client, name: bytes) -> None:
        target = self.model.names[name].ino if name in self.model.names else self.directory
        mode = self.chance.choice((0o700, 0o755))
        assert (await client.vfs.setattr(m.SetAttr(ROOT, target, mode=mode))).mode & 0o777 == mode

    async def sync(self, client: Client, name: bytes) -> None:
        number = client.vfs.opendir(ROOT, self.directory)
        await client.vfs.fsyncdir(number)
        client.vfs.releasedir(number)

    async def end(self) -> None:
        for opened in self.opens:
            await opened.client.close(opened.number)
        for client in self.clients:
            await self.list_(client, b"")
            for name, file in self.model.names.items():
                assert await client.read_file(name, self.directory) == file.data


async def test_two_mounts_in_one_directory_are_one_filesystem(tmp_path):
    made_here = 0
    async with (
        world(tmp_path, chunkservers=1, replicas=1) as cluster,
        cluster.client() as one,
        cluster.client() as two,
    ):
        await leased(one, two)
        for client in (one, two):
            make = client.coherent.new_files.make

            def counted(*args, make=make):
                nonlocal made_here
                made_here += 1
                return make(*args)

            client.coherent.new_files.make = counted
        for seed in range(SEEDS):
            directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d%d" % seed, 0o755)).ino
            history = History(seed, [one, two], directory)
            try:
                with trio.fail_after(120):
                    for _ in range(STEPS):
                        await history.step()
                    await history.end()
            except BaseException:
                print(f"seed {seed}:", *history.done, sep="\n  ")
                raise
    assert made_here > 60, "the directory was hardly ever anybody's own"
