"""SET_POOL, REMOVE_POOL: change a pool, or forget it.

Another number of replicas is another width of all its groups, in the same step: a group is always as wide as its pool
says. New members are to be filled, which repair does; who is a member no more is leaving, is read from until every
other member was seen to have everything, and is emptied after the grace. So no chunk has fewer copies than before until
the others were seen to be there.

A pool goes in two steps, because whether an inode names it takes a look at every inode, which no operation may do. From
the first on, it is closing: no directory can choose it, and what is made in those that did is not of it any more. So
nobody is added to those who name it. Who has looked after that, in whatever order, and found none, asks for the second,
and names the first by its epoch, so that a look from before another opening and closing counts for nothing. What cannot
be known from inodes is checked here: that none of its groups has a chunk that is used, or is still to be deleted.
"""

import errno
from typing import Final

import msgspec

from shoalfs.mds import cluster, keys, placement, pools
from shoalfs.mds.messages import ClusterMap, MapChanged, PlacementGroup, Pool, PoolChanged, RemovePool, SetPool
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import CHUNK_SEQUENCE_MAX, chunk_id

_WAITING: Final = "still to be deleted: try again when `shoal gc status` shows that none waits"


def set_pool(txn: Txn, context: Context, request: SetPool) -> PoolChanged:
    """Raises ENOENT, EINVAL, EEXIST, and ENOSPC if there are too few targets for more replicas. No change: the map's
    epoch stays."""
    pool = named(txn, request.name)
    epoch = cluster.load_epoch(txn)
    replicas = pool.replicas if request.replicas is None else request.replicas
    if replicas != pool.replicas and pool.data > 1:
        raise PosixError(
            errno.EINVAL,
            f"pool {pool.name} is of {pool.redundancy}, which cannot be changed: "
            "make another pool and copy the files to a directory of it",
        )
    changed = msgspec.structs.replace(
        pool,
        name=pool.name if request.new_name is None else request.new_name,
        replicas=replicas,
        min_ack=min(pool.min_ack, replicas) if request.min_ack is None else request.min_ack,
        closing_epoch=_closing_epoch(pool, request.closing, epoch + 1),
    )
    if changed == pool:
        return PoolChanged(pool, epoch)
    map_ = cluster.load_map(txn)
    pools.check([other for other in map_.pools if other.id != pool.id], changed)
    if changed.replicas != pool.replicas:
        _resize(txn, map_, changed, epoch + 1)
    cluster.store_pool(txn, changed)
    cluster.store_epoch(txn, epoch + 1)
    return PoolChanged(changed, epoch + 1)


def _closing_epoch(pool: Pool, closing: bool | None, epoch: int) -> int:
    if closing is None:
        return pool.closing_epoch
    return (pool.closing_epoch or epoch) if closing else 0


def _resize(txn: Txn, map_: ClusterMap, pool: Pool, epoch: int) -> None:
    """Give every group of the pool as many members as it has replicas now."""
    placement.check_targets(map_, pool)
    counts = placement.memberships(map_.groups)
    changed: dict[int, PlacementGroup] = {}
    for group in map_.groups:
        if group.pool != pool.id:
            continue
        members = placement.resized(map_, group, pool.replicas, counts)
        counts.subtract(group.targets)
        counts.update(members)
        leaving = tuple(target for target in group.holders if target not in members)
        changed[group.id] = msgspec.structs.replace(group, targets=members, leaving=leaving, epoch=epoch)
    groups = tuple(changed.get(group.id, group) for group in map_.groups)
    cluster.check_size(msgspec.structs.replace(map_, groups=groups))
    for group in changed.values():
        cluster.store_group(txn, group)


def remove_pool(txn: Txn, context: Context, request: RemovePool) -> MapChanged:
    """Raises ENOENT; EAGAIN if the pool is not closing since this epoch; EBUSY while one of its groups has a chunk."""
    pool = named(txn, request.name)
    if not pool.closing_epoch or pool.closing_epoch != request.closing_epoch:
        raise PosixError(errno.EAGAIN, f"pool {pool.name} was opened since it was looked for who uses it: try again")
    groups = [group for group in cluster.load_groups(txn) if group.pool == pool.id]
    for group in groups:
        for what, row in (("used by files", keys.chunk_use), (_WAITING, keys.garbage)):
            first, last = row(chunk_id(group.id, 1)), row(chunk_id(group.id, CHUNK_SEQUENCE_MAX))
            if next(iter(txn.range(first, last + b"\0")), None) is not None:
                raise PosixError(errno.EBUSY, f"pool {pool.name} has chunks that are {what}")
    for group in groups:
        txn.delete(keys.group(group.id))
    txn.delete(keys.pool(pool.id))
    epoch = cluster.load_epoch(txn) + 1
    cluster.store_epoch(txn, epoch)
    return MapChanged(epoch)


def named(txn: ReadTxn, name: str) -> Pool:
    """Raises ENOENT."""
    for pool in cluster.load_pools(txn):
        if pool.name == name:
            return pool
    raise PosixError(errno.ENOENT, f"there is no pool {name}")
