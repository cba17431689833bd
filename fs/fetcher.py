"""Fetcher: asks the metadata service for what `fs/contents.py` does not know of a file, one page at a
time."""

import errno

import trio

from shoalfs.fs.contents import Contents
from shoalfs.fs.extents import Span, cut, first_data, first_hole
from shoalfs.fs.ports import Answer, Metadata
from shoalfs.mds.messages import GET_EXTENTS, ExtentMap, GetExtents
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import EXTENTS_CACHED_MAX, FILE_SIZE_BYTES_MAX, STALE_PAGES_MAX

_PAGE_EXTENTS = 1_000
_SEEK_WINDOW_BYTES = 1 << 30  # looked at in one go; it doubles, so 16 TiB of nothing are 14 steps
_PAGES_MAX = STALE_PAGES_MAX + EXTENTS_CACHED_MAX // _PAGE_EXTENTS


class Fetcher:
    def __init__(self, metadata: Metadata, contents: Contents) -> None:
        self._metadata = metadata
        self._contents = contents
        self._lock = trio.Lock()  # one page at a time: readers that lack the same one wait for it

    async def committed(self, start: int, end: int) -> bytes | list[Span]:
        """What the file consists of in [start, end): its inline bytes there (maybe fewer: then zeros follow),
        or extents and holes. Raises PosixError(EIO) if the file changes faster than it can be asked for."""
        stale = 0
        for _ in range(_PAGES_MAX):
            found = self._known(start, end)
            if found is not None:
                return found
            async with self._lock:
                if self._known(start, end) is None:
                    stale += not await self._fetch(self._first_unknown(start, end))
            if stale > STALE_PAGES_MAX:
                break
        raise PosixError(errno.EIO, f"the extents of inode {self._contents.inode.ino} cannot be pinned down")

    async def seek(self, offset_bytes: int, size_bytes: int, *, hole: bool) -> int:
        """The first offset from there on, in a file of this size, that is in a hole, or that is not; the end begins a
        hole. Raises PosixError(ENXIO) beyond the end and behind the last data."""
        start, window = offset_bytes, _SEEK_WINDOW_BYTES
        while start < size_bytes:
            end = min(start + window, size_bytes)
            found = await self.committed(start, end)
            at = first_hole(found, start, end) if hole else first_data(found, start)
            if at is not None:
                return at
            start, window = end, 2 * window
        if hole and offset_bytes < size_bytes:
            return size_bytes
        raise PosixError(errno.ENXIO)

    async def inline(self) -> bytes:
        """All inline bytes of the file; empty if it has extents."""
        found = await self.committed(0, FILE_SIZE_BYTES_MAX) if self._contents.is_inline else b""
        return found if isinstance(found, bytes) else b""

    async def refetch(self) -> None:
        """Forget the file's bytes and ask for its inode and its first page."""
        self._contents.forget()
        async with self._lock:
            await self._fetch(0)

    async def linked_chunks(self) -> set[ChunkId]:
        """All chunks that the committed file uses now. Not cached: for the rare case that one of them is
        missed."""
        chunks: set[ChunkId] = set()
        offset, eof = 0, False
        while not eof:
            page = (await self._ask(offset)).body
            chunks.update(extent.chunk for extent in page.extents)
            eof = page.eof
            if not eof:
                assert page.extents[-1].end_bytes > offset
                offset = page.extents[-1].end_bytes
        return chunks

    def _known(self, start: int, end: int) -> bytes | list[Span] | None:
        contents = self._contents
        if contents.is_inline:
            return None if contents.inline is None else contents.inline[start:end]
        extent = contents.extents.covering(start, end) if start < end else None
        if extent is not None:
            return [cut(extent, start, end)]
        if contents.extents.unknown(start, end):
            return None
        return contents.extents.lookup(start, end - start)

    def _first_unknown(self, start: int, end: int) -> int:
        return start if self._contents.is_inline else self._contents.extents.unknown(start, end)[0][0]

    async def _fetch(self, offset: int) -> bool:
        """One page. False if it did not add to what was known before: the file had changed."""
        before = self._contents.inode.data_version
        reply = await self._ask(offset)
        page = reply.body
        if not page.extents and not page.eof:
            raise PosixError(errno.EIO, "an empty page of extents that is not the last")
        end = None if page.eof else page.extents[-1].end_bytes
        known = self._contents.learn_page(page.inode, page.extents, offset, end)
        self._contents.learn(page.inode, reply.payload)
        return known and before == self._contents.inode.data_version

    async def _ask(self, offset: int) -> Answer[ExtentMap]:
        request = GetExtents(self._contents.inode.ino, offset, FILE_SIZE_BYTES_MAX - offset, _PAGE_EXTENTS)
        return await self._metadata.read(GET_EXTENTS, request)
