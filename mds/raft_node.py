"""The replicated log: `GuardedRaft` given a clock, a disk thread and connections. Implements ReplicatedLog.

The one rule: the guard is stepped from one thread, and after each step `_settle` carries away what it left:
results to their proposers, messages to the senders' queues, new records to the sync loop. Nothing waits for a
timer on the way of a proposal: append, sync in a thread, apply, answer. What is proposed while a sync runs
rides on the next one.

Tasks: a timer, a sync loop, a flush loop, one that watches over the members, and a sender for each other node. If the
disk or the state machine fails, the exception leaves `run`, and the process ends; the group goes on without it.
"""

import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from shoalfs.mds.group_messages import FollowerStatus, GroupStatus
from shoalfs.mds.journal import Journal
from shoalfs.mds.messages import RaftStatus
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_guard import GuardedRaft, Outgoing
from shoalfs.mds.raft_members import Members
from shoalfs.mds.raft_messages import PEER, PeerMessage, peer_name
from shoalfs.mds.raft_peers import Follower
from shoalfs.mds.replicated import StateMachine
from shoalfs.transport.errors import BadMessage, DeadlineExceeded, NotLeader, Overloaded, PeerUnreachable, UserError
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import LOG_SYNC_MS_MAX, NODE_MAX, PEER_QUEUE_MAX, PROPOSALS_QUEUED_MAX
from shoalfs.transport.method import Method, Nothing
from shoalfs.transport.service import Call

log: Final = logging.getLogger("shoal.mds.raft")

_TICK_SECONDS: Final = 0.02  # a fifth of a heartbeat
_COMPACT_SECONDS: Final = 5.0
_MEMBERS_SECONDS: Final = 0.1
_FAREWELL_SECONDS: Final = 1.0  # who was removed still says so to who asked for it, and the rest to its followers


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
    """What waits for one node's connection: at most PEER_QUEUE_MAX. Raft repairs the rest like any loss."""

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
        members: Members,
        journal: Journal,
        machine: StateMachine,
        network: PeerNetwork,
        *,
        held_index: Callable[[], int | None] = lambda: None,
        times: RaftTimes = RaftTimes(),  # noqa: B008 - frozen
        clock: Callable[[], float] = boot_clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``members`` count if the store knows of none. Entries after ``held_index`` are kept in the log, for who reads
        a snapshot. Raises JournalRefused if store and log do not belong together."""
        self._journal = journal
        self._network = network
        self._times = times
        self._held_index = held_index
        self._clock = clock
        self._guard = GuardedRaft(node, members, journal, machine, times, clock(), chance)
        self._outboxes: dict[NodeId, _Outbox] = {}  # at most NODE_MAX
        self._strangers: dict[NodeId, str] = {}  # addresses of nodes that only others know to be members yet
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[tuple[int, int], _Waiter] = {}  # (index, term) -> who proposed it
        self._leading_term = 0  # Invariant: every key of _waiting is of this term
        self._serves_reads_until = -math.inf  # as of the last step
        self._round_at = -math.inf  # when followers were last asked for a reader's sake; inf: about to be done
        self._stepped = trio.lowlevel.ParkingLot()  # left at every step
        self._syncing = trio.CancelScope()  # of the write that is with the disk thread, or was
        self._sync_ticks = 0  # since that began
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
        return await self._applied(self._guard.propose(entry, self._clock()))

    async def _applied(self, key: tuple[int, int]) -> tuple[int, Any]:
        """Wait until the entry (index, term), just appended, is applied. Raises PeerUnreachable."""
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
        return self._clock() < self._serves_reads_until

    async def read_barrier(self) -> None:
        """See ReplicatedLog. Ends at the latest when this node gives up leading for want of a majority.

        Without a lease it costs a round of messages, which all readers that wait share, and no disk.
        """
        await trio.lowlevel.checkpoint()
        began = self._clock()
        guard = self._guard
        while not self.may_serve_reads() and guard.confirmed_at(now := self._clock()) < began:
            if not guard.is_leader:
                raise NotLeader(self.leader_address())
            # One round at a time; of those that get lost, heartbeats take the place.
            if self._round_at < began and guard.confirmed_at(now) >= self._round_at:
                self._round_at = math.inf  # the flush loop sends it, once for all who ask in this turn
                self._unsent.set()
            await self._stepped.park()

    def leader_address(self) -> str:
        leader = self._guard.leader
        member = None if leader is None else self._guard.members.get(leader)
        return "" if member is None else member.client_address

    @property
    def term(self) -> int:
        return self._guard.term

    def snapshot_source(self) -> str | None:
        """The address of the leader if its log does not reach back to where this one ends, else None."""
        source = self._guard.snapshot_source
        return None if source is None else self._address_of(source)

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
            members=tuple((member.node, member.client_address) for member in guard.members.members),
        )

    # --- the group ------------------------------------------------------------------------------------------
    @property
    def members(self) -> Members:
        """As the end of the log has them."""
        return self._guard.members

    async def change_members(self, change: Callable[[Members], Members]) -> Members:
        """Change who belongs to the group, and wait until that is applied here. Returns the members then.

        Raises what ``change`` raises, NotLeader, Overloaded while another change is under way, and PeerUnreachable as
        `propose` does.
        """
        if not self._guard.is_leader:
            await trio.lowlevel.checkpoint()
            raise NotLeader(self.leader_address())
        key = self._guard.propose_members(change, self._clock())
        self._settle()
        await self._applied(key)
        return self._guard.members

    async def settled_members(self) -> Members:
        """The members, once they are committed and applied here. Raises NotLeader."""
        while not self._guard.may_change_members():
            if not self._guard.is_leader:
                raise NotLeader(self.leader_address())
            await self._stepped.park()
        return self._guard.members

    async def hand_over(self, node: NodeId) -> None:
        """Let another voter lead. Raises NotLeader, Overloaded, and DeadlineExceeded if it could not be brought up to
        date in time; this node goes on leading then."""
        if not self._guard.is_leader:
            await trio.lowlevel.checkpoint()
            raise NotLeader(self.leader_address())
        term = self._guard.term
        self._guard.hand_over(node, self._clock())
        self._settle()
        while self._guard.is_leader and self._guard.term == term:
            if not self._guard.is_handing_over:
                raise DeadlineExceeded(f"node {node} did not get all entries in time: node {self.node} goes on leading")
            await self._stepped.park()

    def alive(self) -> frozenset[NodeId]:
        """Members that this leader has heard of within an election timeout, itself included."""
        since = self._clock() - self._times.election_max
        heard = [peer for peer, follower in self._guard.followers.items() if follower.answered_at > since]
        return frozenset([self.node, *heard])

    def group_status(self) -> GroupStatus:
        """This node's view of the group."""
        guard, log_, now = self._guard, self._journal, self._clock()
        behind = guard.behind()
        followers = tuple(_status_of(peer, f, now, peer in behind) for peer, f in guard.followers.items())
        lease_ms = round((guard.serves_reads_until(now) - now) * 1000) if guard.may_serve_reads(now) else 0
        return GroupStatus(
            node=guard.node,
            leader=guard.leader or 0,
            term=guard.term,
            base_index=log_.base_index,
            last_index=log_.last_index,
            durable_index=log_.durable_index,
            commit_index=guard.commit_index,
            applied_index=guard.applied_index,
            lease_ms=lease_ms,
            members=guard.members,
            followers=followers,
        )

    # --- peers ----------------------------------------------------------------------------------------------
    async def handle_peer(self, call: Call, message: PeerMessage, payload: memoryview) -> Nothing:
        """A message of another member. What makes no sense is counted and dropped."""
        if call.peer.name != peer_name(message.sender):
            self.counters["peer_messages_forged"] += 1
            return Nothing()
        if message.address and 0 < message.sender <= NODE_MAX:
            self._strangers[message.sender] = message.address
        try:
            self._guard.receive(message, payload, self._clock())
        except BadMessage as error:
            self.counters["peer_messages_bad"] += 1
            log.warning("message of %s dropped: %s", call.peer.name, error)
        self._settle()
        return Nothing()

    # --- tasks ----------------------------------------------------------------------------------------------
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the group until cancelled. Raises JournalFailed, what the state machine raises, and UserError
        if this node does not belong to the group any more."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick_loop)
                nursery.start_soon(self._sync_loop)
                nursery.start_soon(self._flush_loop)
                nursery.start_soon(self._compact_loop)
                nursery.start_soon(self._members_loop)
                self._nursery = nursery
                task_status.started()
        finally:
            for waiter in self._waiting.values():
                waiter.done.set()

    async def _tick_loop(self) -> None:
        try:
            while True:
                self._guard.tick(self._clock())
                self._settle()
                self._look_at_sync()
                await trio.sleep(_TICK_SECONDS)
        finally:
            # Nobody looks any more, and what ends this node does not wait for a disk that hangs.
            self._syncing.deadline = trio.current_time() + LOG_SYNC_MS_MAX / 1000

    def _look_at_sync(self) -> None:
        """Time is counted in ticks: while this process is stopped or starved, it says nothing about the disk."""
        self._sync_ticks += 1
        if self._sync_ticks * _TICK_SECONDS * 1000 >= LOG_SYNC_MS_MAX:
            self._syncing.cancel()

    async def _sync_loop(self) -> None:
        disk = trio.CapacityLimiter(1)
        while True:
            batch = self._journal.take_batch()
            if batch is None:
                self._unsynced = trio.Event()
                await self._unsynced.wait()
                continue
            # Shielded: the journal must not be closed under the thread, unless the disk hangs.
            self._sync_ticks = 0
            with trio.CancelScope(shield=True) as self._syncing:
                await trio.to_thread.run_sync(self._journal.write, batch, limiter=disk, abandon_on_cancel=True)
            if self._syncing.cancelled_caught:
                raise self._journal.abandon_write()
            self._journal.batch_written(batch)
            self._guard.synced(self._clock())
            self._settle()

    async def _flush_loop(self) -> None:
        """Runs after all tasks that propose in this round of the scheduler, so their entries go together."""
        while True:
            await self._unsent.wait()
            self._unsent = trio.Event()
            now = self._clock()
            if self._round_at == math.inf:
                self._round_at = now
                self._guard.ask_round(now)
            self._guard.flush(now)
            self._settle()

    async def _compact_loop(self) -> None:
        while True:
            await trio.sleep(_COMPACT_SECONDS)
            paths = self._journal.drop_through(self._guard.droppable_index(self._held_index()))
            if paths:
                await trio.to_thread.run_sync(self._journal.remove, paths)

    async def _members_loop(self) -> None:
        """Learners that have caught up become voters, and members are bound to their logs."""
        while True:
            await trio.sleep(_MEMBERS_SECONDS)
            if self._guard.dismissed:
                await trio.sleep(_FAREWELL_SECONDS)
                raise UserError(
                    f"mds: {self._guard.dismissed}: remove its directory and make it a new node with `shoal mds join`"
                )
            change = self._guard.due_change(self._clock())
            if change is not None:
                try:
                    await self.change_members(change)
                    log.info("the members are now %s", self._guard.members.described())
                except (NotLeader, PeerUnreachable, Overloaded) as error:
                    log.info("the change of members was cut short, the next leader looks again: %s", error)

    def _address_of(self, node: NodeId) -> str | None:
        member = self._guard.members.get(node)
        return self._strangers.get(node) if member is None else member.peer_address

    async def _send_loop(self, node: NodeId, outbox: _Outbox) -> None:
        while True:
            if not outbox.queue:
                outbox.filled = trio.Event()
                await outbox.filled.wait()
            message, payload = outbox.queue.popleft()
            address = self._address_of(node)
            if address is not None:
                await self._network.notify(address, PEER, message, payload)

    def _settle(self) -> None:
        """Carry away what a step of the guard has left."""
        guard = self._guard
        self._serves_reads_until = guard.serves_reads_until(self._clock())
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
        node = outgoing.message.receiver
        outbox = self._outboxes.get(node)
        if outbox is None:
            if self._nursery is None:
                return  # not running yet: lost
            outbox = self._outboxes[node] = _Outbox()
            self._nursery.start_soon(self._send_loop, node, outbox)
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


def _status_of(peer: NodeId, follower: Follower, now: float, needs_snapshot: bool) -> FollowerStatus:
    silent_s = now - follower.answered_at
    return FollowerStatus(
        peer, follower.match_index, -1 if silent_s == math.inf else round(silent_s * 1000), needs_snapshot
    )
