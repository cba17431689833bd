"""Reads everything that a target holds, again and again, and reports what is damaged before anybody needs it.

One round goes through all chunks in the order of their ids and verifies every byte against the record's hashes. That
the record is the one that files mean is compared by the metadata service, to which inventories carry the hashes. A
damaged chunk is left where it is: the service orders a good copy in its place.

The pace is such that a round takes the ordered period, but no faster than the ordered bytes per second; a round that an
operator asked for goes at that speed, and begins anew what is under way. How far a round is stands in the target's
directory, as of the last minute: a restart goes on from there.
"""

import logging
from collections.abc import Callable
from typing import Final, Never

import msgspec
import trio

from shoalfs.chunkserver.directory import ScrubFile
from shoalfs.chunkserver.target import Target
from shoalfs.mds.messages import ScrubOrder, ScrubReport
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, TargetDown
from shoalfs.transport.ids import ChunkId

_log: Final = logging.getLogger("shoal.chunkserver.scrubber")
_CHUNKS_PER_STEP: Final = 64
_LOOK_S: Final = 0.5  # how often it is looked whether a round is due, or a report can be made
_NOTE_S: Final = 60.0  # how often it is written down how far the round is
_HASTE_PERCENT: Final = 110  # so much faster than needed, for what is stored meanwhile


def is_due(order: ScrubOrder, state: ScrubFile, now_ns: int) -> bool:
    """A round should begin: it was asked for, or the last one began a period ago, or none ever did."""
    if order.requested_ns != state.requested_ns:
        return True
    return not state.is_running and now_ns - state.began_ns >= order.period_ms * 1_000_000


def bytes_per_s(order: ScrubOrder, state: ScrubFile, used_bytes: int) -> float:
    """How fast to read."""
    gentle = used_bytes * _HASTE_PERCENT / 100 * 1000 / order.period_ms
    return float(order.bytes_per_s) if state.asked_for else min(float(order.bytes_per_s), max(1.0, gentle))


class Scrubber:
    """Of one target. ``order``: what the metadata service wants, None as long as that is not known. ``found``: report a
    damaged chunk; False: later, too many wait."""

    def __init__(
        self,
        target: Target,
        order: Callable[[], ScrubOrder | None],
        found: Callable[[ChunkId], bool],
        now_ns: Callable[[], int],
    ) -> None:
        self._target = target
        self._order = order
        self._found = found
        self._now_ns = now_ns
        self._state = ScrubFile()

    @property
    def report(self) -> ScrubReport:
        state = self._state
        return ScrubReport(
            state.began_ns if state.is_running else 0,
            state.finished_ns,
            state.chunks,
            state.bytes,
            state.damaged,
            state.requested_ns,
        )

    async def run(self) -> Never:
        """Round after round, until cancelled; nothing while the target is out of service, and nothing more once its
        disk hung."""
        try:
            self._state = await self._target.read_scrub()
            while True:
                order = self._order()
                if order is not None and not self._target.failed:
                    await self._scrub(order)
                await trio.sleep(_LOOK_S)
        except TargetDown as error:
            _log.error("%s: nothing is verified any more: %s", self._target.path, error)
            await trio.sleep_forever()
            raise AssertionError("for ever") from error

    async def _scrub(self, order: ScrubOrder) -> None:
        """Begin a round if one is due, and go on with the one that is under way."""
        if is_due(order, self._state, self._now_ns()):
            self._state = ScrubFile(
                is_running=True,
                asked_for=order.requested_ns != self._state.requested_ns,
                requested_ns=order.requested_ns,
                began_ns=self._now_ns(),
                finished_ns=self._state.finished_ns,
            )
        if self._state.is_running:
            await self._target.write_scrub(self._state)
            await self._go_on()

    async def _go_on(self) -> None:
        """The rest of a round. Returns early if another one was asked for, or the target failed."""
        used_bytes = (await self._target.usage()).used_bytes
        note_at = trio.current_time() + _NOTE_S
        while (order := self._order()) is not None and not self._target.failed:
            if order.requested_ns != self._state.requested_ns:
                return
            began = trio.current_time()
            page = await self._target.chunks_after(ChunkId(self._state.after), _CHUNKS_PER_STEP)
            for chunk, _ in page:
                read_bytes = await self._verify(chunk)
                if read_bytes is None:
                    await trio.sleep(_LOOK_S)
                    break
                began += read_bytes / bytes_per_s(order, self._state, used_bytes)
                await self._pause_until(began, order)
                if self._order() != order:
                    break
            else:
                if len(page) < _CHUNKS_PER_STEP:
                    await self._finish()
                    return
            if trio.current_time() >= note_at:
                await self._target.write_scrub(self._state)
                note_at = trio.current_time() + _NOTE_S

    async def _pause_until(self, at: float, order: ScrubOrder) -> None:
        """Return then, or when another order came: the pause after a chunk may take hours."""
        # An order is looked at, not told.
        while (left_s := at - trio.current_time()) > 0 and self._order() == order:  # noqa: ASYNC110
            await trio.sleep(min(_LOOK_S, left_s))

    async def _finish(self) -> None:
        state = self._state = msgspec.structs.replace(self._state, is_running=False, finished_ns=self._now_ns())
        await self._target.write_scrub(state)
        _log.info("%s: verified %d chunks, %d damaged", self._target.path, state.chunks, state.damaged)

    async def _verify(self, chunk: ChunkId) -> int | None:
        """Returns how many bytes were read; None: it is damaged and cannot be reported yet. A chunk that was deleted
        meanwhile is no finding."""
        state, read_bytes, damaged = self._state, 0, 0
        try:
            read_bytes = (await self._target.verify(chunk, deep=True)).chunk_bytes
        except ChunkMissing:
            pass
        except ChunkCorrupt as error:
            if not self._found(chunk):
                return None
            _log.error("%s: %s", self._target.path, error)
            damaged = 1
        self._state = msgspec.structs.replace(
            state, after=chunk, chunks=state.chunks + 1, bytes=state.bytes + read_bytes, damaged=state.damaged + damaged
        )
        return read_bytes
