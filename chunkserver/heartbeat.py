"""Tells the metadata service every HEARTBEAT_MS how the targets are, and carries out what it orders.

All decisions are in :mod:`~shoalfs.chunkserver.membership`; here is what waits: calls, the clock, deletions, copies.
No target waits for the disk of another: each is asked, verified and deleted from by tasks of its own, and copies to one
that does not answer do not count among those that are made at a time.
A beat comes early when all ordered copies are done, or when the service waits for an inventory. While the service
cannot be reached the server goes on serving what it has, and this goes on trying, for ever.
"""

import logging
import math
import time
from collections import Counter
from functools import partial
from typing import Final, NoReturn

import msgspec
import trio

from shoalfs.chunkserver import copier
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.keeper import Keeper
from shoalfs.chunkserver.looks import Looks
from shoalfs.chunkserver.membership import Membership
from shoalfs.chunkserver.scrubber import Scrubber
from shoalfs.chunkserver.target import Target
from shoalfs.mds.leader import Leader
from shoalfs.mds.messages import (
    GET_MAP,
    HEARTBEAT,
    MUTATE,
    Command,
    CopyOrder,
    GetMap,
    Mutate,
    Op,
    RegisterTarget,
    TargetRegistered,
)
from shoalfs.transport.errors import (
    ProtocolViolation,
    ShoalError,
    TargetDown,
    TargetFull,
    TargetRemoved,
    WrongCluster,
    from_wire,
)
from shoalfs.transport.ids import ChunkId, SessionId
from shoalfs.transport.limits import BEAT_MS_MIN, COPIES_AT_ONCE_MAX, HEARTBEAT_MS, HURRIED_BEAT_MS

_log: Final = logging.getLogger("shoal.chunkserver.heartbeat")
_LOOK_S: Final = 5.0


class Heart:
    """``address`` is where clients reach this server; ``peers``: to fetch from others what a target lacks. Speaks for
    the targets that ``keeper`` has at each beat. Invariant between two beats: members, scrubbers and scopes are of the
    same targets."""

    def __init__(self, leader: Leader, node: str, rack: str, address: str, keeper: Keeper, peers: ChunkClient) -> None:
        self._leader = leader
        self._node = node
        self._rack = rack
        self._address = address
        self._peers = peers
        self._keeper = keeper
        self._targets = keeper.targets.living
        self._membership = Membership(node)
        self._scrubbers: dict[bytes, Scrubber] = {}
        self._looks = Looks(self._membership, lambda uuid: self._scrubbers[uuid].report)
        self._scopes: dict[bytes, trio.CancelScope] = {}  # of their tasks
        self._orders_came = trio.Event()
        self._copies_came = trio.Event()
        self._copying: Counter[bytes] = Counter()  # copies under way, by their target
        self._look_at = -math.inf  # when to see again whether a target that failed was removed
        self._something_came = trio.Event()  # for the next beat: copies are done, a target was added

    def _take_in(self, target: Target, nursery: trio.Nursery) -> None:
        """Speak for it from now on, and verify what it has."""
        uuid = target.uuid
        self._membership.add(uuid)
        scrubber = self._scrubbers[uuid] = Scrubber(
            target,
            partial(self._membership.scrub_order, uuid),
            partial(self._membership.found_damaged, uuid),
            time.time_ns,
        )
        scope = self._scopes[uuid] = trio.CancelScope()

        async def work() -> None:
            with scope:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(scrubber.run)
                    tasks.start_soon(self._delete_forever, target)

        nursery.start_soon(work)

    def _let_go(self, uuid: bytes, refusal: TargetRemoved) -> None:
        """The cluster does not want it any more."""
        self._scopes.pop(uuid).cancel()
        del self._scrubbers[uuid]
        self._membership.remove(uuid)
        self._looks.remove(uuid)
        self._keeper.let_go(uuid, refusal)

    async def run(self) -> NoReturn:
        """Beat until cancelled. Raises WrongCluster if the first metadata service that answers is another cluster's:
        nobody will ever ask for what is stored here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_added)
            nursery.start_soon(self._copy_forever, nursery)
            reachable, known = True, False
            while True:
                began = trio.current_time()
                for uuid in [uuid for uuid in self._targets if uuid not in self._scopes]:
                    self._take_in(self._targets[uuid], nursery)
                try:
                    await self._beat(nursery)
                except ShoalError as error:
                    if isinstance(error, WrongCluster) and not known:
                        raise
                    if reachable:
                        _log.warning("the metadata service does not answer, serving on: %s", error)
                    reachable = False
                else:
                    if not reachable:
                        _log.info("the metadata service answers again")
                    reachable = known = True
                await self._wait_for_next_beat(began)

    async def _note_added(self) -> NoReturn:
        while True:
            await self._keeper.targets.changed.wait()
            self._something_came.set()

    async def _wait_for_next_beat(self, began: float) -> None:
        """HEARTBEAT_MS after the last one began, or earlier if there is something to say."""
        await trio.sleep(BEAT_MS_MIN / 1000)
        beat_ms = HURRIED_BEAT_MS if self._membership.is_hurried else HEARTBEAT_MS
        with trio.move_on_at(began + beat_ms / 1000):
            while not self._membership.has_results and self._targets.keys() == self._scopes.keys():
                self._something_came = trio.Event()
                await self._something_came.wait()

    async def _beat(self, nursery: trio.Nursery) -> None:
        """Register what is not registered, and report the rest. Raises ShoalError if the service does not answer."""
        strangers = [self._targets[uuid] for uuid in self._membership.unregistered()]
        await self._looks.look([target for target in strangers if not target.failed], nursery)
        for target in strangers:
            try:
                await self._register(target)
            except TargetRemoved as refusal:
                self._let_go(target.uuid, refusal)
        members = [self._targets[uuid] for uuid in self._scopes if self._membership.is_registered(uuid)]
        await self._looks.look(members, nursery)
        conditions = {target.uuid: self._looks.take(target) for target in members}
        heartbeat = self._membership.heartbeat(conditions)
        if not heartbeat.targets:
            return
        reply = await self._leader.call(HEARTBEAT, heartbeat)
        self._membership.answered(heartbeat, reply.body)
        self._orders_came.set()
        self._orders_came = trio.Event()
        self._copies_came.set()

    async def _register(self, target: Target) -> None:
        """Raises TargetRemoved. One that has not said how large it is waits. One that failed may not register, which
        would declare it up: whether the map has it is looked at now and then."""
        if target.failed:
            if target.id and trio.current_time() >= self._look_at:
                self._look_at = trio.current_time() + _LOOK_S
                known = (await self._leader.call(GET_MAP, GetMap())).body.targets
                if all(other.uuid != target.uuid for other in known):
                    raise TargetRemoved
            return
        capacity_bytes = self._looks.capacity_bytes(target.uuid)
        if capacity_bytes is None:
            return
        request = RegisterTarget(target.uuid, self._node, self._address, capacity_bytes, self._rack)
        command = Command(0, 0, Op.REGISTER_TARGET, msgspec.Raw(msgspec.msgpack.encode(request)))
        reply = await self._leader.call(MUTATE, Mutate(SessionId(0), (command,)))
        if len(reply.body.outcomes) != 1:
            raise ProtocolViolation(f"{len(reply.body.outcomes)} outcomes of one registration")
        outcome = reply.body.outcomes[0]
        if outcome.code:
            raise from_wire(outcome.code, outcome.text)
        given = msgspec.msgpack.decode(outcome.body, type=TargetRegistered).target
        target.enrol(given.id, given.epoch)
        self._membership.registered(target.uuid, given.id, given.epoch)
        self._looks.begin_life(target.uuid)
        _log.info("%s is target %d, epoch %d", target.path, given.id, given.epoch)

    async def _delete_forever(self, target: Target) -> NoReturn:
        while True:
            await self._orders_came.wait()
            while not target.failed and (chunks := self._membership.begin_deleting(target.uuid)):
                if not await self._delete(target, chunks):
                    break  # they are ordered again

    async def _delete(self, target: Target, chunks: tuple[ChunkId, ...]) -> bool:
        deleted: tuple[ChunkId, ...] = ()
        try:
            await target.delete(chunks)
            deleted = chunks
        except (TargetDown, TargetFull) as error:
            _log.warning("%s: cannot delete %d chunks: %s", target.path, len(chunks), error)
        finally:
            self._membership.end_deleting(target.uuid, deleted)
        return bool(deleted)

    async def _copy_forever(self, nursery: trio.Nursery) -> NoReturn:
        while True:
            while (work := self._begin_copy()) is not None:
                self._copying[work[0]] += 1
                nursery.start_soon(self._copy, *work)
            self._copies_came = trio.Event()
            await self._copies_came.wait()

    def _begin_copy(self) -> tuple[bytes, CopyOrder] | None:
        """COPIES_AT_ONCE_MAX at a time, besides those, as many at most, of each target whose disk does not answer."""
        stalled = {uuid for uuid, target in self._targets.items() if target.is_stalled}
        if sum(count for uuid, count in self._copying.items() if uuid not in stalled) >= COPIES_AT_ONCE_MAX:
            return None
        return self._membership.begin_copy(stalled)

    async def _copy(self, uuid: bytes, order: CopyOrder) -> None:
        try:
            copied, failures = await copier.carry_out(self._targets[uuid], order, self._peers)
        finally:
            self._copying[uuid] -= 1
        self._membership.end_copy(uuid, order.chunk, copied=copied, failures=failures)
        self._copies_came.set()
        self._something_came.set()
