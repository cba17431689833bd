"""WriteErrors: a failed write-back is told to every open handle, once to each. Pure.

After Linux's errseq_t: the file counts its failures, a handle remembers up to which one it has been told. An
error that nobody has seen yet is also told to a handle that is opened after it, so that closing and opening
again cannot hide it.
"""

from shoalfs.transport.errors import ShoalError


class WriteErrors:
    """Invariant: ``_last`` is not None once ``_count`` > 0."""

    def __init__(self) -> None:
        self._count = 0
        self._last: ShoalError | None = None
        self._seen = True  # somebody has been told of the last failure

    def record(self, error: ShoalError) -> None:
        """A write-back failed. A further one before anybody was told counts as the same."""
        self._last = error
        if self._seen:
            self._count += 1
            self._seen = False

    def sample(self) -> int:
        """The place in the sequence at which a handle that is opened now begins."""
        return self._count if self._seen else self._count - 1

    def check(self, seen: int) -> tuple[int, ShoalError | None]:
        """The handle's new place in the sequence, and the error it has to report, if any."""
        if seen == self._count:
            return seen, None
        self._seen = True
        return self._count, self._last
