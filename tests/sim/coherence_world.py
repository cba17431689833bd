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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from harness.metadata import CLUSTER, LAYOUT, POOLS
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.effects import doubtful
from shoalfs.fs.handles import Handles
from shoalfs.mds import client as client_module
from shoalfs.mds import dentry, reads
from shoalfs.mds import leader as leader_module
from shoalfs.mds import messages as m
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.client import MdsClient, open_session
from shoalfs.mds.duties import Duties
from shoalfs.mds.group_messages import WHO_LEADS, LeaderIs, WhoLeads
from shoalfs.mds.machine import Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.service import LeaderState, MdsService
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotLeader, PeerUnreachable, ShoalError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.memory import MemoryFabric, MemoryLink
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Call, Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

TTL_MS = 4_000
NODES = (1, 2)
NAMES = (b"a", b"b", b"c")
FILES = 3


class Broken(AssertionError):
    """The promise was broken."""


# --- the network -----------------------------------------------------------------------------------------------------


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

    async def receive_into(self, view: memoryview) -> int:
        count = await self._link.receive_into(view)
        await self._line.late()
        return count


class SimFabric(MemoryFabric):
    """Links of a mount pass its line, whichever side receives."""

    def __init__(self) -> None:
        super().__init__()
        self.dialling: deque[Line] = deque()

    async def listen(self, place: str) -> Any:
        return _LateListener(self, await super().listen(place))


class _LateListener:
    def __init__(self, fabric: SimFabric, listener: Any) -> None:
        self._fabric, self._listener = fabric, listener
        self.address, self.close = listener.address, listener.close

    async def accept(self) -> LateLink:
        link = await self._listener.accept()
        line = self._fabric.dialling.popleft()  # in the order in which they were dialled
        line.links.append(link)
        return LateLink(link, line)


class MountFabric:
    """The same for the side that dials: each mount has its own view."""

    scheme = "memory"

    def __init__(self, fabric: SimFabric, line: Line) -> None:
        self._fabric, self._line = fabric, line

    async def dial(self, place: str) -> LateLink:
        while self._line.cuts:
            await self._line.lot.park()
        link = await self._fabric.dial(place)
        self._fabric.dialling.append(self._line)
        self._line.links.append(link)
        return LateLink(link, self._line)

    async def listen(self, place: str) -> Any:
        raise AssertionError(place)


# --- the log ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Waiting:
    """An entry that is proposed and not applied."""

    entry: bytes
    due: float
    lost: trio.Event = field(default_factory=trio.Event)


class Group:
    """One log, one machine, and who leads. ``truth`` is told after each entry is applied."""

    def __init__(self, chance: random.Random, truth: Callable[[], None]) -> None:
        self.chance, self._truth = chance, truth
        self.store = MemoryStore()
        format_store(self.store, CLUSTER, POOLS, LAYOUT)
        self.machine = Machine(self.store, OnDamage.STOP)
        self.leader, self.term = 0, 0
        self._in_flight: deque[_Waiting] = deque()

    def apply(self, entry: bytes) -> tuple[int, Any]:
        index = self.machine.applied_index + 1
        outcomes = self.machine.apply([(index, self.term, entry)])[0]
        self._truth()
        return index, outcomes

    async def propose(self, entry: bytes) -> tuple[int, Any]:
        """Applied after a while, in the order in which they were proposed."""
        waiting = _Waiting(entry, trio.current_time() + self.chance.choice((0.0005, 0.002, 0.02)))
        self._in_flight.append(waiting)
        while (self._in_flight and self._in_flight[0] is not waiting) or trio.current_time() < waiting.due:
            with trio.move_on_after(0.0005):
                await waiting.lost.wait()
            if waiting.lost.is_set():
                raise PeerUnreachable("leadership was lost")
        self._in_flight.popleft()
        return self.apply(entry)

    def depose(self) -> None:
        """The leader is none any more. What it had proposed is applied, up to some point, before the next one leads."""
        self.leader = 0
        kept = self.chance.randint(0, len(self._in_flight))
        for number, waiting in enumerate(self._in_flight):
            if number < kept:
                self.apply(waiting.entry)
            waiting.lost.set()
        self._in_flight.clear()

    def elect(self, node: int) -> None:
        self.leader = node
        self.term += 1


class Log:
    """What one node sees of the group."""

    def __init__(self, group: Group, node: int) -> None:
        self._group, self.node = group, node

    async def propose(self, entry: bytes) -> tuple[int, Any]:
        if not self.may_serve_reads():
            raise NotLeader(self.leader_address())
        return await self._group.propose(entry)

    def may_serve_reads(self) -> bool:
        return self._group.leader == self.node

    async def read_barrier(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.may_serve_reads():
            raise NotLeader(self.leader_address())

    def leader_address(self) -> str:
        return f"memory:mds{self._group.leader}" if self._group.leader else ""

    def term_as_leader(self) -> int:
        return self._group.term if self.may_serve_reads() else 0


# --- a mount ---------------------------------------------------------------------------------------------------------


class Kernel:
    """What the kernel above a mount has cached. While the mount's process is ``stopped`` it is told nothing."""

    def __init__(self) -> None:
        self.names: dict[bytes, tuple[InodeId | None, float]] = {}
        self.attributes: dict[InodeId, tuple[m.Inode, float]] = {}
        self._stops = 0
        self._missed: list[Callable[[], None]] = []

    def forget_names(self) -> None:
        self._told(self.names.clear)

    def forget_attributes(self, ino: InodeId) -> None:
        self._told(lambda: self.attributes.pop(ino, None))

    def forget_pages(self, ino: InodeId) -> None:
        self.forget_attributes(ino)

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def stopped(self) -> bool:
        return self._stops > 0

    def stop(self) -> None:
        self._stops += 1

    def go_on(self) -> None:
        self._stops -= 1
        if not self._stops:
            for tell in self._missed:
                tell()
            self._missed.clear()

    def _told(self, tell: Callable[[], Any]) -> None:
        if self.stopped:
            self._missed.append(tell)
        else:
            tell()


@dataclass(eq=False)
class _Mutation:
    """One mutation of a mount: until it is over its own mount may see the truth of before, in what it changes."""

    registers: set[Any]
    began: float
    ended: float = float("inf")


class Mount:
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
        service = Service()
        service.add(m.INVALIDATE, self.coherent.handle_invalidate)
        service.add(m.WRITE_BACK, self.coherent.handle_write_back)
        carriers = Carriers(MountFabric(self.world.fabric, self.line))
        hello = Hello(PROTOCOL_VERSION, b"", m.CLIENT, f"mount{self.number}")
        async with (
            open_network(carriers, hello, service, chance=self.line.chance.random) as network,
            open_session(
                network,
                [f"memory:mds{node}" for node in NODES],
                f"mount{self.number}",
                on_lost=self.coherent.session_lost,
                writes=self.coherent.kept_writes,
                on_new_leader=self.coherent.meet_new_leader,
            ) as self.session,
        ):
            self.coherent.begin(self.session)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.coherent.run)
                task_status.started()
                await trio.sleep_forever()

    def stop(self) -> None:
        """As SIGSTOP: nothing arrives, nothing leaves, the kernel goes on with what it has."""
        self.kernel.stop()
        self.line.cut()

    def go_on(self) -> None:
        self.kernel.go_on()
        self.line.heal()

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
                await nursery.start(self._serve, node)
            self.group.elect(NODES[0])
            for mount in self.mounts:
                await nursery.start(mount.run)
            await self._make_files()
            async with trio.open_nursery() as work:
                for _ in range(3):
                    work.start_soon(self._break_things, kinds)
                work.start_soon(_end_after, seconds, work.cancel_scope)
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

    async def _serve(self, node: int, *, task_status: "trio.TaskStatus[None]") -> None:
        log, service = Log(self.group, node), Service()
        hello = Hello(PROTOCOL_VERSION, CLUSTER, m.MDS, f"mds{node}")
        batcher = Batcher(log, lambda: int(trio.current_time() * 1e9))
        state = LeaderState(SessionTable(TTL_MS))
        metadata = MdsService(self.group.store, log, batcher, state, _now_ms)
        metadata.install(service)

        async def who_leads(call: Call, request: WhoLeads, payload: memoryview) -> LeaderIs:
            return LeaderIs(log.leader_address(), self.group.term)

        service.add(WHO_LEADS, who_leads)
        duties = Duties(
            self.group.store,
            log,
            batcher,
            state,
            now_ms=_now_ms,
            now_ns=lambda: 0,
            grace_ms=1_000_000_000,
            out_ms=1_000_000_000,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metadata.run)
            nursery.start_soon(batcher.run)
            nursery.start_soon(duties.run)
            await nursery.start(serve, Carriers(self.fabric), f"memory:mds{node}", service, hello)
            task_status.started()

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
            if kind == "reset":
                mount.line.reset()
            elif kind == "cut":
                mount.line.cut()
                await trio.sleep(long_s)
                mount.line.heal()
            elif kind == "stop":
                mount.stop()
                await trio.sleep(long_s)
                mount.go_on()
            elif kind == "leader" and self.group.leader:
                self.group.depose()
                await trio.sleep(chance.choice((0.0, 0.1, 1.0)))
                self.group.elect(chance.choice(NODES))


async def _end_after(seconds: float, scope: trio.CancelScope) -> None:
    await trio.sleep(seconds)
    scope.cancel()


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


def simulate(seed: int, seconds: float, kinds: Sequence[str]) -> World:
    """Run one history. Raises Broken."""
    made: list[World] = []

    async def main() -> None:
        made.append(World(seed))
        await made[0].run(seconds, kinds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "boot_time", trio.current_time)
        # trio shuffles the tasks that are ready; here the seed does (its own tests do the same).
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(trio._core._run, "_r", random.Random(seed))
        patch.setattr(leader_module, "random", random.Random(seed))
        _run(main)
    return made[0]


def _run(main: Callable[[], Any]) -> None:
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        broken = group.subgroup(Broken)
        if broken is None:
            raise
        while isinstance(broken, BaseExceptionGroup):
            broken = broken.exceptions[0]
        raise broken from None
