"""What a connection still has to send, and who sends it.

With nothing else going on, whoever has something to say hands it to the link himself, which saves a switch of tasks.
Otherwise it is queued, and the writer task hands over all that was queued in one turn of the scheduler with one
system call.
"""

from collections.abc import Callable

import trio

from shoalfs.transport.errors import ShoalError
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import SEND_QUEUED_BYTES_MAX
from shoalfs.transport.link import Link, size_of


class Outbox:
    """``broken`` is told when the link fails; it must not raise. :meth:`run` is the writer task."""

    def __init__(self, link: Link, broken: Callable[[ShoalError], None]) -> None:
        self._link = link
        self._broken = broken
        # Invariant: `_queued_bytes` is the size of `_queue` and of `_link_bytes`, which the link was given and has not
        # sent in full; the two counts of answer bytes are the part of them that is answers.
        self._queue: list[Buffer] = []
        self._queued_bytes = 0
        self._queued_answer_bytes = 0
        self._link_bytes = 0
        self._link_answer_bytes = 0
        self._idle = trio.lowlevel.ParkingLot()  # the writer
        self._shrunk = trio.lowlevel.ParkingLot()

    @property
    def empty(self) -> bool:
        """Everything was handed to the carrier."""
        return self._queued_bytes == 0

    @property
    def backlogged(self) -> bool:
        """More is queued than should be."""
        return self._queued_bytes > SEND_QUEUED_BYTES_MAX

    @property
    def unfetched(self) -> bool:
        """The peer does not fetch its answers."""
        return self._queued_answer_bytes > SEND_QUEUED_BYTES_MAX

    def send(self, frame: list[Buffer], *, alone: bool, answer: bool = False) -> None:
        """Send a frame, or queue it. ``alone``: nothing else is going on, so it is not worth waiting for company.
        The buffers must not be changed afterwards."""
        if self._queued_bytes or not alone:
            self._queue += frame
            self._count(size_of(frame), answer)
            self._idle.unpark()
            return
        try:
            done = self._link.send_now(frame)
        except ShoalError as error:
            self._broken(error)
            return
        if not done:
            self._count(size_of(frame), answer)
            self._link_has_all()
            self._idle.unpark()

    def _count(self, size_bytes: int, answer: bool) -> None:
        self._queued_bytes += size_bytes
        self._queued_answer_bytes += size_bytes if answer else 0

    def _link_has_all(self) -> None:
        self._link_bytes = self._queued_bytes
        self._link_answer_bytes = self._queued_answer_bytes

    async def wait_shrunk(self) -> None:
        """Until some of what is queued is sent, or :meth:`release`."""
        await self._shrunk.park()

    def release(self) -> None:
        """Wake all who wait: the connection has ended."""
        self._shrunk.unpark_all()

    async def run(self) -> None:
        try:
            while True:
                if not self._queued_bytes:
                    await self._idle.park()
                if self._link_bytes:
                    await self._link.drain()
                else:
                    batch, self._queue = self._queue, []
                    self._link_has_all()
                    if not self._link.send_now(batch):
                        await self._link.drain()
                self._queued_bytes -= self._link_bytes
                self._queued_answer_bytes -= self._link_answer_bytes
                self._link_bytes = self._link_answer_bytes = 0
                self._shrunk.unpark_all()
        except ShoalError as error:
            self._broken(error)
