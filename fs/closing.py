"""Files that were made here and are closed: they are committed a moment after their close, many at a time.

In a directory that this mount fills alone (`fs/new_files.py`) nobody else can see a file before this mount was asked
for it. So close(2) of a new file need not wait for its commit, and the commits of all files that are closed meanwhile
travel as one request and become one log entry. Whoever looks at the file has it committed first: a stat here, anybody
elsewhere. fsync, also of the directory, waits as ever (docs/leases.md, docs/decisions/0016-closes.md).

Batches follow one another, in the order of the closes: what a crash of this mount leaves of the files that were closed
in a directory is the first so many, and what it takes was closed at most CLOSE_MS and the time of one commit before.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from shoalfs.fs.file import FileData
from shoalfs.fs.making import Making
from shoalfs.fs.parallel import settle_all
from shoalfs.transport.errors import LayoutConflict, ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import CHANGES_TOGETHER_MAX, CLOSE_MS, CLOSED_BYTES_MAX, CLOSED_FILES_MAX

if TYPE_CHECKING:
    from shoalfs.mds.messages import Inode

log = logging.getLogger("shoal.fs.closing")

_PAUSE_S: Final = CLOSE_MS / 1000
_AGAIN_S: Final = 1.0  # between attempts while commits fail


@dataclass(slots=True)
class _Closed:
    file: FileData
    handles: int = 0  # that are released, and count as open until the commit is done
    tries: int = 0  # that have ended
    error: ShoalError | None = None  # what the last of them brought


class Closing:
    """``commit`` commits one file, and that it exists; ``released`` is called afterwards, once for each handle that was
    released meanwhile. A file whose commit fails stays, and is tried again: for everybody else it is open and written
    to. Bounded: CLOSED_FILES_MAX wait, and as many are under way; what failed is bounded by what may be dirty.
    :meth:`run` must be running."""

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
        self._landed = trio.Event()  # of what is under way
        self._work = trio.Event()
        self._hurry = trio.Event()
        self.ended = False
        """Nobody commits any more: closes wait for their own commits, and the end of the mount sees to the rest."""
        # A commit failed, and none has succeeded since. A close that waits for its commit can return the error.
        self._failing = False

    def has_room(self, file: FileData) -> bool:
        """Whether the close of this file may be left to :meth:`add`."""
        return (
            not self._failing
            and not self.ended
            and len(self._waiting) < CLOSED_FILES_MAX
            and file.size_bytes <= CLOSED_BYTES_MAX
            and file.ino not in self._under_way
        )

    def add(self, file: FileData) -> None:
        """The file is closed: commit it soon."""
        self._waiting.setdefault(file.ino, _Closed(file))
        self._work.set()
        if len(self._waiting) >= CLOSED_FILES_MAX:
            self._hurry.set()

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
        self._waiting.setdefault(file.ino, _Closed(file)).handles += 1
        self._failing = True
        self._work.set()

    def committed(self) -> None:
        """A commit that somebody waited for has succeeded: so may those that failed."""
        if self._failing:
            self._failing = False
            self._hurry.set()

    def __contains__(self, ino: InodeId) -> bool:
        return self._find(ino) is not None

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
        self._under_way, self._waiting = self._waiting, {}
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
        """Those that fit into their inodes many in a request, the others each for itself. Returns the failures."""
        failures: list[tuple[FileData, ShoalError]] = []
        for start in range(0, len(files), CHANGES_TOGETHER_MAX):
            some = files[start : start + CHANGES_TOGETHER_MAX]
            small = {
                file: whole
                for file in some
                if self._making.new_files.can_tell(file.ino) and (whole := file.begin_whole()) is not None
            }
            others = [file for file in some if file not in small]
            for file, error in await self._commit_small(small) if small else ():
                if isinstance(error, LayoutConflict):
                    others.append(file)  # fewer bytes fit into an inode than when it was made
                else:
                    failures.append((file, error))
            for file, result in zip(
                others, await settle_all([partial(self._commit, file) for file in others]), strict=True
            ):
                if isinstance(result, ShoalError):
                    failures.append((file, result))
        return failures

    async def _commit_small(self, files: Mapping[FileData, bytes]) -> list[tuple[FileData, ShoalError]]:
        """Files that their :meth:`FileData.begin_whole` has been called for."""
        told: Mapping[InodeId, Inode | ShoalError] = {}
        try:
            told = await self._making.tell_together({file.ino: whole for file, whole in files.items()})
        finally:
            for file, whole in files.items():
                file.end_whole(whole, told.get(file.ino))
        return [(file, error) for file in files if isinstance(error := told[file.ino], ShoalError)]
