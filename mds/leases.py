"""Who may cache what: the leader's table of leases. Pure.

A **lease** is the leader's promise to a session: "before this changes, you are told, and I wait until you have
dropped it". There are three kinds, each on one inode:

* on an **inode**: its attributes, its inline bytes, its extents;
* on the **names** of a directory: what each of them leads to, and that a name does not exist;
* to **write** a file: its holder may keep what programs write to it, for nobody else is told anything of the file, or
  changes it, before the holder was asked to commit that;
* to write a **directory**, which is the same lease on a directory: its holder may make files in it and tell of them
  later, for nobody else is told a name of it, or that it does not exist, before the holder was asked to tell.

A mutation goes through three steps, and the table knows each that is between the first and the last (a
:class:`Change`):

1. :meth:`LeaseTable.begin` marks what it touches and says which sessions hold leases on it;
2. these are told, and :meth:`LeaseTable.acknowledged` takes their leases away;
3. it is applied, and :meth:`LeaseTable.end` takes the marks off.

The rules from which coherence follows:

* nothing that is marked is given under a lease, except what a mutation returns to its own session at its end;
* a name that is marked is not marked again: the second mutation waits for the first (:meth:`LeaseTable.blocked`). So
  what a name leads to cannot change between ``begin`` and the end;
* the session that mutates keeps its leases: it learns the new state from the answer;
* one session holds the write lease on an inode, and while it does no other holds a lease on that inode, or on the
  names of that directory. So the commit of its holder has nobody to be told, and waits for nobody;
* a mutation of a name waits for the write lease on its directory to be called back *before* it marks the name
  (:meth:`LeaseTable.written_directory`): what the holder has to tell may be a file of that very name.

Why it is bounded: a session holds at most ``per_session_max`` leases on inodes and as many on names. When it comes
near, :meth:`LeaseTable.crowded` says which old ones to call back.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from shoalfs.mds.touched import Name, Touched
from shoalfs.transport.ids import InodeId, SessionId

T = TypeVar("T")

CONTENDED_NAMES: Final = 16
CONTENDED_MS: Final = 1_000
"""A directory that is **contended** is not leased: two sessions that fill it together would otherwise tell each other
of every file, a round trip each. It becomes contended when one session had to be told of CONTENDED_NAMES changes within
CONTENDED_MS, and ceases to be when for so long only one session has changed anything in it, or nobody."""
_CONTENDED_MAX: Final = 65_536  # directories remembered as contended
_NOBODY: Final[frozenset[SessionId]] = frozenset()
_NO_SESSION: Final = SessionId(0)
CONTENDED_WRITES: Final = 8
"""A file whose write lease was called back so often within CONTENDED_MS is contended for as long: nobody gets the
lease, and who writes commits each write."""


@dataclass(slots=True)
class _Held:
    """The leases of one session, the oldest first. ``names``: with the changes that it was told of, and since when."""

    inodes: dict[InodeId, None] = field(default_factory=dict)
    names: dict[InodeId, tuple[int, int]] = field(default_factory=dict)
    writes: set[InodeId] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Change:
    """A mutation that is between its admission and its end. ``recalls``: what each session has to drop before it
    may be applied; a session is in it until it has acknowledged. ``writers``: who has to write back which inodes."""

    session: SessionId  # whose leases stay; 0: nobody's
    touched: Touched
    recalls: dict[SessionId, Touched] = field(default_factory=dict)
    writers: dict[InodeId, SessionId] = field(default_factory=dict)
    ended: bool = False


class LeaseTable:
    """All leases of one leadership."""

    def __init__(self, per_session_max: int) -> None:
        assert per_session_max >= 16, per_session_max
        self._max = per_session_max
        self._held: dict[SessionId, _Held] = {}
        # Invariants: the sessions whose ``_Held`` has the inode; no empty sets.
        self._inode_holders: dict[InodeId, set[SessionId]] = {}
        self._names_holders: dict[InodeId, set[SessionId]] = {}
        # Invariant: the session whose ``_Held.writes`` has the inode; and then neither ``_inode_holders`` nor
        # ``_names_holders`` has another.
        self._writers: dict[InodeId, SessionId] = {}
        # What is marked. Invariants: the sum over all changes that have not ended; no zero entries.
        self._changing_names: set[Name] = set()
        self._names_changing_in: Counter[InodeId] = Counter()
        self._changing_inodes: Counter[InodeId] = Counter()
        self._changing_by: Counter[tuple[InodeId, SessionId]] = Counter()  # the same, by whose changes they are
        self._changing_directories: Counter[InodeId] = Counter()
        # Contended directories: until when they are, and who changed each last.
        self._contended: dict[InodeId, tuple[int, SessionId]] = {}
        # How often the write lease on each was called back since when; bounded as the contended directories are.
        self._called_back: dict[InodeId, tuple[int, int]] = {}

    # --- leases ------------------------------------------------------------------------------------------------------

    def lease_inode(self, session: SessionId, ino: InodeId, own: Change | None = None) -> bool:
        """Give a lease on ``ino``. False: what is said of it may not be cached. ``own``: a change of this session
        that has been applied and not ended yet."""
        mine = own is not None and ino in own.touched.inodes
        if self._changing_inodes.get(ino, 0) > mine or self._writers.get(ino, session) != session:
            return False
        held = self._held_by(session)
        if ino not in held.inodes:
            if len(held.inodes) >= self._max:
                return False
            held.inodes[ino] = None
            self._inode_holders.setdefault(ino, set()).add(session)
        return True

    def lease_inodes(self, session: SessionId, inos: Iterable[InodeId]) -> list[InodeId]:
        """The same of many. Returns those that may not be cached."""
        held, holders = self._held_by(session).inodes, self._inode_holders
        changing, writers = self._changing_inodes, self._writers
        refused = []
        for ino in inos:
            if ino in changing or writers.get(ino, session) != session:
                refused.append(ino)
            elif ino not in held:
                if len(held) >= self._max:
                    refused.append(ino)
                    continue
                held[ino] = None
                others = holders.get(ino)
                if others is None:
                    holders[ino] = {session}
                else:
                    others.add(session)
        return refused

    def lease_names(self, session: SessionId, directory: InodeId, name: bytes | None, now_ms: int) -> bool:
        """Give a lease on all names of ``directory``. False: what was found of ``name`` (None: of all of them) may
        not be cached."""
        if not self.hold_names(session, directory, now_ms):
            return False
        if name is not None:
            return (directory, name) not in self._changing_names
        return directory not in self._names_changing_in

    def hold_names(self, session: SessionId, directory: InodeId, now_ms: int) -> bool:
        """The same, where nothing was found yet. False: the session has no lease."""
        if directory in self._changing_directories or self._is_contended(directory, now_ms):
            return False
        if self._writers.get(directory, session) != session:
            return False
        held = self._held_by(session)
        if directory not in held.names:
            if len(held.names) >= self._max:
                return False
            held.names[directory] = (0, now_ms)
            self._names_holders.setdefault(directory, set()).add(session)
        return True

    def lease_write(self, session: SessionId, ino: InodeId) -> bool:
        """Give the write lease on ``ino``, if no other session holds a lease on it, or is changing it. What the session
        itself is changing is no matter of the others: one that makes a file after the other has its directory all the
        same."""
        changing = self._changing_inodes.get(ino, 0) - self._changing_by.get((ino, session), 0)
        only = {session}
        if changing > 0 or self._writers.get(ino, session) != session:
            return False
        if not self._inode_holders.get(ino, _NOBODY) <= only or not self._names_holders.get(ino, _NOBODY) <= only:
            return False
        held = self._held_by(session)
        if ino not in held.writes:
            if len(held.writes) >= self._max:
                return False
            held.writes.add(ino)
            self._writers[ino] = session
        return True

    def writer(self, ino: InodeId) -> SessionId | None:
        """Who holds the write lease."""
        return self._writers.get(ino)

    def written_directory(self, session: SessionId, touched: Touched) -> InodeId | None:
        """A directory in which another session may have made files that nobody knows of, and of which ``touched`` has
        a name."""
        if self._writers:
            for directory, _ in touched.names:
                if self._writers.get(directory, session) != session:
                    return directory
        return None

    def drop_write(self, session: SessionId, ino: InodeId) -> None:
        """The session keeps nothing any more that was written to ``ino``, or has never had the lease."""
        if self._writers.get(ino) == session:
            del self._writers[ino]
            self._held[session].writes.discard(ino)

    def called_back(self, ino: InodeId, now_ms: int) -> None:
        """The write lease on ``ino`` is being called back."""
        count, since_ms = self._called_back.pop(ino, (0, now_ms))
        if now_ms - since_ms > CONTENDED_MS:
            count, since_ms = 0, now_ms
        # When it becomes contended, the time begins to count from there.
        self._called_back[ino] = (count + 1, now_ms if count + 1 == CONTENDED_WRITES else since_ms)
        if len(self._called_back) > _CONTENDED_MAX:
            del self._called_back[next(iter(self._called_back))]

    def written_by_many(self, ino: InodeId, now_ms: int) -> int:
        """For how many milliseconds from now nobody is given the write lease, because it went to and fro."""
        count, since_ms = self._called_back.get(ino, (0, 0))
        return max(0, since_ms + CONTENDED_MS - now_ms) if count >= CONTENDED_WRITES else 0

    def forget(self, session: SessionId) -> None:
        """The session has ended, or has dropped everything."""
        held = self._held.pop(session, None)
        if held is not None:
            for ino in held.writes:
                del self._writers[ino]
            for ino in held.inodes:
                _discard(self._inode_holders, ino, session)
            for directory in held.names:
                _discard(self._names_holders, directory, session)

    def crowded(self, session: SessionId) -> Touched | None:
        """The oldest leases of a session that holds nearly as many as it may; None if it does not."""
        held = self._held.get(session)
        if held is None:
            return None
        some = self._max // 16
        found = Touched()
        if len(held.inodes) > self._max - some:
            found.inodes.update(_oldest(held.inodes, some, self._changing_inodes))
        if len(held.names) > self._max - some:
            found.directories.update(_oldest(held.names, some, self._changing_directories))
        return found or None

    # --- changes -----------------------------------------------------------------------------------------------------

    def blocked(self, touched: Touched) -> bool:
        """True if a name in ``touched`` is being changed: ask again when a change has ended."""
        return not self._changing_names.isdisjoint(touched.names)

    def begin(self, session: SessionId, touched: Touched, now_ms: int) -> Change:
        """Admit a mutation of ``session``, which must not be blocked. What it touches is marked from now on."""
        assert not self.blocked(touched)
        change = Change(session, touched)
        for ino in touched.inodes:
            for holder in self._inode_holders.get(ino, ()):
                if holder != session:
                    _of(change, holder).inodes.add(ino)
            writer = self._writers.get(ino, session)
            if writer != session:
                change.writers[ino] = writer
        for directory in touched.directories:
            for holder in self._names_holders.get(directory, ()):
                if holder != session:
                    _of(change, holder).directories.add(directory)
        for name in touched.names:
            directory = name[0]
            if directory in self._contended and self._contended[directory][1] != session:
                self._contended[directory] = (now_ms + CONTENDED_MS, session)
            for holder in self._names_holders.get(directory, ()):
                if holder != session:
                    recall = _of(change, holder)
                    self._recall_name(recall, holder, name, session, now_ms)
                    if directory in recall.directories:
                        touched.directories.add(directory)
        self._mark(touched)
        self._changing_by.update((ino, session) for ino in touched.inodes)
        return change

    def call_back(self, session: SessionId, surplus: Touched) -> Change:
        """A change that changes nothing: it takes leases from one session (see :meth:`crowded`)."""
        assert not surplus.names, surplus
        change = Change(SessionId(0), surplus, {session: surplus})
        self._mark(surplus)
        self._changing_by.update((ino, change.session) for ino in surplus.inodes)
        return change

    def acknowledged(self, change: Change, session: SessionId) -> None:
        """The session has dropped what it was told to, or has ended."""
        recall = change.recalls.pop(session, None)
        held = self._held.get(session)
        if recall is None or held is None:
            return
        for ino in recall.inodes:
            if ino in held.inodes:
                del held.inodes[ino]
                _discard(self._inode_holders, ino, session)
        for directory in recall.directories:
            if directory in held.names:
                del held.names[directory]
                _discard(self._names_holders, directory, session)

    def end(self, change: Change) -> None:
        """The mutation is applied, or never will be. More than once is as once."""
        if change.ended:
            return
        change.ended = True
        self._changing_names -= change.touched.names
        _take(self._names_changing_in, (directory for directory, _ in change.touched.names))
        _take(self._changing_inodes, change.touched.inodes)
        _take(self._changing_by, ((ino, change.session) for ino in change.touched.inodes))
        _take(self._changing_directories, change.touched.directories)

    def _held_by(self, session: SessionId) -> _Held:
        held = self._held.get(session)
        if held is None:
            held = self._held[session] = _Held()
        return held

    # --- for people --------------------------------------------------------------------------------------------------

    def held_by(self, session: SessionId) -> int:
        """How many leases the session holds."""
        held = self._held.get(session)
        return 0 if held is None else len(held.inodes) + len(held.names) + len(held.writes)

    def _recall_name(self, recall: Touched, holder: SessionId, name: Name, changer: SessionId, now_ms: int) -> None:
        directory = name[0]
        told, since_ms = self._held[holder].names[directory]
        if now_ms - since_ms > CONTENDED_MS:
            told, since_ms = 0, now_ms
        self._held[holder].names[directory] = (told + 1, since_ms)
        if told < CONTENDED_NAMES:
            recall.names.add(name)
            return
        recall.directories.add(directory)
        self._contended[directory] = (now_ms + CONTENDED_MS, changer)
        if len(self._contended) > _CONTENDED_MAX:
            del self._contended[next(iter(self._contended))]

    def _is_contended(self, directory: InodeId, now_ms: int) -> bool:
        until_ms, _ = self._contended.get(directory, (0, _NO_SESSION))
        if not until_ms:
            return False
        if now_ms < until_ms:
            return True
        del self._contended[directory]
        return False

    def _mark(self, touched: Touched) -> None:
        self._changing_names |= touched.names
        self._names_changing_in.update(directory for directory, _ in touched.names)
        self._changing_inodes.update(touched.inodes)
        self._changing_directories.update(touched.directories)


def _of(change: Change, session: SessionId) -> Touched:
    recall = change.recalls.get(session)
    if recall is None:
        recall = change.recalls[session] = Touched()
    return recall


def _discard(holders: dict[InodeId, set[SessionId]], ino: InodeId, session: SessionId) -> None:
    sessions = holders[ino]
    sessions.discard(session)
    if not sessions:
        del holders[ino]


def _take(marks: Counter[T], marked: Iterable[T]) -> None:
    for each in marked:
        if marks[each] == 1:
            del marks[each]
        else:
            marks[each] -= 1


def _oldest(held: Iterable[InodeId], count: int, marked: Counter[InodeId]) -> list[InodeId]:
    found: list[InodeId] = []
    for ino in held:
        if len(found) == count:
            break
        if ino not in marked:
            found.append(ino)
    return found
