"""CHANGE_GROUP, SETTLE_GROUP: move a placement group, in two steps between which its chunks are copied.

First the new members are entered and the old ones stay to be read from; then, once the leader has seen every chunk on
every member, the old ones are let go. A crash between the two leaves a group that is readable from all of them. Both
are check-and-set on the group's epoch: what was decided about a group that has changed since is refused.
"""

import errno

import msgspec

from shoalfs.mds import cluster, keys, records
from shoalfs.mds.messages import ChangeGroup, MapChanged, PlacementGroup, SettleGroup, TargetState
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, PosixError
from shoalfs.transport.ids import PG_MAX, PgId


def change_group(txn: Txn, context: Context, request: ChangeGroup) -> MapChanged:
    """Raises ENOENT, EAGAIN (it has changed meanwhile), BadMessage, and EINVAL for a member that takes no new data.
    Where there are fragments, whoever has some keeps the place."""
    group = _as_expected(txn, request.group, request.epoch)
    members = request.targets
    if len(set(members)) != len(members) or len(members) != len(group.targets):
        raise BadMessage(f"group {group.id} has {len(group.targets)} members, each once")
    states = {target.id: target.state for target in cluster.load_targets(txn)}
    for member in set(members) - set(group.targets):
        if states.get(member) not in (TargetState.UP, TargetState.SYNCING):
            raise PosixError(errno.EINVAL, f"target {member} cannot join group {group.id}: it is not up")
    epoch = cluster.load_epoch(txn) + 1
    leaving = tuple(target for target in group.holders if target not in members)
    places: tuple[int, ...] = ()
    if records.POOL.require(txn, keys.pool(group.pool)).data > 1:
        places = tuple(group.place(target) for target in leaving)
        if any(members.index(target) != group.place(target) for target in set(members) & set(group.holders)):
            raise BadMessage(f"group {group.id} is of fragments: who stays in it, or comes back, keeps its place")
    changed = msgspec.structs.replace(group, targets=members, leaving=leaving, leaving_places=places, epoch=epoch)
    cluster.store_group(txn, changed)
    cluster.store_epoch(txn, epoch)
    return MapChanged(epoch)


def settle_group(txn: Txn, context: Context, request: SettleGroup) -> MapChanged:
    """Raises ENOENT, EAGAIN. Nobody is leaving: no change."""
    group = _as_expected(txn, request.group, request.epoch)
    epoch = cluster.load_epoch(txn)
    kept = tuple(target for target in group.leaving if target in request.kept)
    if kept == group.leaving:
        return MapChanged(epoch)
    places = tuple(group.place(target) for target in kept) if group.leaving_places else ()
    cluster.store_group(txn, msgspec.structs.replace(group, leaving=kept, leaving_places=places))
    cluster.store_epoch(txn, epoch + 1)
    return MapChanged(epoch + 1)


def _as_expected(txn: ReadTxn, number: PgId, epoch: int) -> PlacementGroup:
    group = records.GROUP.load(txn, keys.group(number)) if 0 < number <= PG_MAX else None
    if group is None:
        raise PosixError(errno.ENOENT, f"there is no placement group {number}")
    if group.epoch != epoch:
        raise PosixError(errno.EAGAIN, f"group {number} has changed: it is of epoch {group.epoch}, not {epoch}")
    return group
