"""Directory entries: names, the two rows of an entry, and the parent's record. One entry is a row ``D`` and a
row ``E``.

Knows nothing of what a name leads to beyond its number and type. The one rule: the functions that write rows
do not store the parent; they return it changed, so that an operation which touches a directory twice stores
it once.
"""

import errno
import stat

from shoalfs.mds import keys, permission, records
from shoalfs.mds.inode import content_changed, load
from shoalfs.mds.messages import Credentials, Inode
from shoalfs.mds.records import Dentry, ListingRow
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import DamagedRecord, PosixError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import LINK_COUNT_MAX, NAME_BYTES_MAX

DOTS = (b".", b"..")


def search(txn: ReadTxn, who: Credentials, parent: InodeId) -> Inode:
    """The directory in which ``who`` is about to look up a name. Raises ESTALE, ENOTDIR, EACCES."""
    directory = load(txn, parent)
    if not directory.is_dir:
        raise PosixError(errno.ENOTDIR)
    permission.check(who, directory, permission.EXECUTE)
    return directory


def check_name(name: bytes) -> None:
    """Raises ENAMETOOLONG, or EINVAL for what cannot be a name. "." and ".." are names here."""
    if len(name) > NAME_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise PosixError(errno.EINVAL)


def find(txn: ReadTxn, parent: Inode, name: bytes) -> Dentry | None:
    return records.DENTRY.load(txn, keys.dentry(parent.ino, name))


def require(txn: ReadTxn, parent: Inode, name: bytes) -> Dentry:
    """The entry. Raises ENOENT."""
    found = find(txn, parent, name)
    if found is None:
        raise PosixError(errno.ENOENT)
    return found


def check_insert(who: Credentials, parent: Inode, *, subdirectory: bool) -> None:
    """Raises ENOENT, EACCES or EMLINK unless ``who`` may add an entry to ``parent``."""
    if parent.nlink == 0:
        raise PosixError(errno.ENOENT, "the directory was removed")
    permission.check(who, parent, permission.WRITE | permission.EXECUTE)
    if subdirectory and parent.nlink >= LINK_COUNT_MAX:
        raise PosixError(errno.EMLINK)


def check_remove(who: Credentials, parent: Inode, child: Inode, *, directory: bool) -> None:
    """Raises EACCES, EPERM, ENOTDIR or EISDIR unless ``who`` may take ``child``, meant as a directory or not,
    out of ``parent``."""
    permission.check(who, parent, permission.WRITE | permission.EXECUTE)
    permission.check_sticky(who, parent, child)
    if directory and not child.is_dir:
        raise PosixError(errno.ENOTDIR)
    if child.is_dir and not directory:
        raise PosixError(errno.EISDIR)


def insert(txn: Txn, parent: Inode, name: bytes, child: Inode, now_ns: int) -> Inode:
    """Write the rows of a new entry at the end of the listing. Returns ``parent`` changed; the caller stores
    it."""
    cookie = parent.next_cookie
    put_rows(txn, parent, name, child, cookie)
    return content_changed(
        parent,
        now_ns,
        next_cookie=cookie + 1,
        size_bytes=parent.size_bytes + 1,
        nlink=parent.nlink + child.is_dir,
    )


def remove(txn: Txn, parent: Inode, name: bytes, entry: Dentry, now_ns: int) -> Inode:
    """Delete the rows of an entry. Returns ``parent`` changed; the caller stores it."""
    txn.delete(keys.dentry(parent.ino, name))
    txn.delete(keys.listing(parent.ino, entry.cookie))
    return content_changed(
        parent,
        now_ns,
        size_bytes=parent.size_bytes - 1,
        nlink=parent.nlink - (entry.kind == stat.S_IFDIR),
    )


def put_rows(txn: Txn, parent: Inode, name: bytes, child: Inode, cookie: int) -> None:
    """Write both rows of an entry at a place of the listing; ``parent`` is not changed by it."""
    entry = Dentry(child.ino, stat.S_IFMT(child.mode), cookie)
    records.DENTRY.store(txn, keys.dentry(parent.ino, name), entry)
    records.LISTING.store(txn, keys.listing(parent.ino, cookie), ListingRow(name, child.ino))


def is_below(txn: ReadTxn, directory: Inode, ancestor: InodeId) -> bool:
    """Whether ``ancestor`` is ``directory`` or lies above it. Raises DamagedRecord if going up leads in a
    circle."""
    seen: set[InodeId] = set()
    while directory.ino != ancestor:
        if directory.parent == directory.ino:
            return False
        if directory.ino in seen:
            raise DamagedRecord(f"directory {directory.ino} lies below itself", keys.inode(directory.ino))
        seen.add(directory.ino)
        directory = load(txn, directory.parent)
    return True
