"""Prefetcher: carries out readahead in the background, a bounded number of ranges at a time.

Readahead is a hint. When the queue is full the hint is dropped: a reader that is faster than the network
gains nothing from more requests.
"""

from collections import Counter
from typing import NoReturn

import trio

from shoalfs.fs.file import FileData
from shoalfs.transport.limits import FETCH_BYTES_MAX, PREFETCHES_IN_FLIGHT_MAX, PREFETCHES_QUEUED_MAX


class Prefetcher:
    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._send, self._receive = trio.open_memory_channel[tuple[FileData, int, int]](PREFETCHES_QUEUED_MAX)

    def ask(self, file: FileData, start: int, end: int) -> None:
        """Bring [start, end) of the file into the cache soon, or not at all. In pieces, so that the parts
        that are needed first come first and several are fetched at a time."""
        try:
            for at in range(start, end, FETCH_BYTES_MAX):
                self._send.send_nowait((file, at, min(end, at + FETCH_BYTES_MAX)))
        except trio.WouldBlock:
            self._counters["prefetches_dropped"] += 1

    async def run(self) -> NoReturn:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(PREFETCHES_IN_FLIGHT_MAX):
                nursery.start_soon(self._work)
        raise AssertionError("the workers never end")

    async def _work(self) -> None:
        async for file, start, end in self._receive:
            await file.prefetch(start, end)
