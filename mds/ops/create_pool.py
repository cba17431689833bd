"""CREATE_POOL: another way of storing chunks, beside those that there are. Directories choose one (mds/layout.py)."""

import errno

import msgspec

from shoalfs.mds import cluster, placement, pools
from shoalfs.mds.messages import CreatePool, Pool, PoolChanged
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import PoolId
from shoalfs.transport.limits import POOLS_MAX


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
    pools.check(map_.pools, pool)
    if len(map_.pools) >= POOLS_MAX:
        raise PosixError(errno.ENOSPC, f"there are {POOLS_MAX} pools already, which is the most")
    placement.check_targets(map_, pool)
    grown = msgspec.structs.replace(map_, pools=(*map_.pools, pool))
    groups = placement.missing_groups(grown)
    if not any(group.pool == pool.id for group in groups):
        raise PosixError(errno.ENOSPC, "all numbers of placement groups are used")
    grown = msgspec.structs.replace(grown, groups=(*map_.groups, *groups))
    cluster.check_size(grown)

    cluster.store_pool(txn, pool)
    for group in groups:
        cluster.store_group(txn, msgspec.structs.replace(group, epoch=map_.epoch + 1))
    cluster.store_epoch(txn, map_.epoch + 1)
    return PoolChanged(pool, map_.epoch + 1)
