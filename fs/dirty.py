"""Dirty: the bytes of one file that programs wrote and that no chunk holds yet. Pure.

A file is seen in windows of ``window_bytes`` (its chunk size), so that a file that is written from end to end
becomes one chunk per window. Within a window the bytes lie in runs: a run is a bytearray that grows at its
end and never crosses a window's border. Bytes that are written again are overwritten in place, so runs never
overlap, and a program that writes in small steps costs no copying beyond the growth of the run. A large write is a run
of its own, which is the writer's own bytes and becomes a bytearray only if some of it is written again.

``take_*`` hands bytes over as parts of units (`fs/units.py`); they are no longer dirty here then.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final

from shoalfs.fs.ports import Buffer
from shoalfs.fs.units import Unit
from shoalfs.transport.limits import DIRTY_RUN_COST_BYTES, KIB, UNITS_EXTENTS_MAX

_LARGE_BYTES: Final = 64 * KIB  # a write of so much is kept as it is, if nobody can change it


class Dirty:
    """Invariants: runs do not overlap and are not empty; ``_offsets`` are theirs, in order; ``_window_bytes[w]`` is the
    sum of the runs of window w; ``full`` are the windows for which that sum is ``window_bytes``.

    A list and a dict, because most files have one run: to make a SortedDict costs as much as all else of writing a
    small file, and a list of the 100,000 runs that the budget allows is moved in 20 us."""

    def __init__(self, window_bytes: int) -> None:
        assert window_bytes > 0
        self._size = window_bytes
        self._runs: dict[int, bytearray | memoryview] = {}  # a memoryview: of bytes, which never change
        self._offsets: list[int] = []
        self._window_bytes: dict[int, int] = {}
        self._bytes = 0  # sum of all runs
        self.full: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def cost_bytes(self) -> int:
        """The memory it takes: the bytes, and a fixed charge per run."""
        return self._bytes + len(self._runs) * DIRTY_RUN_COST_BYTES

    @property
    def end_bytes(self) -> int:
        """Where the last dirty byte ends; 0 if there is none."""
        if not self._runs:
            return 0
        offset = self._offsets[-1]
        return offset + len(self._runs[offset])

    def write(self, offset_bytes: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            room = self._size - offset_bytes % self._size
            self._write_in_window(offset_bytes, view[:room])
            offset_bytes, view = offset_bytes + room, view[room:]

    def read(self, start: int, end: int) -> Iterator[tuple[int, Buffer]]:
        """The dirty parts of [start, end) as (file offset, bytes), in order. Copies what may grow: a bytearray that is
        looked at cannot."""
        for offset in self._touching(start, end):
            run = self._runs[offset]
            low, high = max(start, offset), min(end, offset + len(run))
            part = memoryview(run)[low - offset : high - offset]
            yield low, part if isinstance(run, memoryview) else bytes(part)

    def truncate(self, size_bytes: int) -> None:
        """Forget what lies at ``size_bytes`` and beyond."""
        for offset in reversed(self._touching(size_bytes, self.end_bytes)):
            if offset >= size_bytes:
                self._remove(offset)
            else:
                run = self._runs[offset]
                self._count(offset, size_bytes - offset - len(run))
                self._runs[offset] = run[: size_bytes - offset]

    def take_full(self) -> list[Unit]:
        """Hand over the windows that are complete, one unit each."""
        return [self._take_window(window) for window in sorted(self.full)]

    def take_all(self) -> list[Unit]:
        """Hand over everything: complete windows one unit each, the rest packed into as few units as it
        fills."""
        units = self.take_full()
        packing: list[tuple[int, Buffer]] = []
        room = self._size
        for offset in self._offsets:
            run = self._runs[offset]
            if packing and (len(run) > room or len(packing) == UNITS_EXTENTS_MAX):
                units.append(Unit(packing))
                packing, room = [], self._size
            packing.append((offset, run))
            room -= len(run)
        if packing:
            units.append(Unit(packing))
        self._runs.clear()
        self._offsets.clear()
        self._window_bytes.clear()
        self._bytes = 0
        return units

    def _take_window(self, window: int) -> Unit:
        start = window * self._size
        first, end = bisect_left(self._offsets, start), bisect_left(self._offsets, start + self._size)
        runs = [(offset, self._runs.pop(offset)) for offset in self._offsets[first:end]]
        del self._offsets[first:end]
        for offset, run in runs:
            self._count(offset, -len(run))
        return Unit(runs)

    def _write_in_window(self, start: int, view: memoryview) -> None:
        at, end = start, start + len(view)
        for offset in self._touching(start, end):
            run = self._runs[offset]
            if at < offset:
                self._add(at, view[at - start : offset - start])
                at = offset
            if isinstance(run, memoryview):
                run = self._runs[offset] = bytearray(run)
            stop = min(end, offset + len(run))
            run[at - offset : stop - offset] = view[at - start : stop - start]
            at = stop
        if at < end:
            self._add(at, view[at - start :])

    def _add(self, offset: int, data: memoryview) -> None:
        """Bytes where none are dirty: they lengthen the run before them, or begin a new one."""
        self._count(offset, len(data))
        is_kept = len(data) >= _LARGE_BYTES and isinstance(data.obj, bytes)
        before = bisect_left(self._offsets, offset) - 1
        if before >= 0 and not is_kept:
            run_offset = self._offsets[before]
            run = self._runs[run_offset]
            is_neighbour = run_offset + len(run) == offset and run_offset // self._size == offset // self._size
            if is_neighbour and isinstance(run, bytearray):
                run += data
                return
        self._runs[offset] = data if is_kept else bytearray(data)
        insort(self._offsets, offset)

    def _touching(self, start: int, end: int) -> list[int]:
        """Offsets of the runs that reach into [start, end), in order."""
        first = bisect_right(self._offsets, start) - 1
        if first < 0 or self._offsets[first] + len(self._runs[self._offsets[first]]) <= start:
            first += 1
        return self._offsets[first : bisect_left(self._offsets, end)]

    def _remove(self, offset: int) -> None:
        self._count(offset, -len(self._runs.pop(offset)))
        del self._offsets[bisect_left(self._offsets, offset)]

    def _count(self, offset: int, change: int) -> None:
        self._bytes += change
        window = offset // self._size
        count = self._window_bytes.get(window, 0) + change
        assert 0 <= count <= self._size
        if count:
            self._window_bytes[window] = count
        else:
            self._window_bytes.pop(window, None)
        (self.full.add if count == self._size else self.full.discard)(window)
