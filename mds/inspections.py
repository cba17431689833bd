"""Checks, plans of repairs and paths, for operators: `shoal fsck`, `shoal fsck repair`.

They read all of the metadata, which takes a second for each 30,000 files or so, and the leader must go on answering.
So each is a process of its own (:mod:`shoalfs.mds.inspector`), which reads the store beside this one, in the state that
it had when the inspection was opened. It works only when its next page is asked for. It ends with its last page, when
nobody has asked for the time of a lease, and with this process.

While it lives the pages of that state are not used again, so the store's file grows by what changes in that time. The
scratch directory is emptied at every start.
"""

import errno
import logging
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from shoalfs.mds.inspector import ERROR, LAST, LENGTH_BYTES, Task, framed
from shoalfs.mds.keys import U64_MAX
from shoalfs.mds.messages import (
    FIND_PATHS,
    OPEN_CHECK,
    PLAN_MEND,
    READ_CHECK,
    READ_PATHS,
    READ_PLANS,
    FindPaths,
    FoundPaths,
    Inspection,
    MendPlans,
    NamespaceChecked,
    OpenCheck,
    PlanMend,
    ReadInspection,
)
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import BadMessage, Overloaded, PosixError
from shoalfs.transport.limits import CONTROL_BYTES_MAX, INSPECTION_LEASE_MS, INSPECTIONS_MAX, PATHS_MAX
from shoalfs.transport.service import Call, Service

log: Final = logging.getLogger("shoal.mds.inspections")

_SWEEP_SECONDS: Final = 5.0
_KILLED_SECONDS: Final = 5.0  # a killed process that waits for a disk is left to itself
_NOTHING: Final[dict[type, bytes]] = {
    NamespaceChecked: msgspec.msgpack.encode(NamespaceChecked(False, 0, (), ())),
    MendPlans: msgspec.msgpack.encode(MendPlans((), False)),
    FoundPaths: msgspec.msgpack.encode(FoundPaths((), False)),
}


@dataclass(eq=False)
class _Running:
    """``page``: number and contents of the last one that was read, which is kept in case that its answer is lost.
    ``asking`` is held while the process works. ``has_ended``: there is nothing behind ``page``."""

    number: int
    kind: type
    process: trio.Process
    until: float  # on trio's clock
    page: tuple[int, bytes] = (0, b"")
    has_ended: bool = False
    asking: trio.Lock = field(default_factory=trio.Lock)

    async def ask(self, message: bytes = b"") -> tuple[bytes, bool]:
        """The next page, and whether it is the last. Raises PosixError if there will be none. Cancelled: nothing can be
        asked any more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            await self.process.stdin.send_all(framed(message))
            length = int.from_bytes(await _exactly(self.process.stdout, LENGTH_BYTES), "big")
            if not 0 < length <= 2 * CONTROL_BYTES_MAX:
                raise EOFError
            answer = await _exactly(self.process.stdout, length)
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            raise PosixError(errno.EIO, "the process that checks the metadata has ended: see the log") from None
        if answer.startswith(ERROR):
            raise PosixError(errno.EIO, answer[1:].decode(errors="replace"))
        return answer[1:], answer.startswith(LAST)


async def _exactly(stream: "trio.abc.ReceiveStream", size_bytes: int) -> bytes:
    """Raises EOFError."""
    parts = bytearray()
    while len(parts) < size_bytes:
        part = await stream.receive_some(size_bytes - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


class Inspections:
    """Answers OPEN_CHECK, PLAN_MEND and FIND_PATHS, and what reads them; ``run`` must be running. ``directory`` is for
    its use alone."""

    def __init__(self, store: LmdbStore, path: Path, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        self._store = store
        self._path = path
        self._directory = directory
        self._running: dict[int, _Running] = {}
        self._opening = 0
        self._number = 0

    def install(self, service: Service, leading: Callable[[], Awaitable[None]]) -> None:
        """Offer the methods. ``leading`` returns once this node leads and has all that was acknowledged, or raises."""

        async def check(call: Call, request: OpenCheck, payload: memoryview) -> Inspection:
            await leading()
            return await self._open(NamespaceChecked, Task())

        async def plan(call: Call, request: PlanMend, payload: memoryview) -> Inspection:
            await leading()
            return await self._open(MendPlans, Task(findings=request.findings))

        async def find(call: Call, request: FindPaths, payload: memoryview) -> Inspection:
            if len(request.inos) > PATHS_MAX or any(not 0 < ino <= U64_MAX for ino in request.inos):
                raise BadMessage(f"expected at most {PATHS_MAX} inodes")
            await leading()
            return await self._open(FoundPaths, Task(inos=request.inos))

        async def read_check(call: Call, request: ReadInspection, payload: memoryview) -> Any:
            return await self._read(NamespaceChecked, request)

        async def read_plans(call: Call, request: ReadInspection, payload: memoryview) -> Any:
            return await self._read(MendPlans, request)

        async def read_paths(call: Call, request: ReadInspection, payload: memoryview) -> Any:
            return await self._read(FoundPaths, request)

        service.add(OPEN_CHECK, check)
        service.add(FIND_PATHS, find)
        service.add(READ_PATHS, read_paths)
        service.add(PLAN_MEND, plan)
        service.add(READ_CHECK, read_check)
        service.add(READ_PLANS, read_plans)

    async def run(self) -> None:
        """Until cancelled; then all are ended."""
        try:
            while True:
                await trio.sleep(_SWEEP_SECONDS)
                now = trio.current_time()
                for running in [running for running in self._running.values() if running.until < now]:
                    log.warning("nobody reads inspection %d any more: it is ended", running.number)
                    await self._end(running)
        finally:
            for running in list(self._running.values()):
                await self._end(running)

    async def _open(self, kind: type, task: Task) -> Inspection:
        alive = sum(not running.has_ended for running in self._running.values())
        if alive + self._opening >= INSPECTIONS_MAX:
            raise Overloaded(f"{INSPECTIONS_MAX} checks are under way: wait until one of them is done")
        self._opening += 1
        self._number += 1
        number = self._number
        command = [sys.executable, "-m", "shoalfs.mds.inspector", str(self._path), str(self._directory)]
        try:
            process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            running = self._running[number] = _Running(number, kind, process, _lease())
        finally:
            self._opening -= 1
        await self._ask(running, msgspec.msgpack.encode(task))
        return Inspection(number)

    async def _read(self, kind: type, request: ReadInspection) -> msgspec.Raw:
        """The page as the process encoded it."""
        running = self._known(kind, request.number)
        running.until = _lease()
        if request.page == 0:
            return msgspec.Raw(_NOTHING[kind])
        async with running.asking:
            number, page = running.page
            if request.page == number + 1 and not running.has_ended:
                self._known(kind, request.number)  # it may have been ended while this waited
                page, is_last = await self._ask(running)
                running.page = number + 1, page
                running.until = _lease()
                if is_last:
                    await self._end(running, keep_page=True)
            elif request.page != number:
                raise BadMessage(f"page {request.page} of inspection {request.number} is not the next one")
        return msgspec.Raw(page)

    def _known(self, kind: type, number: int) -> _Running:
        running = self._running.get(number)
        if running is None or running.kind is not kind:
            raise PosixError(errno.ESTALE, f"there is no inspection {number} here: begin again")
        return running

    async def _ask(self, running: _Running, message: bytes = b"") -> tuple[bytes, bool]:
        try:
            return await running.ask(message)
        except BaseException:  # cancelled too: an answer that nobody took would be taken for the next one
            await self._end(running)
            raise

    async def _end(self, running: _Running, *, keep_page: bool = False) -> None:
        """``keep_page``: until its lease is over, or so many others have ended that there is no room."""
        if not keep_page:
            self._running.pop(running.number, None)
        if running.has_ended:
            return
        running.has_ended = True
        running.process.kill()
        with trio.move_on_after(_KILLED_SECONDS, shield=True):
            await running.process.wait()
        for stream in (running.process.stdin, running.process.stdout):
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
        self._store.forget_dead_readers()
        ended = [number for number, other in self._running.items() if other.has_ended]
        for number in ended[:-INSPECTIONS_MAX]:
            del self._running[number]


def _lease() -> float:
    return trio.current_time() + INSPECTION_LEASE_MS / 1000
