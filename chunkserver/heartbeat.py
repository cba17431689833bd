"""Tells the metadata service every HEARTBEAT_MS how the targets are, and carries out what it orders.

All decisions are in :mod:`~shoalfs.chunkserver.membership`; here is what waits: calls, the clock, deletions, copies.
A beat comes early when all ordered copies are done, or when the service waits for an inventory. While the service
cannot be reached the server goes on serving what it has, and this goes on trying, for ever.
"""

import logging
import math
import time
from functools import partial
from typing import Final, NoReturn

import msgspec
import trio

from shoalfs.chunkserver import copier
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.keeper import Keeper
from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.chunkserver.scrubber import Scrubber
from shoalfs.chunkserver.target import Target
from shoalfs.mds.leader import Leader
from shoalfs.mds.messages import (
    GET_MAP,
    HEARTBEAT,
    MUTATE,
    Command,
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
        self._scopes: dict[bytes, trio.CancelScope] = {}  # of their tasks
        self._orders_came = trio.Event()
        self._copies_came = trio.Event()
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

        async def scrub() -> None:
            with scope:
                await scrubber.run()

        nursery.start_soon(scrub)

    def _let_go(self, uuid: bytes, refusal: TargetRemoved) -> None:
        """The cluster does not want it any more."""
        self._scopes.pop(uuid).cancel()
        del self._scrubbers[uuid]
        self._membership.remove(uuid)
        self._keeper.let_go(uuid, refusal)

    async def run(self) -> NoReturn:
        """Beat until cancelled. Raises WrongCluster if the first metadata service that answers is another cluster's:
        nobody will ever ask for what is stored here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_added)
            nursery.start_soon(self._delete_forever)
            for _ in range(COPIES_AT_ONCE_MAX):
                nursery.start_soon(self._copy_forever)
            reachable, known = True, False
            while True:
                began = trio.current_time()
                for uuid in [uuid for uuid in self._targets if uuid not in self._scopes]:
                    self._take_in(self._targets[uuid], nursery)
                try:
                    await self.beat()
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

    async def beat(self) -> None:
        """Register what is not registered, and report the rest. Raises ShoalError if the service does not answer."""
        for uuid in self._membership.unregistered():
            try:
                await self._register(self._targets[uuid])
            except TargetRemoved as refusal:
                self._let_go(uuid, refusal)
        members = [self._targets[uuid] for uuid in self._scopes]
        conditions = {target.uuid: await self._condition(target) for target in members}
        heartbeat = self._membership.heartbeat(conditions)
        if not heartbeat.targets:
            return
        reply = await self._leader.call(HEARTBEAT, heartbeat)
        self._membership.answered(heartbeat, reply.body)
        self._orders_came.set()
        self._copies_came.set()
        self._copies_came = trio.Event()

    async def _register(self, target: Target) -> None:
        """Raises TargetRemoved. One that failed may not register, which would declare it up: whether the map has it is
        looked at now and then."""
        if target.failed:
            if target.id and trio.current_time() >= self._look_at:
                self._look_at = trio.current_time() + _LOOK_S
                known = (await self._leader.call(GET_MAP, GetMap())).body.targets
                if all(other.uuid != target.uuid for other in known):
                    raise TargetRemoved
            return
        usage = await target.usage()
        request = RegisterTarget(target.uuid, self._node, self._address, usage.capacity_bytes, self._rack)
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
        _log.info("%s is target %d, epoch %d", target.path, given.id, given.epoch)

    async def _condition(self, target: Target) -> Condition:
        usage = await target.usage()
        part = self._membership.next_part(target.uuid)
        inventory = await target.chunks_after(part.after, part.chunks_max)
        return Condition(
            usage.capacity_bytes,
            usage.used_bytes,
            usage.chunks,
            target.failed,
            part,
            tuple(chunk for chunk, _ in inventory),
            b"".join(row.chunk_hash for _, row in inventory),
            self._scrubbers[target.uuid].report,
        )

    async def _delete_forever(self) -> NoReturn:
        while True:
            await self._orders_came.wait()
            self._orders_came = trio.Event()
            for uuid, target in list(self._targets.items()):
                if uuid in self._scopes and not target.failed and (chunks := self._membership.begin_deleting(uuid)):
                    await self._delete(target, chunks)

    async def _delete(self, target: Target, chunks: tuple[ChunkId, ...]) -> None:
        deleted: tuple[ChunkId, ...] = ()
        try:
            await target.delete(chunks)
            deleted = chunks
        except (TargetDown, TargetFull) as error:
            _log.warning("%s: cannot delete %d chunks: %s", target.path, len(chunks), error)
        finally:
            self._membership.end_deleting(target.uuid, deleted)

    async def _copy_forever(self) -> NoReturn:
        while True:
            work = self._membership.begin_copy()
            if work is None:
                await self._copies_came.wait()
                continue
            uuid, order = work
            copied, failures = await copier.carry_out(self._targets[uuid], order, self._peers)
            self._membership.end_copy(uuid, order.chunk, copied=copied, failures=failures)
            self._something_came.set()
