"""A bound on the bytes that several connections hold together."""

import trio


class PayloadRoom:
    """How many bytes of request payloads a listener's connections hold.

    Invariant: held_bytes <= limit, except that small frames which came in one read with others may lie above it, by
    less than RECEIVE_SCRATCH_BYTES per connection.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._waiting = trio.lowlevel.ParkingLot()

    async def wait_for(self, size_bytes: int) -> None:
        """Wait until there is room for so much, or nothing is held at all. Takes nothing."""
        while self.held_bytes and self.held_bytes + size_bytes > self._limit_bytes:
            await self._waiting.park()

    def take(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        if size_bytes:
            self.held_bytes -= size_bytes
            assert self.held_bytes >= 0
            self._waiting.unpark_all()
