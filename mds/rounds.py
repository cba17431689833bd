"""What is due in one round of the leader's duties, as decisions only: what to propose, in which order, and what the
leader notes of the outcomes. No I/O; :mod:`~shoalfs.mds.duties` proposes it, and so do simulations.

A round is a generator: it yields a :class:`Proposal` and is sent the outcomes of its commands. It may be closed at any
proposal (the node leads no more, the log is full): what was decided is decided again in the next round. All steps look
at the store for themselves, after what the steps before them proposed; what is decided from that view is checked again
by the operation that applies it.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec

from shoalfs.mds import brake, cluster, reads, trash_list, trash_yield, upkeep
from shoalfs.mds import messages as m
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import TRASH_LIST_MAX, TRASH_TALLIED_MAX, TRASH_YIELD_MS
from shoalfs.transport.method import Message

_REBALANCE_MS: Final = 5_000  # every group is looked at
_ORPHANS_PER_ROUND: Final = 1_000
_TRIMMED_PER_ROUND: Final = 16  # files, each EXTENT_ROWS_MAX extents a time
_TRIMS_PER_ROUND: Final = 8
_CHUNKS_PER_COMMAND: Final = 1_000
_TALLY_REST_MS: Final = 60_000  # files in the trash that are still open grow


class Proposal(NamedTuple):
    """Commands of session 0 for one entry, and a sentence for the log; empty: there is nothing to say."""

    op: m.Op
    requests: Sequence[Message]
    text: str = ""
    level: int = logging.INFO


Steps: TypeAlias = Generator[Proposal, Sequence[m.Outcome], None]


class Readable(Protocol):
    """What is needed of a store."""

    def read(self) -> AbstractContextManager[ReadTxn]: ...


@dataclass(frozen=True)
class Clock:
    """Milliseconds that only run forward, and the time of day."""

    now_ms: Callable[[], int]
    now_ns: Callable[[], int]


class Rounds:
    """The decisions of one leader after the other. ``grace_ms``: how long a chunk that became garbage is still
    readable; ``out_ms``: how long a target may be down before it is replaced."""

    def __init__(self, store: Readable, state: LeaderState, clock: Clock, *, grace_ms: int, out_ms: int) -> None:
        self._store = store
        self._state = state
        self._clock = clock
        self._grace_ms = grace_ms
        self._out_ms = out_ms
        self._closed_before: frozenset[InodeId] = frozenset()  # orphans that nobody had open, the last time we looked
        self._rebalance_at_ms = 0
        self._yield_at_ms = 0
        self._yield_after = 0, 0

    def one(self) -> Steps:
        """Everything, in this order."""
        yield from self.expire_sessions()
        yield from self.note_lost_targets()
        yield from self.change_map()
        yield from self.empty_trash()
        yield from self.yield_trash()
        yield from self.reap_orphans()
        yield from self.trim_files()
        yield from self.collect_garbage()

    def expire_sessions(self) -> Steps:
        for session in self._state.sessions.expired(self._clock.now_ms()):
            text = f"session {session} was silent for its TTL and is ended"
            yield Proposal(m.Op.END_SESSION, [m.EndSession(session, expired=True)], text, logging.WARNING)
            self._state.session_ended(session)

    def note_lost_targets(self) -> Steps:
        with self._store.read() as txn:
            map_ = self._state.map_index(txn).map
        for target in self._state.targets.lost(map_, self._clock.now_ms()):
            usage = self._state.targets.usage(target)
            text = f"target {target} is declared down: {(usage and usage.failed) or 'no heartbeat'}"
            request = m.SetTargetState(target, m.TargetState.DOWN)
            yield Proposal(m.Op.SET_TARGET_STATE, [request], text, logging.WARNING)

    def change_map(self) -> Steps:
        now_ms = self._clock.now_ms()
        with self._store.read() as txn:
            view = upkeep.View(
                index=self._state.map_index(txn),
                repairs=self._state.repairs,
                answers=lambda target: self._state.targets.answers(target, now_ms),
                now_ns=self._clock.now_ns(),
                out_ms=self._out_ms,
                led_ms=self._state.targets.led_ms(now_ms),
                rebalance=now_ms >= self._rebalance_at_ms and not cluster.load_upkeep(txn).rebalance_paused,
            )
        if view.rebalance:
            self._rebalance_at_ms = now_ms + _REBALANCE_MS
        self._state.absences = upkeep.absences(view)
        for op, change, text in upkeep.changes(view):
            yield Proposal(op, [change], text)

    def empty_trash(self) -> Steps:
        with self._store.read() as txn:
            due = trash_list.due(txn, self._clock.now_ns(), TRASH_LIST_MAX)
        if due:
            yield Proposal(m.Op.PURGE_TRASH, [m.PurgeTrash(due)])

    def yield_trash(self) -> Steps:
        """What is in the trash goes before its time if a pool is nearly full (:mod:`shoalfs.mds.trash_yield`)."""
        now_ms, state = self._clock.now_ms(), self._state
        with self._store.read() as txn:
            index = state.map_index(txn)
            state.trash_tally.look(txn, now_ms, TRASH_TALLIED_MAX, _TALLY_REST_MS)
            if now_ms < self._yield_at_ms:
                return
            self._yield_at_ms = now_ms + TRASH_YIELD_MS
            state.nearly_full = trash_yield.nearly_full(index, state.targets)
            if not state.nearly_full or not reads.counts(txn).trashed:
                self._yield_after = 0, 0
                return
            step = trash_yield.next_step(txn, index, state.targets, self._yield_after)
        self._yield_after = step.after
        if step.inos:
            text = (
                f"targets are {state.nearly_full[0].percent} % full: the {len(step.inos)} oldest removed files with "
                f"chunks ({step.freed_bytes >> 20} MiB on disks) are kept no longer"
            )
            yield Proposal(m.Op.PURGE_TRASH, [m.PurgeTrash(step.inos)], text, logging.WARNING)

    def reap_orphans(self) -> Steps:
        """Remove what nobody links and nobody has open. The inode may not be opened from the decision on."""
        now_ms = self._clock.now_ms()
        with self._store.read() as txn:
            orphans = reads.orphans(txn, _ORPHANS_PER_ROUND)
        seen = [i for i in orphans if not self._state.sessions.may_be_open(i, now_ms)]
        # A file that was just made without a name is noted as open a moment later: only what is seen twice is closed.
        closed: Sequence[InodeId] = [i for i in seen if i in self._closed_before]
        self._closed_before = frozenset(seen)
        self._state.reaping.update(closed)
        try:
            while closed:
                outcomes = yield Proposal(m.Op.REAP, [m.Reap(ino) for ino in closed])
                closed = [
                    ino
                    for ino, outcome in zip(closed, outcomes, strict=True)
                    if not outcome.code and not msgspec.msgpack.decode(outcome.body, type=m.Reaped).done
                ]
        finally:
            self._state.reaping.clear()

    def trim_files(self) -> Steps:
        """Remove what was cut off files, a few commands of each per round, so that a long cut holds up no other duty.
        Of a file that is done, clients are told that it takes less space now."""
        with self._store.read() as txn:
            files: Sequence[InodeId] = reads.cut_off(txn, _TRIMMED_PER_ROUND)
        for _ in range(_TRIMS_PER_ROUND):
            if not files:
                return
            outcomes = yield Proposal(m.Op.TRIM, [m.Trim(ino) for ino in files])
            done = {
                ino
                for ino, outcome in zip(files, outcomes, strict=True)
                if outcome.code or msgspec.msgpack.decode(outcome.body, type=m.Trimmed).done
            }
            for ino in done:
                if self._state.coherence is not None:
                    self._state.coherence.attributes_changed(ino)
            files = [ino for ino in files if ino not in done]

    def collect_garbage(self) -> Steps:
        """Order the deletion of what has been garbage for the grace time, and forget what all have deleted."""
        garbage, strays = self._state.garbage, self._state.strays
        if (yield from self._hold_deletion()):
            strays.clear()
            return
        if strays:
            found = tuple(ChunkId(chunk) for chunk in list(strays)[:_CHUNKS_PER_COMMAND])
            text = f"{len(found)} chunks belong to no file and no live session: added to the garbage"
            yield Proposal(m.Op.ADD_GARBAGE, [m.ChunkList(found)], text)
            strays.difference_update(found)
        with self._store.read() as txn:
            map_ = self._state.map_index(txn).map
            garbage.let_go(map_)
            if (room := garbage.room()) > 0:
                before_ns = self._clock.now_ns() - self._grace_ms * 1_000_000
                garbage.add(reads.garbage_before(txn, before_ns, room, garbage.knows), map_)
        if done := garbage.take_done(_CHUNKS_PER_COMMAND):
            yield Proposal(m.Op.DROP_GARBAGE, [m.ChunkList(done)])

    def _hold_deletion(self) -> Generator[Proposal, Sequence[m.Outcome], bool]:
        """Whether nothing may be deleted now. Also until this leader can judge; what it finds unusual it holds for good
        (:mod:`shoalfs.mds.brake`)."""
        with self._store.read() as txn:
            index = self._state.map_index(txn)
            if brake.is_held(txn) or not brake.all_heard(index, self._state.targets):
                return True
            reason = brake.reason_to_hold(txn, index, self._state.targets)
        if reason:
            hold = m.Upkeep(deletions_held=True, held_reason=reason)
            text = f"deletion is held until an operator releases it: {reason}"
            yield Proposal(m.Op.SET_UPKEEP, [hold], text, logging.ERROR)
        return bool(reason)
