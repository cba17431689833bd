"""What a chunkserver says to the metadata service, beat by beat."""

from shoalfs.chunkserver.membership import Condition, Membership, Part
from shoalfs.mds.messages import CopyFailed, CopyOrder, CopySource, HeartbeatReply, TargetOrders
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import (
    DAMAGED_REPORTED_MAX,
    INVENTORY_HURRIED_MAX,
    INVENTORY_PER_HEARTBEAT_MAX,
    ORDERS_PER_HEARTBEAT_MAX,
)

A, B = b"a" * 16, b"b" * 16
ALL_IDS = (1 << 64) - 1


def condition(*inventory: int, failed: str = "", part: Part | None = None) -> Condition:
    chunks = tuple(map(ChunkId, inventory))
    return Condition(1000, 10, 3, failed, part or Part(ChunkId(0), 1000, 1), chunks, b"h" * 16 * len(chunks))


def copy_order(chunk: int) -> CopyOrder:
    return CopyOrder(ChunkId(chunk), 10, b"h" * 16, (CopySource(TargetId(2), "memory:2"),))


def orders(
    *delete: int, target: int = 1, known: bool = True, copy: tuple[int, ...] = (), epoch: int = 1, **more: int
) -> HeartbeatReply:
    copies = tuple(map(copy_order, copy))
    return HeartbeatReply(epoch, (TargetOrders(TargetId(target), known, tuple(map(ChunkId, delete)), copies, **more),))


def registered(*uuids: bytes) -> Membership:
    membership = Membership("node", uuids)
    for number, uuid in enumerate(uuids, 1):
        membership.registered(uuid, TargetId(number), 10 + number)
    return membership


def beat(membership: Membership, reply: HeartbeatReply, *inventory: int):
    sent = membership.heartbeat({A: condition(*inventory)})
    membership.answered(sent, reply)
    return sent.targets[0]


def test_only_registered_targets_are_reported():
    membership = Membership("node", [A, B])
    assert membership.unregistered() == [A, B]
    membership.registered(B, TargetId(7), 3)
    assert membership.unregistered() == [A]
    sent = membership.heartbeat({A: condition(), B: condition(5, failed="broken")})
    assert [(report.target, report.epoch, report.failed) for report in sent.targets] == [(7, 3, "broken")]
    assert (sent.targets[0].inventory, sent.targets[0].inventory_hashes) == ((5,), b"h" * 16)


def test_a_target_that_is_not_known_registers_again_and_forgets_its_orders():
    membership = registered(A)
    beat(membership, orders(3, copy=(4,)))
    beat(membership, orders(known=False))
    assert membership.unregistered() == [A]
    assert membership.heartbeat({A: condition()}).targets == ()
    assert membership.begin_deleting(A) == ()
    assert membership.begin_copy() is None
    membership.registered(A, TargetId(1), 99)
    assert membership.heartbeat({A: condition()}).targets[0].epoch == 99


# --- deletions ------------------------------------------------------------------------------------------------------


def test_an_order_is_carried_out_once_and_reported_until_it_is_heard():
    membership = registered(A)
    beat(membership, orders(3, 4))
    assert membership.begin_deleting(A) == (3, 4)
    membership.end_deleting(A, [ChunkId(3)])
    assert membership.begin_deleting(A) == (4,), "one of them could not be deleted"
    membership.end_deleting(A, ())
    assert beat(membership, orders(4)).deleted == (3,)
    assert beat(membership, orders(3)).deleted == ()
    assert membership.begin_deleting(A) == (3,), "ordered again after it was reported"


def test_a_deletion_is_reported_again_if_nobody_answered():
    membership = registered(A)
    beat(membership, orders(3))
    membership.end_deleting(A, membership.begin_deleting(A))
    assert membership.heartbeat({A: condition()}).targets[0].deleted == (3,)
    assert beat(membership, orders(3)).deleted == (3,)
    assert membership.heartbeat({A: condition()}).targets[0].deleted == ()


def test_what_is_not_ordered_any_more_is_not_deleted():
    membership = registered(A)
    beat(membership, orders(3, 4))
    beat(membership, orders(4))
    assert membership.begin_deleting(A) == (4,)


def test_orders_and_reports_are_bounded():
    membership = registered(A, B)
    membership.answered(membership.heartbeat({A: condition(), B: condition()}), orders(*range(1, 2000), target=2))
    chunks = membership.begin_deleting(B)
    assert len(chunks) == ORDERS_PER_HEARTBEAT_MAX
    membership.end_deleting(B, chunks)
    sent = membership.heartbeat({A: condition(), B: condition()})
    assert [len(report.deleted) for report in sent.targets] == [0, ORDERS_PER_HEARTBEAT_MAX // 2]


def test_orders_for_others_are_ignored():
    membership = registered(A)
    beat(membership, orders(3, target=9, copy=(4,)))
    assert membership.begin_deleting(A) == ()
    assert membership.begin_copy() is None


# --- inventory ------------------------------------------------------------------------------------------------------


def test_the_service_says_which_part_of_the_inventory_is_next():
    membership = registered(A, B)
    assert membership.next_part(A) == (0, INVENTORY_PER_HEARTBEAT_MAX // 2, 0)
    assert not membership.is_hurried
    beat_both(membership, orders(inventory_after=77, inventory_count=1 << 20, epoch=5))
    assert membership.next_part(A) == (77, INVENTORY_HURRIED_MAX // 2, 5)
    assert membership.is_hurried
    membership.registered(A, TargetId(1), 12)
    assert membership.next_part(A).after == 0


def beat_both(membership: Membership, reply: HeartbeatReply) -> None:
    membership.answered(membership.heartbeat({A: condition(), B: condition()}), reply)


def test_a_part_says_how_far_it_goes():
    membership = registered(A)
    part = Part(ChunkId(4), 2, 3)
    full = membership.heartbeat({A: condition(5, 9, part=part)}).targets[0]
    assert (full.inventory_after, full.inventory_through, full.map_epoch) == (4, 9, 3)
    last = membership.heartbeat({A: condition(5, part=part)}).targets[0]
    assert last.inventory_through == ALL_IDS
    assert membership.heartbeat({A: condition(part=part)}).targets[0].inventory_through == ALL_IDS


def test_while_an_old_deletion_is_under_way_the_inventory_is_as_of_its_map():
    membership = registered(A)
    beat(membership, orders(3, epoch=5))
    chunks = membership.begin_deleting(A)
    beat(membership, orders(epoch=6))
    assert membership.next_part(A).map_epoch == 5
    membership.end_deleting(A, chunks)
    assert membership.next_part(A).map_epoch == 6


# --- copies ---------------------------------------------------------------------------------------------------------


def test_a_copy_is_made_once_and_reported_until_it_is_heard():
    membership = registered(A)
    beat(membership, orders(copy=(3, 4)))
    assert membership.begin_copy() == (A, copy_order(3))
    beat(membership, orders(copy=(3, 4)))  # repeated while we work on it
    assert membership.begin_copy() == (A, copy_order(4))
    assert membership.begin_copy() is None
    membership.end_copy(A, ChunkId(3), copied=True, failures=())
    assert not membership.has_results, "the other one is still under way"
    failed = CopyFailed(ChunkId(4), TargetId(2), 3001)
    membership.end_copy(A, ChunkId(4), copied=False, failures=[failed])
    assert membership.has_results
    assert membership.heartbeat({A: condition()}).targets[0].copied == (3,), "nobody answers"
    sent = beat(membership, orders())
    assert (sent.copied, sent.not_copied) == ((3,), (failed,))
    assert not membership.has_results
    beat(membership, orders(copy=(4,)))
    assert membership.begin_copy() == (A, copy_order(4))


def test_what_is_not_ordered_any_more_is_not_copied():
    membership = registered(A)
    beat(membership, orders(copy=(3, 4)))
    beat(membership, orders(copy=(4,)))
    assert membership.begin_copy() == (A, copy_order(4))


def test_damage_is_reported_until_it_is_heard_and_never_without_bound():
    membership = registered(A)
    assert membership.found_damaged(A, ChunkId(5))
    assert membership.heartbeat({A: condition()}).targets[0].damaged == (5,)
    assert beat(membership, orders()).damaged == (5,)
    assert beat(membership, orders()).damaged == ()
    assert all(membership.found_damaged(A, ChunkId(chunk)) for chunk in range(1, DAMAGED_REPORTED_MAX + 1))
    assert not membership.found_damaged(A, ChunkId(DAMAGED_REPORTED_MAX + 1))
