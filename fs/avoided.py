"""Targets that failed lately: asked last for a while, then trusted again, or at once when they have come back."""

from collections.abc import Callable, Collection

import trio

from shoalfs.mds.messages import Target
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import TARGET_AVOID_MS


class Avoided:
    """Bound: one entry per target of the cluster map."""

    def __init__(self) -> None:
        self._failures: dict[TargetId, tuple[int, float]] = {}  # its epoch then, and until when it counts

    def add(self, target: Target) -> None:
        self._failures[target.id] = (target.epoch, trio.current_time() + TARGET_AVOID_MS / 1000)

    def now(self, find: Callable[[TargetId], Target | None]) -> Collection[TargetId]:
        """Those to avoid. ``find`` gives a target as the cluster map has it: one of a newer epoch has registered
        since it failed."""
        if self._failures:
            now = trio.current_time()
            self._failures = {
                target: (epoch, until)
                for target, (epoch, until) in self._failures.items()
                if until > now and (found := find(target)) is not None and found.epoch == epoch
            }
        return self._failures
