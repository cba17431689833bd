"""Bugs of the data protocol that can be planted: each takes one guard out of the product, and the exploration or a
random history must find that a promise is broken. What proves that is `test_planted_data.py`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import msgspec

from shoalfs.chunkserver import client, copier
from shoalfs.chunkserver.membership import Membership
from shoalfs.mds import brake, evictions, heartbeats, keys, reads, records, repairs, rounds, trash_list, upkeep
from shoalfs.mds.evictions import Evictions
from shoalfs.mds.messages import ChunkClass, TargetState
from shoalfs.mds.ops import add_garbage, change_group, commit_extents, create, mend, register_target, set_target_state
from shoalfs.mds.ops.table import OPERATIONS
from shoalfs.mds.repairs import Repairs
from shoalfs.mds.targets import GarbageWindow
from shoalfs.transport.ids import ChunkId
from sim import data_writer
from sim.planted import Bug, replaced

BUGS: dict[str, Bug] = {}


def bug(*where: str, seeds: int = 12) -> Callable[[Callable[[ExitStack], None]], Any]:
    """``where``: explorations and pools of histories (test_planted_data.py); ``seeds``: of each of the pools."""

    def note(plant: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
        BUGS[plant.__name__] = Bug(plant.__name__, plant, where, "", seeds)
        return plant

    return note


def _operation(stack: ExitStack, op: Any, make: Callable[[Any], Any]) -> None:
    """Replace what applies an operation."""
    stack.enter_context(patch.dict(OPERATIONS, {op: make(OPERATIONS[op])}))


# --- receipts and commits ---------------------------------------------------------------------------------------------


def _with_receipts(stack: ExitStack, change: Callable[[Any, Any, Any], Any]) -> None:
    """Let the check of receipts see others: ``change`` gets the transaction, the extent and the receipts."""

    def make(check: Any) -> Any:
        def _check_receipts(txn: Any, extent: Any, receipts: Any, epochs: Any, *, durable: bool) -> None:
            check(txn, extent, change(txn, extent, receipts), epochs, durable=durable)

        return _check_receipts

    replaced(stack, commit_extents, "_check_receipts", make)


@bug("old receipts")
def receipts_of_old_lives_count(stack: ExitStack) -> None:
    def change(txn: Any, extent: Any, receipts: Any) -> Any:
        now = {r.target: records.TARGET.require(txn, keys.target(r.target)).epoch for r in receipts}
        return [msgspec.structs.replace(r, target_epoch=now[r.target]) for r in receipts]

    _with_receipts(stack, change)


@bug("old receipts")
def a_target_that_returns_keeps_its_epoch(stack: ExitStack) -> None:
    def make(register: Any) -> Any:
        def register_target(txn: Any, context: Any, request: Any) -> Any:
            reply = register(txn, context, request)
            if reply.target.epoch == 1:
                return reply
            same = msgspec.structs.replace(reply.target, epoch=1)
            records.TARGET.store(txn, keys.target(same.id), same)
            return msgspec.structs.replace(reply, target=same)

        return register_target

    _operation(stack, m_op("REGISTER_TARGET"), make)


@bug("old map")
def receipts_of_others_than_members_are_passed_over(stack: ExitStack) -> None:
    """And the client, who syncs later, takes them for some that count."""

    def change(txn: Any, extent: Any, receipts: Any) -> Any:
        group = records.GROUP.require(txn, keys.group(extent.chunk >> 48))
        return [receipt for receipt in receipts if receipt.target in group.targets]

    _with_receipts(stack, change)


@bug("old receipts")
def one_receipt_is_enough(stack: ExitStack) -> None:
    def make(check: Any) -> Any:
        def _check_receipts(txn: Any, extent: Any, receipts: Any, epochs: Any, *, durable: bool) -> None:
            try:
                check(txn, extent, receipts, epochs, durable=durable)
            except commit_extents.StaleReceipt:
                if not receipts:
                    raise

        return _check_receipts

    replaced(stack, commit_extents, "_check_receipts", make)


@bug("repeated commit")
def garbage_may_be_linked(stack: ExitStack) -> None:
    def _check_reserved(txn: Any, session: Any, chunk: Any) -> Any:
        return records.CHUNK_USE.load(txn, keys.chunk_use(chunk))

    stack.enter_context(patch.object(commit_extents, "_check_reserved", _check_reserved))


@bug("old receipts")
def clients_bring_their_receipts_up_to_date(stack: ExitStack) -> None:
    """Instead of storing again what was refused."""

    def give_up_refused(refused: Any, epochs: Any) -> None:
        for unit in refused:
            fresh = tuple(msgspec.structs.replace(r, target_epoch=epochs[r.target]) for r in unit.stored.receipts)
            unit.stored = unit.stored._replace(receipts=fresh)

    stack.enter_context(patch.object(data_writer, "give_up_refused", give_up_refused))


@bug("made")
def files_are_made_whatever_their_receipts_say(stack: ExitStack) -> None:
    def make(check: Any) -> Any:
        def check_first(txn: Any, session: Any, pool: Any, placed: Any, receipts: Any) -> None:
            now = {r.target: records.TARGET.require(txn, keys.target(r.target)).epoch for r in receipts}
            fresh = tuple(msgspec.structs.replace(r, target_epoch=now[r.target]) for r in receipts)
            check(txn, session, pool, placed, fresh)

        return check_first

    replaced(stack, create, "check_first", make)


@bug("made again")
def a_file_that_is_told_of_again_is_filled_again(stack: ExitStack) -> None:
    stack.enter_context(patch.object(create, "_is_empty", lambda child: True))


# --- membership and epochs --------------------------------------------------------------------------------------------


@bug("returning")
def who_was_away_is_up_at_once(stack: ExitStack) -> None:
    def after(before: Any) -> TargetState:
        return TargetState.UP if before.state is TargetState.DOWN else before.state

    stack.enter_context(patch.object(register_target, "_after", after))


@bug("written off")
def going_down_does_not_begin_an_epoch(stack: ExitStack) -> None:
    def make(set_state: Any) -> Any:
        def set_target_state(txn: Any, context: Any, request: Any) -> Any:
            reply = set_state(txn, context, request)
            if request.state is TargetState.DOWN:
                target = records.TARGET.require(txn, keys.target(request.target))
                records.TARGET.store(txn, keys.target(target.id), msgspec.structs.replace(target, epoch=1))
            return reply

        return set_target_state

    assert set_target_state.set_target_state is OPERATIONS[m_op("SET_TARGET_STATE")]
    _operation(stack, m_op("SET_TARGET_STATE"), make)


@bug("returning")
def up_before_everything_was_compared(stack: ExitStack) -> None:
    stack.enter_context(patch.object(Repairs, "is_in_sync", lambda self, index, target: True))


# --- what is missing --------------------------------------------------------------------------------------------------


@bug("moving")
def what_was_seen_before_the_group_changed_counts(stack: ExitStack) -> None:
    def has_all(self: Any, group: Any, target: Any) -> bool:
        view = self._views.get(target)
        return view is not None and not view.lacking[group.id]

    stack.enter_context(patch.object(Repairs, "has_all", has_all))


@bug("moving")
def what_is_known_to_be_missing_does_not_count(stack: ExitStack) -> None:
    def has_all(self: Any, group: Any, target: Any) -> bool:
        view = self._views.get(target)
        return view is not None and view.swept_epoch >= group.epoch

    stack.enter_context(patch.object(Repairs, "has_all", has_all))


@bug("moving")
def nobody_is_kept_who_is_leaving(stack: ExitStack) -> None:
    stack.enter_context(patch.object(upkeep, "_needed", lambda view, group: ()))


@bug("moving")
def an_ordered_copy_counts_as_made(stack: ExitStack) -> None:
    def make(orders: Any) -> Any:
        def ordered(self: Any, txn: Any, index: Any, target: Any, *more: Any) -> Any:
            given = orders(self, txn, index, target, *more)
            for order in given:
                self._views[target].drop(order.chunk)
            return given

        return ordered

    replaced(stack, Repairs, "orders", make)


@bug("evicting")
def inventories_tell_a_map_that_came_after_an_order(stack: ExitStack) -> None:
    """While a deletion of before is under way."""

    def make(next_part: Any) -> Any:
        return lambda self, uuid: next_part(self, uuid)._replace(map_epoch=self._members[uuid].map_epoch)

    replaced(stack, Membership, "next_part", make)


@bug("damage")
def inventories_are_compared_without_hashes(stack: ExitStack) -> None:
    """A chunk that is there is right."""

    def make(compare: Any) -> Any:
        def _compare(self: Any, txn: Any, index: Any, view: Any, report: Any, now_ms: int) -> Any:
            uses = [records.CHUNK_USE.load(txn, keys.chunk_use(chunk)) for chunk in report.inventory]
            hashes = b"".join(
                index.piece(report.target, chunk, use)[1] if use else bytes(16)
                for chunk, use in zip(report.inventory, uses, strict=True)
            )
            return compare(self, txn, index, view, msgspec.structs.replace(report, inventory_hashes=hashes), now_ms)

        return _compare

    replaced(stack, Repairs, "_compare", make)


@bug("damage")
def what_scrubbing_finds_is_not_looked_at(stack: ExitStack) -> None:
    stack.enter_context(patch.object(Repairs, "suspect", lambda self, *_: None))


@bug("damage")
def a_suspected_copy_is_not_read(stack: ExitStack) -> None:
    def make(is_here: Any) -> Any:
        async def _is_here(target: Any, order: Any) -> bool:
            return bool(await is_here(target, msgspec.structs.replace(order, deep=False)))

        return _is_here

    replaced(stack, copier, "_is_here", make)


@bug("fragments")
def fragments_are_rebuilt_for_the_next_place(stack: ExitStack) -> None:
    def make(rebuild: Any) -> Any:
        def _rebuild(index: Any, target: Any, chunk: Any, use: Any, good: Any) -> Any:
            plan = rebuild(index, target, chunk, use, good)
            places = plan.data + plan.parity if plan else 1
            return plan and msgspec.structs.replace(plan, place=(plan.place + 1) % places)

        return _rebuild

    replaced(stack, repairs, "_rebuild", make)


@bug("damage")
def readers_do_not_compare_with_the_extent(stack: ExitStack) -> None:
    stack.enter_context(patch.object(client, "hashes_fit", lambda *_: True))


# --- deletion ---------------------------------------------------------------------------------------------------------


@bug("overwriting")
def garbage_without_a_grace(stack: ExitStack) -> None:
    def make(garbage_before: Any) -> Any:
        return lambda txn, before_ns, *more: garbage_before(txn, 1 << 62, *more)

    replaced(stack, reads, "garbage_before", make)


@bug("moved away")
def what_a_move_left_behind_goes_without_a_grace(stack: ExitStack) -> None:
    def make(init: Any) -> Any:
        return lambda self, grace_ms: init(self, 0)

    replaced(stack, Evictions, "__init__", make)


@bug("moved away")
def what_a_move_left_behind_goes_whatever_is_missing(stack: ExitStack) -> None:
    stack.enter_context(patch.dict(evictions._GOES, {ChunkClass.LINKED: True}))


@bug("slow writer")
def chunks_of_live_sessions_are_unknown(stack: ExitStack) -> None:
    stack.enter_context(patch.object(add_garbage, "reserved_by", lambda txn, chunk: None))
    stack.enter_context(patch.object(reads, "reserved_by", lambda txn, chunk: None))


@bug("copies", "safe copies")
def numbers_never_given_out_are_unknown_too(stack: ExitStack) -> None:
    def make(load: Any) -> Any:
        return lambda txn: msgspec.structs.replace(load(txn), next_sequence=1 << 48)

    def make_counts(counts: Any) -> Any:
        return lambda txn: msgspec.structs.replace(counts(txn), next_sequence=1 << 48)

    stack.enter_context(patch.object(add_garbage, "is_stray", _stray_by_all_means))
    replaced(stack, reads, "counts", make_counts)


def _stray_by_all_means(txn: Any, chunk: ChunkId) -> bool:
    used = txn.get(keys.chunk_use(chunk)) is not None or txn.get(keys.garbage(chunk)) is not None
    return not used and add_garbage.reserved_by(txn, chunk) is None


@bug("overwritten")
def garbage_is_forgotten_when_the_first_has_deleted_it(stack: ExitStack) -> None:
    def make(confirm: Any) -> Any:
        def confirmed(self: Any, target: Any, deleted: Any) -> None:
            for chunk in deleted:
                for other in list(self._waiting.get(chunk, ())):
                    confirm(self, other, (chunk,))

        return confirmed

    replaced(stack, GarbageWindow, "confirm", make)


@bug("overwritten")
def a_deletion_is_reported_when_it_is_begun(stack: ExitStack) -> None:
    def make(begin: Any) -> Any:
        def begin_deleting(self: Any, uuid: Any) -> Any:
            chunks = begin(self, uuid)
            self._members[uuid].deleted.update(dict.fromkeys(chunks))
            return chunks

        return begin_deleting

    replaced(stack, Membership, "begin_deleting", make)


@bug("copies", "safe copies")
def deletion_that_is_held_goes_on(stack: ExitStack) -> None:
    def make(load: Any) -> Any:
        return lambda txn: msgspec.structs.replace(load(txn), deletions_held=False)

    stack.enter_context(patch.object(brake, "is_held", lambda txn: False))
    fake = make(heartbeats.cluster.load_upkeep)

    class Cluster:
        load_upkeep = staticmethod(fake)

    stack.enter_context(patch.object(heartbeats, "cluster", Cluster))


# --- files ------------------------------------------------------------------------------------------------------------


@bug("copies", "safe copies", "three", seeds=20)
def the_trash_is_emptied_before_its_time(stack: ExitStack) -> None:
    def make(due: Any) -> Any:
        return lambda txn, now_ns, count: due(txn, 1 << 62, count)

    replaced(stack, trash_list, "due", make)
    assert rounds.trash_list is trash_list


@bug("copies")
def repairs_are_made_whatever_has_changed(stack: ExitStack) -> None:
    def make(run: Any) -> Any:
        def unguarded(txn: Any, context: Any, request: Any) -> Any:
            mended = records.COUNTERS.require(txn, keys.COUNTERS).mended
            seen = tuple((key, mend._present(txn, key)) for key, _ in request.seen)
            return run(txn, context, msgspec.structs.replace(request, mended=mended, seen=seen))

        return unguarded

    assert mend.mend is OPERATIONS[m_op("MEND")]
    _operation(stack, m_op("MEND"), make)


@bug("many leaving")
def who_was_leaving_before_is_forgotten(stack: ExitStack) -> None:
    def make(change: Any) -> Any:
        def only_the_last(txn: Any, context: Any, request: Any) -> Any:
            before = records.GROUP.require(txn, keys.group(request.group))
            reply = change(txn, context, request)
            group = records.GROUP.require(txn, keys.group(request.group))
            kept = tuple(target for target in group.leaving if target in before.targets)
            records.GROUP.store(txn, keys.group(group.id), msgspec.structs.replace(group, leaving=kept))
            return reply

        return only_the_last

    assert change_group.change_group is OPERATIONS[m_op("CHANGE_GROUP")]
    _operation(stack, m_op("CHANGE_GROUP"), make)


def m_op(name: str) -> Any:
    from shoalfs.mds.messages import Op

    return Op[name]
