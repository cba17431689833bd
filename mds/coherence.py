"""Coherence of all clients' caches, as the leader keeps it: leases given with answers, mutations held until what they
change is dropped everywhere else.

The life of a mutation, beginning with its arrival (docs/leases.md has the argument why this suffices):

1. **grace**: while a session that an earlier leader knew has not reported, it may hold leases that nobody here
   remembers: wait until it reports, or until it expires;
2. **admission**: what the mutation touches is worked out and marked; if a name of it is being changed, or may be that
   of a file which another session has made and not told of, wait first;
3. **recall**: sessions that hold leases on it are told, and have acknowledged; one that keeps written bytes of it has
   committed them;
4. **apply**, through Raft;
5. **end**: the session that asked is given leases on what it is told, the marks are taken off, the answer is sent.

A question about a file, or a name in a directory, that another session has a write lease on waits for the third part
of 3 only.

2 to 5 belong to one leadership. A mutation that meets the next one before it is proposed is refused with NotLeader,
which makes the client repeat it: it was admitted against leases that are no longer the ones that count.

No promise of Raft depends on any of this: what is here is lost with the leader, and costs a grace period.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import msgspec
import trio

from shoalfs.mds import messages as m
from shoalfs.mds.leases import Change, LeaseTable
from shoalfs.mds.reads import StoredFetchedMany, StoredListing
from shoalfs.mds.recalls import Recalls
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.touched import TOUCHES_NOTHING, Touched, touched_by
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import NotLeader
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import GRACE_QUESTION_TTLS, LEASES_PER_SESSION_MAX
from shoalfs.transport.method import Message

log = logging.getLogger("shoal.mds.coherence")

View = Callable[[], AbstractContextManager[ReadTxn]]

_GRACE_LOOK_S = 0.02


class _Number(Message, frozen=True):
    """The beginning of an inode record."""

    ino: InodeId


class _One(Message, frozen=True):
    """The beginning of every answer that tells of one inode."""

    inode: _Number


class _Made(Message, frozen=True):
    """The beginning of an answer to CREATE."""

    inode: _Number
    created: bool


class _Two(Message, frozen=True):
    """The same of an answer to RENAME."""

    moved: _Number
    other: _Number | None


_number = msgspec.msgpack.Decoder(_Number)
_one = msgspec.msgpack.Decoder(_One)
_two = msgspec.msgpack.Decoder(_Two)
_made = msgspec.msgpack.Decoder(_Made)


def _told(command: m.Command, outcome: m.Outcome) -> Iterator[InodeId]:
    """The inodes that the answer to a mutation tells of."""
    if outcome.code or command.op in TOUCHES_NOTHING:
        return
    if command.op == m.Op.RENAME:
        renamed = _two.decode(outcome.body)
        yield renamed.moved.ino
        if renamed.other is not None:
            yield renamed.other.ino
    else:
        yield _one.decode(outcome.body).inode.ino


class Admission:
    """One mutation that was admitted, on its way through Raft. :meth:`end` must follow."""

    def __init__(self, coherence: "Coherence", change: Change | None, commands: Sequence[m.Command]) -> None:
        self._coherence = coherence
        self._change = change
        self._commands = commands

    def is_valid(self) -> bool:
        """The leadership that admitted it is still the present one. Asked just before it is proposed."""
        return not self._coherence.is_over

    def end(self, outcomes: Sequence[m.Outcome] | None) -> tuple[tuple[bool, ...], tuple[InodeId, ...]]:
        """It is applied with these outcomes; None: it never will be, or nobody knows, and then another leader decides.
        Returns of each outcome whether the session may cache the inodes in it; and of which directories, whose names
        it changed, the session may cache what they are now."""
        change = self._change
        if change is None:
            return (), ()
        leased: tuple[bool, ...] = ()
        directories: tuple[InodeId, ...] = ()
        if outcomes is not None and change.session:
            leased = self._coherence.lease_outcomes(change, self._commands, outcomes)
            directories = self._coherence.lease_directories(change)
        self._coherence.end(change)
        return leased, directories


class Coherence:
    """Leases and changes of one leadership. ``is_over`` when there is another; ``is_current`` says so."""

    def __init__(
        self, nursery: trio.Nursery, sessions: SessionTable, is_current: Callable[[], bool], now_ms: Callable[[], int]
    ) -> None:
        self._now_ms = now_ms
        self.table = LeaseTable(LEASES_PER_SESSION_MAX)
        self.recalls = Recalls(nursery, sessions, is_current)
        self._sessions = sessions
        self._is_current = is_current
        self._ended = trio.lowlevel.ParkingLot()  # who waits for a change to end
        # Inodes whose write lease is being called back. Invariant: its holder is asked, and gets no other meanwhile.
        self._writing_back: dict[InodeId, trio.Event] = {}

    @property
    def is_over(self) -> bool:
        return not self._is_current()

    # --- answers under leases ----------------------------------------------------------------------------------------

    def looked_up(self, request: m.Lookup, inode: m.Inode | None) -> m.LookedUp:
        """The answer to a lookup of a session."""
        session = request.session
        # In a grace period somebody may have made files there whose report is still on its way.
        name_leased = not self._sessions.in_grace(session) and self.table.lease_names(
            session, request.parent, request.name, self._now_ms()
        )
        leased = inode is not None and self.lease(session, inode.ino)
        self._relieve(session)
        return m.LookedUp(inode, leased, name_leased)

    def lease(self, session: SessionId, ino: InodeId) -> bool:
        """Whether the session may cache what it is told of ``ino``."""
        if not session:
            return False
        leased = not self._sessions.in_grace(session) and self.table.lease_inode(session, ino)
        self._relieve(session)
        return leased

    def listed(self, request: m.ReadDir, listing: StoredListing) -> StoredListing:
        """The answer to a listing."""
        session = request.session
        if not session:
            return listing
        grace = self._sessions.in_grace(session)
        leased = not grace and self.table.lease_names(session, request.ino, None, self._now_ms())
        inos = [_number.decode(entry.inode).ino for entry in listing.entries if not entry.damaged]
        unleased = inos if grace else self.table.lease_inodes(session, inos)
        self._relieve(session)
        return msgspec.structs.replace(listing, leased=leased, unleased=tuple(unleased))

    def fetched(self, request: m.FetchFiles, answer: StoredFetchedMany) -> StoredFetchedMany:
        """The answer to a fetch."""
        items = tuple(
            item
            if item.inode is None
            else msgspec.structs.replace(item, leased=self.lease(request.session, _number.decode(item.inode).ino))
            for item in answer.items
        )
        return StoredFetchedMany(items)

    def lease_outcomes(
        self, change: Change, commands: Sequence[m.Command], outcomes: Sequence[m.Outcome]
    ) -> tuple[bool, ...]:
        """Give the session of ``change`` leases on all inodes that it is told of."""
        leased = []
        for command, outcome in zip(commands, outcomes, strict=True):
            each = [self.table.lease_inode(change.session, ino, change) for ino in _told(command, outcome)]
            if command.op == m.Op.CREATE and not outcome.code:
                made = _made.decode(outcome.body)
                if made.created:
                    each.append(self.table.lease_write(change.session, made.inode.ino))
            leased.append(bool(each) and all(each))
        self._relieve(change.session)
        return tuple(leased)

    def lease_directories(self, change: Change) -> tuple[InodeId, ...]:
        """Give the session of ``change`` leases on the directories in which it changed names: the next thing that the
        kernel asks for after a create is the directory's times."""
        changed = {directory for directory, _ in change.touched.names}
        return tuple(ino for ino in changed if self.table.lease_inode(change.session, ino, change))

    def _relieve(self, session: SessionId) -> None:
        """Call back old leases of a session that holds too many, in the background."""
        surplus = self.table.crowded(session)
        if surplus is not None:
            self._recall(self.table.call_back(session, surplus), self.end)

    def attributes_changed(self, ino: InodeId) -> None:
        """Have what is cached of an inode dropped, in the background: it has changed in a way that nobody has to wait
        for."""
        change = self.table.begin(SessionId(0), Touched(inodes={ino}), self._now_ms())
        if change.recalls:
            self._recall(change, self.end)
        else:
            self.end(change)

    # --- written bytes -----------------------------------------------------------------------------------------------

    def must_settle(self, session: SessionId, ino: InodeId) -> bool:
        """Whether what is stored of ``ino`` may lack what another session has written: see :meth:`settle`."""
        return self.table.writer(ino) not in (None, session) or self._sessions.in_grace(session)

    async def settle(self, session: SessionId, ino: InodeId) -> None:
        """Return when all that other sessions have written to ``ino`` before this call is committed, as far as it can
        be. In a grace period these are not known: it is waited for their reports, but not for the dead."""
        give_up = trio.current_time() + self._sessions.ttl_ms * GRACE_QUESTION_TTLS / 1000
        while True:
            if not self._sessions.in_grace(session) or self.is_over or trio.current_time() >= give_up:
                break
            await trio.sleep(_GRACE_LOOK_S)
        writer = self.table.writer(ino)
        if writer is not None and writer != session:
            await self._write_back(writer, ino).wait()

    def may_write_at_once(self, session: SessionId, ino: InodeId) -> bool:
        """The write lease, if nobody has to be asked for it."""
        free = ino not in self._writing_back and not self.table.written_by_many(ino, self._now_ms())
        return free and not self._sessions.in_grace(session) and self.table.lease_write(session, ino)

    async def lease_write(self, session: SessionId, ino: InodeId, *, directory: bool) -> m.WriteLeased:
        """Give the write lease, once no other session holds any lease on the inode. On a directory: nor on its names,
        and the session is given that too. Raises NotLeader. Cancelled: nothing is left behind."""
        through_ms = self.table.written_by_many(ino, self._now_ms())
        if through_ms or self._sessions.in_grace(session):
            return m.WriteLeased(granted=False, through_ms=through_ms)
        if ino in self._writing_back:
            await self._writing_back[ino].wait()
            self._check_current()
        wanted = Touched(inodes={ino}, directories={ino} if directory else set())
        change = self.table.begin(session, wanted, self._now_ms())
        try:
            await self._wait_settled(change)
            self._check_current()
            granted = ino not in self._writing_back and self.table.lease_write(session, ino)
        finally:
            self.end(change)
        if granted and directory and not self.table.hold_names(session, ino, self._now_ms()):
            self.table.drop_write(session, ino)
            granted = False
        return m.WriteLeased(granted)

    def restore_writes(self, session: SessionId, inodes: Iterable[InodeId]) -> None:
        """A session that an earlier leader knew keeps written bytes of these. Nobody was given a lease on them: the
        grace period lasts."""
        for ino in inodes:
            if not self.table.lease_write(session, ino):
                log.warning("session %d keeps bytes of inode %d without a lease", session, ino)

    def _write_back(self, writer: SessionId, ino: InodeId) -> trio.Event:
        """Call the write lease back, if that is not being done. The event: it has been. What is written from now on is
        not kept, so whoever comes later need not have it called back once more."""
        pending = self._writing_back.get(ino)
        if pending is not None:
            return pending
        event = self._writing_back[ino] = trio.Event()

        def done() -> None:
            self.table.drop_write(writer, ino)
            del self._writing_back[ino]
            event.set()

        self.table.called_back(ino, self._now_ms())
        self.recalls.write_back(writer, ino, done)
        return event

    # --- mutations ---------------------------------------------------------------------------------------------------

    def admit_now(self, session: SessionId, commands: Sequence[m.Command], view: View) -> Admission | None:
        """As :meth:`admit`; None if that would wait."""
        touched = self._touched(view, commands)
        if not touched:
            return Admission(self, None, commands)
        if self._sessions.in_grace(session) or self.table.blocked(touched):
            return None
        if self.table.written_directory(session, touched) is not None:
            return None
        change = self.table.begin(session, touched, self._now_ms())
        if change.recalls or change.writers:
            self.end(change)
            return None
        return Admission(self, change, commands)

    async def admit(self, session: SessionId, commands: Sequence[m.Command], view: View) -> Admission:
        """Steps 1 to 3. ``view`` opens a view of the store. Raises NotLeader if the leadership ends meanwhile.
        Cancelled: nothing is left behind."""
        change = None
        while True:
            touched = self._touched(view, commands)
            if not touched:
                return Admission(self, None, commands)
            if self._sessions.in_grace(session):
                await trio.sleep(_GRACE_LOOK_S)
            elif (directory := self.table.written_directory(session, touched)) is not None:
                await self.settle(session, directory)
            elif self.table.blocked(touched):
                await self._ended.park()
            else:
                break
            self._check_current()
        change = self.table.begin(session, touched, self._now_ms())
        if change.recalls or change.writers:
            try:
                await self._wait_settled(change)
                self._check_current()
            except BaseException:
                self.end(change)
                raise
        return Admission(self, change, commands)

    def end(self, change: Change) -> None:
        self.table.end(change)
        self._ended.unpark_all()

    async def _wait_settled(self, change: Change) -> None:
        """Nobody else caches what ``change`` touches, or keeps bytes of it."""
        pending = [self._write_back(writer, ino) for ino, writer in change.writers.items()]
        if change.recalls:
            await self._wait_recalled(change)
        for event in pending:
            await event.wait()

    async def _wait_recalled(self, change: Change) -> None:
        dropped = trio.Event()
        self._recall(change, lambda _: dropped.set())
        await dropped.wait()

    def _recall(self, change: Change, then: Callable[[Change], None]) -> None:
        """Tell all sessions of ``change``; ``then`` when all have acknowledged."""
        for session, what in list(change.recalls.items()):

            def acknowledged(session: SessionId = session) -> None:
                self.table.acknowledged(change, session)
                if not change.recalls:
                    then(change)

            self.recalls.push(session, what, acknowledged)

    def _touched(self, view: View, commands: Sequence[m.Command]) -> Touched:
        with view() as txn:
            return touched_by(txn, commands)

    def _check_current(self) -> None:
        if self.is_over:
            raise NotLeader

    # --- sessions ----------------------------------------------------------------------------------------------------

    def ended(self, session: SessionId) -> None:
        """The session has ended, and its client believes in nothing any more."""
        self.table.forget(session)
        self.recalls.ended(session)

    def evict(self, session: SessionId, dropped: Callable[[], None]) -> None:
        """Take everything from the session; ``dropped`` when it has dropped it, or has ended."""
        self._sessions.condemn(session)
        self.recalls.push(session, Touched(), dropped, everything=True)
