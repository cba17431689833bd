"""Committer: stores the units of one file and links them into it. The file's lock is held by whoever calls
it.

Steps of a commit, and what is left when this client dies before the next one:

1. ``PUT`` each unit to its group. *Left: chunks that no file uses; collected as garbage. The file is as
   before.*
2. If the commit is to be durable, ``SYNC`` what was stored without. *Left: as after 1.*
3. ``COMMIT_EXTENTS`` (or ``COMMIT_INLINE``), in the order of writing, EXTENTS_PER_COMMIT_MAX at a time, fewer where
   very many extents are written over. *Left: the file with the first so many commits; each is all or nothing.*
4. Drop the bytes. *Nothing is left to do.*

A file that this mount has made, and of which the metadata service does not know, is told of with what it holds, many
of them at a time (`fs/closing.py`): :meth:`Committer.whole` says what that is, and 3 is then ``CREATE``. *Left before
it: the chunks, as after 1; and no file.*

A commit whose answer never came may have happened. It is repeated with the next flush: linking the same chunk
to the same place once more changes nothing, because this file's later writes are still behind it in the
backlog.
"""

import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from shoalfs.fs import merging
from shoalfs.fs.contents import Contents
from shoalfs.fs.fetcher import Fetcher
from shoalfs.fs.new_files import Held
from shoalfs.fs.parallel import all_of
from shoalfs.fs.ports import Buffer, Metadata
from shoalfs.fs.units import Backlog, Unit, give_up_refused, syncs_needed
from shoalfs.fs.uploader import Uploader
from shoalfs.mds.messages import (
    CommitExtents,
    CommitInline,
    Committed,
    Extent,
    Inode,
    MergeExtents,
    Op,
    Patch,
    Receipt,
)
from shoalfs.transport.errors import ChunkNotReserved, LayoutConflict, PosixError, ShoalError, StaleReceipt
from shoalfs.transport.limits import (
    COMMIT_ATTEMPTS_MAX,
    CREATE_EXTENTS_MAX,
    EXTENTS_PER_COMMIT_MAX,
    FILE_SIZE_BYTES_MAX,
    MERGED_BYTES_MAX,
)

if TYPE_CHECKING:
    from shoalfs.transport.ids import ChunkId, TargetId


class Committer:
    """``undurable``: chunks that this mount committed and that may not be on disk yet, with the targets that
    have them. Invariant: a chunk is in it from its commit until min_ack of its targets have synced it."""

    def __init__(
        self, metadata: Metadata, uploader: Uploader, contents: Contents, backlog: Backlog, fetcher: Fetcher
    ) -> None:
        self.undurable: dict[ChunkId, tuple[TargetId, ...]] = {}
        # Chunks of other files were linked since the last sync: whoever wrote them may not have synced them.
        self.cloned = False
        self._metadata = metadata
        self._uploader = uploader
        self._contents = contents
        self._backlog = backlog
        self._fetcher = fetcher
        self._in_flight: dict[Unit, trio.Event] = {}
        self._linked: tuple[int, int] | None = None  # where the last commit put its extents
        self._pieces = 0  # extents of the file when :meth:`ragged` was last asked

    @property
    def is_undurable(self) -> bool:
        """Something that was committed here may not be on disk yet."""
        return self.cloned or bool(self.undurable)

    def forget_undurable(self) -> None:
        self.cloned = False
        self.undurable.clear()

    async def store(self, unit: Unit, *, durable: bool, shift_bytes: int = 0) -> None:
        """Put the unit on its targets, unless it is there. Who comes second waits for the first. Cancelled or
        failed: the unit is as before."""
        while (landed := self._in_flight.get(unit)) is not None:
            await landed.wait()
        if unit.stored is not None:
            return
        self._in_flight[unit] = landed = trio.Event()
        try:
            offset = unit.offset_bytes + shift_bytes
            unit.stored = await self._uploader.store(self._contents.inode, offset, unit.payload, durable=durable)
        finally:
            del self._in_flight[unit]
            landed.set()

    async def commit(self, *, durable: bool) -> None:
        """Commit everything that is in the backlog now. If ``durable``, what this mount committed before is
        on disk afterwards as well. Raises ShoalError; then what is not committed is still in the backlog."""
        failure: ShoalError | None = None
        for _ in range(COMMIT_ATTEMPTS_MAX):
            try:
                await self._commit_backlog(durable=durable)
                break
            except (LayoutConflict, StaleReceipt, ChunkNotReserved) as error:
                failure = error
                await self._refresh(error, self._backlog.units)
        else:
            assert failure is not None
            raise failure
        if durable:
            await self._sync_committed()

    def whole(self) -> "Whole | None":
        """All that a file holds of which nothing is committed yet, if that can be told with the file itself."""
        inode = self._contents.inode
        if self._contents.inline != b"" or inode.data_version != 1 or inode.size_bytes:
            return None
        units = self._backlog.units
        if not self._fits_inline(self._backlog.end_bytes):
            return Whole(units) if _can_be_told(units) else None
        if self._in_flight:
            return None
        data = bytearray(self._backlog.end_bytes)
        for offset, view in self._backlog.read(0, len(data)):
            data[offset : offset + len(view)] = view
        return Whole(units, bytes(data))

    async def store_whole(self, whole: "Whole") -> Held:
        """Put what does not fit into the inode on the chunkservers. Raises ShoalError: some of it may be stored."""
        await self._store_all([*whole.units], durable=False)
        return Held(extents=_extents(whole.units), receipts=_receipts(whole.units))

    def committed_whole(self, whole: "Whole", created: Inode) -> None:
        """The file was made with what :meth:`store_whole` said."""
        reply = Committed(created, 0, previous_data_version=1)
        if whole.data is None:
            self._contents.committed_extents(reply, _extents(whole.units))
            self._remember(whole.units, durable=False)
        elif whole.data:
            self._contents.committed_inline(reply, (Patch(0, whole.data),))
        else:
            self._contents.learn(created)
        self._backlog.drop(whole.units)  # what was taken since lies over it, and stays

    async def append(self, data: Buffer, *, durable: bool) -> int:
        """Put ``data`` at the end of the file in one commit of its own, and return where it landed. Raises
        ShoalError. After PeerUnreachable, DeadlineExceeded or a cancellation it may have landed."""
        size = self._contents.inode.chunk_bytes
        view = memoryview(data).cast("B")
        units = [Unit([(start, view[start : start + size])]) for start in range(0, len(view), size)]
        failure: ShoalError | None = None
        for _ in range(COMMIT_ATTEMPTS_MAX):
            try:
                if self._fits_inline(self._contents.inode.size_bytes + len(view)):
                    return await self._append_inline(view)
                return await self._append_extents(units, durable=durable)
            except (LayoutConflict, StaleReceipt, ChunkNotReserved) as error:
                failure = error
                await self._refresh(error, units)
        assert failure is not None
        raise failure

    def ragged(self) -> tuple[int, int] | None:
        """Something was committed. Where to look for small pieces: around it, when there are many more than there
        were."""
        before, self._pieces = self._pieces, self._contents.inode.extents
        if self._linked is None or before // merging.PIECES_MIN == self._pieces // merging.PIECES_MIN:
            return None
        first, end = self._linked
        return max(0, first - MERGED_BYTES_MAX), end + MERGED_BYTES_MAX

    async def merge(self, start: int, end: int, read: Callable[[Extent], Awaitable[list[memoryview]]]) -> int:
        """As :meth:`shoalfs.fs.file.FileData.merge`. ``read`` gives the bytes of an extent."""
        found = await self._fetcher.committed(start, min(end, self._contents.inode.size_bytes))
        pieces = () if isinstance(found, bytes) else merging.choose(found)
        if not pieces:
            return 0
        payload = [view for views in await all_of([partial(read, piece) for piece in pieces]) for view in views]
        try:
            await self._replace(pieces, payload)
        except ShoalError:
            self._contents.forget()
            raise
        return len(pieces)

    async def _replace(self, pieces: Sequence[Extent], payload: Sequence[memoryview]) -> None:
        """Let one chunk with these bytes take the place of the pieces. Raises LayoutConflict if they are not what is
        there."""
        inode, offset = self._contents.inode, pieces[0].offset_bytes
        length = sum(map(len, payload))
        assert length == pieces[-1].end_bytes - offset, pieces
        stored = await self._uploader.store(inode, offset, payload, durable=True)
        extent = Extent(offset, length, stored.chunk, 0, length, stored.chunk_hash, stored.fragments)
        request = MergeExtents(inode.ino, tuple(pieces), extent, stored.receipts)
        reply = await self._metadata.mutate(Op.MERGE_EXTENTS, request, Committed)
        self._uploader.committed(stored)
        self._contents.merged(reply, extent)

    async def _refresh(self, error: ShoalError, units: Iterable[Unit]) -> None:
        """Learn what the refused commit did not know, and give up chunks that cannot be linked any more."""
        if isinstance(error, LayoutConflict):
            await self._fetcher.refetch()
            return
        epochs = {target.id: target.epoch for target in (await self._metadata.refresh_map()).targets}
        give_up_refused(units, epochs)

    def _fits_inline(self, end_bytes: int) -> bool:
        inode = self._contents.inode
        return self._contents.is_inline and max(inode.size_bytes, end_bytes) <= inode.inline_bytes_max

    async def _commit_backlog(self, *, durable: bool) -> None:
        units = self._backlog.units
        for unit in units:
            # Truncated away while it was on its way, or to be committed inline: wait only for its memory.
            if unit in self._in_flight and (not unit.parts or self._contents.is_inline):
                await self._in_flight[unit].wait()
        self._backlog.drop([unit for unit in units if not unit.parts])
        units = tuple(unit for unit in units if unit.parts)
        if not units:
            return
        if self._fits_inline(self._backlog.end_bytes):
            await self._commit_inline()
        else:
            await self._commit_extents(units, durable=durable)

    async def _commit_inline(self) -> None:
        units = self._backlog.units
        patches = tuple(_patches(self._backlog.read(0, FILE_SIZE_BYTES_MAX)))
        request = CommitInline(self._contents.inode.ino, patches)
        reply = await self._metadata.mutate(Op.COMMIT_INLINE, request, Committed)
        self._contents.committed_inline(reply, patches)
        self._backlog.drop(units)

    async def _append_inline(self, view: memoryview) -> int:
        patches = (Patch(0, bytes(view)),)
        request = CommitInline(self._contents.inode.ino, patches, append=True)
        reply = await self._metadata.mutate(Op.COMMIT_INLINE, request, Committed)
        self._contents.committed_inline(reply, (Patch(reply.offset_bytes, patches[0].data),))
        return reply.offset_bytes

    async def _commit_extents(self, units: tuple[Unit, ...], *, durable: bool) -> None:
        fill, version = await self._fill()
        await self._store_all(fill, durable=True)
        await self._store_all([*units], durable=durable)
        batches = list(_batches(units))
        for index, batch in enumerate(batches):
            linked = [*fill, *batch] if index == 0 else batch
            extents = [extent for unit in linked for extent in unit.extents()]
            request = CommitExtents(
                self._contents.inode.ino,
                tuple(extents),
                _receipts(linked),
                inline_version=version if index == 0 else None,
                durable=durable,
            )
            await self._link(request)
            self._backlog.drop(batch)
            self._remember(linked, durable=durable)

    async def _append_extents(self, units: list[Unit], *, durable: bool) -> int:
        """Where the file is inline its end is known exactly, and the commit is refused if that is no longer
        so; else the service finds the end."""
        fill, version = await self._fill()
        inode = self._contents.inode
        promote = self._contents.is_inline
        base = inode.size_bytes if promote else 0
        version = inode.data_version if promote else version
        await self._store_all(fill, durable=True)
        await self._store_all(units, durable=durable, shift_bytes=inode.size_bytes)
        linked = [*fill, *units]
        extents = [extent for unit in fill for extent in unit.extents()]
        extents += [extent for unit in units for extent in unit.extents(shift_bytes=base)]
        request = CommitExtents(
            inode.ino,
            tuple(extents),
            _receipts(linked),
            append=not promote,
            inline_version=version,
            durable=durable,
        )
        landed = await self._link(request)
        self._remember(linked, durable=durable)
        return base if promote else landed

    async def _link(self, request: CommitExtents) -> int:
        """Have extents linked, with as many commands as that takes: one, unless they lie over very many others. Returns
        where the first command landed them."""
        landed = -1
        while True:
            reply = await self._metadata.mutate(Op.COMMIT_EXTENTS, request, Committed)
            shift_bytes = reply.offset_bytes if request.append else 0
            done, left = divide(request.extents, reply)
            if shift_bytes:
                done = tuple(msgspec.structs.replace(e, offset_bytes=e.offset_bytes + shift_bytes) for e in done)
            self._contents.committed_extents(reply, done)
            if done:
                self._linked = done[0].offset_bytes, done[-1].end_bytes
            landed = reply.offset_bytes if landed < 0 or request.append else landed
            if not left:
                return landed
            request = msgspec.structs.replace(
                request, extents=left, inline_version=None if done else request.inline_version
            )

    async def _fill(self) -> tuple[list[Unit], int | None]:
        """What has to be linked below everything else when the file leaves its inode: its inline bytes, and
        the data version at which they are all of it. Nothing if it has extents or is empty.

        Inline bytes are on a quorum's disks, and somebody may rely on it: their chunk is always stored
        durably."""
        inline = await self._fetcher.inline()
        if not inline:
            return [], None
        return [Unit([(0, inline)])], self._contents.inode.data_version

    async def _store_all(self, units: list[Unit], *, durable: bool, shift_bytes: int = 0) -> None:
        """Store all units, durably if asked for, whatever was stored before. The uploader bounds how many at
        once."""
        store = partial(self.store, durable=durable, shift_bytes=shift_bytes)
        await all_of([partial(store, unit) for unit in units])
        if not durable or not units:
            return
        need = await self._uploader.min_ack(self._contents.inode.pool)
        volatile = {unit.stored.chunk: unit for unit in units if unit.stored and unit.stored.durable_receipts < need}
        held = {chunk: unit.stored.holders for chunk, unit in volatile.items() if unit.stored}
        for chunk, receipts in (await self._uploader.sync(held, dict.fromkeys(held, need))).items():
            unit = volatile[chunk]
            assert unit.stored is not None
            unit.stored = unit.stored._replace(receipts=receipts) if len(receipts) >= need else None
        await all_of([partial(store, unit) for unit in units])

    async def _sync_committed(self) -> None:
        """Put on disk what was committed without. Raises PosixError(EIO) if that is not possible."""
        if self.cloned:
            linked = await self._fetcher.linked_chunks()
            self.undurable |= {chunk: self._uploader.holders(chunk) for chunk in linked - self.undurable.keys()}
            self.cloned = False
        held = dict(self.undurable)
        if not held:
            return
        usual = await self._uploader.min_ack(self._contents.inode.pool)
        need = {chunk: syncs_needed(targets, usual) for chunk, targets in held.items()}
        asked = {chunk: {*targets, *self._uploader.holders(chunk)} for chunk, targets in held.items()}
        receipts = await self._uploader.sync(asked, need)
        lacking = {chunk for chunk in held if len(receipts[chunk]) < need[chunk]}
        if lacking:
            # Chunks that were overwritten or cut off since may be collected: nobody needs them on disk.
            lacking &= await self._fetcher.linked_chunks()
        for chunk in held.keys() - lacking:
            self.undurable.pop(chunk, None)
        if lacking:
            raise PosixError(errno.EIO, f"{len(lacking)} chunks could not be synced on {usual} targets")

    def _remember(self, units: Iterable[Unit], *, durable: bool) -> None:
        for unit in units:
            if unit.stored:
                self._uploader.committed(unit.stored)
            if unit.stored and not durable and unit.stored.durable_receipts < len(unit.stored.receipts):
                self.undurable[unit.stored.chunk] = unit.stored.holders


def divide(extents: Sequence[Extent], reply: Committed) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    """What of a commit's extents is done, and what is left."""
    done, left = tuple(extents[: len(extents) - reply.left]), tuple(extents[len(extents) - reply.left :])
    if left and left[0].offset_bytes < reply.left_from_bytes < left[0].end_bytes:
        first, at = left[0], reply.left_from_bytes
        done = (*done, first.part(first.offset_bytes, at))
        left = (first.part(at, first.end_bytes), *left[1:])
    return done, left


class Whole(NamedTuple):
    """What a new file holds: the units that were written, and all their bytes if these fit into the inode."""

    units: tuple[Unit, ...]
    data: bytes | None = None


def _can_be_told(units: Sequence[Unit]) -> bool:
    """A file can be made with these: they are few pieces, one behind the other."""
    parts = [part for unit in units for part in unit.parts]
    in_order = all(one.end_bytes <= other.offset_bytes for one, other in pairwise(parts))
    return 0 < len(parts) <= CREATE_EXTENTS_MAX and all(unit.parts for unit in units) and in_order


def _extents(units: Iterable[Unit]) -> tuple[Extent, ...]:
    return tuple(extent for unit in units for extent in unit.extents())


def _receipts(units: Iterable[Unit]) -> tuple[Receipt, ...]:
    return tuple(receipt for unit in units if unit.stored for receipt in unit.stored.receipts)


def _patches(pieces: Iterable[tuple[int, memoryview]]) -> Iterator[Patch]:
    """Neighbours joined."""
    start, data = 0, bytearray()
    for offset, view in pieces:
        if data and start + len(data) != offset:
            yield Patch(start, bytes(data))
            data.clear()
        if not data:
            start = offset
        data += view
    if data:
        yield Patch(start, bytes(data))


def _batches(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Stored units in order, at most EXTENTS_PER_COMMIT_MAX extents together, one of them left to the inline
    bytes."""
    batch: list[Unit] = []
    count = 1
    for unit in units:
        extents = len(unit.extents())
        if batch and count + extents > EXTENTS_PER_COMMIT_MAX:
            yield batch
            batch, count = [], 1
        batch.append(unit)
        count += extents
    if batch:
        yield batch
