"""Gives dumps to operators: `shoal dump`.

The leader writes the dump into a file, in a thread, and hands out what is there so far, piece by piece. One dump at a
time; it is removed once its last piece was read, or when nobody has asked for the time of a lease. The directory is
scratch: nothing is synced, and it is emptied at every start.
"""

import errno
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from shoalfs.mds import dump_file
from shoalfs.mds.messages import OPEN_DUMP, READ_DUMP, DumpOffer, DumpPiece, OpenDump, ReadDump
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import BadMessage, DamagedRecord, Overloaded, PosixError, StorageFailed
from shoalfs.transport.limits import DUMP_LEASE_MS, DUMP_PIECE_BYTES
from shoalfs.transport.service import Call, Service

log: Final = logging.getLogger("shoal.mds.dump")

_SWEEP_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.05  # before "nothing yet" is answered


@dataclass(slots=True)
class _Dump:
    number: int
    path: Path
    until: float  # on trio's clock
    is_wanted: bool = True
    is_done: bool = False
    failure: str = ""
    ended: trio.Event = field(default_factory=trio.Event)


class DumpSource:
    """Answers OPEN_DUMP and READ_DUMP; ``run`` must be running. ``directory`` is for its use alone."""

    def __init__(self, store: LmdbStore, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        self._store = store
        self._directory = directory
        self._dump: _Dump | None = None
        self._number = 0
        self._nursery: trio.Nursery | None = None

    def install(self, service: Service, leading: Callable[[], Awaitable[None]]) -> None:
        """Offer the methods. ``leading`` returns once this node leads and has all that was acknowledged, or raises."""

        async def handle_open(call: Call, request: OpenDump, payload: memoryview) -> DumpOffer:
            await leading()
            return self._open()

        service.add(OPEN_DUMP, handle_open)
        service.add(READ_DUMP, self._read)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._sweep()
        finally:
            self._nursery = None

    async def _sweep(self) -> None:
        try:
            while True:
                await trio.sleep(_SWEEP_SECONDS)
                if self._dump is not None and self._dump.until < trio.current_time():
                    log.warning("nobody reads dump %d any more: it is removed", self._dump.number)
                    await self._remove(self._dump)
        finally:
            if self._dump is not None:
                self._dump.is_wanted = False  # a thread cannot be cancelled: it looks at this

    def _open(self) -> DumpOffer:
        if self._dump is not None or self._nursery is None:
            raise Overloaded("another dump is under way: wait until it was read")
        self._number += 1
        path = self._directory / f"{self._number}.jsonl"
        self._dump = _Dump(self._number, path, trio.current_time() + DUMP_LEASE_MS / 1000)
        self._nursery.start_soon(self._make, self._dump)
        return DumpOffer(self._number)

    async def _make(self, made: _Dump) -> None:
        """A dump that cannot be made is the reader's bad luck and never this node's end."""
        try:
            await trio.to_thread.run_sync(self._write, made)
        except (OSError, StorageFailed, DamagedRecord) as error:
            made.failure = f"the dump failed: {error}"
        finally:
            if made.failure:
                log.error("%s", made.failure)
            made.is_done = True
            made.ended.set()

    def _write(self, made: _Dump) -> None:
        with made.path.open("wb") as file:
            dump_file.write(self._store, file, lambda: made.is_wanted)

    async def _read(self, call: Call, request: ReadDump, payload: memoryview) -> tuple[DumpPiece, bytes]:
        made = self._dump
        if made is None or made.number != request.number or request.offset_bytes < 0:
            raise BadMessage(f"there is no dump {request.number} here: begin again")
        made.until = trio.current_time() + DUMP_LEASE_MS / 1000
        is_done = made.is_done  # before reading: what is there afterwards is all of it
        if made.failure:
            await self._remove(made)
            raise PosixError(errno.EIO, made.failure)
        data = await trio.to_thread.run_sync(_piece, made.path, request.offset_bytes)
        if not data and not is_done:
            await trio.sleep(_PAUSE_SECONDS)
        eof = is_done and len(data) < DUMP_PIECE_BYTES
        if eof:
            await self._remove(made)
        return DumpPiece(eof), data

    async def _remove(self, made: _Dump) -> None:
        made.is_wanted = False
        if self._dump is made:
            self._dump = None
        await made.ended.wait()
        made.path.unlink(missing_ok=True)


def _piece(path: Path, offset_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), DUMP_PIECE_BYTES, offset_bytes)
    except FileNotFoundError:
        return b""  # not begun yet
