"""What the metadata service is asked and what it answers. Pure: data only.

Two families:

* **Reads** are one method each. The leader answers them from its store, without Raft.
* **Mutations** travel together: a :class:`Mutate` carries a list of :class:`Command`, each an operation number
  (:class:`Op`), the raw bytes of its request struct, and the (slot, sequence) that makes it apply at most once. The
  leader copies those raw bytes into the Raft entry, so what a client encoded is what every node applies.

Times are integers in nanoseconds since the epoch. Names are bytes (POSIX knows no encoding). Lists are tuples.
"""

import enum
import stat
from typing import Final

import msgspec

from shoalfs.transport.ids import ChunkId, InodeId, PgId, PoolId, SessionId, TargetId
from shoalfs.transport.limits import PAYLOAD_BYTES_MAX
from shoalfs.transport.method import Message, Method, Nothing

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
ACL_NAMES: Final = (ACL_ACCESS, ACL_DEFAULT)
"""Extended attributes that are fields of the inode: its access control lists."""

# --- records ---------------------------------------------------------------------------------------------------------


class Storage(enum.IntEnum):
    """Where a regular file's bytes are. Only ever INLINE -> EXTENTS."""

    INLINE = 0
    EXTENTS = 1


class Inode(Message, frozen=True):
    """One inode: the record in the store and the attributes on the wire, in one encoding.

    Invariants: ``nlink`` = number of dentries (a directory: 2 + its subdirectories; 0 once removed). ``size_bytes`` of
    a regular file is at least the end of its last extent or inline byte; of a directory its number of entries; of a
    symlink the length of its target. ``used_bytes`` = inline bytes, or the sum of extent lengths.
    """

    ino: InodeId
    mode: int  # type and permission bits, as st_mode
    nlink: int
    uid: int
    gid: int
    rdev: int  # device number of a block or character special file, else 0
    size_bytes: int
    used_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int  # goes up with every change of this record; monotone over the inode's life
    data_version: int  # goes up with every change of the file's bytes or size, or of the directory's entries
    storage: Storage = Storage.INLINE
    pool: PoolId = PoolId(1)  # where new chunks of this file (or of files made in this directory) go
    chunk_bytes: int = 0  # layout: the largest chunk; inherited from the parent directory at creation
    inline_bytes_max: int = 0  # layout: the file leaves the inode when it grows past this
    parent: InodeId = InodeId(0)  # directories only: where `..` leads; the root is its own parent
    next_cookie: int = 0  # directories only: the cookie of the next new entry
    xattr_bytes: int = 0  # sum of names and values of its extended attributes, without the two lists below
    acl: bytes = b""  # access control list; empty: the mode says it all. Form and invariants: mds/acl.py
    default_acl: bytes = b""  # directories only: what is made in it inherits this
    linkable: bool = False  # made without a name (O_TMPFILE), and may be given one

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def access_lists(self) -> dict[bytes, bytes]:
        """Those of ACL_NAMES that the inode has, and their values."""
        return {name: value for name, value in zip(ACL_NAMES, (self.acl, self.default_acl), strict=True) if value}


class Extent(Message, frozen=True):
    """``length_bytes`` of a file from ``offset_bytes`` are the bytes of a chunk from ``chunk_offset_bytes``.

    ``chunk_hash`` is the 16-byte hash of the *whole* chunk, whose length is ``chunk_bytes``: a reader verifies the
    blocks it fetched against it. Extents of a file never overlap; what no extent covers below the size is a hole.
    ``fragments``: in a pool of fragments, their hashes (transport/fragments.py); ``chunk_hash`` is the hash of these.
    """

    offset_bytes: int
    length_bytes: int
    chunk: ChunkId
    chunk_offset_bytes: int
    chunk_bytes: int
    chunk_hash: bytes
    fragments: bytes = b""

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


class Receipt(Message, frozen=True):
    """A target's word that it stored a chunk, or its fragment of one, with this hash. Counts only while
    ``target_epoch`` is the target's current epoch."""

    chunk: ChunkId
    target: TargetId
    target_epoch: int
    durable: bool  # on disk, not only in the server's page cache
    chunk_hash: bytes


class TargetState(enum.IntEnum):
    UP = 0
    DOWN = 1
    DRAINING = 2
    OUT = 3
    SYNCING = 4  # it is back, takes new chunks and is asked last for old ones until it has all that it should


class Target(Message, frozen=True):
    """One disk or directory of a chunkserver."""

    id: TargetId
    uuid: bytes  # 16 bytes, written on the target itself when it was initialised
    node: str  # failure domain: the chunkserver's name
    address: str  # where its chunkserver listens: "unix:/path" or "tcp:host:port"
    epoch: int  # goes up each time it registers or is declared down
    state: TargetState
    capacity_bytes: int
    rack: str = ""  # failure domain above the node; empty: the node is its own
    since_ns: int = 0  # when it came into this state


class PlacementGroup(Message, frozen=True):
    """Which targets hold the chunks of a group, the preferred reader first. Invariant: ``targets`` and ``leaving``
    together are distinct.

    New chunks go to ``targets``. ``leaving`` were members before, and are read from until every member was seen to hold
    every chunk of the group. ``epoch``: the map's when ``targets`` last changed. In a pool of fragments, the member at
    place i of ``targets`` has fragment i of every chunk, and ``leaving_places`` says which one each that leaves has.
    """

    id: PgId
    pool: PoolId
    targets: tuple[TargetId, ...]
    leaving: tuple[TargetId, ...] = ()
    epoch: int = 0
    leaving_places: tuple[int, ...] = ()  # empty in a pool of replicas, else as long as ``leaving``

    def place(self, target: TargetId) -> int:
        """Which fragment a holder has; where there are replicas it means nothing."""
        if target in self.targets:
            return self.targets.index(target)
        return self.leaving_places[self.leaving.index(target)] if self.leaving_places else 0

    @property
    def holders(self) -> tuple[TargetId, ...]:
        """All who may hold chunks of the group."""
        return self.targets + self.leaving


class Pool(Message, frozen=True):
    """A storage class: ``replicas`` targets per group, any ``data`` of which are enough to read a chunk.

    ``data`` 1: each has all of it. More: each has one fragment (docs/erasure.md). A commit needs ``min_ack`` receipts
    per chunk; data <= min_ack <= replicas. ``data`` and ``replicas`` never change.
    """

    id: PoolId
    name: str
    replicas: int
    min_ack: int
    data: int = 1

    @property
    def parity(self) -> int:
        """How many targets of a group may be lost."""
        return self.replicas - self.data

    @property
    def redundancy(self) -> str:
        """For people: "2 replicas", "4+2"."""
        return f"{self.data}+{self.parity}" if self.data > 1 else f"{self.replicas} replicas"


class ClusterMap(Message, frozen=True):
    """Who is there and what lies where. ``epoch`` goes up with every change and never back."""

    cluster_id: bytes
    epoch: int
    pools: tuple[Pool, ...]
    targets: tuple[Target, ...]
    groups: tuple[PlacementGroup, ...]


class Credentials(Message, frozen=True):
    """On whose behalf: what the client asserts about the calling process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()  # supplementary groups


ROOT_CREDENTIALS: Final = Credentials(0, 0)

# --- mutations -------------------------------------------------------------------------------------------------------


class Op(enum.IntEnum):
    """Operations of the state machine. Numbers are in the Raft log: never reused, never renumbered."""

    OPEN_SESSION = 1
    END_SESSION = 2
    RESERVE_CHUNKS = 3
    CREATE = 10
    MKNOD = 11
    MKDIR = 12
    SYMLINK = 13
    LINK = 14
    UNLINK = 15
    RMDIR = 16
    RENAME = 17
    SETATTR = 18
    SETXATTR = 19
    REMOVEXATTR = 20
    TMPFILE = 22
    COMMIT_INLINE = 30
    COMMIT_EXTENTS = 31
    ALLOCATE = 32
    CLONE_RANGE = 33
    REAP = 40
    REGISTER_TARGET = 50
    SET_TARGET_STATE = 51
    ADD_GARBAGE = 52
    DROP_GARBAGE = 53
    CHANGE_GROUP = 54
    SETTLE_GROUP = 55
    REMOVE_TARGET = 56
    SET_UPKEEP = 57
    CREATE_POOL = 60
    SET_POOL = 61
    MEND = 62
    PURGE_TRASH = 63
    RESTORE_TRASH = 64


class Command(Message, frozen=True):
    """One mutation of one session.

    Of the commands of one (session, slot), only one with a higher ``seq`` than the last is applied; the same ``seq``
    returns the recorded outcome; a lower one is refused with StaleOperation.
    """

    slot: int  # 0..SLOTS_PER_SESSION-1; one outstanding command each
    seq: int  # 1.. per slot
    op: int  # Op
    body: msgspec.Raw  # the operation's request struct


class Outcome(Message, frozen=True):
    """The answer to one command. ``code`` 0: ``body`` is the operation's reply struct; else see transport.errors."""

    code: int
    text: str = ""
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Mutate(Message, frozen=True):
    session: SessionId  # 0 only for OPEN_SESSION and for what a chunkserver or an administrator sends
    commands: tuple[Command, ...]


class Mutated(Message, frozen=True):
    """Outcomes in the order of the commands, and the Raft index at which they were applied. ``leased``, of each: the
    session may cache the inodes in it; empty: none. ``directories``: those in which names changed, as they are now, if
    the session may cache them; in no order."""

    index: int
    outcomes: tuple[Outcome, ...]
    leased: tuple[bool, ...] = ()
    directories: tuple[Inode, ...] = ()


class Entry(Message, frozen=True):
    """Reply of everything that makes, finds or changes one inode. ``leased``: the session that asked may cache it."""

    inode: Inode
    leased: bool = False


class OpenSession(Message, frozen=True):
    nonce: bytes  # 16 random bytes of the client: repeating the request finds the session again
    client: str  # host:pid:mountpoint, for `shoal status`


class SessionOpened(Message, frozen=True):
    session: SessionId
    ttl_ms: int
    map: ClusterMap


class EndSession(Message, frozen=True):
    session: SessionId
    expired: bool = False  # ended by the leader, not by the client


class ReserveChunks(Message, frozen=True):
    count: int  # 1..CHUNK_RANGE_MAX


class ChunksReserved(Message, frozen=True):
    first_sequence: int  # the session may use first_sequence .. + count - 1, each with any group
    count: int


class Create(Message, frozen=True):
    """Make a regular file. Exists already: EEXIST if ``exclusive``, else that file is returned unchanged."""

    who: Credentials
    parent: InodeId
    name: bytes
    mode: int  # permission bits
    exclusive: bool
    umask: int = 0  # taken off the mode unless the directory has a default access control list


class Created(Message, frozen=True):
    inode: Inode
    created: bool  # False: it was there already


class Tmpfile(Message, frozen=True):
    """Make a regular file without a name, to be stored where files of ``parent`` are. It lives as long as it is open;
    ``linkable``: LINK may give it a name meanwhile."""

    who: Credentials
    parent: InodeId
    mode: int
    linkable: bool
    umask: int = 0


class Mknod(Message, frozen=True):
    """Make a regular file, fifo, socket or device node; ``mode`` carries the type. EEXIST if the name is taken."""

    who: Credentials
    parent: InodeId
    name: bytes
    mode: int
    rdev: int
    umask: int = 0  # as Create


class Mkdir(Message, frozen=True):
    who: Credentials
    parent: InodeId
    name: bytes
    mode: int
    umask: int = 0  # as Create


class Symlink(Message, frozen=True):
    who: Credentials
    parent: InodeId
    name: bytes
    target: bytes


class Link(Message, frozen=True):
    who: Credentials
    ino: InodeId
    new_parent: InodeId
    new_name: bytes


class Unlink(Message, frozen=True):
    who: Credentials
    parent: InodeId
    name: bytes


class Unlinked(Message, frozen=True):
    """What the name led to, as it is afterwards (``nlink`` may be 0: then it is an orphan until the last close)."""

    inode: Inode


class Rmdir(Message, frozen=True):
    who: Credentials
    parent: InodeId
    name: bytes


class RenameFlags(enum.IntFlag):
    """As renameat2(2)."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2


class Rename(Message, frozen=True):
    who: Credentials
    parent: InodeId
    name: bytes
    new_parent: InodeId
    new_name: bytes
    flags: int = 0


class Renamed(Message, frozen=True):
    moved: Inode
    other: Inode | None  # replaced (afterwards: nlink lowered) or exchanged inode


class SetAttr(Message, frozen=True):
    """Change what is not None. ``*_ns`` = NOW means the leader's present time; others are TIME_NS_MIN to TIME_NS_MAX.

    ``by_handle``: the caller holds the file open for writing (ftruncate), which replaces the permission check for
    ``size_bytes``. Truncation drops inline bytes and extents past the new size; growing makes a hole.
    """

    who: Credentials
    ino: InodeId
    mode: int | None = None  # permission bits
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    by_handle: bool = False


NOW: Final = -(1 << 63)
"""In SetAttr: the leader's time. Setting it needs write permission only, as utimensat(UTIME_NOW)."""


class XattrFlags(enum.IntFlag):
    """As setxattr(2)."""

    ANY = 0
    CREATE = 1
    REPLACE = 2


class SetXattr(Message, frozen=True):
    who: Credentials
    ino: InodeId
    name: bytes
    value: bytes
    flags: int = 0


class RemoveXattr(Message, frozen=True):
    who: Credentials
    ino: InodeId
    name: bytes


class Patch(Message, frozen=True):
    """Bytes for a file that is stored inline."""

    offset_bytes: int
    data: bytes


class CommitInline(Message, frozen=True):
    """Write into a file whose bytes are in the metadata.

    Patches are applied in order. ``append``: each patch lands at the end as of then, its offset is ignored. Refused
    with LayoutConflict if the file has extents or would grow past its ``inline_bytes_max``; nothing is changed then.
    """

    ino: InodeId
    patches: tuple[Patch, ...]
    append: bool = False


class CommitExtents(Message, frozen=True):
    """Link stored chunks into a file.

    Later extents lie over earlier ones. ``append``: the extents' offsets are relative to the end of the file as of
    this commit. ``inline_version``: a file that was inline leaves the inode with this commit, and the extents hold
    all its bytes; refused with LayoutConflict unless this is still its ``data_version`` (a file without inline bytes
    needs no version). ``size_bytes``: the file is at least this long afterwards (None: what the extents say).
    Each chunk needs ``min_ack`` receipts of current epochs: durable ones if ``durable``.
    """

    ino: InodeId
    extents: tuple[Extent, ...]
    receipts: tuple[Receipt, ...]
    append: bool = False
    inline_version: int | None = None
    size_bytes: int | None = None
    durable: bool = False


class Committed(Message, frozen=True):
    """``offset_bytes``: where the first patch or extent landed. ``previous_data_version`` is the one before this
    commit: a client whose cached map is of that version may go on with it."""

    inode: Inode
    offset_bytes: int
    previous_data_version: int


class AllocateMode(enum.IntFlag):
    """As fallocate(2)."""

    NONE = 0
    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    ZERO_RANGE = 0x10


class Allocate(Message, frozen=True):
    """As fallocate(2): make the file at least so long (unless KEEP_SIZE), and its range a hole (PUNCH_HOLE,
    ZERO_RANGE). No space is set aside: chunks are written once, and by whoever has bytes for them."""

    ino: InodeId
    offset_bytes: int
    length_bytes: int
    mode: int = 0


class CloneRange(Message, frozen=True):
    """Let a range of one file be the bytes of a range of another, without moving any: extents of the same chunks, or
    inline bytes. Ends at the end of the source, and after CLONE_EXTENTS_MAX extents.

    Refused with LayoutConflict where that cannot be (from inline bytes to chunks, to beside inline bytes, between
    pools): the caller moves the bytes then.
    """

    source: InodeId
    ino: InodeId  # the target
    source_offset_bytes: int
    offset_bytes: int
    length_bytes: int


class Cloned(Message, frozen=True):
    """The target afterwards, and how much of the range was done; 0 at the end of the source."""

    inode: Inode
    length_bytes: int


class Reap(Message, frozen=True):
    """Remove an orphan's bytes, at most REAP_EXTENTS_MAX extents at a time; the leader's own."""

    ino: InodeId


class Reaped(Message, frozen=True):
    done: bool  # False: more extents are left


class RegisterTarget(Message, frozen=True):
    uuid: bytes
    node: str
    address: str
    capacity_bytes: int
    rack: str = ""


class TargetRegistered(Message, frozen=True):
    target: Target
    map_epoch: int


class SetTargetState(Message, frozen=True):
    target: TargetId
    state: TargetState


class MapChanged(Message, frozen=True):
    map_epoch: int


class ChangeGroup(Message, frozen=True):
    """Give a group other members. Who is a member no more is ``leaving`` from then on. Refused with EAGAIN unless
    the group is as it was when this was decided: ``epoch`` is its present one."""

    group: PgId
    epoch: int
    targets: tuple[TargetId, ...]


class SettleGroup(Message, frozen=True):
    """Every member has every chunk: who was ``leaving`` is needed no more, but for those to be ``kept``. Refused as
    above."""

    group: PgId
    epoch: int
    kept: tuple[TargetId, ...] = ()


class RemoveTarget(Message, frozen=True):
    """Forget a target that is out and holds nothing of any group."""

    target: TargetId


class Upkeep(Message, frozen=True):
    """What operators said about work in the background. Request of SET_UPKEEP, where None changes nothing."""

    rebalance_paused: bool | None = None
    scrub_requested_ns: int | None = None  # verify everything that was not verified since; -1 in a request: now
    deletions_held: bool | None = None  # no chunk is deleted anywhere, and none becomes garbage by being unknown
    held_reason: str | None = None  # why, for people
    deletions_released_ns: int | None = None  # what was garbage then does not pull the brake; NOW in a request
    brake_percent: int | None = None  # the share of all chunks that may become garbage at once; 100: there is no brake
    trash_retention_ms: int | None = None  # how long removed files are kept; 0: not at all


class CreatePool(Message, frozen=True):
    """Make a pool, with groups on the targets that there are. ``min_ack`` 0: the usual one (mds/pools.py)."""

    name: str
    replicas: int
    data: int = 1
    min_ack: int = 0


class SetPool(Message, frozen=True):
    """Change what is not None. What was acknowledged before stays as it was."""

    name: str
    new_name: str | None = None
    min_ack: int | None = None


class PoolChanged(Message, frozen=True):
    pool: Pool
    map_epoch: int


class PurgeTrash(Message, frozen=True):
    """These inodes are kept no longer. Those that are not in the trash are ignored."""

    inos: tuple[InodeId, ...]


class RestoreTrash(Message, frozen=True):
    """Give an inode in the trash a name again: ``name`` in ``parent``; 0: the one that it had."""

    ino: InodeId
    parent: InodeId = InodeId(0)
    name: bytes = b""


class Mend(Message, frozen=True):
    """Change rows of the store that a check found to contradict each other. Refused with EAGAIN, and nothing changed,
    unless all that it was worked out from is still so.

    ``seen``: rows and their values then (None: there was none); every row that is changed is among them. ``mended``:
    how many were applied before, so that a repeated request is refused. ``nameless``: inodes to be given a name in
    /lost+found. ``counters``: what is to be added to which counter.
    """

    mended: int
    seen: tuple[tuple[bytes, bytes | None], ...]
    put: tuple[tuple[bytes, bytes], ...] = ()
    delete: tuple[bytes, ...] = ()
    nameless: tuple[InodeId, ...] = ()
    counters: tuple[tuple[str, int], ...] = ()


class ChunkList(Message, frozen=True):
    """Request of ADD_GARBAGE (chunks that no file uses and no live session can commit) and DROP_GARBAGE (deleted)."""

    chunks: tuple[ChunkId, ...]


OP_TYPES: Final[dict[Op, tuple[type[Message], type[Message]]]] = {
    Op.OPEN_SESSION: (OpenSession, SessionOpened),
    Op.END_SESSION: (EndSession, Nothing),
    Op.RESERVE_CHUNKS: (ReserveChunks, ChunksReserved),
    Op.CREATE: (Create, Created),
    Op.TMPFILE: (Tmpfile, Entry),
    Op.MKNOD: (Mknod, Entry),
    Op.MKDIR: (Mkdir, Entry),
    Op.SYMLINK: (Symlink, Entry),
    Op.LINK: (Link, Entry),
    Op.UNLINK: (Unlink, Unlinked),
    Op.RMDIR: (Rmdir, Unlinked),
    Op.RENAME: (Rename, Renamed),
    Op.SETATTR: (SetAttr, Entry),
    Op.SETXATTR: (SetXattr, Entry),
    Op.REMOVEXATTR: (RemoveXattr, Entry),
    Op.COMMIT_INLINE: (CommitInline, Committed),
    Op.COMMIT_EXTENTS: (CommitExtents, Committed),
    Op.ALLOCATE: (Allocate, Committed),
    Op.CLONE_RANGE: (CloneRange, Cloned),
    Op.REAP: (Reap, Reaped),
    Op.REGISTER_TARGET: (RegisterTarget, TargetRegistered),
    Op.SET_TARGET_STATE: (SetTargetState, MapChanged),
    Op.ADD_GARBAGE: (ChunkList, Nothing),
    Op.DROP_GARBAGE: (ChunkList, Nothing),
    Op.CHANGE_GROUP: (ChangeGroup, MapChanged),
    Op.SETTLE_GROUP: (SettleGroup, MapChanged),
    Op.REMOVE_TARGET: (RemoveTarget, MapChanged),
    Op.SET_UPKEEP: (Upkeep, Upkeep),
    Op.MEND: (Mend, Nothing),
    Op.PURGE_TRASH: (PurgeTrash, Nothing),
    Op.RESTORE_TRASH: (RestoreTrash, Entry),
    Op.CREATE_POOL: (CreatePool, PoolChanged),
    Op.SET_POOL: (SetPool, PoolChanged),
}
"""Request and reply struct of each operation. A test holds it complete."""

# --- reads -----------------------------------------------------------------------------------------------------------


class Lookup(Message, frozen=True):
    """``session``: wants leases on what is found, and the answer "there is no such name" as an answer; without one
    (0) it is the error ENOENT."""

    who: Credentials
    parent: InodeId
    name: bytes  # "." and ".." are answered too
    session: SessionId = SessionId(0)


class LookedUp(Message, frozen=True):
    """``inode`` None: there is no such name. ``leased`` and ``name_leased``: the session may cache the inode, and that
    the name leads to it (or to nothing)."""

    inode: Inode | None
    leased: bool = False
    name_leased: bool = False


class LookupMany(Message, frozen=True):
    """``want_data``: the reply's payload holds the inline bytes of the regular files found, one after the other."""

    who: Credentials
    items: tuple[tuple[InodeId, bytes], ...]
    want_data: bool = False


class Found(Message, frozen=True):
    """Answer to one item: ``errno`` 0 and the inode, or an errno. ``data_bytes``: its share of the payload."""

    errno: int
    inode: Inode | None = None
    data_bytes: int = 0


class FoundMany(Message, frozen=True):
    """May be shorter than the request when the reply would grow too large: ask again for the rest."""

    items: tuple[Found, ...]


class FetchFiles(Message, frozen=True):
    """What these files are and hold, for a session that expects to open them soon. Nothing is noted as open."""

    session: SessionId
    inos: tuple[InodeId, ...]


class Fetched(Message, frozen=True):
    """Answer to one. ``inode`` None: ask for this one by itself (it is gone, damaged, no file, or has many extents).
    ``data_bytes``: its inline bytes' share of the payload. ``extents``: all of the file. ``leased``: the session may
    cache all of it."""

    inode: Inode | None = None
    data_bytes: int = 0
    extents: tuple[Extent, ...] = ()
    leased: bool = False


class FetchedMany(Message, frozen=True):
    """May be shorter than the request when the reply would grow too large."""

    items: tuple[Fetched, ...]


class GetAttr(Message, frozen=True):
    ino: InodeId
    session: SessionId = SessionId(0)  # wants a lease on the inode


class ReadLink(Message, frozen=True):
    ino: InodeId


class LinkTarget(Message, frozen=True):
    target: bytes


class ReadDir(Message, frozen=True):
    """Entries after ``cookie`` (0: from the start), in the order in which they were made.

    A cookie stays valid as long as the directory lives, also when its entry is gone. "." and ".." are not listed.
    """

    who: Credentials
    ino: InodeId
    cookie: int
    count: int
    session: SessionId = SessionId(0)  # wants leases on the names and on what they lead to


class DirEntry(Message, frozen=True):
    """``damaged``: the inode's record cannot be read; of ``inode`` only the number and the type mean anything."""

    cookie: int  # > 2 and < 2^63: 0, 1 and 2 are left to the start, "." and ".."
    name: bytes
    inode: Inode
    damaged: bool = False


class Listing(Message, frozen=True):
    entries: tuple[DirEntry, ...]
    eof: bool
    leased: bool = False  # the session may cache where the names lead, and that there are no others
    unleased: tuple[InodeId, ...] = ()  # of a session that asked: the inodes that it may not cache


class Access(Message, frozen=True):
    """EACCES unless ``who`` may do all of ``mask`` (4 read, 2 write, 1 execute or search)."""

    who: Credentials
    ino: InodeId
    mask: int


class Open(Message, frozen=True):
    """Check permission, note that ``session`` has the file open, and say what it holds now.

    ``write`` / ``read`` / ``execute`` state the access mode; ``check`` False skips the check (just created).
    The reply's payload holds the inline bytes, if the file is inline.
    """

    who: Credentials
    session: SessionId
    ino: InodeId
    read: bool
    write: bool
    check: bool = True


class Opened(Message, frozen=True):
    inode: Inode
    leased: bool = False  # the session may cache it, and the bytes that came with it
    write_leased: bool = False  # and keep what is written to it: see LeaseWrite


class Release(Message, frozen=True):
    """The session has these inodes open no more. Unknown ones are ignored."""

    session: SessionId
    inos: tuple[InodeId, ...]


class GetExtents(Message, frozen=True):
    """Extents that reach into [offset, offset + length), at most ``count``, in order; and the inline bytes as the
    payload if the file is inline."""

    ino: InodeId
    offset_bytes: int
    length_bytes: int
    count: int = 1000


class ExtentMap(Message, frozen=True):
    inode: Inode
    extents: tuple[Extent, ...]
    eof: bool  # no further extent in the range asked for


class GetXattr(Message, frozen=True):
    who: Credentials
    ino: InodeId
    name: bytes


class XattrValue(Message, frozen=True):
    value: bytes


class ListXattr(Message, frozen=True):
    who: Credentials
    ino: InodeId


class XattrNames(Message, frozen=True):
    names: tuple[bytes, ...]


class StatFs(Message, frozen=True):
    """Of the pool: what fits with its replicas taken off."""


class FsStat(Message, frozen=True):
    capacity_bytes: int
    free_bytes: int
    inodes: int
    inodes_free: int


class GetMap(Message, frozen=True):
    pass


class Renew(Message, frozen=True):
    """Keep the session alive. ``opens`` (all inodes it has open) is sent when the last reply asked for it, with
    ``writes``, those of which it keeps written bytes under a write lease. Both count only for the leadership
    ``reported_term`` that asked: since then the session may have been leased more by it, which the next leader does not
    know of."""

    session: SessionId
    opens: tuple[InodeId, ...] | None = None
    writes: tuple[InodeId, ...] = ()
    reported_term: int = 0


class Renewed(Message, frozen=True):
    ttl_ms: int
    map_epoch: int
    want_opens: bool  # the leader is new: drop what is cached under leases, then send what is open
    term: int = 0  # the leadership; a session that told its opens or locks to another one tells them again


# --- locks -----------------------------------------------------------------------------------------------------------

LOCK_END: Final = (1 << 63) - 1
"""The last byte of a lock to the end of the file, wherever that will be: OFFSET_MAX of Linux."""


class LockKind(enum.IntEnum):
    """As F_RDLCK, F_WRLCK and F_UNLCK."""

    READ = 0
    WRITE = 1
    UNLOCK = 2


class Lock(Message, frozen=True):
    """A lock on bytes ``start_bytes`` to ``end_bytes`` (the last one, not the one behind it).

    ``flock``: of flock(2), which knows nothing of those of fcntl(2). ``owner`` is what the kernel of the session's
    machine calls the owner: a process, or an open file. ``pid`` is for people.
    """

    ino: InodeId
    flock: bool
    owner: int
    start_bytes: int
    end_bytes: int
    kind: int  # LockKind
    pid: int


class SetLock(Message, frozen=True):
    """Take, change or give back a lock. ``term``: the leadership to which the session last told its locks.

    ``wait``: a number of the session's choice, used once: the request stays at the leader until the lock is there, or
    for LOCK_PARK_MS. 0: do not wait.
    """

    session: SessionId
    term: int
    lock: Lock
    wait: int = 0


class GetLock(Message, frozen=True):
    """Which lock is in the way of this one?"""

    session: SessionId
    term: int
    lock: Lock


class CancelLock(Message, frozen=True):
    """Have the SetLock with this number answered now."""

    session: SessionId
    wait: int


class TellLocks(Message, frozen=True):
    """All locks that the session holds: for a leader that is new. Later ones to the same leader are ignored."""

    session: SessionId
    term: int
    locks: tuple[Lock, ...]


class LocksTold(Message, frozen=True):
    """``lost``: files on which a lock could not be taken over, because somebody else has been given one meanwhile."""

    term: int
    lost: tuple[InodeId, ...] = ()


class LockOutcome(enum.IntEnum):
    DONE = 0
    CONFLICT = 1  # ``conflict`` is in the way
    WAITING = 2  # still not there: ask again
    CANCELLED = 3
    DEADLOCK = 4  # waiting would never end
    GRACE = 5  # the leader is new and does not know all locks yet: ask again soon
    TELL = 6  # the leader is new: tell it the session's locks, then ask again


class LockAnswer(Message, frozen=True):
    outcome: int  # LockOutcome
    term: int  # the leadership that answers
    conflict: Lock | None = None


class Invalidate(Message, frozen=True):
    """The leader asks a client to drop what it caches under leases: the answers for these names, all names of these
    directories, these inodes. ``everything``: all of it, and the session is about to be ended."""

    session: SessionId
    names: tuple[tuple[InodeId, bytes], ...] = ()
    inodes: tuple[InodeId, ...] = ()
    directories: tuple[InodeId, ...] = ()
    everything: bool = False


class Invalidated(Message, frozen=True):
    """It is dropped, in the client and in its kernel. ``opens``: those of the inodes that it has open."""

    opens: tuple[InodeId, ...] = ()


class LeaseWrite(Message, frozen=True):
    """The session has the file open and wants to keep what is written to it: a write lease, which one session has at a
    time while no other may cache the inode. It ends with the RELEASE of the inode, and when it is called back. A CREATE
    that made the inode gives one whenever its answer is leased."""

    session: SessionId
    ino: InodeId


class WriteLeased(Message, frozen=True):
    """``granted`` False: what is written now has to be committed before write(2) returns. ``through_ms``: so has what
    is written within so many milliseconds, without asking again."""

    granted: bool
    through_ms: int = 0


class WriteBack(Message, frozen=True):
    """The leader asks a client to commit what it keeps of this inode, and to keep nothing that is written from now on
    until it has a new lease."""

    session: SessionId
    ino: InodeId


class WrittenBack(Message, frozen=True):
    """``done``: all that was written before is committed. If not, it could not be in time, or not at all, and the
    client goes on trying."""

    done: bool


class EvictSession(Message, frozen=True):
    """End a session of somebody else: what it has not committed is lost. Returns when that is done."""

    session: SessionId


# --- chunkservers and operators --------------------------------------------------------------------------------------


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


class SessionInfo(Message, frozen=True):
    session: SessionId
    client: str
    opens: int
    renewed_ms_ago: int
    leases: int = 0


class RepairStatus(Message, frozen=True):
    """What is being repaired or moved, as far as the leader knows: it learns what is missing page by page."""

    missing_chunks: int = 0  # copies that some target lacks
    missing_bytes: int = 0
    last_copies: int = 0  # of these, chunks with one good copy left
    lost_chunks: int = 0  # of these, chunks without any good copy within reach
    groups_moving: int = 0
    targets_syncing: int = 0
    copied_chunks: int = 0  # since this node leads
    copied_bytes: int = 0
    bytes_per_s: int = 0  # lately
    eta_s: int | None = None  # None: not known (nothing was copied lately); 0: nothing is missing
    checked_percent: int = 100  # of the targets' inventories, since the last change


class ScrubStatus(Message, frozen=True):
    target: TargetId
    report: ScrubReport


class BadReplica(Message, frozen=True):
    target: TargetId
    chunk: ChunkId
    code: int  # of ChunkMissing or ChunkCorrupt


class ReportReplicas(Message, frozen=True):
    """A client met copies that are not there or not right. Each target will be told to look, and to fetch a good
    one."""

    bad: tuple[BadReplica, ...]


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


class CheckNamespace(Message, frozen=True):
    """Check part of the namespace: inodes from ``after_ino`` on (0: from the start), about ``count`` of them."""

    after_ino: InodeId
    count: int = 10_000


class Finding(Message, frozen=True):
    """One broken invariant. ``kind`` is a stable word (``wrong-nlink``), ``text`` is for people."""

    kind: str
    ino: InodeId
    text: str
    key: bytes = b""  # the row that it is about, where the inode does not say it all


class NamespaceChecked(Message, frozen=True):
    """``extents``: those of the inodes checked, each with its inode, so that the caller can verify the chunks.
    ``unlisted``: inodes of which not all fitted, with the offset from which they are to be asked for by GET_EXTENTS."""

    next_ino: InodeId  # 0: done
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


class PlanMend(Message, frozen=True):
    """How can these findings be repaired, as things are now?"""

    findings: tuple[Finding, ...]


class Plan(Message, frozen=True):
    """``mend`` None: it is not repaired, and ``text`` says why. Plans of a lower ``phase`` come first, and the check is
    made again before those of the next: one repair may make another one needless."""

    text: str
    phase: int = 0
    mend: Mend | None = None


class MendPlans(Message, frozen=True):
    """In the order of the findings."""

    plans: tuple[Plan, ...]


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
CHECK: Final = Method(131, "mds.check", CheckNamespace, NamespaceChecked, roles=frozenset({ADMIN}))
CLASSIFY_CHUNKS: Final = Method(132, "mds.classify_chunks", ClassifyChunks, ChunkClasses, roles=frozenset({ADMIN}))
PLAN_MEND: Final = Method(136, "mds.plan_mend", PlanMend, MendPlans, roles=frozenset({ADMIN}))
LIST_TRASH: Final = Method(137, "mds.list_trash", ListTrash, TrashListing, roles=frozenset({ADMIN}))
OPEN_DUMP: Final = Method(134, "mds.open_dump", OpenDump, DumpOffer, roles=frozenset({ADMIN}))
READ_DUMP: Final = Method(135, "mds.read_dump", ReadDump, DumpPiece, 0, _BULK, frozenset({ADMIN}))
RESOLVE: Final = Method(133, "mds.resolve", ResolvePath, Entry, roles=frozenset({ADMIN}))

assert _BULK <= PAYLOAD_BYTES_MAX
