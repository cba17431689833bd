"""FileData: the bytes of one open file on this mount, shared by all its handles.

What a reader sees, from the top: bytes that are dirty, bytes that are taken for a chunk and not committed
(the later over the earlier), the committed extents or inline bytes, zeros. Nothing beyond the size.

The one rule: bytes that a program has written leave memory only when the commit that links them has
succeeded, or when it is certain that none ever can (`lose`). One commit or change of size at a time per file,
under ``_lock``; reads and writes go on meanwhile.

Known doubt: the extents of a file that is open are believed until they prove wrong or the file is opened
again, so a reader may see what was there at its open (close-to-open consistency).
"""

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from shoalfs.fs.assembly import extents_of, gaps_in, join, place
from shoalfs.fs.budget import DirtyBudget
from shoalfs.fs.committer import Committer, Whole
from shoalfs.fs.contents import Contents
from shoalfs.fs.dirty import Dirty
from shoalfs.fs.fetcher import Fetcher
from shoalfs.fs.new_files import Held
from shoalfs.fs.parallel import all_of, settle_all
from shoalfs.fs.ports import Buffer, Metadata
from shoalfs.fs.readahead import Readahead
from shoalfs.fs.reader import ChunkReader
from shoalfs.fs.turn import Turn
from shoalfs.fs.units import Backlog, Unit
from shoalfs.fs.uploader import Uploader
from shoalfs.mds.messages import (
    NOW,
    Allocate,
    Cloned,
    CloneRange,
    Committed,
    Entry,
    Extent,
    Inode,
    Op,
    SetAttr,
)
from shoalfs.transport.errors import PosixError, SessionGone, ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, UNDURABLE_CHUNKS_MAX

log = logging.getLogger("shoal.fs.file")

_GONE = frozenset({errno.ENOENT, errno.ESTALE})  # the inode is no more: its bytes can never be committed


@dataclass(frozen=True, slots=True)
class Services:
    """What the files of one mount share. ``wrote`` is told of each write, ``cleaned`` when a
    file has nothing dirty any more, ``inline_kept`` how many bytes of a small file are held more or less than before,
    ``prefetch`` of each range that will probably be read, ``merge`` of one that may lie in many small pieces."""

    metadata: Metadata
    uploader: Uploader
    reader: ChunkReader
    budget: DirtyBudget
    counters: Counter[str]
    wrote: Callable[["FileData"], None]
    cleaned: Callable[["FileData"], None]
    inline_kept: Callable[[int], None]
    prefetch: Callable[["FileData", int, int], None]
    merge: Callable[["FileData", int, int], None]


class FileData:
    """Errors: every method that touches bytes raises ShoalError. A commit that fails in the background leaves
    its bytes dirty and is tried again; whoever flushes next tries it too, and is told if it fails. Cancelled:
    bytes written stay; whether a commit under way happened is not known, and it is repeated."""

    def __init__(self, services: Services, inode: Inode) -> None:
        self._services = services
        self._contents = Contents(inode, kept=services.inline_kept)
        self._dirty = Dirty(inode.chunk_bytes)
        self._backlog = Backlog()
        self._fetcher = Fetcher(services.metadata, self._contents)
        self._committer = Committer(services.metadata, services.uploader, self._contents, self._backlog, self._fetcher)
        self._readahead = Readahead()
        self._lock = trio.Lock()
        self._charged_bytes = 0  # Invariant: what _dirty and _backlog cost, whenever a method of this class returns
        self._written_ns = 0  # when a program last wrote here, by this machine's clock
        self._lost: ShoalError | None = None  # set once; from then on there is only EIO (or ESTALE)

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def ino(self) -> InodeId:
        return self._contents.inode.ino

    @property
    def committed_inode(self) -> Inode:
        """The newest attributes that the metadata service has told."""
        return self._contents.inode

    @property
    def inode(self) -> Inode:
        """The attributes with what is written here and not committed laid over them."""
        inode = self._contents.inode
        if not self.is_dirty:
            return inode
        mtime_ns = max(inode.mtime_ns, self._written_ns)
        return msgspec.structs.replace(
            inode, size_bytes=self.size_bytes, mtime_ns=mtime_ns, ctime_ns=max(inode.ctime_ns, mtime_ns)
        )

    @property
    def is_solid(self) -> bool:
        """Nothing of it is committed or on its way, and it has no holes."""
        size_bytes = self.size_bytes
        return sum(len(data) for _, data in self._dirty.read(0, size_bytes)) == size_bytes

    @property
    def dated_inode(self) -> Inode:
        """What is committed, with the times of :attr:`inode` and the room that a file without holes takes."""
        now = self.inode
        return msgspec.structs.replace(
            self._contents.inode, used_bytes=now.size_bytes, mtime_ns=now.mtime_ns, ctime_ns=now.ctime_ns
        )

    @property
    def size_bytes(self) -> int:
        return max(self._contents.inode.size_bytes, self._dirty.end_bytes, self._backlog.end_bytes)

    @property
    def is_dirty(self) -> bool:
        """Something here is not committed."""
        return bool(self._dirty) or bool(self._backlog)

    @property
    def has_backlog(self) -> bool:
        return bool(self._backlog)

    @property
    def has_full_window(self) -> bool:
        """A chunk's worth of dirty bytes is complete."""
        return bool(self._dirty.full)

    @property
    def needs_fsync(self) -> bool:
        """Something that this mount wrote may not be on disk yet."""
        return self.is_dirty or self._committer.is_undurable

    def changed_elsewhere(self, inode: Inode) -> bool:
        """True if ``inode``, an answer of the service, shows that others have changed the bytes."""
        known = self._contents.inode
        return inode.version > known.version and inode.data_version != known.data_version

    @property
    def is_mixed(self) -> bool:
        """Others have changed the file between changes of this mount: pages that the kernel has may be neither's."""
        return self._contents.mixed

    def pages_dropped(self) -> None:
        """The kernel has no pages of this file any more."""
        self._contents.mixed = False

    @property
    def inline(self) -> bytes | None:
        """All bytes of a small file that is clean here; None where they are not known, it is none, or it ends with a
        hole, which is not among them."""
        contents = self._contents
        if not contents.is_inline or contents.inline is None or self.is_dirty:
            return None
        return contents.inline if len(contents.inline) == contents.inode.size_bytes else None

    def is_complete(self, inode: Inode) -> bool:
        """True if all is known that an open for ``inode`` would bring: for a small file, its bytes."""
        contents = self._contents
        return contents.inode.data_version == inode.data_version and (
            not contents.is_inline or contents.inline is not None
        )

    def refresh(self, inode: Inode, inline: Buffer | None = None) -> None:
        """Take in an answer to open or getattr, with the inline bytes if it brought them. What is cached of
        the file is kept if its data version is the same; what is dirty is always kept."""
        self._contents.learn(inode, inline)

    def fetched(self, inode: Inode, inline: bytes, extents: tuple[Extent, ...]) -> None:
        """Take in all that the file held at ``inode.data_version``."""
        if self._contents.learn(inode, inline) and not self._contents.is_inline:
            self._contents.learn_page(inode, extents, 0, None)

    # --- reading --------------------------------------------------------------------------------------------

    async def read(self, offset_bytes: int, size_bytes: int) -> Buffer:
        """The bytes there, at most ``size_bytes``, fewer only at the end of the file. Raises PosixError(EIO)
        if some of them cannot be had from any replica."""
        self._raise_if_lost()
        end = min(offset_bytes + size_bytes, self.size_bytes)
        if offset_bytes >= end:
            return b""
        inline = self._contents.inline
        if inline is not None and end <= len(inline) and self._contents.is_inline and not self.is_dirty:
            # A small file, unchanged here: most reads of most datasets. No task is started for it.
            return inline[offset_bytes:end]
        self._read_ahead(offset_bytes, end)
        if not self.is_dirty and (extent := self._contents.extents.covering(offset_bytes, end)) is not None:
            cached = self._services.reader.cached(extent, offset_bytes, end)
            if cached is not None:
                return cached
        pieces, gaps = self._in_memory(offset_bytes, end)
        for found in await all_of([partial(self._committed, *gap) for gap in gaps]):
            pieces += found
        return join(offset_bytes, end, pieces)

    async def prefetch(self, start: int, end: int) -> None:
        """Bring committed bytes into the cache. A hint: what cannot be had is left to whoever asks for it."""
        if start >= self._contents.inode.size_bytes:
            return
        try:
            found = await self._fetcher.committed(start, min(end, self._contents.inode.size_bytes))
            spans = [] if isinstance(found, bytes) else found
            await all_of([partial(self._services.reader.read, span) for span in extents_of(spans)])
        except ShoalError as error:
            self._services.counters["prefetches_failed"] += 1
            log.debug("readahead of inode %d failed: %s", self.ino, error)

    def _read_ahead(self, start: int, end: int) -> None:
        ahead = self._readahead.advance(start, end - start)
        if ahead is not None and ahead[0] < self._contents.inode.size_bytes and not self._contents.is_inline:
            self._services.prefetch(self, *ahead)

    def _in_memory(self, start: int, end: int) -> tuple[list[tuple[int, Buffer]], list[tuple[int, int]]]:
        """What of [start, end) is here, and what is not."""
        pieces: list[tuple[int, Buffer]] = [*self._dirty.read(start, end)]
        gaps: list[tuple[int, int]] = []
        for gap in gaps_in(pieces, start, end):
            taken = list(self._backlog.read(*gap))
            pieces += taken
            gaps += gaps_in(taken, *gap)
        return pieces, gaps

    async def _committed(self, start: int, end: int) -> list[tuple[int, Buffer]]:
        """From the inode or from chunks. If a chunk cannot be read, the reason may be old knowledge: of the
        file (the chunk was replaced and collected) or of the cluster. Both are fetched again, once."""
        failure: ShoalError | None = None
        for last in (False, True):
            found = await self._fetcher.committed(start, end)
            if isinstance(found, bytes):
                return [(start, found)]
            extents = extents_of(found)
            read = await settle_all([partial(self._services.reader.read, extent) for extent in extents])
            failure = next((result for result in read if isinstance(result, ShoalError)), None)
            if failure is None:
                return list(place(extents, read))
            if not last:
                self._services.counters["reads_repeated"] += 1
                self._contents.forget()
                await self._services.metadata.refresh_map()
        log.error("inode %d, bytes %d to %d cannot be read: %s", self.ino, start, end, failure)
        raise PosixError(errno.EIO, str(failure))

    # --- writing --------------------------------------------------------------------------------------------

    async def write(self, offset_bytes: int, data: Buffer) -> int:
        """Take ``data``; it is visible on this mount at once. Waits for memory if this mount has too much
        that is not committed. Raises PosixError(EFBIG), and the error that keeps this mount from committing
        anything."""
        if offset_bytes + len(data) > FILE_SIZE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        await self._services.budget.wait_room()
        self._raise_if_lost()
        self._dirty.write(offset_bytes, data)
        self._written_ns = time.time_ns()
        self._recharge()
        self._services.wrote(self)
        return len(data)

    def attributes_set(self, inode: Inode, *, mtime: bool) -> Inode:
        """Somebody has set attributes, ``mtime`` among them, of this file, of which the metadata service does not know
        yet. Returns what it is like now."""
        self._contents.learn(inode)
        if mtime:
            self._written_ns = inode.mtime_ns  # as far as anybody is told
        return self.inode

    def fill(self, data: bytes, written_ns: int) -> None:
        """The compiled part took this for an empty file, and when. It has bounds of its own for what it takes, so
        nothing waits for memory."""
        self._dirty.write(0, data)
        self._written_ns = written_ns
        self._recharge()
        self._services.wrote(self)

    async def append(self, data: Buffer, *, durable: bool = False) -> int:
        """Put ``data`` at the end of the file as of now, in one commit, whoever else appends. Returns where
        it landed. What was written here before is committed first. If this fails with PeerUnreachable or
        DeadlineExceeded, it may have landed all the same."""
        if self.size_bytes + len(data) > FILE_SIZE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        await self._services.budget.wait_room()
        self._services.budget.charge(len(data))
        try:
            async with self._committing():
                self._take(self._dirty.take_all())
                await self._committer.commit(durable=False)
            async with self._changing():
                # What is written meanwhile goes where it was meant to, as if it came after.
                landed = await self._committer.append(data, durable=durable) if data else self.size_bytes
                self._look_at_pieces()
                return landed
        finally:
            self._services.budget.charge(-len(data))

    async def flush(self, *, durable: bool) -> None:
        """Commit everything written before this call, here or through other handles of this mount. If
        ``durable``, it is on the disks of ``min_ack`` targets and of a quorum of the metadata service when
        this returns."""
        if not (self.needs_fsync if durable else self.is_dirty):
            # Nor is anything on its way: bytes leave the backlog with the commit's answer. The close of a file that was
            # only read comes here, and must not cost a task switch.
            self._raise_if_lost()
            return
        async with self._committing():
            self._take(self._dirty.take_all())
            await self._committer.commit(durable=durable or self._syncs_long)
            self._look_at_pieces()

    def begin_whole(self) -> Whole | None:
        """All that a file holds of which the metadata service does not know, to be told with the file itself.
        :meth:`end_whole` must follow, by the same task; until then nobody else commits anything of the file. None: it
        has to be flushed."""
        if self._lost is not None:
            return None
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            return None
        self._take(self._dirty.take_all())
        whole = self._committer.whole()
        if whole is None:
            self._lock.release()
        return whole

    async def store_whole(self, whole: Whole) -> Held:
        """Put what does not fit into the inode on the chunkservers. What to tell of the file. Raises ShoalError."""
        return await self._committer.store_whole(whole)

    def end_whole(self, whole: Whole, result: Inode | ShoalError | None) -> None:
        """The file was made with this, or could not be. None: nobody knows, and it will be tried again."""
        if isinstance(result, ShoalError):
            self._turn_failed(result, of_all=True)
        elif result is not None:
            self._committer.committed_whole(whole, result)
        self._recharge()
        self._lock.release()

    async def commit_backlog(self) -> None:
        """Commit what is on its way to chunks already, and leave the window that is still being filled
        alone."""
        async with self._committing():
            await self._committer.commit(durable=self._syncs_long)
            self._look_at_pieces()

    async def merge(self, start: int, end: int) -> int:
        """Have small pieces of [start, end) become one. Returns how many did. Raises ShoalError: they have not, or it
        is not known, and what is known of the extents is forgotten. Cancelled: the same doubt."""
        return 0 if self._lost else await self._committer.merge(start, end, self._services.reader.read)

    def _look_at_pieces(self) -> None:
        around = self._committer.ragged()
        if around is not None:
            self._services.merge(self, *around)

    async def store_full_windows(self) -> None:
        """Put windows that are complete on the chunkservers, ahead of the commit."""
        units = self._dirty.take_full()
        self._take(units)
        try:
            await all_of([partial(self._committer.store, unit, durable=False) for unit in units])
        except SessionGone as error:
            self.lose(error)
        except ShoalError as error:
            # They stay in the backlog, and the next commit tries again.
            self._note_failure(error)

    async def setattr(self, request: SetAttr) -> Inode:
        """Change attributes, the size among them. Bytes beyond a smaller size are dropped, committed or not.
        Before anything but the size changes, what was written is committed: a commit sets the times and takes
        set-id bits away."""
        others = (request.mode, request.uid, request.gid) != (None, None, None)
        if self.is_dirty and (request.size_bytes is None or others or request.mtime_ns not in (None, NOW)):
            await self.flush(durable=False)
        if request.size_bytes is not None and request.size_bytes > FILE_SIZE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        async with self._changing():
            entry = await self._services.metadata.mutate(Op.SETATTR, request, Entry)
            if request.size_bytes is None:
                self._contents.learn(entry.inode)
            else:
                self._dirty.truncate(request.size_bytes)
                self._backlog.truncate(request.size_bytes)
                self._contents.reshaped(entry.inode)
        return self.inode

    async def allocate(self, request: Allocate) -> None:
        """As fallocate(2). What was written here before is committed first, so that a hole takes it too."""
        if self.is_dirty:
            await self.flush(durable=False)
        async with self._changing():
            while True:
                reply = await self._services.metadata.mutate(Op.ALLOCATE, request, Committed)
                self._contents.reshaped(reply.inode)
                if not reply.left:
                    break
                first, end = reply.left_from_bytes, request.offset_bytes + request.length_bytes
                request = msgspec.structs.replace(request, offset_bytes=first, length_bytes=end - first)

    async def clone(self, request: CloneRange) -> int:
        """Let a range of this file share the bytes of a range of another, which must be committed. Returns how much of
        it was done. Raises LayoutConflict where the bytes have to be moved."""
        if self.is_dirty:
            await self.flush(durable=False)
        async with self._changing():
            reply = await self._services.metadata.mutate(Op.CLONE_RANGE, request, Cloned)
            while reply.again:
                reply = await self._services.metadata.mutate(Op.CLONE_RANGE, request, Cloned)
            if reply.length_bytes:
                self._committer.cloned = True
                self._contents.reshaped(reply.inode)
        return reply.length_bytes

    async def seek(self, offset_bytes: int, *, hole: bool) -> int:
        """The first offset from there on that is in a hole, or that is not; the end of the file begins a hole. Raises
        PosixError(ENXIO) beyond the end and behind the last data. What was written here is committed first."""
        if self.is_dirty:
            await self.flush(durable=False)
        self._raise_if_lost()
        return await self._fetcher.seek(offset_bytes, self.size_bytes, hole=hole)

    def discard(self) -> None:
        """Drop what is not committed: nobody can ever read this file again (unlinked, and closed for the last
        time)."""
        self._dirty.truncate(0)
        self._backlog.drop(self._backlog.units)
        self._committer.forget_undurable()
        self._recharge()

    def lose(self, error: ShoalError) -> None:
        """The session is gone or the inode is. If something was not committed, it never can be: it is
        dropped, and every further call on this file fails, for what a reader would get is not what was
        written."""
        if self.is_dirty:
            log.error("inode %d: bytes that were not committed are lost: %s", self.ino, error)
            self._lost = error
            self.discard()
        self._contents.forget()

    def refuse(self, error: ShoalError) -> None:
        """The file was made here, and the metadata service will not have it: whatever is done with it fails."""
        self._lost = error
        self.discard()
        self._contents.forget()

    def forget(self) -> None:
        """Give up what is known of the committed bytes."""
        self._contents.forget()

    def closed(self) -> None:
        """Nobody is left who wrote what was lost: whoever opens the file next gets what is committed."""
        self._lost = None

    @property
    def _syncs_long(self) -> bool:
        """So much is committed and not synced that an fsync would take long: store durably from now on."""
        return len(self._committer.undurable) >= UNDURABLE_CHUNKS_MAX

    def _take(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self._backlog.add(unit)
        self._recharge()

    def _recharge(self) -> None:
        """Tell the budget what this file holds now."""
        cost = self._dirty.cost_bytes + self._backlog.cost_bytes
        self._services.budget.charge(cost - self._charged_bytes)
        if self._charged_bytes and not cost:
            self._services.cleaned(self)
        self._charged_bytes = cost

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise PosixError(self._lost.errno, str(self._lost))

    def _changing(self) -> Turn:
        """The only one who changes the committed file. What cannot be mended by trying again ends the
        file."""
        return Turn(self._lock, self._raise_if_lost, partial(self._turn_failed, of_all=False), self._recharge)

    def _committing(self) -> Turn:
        """As ``_changing``, for bytes of several handles: they all have to learn of a failure."""
        return Turn(self._lock, self._raise_if_lost, partial(self._turn_failed, of_all=True), self._recharge)

    def _turn_failed(self, error: ShoalError, *, of_all: bool) -> None:
        if of_all:
            self._note_failure(error)
            if isinstance(error, PosixError) and error.errno in _GONE:
                self.lose(error)
                self.discard()
        if isinstance(error, SessionGone):
            self.lose(error)

    def _note_failure(self, error: ShoalError) -> None:
        self._services.counters["write_backs_failed"] += 1
        log.warning("inode %d: write-back failed: %s: %s", self.ino, type(error).__name__, error)
