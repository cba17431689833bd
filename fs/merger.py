"""Merger: has small pieces of files become one in the background, one file at a time.

Nobody waits for it, and nothing depends on it: a file that is not looked at stays in pieces. Order of a merge: the
pieces are read (and verified); their bytes are stored as one chunk, durably; MERGE_EXTENTS puts it in their place, if
nothing else is there by now. A crash before that leaves a chunk that no file uses; after it, the old ones are garbage.

A program that goes on writing in the same place is always faster. So what was in vain is tried again, after a while
that doubles, a few times.
"""

import logging
from collections import Counter
from typing import Final, NamedTuple, NoReturn

import trio

from shoalfs.fs.file import FileData
from shoalfs.transport.errors import LayoutConflict, ShoalError
from shoalfs.transport.limits import MERGES_QUEUED_MAX

log = logging.getLogger("shoal.fs.merger")

_AGAIN_S: Final = 1.0
_TIMES_MAX: Final = 6  # the last one half a minute after the one before


class _Look(NamedTuple):
    file: FileData
    start: int
    end: int
    times: int = 0  # it was in vain


class Merger:
    """``counters``: merges, pieces_merged, merges_failed, merges_dropped. Bound: MERGES_QUEUED_MAX wait for their turn,
    and as many to be tried again; one of a file."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._send, self._receive = trio.open_memory_channel[_Look](MERGES_QUEUED_MAX)
        self._resting: set[FileData] = set()

    def ask(self, file: FileData, start: int, end: int) -> None:
        """Look at the pieces of [start, end) of the file soon, or not at all."""
        if file not in self._resting:
            self._queue(_Look(file, start, end))

    async def run(self) -> NoReturn:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            async for look in self._receive:
                try:
                    merged = await look.file.merge(look.start, look.end)
                except ShoalError as error:
                    self._counters["merges_failed"] += 1
                    log.debug("pieces of inode %d stay as they are: %s", look.file.ino, error)
                    is_worth = isinstance(error, LayoutConflict) and look.times < _TIMES_MAX
                    if is_worth and len(self._resting) < MERGES_QUEUED_MAX and look.file not in self._resting:
                        self._resting.add(look.file)
                        nursery.start_soon(self._again, look)
                else:
                    self._counters["merges"] += bool(merged)
                    self._counters["pieces_merged"] += merged
        raise AssertionError("it never ends")

    async def _again(self, look: _Look) -> None:
        await trio.sleep(_AGAIN_S * 2**look.times)
        self._resting.discard(look.file)
        self._queue(look._replace(times=look.times + 1))

    def _queue(self, look: _Look) -> None:
        try:
            self._send.send_nowait(look)
        except trio.WouldBlock:
            self._counters["merges_dropped"] += 1
