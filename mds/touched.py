"""What a mutation will change of that which clients cache: names, inodes. Pure.

Computed from the command and from the store as it is when the leader admits the command. That it is still so when the
command is applied is seen to by whoever asks: a name that one mutation is about to change is not given to another one
until the first is applied (:class:`~shoalfs.mds.leases.LeaseTable`), and which inodes a mutation touches depends on
nothing but the names in it.

Too much costs a message, too little would leave a stale cache: so where an operation may be refused, what it would
have changed counts as changed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from shoalfs.mds import keys, records, trash
from shoalfs.mds import messages as m
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import LOST_FOUND, NAME_BYTES_MAX

Name = tuple[InodeId, bytes]
"""A directory, and a name in it, whether it exists or not."""


@dataclass(slots=True)
class Touched:
    """``names``: where lookups will be answered otherwise. ``inodes``: attributes, contents and extended attributes.
    ``directories``: all names in them."""

    names: set[Name] = field(default_factory=set)
    inodes: set[InodeId] = field(default_factory=set)
    directories: set[InodeId] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.names or self.inodes or self.directories)

    def add(self, other: "Touched") -> None:
        self.names |= other.names
        self.inodes |= other.inodes
        self.directories |= other.directories


def touched_by(txn: ReadTxn, commands: Iterable[m.Command]) -> Touched:
    """What these commands, of one client, will change. Raises DamagedRecord."""
    found = Touched()
    for command in commands:
        row = _TOUCH.get(command.op)
        if row is None:
            continue
        decoder, touch = row
        try:
            request = decoder.decode(command.body)
        except msgspec.DecodeError:
            continue  # it will be refused
        touch(txn, request, found)
    return found


def _child(txn: ReadTxn, parent: InodeId, name: bytes) -> InodeId | None:
    """What the name leads to now; None also for what cannot be a name."""
    if not 0 < parent <= keys.U64_MAX or not 0 < len(name) <= NAME_BYTES_MAX:
        return None
    entry = records.DENTRY.load(txn, keys.dentry(parent, name))
    return None if entry is None else entry.ino


def _create(txn: ReadTxn, request: m.Create, found: Touched) -> None:
    """An open with O_CREAT of a file that is there changes nothing, but it matters that it stays so until then."""
    found.names.add((request.parent, request.name))
    child = _child(txn, request.parent, request.name)
    if child is None:
        found.inodes.add(request.parent)
    elif child == request.ino:
        found.inodes.add(child)  # it may be told of with what it holds for the first time


def _make(_: ReadTxn, request: m.Mknod | m.Mkdir | m.Symlink, found: Touched) -> None:
    found.names.add((request.parent, request.name))
    found.inodes.add(request.parent)


def _link(_: ReadTxn, request: m.Link, found: Touched) -> None:
    found.names.add((request.new_parent, request.new_name))
    found.inodes |= {request.new_parent, request.ino}


def _remove(txn: ReadTxn, request: m.Unlink | m.Rmdir, found: Touched) -> None:
    found.names.add((request.parent, request.name))
    found.inodes.add(request.parent)
    _add(found, _child(txn, request.parent, request.name))


def _rename(txn: ReadTxn, request: m.Rename, found: Touched) -> None:
    found.names |= {(request.parent, request.name), (request.new_parent, request.new_name)}
    found.inodes |= {request.parent, request.new_parent}
    _add(found, _child(txn, request.parent, request.name))
    _add(found, _child(txn, request.new_parent, request.new_name))


def _add(found: Touched, ino: InodeId | None) -> None:
    if ino is not None:
        found.inodes.add(ino)


def _inode(_: ReadTxn, request: Any, found: Touched) -> None:
    found.inodes.add(request.ino)


def _restore(txn: ReadTxn, request: m.RestoreTrash, found: Touched) -> None:
    row = trash.row_of(txn, request.ino)
    parent, name = (request.parent, request.name) if request.parent or row is None else (row.parent, row.name)
    found.names.add((parent, name))
    found.inodes |= {parent, request.ino}


def _mend(txn: ReadTxn, request: m.Mend, found: Touched) -> None:
    for key in (*(key for key, _ in request.put), *request.delete):
        if key[:1] == b"D" and len(key) > 9:
            found.names.add((InodeId(keys.first_field(key)), keys.name_of(key)))
        if key[:1] in b"DEILXCAO" and len(key) >= 9:
            found.inodes.add(InodeId(keys.first_field(key)))
    if request.nameless:
        lost = _child(txn, ROOT_INODE, LOST_FOUND)
        found.names.add((ROOT_INODE, LOST_FOUND))
        found.inodes |= {ROOT_INODE, *request.nameless}
        if lost is not None:
            found.inodes.add(lost)
            found.directories.add(lost)


_Touch = Callable[[ReadTxn, Any, Touched], None]
_BY_OP: Final[dict[m.Op, _Touch]] = {
    m.Op.CREATE: _create,
    m.Op.MKNOD: _make,
    m.Op.MKDIR: _make,
    m.Op.SYMLINK: _make,
    m.Op.LINK: _link,
    m.Op.UNLINK: _remove,
    m.Op.RMDIR: _remove,
    m.Op.RENAME: _rename,
    m.Op.SETATTR: _inode,
    m.Op.SETXATTR: _inode,
    m.Op.REMOVEXATTR: _inode,
    m.Op.COMMIT_INLINE: _inode,
    m.Op.COMMIT_EXTENTS: _inode,
    m.Op.ALLOCATE: _inode,
    m.Op.CLONE_RANGE: _inode,
    m.Op.MEND: _mend,
    m.Op.RESTORE_TRASH: _restore,
}
_TOUCH: Final = {int(op): (msgspec.msgpack.Decoder(m.OP_TYPES[op][0]), touch) for op, touch in _BY_OP.items()}
TOUCHES_NOTHING: Final = frozenset(
    {
        m.Op.OPEN_SESSION,
        m.Op.END_SESSION,
        m.Op.RESERVE_CHUNKS,
        m.Op.RESERVE_INODES,
        m.Op.TMPFILE,  # it is not in the directory that it is made for
        m.Op.REAP,  # of an inode that has no name and that nobody has open
        m.Op.MERGE_EXTENTS,  # the bytes stay the same, and the chunks that others know of stay for the grace
        m.Op.TRIM,  # of bytes that nobody sees; the space that it gives back is told afterwards (mds/rounds.py)
        m.Op.REGISTER_TARGET,
        m.Op.SET_TARGET_STATE,
        m.Op.ADD_GARBAGE,
        m.Op.DROP_GARBAGE,
        m.Op.CHANGE_GROUP,
        m.Op.SETTLE_GROUP,
        m.Op.REMOVE_TARGET,
        m.Op.SET_UPKEEP,
        m.Op.PURGE_TRASH,  # of inodes that have no name, and whose attributes stay
        m.Op.CREATE_POOL,
        m.Op.SET_POOL,
        m.Op.REMOVE_POOL,
    }
)
"""Operations that change nothing which a client may cache under a lease. A test holds the two lists complete."""
