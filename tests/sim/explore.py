"""Explores every state that a protocol can reach, breadth first: explicit-state model checking (Clarke, Grumberg,
Peled, "Model Checking", 1999), so the way to a broken promise that it shows is a shortest one.

A state is known by a digest of 16 bytes of its canonical form. Kept of each is its digest, its parent's and the event
that led there; the states themselves are kept only until they were expanded.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sim.broken import Broken

S = TypeVar("S")
Event: TypeAlias = tuple[Any, ...]
"""A name, and what it happens to."""


class Space(Protocol[S]):
    """What is explored."""

    def initial(self) -> S: ...

    def events(self, state: S) -> Iterable[Event]:
        """All that can happen next."""

    def after(self, state: S, event: Event) -> S:
        """The state after it; ``state`` stays as it is. Raises Broken if a promise is."""

    def digest(self, state: S) -> bytes:
        """Equal for states that nothing can tell apart."""

    def check(self, state: S) -> None:
        """Raises Broken unless everything holds that must hold in every state."""

    def at_rest(self, state: S) -> None:
        """Raises Broken unless the state comes to rest once faults end, as it should be. Costly."""


@dataclass
class Explored:
    """``complete``: there are no other states within the bounds."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    rests: int = 0
    seconds: float = 0.0
    complete: bool = False

    def __str__(self) -> str:
        return (
            f"{self.states:,} distinct states{' (all)' if self.complete else ''}, {self.transitions:,} transitions, "
            f"depth {self.depth}, {self.rests:,} brought to rest, {self.seconds:.0f} s, "
            f"{self.states / max(self.seconds, 0.001):,.0f} states/s"
        )


class Explorer(Generic[S]):
    """``rest_every``: one state in so many is brought to rest, chosen by its digest."""

    def __init__(self, space: Space[S], rest_every: int = 100) -> None:
        self._space = space
        self._rest_every = rest_every
        self._came_by: dict[bytes, tuple[bytes, Event] | None] = {}
        self.result = Explored()

    def run(
        self, states_max: int, seconds_max: float = 1e9, progress: Callable[[Explored], None] | None = None
    ) -> Explored:
        """Until all states were seen, or so many, or so long. Raises Broken, with the events that led there."""
        space, result = self._space, self.result
        began = time.monotonic()
        first = space.initial()
        key = space.digest(first)
        self._came_by[key] = None
        frontier = deque([(key, first, 0)])
        result.states = 1
        while frontier and result.states < states_max and result.seconds < seconds_max:
            key, state, depth = frontier.popleft()
            for event in space.events(state):
                result.transitions += 1
                try:
                    reached = space.after(state, event)
                    found = space.digest(reached)
                    if found in self._came_by:
                        continue
                    self._came_by[found] = (key, event)
                    space.check(reached)
                    if int.from_bytes(found[:4], "big") % self._rest_every == 0:
                        result.rests += 1
                        space.at_rest(reached)
                except Broken as error:
                    raise Broken(f"{error}\nafter:\n{self._way(key, event)}") from error
                result.states += 1
                result.depth = depth + 1
                frontier.append((found, reached, depth + 1))
                if progress is not None and result.states % 10_000 == 0:
                    result.seconds = time.monotonic() - began
                    progress(result)
            result.seconds = time.monotonic() - began
        result.complete = not frontier
        return result

    def _way(self, key: bytes, last: Event) -> str:
        events = [last]
        while (came := self._came_by[key]) is not None:
            key, event = came
            events.append(event)
        return "\n".join("  " + " ".join(map(str, event)) for event in reversed(events))
