"""The replicated log: `GuardedRaft` given a clock, a disk thread and connections. Implements ReplicatedLog.

The one rule: the guard is stepped from one thread, and after each step `_settle` carries away what it left:
results to their proposers, messages to the senders' queues, new records to the sync loop. Nothing waits for a
timer on the way of a proposal: append, sync in a thread, apply, answer. What is proposed while a sync runs
rides on the next one.

Tasks: a timer, a sync loop, a flush loop, and a sender for each other member. If the disk or the state machine
fails, the exception leaves `run`, and the process ends; the group goes on without this member.
"""

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from shoalfs.mds.journal import Journal
from shoalfs.mds.messages import RaftStatus
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_guard import GuardedRaft, Outgoing
from shoalfs.mds.raft_messages import PEER, PeerMessage, peer_name
from shoalfs.mds.replicated import StateMachine
from shoalfs.transport.errors import BadMessage, NotLeader, Overloaded, PeerUnreachable
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import LOG_SYNC_MS_MAX, PEER_QUEUE_MAX, PROPOSALS_QUEUED_MAX
from shoalfs.transport.method import Method, Nothing
from shoalfs.transport.rpc import Call

log: Final = logging.getLogger("shoal.mds.raft")

_TICK_SECONDS: Final = 0.02  # a fifth of a heartbeat
_COMPACT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member is reached by the others, and by clients; both may be the same."""

    peer_address: str
    client_address: str


class PeerNetwork(Protocol):
    """What is needed of transport.network.Network."""

    async def notify(
        self, address: str, method: Method[Any, Any], request: Any, payload: Sequence[bytes] = ()
    ) -> None: ...


def boot_clock() -> float:
    """Seconds since boot, counting suspension: a machine that was asleep knows that its lease has run out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class _Waiter:
    done: trio.Event = field(default_factory=trio.Event)
    applied: bool = False
    result: Any = None


@dataclass(slots=True)
class _Outbox:
    """What waits for one member's connection: at most PEER_QUEUE_MAX. Raft repairs the rest like any loss."""

    address: str
    queue: deque[Outgoing] = field(default_factory=deque)
    filled: trio.Event = field(default_factory=trio.Event)


class RaftNode:
    """One member of the metadata group. See ReplicatedLog for what its calls promise.

    ``service.add(PEER, node.handle_peer)`` and ``await nursery.start(node.run)`` bring it to life. The
    journal is the caller's to close, after ``run`` has ended. ``clock`` is monotonic; ``chance`` is in [0, 1).
    """

    def __init__(
        self,
        node: NodeId,
        members: Mapping[NodeId, Member],
        journal: Journal,
        machine: StateMachine,
        network: PeerNetwork,
        *,
        held_index: Callable[[], int | None] = lambda: None,
        times: RaftTimes = RaftTimes(),  # noqa: B008 - frozen
        clock: Callable[[], float] = boot_clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``members`` include this one. Entries after ``held_index`` are kept in the log, for who reads a snapshot.
        Raises JournalRefused if store and log do not belong together."""
        assert node in members, (node, members)
        self._members = dict(members)
        self._journal = journal
        self._network = network
        self._held_index = held_index
        self._clock = clock
        peers = sorted(set(members) - {node})
        self._guard = GuardedRaft(node, peers, journal, machine, times, clock(), chance)
        self._outboxes = {peer: _Outbox(members[peer].peer_address) for peer in peers}
        self._waiting: dict[tuple[int, int], _Waiter] = {}  # (index, term) -> who proposed it
        self._leading_term = 0  # Invariant: every key of _waiting is of this term
        self._stepped = trio.lowlevel.ParkingLot()  # left at every step
        self._unsynced = trio.Event()
        self._unsent = trio.Event()
        self._behind: list[NodeId] = []
        self.counters: Counter[str] = Counter()

    # --- ReplicatedLog --------------------------------------------------------------------------------------
    @property
    def node(self) -> NodeId:
        return self._guard.node

    async def propose(self, entry: bytes) -> tuple[int, Any]:
        """See ReplicatedLog.

        Also raises Overloaded: too many wait, or the store's checkpoint is far behind.
        """
        if not self._guard.is_leader:
            await trio.lowlevel.checkpoint()
            raise NotLeader(self.leader_address())
        if len(self._waiting) >= PROPOSALS_QUEUED_MAX:
            raise Overloaded("too many entries wait for the group")
        key = self._guard.propose(entry, self._clock())
        waiter = self._waiting[key] = _Waiter()
        try:
            self._unsynced.set()
            self._unsent.set()  # wakes the flush loop after everyone who is about to propose now
            await waiter.done.wait()
        finally:
            self._waiting.pop(key, None)
        if not waiter.applied:
            raise PeerUnreachable("leadership was lost before the entry was applied here")
        return key[0], waiter.result

    def may_serve_reads(self) -> bool:
        return self._guard.may_serve_reads(self._clock())

    async def read_barrier(self) -> None:
        """See ReplicatedLog. Ends at the latest when this node gives up leading for want of a majority."""
        await trio.lowlevel.checkpoint()
        while not self.may_serve_reads():
            if not self._guard.is_leader:
                raise NotLeader(self.leader_address())
            await self._stepped.park()

    def leader_address(self) -> str:
        leader = self._guard.leader
        return "" if leader is None else self._members[leader].client_address

    def snapshot_source(self) -> str | None:
        """The address of the leader if its log does not reach back to where this one ends, else None."""
        source = self._guard.snapshot_source
        return None if source is None else self._members[source].peer_address

    def term_as_leader(self) -> int:
        return self._guard.term if self._guard.is_leader else 0

    def status(self) -> RaftStatus:
        guard = self._guard
        return RaftStatus(
            node=guard.node,
            leader=guard.leader or 0,
            leader_address=self.leader_address(),
            term=guard.term,
            commit_index=guard.commit_index,
            applied_index=guard.applied_index,
            members=tuple((node, member.client_address) for node, member in sorted(self._members.items())),
        )

    # --- peers ----------------------------------------------------------------------------------------------
    async def handle_peer(self, call: Call, message: PeerMessage, payload: memoryview) -> Nothing:
        """A message of another member. What makes no sense is counted and dropped."""
        if call.peer.name != peer_name(message.sender):
            self.counters["peer_messages_forged"] += 1
            return Nothing()
        try:
            self._guard.receive(message, payload, self._clock())
        except BadMessage as error:
            self.counters["peer_messages_bad"] += 1
            log.warning("message of %s dropped: %s", call.peer.name, error)
        self._settle()
        return Nothing()

    # --- tasks ----------------------------------------------------------------------------------------------
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the group until cancelled. Raises JournalFailed, and what the state machine raises."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick_loop)
                nursery.start_soon(self._sync_loop)
                nursery.start_soon(self._flush_loop)
                nursery.start_soon(self._compact_loop)
                for outbox in self._outboxes.values():
                    nursery.start_soon(self._send_loop, outbox)
                task_status.started()
        finally:
            for waiter in self._waiting.values():
                waiter.done.set()

    async def _tick_loop(self) -> None:
        while True:
            self._guard.tick(self._clock())
            self._settle()
            await trio.sleep(_TICK_SECONDS)

    async def _sync_loop(self) -> None:
        disk = trio.CapacityLimiter(1)
        while True:
            batch = self._journal.take_batch()
            if batch is None:
                self._unsynced = trio.Event()
                await self._unsynced.wait()
                continue
            # Shielded: the journal must not be closed under the thread, unless the disk hangs.
            with trio.move_on_after(LOG_SYNC_MS_MAX / 1000, shield=True) as scope:
                await trio.to_thread.run_sync(self._journal.write, batch, limiter=disk, abandon_on_cancel=True)
            if scope.cancelled_caught:
                raise self._journal.abandon_write()
            self._journal.batch_written(batch)
            self._guard.synced(self._clock())
            self._settle()

    async def _flush_loop(self) -> None:
        """Runs after all tasks that propose in this round of the scheduler, so their entries go together."""
        while True:
            await self._unsent.wait()
            self._unsent = trio.Event()
            self._guard.flush(self._clock())
            self._settle()

    async def _compact_loop(self) -> None:
        while True:
            await trio.sleep(_COMPACT_SECONDS)
            paths = self._journal.drop_through(self._guard.droppable_index(self._held_index()))
            if paths:
                await trio.to_thread.run_sync(self._journal.remove, paths)

    async def _send_loop(self, outbox: _Outbox) -> None:
        while True:
            if not outbox.queue:
                outbox.filled = trio.Event()
                await outbox.filled.wait()
            message, payload = outbox.queue.popleft()
            await self._network.notify(outbox.address, PEER, message, payload)

    def _settle(self) -> None:
        """Carry away what a step of the guard has left."""
        guard = self._guard
        for applied in guard.take_applied():
            waiter = self._waiting.get((applied.index, applied.term))
            if waiter is not None:
                waiter.applied, waiter.result = True, applied.result
                waiter.done.set()
        for outgoing in guard.take_outgoing():
            self._post(outgoing)
        if self.term_as_leader() != self._leading_term:
            self._leadership_changed()
        if guard.behind() != self._behind:
            self._report_behind()
        if self._journal.position > self._journal.durable_position:
            self._unsynced.set()
        self._stepped.unpark_all()

    def _post(self, outgoing: Outgoing) -> None:
        outbox = self._outboxes[outgoing.message.receiver]
        if len(outbox.queue) >= PEER_QUEUE_MAX:
            self.counters["peer_messages_overflowed"] += 1
            return
        outbox.queue.append(outgoing)
        outbox.filled.set()

    def _leadership_changed(self) -> None:
        self._leading_term = self.term_as_leader()
        for (_, term), waiter in self._waiting.items():
            if term != self._leading_term:
                waiter.done.set()
        if self._leading_term:
            log.info("node %d leads in term %d", self.node, self._leading_term)
        else:
            log.info("node %d no longer leads; term %d", self.node, self._guard.term)

    def _report_behind(self) -> None:
        for peer in set(self._guard.behind()) - set(self._behind):
            log.warning(
                "member %d needs entries up to %d, gone from the log of node %d: it needs a snapshot",
                peer,
                self._journal.base_index,
                self.node,
            )
        self._behind = self._guard.behind()
