"""CREATE_POOL, SET_POOL: another way of storing chunks, beside those that there are.

A pool is never removed and its redundancy never changed: chunks carry the number of their group, and a group belongs to
a pool. Directories choose one (mds/layout.py).
"""

import errno

import msgspec

from shoalfs.mds import cluster, placement, pools
from shoalfs.mds.messages import CreatePool, Pool, PoolChanged, SetPool
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import PoolId
from shoalfs.transport.limits import MAP_BYTES_MAX, POOLS_MAX


def create_pool(txn: Txn, context: Context, request: CreatePool) -> PoolChanged:
    """Raises EINVAL, EEXIST, and ENOSPC if there are too few targets, or too many pools."""
    map_ = cluster.load_map(txn)
    pool = Pool(
        id=PoolId(max((pool.id for pool in map_.pools), default=0) + 1),
        name=request.name,
        replicas=request.replicas,
        min_ack=request.min_ack or pools.usual_min_ack(request.replicas, request.data),
        data=request.data,
    )
    _check(map_.pools, pool)
    if len(map_.pools) >= POOLS_MAX:
        raise PosixError(errno.ENOSPC, f"there are {POOLS_MAX} pools already, which is the most")
    usable = sum(target.state in placement.TAKES_NEW_DATA for target in map_.targets)
    if usable < pool.replicas:
        raise PosixError(
            errno.ENOSPC, f"pool {pool.name} needs {pool.replicas} targets that are up, there are {usable}"
        )
    grown = msgspec.structs.replace(map_, pools=(*map_.pools, pool))
    groups = placement.missing_groups(grown)
    if not any(group.pool == pool.id for group in groups):
        raise PosixError(errno.ENOSPC, "all numbers of placement groups are used")
    grown = msgspec.structs.replace(grown, groups=(*map_.groups, *groups))
    if len(msgspec.msgpack.encode(grown)) > MAP_BYTES_MAX:
        raise PosixError(errno.ENOSPC, "the cluster map would grow too large for one message")

    cluster.store_pool(txn, pool)
    for group in groups:
        cluster.store_group(txn, msgspec.structs.replace(group, epoch=map_.epoch + 1))
    cluster.store_epoch(txn, map_.epoch + 1)
    return PoolChanged(pool, map_.epoch + 1)


def set_pool(txn: Txn, context: Context, request: SetPool) -> PoolChanged:
    """Raises ENOENT, EINVAL, EEXIST. No change: the map's epoch stays."""
    pool = named(txn, request.name)
    changed = msgspec.structs.replace(
        pool,
        name=pool.name if request.new_name is None else request.new_name,
        min_ack=pool.min_ack if request.min_ack is None else request.min_ack,
    )
    epoch = cluster.load_epoch(txn)
    if changed == pool:
        return PoolChanged(pool, epoch)
    _check([other for other in cluster.load_pools(txn) if other.id != pool.id], changed)
    cluster.store_pool(txn, changed)
    cluster.store_epoch(txn, epoch + 1)
    return PoolChanged(changed, epoch + 1)


def named(txn: ReadTxn, name: str) -> Pool:
    """Raises ENOENT."""
    for pool in cluster.load_pools(txn):
        if pool.name == name:
            return pool
    raise PosixError(errno.ENOENT, f"there is no pool {name}")


def _check(others: "tuple[Pool, ...] | list[Pool]", pool: Pool) -> None:
    flaw = pools.flaw(pool)
    if flaw is not None:
        raise PosixError(errno.EINVAL, flaw)
    if any(other.name == pool.name for other in others):
        raise PosixError(errno.EEXIST, f"there is a pool {pool.name} already")
