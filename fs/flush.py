"""WriteBack: commits in the background what programs have written.

Three duties, each a task:

* **stream**: a window that is complete is put on the chunkservers at once, so that storing overlaps with
  writing;
* **age**: a file is committed WRITE_BACK_MS after it became dirty, and again after that long if it failed;
* **relieve**: when half of the budget is used, the files that have been dirty for longest are committed;
  first only what is on chunkservers already, which frees much for little, and if that is not enough
  everything.

Files remember their failures themselves. When nothing could be freed, the writers who wait are told why.
"""

import logging
from functools import partial
from typing import Final, NoReturn

import trio

from shoalfs.fs.budget import DirtyBudget
from shoalfs.fs.file import FileData
from shoalfs.fs.parallel import settle_all
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.limits import FLUSHES_IN_FLIGHT_MAX, WRITE_BACK_MS

log = logging.getLogger("shoal.fs.flush")

_PERIOD_S: Final = WRITE_BACK_MS / 1000
_RELIEF_PAUSE_S: Final = 0.1  # after an attempt that failed


class WriteBack:
    """Bound: every file here holds at least one run of dirty bytes, so the budget bounds them all."""

    def __init__(self, dirty_bytes: int) -> None:
        self.budget = DirtyBudget(dirty_bytes, self._press)
        # When each file became dirty, the oldest first.
        self._since: dict[FileData, float] = {}
        self._busy: set[FileData] = set()
        self._full: dict[FileData, None] = {}
        self._aging = trio.Event()
        self._streaming = trio.Event()
        self._pressed = trio.Event()
        self._slots = trio.CapacityLimiter(FLUSHES_IN_FLIGHT_MAX)

    def wrote(self, file: FileData) -> None:
        """A program wrote to this file."""
        if file not in self._since:
            self._since[file] = trio.current_time()
            self._aging.set()
        if file.has_full_window:
            self._full[file] = None
            self._streaming.set()

    def cleaned(self, file: FileData) -> None:
        """Everything that was written to this file is committed, or dropped."""
        self._since.pop(file, None)

    async def run(self) -> NoReturn:
        """Until cancelled. What is dirty then stays dirty."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stream, nursery)
            nursery.start_soon(self._age, nursery)
            nursery.start_soon(self._relieve)
        raise AssertionError("the duties never end")

    def _press(self) -> None:
        self._pressed.set()

    async def _stream(self, nursery: trio.Nursery) -> None:
        while True:
            await self._streaming.wait()
            self._streaming = trio.Event()
            files, self._full = self._full, {}
            for file in files:
                nursery.start_soon(file.store_full_windows)

    async def _age(self, nursery: trio.Nursery) -> None:
        while True:
            self._aging = trio.Event()
            oldest = next((file for file in self._since if file not in self._busy), None)
            if oldest is None or len(self._busy) == FLUSHES_IN_FLIGHT_MAX:
                await self._aging.wait()
            elif (due := self._since[oldest] + _PERIOD_S) > trio.current_time():
                await trio.sleep_until(due)
            else:
                self._busy.add(oldest)
                nursery.start_soon(self._flush_aged, oldest)

    async def _flush_aged(self, file: FileData) -> None:
        try:
            await self._flush(file, durable=False)
        except ShoalError:
            log.debug("inode %d stays dirty", file.ino)
        finally:
            self._busy.discard(file)
            self._aging.set()

    async def _relieve(self) -> None:
        while True:
            await self._pressed.wait()
            self._pressed = trio.Event()
            error = await self._relieve_once()
            if error is not None:
                if not self.budget.has_room:
                    self.budget.refuse(error)
                await trio.sleep(_RELIEF_PAUSE_S)

    async def _relieve_once(self) -> ShoalError | None:
        """Commit until less than half is used or everything was tried. The last error, if there was one."""
        failure: ShoalError | None = None
        for whole in (False, True):
            files = [file for file in self._since if whole or file.has_backlog]
            for start in range(0, len(files), FLUSHES_IN_FLIGHT_MAX):
                if not self.budget.is_pressed:
                    return None
                batch = files[start : start + FLUSHES_IN_FLIGHT_MAX]
                flush = partial(self._flush, durable=False) if whole else self._commit_backlog
                for result in await settle_all([partial(flush, file) for file in batch]):
                    failure = result if isinstance(result, ShoalError) else failure
        return failure

    async def _flush(self, file: FileData, *, durable: bool) -> None:
        async with self._slots:
            try:
                await file.flush(durable=durable)
            finally:
                # What is dirty now, new or left by a failure, is due after another period.
                self._since.pop(file, None)
                if file.is_dirty:
                    self._since[file] = trio.current_time()

    async def _commit_backlog(self, file: FileData) -> None:
        async with self._slots:
            await file.commit_backlog()
