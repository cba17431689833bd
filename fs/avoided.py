"""Targets that failed lately: asked last for a while, then trusted again."""

from collections.abc import Collection

import trio

from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import TARGET_AVOID_MS


class Avoided:
    """Bound: one entry per target of the cluster map."""

    def __init__(self) -> None:
        self._until: dict[TargetId, float] = {}

    def add(self, target: TargetId) -> None:
        self._until[target] = trio.current_time() + TARGET_AVOID_MS / 1000

    def now(self) -> Collection[TargetId]:
        if self._until:
            now = trio.current_time()
            self._until = {target: until for target, until in self._until.items() if until > now}
        return self._until
