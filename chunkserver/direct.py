"""How a record's bytes are laid out to be written past the page cache. Pure.

The kernel takes them from the caller's memory then, if each piece begins where a page of memory does, in a page of the
file, and is whole pages long. A chunk that was received lies so (transport/aligned.py); the head of its record and the
end of its last page do not, and are copied.
"""

from collections.abc import Sequence
from typing import Final

from shoalfs.transport.aligned import aligned, is_aligned
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import KIB, PAGE_BYTES

_COPIED_BYTES_MAX: Final = 64 * KIB  # of one record; with more it is cheaper to let the page cache have it


def in_pages(buffers: Sequence[Buffer]) -> list[memoryview] | None:
    """The bytes of ``buffers``, whole pages together, in pieces that can be written so; None if that would take much
    copying."""
    pieces: list[memoryview] = []
    loose: list[memoryview] = []  # not in ``pieces`` yet, and to be copied
    loose_bytes = copied_bytes = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        whole = len(view) // PAGE_BYTES * PAGE_BYTES
        if whole and loose_bytes % PAGE_BYTES == 0 and is_aligned(view):
            pieces += [*_joined(loose, loose_bytes), view[:whole]]
            loose, loose_bytes, view = [], 0, view[whole:]
        loose.append(view)
        loose_bytes += len(view)
        copied_bytes += len(view)
        if copied_bytes > _COPIED_BYTES_MAX:
            return None
    assert loose_bytes % PAGE_BYTES == 0, loose_bytes
    return [*pieces, *_joined(loose, loose_bytes)]


def _joined(loose: Sequence[memoryview], size_bytes: int) -> list[memoryview]:
    if not size_bytes:
        return []
    copy = aligned(size_bytes)
    at = 0
    for view in loose:
        copy[at : at + len(view)] = view
        at += len(view)
    return [copy]
