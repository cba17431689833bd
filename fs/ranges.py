"""RangeMap: which value holds for each offset, as sorted pieces that never overlap. Pure.

Both the extents of a file and its bytes on the way to the chunkservers are such maps: what is set later lies
over what was there, and what lay under it is cut. A value is not changed when its piece is cut; whoever put
it there knows at which offset it began and computes the rest.

Three parallel lists and bisection: with 10^5 pieces a lookup takes a microsecond, and setting a piece moves
two or three lists of pointers, some tens of microseconds at worst and nothing at the end, where files grow.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Piece(NamedTuple, Generic[V]):
    """``value`` holds for start <= offset < end."""

    start: int
    end: int
    value: V


class RangeMap(Generic[V]):
    """Invariant: starts[i] < ends[i] <= starts[i + 1]."""

    __slots__ = ("_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def end(self) -> int:
        """Where the last piece ends; 0 if there is none."""
        return self._ends[-1] if self._ends else 0

    def set(self, start: int, end: int, value: V) -> None:
        """Let ``value`` hold for [start, end), over whatever was there."""
        assert start < end, (start, end)
        self._replace(start, end, [(start, end, value)])

    def clear(self, start: int, end: int) -> None:
        """Let nothing hold for [start, end)."""
        if start < end:
            self._replace(start, end, [])

    def covering(self, start: int, end: int) -> V | None:
        """The value of the one piece in which all of [start, end) lies; None: there is no such piece."""
        index = bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] <= start and end <= self._ends[index]:
            return self._values[index]
        return None

    def pieces(self, start: int, end: int) -> Iterator[Piece[V]]:
        """The pieces within [start, end), in order, cut to it. The map must not be changed meanwhile."""
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                return
            yield Piece(max(start, self._starts[index]), min(end, self._ends[index]), self._values[index])

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) for which nothing holds, in order."""
        found: list[tuple[int, int]] = []
        for piece in self.pieces(start, end):
            if start < piece.start:
                found.append((start, piece.start))
            start = piece.end
        if start < end:
            found.append((start, end))
        return found

    def _replace(self, start: int, end: int, pieces: list[tuple[int, int, V]]) -> None:
        first = bisect_right(self._ends, start)
        stop = bisect_left(self._starts, end, lo=first)
        if first < stop:
            if self._starts[first] < start:
                pieces = [(self._starts[first], start, self._values[first]), *pieces]
            if self._ends[stop - 1] > end:
                pieces = [*pieces, (end, self._ends[stop - 1], self._values[stop - 1])]
        self._starts[first:stop] = [piece[0] for piece in pieces]
        self._ends[first:stop] = [piece[1] for piece in pieces]
        self._values[first:stop] = [piece[2] for piece in pieces]
