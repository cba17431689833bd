"""What a pool may be. Pure."""

import errno
from collections.abc import Iterable

from shoalfs.mds.messages import Pool
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import FRAGMENTS_MAX, REPLICAS_MAX

_NAME_CHARACTERS_MAX = 64


def usual_min_ack(replicas: int, data: int) -> int:
    """Of replicas: one of two, two of three. Of fragments: one more than it takes to read, so that what is
    acknowledged survives the loss of a disk."""
    return min(replicas, data + 1) if data > 1 else replicas - replicas // 2


def flaw(pool: Pool) -> str | None:
    """What is wrong with a pool, in words; None: nothing."""
    if not 0 < len(pool.name) <= _NAME_CHARACTERS_MAX or not all(c.isalnum() or c in "-_." for c in pool.name):
        return f"the name of a pool is 1 to {_NAME_CHARACTERS_MAX} letters, digits, '-', '_' and '.'"
    if pool.data < 1 or pool.replicas < pool.data:
        return "a pool has at least one replica, or two data fragments"
    if pool.data > 1 and (pool.parity < 1 or pool.replicas > FRAGMENTS_MAX):
        return f"a chunk has at least one parity fragment and at most {FRAGMENTS_MAX} fragments in all"
    if pool.data == 1 and pool.replicas > REPLICAS_MAX:
        return f"a pool has at most {REPLICAS_MAX} replicas"
    if not pool.data <= pool.min_ack <= pool.replicas:
        return f"min_ack is {pool.data} to {pool.replicas} for {pool.redundancy}, not {pool.min_ack}"
    return None


def check(others: Iterable[Pool], pool: Pool) -> None:
    """Raises EINVAL if the pool cannot be, EEXIST if one of the others has its name."""
    wrong = flaw(pool)
    if wrong is not None:
        raise PosixError(errno.EINVAL, wrong)
    if any(other.name == pool.name for other in others):
        raise PosixError(errno.EEXIST, f"there is a pool {pool.name} already")
