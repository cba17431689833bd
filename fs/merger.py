"""Merger: has small pieces of files become one in the background, one file at a time.

Nobody waits for it, and nothing depends on it: a file that is not looked at stays in pieces. Order of a merge: the
pieces are read (and verified); their bytes are stored as one chunk, durably; MERGE_EXTENTS puts it in their place, if
nothing else is there by now. A crash before that leaves a chunk that no file uses; after it, the old ones are garbage.
"""

import logging
from collections import Counter
from typing import NoReturn

import trio

from shoalfs.fs.file import FileData
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.limits import MERGES_QUEUED_MAX

log = logging.getLogger("shoal.fs.merger")


class Merger:
    """``counters``: merges, pieces_merged, merges_failed, merges_dropped."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._send, self._receive = trio.open_memory_channel[tuple[FileData, int, int]](MERGES_QUEUED_MAX)

    def ask(self, file: FileData, start: int, end: int) -> None:
        """Look at the pieces of [start, end) of the file soon, or not at all."""
        try:
            self._send.send_nowait((file, start, end))
        except trio.WouldBlock:
            self._counters["merges_dropped"] += 1

    async def run(self) -> NoReturn:
        """Until cancelled."""
        async for file, start, end in self._receive:
            try:
                merged = await file.merge(start, end)
            except ShoalError as error:
                self._counters["merges_failed"] += 1
                log.debug("pieces of inode %d stay as they are: %s", file.ino, error)
            else:
                self._counters["merges"] += bool(merged)
                self._counters["pieces_merged"] += merged
        raise AssertionError("it never ends")
