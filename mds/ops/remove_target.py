"""REMOVE_TARGET: forget a target for good. Its number is never given again, and its disk, should it come back, is
refused: its server, which may be running, drops it. An emptied directory is another target."""

import errno

from shoalfs.mds import cluster, keys, records
from shoalfs.mds.messages import MapChanged, RemoveTarget, TargetState
from shoalfs.mds.ops.context import Context
from shoalfs.mds.ops.register_target import REMOVED
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import TARGET_ID_MAX


def remove_target(txn: Txn, context: Context, request: RemoveTarget) -> MapChanged:
    """Raises ENOENT; EBUSY while any group names it or it is in service: nothing that may be the last copy goes."""
    known = 0 < request.target <= TARGET_ID_MAX
    target = records.TARGET.load(txn, keys.target(request.target)) if known else None
    if target is None:
        raise PosixError(errno.ENOENT, f"there is no target {request.target}")
    held = sum(target.id in group.holders for group in cluster.load_groups(txn))
    if held:
        raise PosixError(
            errno.EBUSY,
            f"target {target.id} still holds {held} placement groups: drain it and wait until they have moved",
        )
    if target.state in (TargetState.UP, TargetState.SYNCING):
        raise PosixError(errno.EBUSY, f"target {target.id} is in service: drain it first")
    txn.delete(keys.target(target.id))
    txn.put(keys.target_uuid(target.uuid), REMOVED)
    epoch = cluster.load_epoch(txn) + 1
    cluster.store_epoch(txn, epoch)
    return MapChanged(epoch)
