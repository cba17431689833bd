"""Waiting for the next FUSE request without paying for the wait.

pyfuse3's own loop takes a lock and registers the descriptor with the event loop for every request: about 14 of the 21
microseconds that a small request costs. Here one worker at a time is the **reader**. It asks ``poll(0)`` first and
goes to the event loop only when nothing is there. While its handler runs to the end without suspending, it stays the
reader, so a busy mount answers request after request without one task switch. When a handler does suspend, a trio
instrument sees it and the next parked worker becomes the reader.

Where the compiled part is there, it receives the requests (fs/native/serve.h): what it can answer itself never comes
here, and while trio has nothing to do, it waits for the kernel and for trio's events in one system call, so such an
answer does not cost a turn of the event loop either.

:func:`install` replaces a private name of pyfuse3, hence the exact pin in pyproject.toml; it checks that the name is
there. One rule: whoever returns True from ``wait`` receives exactly one request next.
"""

import os
import select
from collections import deque
from typing import Final, Protocol

import trio

from shoalfs.fs.fuse_binding import pyfuse3
from shoalfs.fs.native import Shim

_FAIRNESS: Final = 64  # requests after which other tasks get a turn even if more requests wait
_UNABLE: Final = -1  # outcomes of the compiled part's serve(), beside 0 and 1
_MORE: Final = 2


class Source(Protocol):
    """Where requests come from."""

    def is_there(self) -> bool | None:
        """True: a request is there, for the one who asks to receive. None: others should get a turn first."""
        ...

    async def wait(self) -> None:
        """Returns when it is worth asking again. Raises trio.ClosedResourceError when the session has ended."""
        ...


class Descriptor:
    """The session's descriptor itself."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def is_there(self) -> bool:
        return bool(self._poll.poll(0))

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)


class CompiledPart(trio.abc.Instrument):
    """The compiled part, which answers what it can. Until the session has begun there it is the descriptor."""

    def __init__(self, shim: Shim, fd: int) -> None:
        self._shim = shim
        self._plain = Descriptor(fd)
        # Readable when there is something for Python while trio sleeps.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = _epoll_of_trio()
        self._able = False

    def is_there(self) -> bool | None:
        outcome = self._shim.serve(_FAIRNESS)
        self._able = outcome != _UNABLE
        if not self._able:
            return self._plain.is_there()
        return None if outcome == _MORE else bool(outcome)

    async def wait(self) -> None:
        if self._able:
            await trio.lowlevel.wait_readable(self._wake)
        else:
            await self._plain.wait()

    def before_io_wait(self, timeout: float) -> None:
        """Trio would go to sleep now."""
        if self._able:
            self._shim.idle(self._events, self._wake, timeout)

    def after_run(self) -> None:
        os.close(self._wake)


def _epoll_of_trio() -> int:
    """Trio keeps it to itself; pyproject.toml says which releases of trio have it here."""
    manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    return manager._epoll.fileno()


class _HandOver(trio.abc.Instrument):
    """Gives the reader's place away when its handler suspends or ends."""

    def __init__(self, waiter: "RequestWaiter") -> None:
        self._waiter = waiter

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._waiter.reader and self._waiter.handling:
            self._waiter.give_way()


class RequestWaiter:
    """Decides which worker reads the next request."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parked: deque[trio.lowlevel.Task] = deque()
        self._served = 0
        self._closed = False
        # The worker that reads. Invariant: at most one; None only between a hand-over and the next worker's turn.
        self.reader: trio.lowlevel.Task | None = None
        # True while the reader is in a handler, False while it waits for a request.
        self.handling = False

    async def wait(self) -> bool:
        """Called by each worker before it receives: True when a request is there for it, False to stop.

        Cancelled: the place is given to another worker.
        """
        me = trio.lowlevel.current_task()
        if self.reader is not me:
            while self.reader is not None and not self._closed:
                await self._park(me)
            self.reader = me
        self.handling = False
        try:
            ready = await self._readable()
        except BaseException:
            self.give_way()
            raise
        if not ready:
            self._closed = True
            self._wake_all()
            return False
        self.handling = True
        return True

    async def _readable(self) -> bool:
        self._served += 1
        if self._served % _FAIRNESS == 0:
            await trio.lowlevel.checkpoint()
        while not self._closed:
            there = self._source.is_there()
            if there:
                return True
            if there is None:
                await trio.lowlevel.checkpoint()
                continue
            try:
                await self._source.wait()
            except trio.ClosedResourceError:  # pyfuse3.terminate()
                return False
        return False

    def give_way(self) -> None:
        """The reader can not read now: let the next parked worker."""
        self.reader, self.handling = None, False
        if self._parked:
            trio.lowlevel.reschedule(self._parked.popleft())

    def _wake_all(self) -> None:
        self.reader = None
        while self._parked:
            trio.lowlevel.reschedule(self._parked.popleft())

    async def _park(self, me: trio.lowlevel.Task) -> None:
        self._parked.append(me)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(me)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


def install(fd: int, shim: Shim | None) -> RequestWaiter:
    """Put the waiter in the place of pyfuse3's. Call it inside trio, after ``pyfuse3.init``, with the
    session's descriptor."""
    assert hasattr(pyfuse3, "_wait_fuse_readable"), "this pyfuse3 is not the pinned release"
    source: Source = Descriptor(fd)
    if shim is not None:
        source = compiled = CompiledPart(shim, fd)
        trio.lowlevel.add_instrument(compiled)
    waiter = RequestWaiter(source)
    trio.lowlevel.add_instrument(_HandOver(waiter))
    pyfuse3._wait_fuse_readable = waiter.wait
    return waiter
