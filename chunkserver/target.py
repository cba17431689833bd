"""A target as the server uses it: the store behind threads, with group sync and receipts.

What the store does blocks, so it runs in worker threads, DISK_THREADS_PER_TARGET at a time; small PUTs share one. A
sync is asked for by many and done once: who asks while an fdatasync runs is served by the next one, of the segments
asked for by then. What nobody asks for is synced every SYNC_PERIOD_MS.

The one rule: a receipt is made after the fact it states. Its epoch is the one that the metadata service gave at the
last registration; before the first there are no receipts, because nobody knows the target's number.

A disk one of whose calls does not return within the limit of its watch (see watch.py) has failed:

=============  ==============================================  ======================================================
the disk       reads                                           everything that changes something, and receipts
=============  ==============================================  ======================================================
answers        are carried out                                 are carried out
hangs          TargetDown, but for what is in memory           TargetDown, at once and for those who wait, too
came back      are carried out: every byte is verified         TargetDown, until the server is started anew
=============  ==============================================  ======================================================

So no call that came back late makes a receipt, whatever the epoch is by then, and what it did counts for nothing until
the target registers again and is compared as any that was away.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Never, TypeVar

import trio

from shoalfs.chunkserver.directory import ScrubFile
from shoalfs.chunkserver.index import Row
from shoalfs.chunkserver.job_queue import JobQueue
from shoalfs.chunkserver.reader import Blocks
from shoalfs.chunkserver.store import ChunkStore, Usage
from shoalfs.chunkserver.watch import Watch, in_time
from shoalfs.mds.messages import Receipt
from shoalfs.transport.errors import ShoalError, TargetDown, TargetFull
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.frame import Buffer
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import (
    DIRECT_BYTES_MIN,
    DIRECT_PUT_THREADS,
    DISK_CALL_MS_MAX,
    DISK_SHED_MS,
    DISK_STALL_MS,
    DISK_THREADS_PER_TARGET,
    GET_MANY_BYTES_MAX,
    GET_MANY_CHUNK_BYTES_MAX,
    PUT_QUEUED_BYTES_MAX,
    READ_INLINE_BYTES_MAX,
    STALLED_BYTES_MAX,
    SYNC_PERIOD_MS,
)

_log: Final = logging.getLogger("shoal.chunkserver.target")
_T = TypeVar("_T")


@dataclass(eq=False)
class _SyncRound:
    """One sync of one segment, and all who wait for it. ``error``: why it failed; set before ``done``."""

    done: trio.Event = field(default_factory=trio.Event)
    error: TargetDown | None = None

    async def wait(self) -> None:
        await self.done.wait()
        if self.error is not None:
            raise self.error


class Target:
    """Made by :func:`open_target`. ``id`` and ``epoch`` are 0 until :meth:`enrol`."""

    def __init__(self, store: ChunkStore, watch: Watch) -> None:
        self.id = TargetId(0)
        self.epoch = 0
        self.enrolled = trio.Event()  # it has a number, or was refused one
        self.refused: ShoalError | None = None  # why it never will have one
        self.last_usage = Usage(0, 0, 0, 0, 0)  # as it was told last
        self._store = store
        self._watch = watch
        self._waiting: set[trio.CancelScope] = set()  # of those who wait for a thread
        self._threads = trio.CapacityLimiter(DISK_THREADS_PER_TARGET)
        self._direct_threads = trio.CapacityLimiter(DIRECT_PUT_THREADS)  # reads must not wait behind them
        self._small_puts = JobQueue()
        self._held_bytes = 0  # of PUTs that wait
        self._small_thread = trio.CapacityLimiter(1)
        self._sync_threads = trio.CapacityLimiter(1)  # a sync must not wait behind reads
        self._look_threads = trio.CapacityLimiter(1)  # nor must what heartbeats say
        self._next_rounds: dict[int, _SyncRound] = {}  # segment -> the round that has not begun
        self._rounds: dict[int, _SyncRound] = {}  # those that have, and are not done
        self._sync_wanted = trio.Event()
        self._stopped = False

    @property
    def path(self) -> str:
        return self._store.path

    @property
    def uuid(self) -> bytes:
        return self._store.uuid

    @property
    def failed(self) -> str:
        """Why nothing is written any more; empty while all is well."""
        return self._store.failed or self._store.given_up

    @property
    def is_stalled(self) -> bool:
        """A call to its disk lasts for so long that nobody should wait for it who has something else to do."""
        return self._watch.longest_s * 1000 >= DISK_STALL_MS

    @property
    def counters(self) -> Counter[str]:
        return self._store.counters

    def enrol(self, target: TargetId, epoch: int) -> None:
        """The metadata service knows this target by this number; receipts carry this epoch from now on."""
        self.id = target
        self.epoch = epoch
        self.enrolled.set()

    def refuse(self, error: ShoalError) -> None:
        """The metadata service wants nothing of this target any more."""
        self.refused = error
        self.enrolled.set()

    async def stop(self) -> None:
        """Carry out nothing from now on but what has begun, and return when that is done, or its disk hangs. Who waits
        gets TargetDown."""
        self._stopped = True
        error = TargetDown(f"{self.path} is in service no more")
        self._small_puts.refuse(error)
        self._fail_rounds(self._next_rounds, error)
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        """Until what was begun is done, or the disk hangs."""
        limiters = (self._threads, self._direct_threads, self._small_thread, self._sync_threads, self._look_threads)
        taken: list[tuple[trio.CapacityLimiter, object]] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_late, scope)
                for limiter in limiters:
                    for _ in range(int(limiter.total_tokens)):  # who came before has had its turn when all are ours
                        ours = object()
                        await limiter.acquire_on_behalf_of(ours)
                        taken.append((limiter, ours))
                nursery.cancel_scope.cancel()
        for limiter, ours in taken:
            limiter.release_on_behalf_of(ours)

    async def _cancel_when_late(self, scope: trio.CancelScope) -> None:
        while not self._watch.late:  # noqa: ASYNC110 - threads set no events
            await trio.sleep(self._watch.look_s)
        scope.cancel()

    def _check_in_service(self) -> None:
        if self._stopped:
            raise TargetDown(f"{self.path} is in service no more")

    def _check_changing(self) -> None:
        if reason := self._store.given_up:
            raise TargetDown(f"{self.path} is out of service: {reason}")

    async def put(
        self,
        *,
        chunk: ChunkId,
        ino: InodeId,
        offset_bytes: int,
        data: Sequence[Buffer],
        chunk_hash: bytes,
        durable: bool,
        replaces_other: bool = False,
        fragment: Fragment | None = None,
    ) -> Receipt:
        """Store a chunk; ``durable``: and return when it is on disk. ``data`` is not to change, not even afterwards: a
        thread that was left behind may still read it. ``replaces_other``: other bytes under its id are set aside.
        ``fragment``: kept beside it.

        Raises ChunkCorrupt, ChunkConflict, TargetFull, TargetDown, BadMessage. Cancelled: it may be stored or not, or
        later.
        """
        self._check_changing()
        store = partial(
            self._store.put,
            chunk=chunk,
            ino=ino,
            offset_bytes=offset_bytes,
            data=data,
            expected_hash=chunk_hash,
            replaces_other=replaces_other,
            fragment=fragment,
        )
        with self._held(sum(map(len, data))) as size_bytes:
            if size_bytes <= PUT_QUEUED_BYTES_MAX:
                segment = await self._small_puts.run(store)
            elif size_bytes < DIRECT_BYTES_MIN:
                segment = await self._in_thread(store)
            else:
                segment = await self._in_thread(store, limiter=self._direct_threads)
            if durable:
                await self._join_round(segment).wait()
        return self._receipt(chunk, chunk_hash, durable=durable)

    @contextlib.contextmanager
    def _held(self, size_bytes: int) -> Iterator[int]:
        """Note that so much waits for the disk. Raises TargetDown if it has not answered for long and enough waits
        already: else those who wait in vain would take the room of those who want to store elsewhere on this server."""
        if (
            self._held_bytes + size_bytes > STALLED_BYTES_MAX
            and self._held_bytes
            and self._watch.longest_s * 1000 >= DISK_SHED_MS
        ):
            raise TargetDown(f"{self.path}: its disk has not answered for {DISK_SHED_MS} ms, and much waits for it")
        self._held_bytes += size_bytes
        try:
            yield size_bytes
        finally:
            self._held_bytes -= size_bytes

    def get_now(self, chunk: ChunkId, offset_bytes: int, length_bytes: int) -> Blocks | None:
        """As :meth:`get`, if it is little and the system has it in memory, else None: then a thread costs more than
        copying it. Does not wait."""
        if length_bytes > READ_INLINE_BYTES_MAX:
            return None
        self._check_in_service()
        return self._store.reader.get_cached(chunk, offset_bytes, length_bytes)

    async def get(self, chunk: ChunkId, offset_bytes: int, length_bytes: int) -> Blocks:
        """The verified blocks that cover the range. Raises ChunkMissing, ChunkCorrupt, BadMessage."""
        return await self._in_thread(self._store.reader.get, chunk, offset_bytes, length_bytes)

    async def get_many(self, chunks: Sequence[ChunkId]) -> list[Blocks | ShoalError]:
        """All of several small chunks, or why not; in one visit of a thread."""
        read = self._store.reader.get_many
        return await self._in_thread(read, chunks, GET_MANY_BYTES_MAX, GET_MANY_CHUNK_BYTES_MAX)

    async def sync(self, chunks: Sequence[ChunkId]) -> tuple[Receipt, ...]:
        """Put these chunks on disk. Raises ChunkMissing, TargetDown."""
        self._check_changing()
        rows = await self._in_thread(self._store.rows_of, chunks)
        for round_ in [self._join_round(segment) for segment in {row.segment for row in rows}]:
            await round_.wait()
        return tuple(
            self._receipt(chunk, row.chunk_hash, durable=True) for chunk, row in zip(chunks, rows, strict=True)
        )

    async def delete(self, chunks: Iterable[ChunkId]) -> None:
        """The chunks are gone for good when it returns. Raises TargetDown, TargetFull. Cancelled: those that it has
        begun with go."""
        self._check_changing()
        await self._in_thread(self._store.delete, tuple(chunks))

    async def chunks_after(self, chunk: ChunkId, count: int) -> list[tuple[ChunkId, Row]]:
        """Up to ``count`` chunks with a higher id, in rising order."""
        return await self._in_thread(self._store.chunks_after, chunk, count, limiter=self._look_threads)

    async def verify(self, chunk: ChunkId, *, deep: bool) -> Row:
        """What is stored of the chunk. ``deep``: after comparing every byte. Raises ChunkMissing, ChunkCorrupt."""
        return await self._in_thread(partial(self._store.verify, chunk, deep=deep))

    async def read_scrub(self) -> ScrubFile:
        return await self._in_thread(self._store.read_scrub)

    async def write_scrub(self, scrub: ScrubFile) -> None:
        self._check_changing()
        await self._in_thread(self._store.write_scrub, scrub)

    async def usage(self) -> Usage:
        usage = self.last_usage = await self._in_thread(self._store.usage, limiter=self._look_threads)
        return usage

    def _receipt(self, chunk: ChunkId, chunk_hash: bytes, *, durable: bool) -> Receipt:
        """Raises TargetDown if the fact that it states came too late."""
        self._check_changing()
        return Receipt(chunk, self.id, self.epoch, durable, chunk_hash)

    async def _in_thread(
        self, work: Callable[..., _T], *arguments: object, limiter: trio.CapacityLimiter | None = None
    ) -> _T:
        """Raises what ``work`` raises, and TargetDown as soon as the disk hangs. Cancelled, or that: ``work`` goes on
        in its thread if it has begun."""
        if self._stopped:
            await trio.lowlevel.checkpoint()  # who is cancelled with the target does not get an error
        self._check_in_service()
        self._check_answers()
        return await self._visit(partial(work, *arguments), limiter or self._threads)

    def _check_answers(self) -> None:
        if self._store.given_up and (late := self._watch.late):
            raise TargetDown(f"{self.path}: {late}")

    async def _visit(self, work: Callable[[], _T], limiter: trio.CapacityLimiter) -> _T:
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
            finally:
                self._waiting.discard(scope)
        raise TargetDown(f"{self.path} is out of service: {self.failed}")

    async def watch_over(self) -> Never:
        """See to it that nobody waits for a disk that hangs. Runs until cancelled."""
        while True:
            await trio.sleep(self._watch.look_s)
            late = self._watch.late
            if not late:
                continue
            self._store.give_up(late)
            error = TargetDown(f"{self.path} is out of service: {late}")
            self._small_puts.abandon(error)
            self._fail_rounds(self._next_rounds, error)
            self._fail_rounds(self._rounds, error)
            for scope in self._waiting:
                scope.cancel()

    async def close(self) -> None:
        """Put it on disk and close it, once nothing is carried out any more; nothing of both if its disk hangs."""
        self._stopped = True
        for rounds in (self._rounds, self._next_rounds):
            self._fail_rounds(rounds, TargetDown(f"{self.path} is being closed"))
        await self._wait_idle()
        try:
            if self._watch.late:
                raise TargetDown(self._watch.late)
            await in_time(self._watch, "it cannot be closed", self._store.close)
        except TargetDown as error:
            _log.error("%s: left as it is: %s", self.path, error)

    # --- group sync --------------------------------------------------------------------------------------------------

    def _join_round(self, segment: int) -> _SyncRound:
        """The sync of the segment that begins after this call. Raises TargetDown."""
        self._check_in_service()
        self._check_changing()
        self._sync_wanted.set()
        return self._next_rounds.setdefault(segment, _SyncRound())

    async def run_small_puts(self) -> Never:
        """Store the small chunks. Runs until cancelled."""
        await self._small_puts.serve(self._run_small)

    async def _run_small(self, visit: Callable[[], _T]) -> _T | None:
        try:
            return await self._visit(visit, self._small_thread)
        except TargetDown:  # who waits for it was told
            return None

    async def run_syncs(self) -> Never:
        """Carry out the syncs that are asked for, and one of everything every SYNC_PERIOD_MS. Runs until cancelled."""
        next_full = trio.current_time() + SYNC_PERIOD_MS / 1000
        while True:
            with trio.move_on_at(next_full):
                await self._sync_wanted.wait()
            self._sync_wanted = trio.Event()
            self._rounds, self._next_rounds = self._next_rounds, {}
            while self._rounds:
                segment = next(iter(self._rounds))
                await self._run_round(segment, self._rounds[segment])
                self._rounds.pop(segment, None)
            if trio.current_time() >= next_full:
                await self._sync_everything()
                next_full = trio.current_time() + SYNC_PERIOD_MS / 1000

    async def _run_round(self, segment: int, round_: _SyncRound) -> None:
        round_.error = TargetDown(f"{self.path} is being closed")  # for those who wait if this is cancelled
        try:
            await self._visit(partial(self._store.sync, segment), self._sync_threads)
        except TargetDown as error:
            round_.error = error
        else:
            if not round_.done.is_set():
                round_.error = None
        finally:
            round_.done.set()

    def _fail_rounds(self, rounds: dict[int, _SyncRound], error: TargetDown) -> None:
        for round_ in rounds.values():
            if not round_.done.is_set():
                round_.error = error
                round_.done.set()
        rounds.clear()

    async def _sync_everything(self) -> None:
        if self.failed or self._stopped:
            return
        try:
            await self._visit(self._store.sync_round, self._sync_threads)
        except (TargetDown, TargetFull) as error:
            _log.error("%s: periodic sync: %s", self.path, error)


@contextlib.asynccontextmanager
async def open_target(
    open_store: Callable[..., ChunkStore], call_ms_max: int = DISK_CALL_MS_MAX
) -> AsyncIterator[Target]:
    """A target in service for as long as the block runs; afterwards it is put on disk and closed.

    ``open_store(watch=...)`` runs in a thread and may take long (recovery), but none of its calls to the disk may take
    longer than ``call_ms_max``: then TargetDown. Raises what it raises. A target whose disk hangs at the end is left as
    it is, and its directory stays locked: its threads may still change something there.
    """
    watch = Watch(call_ms_max)
    target = Target(await _open_in_time(partial(open_store, watch=watch), watch), watch)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.run_syncs)
            nursery.start_soon(target.run_small_puts)
            nursery.start_soon(target.watch_over)
            yield target
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await target.close()


async def _open_in_time(open_store: Callable[[], ChunkStore], watch: Watch) -> ChunkStore:
    """Raises TargetDown if the disk hangs. If it comes back after that, the store is let go of again."""
    lock, opened, given_up = threading.Lock(), list[ChunkStore](), False

    def open_it() -> None:
        store = open_store()
        with lock:
            if not given_up:
                opened.append(store)
                return
        store.abandon()

    try:
        await in_time(watch, "it cannot be opened", open_it)
    except TargetDown:
        with lock:
            given_up = not opened  # else it came at the last moment
        if given_up:
            raise
    return opened[0]
