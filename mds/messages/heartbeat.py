"""What chunkservers and readers report of copies, and the orders that chunkservers are given."""

from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.method import Message


class CopyFailed(Message, frozen=True):
    """``source`` could not give the chunk, for the reason ``code``; 0: it was not asked, the fault is the target's."""

    chunk: ChunkId
    source: TargetId
    code: int


class ScrubReport(Message, frozen=True):
    """How far a target is with verifying all that it holds. ``finished_ns``: when it last was through, 0: never.
    ``began_ns``: when the round that is under way began, 0: none is."""

    began_ns: int = 0
    finished_ns: int = 0
    chunks: int = 0  # verified in this round, or in the last if none is under way
    bytes: int = 0
    damaged: int = 0  # of these
    requested_ns: int = 0  # the newest request that this round, or a later one, answers


class TargetReport(Message, frozen=True):
    """One target in a heartbeat. ``deleted`` and ``copied``: orders of earlier replies that are carried out.

    ``inventory`` are all its chunks with an id above ``inventory_after``, up to and with ``inventory_through``, in
    rising order; ``inventory_hashes`` their hashes, 16 bytes each. ``map_epoch``: the newest that a reply told the
    target before it began to collect this part, with no deletion of an older one under way. ``damaged``: chunks that
    scrubbing found.
    """

    target: TargetId
    epoch: int
    capacity_bytes: int
    used_bytes: int
    chunks: int
    failed: str = ""  # why the target is out of service; empty: it is well
    deleted: tuple[ChunkId, ...] = ()
    inventory: tuple[ChunkId, ...] = ()
    inventory_after: int = 0
    inventory_through: int = 0  # not above inventory_after: there is no inventory
    inventory_hashes: bytes = b""
    map_epoch: int = 0
    copied: tuple[ChunkId, ...] = ()
    not_copied: tuple[CopyFailed, ...] = ()
    damaged: tuple[ChunkId, ...] = ()
    scrub: ScrubReport = ScrubReport()


class Heartbeat(Message, frozen=True):
    node: str
    targets: tuple[TargetReport, ...]


class CopySource(Message, frozen=True):
    target: TargetId
    address: str


class FragmentSource(Message, frozen=True):
    """Who has another fragment of a chunk, and its hash; it is as long as the one that is wanted."""

    place: int
    target: TargetId
    address: str
    fragment_hash: bytes


class Rebuild(Message, frozen=True):
    """How the fragment at ``place`` is had when nobody has it: from any ``data`` of ``sources``, best first."""

    place: int
    data: int
    parity: int
    sources: tuple[FragmentSource, ...]


class CopyOrder(Message, frozen=True):
    """Have this chunk, or this fragment of it, with exactly this length and hash: if it is not here intact, fetch it
    from the first of ``sources`` that gives it, or ``rebuild`` it. What is here instead is set aside, not deleted."""

    chunk: ChunkId
    chunk_bytes: int
    chunk_hash: bytes
    sources: tuple[CopySource, ...]
    deep: bool = True  # read what is here; else its row will do: it was only not in the inventory
    rebuild: Rebuild | None = None
    fragment: Fragment | None = None  # what it is of, if it is a fragment: kept beside it


class ScrubOrder(Message, frozen=True):
    """Verify every chunk once in ``period_ms``, and anew at once if the last round began before ``requested_ns``; at
    most ``bytes_per_s``."""

    period_ms: int
    requested_ns: int
    bytes_per_s: int


class TargetOrders(Message, frozen=True):
    """``delete`` and ``copy`` are all that are wanted now: what an earlier reply ordered and this one does not is not
    begun any more. ``inventory_after`` and ``inventory_count``: the next part of the inventory to report."""

    target: TargetId
    known: bool  # False: register again
    delete: tuple[ChunkId, ...] = ()
    copy: tuple[CopyOrder, ...] = ()
    inventory_after: int = 0
    inventory_count: int = 0
    scrub: ScrubOrder | None = None


class HeartbeatReply(Message, frozen=True):
    map_epoch: int
    orders: tuple[TargetOrders, ...]


class BadReplica(Message, frozen=True):
    target: TargetId
    chunk: ChunkId
    code: int  # of ChunkMissing or ChunkCorrupt


class ReportReplicas(Message, frozen=True):
    """A client met copies that are not there or not right. Each target will be told to look, and to fetch a good
    one."""

    bad: tuple[BadReplica, ...]
