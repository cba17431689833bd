"""Scans: notices that a program goes through the files of a directory, and fetches what it will open before it asks.

Training jobs read every file of a directory once, in no order. Asked for one by one, each costs a round trip or two to
the metadata leader, which is most of what such a read costs. So when several names of one directory had to be asked
for, the directory is listed; when several of its files had to, the next ones are fetched in bulk: attributes, inline
bytes, extents, all under leases; and after them the chunks of small files, many with each request.

A hint and no more: what is here is used only if the inode is leased, at just the data version that was fetched. So
nothing here has to be told when something changes.

**Waste is bounded.** A directory's window begins small; it grows while what was fetched is used, and a directory of
which little is used has to be missed twice as often before the next window. Bytes that were fetched and not opened are
at most SCAN_BYTES_MAX: when that is full nothing is fetched, except in the place of what is older than a minute.
Chunks are in the read cache, of which those that were fetched and not opened take at most SCAN_CHUNK_BYTES_MAX; those
that were offered to the compiled part stay in memory as long, even if the cache has dropped them.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio

from shoalfs.fs.coherent import Coherent, FetchedFile
from shoalfs.mds import messages as m
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import (
    FETCH_BATCH_MAX,
    GET_MANY_CHUNK_BYTES_MAX,
    SCAN_BYTES_MAX,
    SCAN_CHUNK_BYTES_MAX,
    SCAN_FILES_MAX,
)

log = logging.getLogger("shoal.fs.scans")

_NAMES_MISSED: Final = 6  # of one directory, before it is listed
_FILES_MISSED: Final = 3  # of one directory, before the first window is fetched
_MISSES_MAX: Final = 1 << 16  # however little is used
_WINDOW_MIN: Final = 64
_WINDOW_MAX: Final = 4_096
_USED_SHARE: Final = 8  # at least one in so many files of a window was opened: the next may be larger
_OLD_S: Final = 60.0
_LOOK_S: Final = 0.005  # at 10,000 files a second that is less than half of the smallest window
_LOOK_MAX_S: Final = 0.1
_FILE_COST_BYTES: Final = 512  # what one fetched file takes beside its bytes
_QUEUED_MAX: Final = 64
_AT_ONCE: Final = 2  # so that a long listing does not keep other directories waiting

_Work = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Directory:
    """``files``: numbers and names in the order in which they were listed; ``next``: the first one that no window has
    reached."""

    files: list[tuple[InodeId, bytes]] = field(default_factory=list)
    next: int = 0
    window: int = _WINDOW_MIN
    threshold: int = _FILES_MISSED
    missed: int = 0
    fetched: int = 0  # in the last window
    used: int = 0  # of these
    chunk_bytes_mean: int = 0  # what the chunks that come with a file took, of the last files that were fetched
    busy: bool = False


@dataclass(slots=True)
class _Ready:
    file: FetchedFile
    directory: InodeId
    name: bytes
    since: float
    chunk_bytes: int  # of its chunks that were fetched, too


class Opens(Protocol):
    """What answers opens: see :class:`~shoalfs.fs.open_files.OpenFiles`."""

    def offer_fetched(
        self, fetched: FetchedFile, data: bytes | memoryview, directory: InodeId, name: bytes
    ) -> bool: ...

    def take_back(self, ino: InodeId) -> None: ...

    def read_through(self) -> list[InodeId]: ...

    def was_read(self, fetched: FetchedFile) -> None: ...

    def has_all(self, ino: InodeId) -> bool: ...


class Scans:
    """``fetch_many`` brings chunks into a cache, which keeps ``chunk_bytes_max`` of them for a while, and raises
    nothing. :meth:`serve` before anything is seen; :meth:`run` must be running."""

    def __init__(
        self,
        metadata: Coherent,
        fetch_many: Callable[[list[m.Extent], Callable[[ChunkId, memoryview], None]], Awaitable[None]],
        counters: Counter[str] | None = None,
        *,
        chunk_bytes_max: int = SCAN_CHUNK_BYTES_MAX,
    ) -> None:
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._metadata = metadata
        self._fetch_many = fetch_many
        self._chunk_bytes_max = chunk_bytes_max
        self._directories: OrderedDict[InodeId, _Directory] = OrderedDict()
        self._directory_of: dict[InodeId, InodeId] = {}  # of the files in _directories; the sum of their lengths
        self._ready: OrderedDict[InodeId, _Ready] = OrderedDict()
        self._ready_bytes = 0  # Invariant: what _ready costs, at most SCAN_BYTES_MAX and one answer
        self._chunk_bytes = 0  # Invariant: the sum of its chunk_bytes, at most ``chunk_bytes_max``
        self._coming: dict[InodeId, trio.Event] = {}  # on their way
        self._names_missed: Counter[InodeId] = Counter()
        self._names_threshold: dict[InodeId, int] = {}  # after so many misses; _NAMES_MISSED if it is not in here
        self._opens: Opens
        self._offering = trio.Event()  # something was offered to the compiled part
        self._send, self._receive = trio.open_memory_channel[_Work](_QUEUED_MAX)

    def serve(self, opens: Opens) -> None:
        """Whose opens this is for."""
        self._opens = opens

    # --- what is seen ------------------------------------------------------------------------------------------------

    def listed(self, directory: InodeId, entries: Iterable[m.DirEntry]) -> None:
        """A page of a listing came."""
        known = self._directories.get(directory)
        if known is None:
            known = self._directories[directory] = _Directory()
        for entry in entries:
            if entry.inode.is_file and not entry.damaged and entry.inode.ino not in self._directory_of:
                known.files.append((entry.inode.ino, entry.name))
                self._directory_of[entry.inode.ino] = directory
        while len(self._directory_of) > SCAN_FILES_MAX:
            _, oldest = self._directories.popitem(last=False)
            for ino, _ in oldest.files:
                self._directory_of.pop(ino, None)

    def looked_up(self, who: m.Credentials, directory: InodeId, inode: m.Inode | None) -> None:
        """A name had to be asked for; None if it does not exist. Several that do not exist are a program that fills
        the directory: once it is listed, no further new name has to be asked for."""
        if inode is not None and not inode.is_file:
            return
        self._names_missed[directory] += _NAMES_MISSED // 2 if inode is None else 1
        if self._names_missed[directory] >= self._names_threshold.get(directory, _NAMES_MISSED):
            # It may be too large, or not leased because others change it all the time: then less and less often.
            self._names_missed.pop(directory)
            self._names_threshold[directory] = 4 * self._names_threshold.get(directory, _NAMES_MISSED)
            self._ask(lambda: self._list(who, directory))
        if len(self._names_missed) + len(self._names_threshold) > SCAN_FILES_MAX:
            self._names_missed.clear()
            self._names_threshold.clear()

    def missed(self, ino: InodeId) -> None:
        """An open had to ask."""
        number = self._directory_of.get(ino)
        if number is None:
            return
        directory = self._directories[number]
        directory.missed += 1
        if directory.missed < directory.threshold or directory.busy:
            return
        directory.missed = 0
        if directory.fetched:
            if directory.used * _USED_SHARE >= directory.fetched:
                directory.window = min(2 * directory.window, _WINDOW_MAX)
                directory.threshold = _FILES_MISSED
            else:
                directory.window = max(directory.window // 2, _WINDOW_MIN)
                directory.threshold = min(2 * directory.threshold, _MISSES_MAX)
        self._begin(number, directory)

    def _begin(self, number: InodeId, directory: _Directory) -> None:
        """Have the next window fetched."""
        directory.busy = self._ask(lambda: self._fetch(number, directory))

    # --- what is had -------------------------------------------------------------------------------------------------

    def take(self, inode: m.Inode) -> FetchedFile | None:
        """What ``inode``, which is leased, holds, if that was fetched and is still so. Its next reader has it from the
        file or the kernel."""
        ready = self._use(inode.ino)
        if ready is None:
            return None
        assert ready.file.inode is not None
        if ready.file.inode.data_version != inode.data_version:
            return None
        self.counters["scanned_used"] += 1
        return ready.file

    def _use(self, ino: InodeId) -> _Ready | None:
        """What was fetched of the file is used now."""
        ready = self._ready.pop(ino, None)
        if ready is None:
            return None
        self._uncount(ready)
        directory = self._directories.get(ready.directory)
        if directory is not None:
            directory.used += 1
            if not directory.busy and 2 * directory.used >= directory.fetched > 0:
                # Before it is used up: a program that goes through all of it need not wait for the next.
                directory.window = min(2 * directory.window, _WINDOW_MAX)
                self._begin(ready.directory, directory)
        return ready

    def _note_read(self) -> int:
        """Take note of what the compiled part has read of what was fetched. Returns how much that was."""
        read = self._opens.read_through()
        for ino in read:
            ready = self._use(ino)
            if ready is not None:
                self._opens.was_read(ready.file)
                self.counters["scanned_used"] += 1
        return len(read)

    def coming(self, ino: InodeId) -> trio.Event | None:
        """Set once what is on its way of this file is here, or will not come."""
        return self._coming.get(ino)

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _ask(self, work: _Work) -> bool:
        try:
            self._send.send_nowait(work)
        except trio.WouldBlock:
            return False
        return True

    async def run(self) -> None:
        """Fetch until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._work)
            nursery.start_soon(self._watch_reads)

    async def _watch_reads(self) -> None:
        """The compiled part wakes nobody: while something that was offered to it waits to be read, it is asked."""
        while True:
            await self._offering.wait()
            self._offering = trio.Event()
            pause_s = _LOOK_S
            while self._ready:
                await trio.sleep(pause_s)
                pause_s = _LOOK_S if self._note_read() else min(2 * pause_s, _LOOK_MAX_S)

    async def _work(self) -> None:
        async for work in self._receive:
            try:
                await work()
            except ShoalError as error:
                # Whoever opens or looks up next asks by itself, and is told.
                log.debug("a scan was not prefetched: %s", error)

    async def _list(self, who: m.Credentials, directory: InodeId) -> None:
        async with aclosing(self._metadata.list_all(who, directory, SCAN_FILES_MAX // 4)) as pages:
            async for page in pages:
                self.listed(directory, page.entries)
                self.counters["scanned_pages"] += 1

    async def _fetch(self, number: InodeId, directory: _Directory) -> None:
        """The next window of the directory."""
        try:
            self._drop_old()
            directory.fetched = directory.used = 0
            left = directory.window
            while (count := min(left, FETCH_BATCH_MAX, self._room(directory))) > 0:
                files = self._next(directory, count)
                if not files:
                    return
                left -= len(files)
                while files:
                    files = files[await self._fetch_some(number, directory, files) :]
        finally:
            directory.busy = False

    def _room(self, directory: _Directory) -> int:
        """How many more of its files may be fetched, so that their chunks probably can be, too. 0 if they would be few:
        requests for one or two files at a time save nothing."""
        if self._ready_bytes >= SCAN_BYTES_MAX:
            return 0
        if not directory.chunk_bytes_mean:
            return FETCH_BATCH_MAX
        room = (self._chunk_bytes_max - self._chunk_bytes) // directory.chunk_bytes_mean
        few = min(_WINDOW_MIN, self._chunk_bytes_max // directory.chunk_bytes_mean // 4)
        return room if room >= few else 0

    def _next(self, directory: _Directory, count: int) -> list[tuple[InodeId, bytes]]:
        """The next files of which nothing is known yet, going round at most once."""
        found: list[tuple[InodeId, bytes]] = []
        for _ in range(min(len(directory.files), 4 * _WINDOW_MAX)):
            ino, name = directory.files[directory.next % len(directory.files)]
            directory.next = (directory.next + 1) % len(directory.files)
            if ino not in self._ready and ino not in self._coming and not self._opens.has_all(ino):
                found.append((ino, name))
                if len(found) == count:
                    break
        return found

    async def _fetch_some(self, number: InodeId, directory: _Directory, some: Sequence[tuple[InodeId, bytes]]) -> int:
        """Returns how many of them were answered."""
        here, inos = trio.Event(), tuple(ino for ino, _ in some)
        self._coming.update(dict.fromkeys(inos, here))
        try:
            files = await self._metadata.fetch_files(inos)
        finally:
            for ino in inos:
                del self._coming[ino]
            here.set()
        now = trio.current_time()
        self.counters["scanned_requests"] += 1
        chunks: list[m.Extent] = []
        whole: dict[ChunkId, _Ready] = {}
        small_bytes = 0
        for file, (_, name) in zip(files, some, strict=False):
            if file.inode is not None:
                chunk_bytes = _small_chunk_bytes(file)
                small_bytes += chunk_bytes
                if self._chunk_bytes + chunk_bytes > self._chunk_bytes_max:
                    chunk_bytes = 0
                if chunk_bytes:
                    chunks += file.extents
                ready = self._ready[file.inode.ino] = _Ready(file, number, name, now, chunk_bytes)
                self._ready_bytes += _cost(file)
                self._chunk_bytes += chunk_bytes
                directory.fetched += 1
                if file.inode.storage is m.Storage.INLINE:
                    self._offer(ready, file.data)
                elif chunk_bytes and (chunk := _only_chunk(file)) is not None:
                    whole[chunk] = ready
        directory.chunk_bytes_mean = small_bytes // max(1, len(files))
        self.counters["scanned_files"] += len(files)
        if chunks:
            await self._fetch_many(chunks, partial(self._came, whole))
        return max(1, len(files))

    def _came(self, whole: Mapping[ChunkId, _Ready], chunk: ChunkId, data: memoryview) -> None:
        """A chunk that may be all of a file."""
        ready = whole.get(chunk)
        if ready is not None and ready.file.inode is not None and self._ready.get(ready.file.inode.ino) is ready:
            self._offer(ready, data[: ready.file.inode.size_bytes])

    def _offer(self, ready: _Ready, data: bytes | memoryview) -> None:
        if self._opens.offer_fetched(ready.file, data, ready.directory, ready.name):
            self._offering.set()

    def _drop_old(self) -> None:
        before = trio.current_time() - _OLD_S
        while self._ready:
            ready = next(iter(self._ready.values()))
            if ready.since >= before:
                return
            ino, _ = self._ready.popitem(last=False)
            self._uncount(ready)
            self._opens.take_back(ino)

    def _uncount(self, ready: _Ready) -> None:
        self._ready_bytes -= _cost(ready.file)
        self._chunk_bytes -= ready.chunk_bytes


def _cost(file: FetchedFile) -> int:
    return len(file.data) + _FILE_COST_BYTES


def _only_chunk(file: FetchedFile) -> ChunkId | None:
    """The chunk that begins with all bytes of the file, if there is one."""
    if file.inode is None or len(file.extents) != 1:
        return None
    (extent,) = file.extents
    is_all = not extent.offset_bytes and extent.length_bytes == file.inode.size_bytes
    return extent.chunk if is_all and not extent.chunk_offset_bytes and not extent.fragments else None


def _small_chunk_bytes(file: FetchedFile) -> int:
    """What the chunks of a small file take; 0 if it has others, which are not fetched before they are read."""
    if any(extent.fragments or extent.chunk_bytes > GET_MANY_CHUNK_BYTES_MAX for extent in file.extents):
        return 0
    return sum(extent.chunk_bytes for extent in file.extents)
