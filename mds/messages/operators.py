"""What operators ask: status, checks and repairs, the trash, dumps."""

import enum

from shoalfs.mds.messages.cluster import Mend, Upkeep
from shoalfs.mds.messages.heartbeat import ScrubReport
from shoalfs.mds.messages.records import ClusterMap, Extent, Inode
from shoalfs.transport.ids import ChunkId, InodeId, PoolId, SessionId, TargetId
from shoalfs.transport.method import Message


class GetStatus(Message, frozen=True):
    pass


class RaftStatus(Message, frozen=True):
    node: int
    leader: int  # 0: unknown
    leader_address: str
    term: int
    commit_index: int
    applied_index: int
    members: tuple[tuple[int, str], ...]


class TargetUsage(Message, frozen=True):
    target: TargetId
    capacity_bytes: int
    used_bytes: int
    chunks: int
    seen_ms_ago: int
    failed: str = ""  # why it is out of service, as its server said last


class SessionInfo(Message, frozen=True):
    session: SessionId
    client: str
    opens: int
    renewed_ms_ago: int
    leases: int = 0


class RepairStatus(Message, frozen=True):
    """What is being repaired or moved, as far as the leader knows: it learns what is missing page by page."""

    missing_chunks: int = 0  # copies that some target that answers lacks
    missing_bytes: int = 0
    last_copies: int = 0  # chunks that some target lacks with one good copy left
    lost_chunks: int = 0  # likewise, without any good copy within reach
    groups_moving: int = 0
    targets_syncing: int = 0
    copied_chunks: int = 0  # since this node leads
    copied_bytes: int = 0
    bytes_per_s: int = 0  # lately
    eta_s: int | None = None  # None: not known (nothing was copied lately); 0: nothing is missing
    checked_percent: int = 100  # of the targets' inventories, since the last change
    full_targets: tuple[TargetId, ...] = ()  # that have no room for copies that they lack
    moving_chunks: int = 0  # of those missing, copies of what is on enough targets, some of which are leaving


class ScrubStatus(Message, frozen=True):
    target: TargetId
    report: ScrubReport


class Absence(Message, frozen=True):
    """A target that is down. ``kept``: why others do not take its place, however long it stays away; empty: they do,
    ``replaced_in_ms`` from now."""

    target: TargetId
    away_ms: int
    replaced_in_ms: int
    kept: str = ""


class StuckGroups(Message, frozen=True):
    """Groups of one pool that cannot leave ``targets``, which are draining or out, because no other target can take
    their place. ``lacking``: with so many more targets they all could."""

    pool: PoolId
    targets: tuple[TargetId, ...]
    groups: int
    lacking: int


class NearlyFull(Message, frozen=True):
    """Every group of the pool has a target that is filled to ``percent`` or more (TRASH_YIELDS_PERCENT at least)."""

    pool: PoolId
    percent: int


class MdsStatus(Message, frozen=True):
    raft: RaftStatus
    map: ClusterMap
    usage: tuple[TargetUsage, ...]
    sessions: tuple[SessionInfo, ...]
    inodes: int
    inline_files: int
    inline_bytes: int
    orphans: int
    garbage_chunks: int
    counters: dict[str, int]
    repair: RepairStatus = RepairStatus()
    scrubs: tuple[ScrubStatus, ...] = ()
    upkeep: Upkeep = Upkeep()
    scrub_period_ms: int = 0
    trashed: int = 0  # removed files that are kept
    absences: tuple[Absence, ...] = ()
    stuck: tuple[StuckGroups, ...] = ()
    nearly_full: tuple[NearlyFull, ...] = ()
    trashed_bytes: int | None = None  # what those files take, one copy of each; None: it is being added up


class ListPoolUsers(Message, frozen=True):
    """Which inodes behind ``after_ino`` are of this pool."""

    pool: PoolId
    after_ino: InodeId


class PoolUsers(Message, frozen=True):
    """``files`` and ``directories`` of one page, ``example`` the first of them (0: none). ``next_ino``: the
    ``after_ino`` of the next request, 0: that was all."""

    files: int
    directories: int
    example: InodeId
    next_ino: InodeId


class OpenCheck(Message, frozen=True):
    """Begin a check of all metadata as of now. The answer is an Inspection, which READ_CHECK reads. Overloaded while
    INSPECTIONS_MAX of them are read."""


class Inspection(Message, frozen=True):
    """Something that is worked out beside the service, and read page by page (mds/inspections.py)."""

    number: int


class ReadInspection(Message, frozen=True):
    """``page``: 1, 2, ... in their order, the last one again if its answer was lost; 0: none, but go on keeping it.
    ESTALE if there is no such inspection here: another node leads by now, or nobody asked for INSPECTION_LEASE_MS."""

    number: int
    page: int


class Finding(Message, frozen=True):
    """One broken invariant. ``kind`` is a stable word (``wrong-nlink``), ``text`` is for people."""

    kind: str
    ino: InodeId
    text: str
    key: bytes = b""  # the row that it is about, where the inode does not say it all


class NamespaceChecked(Message, frozen=True):
    """A page of a check, with what came to light since the page before: nothing, if it has not come far.
    ``extents``: those of the inodes checked, each with its inode, so that the caller can verify the chunks.
    ``unlisted``: inodes of which not all fitted, with the offset from which they are to be asked for by GET_EXTENTS."""

    done: bool
    inodes: int
    findings: tuple[Finding, ...]
    extents: tuple[tuple[InodeId, Extent], ...]
    unlisted: tuple[tuple[InodeId, int], ...] = ()


class ListTrash(Message, frozen=True):
    """The oldest first, behind (``after_ns``, ``after_ino``)."""

    after_ns: int = 0
    after_ino: int = 0
    count: int = 1000


class Trashed(Message, frozen=True):
    """``path``: where it was, as far as the directories above still say; they may be in the trash themselves.
    ``parent_trashed``: the directory that it was in is."""

    inode: Inode
    deleted_ns: int
    parent: InodeId
    name: bytes
    path: bytes
    parent_trashed: bool


class TrashListing(Message, frozen=True):
    items: tuple[Trashed, ...]
    eof: bool


class FindPaths(Message, frozen=True):
    """Where are these inodes? At most PATHS_MAX of them. The answer is an Inspection, which READ_PATHS reads."""

    inos: tuple[InodeId, ...]


class FoundPaths(Message, frozen=True):
    """Some of them, each with a path from the root; those without a name are left out."""

    paths: tuple[tuple[InodeId, bytes], ...]
    done: bool


class PlanMend(Message, frozen=True):
    """How can these findings be repaired, as things are now? The answer is an Inspection, which READ_PLANS reads."""

    findings: tuple[Finding, ...]


class Plan(Message, frozen=True):
    """``mend`` None: it is not repaired, and ``text`` says why. Plans of a lower ``phase`` come first, and the check is
    made again before those of the next: one repair may make another one needless."""

    text: str
    phase: int = 0
    mend: Mend | None = None


class MendPlans(Message, frozen=True):
    """In the order of the findings; none before they are ``done``."""

    plans: tuple[Plan, ...]
    done: bool


class ClassifyChunks(Message, frozen=True):
    """What the metadata know of these chunks."""

    chunks: tuple[ChunkId, ...]


class ChunkClass(enum.IntEnum):
    LINKED = 0  # at least one extent uses it
    RESERVED = 1  # a live session may still commit it
    GARBAGE = 2  # waits for its deletion
    UNKNOWN = 3  # nobody can ever use it
    BEYOND = 4  # its number was never given out: it is of another time or another cluster, and is kept


class ChunkClasses(Message, frozen=True):
    classes: tuple[int, ...]


class OpenDump(Message, frozen=True):
    """Begin a dump of all metadata (mds/dump.py), as of now. One at a time: Overloaded while another one is read."""


class DumpOffer(Message, frozen=True):
    number: int


class ReadDump(Message, frozen=True):
    """The reply's payload is what follows ``offset_bytes``: DUMP_PIECE_BYTES, or what is there by now, which may be
    nothing yet. BadMessage if the dump is not kept any more."""

    number: int
    offset_bytes: int


class DumpPiece(Message, frozen=True):
    eof: bool  # nothing will follow


class ResolvePath(Message, frozen=True):
    """Find an inode by its path from the root; the last symlink is not followed. For operators (`shoal info`)."""

    path: bytes
