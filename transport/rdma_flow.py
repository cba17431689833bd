"""Credits and slots of one verbs connection, and how a stream is cut into messages. Pure.

Each side has RDMA_CREDITS receives posted for the other, and RDMA_BULK_SLOTS bulk slots in each direction, which are
used in turn, so that their numbers need not be said. A credit comes back when the message's receive is posted again,
a slot when its bytes were copied out of it; both travel in the header of whatever is sent next, or in a message of
their own once half of them are owed.

The one rule: nobody sends without a credit, so a receive is always posted for what comes.

Why it never locks up: the last RDMA_CREDITS_KEPT credits are for messages that only give back. Each of these answers
half a window, and the peer fills at most two halves of each of the two windows before it has seen one of them; so at
most four are on the way that were not yet seen. Once seen they are owed like any other, and the peer has either sent
something since, which carries them, or fewer than half of the window is owed, and more than what is kept is left.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from shoalfs.transport.errors import ProtocolViolation
from shoalfs.transport.limits import (
    RDMA_BULK_BYTES_MIN,
    RDMA_BULK_SLOT_BYTES,
    RDMA_BULK_SLOTS,
    RDMA_CREDITS,
    RDMA_CREDITS_KEPT,
)
from shoalfs.transport.rdma_wire import INLINE_BYTES_MAX, MessageHeader

_SMALL_BYTES: Final = INLINE_BYTES_MAX // 2  # a buffer below this is a frame's head, or a small frame


class Flow:
    """Both directions of one side. Raises ProtocolViolation if the peer breaks the rule."""

    def __init__(self) -> None:
        # Invariant: 0 <= _credits <= RDMA_CREDITS and 0 <= _slots_used <= RDMA_BULK_SLOTS, likewise on the other side.
        self._credits = RDMA_CREDITS
        self._slots_used = 0
        self._slot_next = 0
        self._held = 0  # messages of the peer whose receives are not posted again or not given back yet
        self._slots_held = 0
        self._credits_owed = 0
        self._slots_owed = 0
        self._landing_next = 0

    # --- sending ---
    @property
    def may_send(self) -> bool:
        """There is credit for a message with stream bytes."""
        return self._credits > RDMA_CREDITS_KEPT

    @property
    def may_give_back(self) -> bool:
        return self._credits > 0

    @property
    def slot_free(self) -> bool:
        """A bulk slot is free to be sent."""
        return self._slots_used < RDMA_BULK_SLOTS

    @property
    def all_fetched(self) -> bool:
        """The peer has emptied all bulk slots."""
        return self._slots_used == 0

    @property
    def must_give_back(self) -> bool:
        """So much is owed that the peer may be waiting for it."""
        return self._credits_owed >= RDMA_CREDITS // 2 or self._slots_owed >= RDMA_BULK_SLOTS // 2

    def take_slot(self) -> int:
        """The number of the next bulk slot to fill."""
        assert self.slot_free
        slot = self._slot_next
        self._slot_next = (slot + 1) % RDMA_BULK_SLOTS
        self._slots_used += 1
        return slot

    def header(self, inline_bytes: int = 0, bulk_bytes: int = 0, *, end: bool = False) -> MessageHeader:
        """The header of the next message, which takes a credit and carries all that is owed."""
        assert self._credits > 0
        self._credits -= 1
        header = MessageHeader(inline_bytes, bulk_bytes, self._credits_owed, self._slots_owed, end)
        self._held -= self._credits_owed
        self._slots_held -= self._slots_owed
        self._credits_owed = self._slots_owed = 0
        return header

    # --- receiving ---
    def received(self, header: MessageHeader) -> int | None:
        """A message came. The number of the bulk slot that goes with it, None if there is none."""
        self._held += 1
        self._credits += header.credits
        self._slots_used -= header.slots
        if self._held > RDMA_CREDITS or self._credits > RDMA_CREDITS or self._slots_used < 0:
            raise ProtocolViolation("verbs credits do not add up")
        if not header.bulk_bytes:
            return None
        self._slots_held += 1
        if self._slots_held > RDMA_BULK_SLOTS:
            raise ProtocolViolation("more bulk slots than there are")
        slot = self._landing_next
        self._landing_next = (slot + 1) % RDMA_BULK_SLOTS
        return slot

    def posted_again(self) -> None:
        """The receive of one message can take another."""
        self._credits_owed += 1

    def emptied(self) -> None:
        """The oldest bulk slot of the peer that is not empty is empty now."""
        self._slots_owed += 1


class Portion(NamedTuple):
    """What one message takes off the stream: bytes in the message, then bytes in a bulk slot."""

    inline_bytes: int
    bulk_bytes: int


def next_portion(sizes: Sequence[int]) -> Portion:
    """What the next message takes of buffers of these sizes, none of which is 0.

    The head of a frame rides in the message and its payload in the slot, so that who receives can judge the head
    before it moves the payload.
    """
    inline = bulk = at = 0
    while at < len(sizes) and sizes[at] < _SMALL_BYTES and inline + sizes[at] <= INLINE_BYTES_MAX:
        inline += sizes[at]
        at += 1
    while at < len(sizes) and sizes[at] >= _SMALL_BYTES and bulk < RDMA_BULK_SLOT_BYTES:
        bulk += sizes[at]
        at += 1
    if bulk < RDMA_BULK_BYTES_MIN:
        return Portion(inline + min(bulk, INLINE_BYTES_MAX - inline), 0)
    return Portion(inline, min(bulk, RDMA_BULK_SLOT_BYTES))
