"""What an operation knows beside its request: the time stamped by the leader, and for which session it
runs."""

from dataclasses import dataclass

from shoalfs.transport.ids import SessionId


@dataclass(frozen=True, slots=True)
class Context:
    now_ns: int  # monotone over the whole log
    session: SessionId  # alive; 0 for what the leader, a chunkserver or an administrator sends
