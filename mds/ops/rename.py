"""RENAME: move a name, replace what has the new one, or exchange two. As renameat2(2).

The checks come in the order in which Linux makes them (fs/namei.c, vfs_rename), because programs and test
suites see which error wins. A replaced name keeps its place in the listing, so that a reader of the directory
meets it once.
"""

import errno
from dataclasses import dataclass

from shoalfs.mds import dentry, permission
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import Credentials, Inode, Rename, Renamed, RenameFlags
from shoalfs.mds.ops.context import Context
from shoalfs.mds.records import Dentry
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import LINK_COUNT_MAX

_KNOWN_FLAGS = {int(f): f for f in (RenameFlags.NONE, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE)}


@dataclass(frozen=True, slots=True)
class _Side:
    """One end of a rename: a directory, a name in it, and what it leads to (None: nothing)."""

    parent: Inode
    name: bytes
    entry: Dentry | None
    inode: Inode | None


def rename(txn: Txn, context: Context, request: Rename) -> Renamed:
    """Two names of one inode are left as they are, as POSIX says; ``other`` is that inode then."""
    flags = _check_flags(request.flags)
    old = _side(txn, request.who, request.parent, request.name)
    no_replace = bool(flags & RenameFlags.NOREPLACE)
    new = _side(txn, request.who, request.new_parent, request.new_name, errno.EEXIST if no_replace else errno.EBUSY)
    if old.entry is None or old.inode is None:
        raise PosixError(errno.ENOENT)
    if new.inode is not None and no_replace:
        raise PosixError(errno.EEXIST)
    if new.inode is None and flags & RenameFlags.EXCHANGE:
        raise PosixError(errno.ENOENT)
    exchange = bool(flags & RenameFlags.EXCHANGE)
    _check_ancestors(txn, old, new, exchange=exchange)
    if new.inode is not None and new.inode.ino == old.inode.ino:
        return Renamed(old.inode, new.inode)
    _check_permissions(request.who, old, new, exchange=exchange)
    if not exchange and new.inode is not None and new.inode.is_dir and new.inode.size_bytes:
        raise PosixError(errno.ENOTEMPTY)
    if exchange:
        return _exchange(txn, old, new, context.now_ns)
    return _move(txn, old, new, context.now_ns)


# --- checks -------------------------------------------------------------------------------------------------


def _check_flags(flags: int) -> RenameFlags:
    """Raises EINVAL for flags that are unknown or contradict each other."""
    try:
        known = _KNOWN_FLAGS[flags]
    except KeyError:
        raise PosixError(errno.EINVAL) from None
    return known


def _side(txn: ReadTxn, who: Credentials, parent: InodeId, name: bytes, dots_errno: int = errno.EBUSY) -> _Side:
    directory = dentry.search(txn, who, parent)
    dentry.check_name(name)
    if name in dentry.DOTS:
        raise PosixError(dots_errno)
    entry = dentry.find(txn, directory, name)
    return _Side(directory, name, entry, None if entry is None else inodes.load(txn, entry.ino))


def _check_ancestors(txn: ReadTxn, old: _Side, new: _Side, *, exchange: bool) -> None:
    """Nothing moves below itself, and no directory is replaced by something inside it."""
    if old.parent.ino == new.parent.ino:
        return
    if old.inode is not None and old.inode.is_dir and dentry.is_below(txn, new.parent, old.inode.ino):
        raise PosixError(errno.EINVAL)
    if new.inode is not None and new.inode.is_dir and dentry.is_below(txn, old.parent, new.inode.ino):
        raise PosixError(errno.EINVAL if exchange else errno.ENOTEMPTY)


def _check_permissions(who: Credentials, old: _Side, new: _Side, *, exchange: bool) -> None:
    assert old.inode is not None
    dentry.check_remove(who, old.parent, old.inode, directory=old.inode.is_dir)
    if new.inode is None:
        dentry.check_insert(who, new.parent, subdirectory=False)
    else:
        as_directory = new.inode.is_dir if exchange else old.inode.is_dir
        dentry.check_remove(who, new.parent, new.inode, directory=as_directory)
    if old.parent.ino == new.parent.ino:
        return
    # A directory that changes its parent changes its own "..", which needs permission to write it.
    if old.inode.is_dir:
        permission.check(who, old.inode, permission.WRITE)
    if exchange and new.inode is not None and new.inode.is_dir:
        permission.check(who, new.inode, permission.WRITE)
    gains = old.inode.is_dir - (new.inode is not None and new.inode.is_dir)
    if new.parent.nlink + gains > LINK_COUNT_MAX or (exchange and old.parent.nlink - gains > LINK_COUNT_MAX):
        raise PosixError(errno.EMLINK)


# --- effects ------------------------------------------------------------------------------------------------


def _move(txn: Txn, old: _Side, new: _Side, now_ns: int) -> Renamed:
    assert old.entry is not None
    assert old.inode is not None
    moved = _with_parent(txn, old.inode, new.parent, now_ns)
    source = dentry.remove(txn, old.parent, old.name, old.entry, now_ns)
    target = source if new.parent.ino == source.ino else new.parent
    if new.entry is None or new.inode is None:
        replaced = None
        target = dentry.insert(txn, target, new.name, moved, now_ns)
    else:
        replaced = inodes.unlinked(txn, new.inode, now_ns, new.parent.ino, new.name)
        dentry.put_rows(txn, target, new.name, moved, new.entry.cookie)
        nlink = target.nlink + moved.is_dir - replaced.is_dir
        target = inodes.content_changed(target, now_ns, nlink=nlink)
    inodes.store(txn, target)
    if source.ino != target.ino:
        inodes.store(txn, source)
    return Renamed(moved, replaced)


def _exchange(txn: Txn, old: _Side, new: _Side, now_ns: int) -> Renamed:
    assert old.entry is not None
    assert old.inode is not None
    assert new.entry is not None
    assert new.inode is not None
    moved = _with_parent(txn, old.inode, new.parent, now_ns)
    other = _with_parent(txn, new.inode, old.parent, now_ns)
    dentry.put_rows(txn, old.parent, old.name, other, old.entry.cookie)
    dentry.put_rows(txn, new.parent, new.name, moved, new.entry.cookie)
    if old.parent.ino == new.parent.ino:
        inodes.store(txn, inodes.content_changed(old.parent, now_ns))
    else:
        gains = moved.is_dir - other.is_dir
        inodes.store(txn, inodes.content_changed(old.parent, now_ns, nlink=old.parent.nlink - gains))
        inodes.store(txn, inodes.content_changed(new.parent, now_ns, nlink=new.parent.nlink + gains))
    return Renamed(moved, other)


def _with_parent(txn: Txn, inode: Inode, parent: Inode, now_ns: int) -> Inode:
    """Store the inode as moved below ``parent``: its ctime changes, and a directory's ".."."""
    inode = inodes.changed(inode, now_ns, parent=parent.ino if inode.is_dir else inode.parent)
    inodes.store(txn, inode)
    return inode
