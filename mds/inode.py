"""Inodes in the store: load, make, change, remove, and the counters that go with them.

Knows rows and records, not permissions or names. The one rule: whoever changes an inode stores the whole new
record, with its version one higher; ``changed`` and ``content_changed`` see to that.
"""

import errno
import stat

import msgspec

from shoalfs.mds import keys, records, trash
from shoalfs.mds.messages import Credentials, Inode, new_inode
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId, PoolId

FIRST_COOKIE = 3  # 0, 1 and 2 stand for the start, "." and ".."
_ID_MAX = (1 << 32) - 2  # of users and groups; 2^32 - 1 means "no change" to chown(2)


def load(txn: ReadTxn, ino: InodeId) -> Inode:
    """The inode. Raises ESTALE if there is none: the caller held on to a number whose inode is gone."""
    inode = records.INODE.load(txn, keys.inode(ino)) if 0 < ino <= keys.U64_MAX else None
    if inode is None:
        raise PosixError(errno.ESTALE)
    return inode


def store(txn: Txn, inode: Inode) -> None:
    records.INODE.store(txn, keys.inode(inode.ino), inode)


def changed(inode: Inode, now_ns: int, **fields: object) -> Inode:
    """The inode with other attributes: ctime and version move."""
    return msgspec.structs.replace(inode, version=inode.version + 1, ctime_ns=now_ns, **fields)


def content_changed(inode: Inode, now_ns: int, **fields: object) -> Inode:
    """The inode with other bytes, another size or other entries: mtime and data_version move too."""
    return changed(inode, now_ns, mtime_ns=now_ns, data_version=inode.data_version + 1, **fields)


def store_changed(txn: Txn, inode: Inode, now_ns: int, **fields: object) -> Inode:
    """Store the inode with other attributes, and return it."""
    inode = changed(inode, now_ns, **fields)
    store(txn, inode)
    return inode


def store_if_changed(txn: Txn, inode: Inode, now_ns: int, **fields: object) -> Inode:
    """As :func:`store_changed`. Fields that are as they were change nothing, not even the ctime: so does ext4 when an
    extended attribute is set to what it is."""
    if all(getattr(inode, name) == value for name, value in fields.items()):
        return inode
    return store_changed(txn, inode, now_ns, **fields)


def load_counters(txn: ReadTxn) -> records.Counters:
    return records.COUNTERS.require(txn, keys.COUNTERS)


def store_counters(txn: Txn, counters: records.Counters) -> None:
    records.COUNTERS.store(txn, keys.COUNTERS, counters)


def check_credentials(who: Credentials) -> None:
    """Raises BadMessage if the ids are none; checked where they are about to be stored."""
    if not (0 <= who.uid <= _ID_MAX and 0 <= who.gid <= _ID_MAX):
        raise BadMessage("a user or group id is out of range")


def is_id(number: int) -> bool:
    """Whether it can be a user or group id."""
    return 0 <= number <= _ID_MAX


def make(
    txn: Txn,
    parent: Inode,
    *,
    mode: int,
    uid: int,
    gid: int,
    now_ns: int,
    rdev: int,
    size_bytes: int,
    acl: bytes = b"",
    default_acl: bytes = b"",
    ino: int = 0,
) -> Inode:
    """A new inode with this number, or the next one, its layout taken from ``parent``; stored and counted, not yet
    linked to."""
    counters = load_counters(txn)
    is_dir = stat.S_ISDIR(mode)
    inode = new_inode(
        parent,
        ino=ino or counters.next_ino,
        mode=mode,
        uid=uid,
        gid=gid,
        now_ns=now_ns,
        pool=pool_below(txn, parent),
        nlink=2 if is_dir else 1,
        rdev=rdev,
        size_bytes=size_bytes,
        parent=parent.ino if is_dir else 0,
        next_cookie=FIRST_COOKIE if is_dir else 0,
        acl=acl,
        default_acl=default_acl,
    )
    store(txn, inode)
    next_ino = counters.next_ino if ino else counters.next_ino + 1
    counters = msgspec.structs.replace(counters, next_ino=next_ino, inodes=counters.inodes + 1)
    store_counters(txn, counters)
    return inode


def pool_below(txn: ReadTxn, parent: Inode) -> PoolId:
    """The pool of what is made in a directory. One that is closing (mds/ops/set_pool.py) is handed down no more, so
    that those who have it only become fewer; the root's takes its place."""
    if records.POOL.require(txn, keys.pool(parent.pool)).closing_epoch:
        return load(txn, ROOT_INODE).pool
    return parent.pool


def unlinked(txn: Txn, inode: Inode, now_ns: int, parent: InodeId, name: bytes) -> Inode:
    """Take one link off the inode (all of them off a directory), the name ``name`` in ``parent``, and store it. At 0 it
    becomes an orphan, which keeps its bytes until the last close, or goes to the trash."""
    inode = changed(inode, now_ns, nlink=0 if inode.is_dir else inode.nlink - 1)
    assert inode.nlink >= 0, inode.ino
    store(txn, inode)
    if inode.nlink == 0 and not trash.keep(txn, inode, now_ns, parent, name):
        add_orphan(txn, inode)
    return inode


def add_orphan(txn: Txn, inode: Inode) -> None:
    """Note an inode without a name: it is removed once nobody has it open."""
    txn.put(keys.orphan(inode.ino), b"")
    counters = load_counters(txn)
    store_counters(txn, msgspec.structs.replace(counters, orphans=counters.orphans + 1))


def adopt_orphan(txn: Txn, inode: Inode) -> None:
    """It is about to get a name."""
    txn.delete(keys.orphan(inode.ino))
    counters = load_counters(txn)
    store_counters(txn, msgspec.structs.replace(counters, orphans=counters.orphans - 1))
