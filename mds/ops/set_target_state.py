"""SET_TARGET_STATE: declare a target down, drain it, take it out, or end its draining."""

import errno

import msgspec

from shoalfs.mds import cluster, keys, records
from shoalfs.mds.messages import MapChanged, SetTargetState, TargetState
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError

_UP, _DOWN, _DRAINING = TargetState.UP, TargetState.DOWN, TargetState.DRAINING
_OUT, _SYNCING = TargetState.OUT, TargetState.SYNCING
_ALLOWED = {
    _UP: frozenset({_DOWN, _DRAINING, _OUT}),
    _DOWN: frozenset({_DRAINING, _OUT}),
    _DRAINING: frozenset({_UP, _SYNCING, _DOWN, _OUT}),
    _OUT: frozenset({_DOWN, _SYNCING}),
    _SYNCING: frozenset({_UP, _DOWN, _DRAINING, _OUT}),
}
"""From each state, where this operation may lead. Back in service after down is only by registering: who was away
must say so itself, gets a new epoch and is syncing first. An operator may resume what is draining or out: if it is
not there, its silence takes it down again."""
_TARGET_ID_MAX = (1 << 32) - 1


def set_target_state(txn: Txn, context: Context, request: SetTargetState) -> MapChanged:
    """Raises ENOENT for an unknown target and EINVAL for a change that is not allowed. The state it is in
    already is no change. Declaring it down begins a new epoch, which voids its receipts."""
    known = 0 < request.target <= _TARGET_ID_MAX
    target = records.TARGET.load(txn, keys.target(request.target)) if known else None
    if target is None:
        raise PosixError(errno.ENOENT, f"there is no target {request.target}")
    map_epoch = cluster.load_epoch(txn)
    if request.state is target.state:
        return MapChanged(map_epoch)
    if request.state not in _ALLOWED[target.state]:
        raise PosixError(errno.EINVAL, f"target {target.id} is {target.state.name}: it cannot be {request.state.name}")
    epoch = target.epoch + (request.state is TargetState.DOWN)
    changed = msgspec.structs.replace(target, state=request.state, epoch=epoch, since_ns=context.now_ns)
    cluster.store_target(txn, changed)
    cluster.store_epoch(txn, map_epoch + 1)
    return MapChanged(map_epoch + 1)
