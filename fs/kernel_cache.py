"""Telling the kernel to forget what it has cached of a file.

The kernel may hold locks on the very pages until a request that we are answering is answered, so this is never done in
a handler: it is queued, and a task does it in a thread.
"""

import logging

import trio

from shoalfs.fs.fuse_binding import pyfuse3
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.fs.kernel_cache")


class KernelCache:
    """The queue of inodes to be forgotten, bounded by their number. ``run`` must be running."""

    def __init__(self) -> None:
        self._stale: dict[InodeId, None] = {}
        self._work = trio.Event()

    def forget_pages(self, ino: InodeId) -> None:
        """Have the kernel ask again for attributes and pages of ``ino``, soon."""
        self._stale[ino] = None
        self._work.set()

    def forget_attributes(self, ino: InodeId) -> None:
        """Have the kernel ask again for the attributes of ``ino``, the size among them, before it uses them next.

        Takes no lock that a request in progress could hold, so this one may be done in a handler.
        """
        try:
            pyfuse3.invalidate_inode(ino, True)
        except OSError as error:
            log.debug("inode %d: the kernel knows nothing of it: %s", ino, error)

    async def forgotten_pages(self, ino: InodeId) -> None:
        """As :meth:`forget_pages`; done when this returns. Not for handlers of requests that hold pages of the file."""
        self._stale.pop(ino, None)
        await self._invalidate(ino)

    async def run(self) -> None:
        """Carry out until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._stale:
                ino, _ = self._stale.popitem()
                await self._invalidate(ino)

    async def _invalidate(self, ino: InodeId) -> None:
        try:
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, ino, False)
        except OSError as error:
            # ENOENT: it has nothing of this inode. Anything else leaves old pages until their timeout.
            log.debug("inode %d: the kernel did not forget it: %s", ino, error)
