"""One simulated member: a process that ticks, syncs, stalls, dies and comes back, with its log in real files.

What runs in it is real: `GuardedRaft` over pysyncobj over a `Journal`. Only fdatasync is left out, because what a power
loss keeps is decided in `disk.py`.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shoalfs.mds import install
from shoalfs.mds.journal import Batch, Journal, JournalRefused, create_journal
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_guard import Applied, GuardedRaft
from shoalfs.mds.raft_messages import PeerMessage
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import NodeId
from sim.broken import Broken
from sim.disk import leave_torn
from sim.machines import Image, SimulatedMachine

if TYPE_CHECKING:
    from sim.world import World

CLUSTER = b"simulated-group!"
TIMES = RaftTimes()


class Process:
    """One member: up or down, with its files."""

    def __init__(self, world: "World", node: NodeId, directory: Path, log_id: bytes) -> None:
        self.world, self.node, self.directory, self.log_id = world, node, directory, log_id
        self.rate = world.chance.uniform(0.96, 1.04)  # its clock runs this much faster
        self.life = 0  # counts starts; events of an earlier life are void
        self.up = False
        self.stalled_until = 0.0
        self.saved: Image | None = None  # what is left of the state machine while down
        self.proposed: dict[tuple[int, int], Callable[[Applied], None]] = {}  # who waits for what
        self.batch: Batch | None = None
        self.fetching = False
        self.readers: dict[NodeId, tuple[int, float]] = {}  # of snapshots of this one: held index, until
        self.installing: Image | None = None  # a snapshot that waits for the next start
        self.machine: SimulatedMachine
        directory.mkdir(parents=True)
        create_journal(directory, CLUSTER, node, log_id)

    @property
    def now(self) -> float:
        return 1000.0 + self.world.now * self.rate

    @property
    def works(self) -> bool:
        return self.up and self.world.now >= self.stalled_until

    def start(self) -> None:
        world = self.world
        if self.up or world.processes[self.node] is not self or self.node not in world.nodes:
            return
        self.life += 1
        self.up = True
        chance = random.Random(world.chance.random()).random
        try:
            self.journal = Journal(self.directory, CLUSTER, self.node, sync_file=lambda _descriptor: None)
            self.fetching = False
            self.readers.clear()
            if self.installing is not None and not self._install(self.installing):
                return
            self.machine = world.make_machine(self.node, self.saved)
            self.guard = GuardedRaft(self.node, world.founders, self.journal, self.machine, TIMES, self.now, chance)
        except JournalRefused as error:
            raise Broken(f"node {self.node} does not start after a crash: {error}") from error
        self.every(0.02, self.tick)
        self.every(0.3, self.compact)
        self.every(0.05, self.look_for_snapshot)
        world.started(self)

    def _install(self, image: Image) -> bool:
        """Steps 4 and 5 of mds/install.py; False if a crash came in between."""
        world, log = self.world, self.journal
        if install.is_wanted(log, self.saved.index if self.saved else 0, image.index, image.term):
            crash = world.chance.choice(["", "", "torn reset", "after reset"])
            if crash == "torn reset" and log.term_at(image.index) != image.term:
                log.reset(image.index, image.term)
                batch = log.take_batch()
                assert batch is not None
                leave_torn(batch, self.directory, world.chance)
            elif crash:
                install.reset_log(log, image.index, image.term)
            if crash:
                log.close()
                self.up = False
                world.at(world.now + 0.05, self.start)
                return False
            install.reset_log(log, image.index, image.term)
            self.saved = image
            world.installed += 1
        self.installing = None
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

    def propose(self, entry: bytes, done: Callable[[Applied], None]) -> bool:
        """False if this node does not lead."""
        if not self.guard.is_leader or self.guard.is_handing_over:
            return False
        self.proposed[self.guard.propose(entry, self.now)] = done
        self.guard.flush(self.now)
        self.settle()
        return True

    def compact(self) -> None:
        self.machine.make_checkpoint()
        held = [index for index, until in self.readers.values() if until > self.world.now]
        self.journal.remove(self.journal.drop_through(self.guard.droppable_index(min(held, default=None))))

    def look_for_snapshot(self) -> None:
        source = self.guard.snapshot_source
        if source is None or self.fetching or not self.world.can_talk(self.node, source):
            return
        giver = self.world.processes[source]
        copy = giver.give_snapshot(self.node)
        self.fetching = True
        life = giver.life

        def received() -> None:
            self.fetching = False
            is_whole = giver.life == life and self.world.can_talk(self.node, source)
            if is_whole and copy.index > self.machine.applied_index:
                self.stop(power=self.world.chance.random() < 0.5)
                self.installing = copy
                self.world.at(self.world.now + self.world.chance.uniform(0.01, 0.1), self.start)

        self.later(self.world.chance.uniform(0.02, 0.5), received)

    def give_snapshot(self, reader: NodeId) -> Image:
        """A copy of the store; the log is kept from there on, for a while."""
        copy = self.machine.image(durable=False)
        self.readers[reader] = (copy.index, self.world.now + 2.0)
        return copy

    def settle(self) -> None:
        world = self.world
        for outgoing in self.guard.take_outgoing():
            world.send(outgoing)
        for applied in self.guard.take_applied():
            done = self.proposed.pop((applied.index, applied.term), None)
            if done is not None:
                done(applied)
        if self.guard.is_leader:
            world.promises.leads(self.node, self.guard.term, self.journal)
        world.settled(self)
        if self.up and self.batch is None and (batch := self.journal.take_batch()) is not None:
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
            style = leave_torn(self.batch, self.directory, self.world.chance)
            self.world.met[f"sync cut short: {style}"] += 1
        self.batch = None
        self.journal.close()
        self.saved = self.machine.image(durable=power)
        self.proposed.clear()
