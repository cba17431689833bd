"""The metadata session of a mount, with what may be answered here: names and inodes under leases.

Stands where the rest of the mount expects a metadata session (:class:`~shoalfs.fs.ports.Metadata`). Every answer that
comes with a lease is kept, every mutation of this mount goes through here and corrects what is kept, and what the
leader says others are about to change is dropped: here and in the kernel, **before** it is acknowledged.

**Fencing.** What is kept is used while the lease clock runs (``leased_until`` of the session). When it has run out, all
of it is dropped, and what is asked stalls until the leader is reached again. The kernel is never told to keep a name
or an attribute longer than the clock runs now, so that a mount whose process is stopped is fenced as well.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, cast

import msgspec
import trio

from shoalfs.fs.effects import Effects, doubtful, effects
from shoalfs.fs.handles import Handles
from shoalfs.fs.leases import Asking, LeaseCache, Unknown
from shoalfs.fs.making import Making
from shoalfs.fs.ports import Files, Kernel
from shoalfs.fs.unparsed import TAKEN_IN_S, Unparsed
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, boot_time
from shoalfs.transport.errors import SessionGone, ShoalError, StaleReceipt
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import READDIR_ENTRIES_MAX, WRITE_BACK_TTLS
from shoalfs.transport.method import A, Message, Method, Q
from shoalfs.transport.rpc import Reply
from shoalfs.transport.service import Call

log = logging.getLogger("shoal.fs.coherent")

M = TypeVar("M", bound=Message)

_OVERTAKEN_MAX = 5  # then what others do to the directory is why, and any of the answers is as good
_LOOK_S = 0.1  # how late it may be noticed that the lease clock has run out; the kernel needs no notice


class FetchedFile(NamedTuple):
    """All that an open of this file would bring, as of its data version. ``inode`` None: it is not known."""

    inode: m.Inode | None
    data: bytes
    extents: tuple[m.Extent, ...]


class Coherent:
    """See the module. :meth:`begin` before anything else; :meth:`run` must be running."""

    def __init__(self, kernel: Kernel, handles: Handles, clock: Callable[[], float] = boot_time) -> None:
        self.cache = LeaseCache(
            self._gone, handles.all_gone, handles.withdraw_name, lambda ino: self.making.revoke_native(ino)
        )
        self.hits = 0  # questions answered here
        self.unparsed = Unparsed(handles.native)
        # Told of each name that had to be asked for, and of what was found: who prefetches draws conclusions.
        self.on_looked_up: Callable[[m.Credentials, InodeId, m.Inode | None], None] = lambda who, directory, inode: None
        # Told of what was called back and is open here.
        self.on_recalled: Callable[[tuple[InodeId, ...]], None] = lambda inodes: None
        self._kernel = kernel
        self._handles = handles
        self._clock = clock
        self._valid = False  # Invariant: if False, nothing is kept, here or in the kernel
        self._begun = trio.Event()
        self._running = trio.Event()
        self._session: MdsClient
        self._files: Files | None = None
        # Until when each write to a file is committed without asking for the write lease; bounded by what is open.
        self._through_until: dict[InodeId, float] = {}
        self.making = Making(self.cache, handles, kernel, self.mutate_together, self.left_s)
        self.new_files = self.making.new_files
        self._asking_to_write: dict[InodeId, trio.Event] = {}
        # Files whose write lease was called back and of which what was kept is not committed yet. Nobody else has the
        # lease before the leader has our answer, so a leader that is new must know of them as well.
        self._owed: set[InodeId] = set()
        self._nursery: trio.Nursery

    def begin(self, session: MdsClient) -> None:
        self._session = session
        self.making.begin(session)
        self._begun.set()

    def attach(self, files: Files) -> None:
        """Where programs write to, before the first does."""
        self._files = files
        self.making.attach(files)

    def _gone(self, ino: InodeId) -> None:
        self._handles.gone(ino)
        self.making.changed_native(ino)

    # --- the lease clock ---------------------------------------------------------------------------------------------

    def left_s(self) -> float:
        """How long what is leased may still be believed."""
        return max(0.0, self._session.leased_until - self._clock())

    async def run(self) -> None:
        """Notice when the lease clock has run out, and carry out what outlives the request that asked for it, until
        cancelled."""
        await self._begun.wait()
        async with trio.open_nursery() as self._nursery:
            self._running.set()
            await self._watch_clock()

    async def _watch_clock(self) -> None:
        while True:
            left_s = self.left_s()
            self._handles.native.believe_until(self._session.leased_until)
            if left_s:
                self._valid = True
            elif self._valid:
                log.warning("the metadata service was not reached for long: what is cached is dropped")
                self.drop_everything()
            await trio.sleep(min(left_s, _LOOK_S) or _LOOK_S)

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def session(self) -> SessionId:
        return self._session.session

    @property
    def map(self) -> m.ClusterMap:
        return self._session.map

    async def refresh_map(self) -> m.ClusterMap:
        return await self._session.refresh_map()

    async def chunk_sequence(self) -> int:
        return await self._session.chunk_sequence()

    async def read(self, method: Method[Q, A], request: Q) -> Reply[A]:
        """Ask the leader, whatever is known here. As :meth:`MdsClient.read`."""
        await self.making.settle(request)
        return await self._session.read(method, request)

    def known(self, ino: InodeId) -> m.Inode | None:
        """The inode, if it is known here and may be believed."""
        inode = self.cache.inode(ino) if self.left_s() else None
        return inode if inode is None else self.making.view(inode)

    def keeps_name(self, directory: InodeId, name: bytes, ino: InodeId | None) -> bool:
        """True if it is known here that the name leads to ``ino`` (None: that it does not exist)."""
        return self.cache.name(directory, name) == ino

    async def lookup(self, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode | None:
        """What the name leads to; None if it does not exist. Raises ShoalError.

        Answered here, the permission to search is not checked again: the kernel has, with attributes that are leased.
        """
        if self.left_s():
            ino = self.cache.name(parent, name)
            if ino is None:
                self.hits += 1
                return None
            inode = None if isinstance(ino, Unknown) else self.known(ino)
            if inode is not None:
                self.hits += 1
                return inode
        with self._asking() as asking:
            request = m.Lookup(who, parent, name, self.session)
            found = (await self._repeated(m.LOOKUP, request)).body
            if found.name_leased:
                self.cache.learn_name(asking, parent, name, None if found.inode is None else found.inode.ino)
            if found.leased and found.inode is not None:
                self._learn(asking, found.inode)
        self.on_looked_up(who, parent, found.inode)
        if found.inode is not None and asking.is_overtaken(found.inode):
            return await self.getattr(found.inode.ino)
        return found.inode if found.inode is None else self.making.view(found.inode)

    async def getattr(self, ino: InodeId) -> m.Inode:
        """The attributes. Raises ShoalError."""
        left = _OVERTAKEN_MAX
        while True:
            known = self.known(ino)
            if known is not None:
                self.hits += 1
                return known
            with self._asking() as asking:
                entry = (await self._repeated(m.GETATTR, m.GetAttr(ino, self.session))).body
                if entry.leased:
                    self._learn(asking, entry.inode)
            left -= 1
            if not left or not asking.is_overtaken(entry.inode):
                return self.making.view(entry.inode)

    async def readdir(self, request: m.ReadDir) -> m.Listing:
        """A page of a listing, always from the leader; what it brings is kept. Raises ShoalError."""
        with self._asking() as asking:
            listing = await self._listed(asking, request)
            if not request.cookie and listing.eof and listing.leased and not any(e.damaged for e in listing.entries):
                self.cache.learn_all(asking, request.ino)
            return listing

    async def list_all(self, who: m.Credentials, directory: InodeId, count_max: int) -> AsyncGenerator[m.Listing, None]:
        """All pages of a listing, up to so many entries. If that is all of the directory and it was leased all the
        time, every name of it is known afterwards. Raises ShoalError."""
        with self._asking() as asking:
            cookie = count = 0
            leased = True
            while count < count_max:
                listing = await self._listed(asking, m.ReadDir(who, directory, cookie, READDIR_ENTRIES_MAX))
                leased = leased and listing.leased and not any(entry.damaged for entry in listing.entries)
                yield listing
                if listing.eof or not listing.entries:
                    if leased and listing.eof:
                        self.cache.learn_all(asking, directory)
                    return
                cookie = listing.entries[-1].cookie
                count += len(listing.entries)

    async def _listed(self, asking: Asking, request: m.ReadDir) -> m.Listing:
        listing = (await self._repeated(m.READDIR, msgspec.structs.replace(request, session=self.session))).body
        readable = [entry for entry in listing.entries if not entry.damaged]
        if listing.leased:
            self.cache.learn_names(asking, request.ino, [(entry.name, entry.inode.ino) for entry in readable])
        unleased = set(listing.unleased)
        inodes = [entry.inode for entry in readable if entry.inode.ino not in unleased]
        self.cache.learn_inodes(asking, [inode for inode in inodes if self._may_keep(inode)])
        # Whoever lists, as ls(1) does, asks each of them for attributes next.
        self._handles.offer_bare(
            [inode.ino for inode in inodes if inode.is_bare and self.cache.inode(inode.ino) is inode]
        )
        return listing

    async def fetch_files(self, inos: tuple[InodeId, ...]) -> list[FetchedFile]:
        """What these files hold, for opens to come: of those that are leased now. May stop early: ask for the rest.
        Raises ShoalError."""
        with self._asking() as asking:
            reply = await self._repeated(m.FETCH_FILES, m.FetchFiles(self.session, inos))
            found, start = [], 0
            for item in reply.body.items:
                data = bytes(reply.payload[start : start + item.data_bytes])
                start += item.data_bytes
                if item.inode is None or not item.leased or not asking.may_learn_inode(item.inode.ino):
                    found.append(FetchedFile(None, b"", ()))
                else:
                    self._learn(asking, item.inode)
                    found.append(FetchedFile(item.inode, data, item.extents))
            return found

    async def open(self, request: m.Open) -> Reply[m.Opened]:
        """Open at the leader. Raises ShoalError."""
        with self._asking() as asking:
            reply = await self._repeated(m.OPEN, request)
            if reply.body.leased:
                self._learn(asking, reply.body.inode)
            if reply.body.write_leased:
                self.cache.learn_write(asking, request.ino)
            return reply

    def _learn(self, asking: Asking, inode: m.Inode) -> None:
        if self._may_keep(inode):
            self.cache.learn_inode(asking, inode)

    def _may_keep(self, inode: m.Inode) -> bool:
        """An inode without a name vanishes at its last close, and nobody is told; so it is kept while it is open."""
        return bool(inode.nlink or self._handles.holders(inode.ino))

    def offer_bare(self, ino: InodeId) -> None:
        """Somebody asked for an attribute of the inode: if it is known to have none, the next who does need not."""
        known = self.cache.inode(ino)
        if known is not None and known.is_bare:
            self._handles.offer_bare((ino,))

    def closed(self, ino: InodeId) -> None:
        """The last handle is gone."""
        known = self.cache.inode(ino)
        if known is not None and not known.nlink:
            self.cache.drop(inodes=(ino,))
        self.cache.drop_write(ino)
        self.making.forget(ino)
        self._through_until.pop(ino, None)

    async def _repeated(self, method: Method[Q, A], request: Q) -> Reply[A]:
        """Ask under a session that may have been lost meanwhile: a question loses nothing by it, and is asked once
        more under the new one."""
        await self.making.settle(request)
        try:
            return await self._session.read(method, request)
        except SessionGone:
            return await self._session.read(method, msgspec.structs.replace(request, session=self.session))

    @contextmanager
    def _asking(self) -> Iterator[Asking]:
        asking = self.cache.ask()
        try:
            yield asking
        finally:
            self.cache.answered(asking)

    # --- changing ----------------------------------------------------------------------------------------------------

    async def mutate(self, op: m.Op, request: Message, reply: type[M]) -> M:
        """As :meth:`MdsClient.mutate`. What is kept is corrected before this returns, and before it raises."""
        if len(self.new_files):
            if isinstance(request, m.CommitInline) and request.ino in self.new_files:
                committed = await self.making.tell_with_bytes(request)
                if committed is not None:
                    return cast("M", committed)
            made = self.cache.inode(request.ino) if isinstance(request, m.CommitExtents) else None
            await self.making.settle(request)
            if made is not None and (told := self.cache.inode(made.ino)) is not None and told.pool != made.pool:
                raise StaleReceipt("the file was made in another pool than its directory's, which is being removed")
        if isinstance(request, m.Allocate | m.CloneRange | m.SetAttr) and _reshapes(request):
            self.making.written(request.ino)
        answer = await self._mutate(op, request, reply)
        if isinstance(request, m.CommitInline | m.CommitExtents) and isinstance(answer, m.Committed):
            answer = cast("M", await self.making.with_owed_times(answer))
        if isinstance(request, m.Create) and isinstance(answer, m.Created) and answer.created:
            self.making.on_made(request.parent)
        return answer

    async def _mutate(self, op: m.Op, request: Message, reply: type[M]) -> M:
        (answer,) = await self.mutate_together(op, (request,), reply)
        if isinstance(answer, ShoalError):
            raise answer
        return answer

    async def mutate_together(self, op: m.Op, requests: Sequence[Message], reply: type[M]) -> list[M | ShoalError]:
        """Mutations that travel together, of different names and inodes, at most CHANGES_TOGETHER_MAX: of each the
        answer, or the error. What concerns them is told already. What is kept is corrected before this returns, and
        before it raises Cancelled."""

        def doubt() -> None:
            for request in requests:
                self._doubt(request)

        with self._asking() as asking, self.making.changing(requests):
            try:
                answers, directories = await self._session.change(op, requests, reply, doubt)
            except BaseException:
                doubt()
                raise
            found: list[tuple[Effects, bool]] = []
            for request, (answer, leased) in zip(requests, answers, strict=True):
                if isinstance(answer, ShoalError):
                    self._doubt(request)
                else:
                    found.append((effects(request, answer), leased))
            self._learn_effects(asking, found, directories)
            if op == m.Op.CREATE:
                for answer, leased in answers:
                    if leased and isinstance(answer, m.Created) and answer.created:
                        self.cache.learn_write(asking, answer.inode.ino)
            return [answer for answer, _ in answers]

    def _learn_effects(self, asking: Asking, found: list[tuple[Effects, bool]], directories: Iterable[m.Inode]) -> None:
        """Drop what mutations of ours have made old, and keep what their own answers say, which is newer."""
        stale = {ino for one, _ in found for ino in one.stale}
        names = {name: ino for one, _ in found for name, ino in one.names.items()}
        self.cache.answered(asking)
        self.cache.drop(names, stale.union(inode.ino for one, _ in found for inode in one.told))
        for (directory, name), ino in names.items():
            self.cache.moved_name(asking, directory, name, ino)
        for one, leased in found:
            for inode in one.told:
                if leased and inode.ino not in stale:
                    self._learn(asking, inode)
        for changed in directories:
            if changed.ino in stale:
                self._learn(asking, changed)

    def _doubt(self, request: Message) -> None:
        """Nobody here knows whether this mutation was applied; but from now on it will not be, or it has been, or we
        are told again. (If nobody waits for it any more, it may be applied after something was asked and learned.)"""
        names, inodes = doubtful(request)
        known = (self.cache.name(*name) for name in names)
        inodes.update(InodeId(ino) for ino in known if isinstance(ino, int))
        self.cache.drop(names, inodes)
        for ino in inodes:
            self._kernel.forget_attributes(ino)
        if names:
            self._kernel.forget_names()

    # --- keeping what is written -------------------------------------------------------------------------------------

    def keeps_writes(self, ino: InodeId) -> bool:
        """True if what is written to the file need not be committed at once: it is asked for before others see it."""
        return ino in self.cache.writes

    async def ask_to_keep_writes(self, ino: InodeId) -> None:
        """Ask for the write lease of a file that is open here, unless it went to and fro a moment ago. Whether it is
        there afterwards :meth:`keeps_writes` says. Raises ShoalError."""
        while (asked := self._asking_to_write.get(ino)) is not None:
            await asked.wait()  # by another write: two questions at a time would be in each other's way
        if self.keeps_writes(ino) or self._clock() < self._through_until.get(ino, 0.0):
            return
        self._asking_to_write[ino] = answered = trio.Event()
        try:
            with self._asking() as asking:
                answer = (await self._repeated(m.LEASE_WRITE, m.LeaseWrite(self.session, ino))).body
                if self._handles.holders(ino):
                    self._handles.registered.add(ino)
                if answer.granted:
                    self.cache.learn_write(asking, ino)
                elif answer.through_ms:
                    self._through_until[ino] = self._clock() + answer.through_ms / 1000
        finally:
            del self._asking_to_write[ino]
            answered.set()

    async def handle_write_back(self, call: Call, request: m.WriteBack, payload: memoryview) -> m.WrittenBack:
        """Somebody else wants to know what is in the file, or to change it. What is written from here on is not
        kept.

        The commit goes on when this is cancelled (the connection broke, the leader is gone) or answers that it takes
        too long. A commit that is cut short may be applied all the same, and to repeat it later would put our bytes
        over what others wrote since."""
        if not self._begun.is_set() or request.session != self.session:
            return m.WrittenBack(done=True)
        ino = request.ino
        if self.keeps_writes(ino):
            self._owed.add(ino)
        self.cache.drop_write(ino)
        await self._running.wait()
        ended, done = trio.Event(), False

        async def write_back() -> None:
            nonlocal done
            done = self._files is None or await self._files.write_back(ino)
            if done and not self.keeps_writes(ino):
                self._owed.discard(ino)
            done = await self.making.told_all_in(ino) and done
            ended.set()

        self._nursery.start_soon(write_back)
        with trio.move_on_after(self._session.ttl_ms * WRITE_BACK_TTLS / 1000):
            await ended.wait()
        self._owed.discard(ino)  # the leader will give the lease to others, whatever we say
        return m.WrittenBack(done and ended.is_set())

    def kept_writes(self) -> tuple[InodeId, ...]:
        """Files of which something is kept under a write lease, and directories in which files were made: what a new
        leader has to know."""
        self.making.revoke_native(None)
        files = self._files
        dirty = (ino for ino in self.cache.writes | self._owed if files is not None and files.is_dirty(ino))
        # Of a directory that is being given back, too: nobody else may look into it before we have told.
        return (*dirty, *self.new_files.directories)

    # --- dropping ----------------------------------------------------------------------------------------------------

    async def handle_invalidate(self, call: Call, request: m.Invalidate, payload: memoryview) -> m.Invalidated:
        """The leader's push. Answered when nothing here or in the kernel is served from what it names."""
        if not self._begun.is_set() or request.session != self.session:
            return m.Invalidated()  # nothing is left of what an earlier session had
        if request.everything:
            self.drop_everything()
            await self._forget_names_told()
            return m.Invalidated()
        for directory in {*request.directories, *request.inodes, *(parent for parent, _ in request.names)}:
            self.making.revoke_native(directory)
        concerned = tuple(ino for ino in request.inodes if self._handles.holders(ino))
        waiting = [ino for ino in concerned if self._handles.has_waiting_write(ino)]
        concerned = tuple(ino for ino in concerned if ino not in waiting)
        self.cache.drop(request.names, request.inodes, request.directories)
        listed = {directory for directory, _ in request.names}.union(request.directories)
        if listed:
            self._kernel.forget_names()
        for ino in request.inodes:
            self._kernel.forget_attributes(ino)
        for ino in waiting:
            self._kernel.forget_pages(ino)  # once they are unlocked; that may take an acknowledgement like this one
        if concerned:
            await self._kernel.drop_pages(concerned)
        if listed:
            await self._forget_names_told(listed)
        # Last, in the step in which the answer is sent: a release that follows is then sent after it.
        opens = tuple(ino for ino in request.inodes if self._handles.holders(ino))
        self._handles.registered.update(opens)
        self.on_recalled(opens)
        return m.Invalidated(opens)

    async def _forget_names_told(self, directories: Collection[InodeId] | None = None) -> None:
        """Names were forgotten, here and by the kernel: have it forget those, too, that listings told it of before and
        that it has taken in since."""
        within_s = min(TAKEN_IN_S, self._session.ttl_ms * WRITE_BACK_TTLS / 1000)  # or the leader gives this mount up
        if await self.unparsed.settle(directories, within_s):
            self._kernel.forget_names()

    def drop_everything(self) -> None:
        """The leases are gone, or may be."""
        self.making.revoke_native(None)
        self._valid = False
        inodes = self.cache.inodes()
        self.cache.drop_all()
        self._kernel.forget_names()
        for ino in inodes:
            self._kernel.forget_attributes(ino)
        for ino in self._handles.open_inodes():
            self._kernel.forget_pages(ino)

    def session_lost(self) -> None:
        """There is a new session, which has nothing."""
        self.drop_everything()
        self.cache.writes = set()
        self._owed.clear()
        self.making.forget_all()
        self._through_until.clear()

    async def meet_new_leader(self) -> None:
        """What an earlier leader has leased is not known to the present one."""
        self.drop_everything()
        await trio.lowlevel.checkpoint()
        await self._forget_names_told()
        self.cache.writes = set(self.kept_writes())  # they are told with the report
        self._owed.clear()
        self._handles.registered.update(self._handles.reported())  # they are told with the report


def _reshapes(request: m.Allocate | m.CloneRange | m.SetAttr) -> bool:
    """It changes what a file holds, by a command of its own."""
    return not isinstance(request, m.SetAttr) or request.size_bytes is not None
