"""SET_UPKEEP: what operators say about work in the background: pause moving data, verify everything now."""

import msgspec

from shoalfs.mds import cluster
from shoalfs.mds.messages import NOW, Upkeep
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn


def set_upkeep(txn: Txn, context: Context, request: Upkeep) -> Upkeep:
    """Returns what holds now."""
    upkeep = cluster.load_upkeep(txn)
    if request.rebalance_paused is not None:
        upkeep = msgspec.structs.replace(upkeep, rebalance_paused=request.rebalance_paused)
    if request.scrub_requested_ns is not None:
        asked_ns = context.now_ns if request.scrub_requested_ns == NOW else request.scrub_requested_ns
        upkeep = msgspec.structs.replace(upkeep, scrub_requested_ns=asked_ns)
    cluster.store_upkeep(txn, upkeep)
    return upkeep
