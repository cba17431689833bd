"""What an operation knows beside its request: the time stamped by the leader, for which session it runs, and how much
it may do at once."""

from dataclasses import dataclass

from shoalfs.mds.bounds import BOUNDS, Bounds
from shoalfs.transport.ids import SessionId


@dataclass(frozen=True, slots=True)
class Context:
    now_ns: int  # monotone over the whole log
    session: SessionId  # alive; 0 for what the leader, a chunkserver or an administrator sends
    bounds: Bounds = BOUNDS
