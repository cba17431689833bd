"""Pauses between attempts on targets that do not answer: growing, and bounded in sum.

A chunkserver that is restarted is back within a second or two; one that is gone is declared down by the metadata
service after TARGET_DOWN_MS. Between the two a program should be kept waiting and not be told EIO.
"""

from typing import Final

import trio

from shoalfs.transport.limits import TARGET_PATIENCE_MS

_FIRST_S: Final = 0.02
_LONGEST_S: Final = 1.0


class Pauses:
    """The pauses of one request."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S
        self._left_s = TARGET_PATIENCE_MS / 1000

    async def next(self) -> bool:
        """Wait before another attempt. False, at once, if the patience is used up."""
        if self._left_s <= 0:
            return False
        pause_s = min(self._next_s, self._left_s)
        self._left_s -= pause_s
        self._next_s = min(2 * self._next_s, _LONGEST_S)
        await trio.sleep(pause_s)
        return True
