"""Locks of flock(2) and fcntl(2): who holds what, who waits, and whether waiting would ever end. Pure.

The one rule: locks of different owners on the same bytes of the same file are all READ, or there is one. An owner is
(session, what its kernel calls the owner); flock and fcntl are two worlds that do not see each other. Whoever gets a
lock over one of its own replaces it there; neighbours of one kind are joined, as in fs/locks.c of Linux.

The same table serves the leader (all sessions) and each client (its own locks, to be told to a new leader).
"""

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from shoalfs.mds.messages import Lock, LockKind
from shoalfs.transport.ids import InodeId, SessionId

Owner: TypeAlias = tuple[SessionId, int]
_Place: TypeAlias = tuple[InodeId, bool]  # (inode, of flock)


class Held(NamedTuple):
    """A lock, and whose."""

    start_bytes: int
    end_bytes: int  # the last byte
    owner: Owner
    kind: LockKind
    pid: int


class Wait(NamedTuple):
    """A lock that is waited for; ``number`` is the session's."""

    owner: Owner
    number: int
    lock: Lock


class Refusal(enum.Enum):
    DEADLOCK = enum.auto()


class LockTable:
    """``take``, ``give back`` and ``wait``; whoever changes something asks :meth:`granted` for whom it wakes."""

    def __init__(self) -> None:
        # Sorted by start. Invariant: no empty lists; no two locks of one owner in one list overlap.
        self._held: dict[_Place, list[Held]] = {}
        # In the order of their coming. Invariant: no empty lists.
        self._waits: dict[_Place, list[Wait]] = {}
        self._waits_of: defaultdict[Owner, list[Wait]] = defaultdict(list)
        # Locks of each session. Invariant: what is in _held.
        self._count: Counter[SessionId] = Counter()
        self._granted: list[Wait] = []

    # --- questions ---------------------------------------------------------------------------------------------------

    def count(self, session: SessionId) -> int:
        return self._count[session]

    def waits(self, session: SessionId) -> int:
        return sum(len(waits) for (sid, _), waits in self._waits_of.items() if sid == session)

    def conflict(self, session: SessionId, lock: Lock) -> Lock | None:
        """The first lock that is in the way of this one."""
        held = next(self._conflicts((session, lock.owner), lock), None)
        return held and _as_lock(session, lock, held)

    def holds(self, session: SessionId, ino: InodeId, owner: int, *, flock: bool) -> bool:
        """Whether the owner has any lock there."""
        return any(held.owner == (session, owner) for held in self._held.get((ino, flock), ()))

    def locks_of(self, session: SessionId) -> Iterator[Lock]:
        for (ino, flock), places in self._held.items():
            for held in places:
                if held.owner[0] == session:
                    yield Lock(ino, flock, held.owner[1], held.start_bytes, held.end_bytes, int(held.kind), held.pid)

    def _conflicts(self, owner: Owner, lock: Lock) -> Iterator[Held]:
        for held in self._held.get((lock.ino, lock.flock), ()):
            if held.start_bytes > lock.end_bytes:
                return
            if held.end_bytes < lock.start_bytes or held.owner == owner:
                continue
            if LockKind.WRITE in (held.kind, lock.kind):
                yield held

    # --- changes -----------------------------------------------------------------------------------------------------

    def set(self, session: SessionId, lock: Lock) -> Lock | None:
        """Take, change or give back. Returns what is in the way; then nothing is changed, except that a flock is given
        back before another kind of it is asked for (flock(2))."""
        owner = (session, lock.owner)
        place = (lock.ino, lock.flock)
        if lock.kind == LockKind.UNLOCK:
            self._clear(place, owner, lock.start_bytes, lock.end_bytes)
            self._wake(place)
            return None
        self.begin_conversion(session, lock)
        conflict = self.conflict(session, lock)
        if conflict is None:
            self._grant(owner, lock)
            self._wake(place)  # a writer that became a reader
        return conflict

    def begin_conversion(self, session: SessionId, lock: Lock) -> None:
        """Of flock(2): the old kind is given back before the new one is asked for."""
        owner, place = (session, lock.owner), (lock.ino, lock.flock)
        if lock.flock and any(held.owner == owner and held.kind != lock.kind for held in self._held.get(place, ())):
            self._clear(place, owner, lock.start_bytes, lock.end_bytes)
            self._wake(place)

    def wait(self, session: SessionId, lock: Lock, number: int) -> Wait | Refusal | None:
        """Take the lock, or wait for it. None: taken. DEADLOCK: those in the way wait for this owner (fcntl only)."""
        if self.set(session, lock) is None:
            return None
        wait = Wait((session, lock.owner), number, lock)
        if not lock.flock and self._would_circle(wait):
            return Refusal.DEADLOCK
        self._waits.setdefault((lock.ino, lock.flock), []).append(wait)
        self._waits_of[wait.owner].append(wait)
        return wait

    def cancel(self, wait: Wait) -> None:
        """Wait no more. It need not be waiting."""
        place = (wait.lock.ino, wait.lock.flock)
        if wait in self._waits.get(place, ()):
            self._forget(place, wait)

    def end(self, session: SessionId) -> None:
        """The session is gone, with its locks and waits."""
        for owner in [owner for owner in self._waits_of if owner[0] == session]:
            for wait in list(self._waits_of[owner]):
                self.cancel(wait)
        if not self._count[session]:
            return
        for place in list(self._held):
            kept = [held for held in self._held[place] if held.owner[0] != session]
            if len(kept) != len(self._held[place]):
                self._store(place, kept)
                self._wake(place)
        del self._count[session]

    def granted(self) -> list[Wait]:
        """Those who waited and have got their lock since the last call."""
        granted, self._granted = self._granted, []
        return granted

    # --- inside ------------------------------------------------------------------------------------------------------

    def _grant(self, owner: Owner, lock: Lock) -> None:
        place = (lock.ino, lock.flock)
        kind = LockKind(lock.kind)
        self._clear(place, owner, lock.start_bytes, lock.end_bytes)
        start, end = lock.start_bytes, lock.end_bytes
        kept: list[Held] = []
        for held in self._held.get(place, []):
            touches = held.start_bytes <= end + 1 and start <= held.end_bytes + 1
            if held.owner == owner and held.kind == kind and touches:
                start, end = min(start, held.start_bytes), max(end, held.end_bytes)
                self._count[owner[0]] -= 1
            else:
                kept.append(held)
        kept.append(Held(start, end, owner, kind, lock.pid))
        self._count[owner[0]] += 1
        self._store(place, sorted(kept))

    def _clear(self, place: _Place, owner: Owner, start: int, end: int) -> None:
        """The owner has nothing in [start, end] any more; what reaches out of it is kept."""
        kept: list[Held] = []
        for held in self._held.get(place, []):
            if held.owner != owner or held.end_bytes < start or held.start_bytes > end:
                kept.append(held)
                continue
            self._count[owner[0]] -= 1
            for part in ((held.start_bytes, start - 1), (end + 1, held.end_bytes)):
                if part[0] <= part[1]:
                    kept.append(held._replace(start_bytes=part[0], end_bytes=part[1]))
                    self._count[owner[0]] += 1
        self._store(place, sorted(kept))

    def _store(self, place: _Place, held: list[Held]) -> None:
        if held:
            self._held[place] = held
        else:
            self._held.pop(place, None)

    def _wake(self, place: _Place) -> None:
        """Give locks to those who wait and can have them now, in the order of their coming. Again after each: what one
        is given may replace a stronger lock of its own."""
        while (wait := self._first_free(place)) is not None:
            self._forget(place, wait)
            self._grant(wait.owner, wait.lock)
            self._granted.append(wait)

    def _first_free(self, place: _Place) -> Wait | None:
        waits = self._waits.get(place, ())
        return next((wait for wait in waits if next(self._conflicts(wait.owner, wait.lock), None) is None), None)

    def _forget(self, place: _Place, wait: Wait) -> None:
        self._waits[place].remove(wait)
        if not self._waits[place]:
            del self._waits[place]
        self._waits_of[wait.owner].remove(wait)
        if not self._waits_of[wait.owner]:
            del self._waits_of[wait.owner]

    def _would_circle(self, wait: Wait) -> bool:
        """Whether somebody whom ``wait`` would wait for waits, however indirectly, for its owner."""
        seen: set[Owner] = set()
        todo = self._owners(wait)
        while todo:
            owner = todo.pop()
            if owner == wait.owner:
                return True
            if owner not in seen:
                seen.add(owner)
                for other in self._waits_of.get(owner, ()):
                    if not other.lock.flock:
                        todo += self._owners(other)
        return False

    def _owners(self, wait: Wait) -> list[Owner]:
        return [held.owner for held in self._conflicts(wait.owner, wait.lock)]


def _as_lock(session: SessionId, asked: Lock, held: Held) -> Lock:
    """As it is told to ``session``. A process of another machine has no number here."""
    pid = held.pid if held.owner[0] == session else 0
    return Lock(asked.ino, asked.flock, held.owner[1], held.start_bytes, held.end_bytes, int(held.kind), pid)


def restored(table: LockTable, session: SessionId, locks: Iterable[Lock]) -> list[InodeId]:
    """Put in the locks that a session tells a new leader. Returns the files where one is in conflict with a lock that
    somebody else has: there the session gets none."""
    told = list(locks)
    lost = {lock.ino for lock in told if table.conflict(session, lock) is not None}
    for lock in told:
        if lock.ino not in lost:
            table.set(session, lock)
    return sorted(lost)
