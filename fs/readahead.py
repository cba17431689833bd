"""Readahead: which part of a file will probably be read next. Pure.

A reader that goes forward gets a window that doubles with each step up to READAHEAD_BYTES_MAX; one that jumps
gets nothing. The kernel sends several reads at a time and they may arrive in another order than they were
issued, so a read that begins a little before or after the expected place still continues its stream. A few
streams per file are told apart, for several handles or workers that read different parts of it.
"""

from dataclasses import dataclass
from typing import Final

from shoalfs.transport.limits import FUSE_IO_BYTES_MAX, READAHEAD_BYTES_MAX, READAHEAD_BYTES_MIN

STREAMS_MAX: Final = 8


@dataclass(slots=True)
class _Stream:
    next: int  # where the next read is expected
    asked: int  # up to where readahead was asked for; Invariant: asked >= next once the window is open
    window: int


class Readahead:
    def __init__(self) -> None:
        self._streams: list[_Stream] = []  # the one that was used last is the last

    def advance(self, offset_bytes: int, size_bytes: int) -> tuple[int, int] | None:
        """A read happens. Returns the range (start, end) to fetch ahead now, if any; it may lie beyond the
        end."""
        end = offset_bytes + size_bytes
        stream = self._find(offset_bytes)
        if stream is None:
            # The start of a file is taken for the start of a scan; any other place must prove it.
            window = READAHEAD_BYTES_MIN if offset_bytes == 0 else 0
            self._streams = [*self._streams[-(STREAMS_MAX - 1) :], _Stream(end, end, window)]
            return self._ask(self._streams[-1])
        self._streams.remove(stream)
        self._streams.append(stream)
        if end <= stream.next:
            return None
        stream.next = end
        stream.window = min(max(2 * stream.window, READAHEAD_BYTES_MIN), READAHEAD_BYTES_MAX)
        return self._ask(stream)

    def _ask(self, stream: _Stream) -> tuple[int, int] | None:
        start, end = max(stream.next, stream.asked), stream.next + stream.window
        # Half a window at a time: few large requests instead of one small one per read.
        if 2 * (end - start) < stream.window or end == start:
            return None
        stream.asked = end
        return start, end

    def _find(self, offset_bytes: int) -> _Stream | None:
        near = [s for s in self._streams if abs(offset_bytes - s.next) <= FUSE_IO_BYTES_MAX]
        return min(near, key=lambda s: abs(offset_bytes - s.next), default=None)
