"""Queue pairs over verbs. With `rdma_device` and `rdma_ports` the only module that sees pyverbs, which is loaded only
where verbs are wanted.

One :class:`Device` per device and process: context, protection domain, and the shared receive queue of all
connections that this process accepted. One :class:`VerbsPair` per connection.

A pair that was dialled has a protection domain to itself, in which its bulk slots are registered for the peer: the
remote keys work over this one queue pair and end with it. A pair that was accepted exposes nothing.

The one rule: what may wait in C is not called. Completion events come through a descriptor that trio waits for.

Facts about pyverbs that the code relies on, seen in release 44 and good up to 64: work requests are never freed, so
they are made once and used again, which the library allows as soon as they are posted; the channel's descriptor has no
accessor before 57; :class:`pyverbs.mr.MR` does not keep its memory alive, so the pool must outlive it.
"""

import atexit
import ctypes
import errno
import ipaddress
import logging
import os
import secrets
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

import trio
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import (
    RDMA_BULK_SLOT_BYTES,
    RDMA_BULK_SLOTS,
    RDMA_CREDITS,
    RDMA_MESSAGE_BYTES,
    RDMA_SIGNAL_EVERY,
)
from shoalfs.transport.link import Link
from shoalfs.transport.rdma_device import Device
from shoalfs.transport.rdma_link import Event, What
from shoalfs.transport.rdma_memory import (
    BULK_BYTES,
    IN_AT,
    OUT_AT,
    RECEIVE_AT,
    SEND_AT,
    SEND_SLOTS,
    Pool,
)
from shoalfs.transport.rdma_ports import as_no_verbs, device_table, verbs
from shoalfs.transport.rdma_table import NoVerbs, Port, choose_port
from shoalfs.transport.rdma_wire import RDMA_VERSION, Endpoint, Offer

log = logging.getLogger("shoal.transport.rdma")

# Kinds of work, in the bits of a work request's number above those of a buffer or a count.
_SEND: Final = 1 << 56
_READ: Final = 1 << 57
_LOW: Final = _SEND - 1
_INLINE_BYTES: Final = 220  # copied into the work request itself; what every device of the last ten years takes
_POLL_MAX: Final = 32
# A send queue holds every send whose slot is not free, its write, and the reads.
_WORK_MAX: Final = 2 * SEND_SLOTS + RDMA_BULK_SLOTS
_COMPLETIONS_MAX: Final = _WORK_MAX + 2 * RDMA_CREDITS
_PORT_KEPT_S: Final = 10.0
_READS_AT_ONCE: Final = RDMA_BULK_SLOTS
# 4.096 us * 2^14 = 67 ms before an unacknowledged packet is sent again, seven times in all: half a second. 7 would
# mean "for ever" to soft-RoCE. A missing receive is tried again after 0.64 ms, three times; it means a bug, or a rogue.
_TIMEOUT: Final = 14
_RETRIES: Final = 6
_RNR_TIMER: Final = 12
_RNR_RETRIES: Final = 3
_STATUS: Final = {
    int(getattr(verbs, name)): name.removeprefix("IBV_WC_").lower().replace("_", " ")
    for name in dir(verbs)
    if name.startswith("IBV_WC_") and name.endswith("_ERR")
}


class _Requests:
    """The work requests that all pairs post with. Each is used within one call of the library only."""

    def __init__(self) -> None:
        self.send, self.send_part = _request()
        self.write, self.write_part = _request()
        self.read, self.read_part = _request()
        self.write.next_wr = self.send


def _request() -> tuple[Any, Any]:
    part = SGE(0, 1, 0)
    request = SendWR(num_sge=1, sg=[part])
    request.sg_list = part
    for shared in (request, part):  # each would free what they share, if they ever went
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared))
    return request, part


class Verbs:
    """What a process has of verbs: its devices and its memory. Everything raises NoVerbs if it cannot be done."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}
        self._ports: dict[str, tuple[float, Port]] = {}  # by local address: those that were found, and when
        self.pool = Pool()
        self.requests = _Requests()

    def close(self) -> None:
        """In the order in which the library wants it. For the end of the process: no pair may be open."""
        for device in self._devices.values():
            device.close()
        self._devices.clear()

    def pair(self, local_ip: str, fd: int, name: str, *, pulls: bool) -> "VerbsPair":
        """A queue pair on the port that ``local_ip`` belongs to, not connected yet. ``fd`` is of the TCP socket."""
        port = self._port(local_ip)
        with as_no_verbs(port.device):
            device = self._devices.get(port.device)
            if device is None:
                device = self._devices[port.device] = Device(port.device)
            return VerbsPair(self, device, port, fd, f"{name} verbs {port.device}", pulls=pulls)

    def _port(self, local_ip: str) -> Port:
        """Opening devices to look takes milliseconds: not done for each of many dials; but addresses move."""
        now = time.monotonic()
        found_at, port = self._ports.get(local_ip, (0.0, None))
        if port is None or now - found_at > _PORT_KEPT_S:
            port = choose_port(device_table(), local_ip)
            self._ports[local_ip] = now, port
        return port


@cache
def process_verbs() -> Verbs:
    """This process's verbs; its registered memory is bounded once for all."""
    made = Verbs()
    atexit.register(made.close)
    return made


class VerbsPair:
    """A :class:`~shoalfs.transport.rdma_link.QueuePair` of a device. Raises NoVerbs, PyverbsError if it cannot be."""

    def __init__(self, verbs_of_process: Verbs, device: Device, port: Port, fd: int, name: str, *, pulls: bool) -> None:
        self.name = name
        self.pulls = pulls
        self.peer_gone = False
        self.port = port
        self._pool = verbs_of_process.pool
        self._requests = verbs_of_process.requests
        self._receives = device.receives
        self._beside: Link | None = None
        self._peer_landing = (0, 0)
        self._peer_outgoing = (0, 0)
        # Invariant: 0 <= _sends - _completed <= SEND_SLOTS; send n lies in slot n % SEND_SLOTS.
        self._sends = 0
        self._completed = 0
        self._held: set[int] = set()  # receive buffers that hold a message
        self._failure: PeerUnreachable | None = None
        self._early: list[Event] = []  # polled while waiting, not asked for yet
        self._armed = False
        self._first_psn = secrets.randbelow(1 << 24)
        if pulls:
            device.receives.join(self._pool)
        block = self._pool.take()
        if block is None:
            if pulls:
                device.receives.leave()
            raise NoVerbs("all registered memory is in use")
        self._block = block
        self._pair: Any = None
        self._closing: list[Any] = []  # in the order in which they have to be closed
        try:
            self._make(device, fd)
        except BaseException:
            self._destroy()
            raise

    def _make(self, device: Device, fd: int) -> None:
        before = _event_descriptors()
        channel = CompChannel(device.context)
        self._closing.insert(0, channel)
        channel_fd = getattr(channel, "fd", None)
        if channel_fd is None:
            (channel_fd,) = _event_descriptors() - before
        os.set_blocking(channel_fd, False)
        self._channel, self._channel_fd = channel, channel_fd
        self._queue = CQ(device.context, _COMPLETIONS_MAX, None, channel, 0)
        self._closing.insert(0, self._queue)
        self._register(device)
        cap = QPCap(max_send_wr=_WORK_MAX, max_recv_wr=RDMA_CREDITS, max_inline_data=_INLINE_BYTES)
        attributes = QPInitAttr(
            qp_type=verbs.IBV_QPT_RC,
            scq=self._queue,
            rcq=self._queue,
            srq=device.receives.queue if self.pulls else None,
            cap=cap,
            sq_sig_all=0,
        )
        initial = QPAttr(port_num=self.port.number)
        initial.qp_access_flags = (
            0 if self.pulls else verbs.IBV_ACCESS_REMOTE_READ | verbs.IBV_ACCESS_REMOTE_WRITE
        ) | verbs.IBV_ACCESS_LOCAL_WRITE
        self._pair = QP(self._domain, attributes, initial)
        self._closing.insert(0, self._pair)
        self._post_first_receives()
        self._poller = select.epoll()
        self._poller.register(channel_fd, select.EPOLLIN)
        self._poller.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def _register(self, device: Device) -> None:
        if self.pulls:
            self._domain = device.domain
            self._key = device.register(self._block).lkey
            self._key_in = self._key_out = self._key
            return
        self._domain = PD(device.context)
        self._closing.insert(1, self._domain)
        at, local = self._block.address, verbs.IBV_ACCESS_LOCAL_WRITE
        messages = MR(self._domain, IN_AT - RECEIVE_AT, local, address=at + RECEIVE_AT)
        self._closing.insert(0, messages)
        landing = MR(self._domain, BULK_BYTES, local | verbs.IBV_ACCESS_REMOTE_WRITE, address=at + IN_AT)
        self._closing.insert(0, landing)
        outgoing = MR(self._domain, BULK_BYTES, local | verbs.IBV_ACCESS_REMOTE_READ, address=at + OUT_AT)
        self._closing.insert(0, outgoing)
        self._key = messages.lkey
        self.landing, self.outgoing = landing, outgoing

    def _post_first_receives(self) -> None:
        if self.pulls:
            return
        start = self._block.address + RECEIVE_AT
        self._own_receives = [
            RecvWR(wr_id=n, num_sge=1, sg=[SGE(start + n * RDMA_MESSAGE_BYTES, RDMA_MESSAGE_BYTES, self._key)])
            for n in range(RDMA_CREDITS)
        ]
        for request in self._own_receives:
            self._pair.post_recv(request)

    # --- set-up ---
    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._pair.qp_num, self._first_psn, self.port.gid, self.port.mtu, self.port.lid)

    @property
    def offer(self) -> Offer:
        """What a dialler says of itself."""
        at = self._block.address
        return Offer(RDMA_VERSION, self.endpoint, at + IN_AT, self.landing.rkey, at + OUT_AT, self.outgoing.rkey)

    def connect(self, peer: Endpoint, offer: Offer | None = None) -> None:
        """Connect to the peer's queue pair; an acceptor gives the dialler's ``offer``. Raises NoVerbs."""
        if offer is not None:
            self._peer_landing = (offer.landing_address, offer.landing_key)
            self._peer_outgoing = (offer.outgoing_address, offer.outgoing_key)
        with as_no_verbs(self.port.device):
            route = GlobalRoute(
                dgid=GID(ipaddress.IPv6Address(peer.gid).exploded), sgid_index=self.port.gid_index, hop_limit=64
            )
            attributes = QPAttr(port_num=self.port.number)
            attributes.path_mtu = min(peer.mtu, self.port.mtu)
            attributes.dest_qp_num = peer.queue_pair
            attributes.rq_psn = peer.first_psn
            attributes.sq_psn = self._first_psn
            attributes.max_rd_atomic = attributes.max_dest_rd_atomic = _READS_AT_ONCE
            attributes.min_rnr_timer = _RNR_TIMER
            attributes.timeout = _TIMEOUT
            attributes.retry_cnt = _RETRIES
            attributes.rnr_retry = _RNR_RETRIES
            attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=self.port.number, dlid=peer.lid)
            self._pair.to_rts(attributes)

    @property
    def device(self) -> str:
        return self.port.device

    def keep(self, beside: Link) -> None:
        """The TCP link is closed together with this pair."""
        self._beside = beside

    # --- QueuePair ---------------------------------------------------------------------------------------------------
    @property
    def may_post(self) -> bool:
        return self._sends - self._completed < SEND_SLOTS

    @property
    def sends_done(self) -> bool:
        return self._completed == self._sends

    def message(self) -> memoryview:
        return self._block.sends[self._sends % SEND_SLOTS]

    def bulk_out(self, slot: int) -> memoryview:
        return self._block.bulk_out[slot]

    def bulk_in(self, slot: int) -> memoryview:
        return self._block.bulk_in[slot]

    def received(self, number: int) -> memoryview:
        return self._receives.view(number) if self.pulls else self._block.receives[number]

    def post_message(self, size_bytes: int, slot: int | None, bulk_bytes: int, *, last: bool = False) -> None:
        requests, number = self._requests, self._sends
        part = requests.send_part
        part.addr = self._block.address + SEND_AT + number % SEND_SLOTS * RDMA_MESSAGE_BYTES
        part.length = size_bytes
        part.lkey = self._key
        send = requests.send
        send.wr_id = _SEND | number
        send.opcode = verbs.IBV_WR_SEND
        signal = last or (number + 1) % RDMA_SIGNAL_EVERY == 0
        send.send_flags = (verbs.IBV_SEND_SIGNALED if signal else 0) | (
            verbs.IBV_SEND_INLINE if size_bytes <= _INLINE_BYTES else 0
        )
        if slot is None or not self.pulls:
            self._post(send)
        else:
            write, offset = requests.write, slot * RDMA_BULK_SLOT_BYTES
            _aim(requests.write_part, self._block.address + OUT_AT + offset, bulk_bytes, self._key)
            write.wr_id = _SEND | number
            write.opcode = verbs.IBV_WR_RDMA_WRITE
            write.send_flags = 0
            address, key = self._peer_landing
            write.set_wr_rdma(key, address + offset)
            self._post(write)  # and the send after it, which it is chained to
        self._sends += 1

    def post_read(self, slot: int, size_bytes: int) -> None:
        read, offset = self._requests.read, slot * RDMA_BULK_SLOT_BYTES
        _aim(self._requests.read_part, self._block.address + IN_AT + offset, size_bytes, self._key)
        read.wr_id = _READ | slot
        read.opcode = verbs.IBV_WR_RDMA_READ
        read.send_flags = verbs.IBV_SEND_SIGNALED
        address, key = self._peer_outgoing
        read.set_wr_rdma(key, address + offset)
        self._post(read)

    def post_receive(self, number: int) -> None:
        self._held.discard(number)
        try:
            if self.pulls:
                self._receives.post(number)
            else:
                self._pair.post_recv(self._own_receives[number])
        except PyverbsError as error:
            raise self._failed(error) from error

    def poll(self) -> Sequence[Event]:
        events, self._early = self._early, []
        while True:
            count, completions = self._queue.poll(_POLL_MAX)
            for completion in completions:
                self._completed_one(completion, events)
            if count < _POLL_MAX:
                break
        if self._failure is not None and not events:
            raise self._failure
        return events

    async def wait(self) -> None:
        if not self._armed:
            self._queue.req_notify()
            self._armed = True
            completed = self._completed
            with suppress(PeerUnreachable):  # the next poll says it
                self._early = list(self.poll())  # what completed before the queue was armed gives no event
            news = self._early or self._completed != completed
        else:
            news = self._early
        if news or self._failure is not None or self.peer_gone:
            await trio.lowlevel.checkpoint()
            return
        await trio.lowlevel.wait_readable(self._poller)
        # Mostly it is the queue. If the socket has something to say, too, it still has when that is taken.
        if not self._take_event() and any(fd != self._channel_fd for fd, _ in self._poller.poll(0)):
            self.peer_gone = True

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._poller)
        self._poller.close()
        if self.pulls:
            self._stop_receiving()
        self._destroy()
        if self._beside is not None:
            self._beside.close()

    # --- below -------------------------------------------------------------------------------------------------------
    def _post(self, request: Any) -> None:
        try:
            self._pair.post_send(request)
        except PyverbsError as error:
            raise self._failed(error) from error

    def _completed_one(self, completion: Any, events: list[Event]) -> None:
        number, status = completion.wr_id, completion.status
        if number < _SEND:
            self._held.add(number)
        if status:
            if self._failure is None:
                self._failure = PeerUnreachable(f"{self.name}: {_STATUS.get(status, f'completion status {status}')}")
        elif number < _SEND:
            events.append(Event(What.RECEIVED, number, completion.byte_len))
        elif number < _READ:
            self._completed = (number & _LOW) + 1
        else:
            events.append(Event(What.READ, number & _LOW, 0))

    def _take_event(self) -> bool:
        """Whether the queue had one."""
        try:
            self._channel.get_cq_event(self._queue)
        except PyverbsRDMAError as error:
            if error.error_code != errno.EAGAIN:
                log.warning("%s: no event of its queue: %s", self.name, error)
            return False
        self._armed = False
        self._queue.ack_events(1)
        return True

    def _stop_receiving(self) -> None:
        try:
            self._pair.modify(QPAttr(qp_state=verbs.IBV_QPS_ERR), verbs.IBV_QP_STATE)
        except PyverbsError as error:
            log.debug("%s: closing: %s", self.name, error)
        self._return_receives()

    def _return_receives(self) -> None:
        """Give the shared queue back what this pair took out of it."""
        with suppress(PeerUnreachable):
            self.poll()
        for number in list(self._held):
            self._held.discard(number)
            self._receives.post(number)

    def _destroy(self) -> None:
        for thing in self._closing:
            thing.close()
            if thing is self._pair and self.pulls:
                self._return_receives()  # what was under way until then
        self._closing.clear()
        if self.pulls:
            self._receives.leave()
        self._pool.give_back(self._block)

    def _failed(self, error: PyverbsError) -> PeerUnreachable:
        self._failure = PeerUnreachable(f"{self.name}: {error}")
        return self._failure


def _aim(part: Any, address: int, size_bytes: int, key: int) -> None:
    part.addr = address
    part.length = size_bytes
    part.lkey = key


def _event_descriptors() -> set[int]:
    """Open descriptors that carry events of verbs."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:
            continue  # that of the listing itself
    return found
