"""SET_UPKEEP: what operators say about work in the background: pause moving data, verify everything now, hold
deletion. The leader holds it too, when the brake is pulled (:mod:`shoalfs.mds.brake`)."""

from typing import Final

import msgspec

from shoalfs.mds import cluster
from shoalfs.mds.messages import NOW, Upkeep
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.limits import TRASH_RETENTION_MS_MAX

_REASON_CHARACTERS_MAX: Final = 200


def set_upkeep(txn: Txn, context: Context, request: Upkeep) -> Upkeep:
    """Returns what holds now. Raises BadMessage."""
    if request.brake_percent is not None and not 1 <= request.brake_percent <= 100:
        raise BadMessage("the brake is at 1 to 100 percent")
    if request.trash_retention_ms is not None and not 0 <= request.trash_retention_ms <= TRASH_RETENTION_MS_MAX:
        raise BadMessage("removed files are kept for 0 ms to 10 years")
    upkeep = cluster.load_upkeep(txn)
    if request.rebalance_paused is not None:
        upkeep = msgspec.structs.replace(upkeep, rebalance_paused=request.rebalance_paused)
    if request.scrub_requested_ns is not None:
        asked_ns = context.now_ns if request.scrub_requested_ns == NOW else request.scrub_requested_ns
        upkeep = msgspec.structs.replace(upkeep, scrub_requested_ns=asked_ns)
    if request.deletions_released_ns is not None:
        released_ns = context.now_ns if request.deletions_released_ns == NOW else request.deletions_released_ns
        upkeep = msgspec.structs.replace(upkeep, deletions_released_ns=released_ns)
    if request.deletions_held is not None:
        reason = (request.held_reason or "")[:_REASON_CHARACTERS_MAX] if request.deletions_held else ""
        upkeep = msgspec.structs.replace(upkeep, deletions_held=request.deletions_held, held_reason=reason)
    if request.brake_percent is not None:
        upkeep = msgspec.structs.replace(upkeep, brake_percent=request.brake_percent)
    if request.trash_retention_ms is not None:
        upkeep = msgspec.structs.replace(upkeep, trash_retention_ms=request.trash_retention_ms)
    cluster.store_upkeep(txn, upkeep)
    return upkeep
