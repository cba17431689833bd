"""The methods by which all of this is asked, and who may ask."""

from typing import Final

from shoalfs.mds.messages.heartbeat import Heartbeat, HeartbeatReply, ReportReplicas
from shoalfs.mds.messages.leases import (
    CancelLock,
    EvictSession,
    GetLock,
    Invalidate,
    Invalidated,
    LeaseWrite,
    LockAnswer,
    LocksTold,
    Renew,
    Renewed,
    SetLock,
    TellLocks,
    WriteBack,
    WriteLeased,
    WrittenBack,
)
from shoalfs.mds.messages.namespace import Entry
from shoalfs.mds.messages.operations import Mutate, Mutated
from shoalfs.mds.messages.operators import (
    ChunkClasses,
    ClassifyChunks,
    DumpOffer,
    DumpPiece,
    FindPaths,
    FoundPaths,
    GetStatus,
    Inspection,
    ListPoolUsers,
    ListTrash,
    MdsStatus,
    MendPlans,
    NamespaceChecked,
    OpenCheck,
    OpenDump,
    PlanMend,
    PoolUsers,
    ReadDump,
    ReadInspection,
    ResolvePath,
    TrashListing,
)
from shoalfs.mds.messages.reads import (
    Access,
    ExtentMap,
    FetchedMany,
    FetchFiles,
    FoundMany,
    FsStat,
    GetAttr,
    GetExtents,
    GetMap,
    GetXattr,
    LinkTarget,
    Listing,
    ListXattr,
    LookedUp,
    Lookup,
    LookupMany,
    Open,
    Opened,
    ReadDir,
    ReadLink,
    Release,
    StatFs,
    XattrNames,
    XattrValue,
)
from shoalfs.mds.messages.records import ClusterMap
from shoalfs.transport.limits import PAYLOAD_BYTES_MAX
from shoalfs.transport.method import Method, Nothing

CLIENT: Final = "client"
CHUNKSERVER: Final = "chunkserver"
MDS: Final = "mds"
ADMIN: Final = "admin"
_CLIENTS: Final = frozenset({CLIENT, ADMIN})
ANY_CLIENT: Final = frozenset({CLIENT, CHUNKSERVER, ADMIN})
_BULK: Final = 1 << 20

MUTATE: Final = Method(100, "mds.mutate", Mutate, Mutated, roles=ANY_CLIENT)
LOOKUP: Final = Method(101, "mds.lookup", Lookup, LookedUp, roles=_CLIENTS)
LOOKUP_MANY: Final = Method(102, "mds.lookup_many", LookupMany, FoundMany, 0, _BULK, _CLIENTS)
GETATTR: Final = Method(103, "mds.getattr", GetAttr, Entry, roles=_CLIENTS)
READLINK: Final = Method(104, "mds.readlink", ReadLink, LinkTarget, roles=_CLIENTS)
READDIR: Final = Method(105, "mds.readdir", ReadDir, Listing, roles=_CLIENTS)
ACCESS: Final = Method(106, "mds.access", Access, Nothing, roles=_CLIENTS)
OPEN: Final = Method(107, "mds.open", Open, Opened, 0, _BULK, _CLIENTS)
RELEASE: Final = Method(108, "mds.release", Release, Nothing, roles=_CLIENTS)
GET_EXTENTS: Final = Method(109, "mds.get_extents", GetExtents, ExtentMap, 0, _BULK, _CLIENTS)
GETXATTR: Final = Method(110, "mds.getxattr", GetXattr, XattrValue, roles=_CLIENTS)
LISTXATTR: Final = Method(111, "mds.listxattr", ListXattr, XattrNames, roles=_CLIENTS)
STATFS: Final = Method(112, "mds.statfs", StatFs, FsStat, roles=_CLIENTS)
GET_MAP: Final = Method(113, "mds.get_map", GetMap, ClusterMap, roles=ANY_CLIENT)
RENEW: Final = Method(114, "mds.renew", Renew, Renewed, roles=_CLIENTS)
SET_LOCK: Final = Method(115, "mds.set_lock", SetLock, LockAnswer, roles=_CLIENTS)
GET_LOCK: Final = Method(116, "mds.get_lock", GetLock, LockAnswer, roles=_CLIENTS)
CANCEL_LOCK: Final = Method(117, "mds.cancel_lock", CancelLock, Nothing, roles=_CLIENTS)
TELL_LOCKS: Final = Method(118, "mds.tell_locks", TellLocks, LocksTold, roles=_CLIENTS)
INVALIDATE: Final = Method(119, "client.invalidate", Invalidate, Invalidated, roles=frozenset({MDS}))
EVICT: Final = Method(121, "mds.evict", EvictSession, Nothing, roles=frozenset({ADMIN}))
FETCH_FILES: Final = Method(140, "mds.fetch_files", FetchFiles, FetchedMany, 0, _BULK, _CLIENTS)
LEASE_WRITE: Final = Method(123, "mds.lease_write", LeaseWrite, WriteLeased, roles=_CLIENTS)
WRITE_BACK: Final = Method(124, "client.write_back", WriteBack, WrittenBack, roles=frozenset({MDS}))
HEARTBEAT: Final = Method(120, "mds.heartbeat", Heartbeat, HeartbeatReply, roles=frozenset({CHUNKSERVER}))
REPORT_REPLICAS: Final = Method(122, "mds.report_replicas", ReportReplicas, Nothing, roles=_CLIENTS)
STATUS: Final = Method(130, "mds.status", GetStatus, MdsStatus, roles=_CLIENTS)
OPEN_CHECK: Final = Method(142, "mds.open_check", OpenCheck, Inspection, roles=frozenset({ADMIN}))
READ_CHECK: Final = Method(143, "mds.read_check", ReadInspection, NamespaceChecked, roles=frozenset({ADMIN}))
POOL_USERS: Final = Method(141, "mds.pool_users", ListPoolUsers, PoolUsers, roles=frozenset({ADMIN}))
CLASSIFY_CHUNKS: Final = Method(132, "mds.classify_chunks", ClassifyChunks, ChunkClasses, roles=frozenset({ADMIN}))
PLAN_MEND: Final = Method(144, "mds.plan_mend", PlanMend, Inspection, roles=frozenset({ADMIN}))
READ_PLANS: Final = Method(145, "mds.read_plans", ReadInspection, MendPlans, roles=frozenset({ADMIN}))
FIND_PATHS: Final = Method(146, "mds.find_paths", FindPaths, Inspection, roles=frozenset({ADMIN}))
READ_PATHS: Final = Method(147, "mds.read_paths", ReadInspection, FoundPaths, roles=frozenset({ADMIN}))
LIST_TRASH: Final = Method(137, "mds.list_trash", ListTrash, TrashListing, roles=frozenset({ADMIN}))
OPEN_DUMP: Final = Method(134, "mds.open_dump", OpenDump, DumpOffer, roles=frozenset({ADMIN}))
READ_DUMP: Final = Method(135, "mds.read_dump", ReadDump, DumpPiece, 0, _BULK, frozenset({ADMIN}))
RESOLVE: Final = Method(133, "mds.resolve", ResolvePath, Entry, roles=frozenset({ADMIN}))

assert _BULK <= PAYLOAD_BYTES_MAX
