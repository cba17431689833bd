"""How mutations travel, which there are, and what each is asked and answers."""

import enum
from typing import Final

import msgspec

from shoalfs.mds.messages.cluster import (
    ChangeGroup,
    ChunkList,
    CreatePool,
    MapChanged,
    Mend,
    PoolChanged,
    PurgeTrash,
    RegisterTarget,
    RemovePool,
    RemoveTarget,
    RestoreTrash,
    SetPool,
    SetTargetState,
    SettleGroup,
    TargetRegistered,
    Upkeep,
)
from shoalfs.mds.messages.namespace import (
    Allocate,
    ChunksReserved,
    Cloned,
    CloneRange,
    CommitExtents,
    CommitInline,
    Committed,
    Create,
    Created,
    EndSession,
    Entry,
    InodesReserved,
    Link,
    MergeExtents,
    Mkdir,
    Mknod,
    OpenSession,
    Reap,
    Reaped,
    RemoveXattr,
    Rename,
    Renamed,
    ReserveChunks,
    ReserveInodes,
    Rmdir,
    SessionOpened,
    SetAttr,
    SetXattr,
    Symlink,
    Tmpfile,
    Trim,
    Trimmed,
    Unlink,
    Unlinked,
)
from shoalfs.mds.messages.records import Inode
from shoalfs.transport.ids import SessionId
from shoalfs.transport.method import Message, Nothing


class Op(enum.IntEnum):
    """Operations of the state machine. Numbers are in the Raft log: never reused, never renumbered."""

    OPEN_SESSION = 1
    END_SESSION = 2
    RESERVE_CHUNKS = 3
    RESERVE_INODES = 4
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
    MERGE_EXTENTS = 34
    REAP = 40
    TRIM = 41
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
    REMOVE_POOL = 65


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


OP_TYPES: Final[dict[Op, tuple[type[Message], type[Message]]]] = {
    Op.OPEN_SESSION: (OpenSession, SessionOpened),
    Op.END_SESSION: (EndSession, Nothing),
    Op.RESERVE_CHUNKS: (ReserveChunks, ChunksReserved),
    Op.RESERVE_INODES: (ReserveInodes, InodesReserved),
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
    Op.MERGE_EXTENTS: (MergeExtents, Committed),
    Op.REAP: (Reap, Reaped),
    Op.TRIM: (Trim, Trimmed),
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
    Op.REMOVE_POOL: (RemovePool, MapChanged),
}
"""Request and reply struct of each operation. A test holds it complete."""
