"""Telling the metadata service which files are closed, in batches and in the right order.

A close need not wait for the service, but an open of the same inode must not be overtaken by the release of the close
before it: the service would forget an open file and remove it when it is unlinked. So :meth:`Releases.settle` is
called before each open.
"""

import logging
from collections.abc import Callable

import trio

from shoalfs.fs.ports import Metadata
from shoalfs.mds.messages import RELEASE, Release
from shoalfs.transport.errors import SessionGone, ShoalError
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.fs.releases")

_BATCH_MAX = 1_000
_DELAY_S = 0.05  # closes of so long travel together


class Releases:
    """The queue of closed inodes. ``run`` must be running."""

    def __init__(self, metadata: Metadata) -> None:
        self._on_sent: Callable[[InodeId], None] = lambda ino: None
        self._metadata = metadata
        # Invariant: an inode is in at most one of the two.
        self._pending: dict[InodeId, None] = {}
        self._sending: frozenset[InodeId] = frozenset()
        self._sent = trio.Event()
        self._work = trio.Event()

    def add(self, ino: InodeId) -> None:
        """The last handle on ``ino`` is closed. The queue is bounded by the number of inodes that were open."""
        self._pending[ino] = None
        self._work.set()

    def tell(self, on_sent: Callable[[InodeId], None]) -> None:
        """``on_sent`` is told of each inode whose release was sent, whatever became of it."""
        self._on_sent = on_sent

    def __contains__(self, ino: InodeId) -> bool:
        """A release of it waits, or is on its way."""
        return ino in self._pending or ino in self._sending

    def take_back(self, ino: InodeId) -> bool | None:
        """If a release of ``ino`` waits, it is taken back: True. None: it is on its way."""
        if ino in self._sending:
            return None
        return self._pending.pop(ino, self) is None

    async def settle(self, ino: InodeId) -> None:
        """Return once no release of ``ino`` is on its way; one that only waits is taken back."""
        self._pending.pop(ino, None)
        while ino in self._sending:
            await self._sent.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._work.wait()
            await trio.sleep(_DELAY_S)
            await self.send_all()
            self._work = trio.Event()
            if self._pending:
                self._work.set()

    async def send_all(self) -> None:
        """Send what waits now. A release that fails is dropped: it leaves an orphan's bytes until the session ends,
        and the failure is logged."""
        while self._pending:
            batch = tuple(ino for ino, _ in zip(self._pending, range(_BATCH_MAX), strict=False))
            for ino in batch:
                del self._pending[ino]
            self._sending, self._sent = frozenset(batch), trio.Event()
            try:
                await self._metadata.read(RELEASE, Release(self._metadata.session, batch))
            except SessionGone:
                log.info("the session is gone, and with it all that it had open")
            except ShoalError as error:
                log.warning("%d closed files could not be reported: %s", len(batch), error)
            finally:
                self._sending = frozenset()
                self._sent.set()
            for ino in batch:
                self._on_sent(ino)
