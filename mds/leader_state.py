"""What the leader remembers beside the replicated state; begun anew with each leadership."""

from dataclasses import dataclass, field

from shoalfs.mds import cluster, reads
from shoalfs.mds.coherence import Coherence
from shoalfs.mds.evictions import Evictions
from shoalfs.mds.lock_service import LeaderLocks
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.messages import Absence, NearlyFull
from shoalfs.mds.repairs import Repairs
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.targets import GarbageWindow, TargetTable
from shoalfs.mds.trash_yield import Tally
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import (
    GARBAGE_GRACE_MS_DEFAULT,
    REPAIR_BYTES_PER_S_DEFAULT,
    SCRUB_BYTES_PER_S_DEFAULT,
    SCRUB_PERIOD_MS_DEFAULT,
)


@dataclass
class LeaderState:
    """All of it can be worked out again: from the store, from renewals and from heartbeats."""

    sessions: SessionTable
    targets: TargetTable = field(default_factory=TargetTable)
    garbage: GarbageWindow = field(default_factory=GarbageWindow)
    repairs: Repairs = field(default_factory=lambda: Repairs(REPAIR_BYTES_PER_S_DEFAULT))
    evictions: Evictions = field(default_factory=lambda: Evictions(GARBAGE_GRACE_MS_DEFAULT))
    # Inodes whose removal is proposed: they may not be opened any more.
    reaping: set[InodeId] = field(default_factory=set)
    # Chunks that a target holds and that nobody can ever use: to be added to the garbage.
    strays: set[int] = field(default_factory=set)
    locks: LeaderLocks = field(default_factory=LeaderLocks)
    # Leases; None before this node has led.
    coherence: Coherence | None = None
    # The leadership (Raft term) that all of this belongs to.
    term: int = 0
    # As of the last round of duties: targets that are down, and pools that are nearly full.
    absences: tuple[Absence, ...] = ()
    nearly_full: tuple[NearlyFull, ...] = ()
    trash_tally: Tally = field(default_factory=Tally)
    # What chunkservers are told; the same for all leaderships of this process.
    scrub_period_ms: int = SCRUB_PERIOD_MS_DEFAULT
    scrub_bytes_per_s: int = SCRUB_BYTES_PER_S_DEFAULT
    _index: MapIndex | None = None

    def map_index(self, txn: ReadTxn) -> MapIndex:
        """The cluster map of the store, indexed; kept while its epoch stays."""
        if self._index is None or self._index.epoch != cluster.load_epoch(txn):
            self._index = MapIndex(cluster.load_map(txn))
        return self._index

    def session_ended(self, session: SessionId) -> None:
        """It is fenced: what it had open and what it had locked is free."""
        self.sessions.ended(session)
        self.locks.ended(session)
        if self.coherence is not None:
            self.coherence.ended(session)

    def lead(self, txn: ReadTxn, term: int, now_ms: int, coherence: Coherence | None = None) -> None:
        """A leadership begins: forget what the last one knew."""
        sessions = reads.sessions(txn)
        self.sessions.lead(sessions, now_ms)
        self.locks.lead(term, [session for session, _ in sessions], now_ms + self.sessions.ttl_ms)
        self.targets.lead(now_ms)
        self.garbage.clear()
        self.repairs.clear()
        self.evictions.clear()
        self.strays.clear()
        self.reaping.clear()
        self.absences = self.nearly_full = ()
        self.trash_tally = Tally()
        self.coherence = coherence
        self.term = term
