"""DataPath: builds the parts that carry the bytes of one mount, and owns its files' data.

There is one FileData per inode as long as anything of it is worth keeping: dirty bytes, chunks that are not
known to be on disk, or cached extents. So a file that is opened again finds what its last close left.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

import trio

from shoalfs.fs.bad_replicas import BadReplicas
from shoalfs.fs.file import FileData, Services
from shoalfs.fs.flush import WriteBack
from shoalfs.fs.merger import Merger
from shoalfs.fs.parallel import settle_all
from shoalfs.fs.ports import Chunks, Metadata
from shoalfs.fs.prefetch import Prefetcher
from shoalfs.fs.reader import ChunkReader
from shoalfs.fs.replicate import Replication
from shoalfs.fs.uploader import Uploader
from shoalfs.mds.messages import Extent, Inode
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import (
    DIRTY_BYTES_DEFAULT,
    FILES_KEPT_MAX,
    FLUSHES_IN_FLIGHT_MAX,
    INLINE_KEPT_BYTES_MAX,
    READ_CACHE_BYTES_DEFAULT,
)


class DataPath:
    """``counters`` are for people: see docs/data_path.md. ``is_open``: a file is never forgotten while it is."""

    def __init__(
        self,
        metadata: Metadata,
        chunks: Chunks,
        *,
        dirty_bytes: int = DIRTY_BYTES_DEFAULT,
        cache_bytes: int = READ_CACHE_BYTES_DEFAULT,
        replication: Replication = "fanout",
        is_open: Callable[[InodeId], bool] = lambda ino: False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._write_back = WriteBack(dirty_bytes)
        self._prefetcher = Prefetcher(self.counters)
        self._merger = Merger(self.counters)
        self._bad_replicas = BadReplicas(metadata)
        self._files: OrderedDict[InodeId, FileData] = OrderedDict()  # the one that was used last is the last
        self._is_open = is_open
        self._inline_bytes = 0  # of all files here
        self._crowded = trio.Event()
        self._services = Services(
            metadata=metadata,
            uploader=Uploader(metadata, chunks, self._bad_replicas, self.counters, replication),
            reader=ChunkReader(metadata, chunks, self._bad_replicas, self.counters, cache_bytes=cache_bytes),
            budget=self._write_back.budget,
            counters=self.counters,
            wrote=self._wrote,
            cleaned=self._write_back.cleaned,
            inline_kept=self._inline_kept,
            prefetch=self._prefetcher.ask,
            merge=self._merger.ask,
        )

    @property
    def dirty_bytes(self) -> int:
        """Memory held by bytes that are not committed."""
        return self._services.budget.used_bytes

    def file(self, inode: Inode) -> FileData:
        """The data of this file, found or made. Whoever opens it also calls its ``refresh``."""
        file = self._files.get(inode.ino)
        if file is None:
            file = FileData(self._services, inode)
        self._keep(file)
        return file

    def find(self, ino: InodeId) -> FileData | None:
        """The data of this file if it is kept, open or not. For rename: what of it needs an fsync?"""
        return self._files.get(ino)

    def is_complete(self, ino: InodeId) -> bool:
        """True if nothing would have to be asked for to read the file as it was last known."""
        file = self._files.get(ino)
        return file is not None and file.is_complete(file.committed_inode)

    async def fetch_many(
        self,
        extents: Iterable[Extent],
        came: Callable[[ChunkId, memoryview], None] = lambda chunk, data: None,
    ) -> None:
        """Bring small chunks into the read cache, many with each request, and say of each that it came, and what it is.
        A hint: nothing is raised, and what cannot be had so is left to whoever reads it."""
        await self._services.reader.fetch_many(extents, came)

    def was_read(self, extents: Iterable[Extent]) -> None:
        """The kernel has these bytes: of all that is in the read cache, they go first."""
        for extent in extents:
            self._services.reader.cached(extent, extent.offset_bytes, extent.end_bytes)

    async def run(self) -> None:
        """Write-back, readahead, merging and reports of bad copies, until cancelled. Call :meth:`flush_all` before the
        end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_back.run)
            nursery.start_soon(self._prefetcher.run)
            nursery.start_soon(self._merger.run)
            nursery.start_soon(self._bad_replicas.run)
            nursery.start_soon(self._forget_files)

    async def flush_all(self, *, durable: bool) -> list[ShoalError]:
        """Commit everything that is dirty, once (syncfs, unmount); with ``durable`` also sync what was
        committed before. Returns the errors of the files that failed."""
        return await _flush_each(
            [file for file in self._files.values() if (file.needs_fsync if durable else file.is_dirty)],
            durable=durable,
        )

    def is_dirty(self, ino: InodeId) -> bool:
        """Something that was written to the file here is not committed."""
        file = self._files.get(ino)
        return file is not None and file.is_dirty

    async def write_back(self, ino: InodeId) -> bool:
        """Commit what was written to the file before this call. False: it could not be, and write-back goes on."""
        file = self._files.get(ino)
        if file is None:
            return True
        return not await _flush_each([file], durable=False)

    def told(self, inode: Inode) -> None:
        """The metadata service has made the file like this."""
        file = self._files.get(inode.ino)
        if file is not None:
            file.refresh(inode)

    def refuse(self, ino: InodeId, error: ShoalError) -> None:
        """A file that was made here is none."""
        file = self._files.get(ino)
        if file is not None:
            file.refuse(error)

    def lose_all(self, error: ShoalError) -> None:
        """The session is gone: what is not committed never can be."""
        for file in self._files.values():
            file.lose(error)

    def _wrote(self, file: FileData) -> None:
        self._keep(file)
        self._write_back.wrote(file)

    def _keep(self, file: FileData) -> None:
        """Remember the file as the one used last."""
        self._files[file.ino] = file
        self._files.move_to_end(file.ino)
        if self._has_too_many():
            self._crowded.set()

    def _inline_kept(self, change_bytes: int) -> None:
        self._inline_bytes += change_bytes
        if self._has_too_many():
            self._crowded.set()

    def _has_too_many(self) -> bool:
        return len(self._files) > FILES_KEPT_MAX or self._inline_bytes > INLINE_KEPT_BYTES_MAX

    async def _forget_files(self) -> None:
        """Keep FILES_KEPT_MAX files and INLINE_KEPT_BYTES_MAX bytes of small ones, besides what is open. One is
        forgotten only when all of it is committed and on disk, so that an fsync through a later open has nothing to
        make up for. One that cannot be synced is kept, as the newest."""
        while True:
            await self._crowded.wait()
            self._crowded = trio.Event()
            left = len(self._files)  # each is looked at once
            while self._has_too_many() and left > 0:
                oldest = list(islice(self._files.values(), FLUSHES_IN_FLIGHT_MAX))
                left -= len(oldest)
                closed = [file for file in oldest if not self._is_open(file.ino)]
                failures = await _flush_each([file for file in closed if file.needs_fsync], durable=True)
                for file in oldest:
                    if not self._has_too_many():
                        break
                    if file.needs_fsync or self._is_open(file.ino):
                        self._files.move_to_end(file.ino)
                    elif self._files.pop(file.ino, None) is not None:
                        file.forget()
                if failures:
                    break  # with the next file that is opened or written we try again


async def _flush_each(files: list[FileData], *, durable: bool) -> list[ShoalError]:
    failures: list[ShoalError] = []
    for start in range(0, len(files), FLUSHES_IN_FLIGHT_MAX):
        batch = files[start : start + FLUSHES_IN_FLIGHT_MAX]
        results = await settle_all([partial(file.flush, durable=durable) for file in batch])
        failures += [result for result in results if isinstance(result, ShoalError)]
    return failures
