"""DirtyBudget: how much memory one mount may hold in bytes that are not committed yet.

A writer waits for room before it writes and charges afterwards, without a pause between the two; so the limit
is exceeded by at most one request. Room is made by write-back, which is told as soon as half of the budget is
used. When write-back cannot make room, the waiting writers get its error: nobody waits for a disk that stays
full.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from shoalfs.transport.errors import ShoalError


@dataclass(eq=False)
class _Waiter:
    woken: trio.Event = field(default_factory=trio.Event)
    error: ShoalError | None = None


class DirtyBudget:
    """``press`` is called whenever write-back should make room."""

    def __init__(self, limit_bytes: int, press: Callable[[], None]) -> None:
        assert limit_bytes > 0
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._press = press
        self._waiters: list[_Waiter] = []

    @property
    def has_room(self) -> bool:
        return self.used_bytes < self.limit_bytes

    @property
    def is_pressed(self) -> bool:
        """More than half is used: write-back should work."""
        return 2 * self.used_bytes > self.limit_bytes

    async def wait_room(self) -> None:
        """Return when there is room, for the caller to use before its next await. Raises the error that keeps
        write-back from making any."""
        while not self.has_room:
            waiter = _Waiter()
            self._waiters.append(waiter)
            self._press()
            try:
                await waiter.woken.wait()
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            if waiter.error is not None:
                raise waiter.error

    def charge(self, change_bytes: int) -> None:
        """Memory was taken (or given back, if negative)."""
        self.used_bytes += change_bytes
        assert self.used_bytes >= 0
        if self.is_pressed and change_bytes > 0:
            self._press()
        if self.has_room:
            self._wake(None)

    def refuse(self, error: ShoalError) -> None:
        """Write-back could not make room: all who wait are told why."""
        self._wake(error)

    def _wake(self, error: ShoalError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.error = error
            waiter.woken.set()
