"""The records of the store: what an inode, an extent and the cluster map are, in the store and on the wire."""

import enum
import stat
from typing import Final

import msgspec

from shoalfs.transport.ids import ChunkId, InodeId, PgId, PoolId, TargetId
from shoalfs.transport.method import Message

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
ACL_NAMES: Final = (ACL_ACCESS, ACL_DEFAULT)
"""Extended attributes that are fields of the inode: its access control lists."""


class Storage(enum.IntEnum):
    """Where a regular file's bytes are. Only ever INLINE -> EXTENTS."""

    INLINE = 0
    EXTENTS = 1


NOT_CUT_OFF: Final = -1


class Inode(Message, frozen=True, gc=False):
    """One inode: the record in the store and the attributes on the wire, in one encoding.

    The collector of cycles does not look at it (nothing in it is part of one): a mount keeps a quarter of a million.

    Invariants: ``nlink`` = number of dentries (a directory: 2 + its subdirectories; 0 once removed). ``size_bytes`` of
    a regular file is at least the end of its last extent or inline byte; of a directory its number of entries; of a
    symlink the length of its target. ``used_bytes`` = inline bytes, or the sum of extent lengths; ``extents`` is their
    number. Both go on counting extents that were cut off until these are removed; no extent reaches from before
    ``cut_off_bytes`` to behind it.
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
    extents: int = 0  # rows X
    cut_off_bytes: int = NOT_CUT_OFF  # extents that begin here or behind were cut off: nobody sees them any more

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
    def is_bare(self) -> bool:
        """It has no extended attribute and no access control list."""
        return not (self.xattr_bytes or self.acl or self.default_acl)

    @property
    def access_lists(self) -> dict[bytes, bytes]:
        """Those of ACL_NAMES that the inode has, and their values."""
        return {name: value for name, value in zip(ACL_NAMES, (self.acl, self.default_acl), strict=True) if value}


def new_inode(
    directory: Inode,
    *,
    ino: int,
    mode: int,
    uid: int,
    gid: int,
    now_ns: int,
    pool: PoolId,
    nlink: int = 1,
    rdev: int = 0,
    size_bytes: int = 0,
    parent: int = 0,
    next_cookie: int = 0,
    acl: bytes = b"",
    default_acl: bytes = b"",
) -> Inode:
    """An inode as it is when it has just been made in ``directory``, whose layout it has: by the leader, or by a
    mount that will tell the leader of it."""
    return Inode(
        ino=InodeId(ino),
        mode=mode,
        nlink=nlink,
        uid=uid,
        gid=gid,
        rdev=rdev,
        size_bytes=size_bytes,
        used_bytes=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        btime_ns=now_ns,
        version=1,
        data_version=1,
        storage=Storage.INLINE,
        pool=pool,
        chunk_bytes=directory.chunk_bytes,
        inline_bytes_max=directory.inline_bytes_max,
        parent=InodeId(parent),
        next_cookie=next_cookie,
        acl=acl,
        default_acl=default_acl,
    )


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

    def part(self, first_bytes: int, end_bytes: int) -> "Extent":
        """The piece that covers [first_bytes, end_bytes) of the file."""
        return msgspec.structs.replace(
            self,
            offset_bytes=first_bytes,
            length_bytes=end_bytes - first_bytes,
            chunk_offset_bytes=self.chunk_offset_bytes + first_bytes - self.offset_bytes,
        )


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
    draining: bool = False  # it is down, and an operator drains it: it is draining when it comes back

    @property
    def leaves(self) -> bool:
        """Others are to take its place in all groups."""
        return self.draining or self.state in (TargetState.DRAINING, TargetState.OUT)


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
    per chunk; data <= min_ack <= replicas. ``data`` never changes, nor do ``replicas`` where it is more than 1.
    ``closing_epoch``: of the map since which no directory can choose the pool, because it is to be removed; 0: it can.
    """

    id: PoolId
    name: str
    replicas: int
    min_ack: int
    data: int = 1
    closing_epoch: int = 0

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
