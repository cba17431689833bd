"""Whether chunks may be deleted now: the brake on mass deletion, and the hold that an operator or a restore set. Pure.

A mistake (a script that removes the wrong tree, metadata restored from an old dump) shows as an unusual share of all
chunks becoming garbage at once. Then nothing more is deleted until an operator says so; the hold is replicated state
(``Upkeep.deletions_held``), so it outlives the leader. What the operator released (``deletions_released_ns``) does
not count any more: only chunks that became garbage later can pull the brake again. Nor do those whose bytes were merged
into others: nothing was removed, and files that grow by lines leave very many.

While deletion is held, nothing is ordered to be deleted anywhere, and unknown chunks are not added to the garbage: in
metadata that were restored, they may be all that is left of newer files.
"""

from itertools import islice

from shoalfs.mds import cluster, keys, reads
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import TargetState, Upkeep
from shoalfs.mds.targets import TargetTable
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import BRAKE_CHUNKS_MIN, BRAKE_PERCENT_DEFAULT


def is_held(txn: ReadTxn) -> bool:
    return bool(cluster.load_upkeep(txn).deletions_held)


def all_heard(index: MapIndex, targets: TargetTable) -> bool:
    """Every target that should answer told this leader how many chunks it has: only then a share means anything."""
    silent = (TargetState.DOWN, TargetState.OUT)
    return all(targets.usage(t) is not None for t, target in index.targets.items() if target.state not in silent)


def reason_to_hold(txn: ReadTxn, index: MapIndex, targets: TargetTable) -> str:
    """Why deletion has to stop now; empty: it need not. Counts no more rows than it takes to know."""
    upkeep = cluster.load_upkeep(txn)
    stored, percent = _stored_chunks(index, targets), _percent(upkeep)
    limit, counts = _limit(stored, percent), reads.counts(txn)
    if percent >= 100 or counts.garbage_chunks - counts.merged_garbage <= limit:
        return ""
    first = keys.garbage_by_time((upkeep.deletions_released_ns or 0) + 1, ChunkId(0))
    enough = limit + counts.merged_garbage + 1
    pending = sum(1 for _ in islice(txn.range(first, keys.all_of(b"z")[1]), enough))
    if pending < enough:
        return ""
    return f"more than {limit} of about {stored} chunks would be deleted at once ({percent} % are usual)"


def room(txn: ReadTxn, index: MapIndex, targets: TargetTable) -> int:
    """How many more chunks may become garbage without pulling the brake, at least; none while deletion is held, or
    while this leader cannot judge."""
    upkeep = cluster.load_upkeep(txn)
    if upkeep.deletions_held or not all_heard(index, targets):
        return 0
    limit = _limit(_stored_chunks(index, targets), _percent(upkeep))
    counts = reads.counts(txn)
    return max(0, limit - counts.garbage_chunks + counts.merged_garbage)


def _percent(upkeep: Upkeep) -> int:
    return BRAKE_PERCENT_DEFAULT if upkeep.brake_percent is None else upkeep.brake_percent


def _limit(stored_chunks: int, percent: int) -> int:
    return max(BRAKE_CHUNKS_MIN, stored_chunks * percent // 100)


def _stored_chunks(index: MapIndex, targets: TargetTable) -> int:
    """How many chunks there are, from the copies that targets report and the mean number of copies of one."""
    copies = sum(usage.chunks for target in index.targets if (usage := targets.usage(target)) is not None)
    members = sum(len(group.targets) for group in index.map.groups)
    return copies * len(index.map.groups) // members if members else 0
