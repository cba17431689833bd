"""What the compiled part does by itself (fs/native/opens.h, names.h, bare.h, makes.h), in Python: for tests and
simulations without a kernel. shim_driver.py tests the real one."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoalfs.fs.handles import OPENED_NATIVELY
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import ROOT_CREDENTIALS, Inode
from shoalfs.transport.ids import InodeId

MADE_NATIVELY = 1 << 62
MADE_FILES_MAX = 256


def node_of(attributes: bytes) -> int:
    """The number in a struct fuse_attr."""
    return int.from_bytes(attributes[:8], sys.byteorder)


@dataclass
class Grant:
    """A directory in which files are made."""

    names: set[bytes]
    uid: int
    attributes: bytes | None = None
    is_over: bool = False


@dataclass
class MadeFile:
    """The fields are those of `take_made` in fs/native/makes.c."""

    parent: int
    name: bytes
    node: int
    handle: int
    mode: int
    umask: int
    flags: int
    uid: int
    gid: int
    is_closed: bool
    made_ns: int
    written_ns: int
    data: bytes
    attributes: tuple[int | None, ...] | None = None


@dataclass
class CompiledPart:
    """``believed``: whether leases may be."""

    opens: dict[int, int] = field(default_factory=dict)  # of each inode that is offered
    data: dict[int, bytes] = field(default_factory=dict)  # of those whose bytes are there
    through: list[int] = field(default_factory=list)
    names: dict[tuple[int, bytes], bytes] = field(default_factory=dict)  # attributes of what they lead to
    bare: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)  # threads that have
    number: int = OPENED_NATIVELY
    granted: dict[int, "Grant"] = field(default_factory=dict)
    made: dict[int, "MadeFile"] = field(default_factory=dict)
    made_count: int = 0
    inodes: list[int] = field(default_factory=list)
    take: Callable[[int, bool], None] | None = None
    believed: Callable[[], bool] = lambda: True

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

    def listen_to(self, thread: int, /) -> int:
        return 0

    def has_asked(self, thread: int, since: int, /) -> bool:
        return thread in self.asked

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

    def believes(self) -> bool:
        return self.believed()

    # --- making files ------------------------------------------------------------------------------------------------

    def on_made(self, take: Callable[[int, bool], None], /) -> None:
        self.take = take

    def make_in(self, node: int, names: Sequence[bytes], uid: int, /) -> bool:
        if node in self.granted:
            return False
        self.granted[node] = Grant(set(names), uid)
        return True

    def make_no_more(self, node: int, /) -> None:
        self.granted.pop(node, None)

    def describe(self, node: int, attributes: bytes | None, /) -> None:
        if node in self.granted:
            self.granted[node].attributes = attributes

    def give_numbers(self, first: int, count: int, /) -> None:
        self.inodes = list(range(first, first + count))

    def numbers_left(self) -> int:
        return len(self.inodes)

    def take_made(self, node: int, /) -> list[tuple[Any, ...]]:
        return self._hand_over([made for made in self.made.values() if node in (0, made.node, made.parent)])

    def take_closed(self, limit: int, before_ns: int, /) -> list[tuple[Any, ...]]:
        closed = [made for made in self.made.values() if made.is_closed][:limit]
        return self._hand_over(
            closed + [made for made in self.made.values() if not made.is_closed and made.made_ns < before_ns]
        )

    def _hand_over(self, some: list["MadeFile"]) -> list[tuple[Any, ...]]:
        for made in some:
            del self.made[made.node]
        return [tuple(vars(made).values()) for made in sorted(some, key=lambda made: not made.is_closed)]

    def create(self, parent: int, name: bytes, uid: int = 0, flags: int = os.O_RDWR) -> "MadeFile | None":
        """A new file; None: Python has to be asked."""
        grant = self.granted.get(parent)
        if grant is None or grant.is_over or name in grant.names or uid not in (0, grant.uid) or not self.believes():
            self.give_name(parent, name, appears=True)
            return None
        if not self.inodes or len(self.made) >= MADE_FILES_MAX:
            self.give_name(parent, name, appears=True)
            return None
        grant.names.add(name)
        self.number += 1
        handle, now_ns = self.number - OPENED_NATIVELY | MADE_NATIVELY, time.time_ns()
        node = self.inodes.pop(0)
        made = MadeFile(parent, name, node, handle, 0o644, 0o22, flags | os.O_CREAT, uid, uid, False, now_ns, 0, b"")
        self.made[node] = made
        self.made_count += 1
        return made

    def write(self, node: int, data: bytes) -> bool:
        """Behind what is there. False: Python has to be asked."""
        made = self.made.get(node)
        if made is None or made.is_closed:
            return False
        made.data, made.written_ns = made.data + data, time.time_ns()
        return True

    def close(self, node: int) -> bool:
        made = self.made.get(node)
        if made is None or made.is_closed:
            return False
        made.is_closed = True
        self.made[node] = self.made.pop(node)  # in the order of the closes
        return True

    def denies(self, parent: int, name: bytes) -> bool:
        """There is no such name. False: Python has to be asked."""
        grant = self.granted.get(parent)
        if grant is None or grant.is_over or name in grant.names or not self.believes():
            self.give_name(parent, name)
            return False
        return True

    def give(self, node: int = 0, *, changes: bool = False) -> None:
        """Before Python carries out a request that concerns this file, this directory, or (0) everything; ``changes``:
        who may make files in it, perhaps."""
        grant = self.granted.get(node)
        if grant is not None and changes:
            grant.is_over = True
        if self.take is not None and (self.made or grant is not None):
            self.take(node, changes and grant is not None)

    def give_name(self, parent: int, name: bytes, *, appears: bool = False) -> None:
        """The same, of a name."""
        grant = self.granted.get(parent)
        for made in list(self.made.values()):
            if (made.parent, made.name) == (parent, name):
                self.give(made.node)
        if grant is not None and appears:
            grant.names.add(name)


class Programs:
    """What programs do to files of one mount, by way of the compiled part: it answers, or takes the request to
    Python."""

    def __init__(self, vfs: Vfs, compiled: CompiledPart) -> None:
        self._vfs = vfs
        self._compiled = compiled
        self._nodes: dict[int, InodeId] = {}  # of handles that were made natively

    async def create(self, parent: InodeId, name: bytes, flags: int) -> tuple[InodeId, int]:
        """The inode and the handle. Raises ShoalError, as all do."""
        made = self._compiled.create(parent, name, flags=flags)
        if made is not None:
            self._nodes[made.handle] = InodeId(made.node)
            return InodeId(made.node), made.handle
        inode, number, _ = await self._vfs.create(ROOT_CREDENTIALS, parent, name, 0o644, flags | os.O_CREAT)
        return inode.ino, number

    async def write(self, number: int, data: bytes) -> None:
        """To an empty file."""
        node = self._nodes.get(number)
        if node is None or not self._compiled.write(node, data):
            await self._vfs.write(number, 0, data)

    async def close(self, number: int) -> None:
        node = self._nodes.pop(number, None)
        if node is None or not self._compiled.close(node):
            await self._vfs.flush(number)
            await self._vfs.release(number)

    async def fsyncdir(self, directory: InodeId) -> None:
        self._compiled.give(directory)
        await self._vfs.fsyncdir(self._vfs.opendir(ROOT_CREDENTIALS, directory))

    async def unlink(self, parent: InodeId, name: bytes) -> None:
        self._compiled.give_name(parent, name)
        await self._vfs.unlink(ROOT_CREDENTIALS, parent, name)

    async def lookup(self, parent: InodeId, name: bytes) -> InodeId | None:
        if self._compiled.denies(parent, name):
            return None
        inode = await self._vfs.lookup_or_none(ROOT_CREDENTIALS, parent, name)
        return None if inode is None else inode.ino

    async def getattr(self, ino: InodeId) -> Inode:
        self._compiled.give(ino)
        return await self._vfs.getattr(ino)
