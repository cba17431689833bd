"""The metadata service of the worlds of leases: one log that never forgets, with a leader that the world appoints, and
on each node the real service with its leases, its batcher, its duties and its state machine. Virtual time."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from harness import compiled_part
from harness.metadata import CLUSTER, LAYOUT, POOLS
from shoalfs.fs import file as file_module
from shoalfs.fs import making, native_making, new_files
from shoalfs.mds import client as client_module
from shoalfs.mds import leader as leader_module
from shoalfs.mds import messages as m
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.duties import Duties
from shoalfs.mds.entry import decode_entry, encode_entry
from shoalfs.mds.group_messages import WHO_LEADS, LeaderIs, WhoLeads
from shoalfs.mds.machine import Layout, Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.service import LeaderState, MdsService
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotLeader, PeerUnreachable
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Call, Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello
from sim.broken import Broken

TTL_MS = 4_000
NODES = (1, 2)
ADDRESSES = [f"memory:mds{node}" for node in NODES]


@dataclass(eq=False)
class _Waiting:
    """An entry that is proposed and not applied."""

    entry: bytes
    due: float
    lost: trio.Event = field(default_factory=trio.Event)


class Group:
    """One log, one machine, and who leads. ``truth`` is told after each entry is applied."""

    def __init__(self, chance: random.Random, truth: Callable[[], None], layout: Layout = LAYOUT) -> None:
        self.chance, self._truth = chance, truth
        self.store = MemoryStore()
        format_store(self.store, CLUSTER, POOLS, layout)
        self.machine = Machine(self.store, OnDamage.STOP)
        self.leader, self.term = 0, 0
        self.services: dict[int, MdsService] = {}
        self.states: dict[int, LeaderState] = {}
        self._in_flight: deque[_Waiting] = deque()

    def apply(self, entry: bytes) -> tuple[int, Any]:
        """Command by command, so that what is true between two of them is known as well."""
        decoded, outcomes = decode_entry(entry), []
        for command in decoded.commands:
            index, one = self.machine.applied_index + 1, encode_entry(decoded.now_ns, [command])
            outcomes += self.machine.apply([(index, self.term, one)])[0]
            self._truth()
        return self.machine.applied_index, outcomes

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


# --- a node ---
async def serve_node(group: Group, fabric: MemoryFabric, node: int, *, task_status: "trio.TaskStatus[None]") -> None:
    """One metadata node, until cancelled, which is as a crash: what it remembers is gone."""
    log, service = Log(group, node), Service()
    hello = Hello(PROTOCOL_VERSION, CLUSTER, m.MDS, f"mds{node}")
    batcher = Batcher(log, lambda: int(trio.current_time() * 1e9))
    state = LeaderState(SessionTable(TTL_MS))
    metadata = MdsService(group.store, log, batcher, state, _now_ms)
    metadata.install(service)
    group.services[node], group.states[node] = metadata, state

    async def who_leads(call: Call, request: WhoLeads, payload: memoryview) -> LeaderIs:
        return LeaderIs(log.leader_address(), group.term)

    service.add(WHO_LEADS, who_leads)
    duties = Duties(
        group.store,
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
        await nursery.start(serve, Carriers(fabric), f"memory:mds{node}", service, hello)
        task_status.started()


# --- a history ---
async def end_after(seconds: float, scope: trio.CancelScope) -> None:
    await trio.sleep(seconds)
    scope.cancel()


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


def run_history(seed: int, main: Callable[[], Any]) -> None:
    """Run ``main`` in virtual time, with all chance from the seed. Raises Broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "boot_time", trio.current_time)
        for module in (compiled_part, file_module, making, native_making, new_files):
            patch.setattr(module, "time", SimpleNamespace(time_ns=lambda: int(trio.current_time() * 1e9)))
        # trio shuffles the tasks that are ready; here the seed does (its own tests do the same).
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(trio._core._run, "_r", random.Random(seed))
        patch.setattr(leader_module, "random", random.Random(seed))
        try:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            broken = group.subgroup(Broken)
            if broken is None:
                raise
            while isinstance(broken, BaseExceptionGroup):
                broken = broken.exceptions[0]
            raise broken from None
