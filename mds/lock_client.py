"""A session's locks, on its side: asks the leader, and remembers what it holds, to tell it to a leader that is new.

The one rule: an answer counts only if it is of the leadership that this client speaks with. What an older one granted
without our hearing of it in time was not told to the new one, so it is not held, and is asked for again.
"""

import errno
import logging
from collections.abc import Callable, Iterable
from itertools import count
from typing import Protocol, TypeVar

import msgspec
import trio

from shoalfs.mds.locks import LockTable
from shoalfs.mds.messages import (
    CANCEL_LOCK,
    GET_LOCK,
    SET_LOCK,
    TELL_LOCKS,
    CancelLock,
    GetLock,
    Lock,
    LockAnswer,
    LockKind,
    LockOutcome,
    SetLock,
    TellLocks,
)
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import LOCK_GRACE_RETRY_MS
from shoalfs.transport.method import Method
from shoalfs.transport.rpc import Reply

log = logging.getLogger("shoal.mds.lock_client")

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

_ME = SessionId(0)  # in the table of our own locks, where there is only one session
_GIVE_UP_S = 5.0  # an interrupted wait asks the leader so long what has become of it


class Asks(Protocol):
    """What is needed of :class:`~shoalfs.mds.client.MdsClient`."""

    @property
    def session(self) -> SessionId: ...

    async def read(self, method: Method[Q, A], request: Q) -> Reply[A]: ...


class LockClient:
    """The locks of one session. ``on_lost`` is told of files on which locks were lost: of all, when the session ends
    without being asked to."""

    def __init__(self, client: Asks) -> None:
        self._client = client
        self.on_lost: Callable[[Iterable[InodeId]], None] = lambda _: None
        self._table = LockTable()
        # Answers of this leadership count; it has been told our locks if _told is the same.
        self._term = 0
        self._told = 0
        self._telling = trio.Lock()
        self._numbers = count(1)
        # Waits of this client at a leader: to be asked anew when there is another one.
        self._parked: set[trio.CancelScope] = set()
        # Owners who may hold a lock that we do not know of: an interrupted wait whose end was never heard.
        self._doubtful: set[tuple[InodeId, int, bool]] = set()

    # --- the calls ---------------------------------------------------------------------------------------------------

    def holds(self, ino: InodeId, owner: int, *, flock: bool) -> bool:
        """Whether the owner has, or may have, a lock on the file."""
        return self._table.holds(_ME, ino, owner, flock=flock) or (ino, owner, flock) in self._doubtful

    async def test(self, lock: Lock) -> Lock | None:
        """The lock that is in the way of this one. Raises ShoalError."""
        return (await self._ask(GET_LOCK, lambda: GetLock(self._client.session, self._term, lock))).conflict

    async def set(self, lock: Lock) -> Lock | None:
        """Take, change or give back. Returns what is in the way. Raises ShoalError; PosixError(ENOLCK) if there are too
        many. Cancelled: a lock may have been given, until its owner's next :meth:`set` or the end of the session."""
        if lock.kind == LockKind.UNLOCK:
            self._table.set(_ME, lock)  # first, so that no leader is told of it any more
        answer = await self._ask(SET_LOCK, lambda: SetLock(self._client.session, self._term, lock))
        if answer.outcome == LockOutcome.DONE:
            self._note(lock)
        else:
            self._table.begin_conversion(_ME, lock)
        return answer.conflict

    async def wait(self, lock: Lock) -> None:
        """Take the lock as soon as it can be had. Raises ShoalError; PosixError(EDEADLK) if that would be never.
        Cancelled: the lock is not there, or this returns as if nothing had happened."""
        self._table.begin_conversion(_ME, lock)
        number = next(self._numbers)
        given_up = trio.Event()
        answers: list[LockAnswer | ShoalError] = []
        answered = trio.Event()
        asking = trio.CancelScope(shield=True)

        async def ask() -> None:
            with asking:
                try:
                    answers.append(await self._ask_parked(lock, number, given_up))
                except ShoalError as error:
                    answers.append(error)
                finally:
                    answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            try:
                await answered.wait()
            except trio.Cancelled:
                given_up.set()
                await self._give_up(number, answered)
                if not answers:
                    self._doubtful.add((lock.ino, lock.owner, lock.flock))
                    asking.cancel()
                if not answers or isinstance(answers[0], ShoalError) or answers[0].outcome != LockOutcome.DONE:
                    raise
        answer = answers[0]
        if isinstance(answer, ShoalError):
            raise answer
        if answer.outcome == LockOutcome.DEADLOCK:
            raise PosixError(errno.EDEADLK)
        assert answer.outcome == LockOutcome.DONE, answer

    async def _ask_parked(self, lock: Lock, number: int, given_up: trio.Event) -> LockAnswer:
        while True:
            with trio.CancelScope() as scope:
                self._parked.add(scope)
                try:
                    answer = await self._ask(SET_LOCK, lambda: SetLock(self._client.session, self._term, lock, number))
                finally:
                    self._parked.discard(scope)
                if answer.outcome == LockOutcome.DONE:
                    self._note(lock)
                    return answer
                if answer.outcome == LockOutcome.DEADLOCK or given_up.is_set():
                    return answer
            if given_up.is_set():
                return LockAnswer(LockOutcome.CANCELLED, self._term)

    async def _give_up(self, number: int, answered: trio.Event) -> None:
        """Have the leader answer now. It says whether the lock was given; nothing else does."""
        with trio.move_on_after(_GIVE_UP_S, shield=True):
            while not answered.is_set():
                try:
                    await self._client.read(CANCEL_LOCK, CancelLock(self._client.session, number))
                except ShoalError as error:
                    log.info("a wait for a lock could not be cancelled: %s", error)
                with trio.move_on_after(LOCK_GRACE_RETRY_MS / 1000):
                    await answered.wait()

    def _note(self, lock: Lock) -> None:
        self._table.set(_ME, lock)
        if lock.kind == LockKind.UNLOCK:
            self._doubtful.discard((lock.ino, lock.owner, lock.flock))

    async def _ask(self, method: Method[Q, LockAnswer], request: Callable[[], Q]) -> LockAnswer:
        """An answer of the leadership that knows our locks. ``request`` is made anew for each."""
        while True:
            answer = (await self._client.read(method, request())).body
            if answer.outcome == LockOutcome.TELL:
                if answer.term <= self._told:
                    await trio.sleep(LOCK_GRACE_RETRY_MS / 1000)  # an old leader that has not heard of the new one
                await self.leader_is(answer.term)
            elif answer.outcome == LockOutcome.GRACE:
                await trio.sleep(LOCK_GRACE_RETRY_MS / 1000)
            elif answer.term == self._term:
                return answer

    # --- leaders and sessions ----------------------------------------------------------------------------------------

    async def leader_is(self, term: int) -> None:
        """Tell our locks to this leadership, unless it has been told. Raises ShoalError."""
        async with self._telling:
            while term > self._told:
                # From here on older answers do not count, so nothing is added to what is told.
                self._term = term
                locks = tuple(self._table.locks_of(_ME))
                told = (await self._client.read(TELL_LOCKS, TellLocks(self._client.session, term, locks))).body
                if told.term != term:
                    term = told.term
                    continue
                self._told = term
                if told.lost:
                    self._lose(told.lost)
                for scope in self._parked:
                    scope.cancel()

    def session_lost(self) -> None:
        """All locks are gone with the session; the next one begins with none."""
        lost = {lock.ino for lock in self._table.locks_of(_ME)}
        self._table = LockTable()
        self._doubtful.clear()
        self._term = self._told = 0
        if lost:
            self.on_lost(lost)

    def _lose(self, inos: Iterable[InodeId]) -> None:
        gone = set(inos)
        log.error("locks on %d files were lost: the leader changed, and was told too late", len(gone))
        for lock in list(self._table.locks_of(_ME)):
            if lock.ino in gone:
                self._table.set(_ME, msgspec.structs.replace(lock, kind=LockKind.UNLOCK))
        self.on_lost(gone)
