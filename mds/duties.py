"""What the leader does on its own: end silent sessions, declare silent targets down, move placement groups, remove
orphans, free chunks.

Each duty looks at the store and the leader's memory, decides what to propose, and proposes it as ordinary commands of
session 0. Nothing is lost when the leader dies in the middle of one: the next leader looks again. All duties of one
round see one view of the store; what they decide from it is checked again by the operation that applies it.
"""

import logging
from collections.abc import Callable, Sequence

import msgspec
import trio

from shoalfs.mds import brake, cluster, reads, trash_list, upkeep
from shoalfs.mds import messages as m
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.replicated import ReplicatedLog
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import ChunkId, InodeId, SessionId
from shoalfs.transport.limits import TRASH_LIST_MAX
from shoalfs.transport.method import Message

log = logging.getLogger("shoal.mds.duties")

ROUND_MS = 200  # how long an orphan or an expired session may wait to be noticed
_REBALANCE_MS = 5_000  # every group is looked at
_ORPHANS_PER_ROUND = 1_000
_CHUNKS_PER_COMMAND = 1_000
_NOBODY = SessionId(0)
_encode = msgspec.msgpack.Encoder().encode


class Duties:
    """The leader's background work. ``grace_ms``: how long a chunk that became garbage is still readable; ``out_ms``:
    how long a target may be down before it is replaced."""

    def __init__(
        self,
        store: LmdbStore,
        log: ReplicatedLog,
        batcher: Batcher,
        state: LeaderState,
        *,
        now_ms: Callable[[], int],
        now_ns: Callable[[], int],
        grace_ms: int,
        out_ms: int,
    ) -> None:
        self._store = store
        self._log = log
        self._batcher = batcher
        self._state = state
        self._now_ms = now_ms
        self._now_ns = now_ns
        self._grace_ms = grace_ms
        self._closed_before: frozenset[InodeId] = frozenset()  # orphans that nobody had open, the last time we looked
        self._out_ms = out_ms
        self._rebalance_at_ms = 0

    async def run(self) -> None:
        """One round every ROUND_MS while this node leads, until cancelled."""
        while True:
            await trio.sleep(ROUND_MS / 1000)
            # The memory of a leadership begins with the first request that it answers (a renewal or a heartbeat).
            if self._log.may_serve_reads() and self._state.term == self._log.term_as_leader():
                try:
                    await self.one_round()
                except ShoalError as error:
                    log.warning("the leader's duties were cut short, the next round repeats them: %s", error)

    async def one_round(self) -> None:
        """Do what is due now. Raises what proposing raises; what was decided is decided again next time."""
        await self._expire_sessions()
        await self._note_lost_targets()
        await self._change_map()
        await self._empty_trash()
        await self._reap_orphans()
        await self._collect_garbage()

    async def _expire_sessions(self) -> None:
        for session in self._state.sessions.expired(self._now_ms()):
            log.warning("session %d was silent for its TTL and is ended", session)
            await self._propose(m.Op.END_SESSION, [m.EndSession(session, expired=True)])
            self._state.session_ended(session)

    async def _note_lost_targets(self) -> None:
        with self._store.read() as txn:
            map_ = self._state.map_index(txn).map
        for target in self._state.targets.lost(map_, self._now_ms()):
            usage = self._state.targets.usage(target)
            log.warning("target %d is declared down: %s", target, (usage and usage.failed) or "no heartbeat")
            await self._propose(m.Op.SET_TARGET_STATE, [m.SetTargetState(target, m.TargetState.DOWN)])

    async def _change_map(self) -> None:
        now_ms = self._now_ms()
        with self._store.read() as txn:
            view = upkeep.View(
                index=self._state.map_index(txn),
                repairs=self._state.repairs,
                answers=lambda target: self._state.targets.answers(target, now_ms),
                now_ns=self._now_ns(),
                out_ms=self._out_ms,
                rebalance=now_ms >= self._rebalance_at_ms and not cluster.load_upkeep(txn).rebalance_paused,
            )
        if view.rebalance:
            self._rebalance_at_ms = now_ms + _REBALANCE_MS
        for op, change, text in upkeep.changes(view):
            log.info("%s", text)
            await self._propose(op, [change])

    async def _empty_trash(self) -> None:
        with self._store.read() as txn:
            due = trash_list.due(txn, self._now_ns(), TRASH_LIST_MAX)
        if due:
            await self._propose(m.Op.PURGE_TRASH, [m.PurgeTrash(due)])

    async def _reap_orphans(self) -> None:
        """Remove what nobody links and nobody has open. The inode may not be opened from the decision on."""
        now_ms = self._now_ms()
        with self._store.read() as txn:
            orphans = reads.orphans(txn, _ORPHANS_PER_ROUND)
        seen = [i for i in orphans if not self._state.sessions.may_be_open(i, now_ms)]
        # A file that was just made without a name is noted as open a moment later: only what is seen twice is closed.
        closed: Sequence[InodeId] = [i for i in seen if i in self._closed_before]
        self._closed_before = frozenset(seen)
        self._state.reaping.update(closed)
        try:
            while closed:
                replies = await self._propose(m.Op.REAP, [m.Reap(ino) for ino in closed])
                closed = [
                    ino
                    for ino, reply in zip(closed, replies, strict=True)
                    if not reply.code and not msgspec.msgpack.decode(reply.body, type=m.Reaped).done
                ]
        finally:
            self._state.reaping.clear()

    async def _collect_garbage(self) -> None:
        garbage, strays = self._state.garbage, self._state.strays
        if await self._deletion_is_held():
            strays.clear()
            return
        if strays:
            found = tuple(ChunkId(chunk) for chunk in list(strays)[:_CHUNKS_PER_COMMAND])
            log.info("%d chunks belong to no file and no live session: added to the garbage", len(found))
            await self._propose(m.Op.ADD_GARBAGE, [m.ChunkList(found)])
            strays.difference_update(found)
        with self._store.read() as txn:
            map_ = self._state.map_index(txn).map
            garbage.let_go(map_)
            if (room := garbage.room()) > 0:
                due = reads.garbage_before(txn, self._now_ns() - self._grace_ms * 1_000_000, room, garbage.knows)
                garbage.add(due, map_)
        if done := garbage.take_done(_CHUNKS_PER_COMMAND):
            await self._propose(m.Op.DROP_GARBAGE, [m.ChunkList(done)])

    async def _deletion_is_held(self) -> bool:
        """Also until this leader can judge; what it finds unusual it holds for good (:mod:`shoalfs.mds.brake`)."""
        with self._store.read() as txn:
            index = self._state.map_index(txn)
            if brake.is_held(txn) or not brake.all_heard(index, self._state.targets):
                return True
            reason = brake.reason_to_hold(txn, index, self._state.targets)
        if reason:
            log.error("deletion is held until an operator releases it: %s", reason)
            await self._propose(m.Op.SET_UPKEEP, [m.Upkeep(deletions_held=True, held_reason=reason)])
        return bool(reason)

    async def _propose(self, op: m.Op, requests: Sequence[Message]) -> list[m.Outcome]:
        commands = [m.Command(0, 0, op, msgspec.Raw(_encode(request))) for request in requests]
        _, outcomes = await self._batcher.submit(_NOBODY, commands)
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.code:
                log.warning("%s was refused: %s", request, outcome.text)
        return outcomes
