"""The simulated network: what is sent arrives late, twice, out of order, or not at all.

Who sends and who receives are numbers; members have those of their nodes, clients have numbers above them.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable


class Events:
    """Virtual time, and what happens in it, in the order of its moments."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, action = heapq.heappop(self._events)
            self.now = max(self.now, when)
            action()
        self.now = end


class Network:
    """Each message meets its own fate; ``cut`` holds the ways (from, to) on which nothing arrives."""

    def __init__(self, events: Events, chance: random.Random, loss: float) -> None:
        self._events, self._chance = events, chance
        self.loss = loss  # share of messages that are lost, and of those that are very late
        self.doubling = loss  # share of messages that arrive twice
        self.cut: set[tuple[int, int]] = set()
        self.met: Counter[str] = Counter()  # what happened to messages

    def carry(self, sender: int, receiver: int, deliver: Callable[[], None]) -> None:
        chance, met = self._chance, self.met
        copies = 1
        if chance.random() < self.doubling:
            copies = 2
            met["message repeated"] += 1
        for _ in range(copies):
            if chance.random() < self.loss:
                met["message lost"] += 1
                continue
            delay = chance.uniform(0.0002, 0.004)
            if chance.random() < self.loss:
                delay += chance.uniform(0.0, 1.0)
                met["message late"] += 1
            self._events.at(self._events.now + delay, lambda: self._arrive(sender, receiver, deliver))

    def _arrive(self, sender: int, receiver: int, deliver: Callable[[], None]) -> None:
        if (sender, receiver) in self.cut:
            self.met["message cut off"] += 1
            return
        self.met["message carried"] += 1
        deliver()

    def is_open(self, one: int, other: int) -> bool:
        return (one, other) not in self.cut and (other, one) not in self.cut
