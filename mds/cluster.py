"""The cluster map in the store: pools, targets, placement groups, and the epoch that every change raises."""

from shoalfs.mds import keys, records
from shoalfs.mds.messages import ClusterMap, PlacementGroup, Target
from shoalfs.mds.txn import ReadTxn, Txn


def load_epoch(txn: ReadTxn) -> int:
    return records.MAP_EPOCH.require(txn, keys.MAP_EPOCH).epoch


def load_map(txn: ReadTxn) -> ClusterMap:
    return ClusterMap(
        cluster_id=records.FORMAT.require(txn, keys.FORMAT).cluster_id,
        epoch=load_epoch(txn),
        pools=tuple(records.POOL.decode(*row) for row in txn.range(*keys.all_of(b"P"))),
        targets=tuple(records.TARGET.decode(*row) for row in txn.range(*keys.all_of(b"T"))),
        groups=tuple(records.GROUP.decode(*row) for row in txn.range(*keys.all_of(b"G"))),
    )


def store_target(txn: Txn, target: Target) -> None:
    records.TARGET.store(txn, keys.target(target.id), target)


def store_group(txn: Txn, group: PlacementGroup) -> None:
    records.GROUP.store(txn, keys.group(group.id), group)


def store_epoch(txn: Txn, epoch: int) -> None:
    records.MAP_EPOCH.store(txn, keys.MAP_EPOCH, records.MapEpoch(epoch))
