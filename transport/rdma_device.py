"""An opened RDMA device and the receive queue that its accepted connections share. Sees pyverbs."""

from typing import Any

from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.srq import SRQ, SrqAttr, SrqInitAttr
from pyverbs.wr import SGE, RecvWR

from shoalfs.transport.limits import RDMA_CONNECTIONS_MAX, RDMA_CREDITS, RDMA_MESSAGE_BYTES
from shoalfs.transport.rdma_memory import BLOCK_BYTES, Block, Pool
from shoalfs.transport.rdma_ports import verbs
from shoalfs.transport.rdma_table import NoVerbs


class Device:
    """One opened device."""

    def __init__(self, name: str) -> None:
        self.context = Context(name=name)
        self.domain = PD(self.context)
        self._registered: dict[int, Any] = {}  # by number of block: for this side only
        self.receives = SharedReceives(self)

    def close(self) -> None:
        self.receives.close()
        for region in self._registered.values():
            region.close()
        self.domain.close()
        self.context.close()

    def register(self, block: Block) -> Any:
        """The block's registration in the common domain; made once, kept for whoever takes the block next."""
        region = self._registered.get(block.number)
        if region is None:
            region = MR(self.domain, BLOCK_BYTES, verbs.IBV_ACCESS_LOCAL_WRITE, address=block.address)
            self._registered[block.number] = region
        return region


class SharedReceives:
    """The receive queue of all accepted connections, and its buffers.

    Invariant: at least RDMA_CREDITS buffers are posted or in use for each connection, so a peer that keeps to its
    credits finds one. Buffers are never taken out of the queue: those of an ended connection serve the next one.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._queue: Any = None
        self._requests: list[Any] = []
        self._views: list[memoryview] = []
        self._fresh: list[tuple[memoryview, int, int]] = []  # never posted: view, address, key
        self._spare = 0

    @property
    def queue(self) -> Any:
        if self._queue is None:
            attributes = SrqInitAttr(SrqAttr(max_wr=RDMA_CONNECTIONS_MAX * RDMA_CREDITS, max_sge=1))
            self._queue = SRQ(self._device.domain, attributes)
        return self._queue

    def join(self, pool: Pool) -> None:
        """Make room for one more connection. Raises NoVerbs."""
        if self._spare >= RDMA_CREDITS:
            self._spare -= RDMA_CREDITS
            return
        if len(self._views) + RDMA_CREDITS > RDMA_CONNECTIONS_MAX * RDMA_CREDITS:
            raise NoVerbs("its receive queue serves as many connections as it may")
        if len(self._fresh) < RDMA_CREDITS:
            self._fill(pool)
        for _ in range(RDMA_CREDITS):
            view, address, key = self._fresh.pop()
            number = len(self._views)
            self._views.append(view)
            self._requests.append(RecvWR(wr_id=number, num_sge=1, sg=[SGE(address, RDMA_MESSAGE_BYTES, key)]))
            self.post(number)

    def leave(self) -> None:
        self._spare += RDMA_CREDITS

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()

    def view(self, number: int) -> memoryview:
        return self._views[number]

    def post(self, number: int) -> None:
        self.queue.post_recv(self._requests[number])

    def _fill(self, pool: Pool) -> None:
        """Cut a whole block into receive buffers."""
        block = pool.take()
        if block is None:
            raise NoVerbs("all registered memory is in use")
        key = self._device.register(block).lkey
        for start in range(0, BLOCK_BYTES - RDMA_MESSAGE_BYTES + 1, RDMA_MESSAGE_BYTES):
            self._fresh.append((block.view[start : start + RDMA_MESSAGE_BYTES], block.address + start, key))
