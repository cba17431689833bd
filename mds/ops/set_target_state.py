"""SET_TARGET_STATE: declare a target down, drain it, take it out, or end its draining."""

import errno

import msgspec

from shoalfs.mds import cluster, keys, records
from shoalfs.mds.messages import MapChanged, SetTargetState, Target, TargetState
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import TARGET_ID_MAX

_UP, _DOWN, _DRAINING = TargetState.UP, TargetState.DOWN, TargetState.DRAINING
_OUT, _SYNCING = TargetState.OUT, TargetState.SYNCING
_ALLOWED = {
    _UP: frozenset({_DOWN, _DRAINING, _OUT}),
    _DOWN: frozenset({_OUT}),
    _DRAINING: frozenset({_UP, _SYNCING, _DOWN, _OUT}),
    _OUT: frozenset({_DOWN, _SYNCING}),
    _SYNCING: frozenset({_UP, _DOWN, _DRAINING, _OUT}),
}
"""From each state, where this operation may lead. Back in service after down is only by registering: who was away
must say so itself, gets a new epoch and is syncing first. An operator may resume what is draining or out: if it is
not there, its silence takes it down again. Draining a target that is down, and ending that, leaves it down
(``Target.draining``)."""


def set_target_state(txn: Txn, context: Context, request: SetTargetState) -> MapChanged:
    """Raises ENOENT for an unknown target and EINVAL for a change that is not allowed. The state it is in
    already is no change. Declaring it down begins a new epoch, which voids its receipts."""
    known = 0 < request.target <= TARGET_ID_MAX
    target = records.TARGET.load(txn, keys.target(request.target)) if known else None
    if target is None:
        raise PosixError(errno.ENOENT, f"there is no target {request.target}")
    map_epoch = cluster.load_epoch(txn)
    changed = _changed(target, request.state, context.now_ns)
    if changed == target:
        return MapChanged(map_epoch)
    cluster.store_target(txn, changed)
    cluster.store_epoch(txn, map_epoch + 1)
    return MapChanged(map_epoch + 1)


def _changed(target: Target, state: TargetState, now_ns: int) -> Target:
    """Raises EINVAL."""
    if state is target.state:
        return target
    if target.state is _DOWN and (state is _DRAINING or (state is _SYNCING and target.draining)):
        return msgspec.structs.replace(target, draining=state is _DRAINING)
    if target.state is _DOWN and state is _SYNCING:
        text = f"target {target.id} is down: start its chunkserver, then it is in service by itself"
        raise PosixError(errno.EINVAL, text)
    if state not in _ALLOWED[target.state]:
        raise PosixError(errno.EINVAL, f"target {target.id} is {target.state.name}: it cannot be {state.name}")
    return msgspec.structs.replace(
        target,
        state=state,
        epoch=target.epoch + (state is _DOWN),
        since_ns=now_ns,
        draining=state is _DOWN and target.state is _DRAINING,
    )
