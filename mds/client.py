"""The client's stub of the metadata service: one session, retries, at most once.

Whoever uses it sees a service that is sometimes slow and never ambiguous. A call is repeated, with the same (slot,
sequence), at whichever node leads, until it is answered or ``patience_ms`` is over; the state machine applies it once.

The session is renewed in the background. If the service says that the session is gone (this client was cut off or
paused for longer than the TTL), what was not committed is lost by contract: the owner is told through ``on_lost``,
poisons its dirty files, and a new session is opened for what comes after.

**The lease clock**: what the leader has leased to this session may be believed until :attr:`MdsClient.leased_until`,
which is LEASE_TTLS of the TTL after the last renewal that succeeded was *sent*, on a clock that goes on while the
machine sleeps. The leader counts the whole TTL from its arrival, so it never takes a lease for expired before the
client does.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from shoalfs.mds.leader import PATIENCE_MS, Leader
from shoalfs.mds.lock_client import LockClient
from shoalfs.mds.messages import (
    GET_MAP,
    INVALIDATE,
    MUTATE,
    RENEW,
    WRITE_BACK,
    ChunksReserved,
    ClusterMap,
    Command,
    EndSession,
    GetMap,
    Inode,
    InodesReserved,
    Invalidate,
    Invalidated,
    Mutate,
    Op,
    OpenSession,
    Outcome,
    Renew,
    ReserveChunks,
    ReserveInodes,
    SessionOpened,
    WriteBack,
    WrittenBack,
)
from shoalfs.mds.mutations import Mutations
from shoalfs.transport.errors import (
    SessionGone,
    ShoalError,
    from_wire,
)
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import (
    CHANGES_TOGETHER_MAX,
    INODE_RANGE_MAX,
    LEASE_TTLS,
    SESSION_RENEWALS_PER_TTL,
    SLOTS_PER_SESSION,
)
from shoalfs.transport.method import Message, Method, Nothing
from shoalfs.transport.network import Network
from shoalfs.transport.rpc import Reply
from shoalfs.transport.service import Call, Service

log = logging.getLogger("shoal.mds.client")

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)
M = TypeVar("M", bound=Message)

_LAST: Final = (SLOTS_PER_SESSION - 1, (1 << 64) - 1)
"""The slot and sequence number of the last command that a session can have, whatever it has sent."""


class Legacy(Protocol):
    """What a client leaves to the one that comes after it in its place, should it be killed."""

    nonce: bytes
    """Of the session that was left; empty if there is none. Whoever reads it knows that its client is gone."""

    def remember(self, nonce: bytes) -> None:
        """From now on there may be a session of this nonce; empty: there is none any more."""


class NoLegacy:
    """Of a client that has no place of its own: a session that it leaves ends after its TTL."""

    nonce = b""

    def remember(self, nonce: bytes) -> None:
        pass


_RANGE = 1024  # chunk numbers reserved at a time
_encode = msgspec.msgpack.Encoder().encode


def boot_time() -> float:
    """Seconds on the clock of leases, which goes on while the machine sleeps (CLOCK_BOOTTIME, clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Slots:
    """The (slot, sequence) pairs of one session. A slot serves one command at a time."""

    def __init__(self) -> None:
        self._free = list(range(SLOTS_PER_SESSION))
        self._seq = [0] * SLOTS_PER_SESSION
        self._room = trio.Semaphore(SLOTS_PER_SESSION)

    async def take(self) -> tuple[int, int]:
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        slot = self._free.pop()
        self._seq[slot] += 1
        return slot, self._seq[slot]

    def give(self, slot: int) -> None:
        self._free.append(slot)
        self._room.release()


class MdsClient:
    """One session with the metadata service. Made by :func:`open_session`."""

    def __init__(
        self,
        leader: Leader,
        client: str,
        opened: SessionOpened,
        opens: Callable[[], Iterable[InodeId]],
        writes: Callable[[], Iterable[InodeId]],
        on_lost: Callable[[], None],
        on_new_leader: Callable[[], Awaitable[None]],
        legacy: Legacy,
    ) -> None:
        self._leader = leader
        self._mutations = Mutations(leader)
        self._client = client
        self._opens = opens
        self._writes = writes
        self._on_lost = on_lost
        self._on_new_leader = on_new_leader
        self._legacy = legacy
        self._reopening = trio.Lock()
        self._reserving = trio.Lock()
        self.locks = LockClient(self)
        self._adopt(opened)

    def _adopt(self, opened: SessionOpened) -> None:
        self.session: SessionId = opened.session
        self.ttl_ms = opened.ttl_ms
        self.leased_until = 0.0  # see the module; on boot_time()
        self._map = opened.map
        self._slots = _Slots()
        # Chunk numbers [next, end) are reserved for this session and not used yet; and so are inode numbers.
        self._next_sequence = self._end_sequence = 0
        self._next_ino = self._end_ino = 0

    @property
    def map(self) -> ClusterMap:
        """The newest cluster map seen."""
        return self._map

    async def refresh_map(self) -> ClusterMap:
        """Fetch the cluster map. Raises as :meth:`read`."""
        reply = await self._leader.call(GET_MAP, GetMap())
        if reply.body.epoch >= self._map.epoch:
            self._map = reply.body
        return self._map

    async def read(self, method: Method[Q, A], request: Q) -> Reply[A]:
        """Ask the leader. Raises ShoalError: what it answers, or a transport error after the patience is over;
        SessionGone if the session that the request names ended (a new one is open when this raises)."""
        session = self.session
        try:
            return await self._leader.call(method, request)
        except SessionGone:
            await self._reopen(session)
            raise

    async def mutate(self, op: Op, request: Message, reply: type[M]) -> M:
        """As :meth:`change`, one, for those who cache nothing. Raises ShoalError."""
        ((answer, _),), _ = await self.change(op, (request,), reply)
        if isinstance(answer, ShoalError):
            raise answer
        return answer

    async def change(
        self, op: Op, requests: Sequence[Message], reply: type[M], settled: Callable[[], None] = lambda: None
    ) -> tuple[list[tuple[M | ShoalError, bool]], tuple[Inode, ...]]:
        """Carry out mutations, at most CHANGES_TOGETHER_MAX, each once. Returns, of each, the answer, or the error, and
        whether the inodes in it are leased; and directories that have changed as they are now, under leases.

        The errors: PosixError for outcomes that POSIX names, SessionGone if the session ended (a new one is open when
        this returns). Cancelled: they may still be applied; ``settled`` is called when they have been, or will
        not be any more."""
        assert len(requests) <= CHANGES_TOGETHER_MAX, len(requests)
        session, slots = self.session, self._slots
        taken: list[tuple[int, int]] = []
        try:
            commands = []
            for request in requests:
                # One who takes many, and takes them one by one, waits only for those who give theirs back without it.
                taken.append(await slots.take())
                commands.append(Command(*taken[-1], op, msgspec.Raw(_encode(request))))
            results = await self._mutations.carry_out(session, commands, settled)
        finally:
            for slot, _ in taken:
                slots.give(slot)
        answers: list[tuple[M | ShoalError, bool]] = []
        directories: dict[InodeId, Inode] = {}
        for result in results:
            if isinstance(result, ShoalError):
                answers.append((result, False))
            else:
                answers.append((_answer(result.outcome, reply), result.leased))
                directories.update((inode.ino, inode) for inode in result.directories)
        if any(isinstance(answer, SessionGone) for answer, _ in answers):
            await self._reopen(session)
        return answers, tuple(directories.values())

    async def chunk_sequence(self) -> int:
        """The next chunk number that is reserved for this session. Raises as :meth:`mutate`."""
        async with self._reserving:
            if self._next_sequence == self._end_sequence:
                got = await self.mutate(Op.RESERVE_CHUNKS, ReserveChunks(_RANGE), ChunksReserved)
                self._next_sequence = got.first_sequence
                self._end_sequence = got.first_sequence + got.count
            self._next_sequence += 1
            return self._next_sequence - 1

    async def inode_number(self) -> InodeId:
        """The next inode number that is reserved for this session. Raises as :meth:`mutate`."""
        while self._next_ino == self._end_ino:
            await self.reserve_inodes()
        self._next_ino += 1
        return InodeId(self._next_ino - 1)

    def take_inode_numbers(self, count_max: int) -> tuple[int, int]:
        """The first of the next reserved numbers, and how many there are from there on, at most so many: they are not
        given to anybody else. There may be none."""
        first = self._next_ino
        self._next_ino = min(first + count_max, self._end_ino)
        return first, self._next_ino - first

    @property
    def inode_range(self) -> int:
        """The end of the newest range of reserved inode numbers."""
        return self._end_ino

    async def reserve_inodes(self) -> None:
        """Have at least one number for :meth:`inode_number`. Raises as :meth:`mutate`."""
        async with self._reserving:
            if self._next_ino == self._end_ino:
                got = await self.mutate(Op.RESERVE_INODES, ReserveInodes(INODE_RANGE_MAX), InodesReserved)
                self._next_ino, self._end_ino = got.first_ino, got.first_ino + got.count

    async def run(self) -> None:
        """Carry mutations, watch the leader and keep the session alive until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leader.watch)
            nursery.start_soon(self._mutations.run)
            nursery.start_soon(self.renew_forever)

    async def renew_forever(self) -> None:
        """Keep the session alive until cancelled. A leader that is new is told what is open, after what is cached
        under the leases of the old one is dropped."""
        opens: tuple[InodeId, ...] | None = None
        writes: tuple[InodeId, ...] = ()
        term = 0
        while True:
            session, sent = self.session, boot_time()
            try:
                renew = Renew(session, opens, writes, reported_term=term)
                reply = await self._leader.call(RENEW, renew, self.ttl_ms // SESSION_RENEWALS_PER_TTL)
                term = reply.body.term
                await self.locks.leader_is(reply.body.term)
            except SessionGone:
                await self._reopen(session)
                opens, writes = None, ()
                continue
            except ShoalError as error:
                log.warning("the session could not be renewed: %s", error)
                await trio.sleep(1)
                continue
            if session != self.session:
                continue
            if reply.body.want_opens:
                await self._on_new_leader()
                opens, writes = tuple(self._opens()), tuple(self._writes())
                continue
            opens, writes = None, ()
            self.ttl_ms = reply.body.ttl_ms
            self.leased_until = sent + self.ttl_ms * LEASE_TTLS / 1000
            if reply.body.map_epoch > self._map.epoch:
                await self.refresh_map()
            with trio.move_on_after(max(0, sent + self.ttl_ms / SESSION_RENEWALS_PER_TTL / 1000 - boot_time())):
                await self._leader.wait_doubtful()

    async def close(self) -> None:
        """End the session: its locks and reservations are free at once."""
        await self.mutate(Op.END_SESSION, EndSession(self.session), Nothing)
        self._legacy.remember(b"")

    async def _reopen(self, lost: SessionId) -> None:
        async with self._reopening:
            if self.session != lost:
                return  # another task was first
            log.error("session %d is gone: what was not committed is lost; opening a new one", lost)
            self._on_lost()
            self.locks.session_lost()
            self._adopt(await _open_new(self._leader, self._client, self._legacy))


def _answer(outcome: Outcome, reply: type[M]) -> M | ShoalError:
    if outcome.code:
        return from_wire(outcome.code, outcome.text)
    return msgspec.msgpack.decode(outcome.body, type=reply)


async def _open_new(leader: Leader, client: str, legacy: Legacy) -> SessionOpened:
    nonce = os.urandom(16)
    legacy.remember(nonce)  # killed before the session is there: whoever comes next opens it, and ends it
    return await _open(leader, client, nonce)


async def _end_left(leader: Leader, client: str, nonce: bytes) -> None:
    """End the session of this nonce, whose client is gone. If it has ended already, another is opened and ended."""
    left = (await _open(leader, client, nonce)).session
    command = Command(*_LAST, Op.END_SESSION, msgspec.Raw(_encode(EndSession(left))))
    try:
        answer = _answer((await leader.call(MUTATE, Mutate(left, (command,)))).body.outcomes[0], Nothing)
    except SessionGone:
        return  # it was silent for too long, and is being ended
    if isinstance(answer, ShoalError):
        log.warning("session %d, which was left, cannot be ended, it will expire: %s", left, answer)
    else:
        log.info("session %d, which was left, is ended", left)


async def _open(leader: Leader, client: str, nonce: bytes) -> SessionOpened:
    request = OpenSession(nonce=nonce, client=client)
    command = Command(0, 0, Op.OPEN_SESSION, msgspec.Raw(_encode(request)))
    answer = await leader.call(MUTATE, Mutate(SessionId(0), (command,)))
    opened = _answer(answer.body.outcomes[0], SessionOpened)
    if isinstance(opened, ShoalError):
        raise opened
    return opened


def caches_nothing() -> Service:
    """What a client answers the leader's pushes with that keeps nothing under leases: it is done at once. Without an
    answer others would wait for it, and its session would be ended."""

    async def dropped(call: Call, request: Invalidate, payload: memoryview) -> Invalidated:
        return Invalidated()

    async def written_back(call: Call, request: WriteBack, payload: memoryview) -> WrittenBack:
        return WrittenBack(done=True)

    service = Service()
    service.add(INVALIDATE, dropped)
    service.add(WRITE_BACK, written_back)
    return service


@asynccontextmanager
async def open_session(
    network: Network,
    addresses: Sequence[str],
    client: str,
    *,
    opens: Callable[[], Iterable[InodeId]] = tuple,
    writes: Callable[[], Iterable[InodeId]] = tuple,
    on_lost: Callable[[], None] = lambda: None,
    on_new_leader: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    start_ms: int = PATIENCE_MS,
    patience_ms: int = PATIENCE_MS,
    legacy: Legacy | None = None,
) -> AsyncIterator[MdsClient]:
    """Open a session, renew it while the block runs, end it afterwards; but first end the one of ``legacy``.

    ``client`` names this client to operators; ``opens`` tells which inodes are open, ``writes`` which of them have
    written bytes that are kept under a write lease, both for a leader that is new; ``on_lost`` is called when the
    session was lost; ``on_new_leader`` drops what is cached under leases. Raises ShoalError if no leader answers within
    ``start_ms``; later calls have ``patience_ms``.
    """
    starting, legacy = Leader(network, addresses, start_ms), legacy or NoLegacy()
    if legacy.nonce:
        await _end_left(starting, client, legacy.nonce)
    opened = await _open_new(starting, client, legacy)
    leader = Leader(network, addresses, patience_ms)
    stub = MdsClient(leader, client, opened, opens, writes, on_lost, on_new_leader, legacy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stub.run)
        try:
            yield stub
        finally:
            with trio.move_on_after(2, shield=True):
                try:
                    await stub.close()
                except ShoalError as error:
                    log.warning("the session could not be ended, it will expire: %s", error)
            nursery.cancel_scope.cancel()
