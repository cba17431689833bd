"""A byte stream over one queue pair: the link that both sides have once verbs are agreed on.

Knows no verbs: :class:`QueuePair` is the port, `transport/rdma.py` the real one.

Small things ride in messages. Bulk goes through slots of registered memory, and the acceptor of the connection, the
server, moves it: it READs what the dialler announced, and WRITEs into the dialler's slots before it announces. The
dialler's memory is exposed to this one peer, the acceptor's to nobody. Bytes are copied once on each side: out of the
caller's buffers into a slot, out of a slot into the receiver's buffer.

The one rule: a slot is used again only after the peer gave it back, or after the queue pair is gone.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

import trio

from shoalfs.transport.errors import PeerUnreachable, ShoalError
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import RDMA_LINGER_MS
from shoalfs.transport.link import LinkInfo, stall_limit
from shoalfs.transport.rdma_flow import Flow, next_portion
from shoalfs.transport.rdma_wire import HEADER_BYTES, decode_header, encode_header

log = logging.getLogger("shoal.transport.rdma")
_SIZES_SEEN_MAX: Final = 64  # buffers looked at to decide what the next message takes


class What(Enum):
    RECEIVED = "received"  # a message is in receive buffer `number`
    READ = "read"  # bulk slot `number` has come


class Event(NamedTuple):
    what: What
    number: int
    size_bytes: int


class QueuePair(Protocol):
    """What a link needs of the device. Every method raises PeerUnreachable once an operation has failed."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str:
        """What it is a queue pair of."""
        ...

    @property
    def pulls(self) -> bool:
        """This side moves the bulk: it is the acceptor."""
        ...

    @property
    def may_post(self) -> bool:
        """There is room for another message with its WRITE; more comes when sends complete."""
        ...

    @property
    def sends_done(self) -> bool:
        """Everything posted has arrived. Certain only after a message that was posted with ``last``."""
        ...

    @property
    def peer_gone(self) -> bool:
        """The TCP connection beside it has ended: the peer closed it or died."""
        ...

    def message(self) -> memoryview:
        """The memory of the next message to be posted."""
        ...

    def bulk_out(self, slot: int) -> memoryview:
        """Where bulk is put that leaves this side."""
        ...

    def bulk_in(self, slot: int) -> memoryview:
        """Where bulk is found that has come."""
        ...

    def received(self, number: int) -> memoryview:
        """The memory of a receive buffer."""
        ...

    def post_message(self, size_bytes: int, slot: int | None, bulk_bytes: int, *, last: bool = False) -> None:
        """Send :meth:`message`; if this side moves the bulk, after writing the slot to the peer."""
        ...

    def post_read(self, slot: int, size_bytes: int) -> None:
        """Fetch the peer's slot."""
        ...

    def post_receive(self, number: int) -> None:
        """The buffer can take another message."""
        ...

    def poll(self) -> Sequence[Event]:
        """What has completed, without waiting."""
        ...

    async def wait(self) -> None:
        """Until :meth:`poll` may have something, or the peer is gone. One task at a time."""
        ...

    def close(self) -> None:
        """Destroy the queue pair; its memory may be used for another afterwards."""
        ...


@dataclass(slots=True)
class _Traffic:
    """What went through the device: messages, and the bytes that were moved into or out of bulk slots beside them."""

    messages_sent: int = 0
    messages_received: int = 0
    bulk_sent_bytes: int = 0
    bulk_received_bytes: int = 0


@dataclass(slots=True)
class _Arrival:
    """A message whose bytes are not all taken. First what it carries, then its bulk."""

    number: int  # of the receive buffer
    inline: memoryview
    slot: int | None
    bulk_bytes: int
    bulk: memoryview | None = None  # set when it is here
    asked: bool = False  # a READ is on its way


class VerbsLink:
    def __init__(self, pair: QueuePair) -> None:
        self._pair = pair
        self._flow = Flow()
        self._traffic = _Traffic()
        self._arrivals: deque[_Arrival] = deque()
        self._reading: dict[int, _Arrival] = {}  # by slot: READs on their way
        self._ended = False  # the peer said that nothing follows, or is gone
        self._unsent: deque[memoryview] = deque()
        self._watched = False  # a task waits for the device, on behalf of all
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def name(self) -> str:
        return self._pair.name

    @property
    def info(self) -> LinkInfo:
        return LinkInfo("verbs", self._pair.device, counters=asdict(self._traffic))

    @property
    def peer_gone(self) -> bool:
        return self._pair.peer_gone

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def probe(self) -> None:
        """Until a message of no bytes has arrived at the peer. Raises PeerUnreachable if the path does not carry."""
        encode_header(self._flow.header(), self._pair.message())
        self._pair.post_message(HEADER_BYTES, None, 0, last=True)
        while not self._pair.sends_done:
            await self._wait()
            self._progress()
            if self._pair.peer_gone:
                raise PeerUnreachable(f"{self.name}: the peer is gone")

    # --- receiving ---------------------------------------------------------------------------------------------------
    async def receive_into(self, view: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        while True:
            self._progress()
            count = self._take(view)
            if count:
                return count
            if self._ended and not self._arrivals:
                return 0
            if self._pair.peer_gone and not self._progress():
                if self._arrivals:  # with bulk that nobody will send any more
                    raise PeerUnreachable(f"{self.name}: the peer is gone")
                return 0
            await self._wait()

    def _take(self, view: memoryview) -> int:
        """Copy what is here; ask for the bulk that comes next; give back what was used."""
        count = 0
        began = False  # with the bulk of a frame: the rest of it may be fetched ahead
        while self._arrivals:
            first = self._arrivals[0]
            count += self._take_inline(first, view[count:])
            if first.inline:
                break
            if first.slot is not None and first.bulk is None:
                # Asked for only now that what was before it is taken, and so was judged by whoever receives.
                began = began or count == 0
                break
            if first.bulk is not None:
                began = True
                taken = min(len(first.bulk), len(view) - count)
                view[count : count + taken] = first.bulk[:taken]
                count += taken
                first.bulk = first.bulk[taken:]
                if first.bulk:
                    break
                self._flow.emptied()
            self._arrivals.popleft()
        if began:
            self._ask_for_bulk()
        self._give_back()
        return count

    def _take_inline(self, arrival: _Arrival, view: memoryview) -> int:
        if arrival.number < 0:
            return 0
        taken = min(len(arrival.inline), len(view))
        view[:taken] = arrival.inline[:taken]
        arrival.inline = arrival.inline[taken:]
        if not arrival.inline:
            self._post_again(arrival.number)
            arrival.number = -1
        return taken

    def _ask_for_bulk(self) -> None:
        """READ the bulk of the first arrival and of those after it, up to the next that begins with other bytes."""
        for arrival in self._arrivals:
            if arrival.inline or arrival.slot is None:
                break
            if arrival.bulk is None and not arrival.asked:
                arrival.asked = True
                self._reading[arrival.slot] = arrival
                self._pair.post_read(arrival.slot, arrival.bulk_bytes)

    def _post_again(self, number: int) -> None:
        self._pair.post_receive(number)
        self._flow.posted_again()

    def _give_back(self) -> None:
        """Tell the peer what it can use again, if it may be waiting for that."""
        if self._flow.must_give_back and self._flow.may_give_back and self._pair.may_post and not self._ended:
            encode_header(self._flow.header(), self._pair.message())
            self._pair.post_message(HEADER_BYTES, None, 0)

    # --- sending -----------------------------------------------------------------------------------------------------
    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        assert not self._unsent
        self._unsent.extend(memoryview(buffer).cast("B") for buffer in buffers)
        self._progress()
        return self._send()

    async def drain(self) -> None:
        while not self._send():
            with stall_limit(self):
                await self._wait()
            self._progress()

    def _send(self) -> bool:
        """Post messages as long as there is credit. True: nothing is left."""
        if self._unsent and self._pair.peer_gone:
            raise PeerUnreachable(f"{self.name}: the peer is gone")
        while self._unsent and self._flow.may_send and self._pair.may_post:
            inline, bulk = next_portion([len(buffer) for buffer in self._first_buffers()])
            if bulk and not self._flow.slot_free:
                return False
            message = self._pair.message()
            slot = self._flow.take_slot() if bulk else None
            encode_header(self._flow.header(inline, bulk), message)
            self._fill(message[HEADER_BYTES : HEADER_BYTES + inline])
            if slot is not None:
                self._fill(self._pair.bulk_out(slot)[:bulk])
            self._pair.post_message(HEADER_BYTES + inline, slot, bulk)
            self._traffic.messages_sent += 1
            self._traffic.bulk_sent_bytes += bulk
        return not self._unsent

    def _first_buffers(self) -> Iterator[memoryview]:
        for index, buffer in enumerate(self._unsent):
            if index == _SIZES_SEEN_MAX:
                break
            yield buffer

    def _fill(self, room: memoryview) -> None:
        """Move the first bytes of what is unsent to ``room``."""
        done = 0
        while done < len(room):
            buffer = self._unsent.popleft()
            taken = min(len(buffer), len(room) - done)
            room[done : done + taken] = buffer[:taken]
            done += taken
            if taken < len(buffer):
                self._unsent.appendleft(buffer[taken:])

    # --- the device --------------------------------------------------------------------------------------------------
    def _progress(self) -> bool:
        """Take in what has completed; True if there was something. Raises PeerUnreachable, ProtocolViolation."""
        events = self._pair.poll()
        for event in events:
            if event.what is What.RECEIVED:
                self._arrived(event.number, event.size_bytes)
            else:
                arrival = self._reading.pop(event.number)
                arrival.bulk = self._pair.bulk_in(event.number)[: arrival.bulk_bytes]
        return bool(events)

    def _arrived(self, number: int, size_bytes: int) -> None:
        message = self._pair.received(number)[:size_bytes]
        header = decode_header(message)
        self._traffic.messages_received += 1
        self._traffic.bulk_received_bytes += header.bulk_bytes
        slot = self._flow.received(header)
        self._ended = self._ended or header.end
        inline = message[HEADER_BYTES:]
        if not inline and slot is None:
            self._post_again(number)
            return
        arrival = _Arrival(number, inline, slot, header.bulk_bytes)
        if not inline:
            self._post_again(number)
            arrival.number = -1
        if slot is not None and not self._pair.pulls:
            arrival.bulk = self._pair.bulk_in(slot)[: header.bulk_bytes]  # it was written before it was announced
        self._arrivals.append(arrival)

    async def _wait(self) -> None:
        """Until something may have changed. One task waits for the device, the others for that task."""
        if self._watched:
            await self._changed.park()
            return
        self._watched = True
        try:
            await self._pair.wait()
        finally:
            self._watched = False
            self._changed.unpark_all()

    # --- the end -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """What was handed over still goes out: the queue pair lives on for RDMA_LINGER_MS at most."""
        self._unsent.clear()
        try:
            self._progress()
            # Without credit the end of the TCP connection says it.
            if self._flow.may_give_back and self._pair.may_post and not self._pair.peer_gone:
                encode_header(self._flow.header(end=True), self._pair.message())
                self._pair.post_message(HEADER_BYTES, None, 0, last=True)
        except ShoalError as error:
            log.debug("%s: closing: %s", self.name, error)
            self._pair.close()
            return
        trio.lowlevel.spawn_system_task(self._linger)

    async def _linger(self) -> None:
        try:
            with trio.move_on_after(RDMA_LINGER_MS / 1000):
                while not self._pair.peer_gone and not (self._pair.sends_done and self._flow.all_fetched):
                    await self._pair.wait()
                    self._drop_arrivals()
        except ShoalError as error:
            log.debug("%s: closing: %s", self.name, error)
        finally:
            self._pair.close()

    def _drop_arrivals(self) -> None:
        """What comes now nobody wants; but it may say that a slot was emptied."""
        self._progress()
        for arrival in self._arrivals:
            if arrival.number >= 0:
                self._post_again(arrival.number)
        self._arrivals.clear()
