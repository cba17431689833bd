"""The leader's side of locks: who may ask, who waits, and what a new leader does first.

Locks are the leader's memory (docs/decisions/0008-locks.md). A new leader knows none, so it begins with a **grace
period**: until each session that it found has told its locks (TELL_LOCKS), or the time of its session is over, it gives
nothing out. A session that ends, by itself or by its TTL, gives all its locks back at once, after it has been fenced.

A request that waits stays here, for at most LOCK_PARK_MS, and is answered when its lock is there: nobody polls.
"""

import errno
from collections.abc import Awaitable, Callable, Iterable

import trio

from shoalfs.mds import messages as m
from shoalfs.mds.locks import LockTable, Refusal, Wait, restored
from shoalfs.transport.errors import BadMessage, PosixError, SessionGone
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import LOCK_PARK_MS, LOCK_WAITS_PER_SESSION_MAX, LOCKS_PER_SESSION_MAX
from shoalfs.transport.method import Nothing
from shoalfs.transport.service import Call, Service

_KINDS = frozenset(m.LockKind)


class _Parked:
    """A request that waits, and the answer that ends it."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.outcome: m.LockOutcome | None = None
        self.ended = trio.Event()

    def end(self, outcome: m.LockOutcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.ended.set()


class LeaderLocks:
    """The locks that this leadership has given, and the requests that wait for some."""

    def __init__(self) -> None:
        self._table = LockTable()
        self._parked: dict[tuple[SessionId, int], _Parked] = {}
        # Sessions of the replicated state that have not told their locks yet, and when that does not matter any more.
        self._untold: set[SessionId] = set()
        self._grace_until_ms = 0
        self.term = 0

    def lead(self, term: int, sessions: Iterable[SessionId], grace_until_ms: int) -> None:
        """Leadership begins. Who waits under an earlier one asks again."""
        for parked in list(self._parked.values()):
            parked.end(m.LockOutcome.TELL)
        self._table = LockTable()
        self._parked = {}
        self._untold = set(sessions)
        self._grace_until_ms = grace_until_ms
        self.term = term

    def opened(self, session: SessionId) -> None:
        """A session that begins under this leadership has no locks to tell."""
        self._untold.discard(session)

    def ended(self, session: SessionId) -> None:
        self._untold.discard(session)
        for (sid, _), parked in list(self._parked.items()):
            if sid == session:
                parked.end(m.LockOutcome.CANCELLED)
        self._table.end(session)
        self._answer_granted()

    def knows_all(self, now_ms: int) -> bool:
        return not self._untold or now_ms >= self._grace_until_ms

    def tell(self, session: SessionId, locks: Iterable[m.Lock]) -> list[InodeId]:
        """Take over what a session holds, once."""
        if session not in self._untold:
            return []
        lost = restored(self._table, session, locks)
        self._untold.discard(session)
        return lost

    def has_told(self, session: SessionId) -> bool:
        return session not in self._untold

    def test(self, session: SessionId, lock: m.Lock) -> m.Lock | None:
        return self._table.conflict(session, lock)

    def set(self, session: SessionId, lock: m.Lock) -> m.Lock | None:
        """Raises PosixError(ENOLCK) if the session has too many."""
        if lock.kind != m.LockKind.UNLOCK and self._table.count(session) >= LOCKS_PER_SESSION_MAX:
            raise PosixError(errno.ENOLCK)
        conflict = self._table.set(session, lock)
        self._answer_granted()
        return conflict

    def wait(self, session: SessionId, lock: m.Lock, number: int) -> _Parked | m.LockOutcome:
        """The lock, or a place in the queue. Raises PosixError(ENOLCK)."""
        key = (session, number)
        if self._table.count(session) >= LOCKS_PER_SESSION_MAX or self._table.waits(session) >= (
            LOCK_WAITS_PER_SESSION_MAX
        ):
            raise PosixError(errno.ENOLCK)
        if (before := self._parked.get(key)) is not None:
            self._leave(before)  # the same request again, over another connection
        answer = self._table.wait(session, lock, number)
        self._answer_granted()
        if answer is None:
            return m.LockOutcome.DONE
        if answer is Refusal.DEADLOCK:
            return m.LockOutcome.DEADLOCK
        assert isinstance(answer, Wait)
        self._parked[key] = parked = _Parked(answer)
        return parked

    def cancel(self, session: SessionId, number: int) -> None:
        parked = self._parked.get((session, number))
        if parked is not None:
            parked.end(m.LockOutcome.CANCELLED)

    def leave(self, parked: _Parked) -> None:
        """The request is about to be answered: it waits no more."""
        self._leave(parked)

    def _leave(self, parked: _Parked) -> None:
        parked.end(m.LockOutcome.WAITING)
        self._table.cancel(parked.wait)
        key = (parked.wait.owner[0], parked.wait.number)
        if self._parked.get(key) is parked:
            del self._parked[key]

    def _answer_granted(self) -> None:
        for wait in self._table.granted():
            self._parked[wait.owner[0], wait.number].end(m.LockOutcome.DONE)


class LockService:
    """The methods of locks. ``lead`` returns once this node may answer; ``knows`` tells whether a session lives."""

    def __init__(
        self,
        locks: LeaderLocks,
        lead: Callable[[], Awaitable[None]],
        knows: Callable[[SessionId], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._locks = locks
        self._lead = lead
        self._knows = knows
        self._now_ms = now_ms

    def install(self, service: Service) -> None:
        service.add(m.SET_LOCK, self._set)
        service.add(m.GET_LOCK, self._test)
        service.add(m.CANCEL_LOCK, self._cancel)
        service.add(m.TELL_LOCKS, self._tell)

    async def _set(self, call: Call, request: m.SetLock, payload: memoryview) -> m.LockAnswer:
        lock = request.lock
        if (early := await self._check(request.session, request.term, lock)) is not None:
            return early
        if not request.wait or lock.kind == m.LockKind.UNLOCK:
            conflict = self._locks.set(request.session, lock)
            return self._answer(m.LockOutcome.CONFLICT if conflict else m.LockOutcome.DONE, conflict)
        term = self._locks.term
        parked = self._locks.wait(request.session, lock, request.wait)
        if isinstance(parked, m.LockOutcome):
            return self._answer(parked)
        try:
            with trio.move_on_after(LOCK_PARK_MS / 1000):
                await parked.ended.wait()
        finally:
            # Also when the connection is lost: if the lock was given meanwhile, the client asks again and finds it.
            self._locks.leave(parked)
        assert parked.outcome is not None
        return m.LockAnswer(parked.outcome, term)

    async def _test(self, call: Call, request: m.GetLock, payload: memoryview) -> m.LockAnswer:
        if (early := await self._check(request.session, request.term, request.lock)) is not None:
            return early
        conflict = self._locks.test(request.session, request.lock)
        return self._answer(m.LockOutcome.CONFLICT if conflict else m.LockOutcome.DONE, conflict)

    async def _cancel(self, call: Call, request: m.CancelLock, payload: memoryview) -> Nothing:
        await self._lead()
        self._locks.cancel(request.session, request.wait)
        return Nothing()

    async def _tell(self, call: Call, request: m.TellLocks, payload: memoryview) -> m.LocksTold:
        await self._lead()
        if not self._knows(request.session):
            raise SessionGone
        if len(request.locks) > LOCKS_PER_SESSION_MAX:
            raise BadMessage(f"a session has at most {LOCKS_PER_SESSION_MAX} locks")
        for lock in request.locks:
            _check_lock(lock)
        if request.term != self._locks.term:
            return m.LocksTold(self._locks.term)  # meant for another leader: nothing is taken over
        return m.LocksTold(self._locks.term, tuple(self._locks.tell(request.session, request.locks)))

    async def _check(self, session: SessionId, term: int, lock: m.Lock) -> m.LockAnswer | None:
        """Whether a request may be carried out: if not, its answer. Raises SessionGone, BadMessage."""
        await self._lead()
        if not self._knows(session):
            raise SessionGone
        _check_lock(lock)
        if term != self._locks.term or not self._locks.has_told(session):
            return self._answer(m.LockOutcome.TELL)
        if not self._locks.knows_all(self._now_ms()) and lock.kind != m.LockKind.UNLOCK:
            return self._answer(m.LockOutcome.GRACE)
        return None

    def _answer(self, outcome: m.LockOutcome, conflict: m.Lock | None = None) -> m.LockAnswer:
        return m.LockAnswer(outcome, self._locks.term, conflict)


def _check_lock(lock: m.Lock) -> None:
    if not 0 <= lock.start_bytes <= lock.end_bytes <= m.LOCK_END or lock.kind not in _KINDS:
        raise BadMessage("a lock has no such range or kind")
