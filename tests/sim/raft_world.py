"""A small world for Raft: virtual clocks, a network that delays, loses, repeats and reorders, disks that lose
what was not synced, processes that stall, die and come back. One seed, one history.

The nodes are real: `GuardedRaft` over pysyncobj over a `Journal` in real files. Only fdatasync is left out,
because what a power loss keeps is decided here, sector by sector.
"""

import heapq
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoalfs.mds import install
from shoalfs.mds.journal import Batch, Journal, create_journal, encode_batch
from shoalfs.mds.journal_files import begin_segment
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_guard import GuardedRaft, Outgoing
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.mds.raft_messages import PeerMessage
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import NodeId

CLUSTER = b"simulated-group!"
TIMES = RaftTimes()
SECTOR = 512


class Broken(AssertionError):
    """A promise was broken."""


class Machine:
    """The list of what was applied, with a checkpoint that a power loss goes back to."""

    def __init__(self, world: "World", node: NodeId, applied: list[tuple[int, int, bytes]]) -> None:
        self.world, self.node = world, node
        self.applied = applied
        self.checkpoint = len(applied)

    @property
    def applied_index(self) -> int:
        return len(self.applied)

    @property
    def members(self) -> Members | None:
        known = [members for index, members in self.world.members.items() if index <= len(self.applied)]
        return max(known, key=lambda members: members.index, default=None)

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[Any]:
        if members is not None and self.world.members.setdefault(members.index, members) != members:
            raise Broken(f"node {self.node} has other members at {members.index}")
        for entry in entries:
            self.world.check_applied(self.node, len(self.applied) + 1, entry)
            self.applied.append(entry)
        return [None] * len(entries)

    def durable_index(self) -> int:
        return self.checkpoint


class Process:
    """One member: up or down, with its files."""

    def __init__(self, world: "World", node: NodeId, directory: Path, log_id: bytes) -> None:
        self.world, self.node, self.directory, self.log_id = world, node, directory, log_id
        self.rate = world.chance.uniform(0.96, 1.04)  # its clock runs this much faster
        self.life = 0  # counts starts; events of an earlier life are void
        self.up = False
        self.stalled_until = 0.0
        self.saved: list[tuple[int, int, bytes]] = []  # what is left of the state machine while down
        self.proposed: dict[tuple[int, int], bytes] = {}
        self.batch: Batch | None = None
        self.fetching = False
        self.readers: dict[NodeId, tuple[int, float]] = {}  # of snapshots of this one: held index, until
        self.installing: list[tuple[int, int, bytes]] = []  # a snapshot that waits for the next start
        directory.mkdir(parents=True)
        create_journal(directory, CLUSTER, node, log_id)

    @property
    def now(self) -> float:
        return 1000.0 + self.world.now * self.rate

    def start(self) -> None:
        world = self.world
        if self.up or world.processes[self.node] is not self or self.node not in world.nodes:
            return
        self.life += 1
        self.up = True
        self.journal = Journal(self.directory, CLUSTER, self.node, sync_file=lambda _descriptor: None)
        self.fetching = False
        self.readers.clear()
        if self.installing and not self._install():
            return
        self.machine = Machine(world, self.node, list(self.saved))
        chance = random.Random(world.chance.random()).random
        self.guard = GuardedRaft(self.node, world.founders, self.journal, self.machine, TIMES, self.now, chance)
        self.every(0.02, self.tick)
        self.every(0.3, self.compact)
        self.every(0.05, self.look_for_snapshot)

    def _install(self) -> bool:
        """Steps 4 and 5 of mds/install.py; False if a crash came in between."""
        world, log = self.world, self.journal
        index, term = len(self.installing), self.installing[-1][1]
        if install.is_wanted(log, len(self.saved), index, term):
            crash = world.chance.choice(["", "", "torn reset", "after reset"])
            if crash == "torn reset" and log.term_at(index) != term:
                log.reset(index, term)
                batch = log.take_batch()
                assert batch is not None
                self._leave_torn(batch)
            elif crash:
                install.reset_log(log, index, term)
            if crash:
                log.close()
                self.up = False
                world.at(world.now + 0.05, self.start)
                return False
            install.reset_log(log, index, term)
            self.saved = self.installing
            world.installed += 1
        self.installing = []
        return True

    def every(self, period: float, action: Callable[[], None]) -> None:
        def fire() -> None:
            action()
            self.later(period * self.world.chance.uniform(0.9, 1.1), fire)

        self.later(period * self.world.chance.random(), fire)

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Do it then, if this process still lives; after its stall, if it is stalled."""
        life = self.life

        def fire() -> None:
            if not self.up or self.life != life:
                return
            if self.world.now < self.stalled_until:
                self.world.at(self.stalled_until, fire)
                return
            action()

        self.world.at(self.world.now + delay, fire)

    # --- steps --------------------------------------------------------------------------------------------
    def tick(self) -> None:
        self.guard.tick(self.now)
        if self.guard.dismissed:
            if self.node not in self.world.gone:
                raise Broken(f"node {self.node} is sent away: {self.guard.dismissed}")
            self.world.retire(self.node)
            return
        change = self.guard.due_change(self.now)
        if change is not None:
            self.guard.propose_members(change, self.now)
            self.guard.flush(self.now)
        self.settle()

    def receive(self, data: bytes, payload: bytes) -> None:
        try:
            self.guard.receive(msgspec.msgpack.decode(data, type=PeerMessage), memoryview(payload), self.now)
        except BadMessage as error:
            raise Broken(f"a member sent nonsense: {error}") from error
        self.settle()

    def propose(self, entry: bytes) -> None:
        if not self.guard.is_leader or self.guard.is_handing_over:
            return
        self.proposed[self.guard.propose(entry, self.now)] = entry
        self.guard.flush(self.now)
        self.settle()

    def compact(self) -> None:
        self.machine.checkpoint = max(self.machine.checkpoint, self.machine.applied_index - 5)
        held = [index for index, until in self.readers.values() if until > self.world.now]
        self.journal.remove(self.journal.drop_through(self.guard.droppable_index(min(held, default=None))))

    def look_for_snapshot(self) -> None:
        source = self.guard.snapshot_source
        if source is None or self.fetching or not self.world.can_talk(self.node, source):
            return
        giver = self.world.processes[source]
        copy = list(giver.machine.applied)
        giver.readers[self.node] = (len(copy), self.world.now + 2.0)
        self.fetching = True
        life = giver.life

        def received() -> None:
            self.fetching = False
            is_whole = giver.life == life and self.world.can_talk(self.node, source)
            if is_whole and len(copy) > self.machine.applied_index:
                self.stop(power=self.world.chance.random() < 0.5)
                self.installing = copy
                self.world.at(self.world.now + self.world.chance.uniform(0.01, 0.1), self.start)

        self.later(self.world.chance.uniform(0.02, 0.5), received)

    def settle(self) -> None:
        world = self.world
        for outgoing in self.guard.take_outgoing():
            world.send(outgoing)
        for applied in self.guard.take_applied():
            entry = self.proposed.pop((applied.index, applied.term), None)
            if entry is not None:
                world.acknowledged[entry] = applied.index
        world.check_leader(self)
        if self.batch is None and (batch := self.journal.take_batch()) is not None:
            self.batch = batch
            self.later(world.sync_seconds(), self.finish_sync)

    def finish_sync(self) -> None:
        assert self.batch is not None
        self.journal.write(self.batch)
        self.journal.batch_written(self.batch)
        self.batch = None
        self.guard.synced(self.now)
        self.settle()

    # --- ends ---------------------------------------------------------------------------------------------
    def stop(self, *, power: bool) -> None:
        """Kill it. With ``power``, everything unsynced goes too, or half of it."""
        self.up = False
        if self.batch is not None:
            self._leave_torn(self.batch)
        self.batch = None
        self.journal.close()
        self.saved = self.machine.applied[: self.machine.checkpoint] if power else self.machine.applied
        self.proposed.clear()

    def _leave_torn(self, batch: Batch) -> None:
        """Any of the sectors of the write that was under way may be on the disk."""
        chance = self.world.chance
        if batch.segment is not None:
            path, header = batch.segment
            if chance.random() < 0.5:
                if chance.random() < 0.5:
                    path.with_suffix(".tmp").write_bytes(b"half a hea")
                return
            os.close(begin_segment(path, header))
        data = bytearray(encode_batch(batch))
        style = chance.choice(["nothing", "prefix", "sectors", "all"])
        if style == "nothing":
            return
        if style == "prefix":
            del data[chance.randrange(len(data) + 1) :]
        if style == "sectors":
            for start in range(0, len(data), SECTOR):
                if chance.random() < 0.5:
                    end = min(start + SECTOR, len(data))
                    data[start:end] = bytes(end - start)
        newest = max(self.directory.glob("*.log"))
        with newest.open("ab") as file:
            file.write(data)


class World:
    def __init__(self, seed: int, directory: Path, *, size: int = 3, loss: float = 0.02) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.nodes = [NodeId(n) for n in range(1, size + 1)]
        self.loss = loss
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.leaders: dict[int, NodeId] = {}
        self.history: dict[int, tuple[int, int, bytes]] = {}
        self.founders = founders(Member(n, f"peer-{n}", f"client-{n}") for n in self.nodes)
        self.members: dict[int, Members] = {}  # that were applied, by the index of their entry
        self.seen: dict[bytes, int] = {}
        self.acknowledged: dict[bytes, int] = {}
        self.reads = 0
        self.installed = 0  # snapshots
        self.slow_disks = False
        self.clients_on = True
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.directory = directory
        self.processes: dict[NodeId, Process] = {}
        self.gone: set[NodeId] = set()  # removed, or their disk is lost: they may be told to end
        for n in self.nodes:
            self.add(n, b"log of node %04d" % n).start()

    def add(self, node: NodeId, log_id: bytes) -> Process:
        """A process with an empty disk, not started."""
        directory = self.directory / log_id.decode().replace(" ", "-")
        process = self.processes[node] = Process(self, node, directory, log_id)
        if node not in self.nodes:
            self.nodes.append(node)
        return process

    def retire(self, node: NodeId) -> None:
        """It never comes back."""
        if self.processes[node].up:
            self.processes[node].stop(power=True)
        self.processes[node].life += 1
        if node in self.nodes:
            self.nodes.remove(node)

    # --- time ---------------------------------------------------------------------------------------------
    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, action = heapq.heappop(self._events)
            self.now = max(self.now, when)
            action()
        self.now = end

    def close(self) -> None:
        for process in self.processes.values():
            if process.up:
                process.stop(power=False)

    # --- network and disks --------------------------------------------------------------------------------
    def send(self, outgoing: Outgoing) -> None:
        message, payload = outgoing.message, b"".join(outgoing.payload)
        data = msgspec.msgpack.encode(message)
        copies = 1 + (self.chance.random() < self.loss)
        for _ in range(copies):
            if self.chance.random() < self.loss:
                continue
            delay = self.chance.uniform(0.0002, 0.004)
            if self.chance.random() < self.loss:
                delay += self.chance.uniform(0.0, 1.0)
            self.at(self.now + delay, lambda: self._deliver(message, data, payload))

    def _deliver(self, message: PeerMessage, data: bytes, payload: bytes) -> None:
        target = self.processes.get(message.receiver)
        if target is not None and target.up and (message.sender, message.receiver) not in self.cut:
            target.later(0.0, lambda: target.receive(data, payload))

    def can_talk(self, one: NodeId, other: NodeId) -> bool:
        a, b = self.processes[one], self.processes[other]
        is_open = (one, other) not in self.cut and (other, one) not in self.cut
        return is_open and a.up and b.up and self.now >= max(a.stalled_until, b.stalled_until)

    def sync_seconds(self) -> float:
        if self.slow_disks and self.chance.random() < 0.1:
            return self.chance.uniform(0.05, 0.6)
        return self.chance.uniform(0.0005, 0.01)

    # --- promises -----------------------------------------------------------------------------------------
    def check_leader(self, process: Process) -> None:
        if process.guard.is_leader:
            first = self.leaders.setdefault(process.guard.term, process.node)
            if first != process.node:
                raise Broken(f"{first} and {process.node} both lead term {process.guard.term}")

    def check_applied(self, node: NodeId, expected_index: int, entry: tuple[int, int, bytes]) -> None:
        index, _, command = entry
        if index != expected_index:
            raise Broken(f"node {node} applies {index} where {expected_index} comes next")
        if self.history.setdefault(index, entry) != entry:
            raise Broken(f"node {node} applies {entry} where another applied {self.history[index]}")
        if command and self.seen.setdefault(command, index) != index:
            raise Broken(f"{command!r} is applied at {index} and at {self.seen[command]}")

    def check_read(self, process: Process) -> None:
        """A lease read must see everything that any client was told is done."""
        if not process.up or self.now < process.stalled_until:
            return
        if process.guard.may_serve_reads(process.now):
            self.reads += 1
            newest = max(self.acknowledged.values(), default=0)
            if process.machine.applied_index < newest:
                raise Broken(f"node {process.node} serves reads at {process.machine.applied_index} of {newest}")

    def check_healed(self) -> None:
        """After everything works again: one leader, everybody equal, nothing acknowledged is lost."""
        whole = [self.processes[node] for node in self.nodes]
        applied = {process.node: process.machine.applied for process in whole}
        longest = max(applied.values(), key=len)
        for node, entries in applied.items():
            if entries != longest:
                raise Broken(f"node {node} is at {len(entries)} of {len(longest)} after healing")
        commands = [command for _, _, command in longest if command]
        if len(set(commands)) != len(commands):
            raise Broken("something was applied twice")
        lost = set(self.acknowledged) - set(commands)
        if lost:
            raise Broken(f"acknowledged and lost: {sorted(lost)[:5]}")
        if sum(process.guard.is_leader for process in whole) != 1:
            raise Broken("there is not one leader after healing")
