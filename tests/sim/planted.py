"""Bugs that can be planted: each takes one guard out, and a checker of the simulator must find it.

A switch is a context manager that patches the code under test. What proves that it is found is `test_planted.py`; a
crash of the code under test does not count, only what a checker says (`Broken`).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from unittest.mock import patch

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import install, journal_format, keys, raft_guard, raft_leading, records
from shoalfs.mds.journal import Journal
from shoalfs.mds.memory import MemoryTxn
from shoalfs.mds.raft import Core
from shoalfs.mds.raft_elections import NOW_OR_NEVER, Elections
from shoalfs.mds.raft_guard import GuardedRaft
from shoalfs.mds.raft_leading import Leadership
from shoalfs.mds.raft_members import Members
from shoalfs.mds.raft_messages import Appended
from shoalfs.mds.raft_peers import Fit, Follower
from sim.machines import CheckpointStore, Image, StoreMachine


@dataclass(frozen=True)
class Bug:
    """``where``: the worlds in which it is looked for, see test_planted.py. ``hazard``: of docs/raft.md."""

    name: str
    plant: Callable[[ExitStack], None]
    where: tuple[str, ...]
    hazard: str = ""
    seeds: int = 40


BUGS: dict[str, Bug] = {}


def bug(*where: str, hazard: str = "", seeds: int = 40) -> Callable[[Callable[[ExitStack], None]], Any]:
    def note(plant: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
        name = plant.__name__
        BUGS[name] = Bug(name, plant, where, hazard, seeds)
        return plant

    return note


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    with ExitStack() as stack:
        bug.plant(stack)
        yield


def replaced(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by what ``make`` makes of the original."""
    stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))


# --- durability ---------------------------------------------------------------------------------------------
@bug("raft-power", "state-power", hazard="1")
def acknowledged_before_the_sync(stack: ExitStack) -> None:
    def make(emit: Any) -> Any:
        def _emit(self: Any, peer: Any, body: Any, payload: Any = (), *, after: int = 0) -> None:
            emit(self, peer, body, payload, after=0 if isinstance(body, Appended) else after)

        return _emit

    replaced(stack, GuardedRaft, "_emit", make)


@bug("raft-power", "state-power", hazard="1")
def everything_appended_counts_as_durable(stack: ExitStack) -> None:
    """Acknowledgements and commits, votes excepted."""
    stack.enter_context(patch.object(Journal, "durable_index", property(lambda self: self.last_index)))


@bug("slow disks", hazard="1", seeds=80)
def applied_before_it_is_on_this_disk(stack: ExitStack) -> None:
    """Entries that a majority of others has are applied here at once; a power loss leaves a store ahead of its log."""

    def apply_committed(self: Any) -> int:
        first, end = self.applied_index + 1, self._core.commit_index
        while first <= end:
            entries = self._journal.slice(first, min(end - first + 1, 8))
            payloads = [(index, term, raft_guard.payload_of(command)) for command, index, term in entries]
            results = self._machine.apply(payloads, self._history.apply_through(entries[-1][1]))
            for (_, index, term), result in zip(entries, results, strict=True):
                self._applied.append(raft_guard.Applied(index, term, result))
            first += len(entries)
        return first - 1

    stack.enter_context(patch.object(GuardedRaft, "apply_committed", apply_committed))


@bug("raft-power", hazard="2", seeds=120)
def term_and_vote_are_only_in_memory(stack: ExitStack) -> None:
    def set_hard_state(self: Any, term: int, voted_for: int) -> None:
        self._term, self._voted_for = term, voted_for

    stack.enter_context(patch.object(Journal, "set_hard_state", set_hard_state))


@bug("vote lost", hazard="2")
def vote_given_before_the_sync(stack: ExitStack) -> None:
    def make(core_sends: Any) -> Any:
        def sends(self: Any, peer: Any, message: dict[str, Any]) -> None:
            emit = self._emit
            if message["type"] == "response_vote":
                self._emit = lambda peer, body, *, after=0: emit(peer, body)
            core_sends(self, peer, message)
            self._emit = emit

        return sends

    replaced(stack, Elections, "core_sends", make)


@bug("raft-power", "state-power", hazard="3", seeds=120)
def torn_tail_is_taken_for_entries(stack: ExitStack) -> None:
    """No checksum: whatever has the length of a record is one."""
    unpack = journal_format._RECORD

    def decode(data: bytes, offset: int, salt: int) -> Any:
        head = journal_format.RECORD_HEADER_BYTES
        if len(data) - offset < head or data[offset : offset + 4] != journal_format._RECORD_MAGIC:
            return None
        _, _, length, kind, number, synced, index, term = unpack.unpack_from(data, offset)
        payload = data[offset + head : offset + head + length].ljust(length, b"\0")
        return journal_format.Record(journal_format.Kind(kind), index, term, payload), number, synced

    stack.enter_context(patch.object(journal_format, "_decode_record", decode))


@bug("raft-snapshot", "state-snapshot", hazard="9")
def compaction_drops_what_no_checkpoint_has(stack: ExitStack) -> None:
    stack.enter_context(patch.object(GuardedRaft, "droppable_index", lambda self, held=None: self.applied_index))


@bug("raft-power", "raft-kill", hazard="14")
def applied_index_is_not_taken_from_the_store(stack: ExitStack) -> None:
    """The log is applied from its beginning again at each start."""

    def make(init: Any) -> Any:
        def begin(self: Any, guard: Any, times: Any, journal: Any, applied_index: int) -> None:
            init(self, guard, times, journal, applied_index)
            self._SyncObj__raftLastApplied = journal.base_index

        return begin

    replaced(stack, Core, "__init__", make)


# --- replication --------------------------------------------------------------------------------------------
def _stock_fit(log: Any, _settled: int, prev_index: int, prev_term: int, entries: Any) -> Fit:
    last = log.last_index
    if prev_index > last:
        return Fit(False, last + 1, last, [])
    if prev_index >= log.base_index and log.term_at(prev_index) != prev_term:
        return Fit(False, prev_index, last, [])
    entries = [entry for entry in entries if entry[1] > log.base_index]
    keep = max(prev_index, log.base_index)
    if keep < last and not entries:
        log.truncate_after(keep)
    return Fit(True, prev_index + len(entries), keep, entries)


@bug("raft-power", "raft-network", hazard="4", seeds=80)
def matching_entries_are_cut(stack: ExitStack) -> None:
    """As pysyncobj does, after each message whose previous entry is not the last."""
    stack.enter_context(patch.object(raft_guard, "fit", _stock_fit))


@bug("sent again", hazard="5")
def acknowledgements_move_the_next_index_back(stack: ExitStack) -> None:
    def agreed(self: Any, sequence: Any, index: int, now: float) -> None:
        self._answered(sequence, now)
        self.match_index = max(self.match_index, index)
        self.next_index = self.match_index + 1

    stack.enter_context(patch.object(Follower, "agreed", agreed))


@bug("late refusal", hazard="6")
def late_refusals_rewind(stack: ExitStack) -> None:
    def refused(self: Any, sequence: Any, index: int, now: float) -> None:
        self._answered(sequence, now)
        self.next_index = index

    stack.enter_context(patch.object(Follower, "refused", refused))


@bug("old acknowledgement", hazard="7")
def acknowledgements_of_older_terms_count(stack: ExitStack) -> None:
    def make(on_appended: Any) -> Any:
        def _on_appended(self: Any, sender: Any, answer: Any, log_id: bytes) -> None:
            if self.is_leader and answer.matches:
                answer = msgspec.structs.replace(answer, term=self.term)
            on_appended(self, sender, answer, log_id)

        return _on_appended

    replaced(stack, GuardedRaft, "_on_appended", make)


@bug("raft-network", "raft-power", hazard="8", seeds=120)
def commit_index_is_taken_without_looking(stack: ExitStack) -> None:
    """The leader's, over entries that nobody has compared."""

    def make_on_append(on_append: Any) -> Any:
        def _on_append(self: Any, sender: Any, append: Any, entries: Any) -> None:
            self._core.planted_commit_index = append.commit_index
            on_append(self, sender, append, entries)

        return _on_append

    def make_deliver(deliver: Any) -> Any:
        def _deliver(self: Any, sender: Any, message: dict[str, Any]) -> None:
            if message["type"] == "append_entries":
                message["commit_index"] = self.planted_commit_index
            deliver(self, sender, message)

        return _deliver

    replaced(stack, GuardedRaft, "_on_append", make_on_append)
    replaced(stack, Core, "deliver", make_deliver)


@bug("far behind", hazard="19")
def conflicts_are_found_one_entry_at_a_time(stack: ExitStack) -> None:
    def make(refused: Any) -> Any:
        def _refused(self: Any, sequence: Any, index: int, now: float) -> None:
            refused(self, sequence, max(index, self.next_index - 1), now)

        return _refused

    replaced(stack, Follower, "refused", make)


@bug("large entries", hazard="17")
def messages_grow_without_bound(stack: ExitStack) -> None:
    stack.enter_context(patch.object(raft_leading, "fitting", list))


# --- leases and elections -----------------------------------------------------------------------------------
@bug("lease", "raft-network", "raft-power", hazard="13")
def lease_from_the_answer(stack: ExitStack) -> None:
    def make(agreed: Any) -> Any:
        def _agreed(self: Any, sequence: Any, index: int, now: float) -> None:
            agreed(self, sequence, index, now)
            self.agreed_at = now

        return _agreed

    replaced(stack, Follower, "agreed", make)


@bug("raft-power", "raft-kill", "raft-network", hazard="13", seeds=120)
def lease_before_the_first_entry_of_the_term(stack: ExitStack) -> None:
    stack.enter_context(patch.object(GuardedRaft, "_has_begun_to_lead", lambda self: self.is_leader))


@bug("raft-network", "state-network", hazard="13")
def leaders_read_without_a_lease(stack: ExitStack) -> None:
    stack.enter_context(patch.object(GuardedRaft, "lease_until", lambda self, now: now + 1))


@bug("lease", "raft-network", hazard="12", seeds=80)
def votes_though_a_leader_was_just_heard(stack: ExitStack) -> None:
    stack.enter_context(patch.object(GuardedRaft, "_refuses_votes", lambda self: False))


@bug("lease, voter restarts", hazard="12", seeds=60)
def votes_right_after_a_start(stack: ExitStack) -> None:
    def make(init: Any) -> Any:
        def begin(self: Any, *args: Any, **more: Any) -> None:
            init(self, *args, **more)
            self._started_at = NOW_OR_NEVER

        return begin

    replaced(stack, GuardedRaft, "__init__", make)


@bug("cut off for long", hazard="12")
def no_vote_on_trial(stack: ExitStack) -> None:
    def consider_standing(self: Any, core: Any, members: Any, now: float) -> None:
        """pysyncobj stands by itself."""

    stack.enter_context(patch.object(Elections, "consider_standing", consider_standing))


@bug("repeated vote", hazard="-")
def repeated_votes_count_again(stack: ExitStack) -> None:
    def make(on_vote: Any) -> Any:
        def _on_vote(self: Any, core: Any, members: Any, sender: Any, vote: Any) -> None:
            self._votes.clear()
            on_vote(self, core, members, sender, vote)

        return _on_vote

    replaced(stack, Elections, "on_vote", make)


@bug("raft-network", "raft-power", hazard="-", seeds=120)
def votes_for_who_lacks_entries(stack: ExitStack) -> None:
    def make(deliver_ask: Any) -> Any:
        def _deliver_ask(self: Any, core: Any, sender: Any, term: int, last_index: int, last_term: int) -> None:
            is_real = last_index >= 0
            deliver_ask(self, core, sender, term, 1 << 40 if is_real else -1, term if is_real else -1)

        return _deliver_ask

    def make_on_ask(on_ask: Any) -> Any:
        def _on_ask(self: Any, core: Any, sender: Any, ask: Any, *, refuses: bool) -> None:
            ask = msgspec.structs.replace(ask, last_index=1 << 40, last_term=ask.term)
            on_ask(self, core, sender, ask, refuses=refuses)

        return _on_ask

    replaced(stack, Elections, "_deliver_ask", make)
    replaced(stack, Elections, "on_ask_vote", make_on_ask)


# --- snapshots ----------------------------------------------------------------------------------------------
def _reset_whatever_is_there(journal: Journal, index: int, term: int, *, sync: bool = True) -> None:
    if journal.base_index < journal.last_index:
        journal.truncate_after(journal.base_index)
    if journal.term_at(index) != term:
        journal.reset(index, term)
    if sync:
        journal.sync()


@bug("raft-snapshot", "snapshot over acknowledged entries", hazard="6")
def snapshots_replace_logs_that_hold_more(stack: ExitStack) -> None:
    stack.enter_context(patch.object(install, "is_wanted", lambda *_: True))
    stack.enter_context(patch.object(install, "reset_log", _reset_whatever_is_there))


@bug("crash after installation", hazard="9")
def log_is_reset_without_a_sync(stack: ExitStack) -> None:
    def reset_log(journal: Journal, index: int, term: int) -> None:
        if journal.term_at(index) != term:
            journal.reset(index, term)

    stack.enter_context(patch.object(install, "reset_log", reset_log))


@bug("raft-snapshot", hazard="9", seeds=80)
def log_is_not_reset_by_a_snapshot(stack: ExitStack) -> None:
    stack.enter_context(patch.object(install, "reset_log", lambda *_: None))


# --- members ------------------------------------------------------------------------------------------------
@bug("two changes", hazard="20")
def two_changes_of_members_at_once(stack: ExitStack) -> None:
    stack.enter_context(patch.object(GuardedRaft, "may_change_members", lambda self: self.is_leader))


@bug("learners", hazard="20")
def learners_count_for_commits(stack: ExitStack) -> None:
    def make(follow: Any) -> Any:
        def _follow(self: Any, members: Members) -> None:
            follow(self, members)
            self._voters = members.nodes

        return _follow

    replaced(stack, Leadership, "follow", make)


@bug("wiped", hazard="21")
def a_wiped_disk_is_taken_back(stack: ExitStack) -> None:
    stack.enter_context(patch.object(Members, "objection", lambda self, node, log_id: ""))
    stack.enter_context(patch.object(GuardedRaft, "_is_heard", lambda self, message: True))


# --- the state machine --------------------------------------------------------------------------------------
@bug("state-network", "state-kill", hazard="15")
def repetitions_are_carried_out_again(stack: ExitStack) -> None:
    def make(get: Any) -> Any:
        return lambda self, key: None if key[:1] == b"R" else get(self, key)

    replaced(stack, MemoryTxn, "get", make)


def _crash_loses(stack: ExitStack, lose: Callable[[dict[bytes, bytes], Image], None]) -> None:
    """What a kill leaves of the store is not what one transaction wrote: ``lose`` gets the rows and the last
    checkpoint."""

    def make(image: Any) -> Any:
        def _image(self: Any, *, durable: bool) -> Image:
            left = image(self, durable=durable)
            if durable:
                return left
            rows = dict(left.content)
            lose(rows, self.store.on_disk)
            index = records.APPLIED.require(_Rows(rows), keys.APPLIED).index
            return Image(index, left.term, rows)

        return _image

    replaced(stack, StoreMachine, "image", make)


class _Rows(MemoryTxn):
    def __init__(self, rows: dict[bytes, bytes]) -> None:
        super().__init__(CheckpointStore(rows).rows)


@bug("state-kill", "state-power", hazard="15")
def answers_are_recorded_apart_from_effects(stack: ExitStack) -> None:
    def lose(rows: dict[bytes, bytes], before: Image) -> None:
        for key in [key for key in rows if key[:1] == b"R"]:
            del rows[key]
        rows.update({key: value for key, value in before.content.items() if key[:1] == b"R"})

    _crash_loses(stack, lose)


@bug("state-kill", "state-power", hazard="14")
def applied_index_is_saved_after_the_effects(stack: ExitStack) -> None:
    """A crash in between: entries are applied again."""

    def lose(rows: dict[bytes, bytes], before: Image) -> None:
        rows[keys.APPLIED] = before.content[keys.APPLIED]

    _crash_loses(stack, lose)


@bug("state-kill", "state-power", hazard="14")
def applied_index_is_saved_before_the_effects(stack: ExitStack) -> None:
    """A crash in between: entries are never applied."""

    def lose(rows: dict[bytes, bytes], before: Image) -> None:
        applied = rows[keys.APPLIED]
        rows.clear()
        rows.update(before.content)
        rows[keys.APPLIED] = applied

    _crash_loses(stack, lose)


@bug("state-network", "state-kill", hazard="14")
def applying_looks_at_a_clock(stack: ExitStack) -> None:
    ticks = count(1)

    def make(changed: Any) -> Any:
        return lambda inode, now_ns, **fields: changed(inode, now_ns + next(ticks), **fields)

    replaced(stack, inodes, "changed", make)
