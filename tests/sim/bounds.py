"""Bounds so small that a short history meets all of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from shoalfs.mds import journal, raft_guard, raft_peers


@contextmanager
def small_bounds() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(journal, "LOG_SEGMENT_BYTES", 2 * 1024))
        stack.enter_context(patch.object(raft_guard, "LOG_BEHIND_ENTRIES_MAX", 15))
        stack.enter_context(patch.object(raft_guard, "APPEND_ENTRIES_MAX", 8))
        stack.enter_context(patch.object(raft_peers, "APPEND_IN_FLIGHT_MAX", 4))
        yield
