"""How much one command may do at once, and how much a file may have. Pure.

Applying a command holds up everything else, so what it does is bounded. The bounds are part of what a log entry means:
all nodes have to make the same of one. So they change with the version of entries only (:mod:`shoalfs.mds.entry`).
"""

from dataclasses import dataclass
from typing import Final

from shoalfs.transport.limits import EXTENT_ROWS_MAX, EXTENTS_PER_FILE_MAX


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one command. ``rows_max``: extents that it removes; ``extents_max``: of a file, EFBIG beyond."""

    rows_max: int
    extents_max: int


BOUNDS: Final = Bounds(EXTENT_ROWS_MAX, EXTENTS_PER_FILE_MAX)
UNBOUNDED: Final = Bounds(1 << 60, 1 << 60)
"""Of entries from before there were bounds: all nodes have to make the same of them, whatever release they run."""
