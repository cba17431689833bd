"""The process's memory for verbs: one mapping, in huge pages if there are any, cut into equal blocks.

A block serves one connection and is laid out as the module's constants say. Pages become memory when they are first
touched or registered, so blocks that were never used cost nothing but addresses.
"""

import ctypes
import logging
import mmap
from contextlib import suppress
from typing import Final

from shoalfs.transport.limits import (
    KIB,
    MIB,
    RDMA_BULK_SLOT_BYTES,
    RDMA_BULK_SLOTS,
    RDMA_CONNECTIONS_MAX,
    RDMA_CREDITS,
    RDMA_MESSAGE_BYTES,
)

log = logging.getLogger("shoal.transport.rdma")

SEND_SLOTS: Final = 2 * RDMA_CREDITS  # more than credits: a slot is free only after a completion, and few are signalled
RECEIVE_AT: Final = 0
SEND_AT: Final = RECEIVE_AT + RDMA_CREDITS * RDMA_MESSAGE_BYTES
IN_AT: Final = SEND_AT + SEND_SLOTS * RDMA_MESSAGE_BYTES
OUT_AT: Final = IN_AT + RDMA_BULK_SLOTS * RDMA_BULK_SLOT_BYTES
BULK_BYTES: Final = RDMA_BULK_SLOTS * RDMA_BULK_SLOT_BYTES
BLOCK_BYTES: Final = -(-(OUT_AT + BULK_BYTES) // (64 * KIB)) * 64 * KIB
_HUGE_PAGE_BYTES: Final = 2 * MIB


class Block:
    """``view`` over the block's bytes, which begin at ``address``. Slots are memoryviews into it: nothing is copied
    by taking one."""

    def __init__(self, number: int, view: memoryview, address: int) -> None:
        self.number = number
        self.view = view
        self.address = address
        self.receives = _cut(view, RECEIVE_AT, RDMA_CREDITS, RDMA_MESSAGE_BYTES)
        self.sends = _cut(view, SEND_AT, SEND_SLOTS, RDMA_MESSAGE_BYTES)
        self.bulk_in = _cut(view, IN_AT, RDMA_BULK_SLOTS, RDMA_BULK_SLOT_BYTES)
        self.bulk_out = _cut(view, OUT_AT, RDMA_BULK_SLOTS, RDMA_BULK_SLOT_BYTES)


def _cut(view: memoryview, start: int, count: int, size_bytes: int) -> list[memoryview]:
    return [view[start + n * size_bytes : start + (n + 1) * size_bytes] for n in range(count)]


class Pool:
    """At most ``blocks_max`` blocks. Invariant: a block is either taken or in ``_free``, once."""

    def __init__(self, blocks_max: int = RDMA_CONNECTIONS_MAX) -> None:
        size_bytes = -(-blocks_max * BLOCK_BYTES // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        self.huge, self._map = _map(size_bytes)
        self._pin = ctypes.c_char.from_buffer(self._map)  # the mapping stays while this lives
        self._address = ctypes.addressof(self._pin)
        self._view = memoryview(self._map)
        self._free = list(range(blocks_max - 1, -1, -1))

    def take(self) -> Block | None:
        """A block, or None if all are taken."""
        if not self._free:
            return None
        number = self._free.pop()
        start = number * BLOCK_BYTES
        return Block(number, self._view[start : start + BLOCK_BYTES], self._address + start)

    def give_back(self, block: Block) -> None:
        """Nothing may write to it any more: its queue pair is gone."""
        assert block.number not in self._free, block.number
        self._free.append(block.number)


def _map(size_bytes: int) -> tuple[bool, mmap.mmap]:
    """True and huge pages if the administrator set enough aside, else ordinary ones, joined by the kernel if it can."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    huge = True
    try:
        mapping = mmap.mmap(-1, size_bytes, flags=flags | 0x40000)  # MAP_HUGETLB of mmap(2)
    except OSError as error:
        log.debug("no huge pages for RDMA: %s", error)
        huge = False
        mapping = mmap.mmap(-1, size_bytes, flags=flags)
        with suppress(OSError):  # a kernel that cannot join pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    mapping.madvise(mmap.MADV_DONTFORK)  # a child's copy-on-write would take pages from under the device
    return huge, mapping
