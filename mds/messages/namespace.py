"""Mutations of the tree, and of what files hold."""

import enum
from typing import Final

from shoalfs.mds.messages.records import ClusterMap, Credentials, Extent, Inode, Receipt
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.method import Message


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


class ReserveInodes(Message, frozen=True):
    count: int  # 1..INODE_RANGE_MAX


class InodesReserved(Message, frozen=True):
    first_ino: InodeId  # the session may give first_ino .. + count - 1 to files that it makes, each once
    count: int


class NewAttributes(Message, frozen=True):
    """What whoever made a file has set since, before the service knew of it: what is not None, as in SetAttr, but no
    NOW and no set-id bits. ``ctime_ns``: a program was told that it changed then; the leader's present time, if that is
    earlier."""

    mode: int | None = None  # permission bits
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


class Create(Message, frozen=True):
    """Make a regular file. Exists already: EEXIST if ``exclusive``, else that file is returned unchanged.

    ``ino``: the number that it gets, of those reserved for the session; it has shown the file to its programs already
    (docs/leases.md). Then ``data`` is what it holds, at most the inline bytes of such a file; or ``extents`` are, in
    order and without overlaps, at most CREATE_EXTENTS_MAX, of chunks for which ``receipts`` speak as in CommitExtents.
    ``attributes`` are set last. If the name leads to this very inode, this was done before, and is done; the attributes
    are set again."""

    who: Credentials
    parent: InodeId
    name: bytes
    mode: int  # permission bits
    exclusive: bool
    umask: int = 0  # taken off the mode unless the directory has a default access control list
    ino: InodeId = InodeId(0)  # 0: the next one
    data: bytes = b""
    extents: tuple[Extent, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    attributes: NewAttributes | None = None


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


class MergeExtents(Message, frozen=True):
    """Let one chunk take the place of many small ones, with the same bytes: ``extent`` lies where ``pieces`` lie, which
    are one behind the other, and are all that is there. Refused with LayoutConflict if something else is there by now.
    The chunk needs ``min_ack`` durable receipts: it replaces what somebody may have synced. Nothing that a program can
    see changes."""

    ino: InodeId
    pieces: tuple[Extent, ...]
    extent: Extent
    receipts: tuple[Receipt, ...]


class Committed(Message, frozen=True):
    """``offset_bytes``: where the first patch or extent landed. ``previous_data_version`` is the one before this
    commit: a client whose cached map is of that version may go on with it.

    ``left``: what is asked for would touch more rows than one command may. The last so many of the request's extents
    (of an ALLOCATE: its range) are not done, or the first of them only up to ``left_from_bytes``; ask for the rest
    again. Of an append nothing was done then."""

    inode: Inode
    offset_bytes: int
    previous_data_version: int
    left: int = 0
    left_from_bytes: int = 0


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
    """The target afterwards, and how much of the range was done; 0 at the end of the source, or if something else had
    to be done first: ask ``again``."""

    inode: Inode
    length_bytes: int
    again: bool = False


class Trim(Message, frozen=True):
    """Remove extents of a file that were cut off, at most EXTENT_ROWS_MAX at a time; the leader's own."""

    ino: InodeId


class Trimmed(Message, frozen=True):
    done: bool  # False: more are left


class Reap(Message, frozen=True):
    """Remove an orphan's bytes, at most REAP_EXTENTS_MAX extents at a time; the leader's own."""

    ino: InodeId


class Reaped(Message, frozen=True):
    done: bool  # False: more extents are left
