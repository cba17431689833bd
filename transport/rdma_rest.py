"""Which places `auto` leaves to TCP for a while, because verbs to them did not carry or broke. Pure.

Without it every dial of such a place would wait for a probe in vain, and a path that carries a probe but little more
would break every connection anew.
"""

from typing import Final

from shoalfs.transport.limits import CONNECTIONS_MAX, RDMA_REST_MS

_REST_S: Final = RDMA_REST_MS / 1000


class Rests:
    """Times are seconds on one clock. Invariant: at most CONNECTIONS_MAX places; what rested long enough goes first."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, str]] = {}  # in the order of their ends

    def begin(self, place: str, reason: str, now: float) -> None:
        """Leave ``place`` to TCP from now on."""
        self._until.pop(place, None)
        while len(self._until) >= CONNECTIONS_MAX:
            del self._until[next(iter(self._until))]
        self._until[place] = (now + _REST_S, reason)

    def reason(self, place: str, now: float) -> str:
        """Why verbs are not tried; empty if they may be."""
        until, reason = self._until.get(place, (now, ""))
        if now < until:
            return f"{reason}; tried again by a dial in {until - now:.0f} s"
        self._until.pop(place, None)
        return ""
