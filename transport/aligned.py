"""Memory that lies as a disk wants it which takes bytes from there by itself: a payload begins where a page does.

Only where a buffer lies is decided here. It is ordinary memory, zeroed and given back as any other.
"""

import ctypes

from shoalfs.transport.limits import PAGE_BYTES


def aligned(size_bytes: int, at_bytes: int = 0) -> memoryview:
    """``size_bytes`` zeros, of which number ``at_bytes`` is the first byte of a page."""
    memory = memoryview(bytearray(size_bytes + PAGE_BYTES))
    start = -(_address(memory) + at_bytes) % PAGE_BYTES
    return memory[start : start + size_bytes]


def is_aligned(view: memoryview) -> bool:
    """True if it begins where a page does. False also where that is not told: of memory that nobody may change."""
    return not view.readonly and view.nbytes > 0 and _address(view) % PAGE_BYTES == 0


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
