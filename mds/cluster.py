"""The cluster map in the store: pools, targets, placement groups, and the epoch that every change raises. Pure."""

import errno

import msgspec

from shoalfs.mds import keys, records
from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, Target, Upkeep
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import MAP_BYTES_MAX


def load_epoch(txn: ReadTxn) -> int:
    return records.MAP_EPOCH.require(txn, keys.MAP_EPOCH).epoch


def load_map(txn: ReadTxn) -> ClusterMap:
    return ClusterMap(
        cluster_id=records.FORMAT.require(txn, keys.FORMAT).cluster_id,
        epoch=load_epoch(txn),
        pools=load_pools(txn),
        targets=load_targets(txn),
        groups=load_groups(txn),
    )


def check_size(map_: ClusterMap) -> None:
    """Raises ENOSPC for a map that nobody could be told in one message."""
    if len(msgspec.msgpack.encode(map_)) > MAP_BYTES_MAX:
        raise PosixError(errno.ENOSPC, "the cluster map would grow too large for one message")


def load_pools(txn: ReadTxn) -> tuple[Pool, ...]:
    return tuple(records.POOL.decode(*row) for row in txn.range(*keys.all_of(b"P")))


def load_targets(txn: ReadTxn) -> tuple[Target, ...]:
    return tuple(records.TARGET.decode(*row) for row in txn.range(*keys.all_of(b"T")))


def load_groups(txn: ReadTxn) -> tuple[PlacementGroup, ...]:
    return tuple(records.GROUP.decode(*row) for row in txn.range(*keys.all_of(b"G")))


def load_upkeep(txn: ReadTxn) -> Upkeep:
    return records.UPKEEP.load(txn, keys.UPKEEP) or Upkeep(rebalance_paused=False, scrub_requested_ns=0)


def store_pool(txn: Txn, pool: Pool) -> None:
    records.POOL.store(txn, keys.pool(pool.id), pool)


def store_target(txn: Txn, target: Target) -> None:
    records.TARGET.store(txn, keys.target(target.id), target)


def store_group(txn: Txn, group: PlacementGroup) -> None:
    records.GROUP.store(txn, keys.group(group.id), group)


def store_epoch(txn: Txn, epoch: int) -> None:
    records.MAP_EPOCH.store(txn, keys.MAP_EPOCH, records.MapEpoch(epoch))


def store_upkeep(txn: Txn, upkeep: Upkeep) -> None:
    records.UPKEEP.store(txn, keys.UPKEEP, upkeep)
