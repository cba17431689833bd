"""REGISTER_TARGET: a chunkserver offers a disk. The same disk (uuid) is the same target, in a new epoch; one that was
removed is refused: what it holds is as old as its removal, and whoever removed it does not want it back."""

import msgspec

from shoalfs.mds import cluster, keys, placement, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import RegisterTarget, Target, TargetRegistered, TargetState
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, Overloaded, TargetRemoved
from shoalfs.transport.ids import TargetId
from shoalfs.transport.limits import TARGET_ID_MAX

_UUID_BYTES = 16
_NAME_CHARACTERS_MAX = 255
REMOVED = bytes(4)  # in the place of its number, which is never 0, for ever


def register_target(txn: Txn, context: Context, request: RegisterTarget) -> TargetRegistered:
    """It comes up; if it was down, it is syncing first, and if an operator drains it or it was taken out, that stays. A
    target that is new, or came back, may make new placement groups possible. Raises TargetRemoved."""
    _check(request)
    map_ = cluster.load_map(txn)
    before = _find(txn, request.uuid)
    counters = inodes.load_counters(txn)
    if before is None and counters.next_target > TARGET_ID_MAX:
        raise Overloaded("all target numbers have been used")
    state = _after(before) if before else TargetState.UP
    target = Target(
        id=before.id if before else TargetId(counters.next_target),
        uuid=request.uuid,
        node=request.node,
        address=request.address,
        epoch=before.epoch + 1 if before else 1,
        state=state,
        capacity_bytes=request.capacity_bytes,
        rack=request.rack,
        since_ns=before.since_ns if before and before.state is state else context.now_ns,
    )
    others = [t for t in map_.targets if t.id != target.id]
    targets = tuple(sorted([*others, target], key=lambda t: t.id))
    groups = placement.missing_groups(msgspec.structs.replace(map_, targets=targets))

    cluster.store_target(txn, target)
    if before is None:
        txn.put(keys.target_uuid(request.uuid), target.id.to_bytes(4, "big"))
        inodes.store_counters(txn, msgspec.structs.replace(counters, next_target=target.id + 1))
    for group in groups:
        cluster.store_group(txn, msgspec.structs.replace(group, epoch=map_.epoch + 1))
    cluster.store_epoch(txn, map_.epoch + 1)
    return TargetRegistered(target, map_.epoch + 1)


def _after(before: Target) -> TargetState:
    if before.state is not TargetState.DOWN:
        return before.state
    return TargetState.DRAINING if before.draining else TargetState.SYNCING


def _check(request: RegisterTarget) -> None:
    if len(request.uuid) != _UUID_BYTES or request.capacity_bytes < 0:
        raise BadMessage("a target has a uuid of 16 bytes and a capacity")
    if max(len(request.node), len(request.address), len(request.rack)) > _NAME_CHARACTERS_MAX:
        raise BadMessage(f"the names of node and rack, and the address, have at most {_NAME_CHARACTERS_MAX} characters")


def _find(txn: ReadTxn, uuid: bytes) -> Target | None:
    number = txn.get(keys.target_uuid(uuid))
    if number is None:
        return None
    if number == REMOVED:
        raise TargetRemoved("this target was removed from the cluster: empty its directory to use it again")
    return records.TARGET.require(txn, keys.target(TargetId(int.from_bytes(number, "big"))))
