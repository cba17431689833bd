"""Sorting much into ranges without holding it: numbers go into a scratch file range by range, and come back so.

For joining two orders of the same rows, as the check of the namespace does (names by directory, wanted by inode): both
are cut into the same ranges of one id, and one range at a time is in memory. Per range a block of 32 KiB is held until
it is full, so memory is bounded by the number of ranges; the file takes 8 bytes for each number.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Final

_BLOCK_NUMBERS: Final = 4096


class Ranges:
    """Ranges of ids that begin at ``starts``, in rising order; the first has everything below the second, the last one
    everything above."""

    def __init__(self, starts: Sequence[int]) -> None:
        self._starts = list(starts) or [0]

    def __len__(self) -> int:
        return len(self._starts)

    def of(self, number: int) -> int:
        return max(0, bisect_right(self._starts, number) - 1)

    def bounds(self, at: int) -> tuple[int, int | None]:
        """First id of a range, and the first behind it; None: it has no end."""
        first = 0 if at == 0 else self._starts[at]
        return first, self._starts[at + 1] if at + 1 < len(self._starts) else None


class Buckets:
    """Records of ``width`` numbers (64 bits, unsigned), each put into one of ``count`` buckets. ``file`` is empty, for
    this alone, and nothing in it has to last. Raises OSError if it cannot be written or read."""

    def __init__(self, file: IO[bytes], count: int, width: int) -> None:
        self._file = file
        self._width = width
        self._block_numbers = _BLOCK_NUMBERS // width * width
        self._end_bytes = 0
        self._filling = [array("Q") for _ in range(count)]
        self._blocks: list[list[int]] = [[] for _ in range(count)]  # of each bucket, where its full blocks are

    def add(self, bucket: int, record: Iterable[int]) -> None:
        filling = self._filling[bucket]
        filling.extend(record)
        if len(filling) >= self._block_numbers:
            self._blocks[bucket].append(self._end_bytes)
            self._file.seek(self._end_bytes)
            self._file.write(filling.tobytes())
            self._end_bytes += len(filling) * filling.itemsize
            self._filling[bucket] = array("Q")

    def read(self, bucket: int) -> Iterator[tuple[int, ...]]:
        """What was added to it, in that order."""
        for at in self._blocks[bucket]:
            self._file.seek(at)
            block = array("Q")
            block.frombytes(self._file.read(self._block_numbers * block.itemsize))
            yield from self._records(block)
        yield from self._records(self._filling[bucket])

    def _records(self, numbers: "array[int]") -> Iterator[tuple[int, ...]]:
        return zip(*(iter(numbers),) * self._width, strict=True)
