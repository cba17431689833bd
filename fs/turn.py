"""Taking turns at the committed state of one file."""

from collections.abc import Callable

import trio

from shoalfs.transport.errors import PosixError, ShoalError


class Turn:
    """``async with Turn(...)``: the holder of ``lock``. A class, and no switch of tasks if nobody else has the lock: it
    is taken with every commit.

    ``check`` raises PosixError if there is nothing to take turns at any more, before and after waiting; ``failed``
    hears of a ShoalError that ends the block; ``done`` is called at the end, still under the lock."""

    __slots__ = ("_check", "_done", "_failed", "_lock")

    def __init__(
        self,
        lock: trio.Lock,
        check: Callable[[], None],
        failed: Callable[[ShoalError], None],
        done: Callable[[], None],
    ) -> None:
        self._lock, self._check, self._failed, self._done = lock, check, failed, done

    async def __aenter__(self) -> None:
        self._check()
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            self._check()
        except PosixError:
            self._lock.release()
            raise

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if isinstance(error, ShoalError):
                self._failed(error)
        finally:
            self._done()
            self._lock.release()
