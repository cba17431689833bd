"""A small world for leases: virtual time, a network that delays and breaks, mounts that are stopped or cut off, leaders
that come and go. One seed, one history.

What is real: the metadata service with its leases, its batcher, its duties and its state machine; the client's session,
its cache and its fencing; the transport. What is not: Raft (one log that never forgets, with a leader that the world
appoints), disks, and the kernel, of which :class:`Kernel` keeps what matters: names and attributes with their timeouts,
served also while the mount's process is stopped.

The promise that is checked, for every question of every mount: the answer was the truth at some moment between its
asking and its answering. The truth changes when a mutation is applied. For the mount that mutates, and for it alone,
the old truth may last until its call has returned.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.fs.effects import doubtful
from shoalfs.fs.handles import Handles
from shoalfs.mds import dentry, reads
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from sim.broken import Broken
from sim.hindered import HeldBack, Hindered
from sim.lease_group import ADDRESSES, NODES, TTL_MS, Group, end_after, run_history, serve_node
from sim.lease_network import Line, SimFabric, session_of

NAMES = (b"a", b"b", b"c")
FILES = 3


# --- a mount ---------------------------------------------------------------------------------------------------------


class Kernel(HeldBack):
    """What the kernel above a mount has cached. While the mount's process is ``stopped`` it is told nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bytes, tuple[InodeId | None, float]] = {}
        self.attributes: dict[InodeId, tuple[m.Inode, float]] = {}

    def forget_names(self) -> None:
        self._told(self.names.clear)

    def forget_attributes(self, ino: InodeId) -> None:
        self._told(lambda: self.attributes.pop(ino, None))

    def forget_pages(self, ino: InodeId) -> None:
        self.forget_attributes(ino)

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(eq=False)
class _Mutation:
    """One mutation of a mount: until it is over its own mount may see the truth of before, in what it changes."""

    registers: set[Any]
    began: float
    ended: float = float("inf")


class Mount(Hindered):
    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.line = Line(random.Random(world.chance.random()))
        self.kernel = Kernel()
        self.coherent = Coherent(self.kernel, Handles(), trio.current_time)
        self.session: MdsClient
        # Mutations that nobody waits for any more, by the identity of their requests.
        self._given_up: dict[int, tuple[Any, _Mutation]] = {}
        self._doubt, self.coherent._doubt = self.coherent._doubt, self._decided

    def _decided(self, request: Any) -> None:
        """Something became of a mutation, and nobody knows what. It is over for us, unless it is only given up now."""
        self._doubt(request)
        _, mutation = self._given_up.pop(id(request), (None, None))
        if mutation is not None:
            self.world.finish(mutation)

    async def run(self, *, task_status: "trio.TaskStatus[None]") -> None:
        fabric, name = self.world.fabric, f"mount{self.number}"
        lost = self.coherent.session_lost
        async with (
            session_of(fabric, self.line, ADDRESSES, name, self.coherent, on_lost=lost) as self.session,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self.coherent.run)
            task_status.started()
            await trio.sleep_forever()

    async def _awake(self) -> None:
        while self.kernel.stopped:
            await trio.sleep(0.01)

    # --- what programs do; each is checked ---------------------------------------------------------------------------

    async def stat(self, ino: InodeId) -> None:
        asked = trio.current_time()
        inode, until = self.kernel.attributes.get(ino, (None, 0.0))
        if inode is None or asked >= until:
            if self.kernel.stopped:
                return  # this program hangs; there are others
            inode = await self.coherent.getattr(ino)
            await self._awake()
            left = self.coherent.left_s() if self.coherent.known(ino) is inode else 0.0
            self.kernel.attributes[ino] = (inode, trio.current_time() + left)
        else:
            self.world.counts["kernel"] += 1
        self.world.check(("inode", ino), inode.version, asked, self)

    async def look(self, name: bytes) -> None:
        asked = trio.current_time()
        ino, until = self.kernel.names.get(name, (None, 0.0))
        if asked >= until:
            if self.kernel.stopped:
                return
            found = await self.coherent.lookup(ROOT, ROOT_INODE, name)
            await self._awake()
            ino = None if found is None else found.ino
            left = self.coherent.left_s() if self.coherent.keeps_name(ROOT_INODE, name, ino) else 0.0
            self.kernel.names[name] = (ino, trio.current_time() + left)
        else:
            self.world.counts["kernel"] += 1
        self.world.check(("name", name), ino, asked, self)

    async def listing(self) -> None:
        if self.kernel.stopped:
            return
        asked = trio.current_time()
        page = await self.coherent.readdir(m.ReadDir(ROOT, ROOT_INODE, 0, 100))
        there = {entry.name: entry.inode.ino for entry in page.entries}
        for name in NAMES:
            self.world.check(("name", name), there.get(name), asked, self)

    async def touch(self, ino: InodeId) -> None:
        await self._change(m.Op.SETATTR, m.SetAttr(ROOT, ino, mode=self.line.chance.randrange(0o777)), m.Entry)

    async def create(self, name: bytes) -> None:
        await self._change(m.Op.CREATE, m.Create(ROOT, ROOT_INODE, name, 0o644, True), m.Created)

    async def unlink(self, name: bytes) -> None:
        await self._change(m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, name), m.Unlinked)

    async def rename(self, old: bytes, new: bytes) -> None:
        await self._change(m.Op.RENAME, m.Rename(ROOT, ROOT_INODE, old, ROOT_INODE, new), m.Renamed)

    async def _change(self, op: m.Op, request: Any, reply: Any) -> None:
        """The kernel drops what its own mutation has changed when it is answered."""
        if self.kernel.stopped:
            return
        names, inodes = doubtful(request)
        registers = {("name", name) for _, name in names} | {("inode", ino) for ino in inodes}
        change = self.world.begin(self, registers)
        try:
            await self.coherent.mutate(op, request, reply)
        except trio.Cancelled:
            self._given_up[id(request)] = (request, change)
            raise
        except ShoalError:
            self.world.finish(change)
            raise
        finally:
            self.kernel.attributes.clear()
            self.kernel.names.clear()
        self.world.finish(change)
        self.world.counts["mutations"] += 1


# --- the world -------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, seed: int, mounts: int = 3) -> None:
        self.chance = random.Random(seed)
        self.fabric = SimFabric()
        self.group = Group(self.chance, self._note_truth)
        self.mounts = [Mount(self, number) for number in range(mounts)]
        self.counts: Counter[str] = Counter()
        # Of each register, what was true from when on; and the mutations of each mount.
        self._truth: dict[Any, list[tuple[float, Any]]] = {}
        self._mutations: dict[Mount, list[_Mutation]] = {mount: [] for mount in self.mounts}
        self.files: list[InodeId] = []

    def begin(self, mount: Mount, registers: set[Any]) -> _Mutation:
        mutation = _Mutation(registers, trio.current_time())
        self._mutations[mount].append(mutation)
        return mutation

    def finish(self, mutation: _Mutation) -> None:
        mutation.ended = trio.current_time()

    def _note_truth(self) -> None:
        """An entry was applied: what has it changed?"""
        now = trio.current_time()
        with self.group.store.read() as txn:
            for name in NAMES:
                entry = dentry.find(txn, reads.getattr_(txn, m.GetAttr(ROOT_INODE)).inode, name)
                self._note(("name", name), None if entry is None else entry.ino, now)
            for ino in self.files:
                self._note(("inode", ino), reads.getattr_(txn, m.GetAttr(ino)).inode.version, now)

    def _note(self, register: Any, value: Any, now: float) -> None:
        history = self._truth.setdefault(register, [])
        if not history or history[-1][1] != value:
            history.append((now, value))

    def check(self, register: Any, value: Any, asked: float, mount: Mount) -> None:
        """The answer must have been true between ``asked`` and now; see the module for the mount that mutates."""
        self.counts["questions"] += 1
        now = trio.current_time()
        history = self._truth[register]
        for number, (since, held) in enumerate(history):
            if held != value or since > now:
                continue
            until = history[number + 1][0] if number + 1 < len(history) else float("inf")
            if until >= asked:
                return
            # An own mutation that was applied then and has returned only later, or not before the question.
            for own in self._mutations[mount]:
                if register in own.registers and own.began <= until <= own.ended and own.ended >= asked:
                    return
        recent = [(round(since, 4), held) for since, held in history[-6:]]
        raise Broken(
            f"mount {mount.number} was told that {register} is {value}, asked at {asked:.4f}, answered at {now:.4f}: "
            f"the truth was {recent}"
        )

    async def run(self, seconds: float, kinds: Sequence[str]) -> None:
        async with trio.open_nursery() as nursery:
            for node in NODES:
                await nursery.start(serve_node, self.group, self.fabric, node)
            self.group.elect(NODES[0])
            for mount in self.mounts:
                await nursery.start(mount.run)
            await self._make_files()
            async with trio.open_nursery() as work:
                for _ in range(3):
                    work.start_soon(self._break_things, kinds)
                work.start_soon(end_after, seconds, work.cancel_scope)
                for mount in self.mounts:
                    for _ in range(2):
                        work.start_soon(self._use, mount)
            nursery.cancel_scope.cancel()

    async def _make_files(self) -> None:
        session = self.mounts[0].session
        for number in range(FILES):
            request = m.Create(ROOT, ROOT_INODE, b"file%d" % number, 0o644, True)
            self.files.append((await session.mutate(m.Op.CREATE, request, m.Created)).inode.ino)
        self._note_truth()

    async def _use(self, mount: Mount) -> None:
        chance = random.Random(self.chance.random())
        while True:
            await trio.sleep(chance.expovariate(1 / 0.02))
            draw = chance.random()
            try:
                with trio.move_on_after(chance.choice((0.003, 30, 30, 30))):
                    if draw < 0.35:
                        await mount.stat(chance.choice(self.files))
                    elif draw < 0.75:
                        await mount.look(chance.choice(NAMES))
                    elif draw < 0.78:
                        await mount.listing()
                    elif draw < 0.86:
                        await mount.touch(chance.choice(self.files))
                    elif draw < 0.92:
                        await mount.create(chance.choice(NAMES))
                    elif draw < 0.97:
                        await mount.unlink(chance.choice(NAMES))
                    else:
                        await mount.rename(*chance.sample(NAMES, 2))
            except ShoalError as error:
                self.counts[type(error).__name__] += 1

    async def _break_things(self, kinds: Sequence[str]) -> None:
        chance = random.Random(self.chance.random())
        while True:
            await trio.sleep(chance.expovariate(1 / 2.0))
            kind, mount = chance.choice(list(kinds)), chance.choice(self.mounts)
            self.counts[kind] += 1
            long_s = chance.choice((0.05, 0.5, 0.5 * TTL_MS / 1000, 1.5 * TTL_MS / 1000, 3 * TTL_MS / 1000))
            await mount.hinder(kind, long_s)
            if kind == "leader" and self.group.leader:
                self.group.depose()
                await trio.sleep(chance.choice((0.0, 0.1, 1.0)))
                self.group.elect(chance.choice(NODES))


def simulate(seed: int, seconds: float, kinds: Sequence[str]) -> World:
    """Run one history. Raises Broken."""
    made: list[World] = []

    async def main() -> None:
        made.append(World(seed))
        await made[0].run(seconds, kinds)

    run_history(seed, main)
    return made[0]
