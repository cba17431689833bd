"""Tells the metadata service every HEARTBEAT_MS how the targets are, and carries out what it orders.

All decisions are in :mod:`~shoalfs.chunkserver.membership`; here is what waits: calls, the clock, deletions. While the
service cannot be reached the server goes on serving what it has, and this goes on trying, for ever.
"""

import logging
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec
import trio

from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.chunkserver.target import Target
from shoalfs.mds.client import Leader
from shoalfs.mds.messages import HEARTBEAT, MUTATE, Command, Mutate, Op, RegisterTarget, TargetRegistered
from shoalfs.transport.errors import (
    ProtocolViolation,
    ShoalError,
    TargetDown,
    TargetFull,
    WrongCluster,
    from_wire,
)
from shoalfs.transport.ids import ChunkId, SessionId
from shoalfs.transport.limits import HEARTBEAT_MS

_log: Final = logging.getLogger("shoal.chunkserver.heartbeat")


class Heart:
    """``address`` is where clients reach this server."""

    def __init__(self, leader: Leader, node: str, address: str, targets: Sequence[Target]) -> None:
        self._leader = leader
        self._node = node
        self._address = address
        self._targets = {target.uuid: target for target in targets}
        self._membership = Membership(node, tuple(self._targets))
        self._orders_came = trio.Event()

    async def run(self) -> NoReturn:
        """Beat until cancelled. Raises WrongCluster if the first metadata service that answers is another cluster's:
        nobody will ever ask for what is stored here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._delete_forever)
            reachable, known = True, False
            while True:
                next_beat = trio.current_time() + HEARTBEAT_MS / 1000
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
                await trio.sleep_until(next_beat)

    async def beat(self) -> None:
        """Register what is not registered, and report the rest. Raises ShoalError if the service does not answer."""
        for uuid in self._membership.unregistered():
            if not self._targets[uuid].failed:
                await self._register(self._targets[uuid])
        conditions = {uuid: await self._condition(target) for uuid, target in self._targets.items()}
        heartbeat = self._membership.heartbeat(conditions)
        if not heartbeat.targets:
            return
        reply = await self._leader.call(HEARTBEAT, heartbeat)
        self._membership.answered(heartbeat, reply.body)
        self._orders_came.set()

    async def _register(self, target: Target) -> None:
        usage = await target.usage()
        request = RegisterTarget(target.uuid, self._node, self._address, usage.capacity_bytes)
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
        cursor = self._membership.cursor(target.uuid)
        inventory = await target.chunks_after(cursor, self._membership.inventory_max)
        return Condition(
            usage.capacity_bytes,
            usage.used_bytes,
            usage.chunks,
            target.failed,
            tuple(chunk for chunk, _ in inventory),
        )

    async def _delete_forever(self) -> NoReturn:
        while True:
            await self._orders_came.wait()
            self._orders_came = trio.Event()
            for uuid, target in self._targets.items():
                chunks = self._membership.to_delete(uuid)
                if chunks and not target.failed:
                    await self._delete(target, chunks)

    async def _delete(self, target: Target, chunks: tuple[ChunkId, ...]) -> None:
        try:
            await target.delete(chunks)
        except (TargetDown, TargetFull) as error:
            _log.warning("%s: cannot delete %d chunks: %s", target.path, len(chunks), error)
        else:
            self._membership.deleted(target.uuid, chunks)
