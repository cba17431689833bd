"""What may happen to a mount's process and its line in the worlds of leases."""

from collections.abc import Callable
from typing import Any

import trio

from sim.lease_network import Line


class HeldBack:
    """The kernel's side of a mount whose process may be stopped: what it is told meanwhile it hears afterwards."""

    def __init__(self) -> None:
        self._stops = 0
        self._missed: list[Callable[[], Any]] = []

    @property
    def stopped(self) -> bool:
        return self._stops > 0

    def stop(self) -> None:
        self._stops += 1

    def go_on(self) -> None:
        self._stops -= 1
        if not self._stops:
            for tell in self._missed:
                tell()
            self._missed.clear()

    def _told(self, tell: Callable[[], Any]) -> None:
        if self.stopped:
            self._missed.append(tell)
        else:
            tell()


class Hindered:
    """A mount of such a world."""

    line: Line
    kernel: HeldBack

    def stop(self) -> None:
        """As SIGSTOP: nothing arrives, nothing leaves, the kernel goes on with what it has."""
        self.kernel.stop()
        self.line.cut()

    def go_on(self) -> None:
        self.kernel.go_on()
        self.line.heal()

    async def hinder(self, kind: str, long_s: float) -> None:
        """ "reset", "cut" or "stop" for so long; nothing for what else there is."""
        if kind == "reset":
            self.line.reset()
        elif kind == "cut":
            self.line.cut()
            await trio.sleep(long_s)
            self.line.heal()
        elif kind == "stop":
            self.stop()
            await trio.sleep(long_s)
            self.go_on()
