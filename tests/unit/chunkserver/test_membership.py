"""What a chunkserver says to the metadata service, beat by beat."""

from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.mds.messages import HeartbeatReply, TargetOrders
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import (
    DELETES_PENDING_MAX,
    INVENTORY_PER_HEARTBEAT_MAX,
    ORDERS_PER_HEARTBEAT_MAX,
)

A, B = b"a" * 16, b"b" * 16


def condition(*inventory: int, failed: str = "") -> Condition:
    return Condition(1000, 10, 3, failed, tuple(map(ChunkId, inventory)))


def orders(*delete: int, target: int = 1, known: bool = True) -> HeartbeatReply:
    return HeartbeatReply(1, (TargetOrders(TargetId(target), known, tuple(map(ChunkId, delete))),))


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
    assert sent.targets[0].inventory == (5,)


def test_a_target_that_is_not_known_registers_again():
    membership = registered(A)
    beat(membership, orders(known=False))
    assert membership.unregistered() == [A]
    assert membership.heartbeat({A: condition()}).targets == ()
    membership.registered(A, TargetId(1), 99)
    assert membership.heartbeat({A: condition()}).targets[0].epoch == 99


def test_an_order_is_carried_out_once_and_reported_until_it_is_heard():
    membership = registered(A)
    beat(membership, orders(3, 4))
    assert membership.to_delete(A) == (3, 4)
    beat(membership, orders(3, 4))  # repeated while we work on it
    assert membership.to_delete(A) == (3, 4)
    membership.deleted(A, [ChunkId(3)])
    assert membership.to_delete(A) == (4,)
    lost = membership.heartbeat({A: condition()})
    assert lost.targets[0].deleted == (3,)
    assert beat(membership, orders(3, 4)).deleted == (3,)
    assert membership.heartbeat({A: condition()}).targets[0].deleted == ()


def test_an_order_that_comes_again_after_it_was_reported_is_carried_out_again():
    membership = registered(A)
    beat(membership, orders(3))
    membership.deleted(A, [ChunkId(3)])
    beat(membership, orders())
    beat(membership, orders(3))
    assert membership.to_delete(A) == (3,)


def test_orders_and_reports_are_bounded():
    membership = registered(A)
    for first in range(1, 10_000, 1000):
        beat(membership, orders(*range(first, first + 1000)))
    assert len(membership.to_delete(A)) == ORDERS_PER_HEARTBEAT_MAX
    count = 0
    while chunks := membership.to_delete(A):
        membership.deleted(A, chunks)
        count += len(chunks)
    assert count == DELETES_PENDING_MAX
    assert len(membership.heartbeat({A: condition()}).targets[0].deleted) == ORDERS_PER_HEARTBEAT_MAX


def test_targets_share_a_heartbeat():
    membership = registered(A, B)
    assert membership.inventory_max == INVENTORY_PER_HEARTBEAT_MAX // 2
    membership.answered(membership.heartbeat({A: condition(), B: condition()}), orders(*range(1, 1001), target=2))
    membership.deleted(B, membership.to_delete(B))
    sent = membership.heartbeat({A: condition(), B: condition()})
    assert [len(report.deleted) for report in sent.targets] == [0, 500]


def test_the_inventory_goes_round():
    membership = registered(A)
    full = tuple(range(1, INVENTORY_PER_HEARTBEAT_MAX + 1))
    membership.heartbeat({A: condition(*full)})  # not answered: the same part again
    assert membership.cursor(A) == 0
    beat(membership, orders(), *full)
    assert membership.cursor(A) == full[-1]
    beat(membership, orders(), 5000, 5001)
    assert membership.cursor(A) == 0


def test_orders_for_others_are_ignored():
    membership = registered(A)
    beat(membership, orders(3, target=9))
    assert membership.to_delete(A) == ()
