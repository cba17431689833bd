"""Passes chunks on to other chunkservers (see :mod:`~shoalfs.chunkserver.chain`).

Where to is what the metadata service says: a request names targets, never addresses, so nobody can have a server
connect to anything but a chunkserver of its cluster. The map is fetched when a target is not in it, and again after a
peer could not be reached; as long as it is not known to be old nobody waits for the metadata service.

Two rules keep servers from waiting for one another in a circle, each with its memory full of what the other should
take. What is being passed on takes at most FORWARDED_BYTES_MAX, which leaves room for chunks that end here; and a chunk
that does not fit does not wait: it is refused, and the one who sent it finds another way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import trio

from shoalfs.chunkserver.chain import checked, failed, pass_on
from shoalfs.chunkserver.messages import PUT_CHAIN, ChainLink, PutChain
from shoalfs.mds.leader import Leader
from shoalfs.mds.messages import GET_MAP, GetMap
from shoalfs.transport.errors import DeadlineExceeded, Overloaded, PeerUnreachable, ShoalError, UserError
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import FORWARD_MAP_MS_MIN, FORWARDED_BYTES_MAX
from shoalfs.transport.network import Network


class Addresses:
    """Where the targets of the cluster are."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._known: Mapping[TargetId, str] = {}
        self._doubted: set[TargetId] = set()  # Invariant: of ``_known``
        self._fetched_at = -FORWARD_MAP_MS_MIN / 1000
        self._fetching = trio.Lock()

    async def of(self, target: TargetId) -> str:
        """Raises PeerUnreachable if no such target is known."""
        if target not in self._known or target in self._doubted:
            await self._fetch(target)
        if target not in self._known:
            raise PeerUnreachable(f"the cluster map that is known here has no target {target}")
        return self._known[target]

    def doubt(self, target: TargetId) -> None:
        """It was not to be found there."""
        if target in self._known:
            self._doubted.add(target)

    async def _fetch(self, target: TargetId) -> None:
        """The map as it is now, unless that was asked just now. Who is known is still asked where it was last known to
        be if there is no map to be had."""
        async with self._fetching:
            if trio.current_time() - self._fetched_at < FORWARD_MAP_MS_MIN / 1000:
                return
            self._fetched_at = trio.current_time()
            try:
                found = (await self._leader.call(GET_MAP, GetMap())).body
            except ShoalError:
                if target not in self._known:
                    raise
                return
            self._known = {one.id: one.address for one in found.targets}
            self._doubted.clear()


class Forwarder:
    """``counters``: chunks that other targets took, that they did not take, and that were refused for want of room."""

    def __init__(self, network: Network, addresses: Addresses) -> None:
        self.counters: Counter[str] = Counter()
        self._network = network
        self._addresses = addresses
        self._held_bytes = 0  # Invariant: at most FORWARDED_BYTES_MAX

    async def forward(self, request: PutChain, payload: memoryview, deadline: float) -> tuple[ChainLink, ...]:
        """Store the chunk on ``request.targets``, none of which is here, and say what became of it on each, before
        ``deadline``. The payload is not to change meanwhile. Raises nothing that a peer answers."""
        if not request.targets:
            return ()
        if self._held_bytes + len(payload) > FORWARDED_BYTES_MAX:
            self.counters["forwards_refused"] += len(request.targets)
            full = Overloaded("the server passes on as much as it can already")
            return tuple(failed(target, full) for target in request.targets)
        self._held_bytes += len(payload)
        try:

            async def send(target: TargetId, left: Sequence[TargetId]) -> Sequence[ChainLink]:
                return await self._send(
                    target, msgspec.structs.replace(request, targets=tuple(left)), payload, deadline
                )

            passed = await pass_on([(target, target) for target in request.targets], send)
        finally:
            self._held_bytes -= len(payload)
        stored = sum(link.receipt is not None for link in passed.links)
        self.counters["forwards"] += stored
        self.counters["forwards_failed"] += len(passed.links) - stored
        return passed.links

    async def _send(
        self, target: TargetId, request: PutChain, payload: memoryview, deadline: float
    ) -> Sequence[ChainLink]:
        # A share for each that is left and one for us: whoever hangs leaves time to ask the next, and to answer.
        left_ms = (deadline - trio.current_time()) * 1000
        timeout_ms = int(left_ms * len(request.targets) / (len(request.targets) + 1))
        if timeout_ms <= 0:
            raise DeadlineExceeded("no time is left to pass the chunk on")
        try:
            address: str | None = None
            with trio.move_on_after(timeout_ms / 1000):
                address = await self._addresses.of(target)
            timeout_ms = min(timeout_ms, int((deadline - trio.current_time()) * 1000))
            if address is None or timeout_ms <= 0:
                raise DeadlineExceeded(f"it is not known in time where target {target} is")
            reply = await self._network.call(address, PUT_CHAIN, request, payload, timeout_ms=timeout_ms)
        except ShoalError:
            self._addresses.doubt(target)
            raise
        except UserError as error:  # an address that this server cannot dial: others may
            raise PeerUnreachable(str(error)) from error
        return checked(request, reply.body.links)
