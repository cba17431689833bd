"""The ports between the metadata service and what replicates it.

``ReplicatedLog`` is what the server needs of Raft; ``StateMachine`` is what Raft needs of the server. `mds/raft.py`
implements the first over pysyncobj; tests have a one-node implementation that applies at once.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from shoalfs.mds.messages import RaftStatus
from shoalfs.mds.raft_members import Members
from shoalfs.transport.ids import NodeId


class StateMachine(Protocol):
    """Deterministic: the same entries in the same order give the same state and results on every node."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry whose effects are in the store (0: none). Never goes back while running."""

    @property
    def members(self) -> Members | None:
        """Who belongs to the group, as of the applied index; None if that was never said."""

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[Any]:
        """Apply committed (index, term, entry) in order, in one store transaction, with the applied index in it.

        Indices follow each other and start at ``applied_index + 1``. An empty entry changes nothing. ``members``: if
        these entries change them, the last ones; kept in the same transaction. Returns one result per entry, for
        whoever proposed it. An exception means the node cannot go on: the caller stops it.
        """

    def durable_index(self) -> int:
        """The applied index that a power loss now would leave in the store: the log is needed from the next on."""


class ReplicatedLog(Protocol):
    """A log that a group of nodes agrees on."""

    async def propose(self, entry: bytes) -> tuple[int, Any]:
        """Append ``entry`` (at most ENTRY_BYTES_MAX), wait until a quorum has it on disk and it is applied here.

        Returns its index and what the state machine returned for it. Raises NotLeader if this node does not lead (the
        entry was not appended) and PeerUnreachable if leadership was lost meanwhile (it may or may not be applied:
        repeat the same commands at the new leader, they apply at most once). Cancelled: as PeerUnreachable.
        """

    def may_serve_reads(self) -> bool:
        """True if no other node can have committed anything that this one has not applied: leader, with a lease that
        has not run out, and its first entry of this term applied. Check it after reading as well (etcd #20418)."""

    async def read_barrier(self) -> None:
        """Wait until a read may be answered that began when this was called: nothing that was acknowledged anywhere by
        then is missing in the store. Without a lease that is settled with the other nodes. Raises NotLeader.

        What is read right after it, without waiting in between, may be answered whatever has become of the lease.
        """

    def leader_address(self) -> str:
        """Where clients reach the leader; empty when unknown."""

    def term_as_leader(self) -> int:
        """The term in which this node leads, 0 if it does not. Changes whenever leadership was lost in between."""

    def status(self) -> RaftStatus: ...

    @property
    def node(self) -> NodeId: ...
