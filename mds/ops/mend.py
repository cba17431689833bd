"""MEND: a repair that `shoal fsck repair` was told to make (:mod:`shoalfs.mds.mending`): compare rows, change them.

Nothing is worked out here but the names in /lost+found, so every node does the same. What is written still has to be a
record of its kind, and of a kind that a repair may write: bytes of files are never written, only given a place again.
"""

import errno
from typing import Any, Final

import msgspec

from shoalfs.mds import dentry, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Inode, Mend
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import BadMessage, DamagedRecord, PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import LOST_FOUND, MEND_ROWS_MAX
from shoalfs.transport.method import Nothing

_WRITTEN: Final[dict[bytes, records.Codec[Any] | None]] = {
    b"D": records.DENTRY,
    b"E": records.LISTING,
    b"I": records.INODE,
    b"K": records.CHUNK_USE,
    b"Z": records.GARBAGE,
    b"Q": records.TRASH,
    b"O": None,  # raw, at most 8 bytes
    b"C": None,
    b"z": None,
    b"q": None,
    b"n": None,
    b"s": None,
}
_DELETED: Final = frozenset(bytes([byte]) for byte in b"DEKZzOQqLXCARNns")
_COUNTED: Final = frozenset(
    {
        "inodes",
        "inline_files",
        "inline_bytes",
        "orphans",
        "trashed",
        "garbage_chunks",
        "merged_garbage",
        "sessions",
        "next_ino",
        "next_session",
        "next_sequence",
    }
)
_LOST_MODE: Final = 0o040700


def mend(txn: Txn, context: Context, request: Mend) -> Nothing:
    """Raises BadMessage, and EAGAIN if anything is not as it was."""
    _check_form(request)
    counters = inodes.load_counters(txn)
    if request.mended != counters.mended:
        raise PosixError(errno.EAGAIN, "other repairs were made meanwhile")
    for key, value in request.seen:
        if _present(txn, key) != value:
            raise PosixError(errno.EAGAIN, "it has changed meanwhile")
    changed = msgspec.structs.replace(
        counters,
        mended=counters.mended + 1,
        **{name: max(0, getattr(counters, name) + delta) for name, delta in request.counters},
    )
    lost = _lost_found(txn, request, changed, context.now_ns)
    for key in request.delete:
        txn.delete(key)
    for key, value in request.put:
        txn.put(key, value)
    if lost is None:
        inodes.store_counters(txn, changed)
        return Nothing()
    for ino in request.nameless:
        lost = _give_name(txn, lost, ino, context.now_ns)
    inodes.store(txn, lost)
    return Nothing()


def _present(txn: Txn, key: bytes) -> bytes | None:
    try:
        return txn.get(key)
    except DamagedRecord as error:
        raise DamagedRecord(f"it is not repaired while this is so: {error}", error.key) from error


def _check_form(request: Mend) -> None:
    if len(request.seen) > MEND_ROWS_MAX:
        raise BadMessage(f"a repair has at most {MEND_ROWS_MAX} rows")
    seen = {key for key, _ in request.seen}
    if not seen >= {*(key for key, _ in request.put), *request.delete, *map(_inode_key, request.nameless)}:
        raise BadMessage("a repair changes a row that it did not see")
    if not seen and not request.counters:
        raise BadMessage("a repair of nothing")
    for key, value in request.put:
        if key[:1] not in _WRITTEN or not 9 <= len(key) <= 9 + 255:
            raise BadMessage(f"no repair writes rows {key[:1]!r}")
        codec = _WRITTEN[key[:1]]
        try:
            fits = len(value) <= 8 if codec is None else codec.decode(key, value) is not None
        except DamagedRecord:
            fits = False
        if not fits:
            raise BadMessage(f"what is to be written is no row {key[:1]!r}")
    if any(key[:1] not in _DELETED for key in request.delete):
        raise BadMessage("a repair deletes a row that no repair deletes")
    if any(name not in _COUNTED for name, _ in request.counters):
        raise BadMessage("a repair changes a counter that no repair changes")


def _inode_key(ino: InodeId) -> bytes:
    if not 0 < ino <= keys.U64_MAX:
        raise BadMessage(f"{ino} is no inode")
    return keys.inode(ino)


def _lost_found(txn: Txn, request: Mend, counters: records.Counters, now_ns: int) -> Inode | None:
    """The directory that takes what has no name, made if it is not there; None if it is not needed. Stores the
    counters if it is."""
    if not request.nameless:
        return None
    root = inodes.load(txn, ROOT_INODE)
    found = dentry.find(txn, root, LOST_FOUND)
    directory = None if found is None else inodes.load(txn, found.ino)
    if directory is not None and not directory.is_dir:
        raise PosixError(errno.ENOTDIR, "/lost+found is no directory: rename it and repair again")
    if len(set(request.nameless)) != len(request.nameless):
        raise BadMessage("an inode twice")
    for ino in request.nameless:
        inode = inodes.load(txn, ino)
        name = _name(inode)
        if directory is not None and (dentry.find(txn, directory, name) is not None or ino == directory.ino):
            raise PosixError(errno.EEXIST, f"/lost+found has a name {name!r}: remove it and repair again")
    inodes.store_counters(txn, counters)
    if directory is None:
        directory = inodes.make(txn, root, mode=_LOST_MODE, uid=0, gid=0, now_ns=now_ns, rdev=0, size_bytes=0)
        inodes.store(txn, dentry.insert(txn, root, LOST_FOUND, directory, now_ns))
    return directory


def _name(inode: Inode) -> bytes:
    return b"#%d" % inode.ino


def _give_name(txn: Txn, lost: Inode, ino: InodeId, now_ns: int) -> Inode:
    """Returns /lost+found changed. How many links the inode has is for the next check to say, but it is at least 1."""
    inode = inodes.load(txn, ino)
    fields: dict[str, object] = {"nlink": max(inode.nlink, 2) if inode.is_dir else max(inode.nlink, 1)}
    if inode.is_dir:
        fields["parent"] = lost.ino
    inode = inodes.store_changed(txn, inode, now_ns, **fields)
    return dentry.insert(txn, lost, _name(inode), inode, now_ns)
