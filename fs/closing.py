"""Files that were made here and are closed: they are committed a moment after their close, many at a time.

In a directory that this mount fills alone (`fs/new_files.py`) nobody else can see a file before this mount was asked
for it. So close(2) of a new file need not wait for its commit, and the commits of all files that are closed meanwhile
travel as one request and become one log entry. Files that do not fit into their inodes are put on the chunkservers
first, all of them at the same time, and are told of with their extents. Whoever looks at the file from elsewhere has it
committed first; a stat here is told times that the commit is told, too. fsync, also of the directory, waits as ever
(docs/leases.md, docs/decisions/0016-closes.md).

Steps of a batch, and what is left when this mount dies before the next one:

1. ``PUT`` the chunks of all files that have any. *Left: chunks that no file uses; collected as garbage. No file.*
2. ``CREATE``, each with its bytes or its extents and receipts, in one request. *Left: the files, whole; those whose
   command was in a log entry. A file that is refused for its chunks (StaleReceipt) is not made; it is told of without,
   its chunks are stored again and committed alone.*
3. Drop the bytes. *Nothing is left to do.*

What is told again because an answer was lost: `fs/new_files.py`. Batches follow one another, in the order of the
closes: what a crash of this mount leaves of the files that were closed in a directory is the first so many, but for
those of one batch that wait for chunkservers; what it takes was closed at most CLOSE_MS and the time of two batches
before.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from shoalfs.fs.committer import Whole
from shoalfs.fs.file import FileData
from shoalfs.fs.making import Making
from shoalfs.fs.new_files import Held
from shoalfs.fs.parallel import settle_all
from shoalfs.transport.errors import ChunkNotReserved, LayoutConflict, ShoalError, StaleReceipt
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import (
    CHANGES_TOGETHER_MAX,
    CLOSE_MS,
    CLOSED_BYTES_MAX,
    CLOSED_FILES_MAX,
    CLOSED_WAITING_BYTES_MAX,
)

if TYPE_CHECKING:
    from shoalfs.mds.messages import Inode

log = logging.getLogger("shoal.fs.closing")

_PAUSE_S: Final = CLOSE_MS / 1000
_AGAIN_S: Final = 1.0  # between attempts while commits fail
_TRIED_ALONE: Final = (LayoutConflict, StaleReceipt, ChunkNotReserved)
"""What a file can be refused for that its own commit mends: it finds out what has changed, and stores again."""


@dataclass(slots=True)
class _Closed:
    file: FileData
    handles: int = 0  # that are released, and count as open until the commit is done
    tries: int = 0  # that have ended
    error: ShoalError | None = None  # what the last of them brought


class Closing:
    """``commit`` commits one file, and that it exists; ``released`` is called afterwards, once for each handle that was
    released meanwhile. A file whose commit fails stays, and is tried again: for everybody else it is open and written
    to. Bounded: CLOSED_FILES_MAX or CLOSED_WAITING_BYTES_MAX wait, besides those whose closes wait with them, and as
    many are under way; what failed is bounded by what may be dirty. :meth:`run` must be running."""

    def __init__(
        self,
        making: Making,
        commit: Callable[[FileData], Awaitable[None]],
        released: Callable[[FileData], None],
    ) -> None:
        self._making = making
        self._commit = commit
        self._released = released
        # In the order of their closes. Invariant: a file is in at most one of the two.
        self._waiting: dict[InodeId, _Closed] = {}
        self._under_way: dict[InodeId, _Closed] = {}
        self._waiting_bytes = 0  # of those that were added since the last batch began
        self._landed = trio.Event()  # of what is under way
        self._work = trio.Event()
        self._hurry = trio.Event()
        self.ended = False
        """Nobody commits any more: closes wait for their own commits, and the end of the mount sees to the rest."""
        # A commit failed, and none has succeeded since. A close that waits for its commit can return the error.
        self._failing = False

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= CLOSED_FILES_MAX or self._waiting_bytes >= CLOSED_WAITING_BYTES_MAX

    def takes(self, file: FileData) -> bool:
        """Whether the close of this file may be left to :meth:`add`."""
        is_small = file.size_bytes <= CLOSED_BYTES_MAX
        return not self._failing and not self.ended and is_small and file.ino not in self._under_way

    @property
    def is_failing(self) -> bool:
        """Closes wait for their commits, and return why they failed."""
        return self._failing or self.ended

    @property
    def room(self) -> int:
        """So many closes need not wait."""
        return 0 if self._is_full else CLOSED_FILES_MAX - len(self._waiting)

    def hurry(self) -> None:
        """What waits has waited long enough."""
        self._hurry.set()

    async def add(self, file: FileData) -> None:
        """The file is closed: commit it soon. Returns at once; if so many wait already, when it is committed. Raises
        why it could not be."""
        was_full = self._is_full
        self._put(file)
        if self._is_full:
            self._hurry.set()
        if was_full and (error := await self.settle((file.ino,))) is not None:
            raise error

    def adopt(self, file: FileData) -> None:
        """The file was closed, and its handle released, while nobody here knew of it."""
        if self.takes(file):
            self._put(file)
            self.take_over(file.ino)
        else:
            self.failed(file)

    def _put(self, file: FileData) -> None:
        if file.ino not in self._waiting:
            self._waiting[file.ino] = _Closed(file)
            self._waiting_bytes += file.size_bytes
        self._work.set()

    def take_over(self, ino: InodeId) -> bool:
        """A handle on the file is released: if the file waits, the handle counts as open until the commit is done."""
        closed = self._find(ino)
        if closed is None or self.ended:
            return False
        closed.handles += 1
        return True

    def failed(self, file: FileData) -> None:
        """The commit that its close waited for has failed, and now the handle is released: it counts as open until a
        commit succeeds."""
        closed = self._find(file.ino)
        if closed is None:
            closed = self._waiting[file.ino] = _Closed(file)
        closed.handles += 1
        self._failing = True
        self._work.set()

    def committed(self) -> None:
        """A commit that somebody waited for has succeeded: so may those that failed."""
        if self._failing:
            self._failing = False
            self._hurry.set()

    def __contains__(self, ino: InodeId) -> bool:
        return self._find(ino) is not None

    def is_due(self, ino: InodeId) -> bool:
        """The file is about to be committed for the first time."""
        closed = self._find(ino)
        return closed is not None and not closed.tries and not self.ended

    def _find(self, ino: InodeId) -> _Closed | None:
        return self._waiting.get(ino) or self._under_way.get(ino)

    async def settle(self, inos: Iterable[InodeId] | None = None) -> ShoalError | None:
        """Return once what is closed now of these files, or of all, is committed; or has been tried. Returns why one
        of them could not be."""
        if inos is None:
            inos = (*self._under_way, *self._waiting)
        failure = None
        for ino in inos:
            closed = self._find(ino)
            if closed is None:
                continue
            tries = closed.tries
            while self._find(ino) is closed and closed.tries == tries and not self.ended:
                self._hurry.set()
                await self._landed.wait()
            failure = closed.error or failure
        return failure

    async def run(self) -> None:
        """Commit until cancelled. What is not committed then stays dirty, and its handles open; nobody waits for it."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._waiting:
                    with trio.move_on_after(_AGAIN_S if self._failing else _PAUSE_S):
                        await self._hurry.wait()
                    await self._commit_waiting()
        finally:
            self.ended = True
            self._landed.set()

    async def _commit_waiting(self) -> None:
        self._hurry = trio.Event()
        self._under_way, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        done = self._under_way
        try:
            failures = dict(await self._commit_all([closed.file for closed in done.values()]))
            self._failing = bool(failures)
        finally:
            self._under_way = {}
            landed, self._landed = self._landed, trio.Event()
            landed.set()
        for ino, closed in done.items():
            file, closed.tries, closed.error = closed.file, closed.tries + 1, failures.get(closed.file)
            if closed.error is not None:
                log.error("inode %d: closed, and not committed yet: %s", ino, closed.error)
            # Of one that is not dirty any more nothing is left to be tried: it is lost, or refused, or empty. One that
            # is although nothing failed got pages of a mapping before its last handle was released.
            if file.is_dirty and file.committed_inode.nlink and (closed.handles or closed.error):
                self._waiting[ino] = closed
                continue
            for _ in range(closed.handles):
                self._released(file)

    async def _commit_all(self, files: Sequence[FileData]) -> list[tuple[FileData, ShoalError]]:
        """Many in a request, those that cannot be told so each for itself. Returns the failures."""
        failures: list[tuple[FileData, ShoalError]] = []
        for start in range(0, len(files), CHANGES_TOGETHER_MAX):
            some = files[start : start + CHANGES_TOGETHER_MAX]
            wholes = {
                file: whole
                for file in some
                if self._making.new_files.can_fill(file.ino) and (whole := file.begin_whole()) is not None
            }
            alone = [file for file in some if file not in wholes]
            for file, error in await self._commit_wholes(wholes):
                if error is None or isinstance(error, _TRIED_ALONE):
                    alone.append(file)
                else:
                    failures.append((file, error))
            for file, result in zip(
                alone, await settle_all([partial(self._commit, file) for file in alone]), strict=True
            ):
                if isinstance(result, ShoalError):
                    failures.append((file, result))
        return failures

    async def _commit_wholes(self, wholes: Mapping[FileData, Whole]) -> list[tuple[FileData, ShoalError | None]]:
        """Files that their :meth:`FileData.begin_whole` has been called for: those that fit into their inodes, which
        wait for no chunkserver, and then the others. Returns those that are not committed, and why; None: somebody else
        has told of them meanwhile."""
        told: dict[InodeId, Inode | ShoalError] = {}
        small = {file.ino: Held(whole.data) for file, whole in wholes.items() if whole.data is not None}
        large = {file: whole for file, whole in wholes.items() if whole.data is None}
        try:
            if small:
                told |= await self._making.tell_together(small)
            if large:
                told |= await self._store_and_tell(large)
        finally:
            for file, whole in wholes.items():
                file.end_whole(whole, told.get(file.ino))
        results = [(file, told.get(file.ino)) for file in wholes]
        return [(file, result) for file, result in results if result is None or isinstance(result, ShoalError)]

    async def _store_and_tell(self, wholes: Mapping[FileData, Whole]) -> dict[InodeId, "Inode | ShoalError"]:
        """First the chunks of all, then one request that tells of all. What became of each; nothing of those that
        somebody else has told of meanwhile."""
        told: dict[InodeId, Inode | ShoalError] = {}
        held: dict[InodeId, Held] = {}
        stored = await settle_all([partial(file.store_whole, whole) for file, whole in wholes.items()])
        for file, one in zip(wholes, stored, strict=True):
            if isinstance(one, ShoalError):
                told[file.ino] = one
            elif self._making.new_files.can_fill(file.ino):
                held[file.ino] = one
        return told | await self._making.tell_together(held) if held else told
