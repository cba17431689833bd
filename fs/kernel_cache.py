"""Telling the kernel to forget what it has cached.

Two rules keep this free of deadlocks (docs/leases.md has the argument):

* Nothing here takes the lock of a directory. ``FUSE_NOTIFY_INVAL_ENTRY`` would: a program that creates a file holds
  that lock while it waits for us, we wait for the leader, the leader for another mount, and that one for a program in
  the same place. Names are dropped by ``FUSE_NOTIFY_INC_EPOCH`` instead (Linux 6.16), which takes no lock and makes the
  kernel ask again for every name; what it asks is answered from memory. On an older kernel
  :attr:`KernelCache.keeps_names` is False, and the kernel is never told to keep a name.
* Pages may be locked until a request that we are answering is answered, so they are dropped in a thread, and nobody
  waits for that longer than a moment. Who does not get them dropped has dropped the attributes: the kernel asks for
  them before it uses a page again, and drops the pages itself when time or size differ.
"""

import logging
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

import trio

from shoalfs.fs.fuse_binding import pyfuse3
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.fs.kernel_cache")

_NOTIFY: Final = struct.Struct("=IiQ")  # struct fuse_out_header of linux/fuse.h: length, code, 0 for "no request"
_INC_EPOCH: Final = 8  # FUSE_NOTIFY_INC_EPOCH
_PRUNE: Final = 9  # FUSE_NOTIFY_PRUNE, with struct fuse_notify_prune_out and the inodes
_PAGES_S: Final = 1.0
_AT_ONCE: Final = 64  # inodes whose pages one turn of a thread drops


class KernelCache:
    """The queue of inodes to be forgotten, bounded by their number. ``run`` must be running."""

    def __init__(self) -> None:
        self.keeps_names = False
        self._fd = -1
        self._stale: dict[InodeId, None] = {}
        self._unneeded: dict[InodeId, None] = {}
        self._can_prune = True
        self._work = trio.Event()
        self._node_of: Callable[[InodeId], int] = int

    def attach(self, fd: int, node_of: Callable[[InodeId], int]) -> None:
        """The mount is there; ``fd`` is its /dev/fuse, and ``node_of`` tells what the kernel calls an inode. Finds out
        whether the kernel can forget names."""
        self._fd = fd
        self._node_of = node_of
        try:
            self._notify(_INC_EPOCH)
        except OSError as error:
            log.info("the kernel cannot forget names without a lock (%s): it will keep none", error.strerror)
        else:
            self.keeps_names = True

    def forget_names(self) -> None:
        """Have the kernel ask again for every name before it uses it next. Takes no lock."""
        if self.keeps_names:
            self._notify(_INC_EPOCH)

    def forget_pages(self, ino: InodeId) -> None:
        """Have the kernel ask again for attributes and pages of ``ino``, soon."""
        self._stale[ino] = None
        self._work.set()

    def prune(self, inodes: Iterable[InodeId]) -> None:
        """Have the kernel forget these wholly, soon, unless they are in use. Linux before 6.18 cannot."""
        if self._can_prune:
            self._unneeded.update(dict.fromkeys(inodes))
            self._work.set()

    def forget_attributes(self, ino: InodeId) -> None:
        """Have the kernel ask again for the attributes of ``ino``, the size among them, before it uses them next.
        Takes no lock that a request in progress could hold."""
        if self._fd < 0:
            return
        try:
            pyfuse3.invalidate_inode(self._node_of(ino), True)
        except OSError as error:
            log.debug("inode %d: the kernel knows nothing of it: %s", ino, error)

    async def forgotten_pages(self, ino: InodeId) -> None:
        """As :meth:`forget_pages`; done when this returns. Not for handlers of requests that hold pages of the file."""
        self._stale.pop(ino, None)
        await trio.to_thread.run_sync(_invalidate_all, self._nodes((ino,)))

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        """Have the kernel forget the pages of these inodes. Returns when it has, or after a moment if it waits for a
        lock."""
        with trio.move_on_after(_PAGES_S):
            await trio.to_thread.run_sync(_invalidate_all, self._nodes(inodes), abandon_on_cancel=True)

    async def run(self) -> None:
        """Carry out until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._stale:
                some = tuple(self._stale.popitem()[0] for _ in range(min(len(self._stale), _AT_ONCE)))
                await trio.to_thread.run_sync(_invalidate_all, self._nodes(some))
            while self._unneeded:
                some = tuple(self._unneeded.popitem()[0] for _ in range(min(len(self._unneeded), _AT_ONCE)))
                try:
                    await trio.to_thread.run_sync(self._prune, self._nodes(some))
                except OSError as error:
                    log.info("the kernel keeps what nobody uses until it needs the memory: %s", error.strerror)
                    self._can_prune = False
                    self._unneeded.clear()

    def _nodes(self, inodes: tuple[InodeId, ...]) -> tuple[int, ...]:
        return tuple(map(self._node_of, inodes))

    def _prune(self, nodes: tuple[int, ...]) -> None:
        """Raises OSError. In a thread: it waits for pages that are being read."""
        self._notify(_PRUNE, struct.pack(f"=IIQ{len(nodes)}Q", len(nodes), 0, 0, *nodes))

    def _notify(self, code: int, body: bytes = b"") -> None:
        """Raises OSError."""
        os.write(self._fd, _NOTIFY.pack(_NOTIFY.size + len(body), code, 0) + body)


def _invalidate_all(nodes: tuple[int, ...]) -> None:
    for node in nodes:
        try:
            pyfuse3.invalidate_inode(node, False)
        except OSError as error:
            # ENOENT: it has nothing of this inode.
            log.debug("inode %d: the kernel did not forget it: %s", node, error)
