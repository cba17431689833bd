"""Reads: the leader answers them from its store, without Raft."""

from shoalfs.mds.messages.records import Credentials, Extent, Inode
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.method import Message


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


class DirEntry(Message, frozen=True, gc=False):
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
