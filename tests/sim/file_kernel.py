"""What a kernel has cached of files above a mount: attributes with their timeouts, and pages. It serves both also while
the mount's process is stopped, and is told nothing then.

After Linux's fs/fuse (file.c, inode.c) with auto_inval_data and without write-back caching: a read asks for the
attributes first unless they are good, and drops the pages if time or size are others; a write goes into the pages that
are there before the mount is asked. An answer with attributes that were asked for before they were dropped is ignored.
A file has one page here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId
from sim.hindered import HeldBack

_PAGES_S = 1.0  # as of KernelCache: nobody waits longer for a page that is locked


@dataclass
class _Cached:
    size_bytes: int = -1
    mtime_ns: int = -1
    good_until: float = 0.0
    asked: int = 0  # goes up whenever attributes are dropped
    page: bytes | None = None
    reads: list["_Read"] = field(default_factory=list)


@dataclass(eq=False)
class _Read:
    """The page is locked while it is read. ``stale``: it is dropped as soon as it is unlocked."""

    ended: trio.Event = field(default_factory=trio.Event)
    stale: bool = False


class FileKernel(HeldBack):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._files: dict[InodeId, _Cached] = {}

    # --- what the mount tells it -------------------------------------------------------------------------------------

    def forget_names(self) -> None:
        """Programs here use numbers."""

    def forget_attributes(self, ino: InodeId) -> None:
        self._told(lambda: self._drop_attributes(ino))

    def forget_pages(self, ino: InodeId) -> None:
        self._told(lambda: self.drop(ino))

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(_PAGES_S):
            for ino in inodes:
                for read in tuple(self._of(ino).reads):
                    await read.ended.wait()
        for ino in inodes:
            self.forget_pages(ino)

    async def forgotten_pages(self, ino: InodeId) -> None:
        await self.drop_pages((ino,))

    # --- the process of the mount ------------------------------------------------------------------------------------

    async def answered(self) -> None:
        """An answer of a process that is stopped comes when it goes on."""
        while self.stopped:
            await trio.sleep(0.01)

    # --- what it does for programs -----------------------------------------------------------------------------------

    def page(self, ino: InodeId) -> bytes | None:
        """The page, if it may be read without asking anybody."""
        cached = self._of(ino)
        return cached.page if trio.current_time() < cached.good_until else None

    def page_after_looking(self, ino: InodeId) -> bytes | None:
        """The page, after the attributes have been asked for."""
        return self._of(ino).page

    def asks(self, ino: InodeId) -> int:
        """The attributes are asked for; :meth:`learn` wants the number."""
        return self._of(ino).asked

    def learn(self, ino: InodeId, asked: int, inode: Inode, left_s: float) -> bool:
        """False: ignored."""
        cached = self._of(ino)
        if asked != cached.asked:
            return False
        if (cached.size_bytes, cached.mtime_ns) != (inode.size_bytes, inode.mtime_ns):
            self._drop_page(cached)
        cached.size_bytes, cached.mtime_ns = inode.size_bytes, inode.mtime_ns
        cached.good_until = trio.current_time() + left_s
        return True

    def size(self, ino: InodeId) -> int:
        return max(0, self._of(ino).size_bytes)

    @contextmanager
    def reading(self, ino: InodeId) -> Iterator[Callable[[bytes], None]]:
        """While the page is read; what it yields takes the page."""
        cached, read = self._of(ino), _Read()
        cached.reads.append(read)

        def take(page: bytes) -> None:
            if not read.stale:
                cached.page = page

        try:
            yield take
        finally:
            cached.reads.remove(read)
            read.ended.set()

    def patch(self, ino: InodeId, offset: int, data: bytes) -> None:
        """A write begins."""
        cached = self._of(ino)
        if cached.page is not None:
            cached.page = cached.page[:offset].ljust(offset, b"\0") + data + cached.page[offset + len(data) :]
        for read in cached.reads:
            read.stale = True  # the write waits for the lock of the page, and then lies over what was read

    def written(self, ino: InodeId) -> None:
        """It has ended."""
        self._drop_attributes(ino)

    def drop(self, ino: InodeId) -> None:
        """Attributes and page."""
        self._drop_attributes(ino)
        self._drop_page(self._of(ino))

    def _of(self, ino: InodeId) -> _Cached:
        return self._files.setdefault(ino, _Cached())

    def _drop_attributes(self, ino: InodeId) -> None:
        cached = self._of(ino)
        cached.asked += 1
        cached.good_until = 0.0

    def _drop_page(self, cached: _Cached) -> None:
        cached.page = None
        for read in cached.reads:
            read.stale = True
