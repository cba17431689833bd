"""CREATE: make a regular file, or find the one that has the name. As open(2) with O_CREAT.

A session that makes files by itself (docs/leases.md) tells of them here, each with what it holds, its bytes or its
extents, and with the attributes that were set meanwhile. All is checked before anything is written: a file that is
refused for its chunks does not exist.
"""

import errno
import stat
from typing import Final

import msgspec

from shoalfs.mds import dentry, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import CommitInline, Create, Created, Inode, Patch, SetAttr
from shoalfs.mds.ops import make_entry
from shoalfs.mds.ops.commit_extents import check_first, link_first
from shoalfs.mds.ops.commit_inline import commit_inline
from shoalfs.mds.ops.context import Context
from shoalfs.mds.ops.setattr import setattr_
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage, LayoutConflict, PosixError
from shoalfs.transport.limits import INLINE_BYTES_MAX, TIME_NS_MAX, TIME_NS_MIN

_PLAIN_BITS: Final = make_entry.PERMISSION_BITS & ~(stat.S_ISUID | stat.S_ISGID)


def create(txn: Txn, context: Context, request: Create) -> Created:
    """Permission to open a file that exists already is not checked here: that is the open that follows."""
    who = request.who
    if request.data and request.extents:
        raise BadMessage("a file has its bytes in the inode or in chunks")
    if not request.ino and (request.data or request.extents):
        raise BadMessage("a file that is made with bytes has a number")
    inodes.check_credentials(who)
    _check_attributes(request)
    parent = dentry.search(txn, who, request.parent)
    dentry.check_name(request.name)
    if request.name in dentry.DOTS:
        raise PosixError(errno.EEXIST if request.exclusive else errno.EISDIR)
    found = dentry.find(txn, parent, request.name)
    if found is not None and request.ino == found.ino:
        child = inodes.load(txn, found.ino)
        if _is_empty(child):
            check_first(txn, context.session, child.pool, request.extents, request.receipts)
        return Created(_complete(txn, context, request, child), created=True)
    if found is not None:
        if request.exclusive or request.ino:
            raise PosixError(errno.EEXIST)
        if found.kind == stat.S_IFDIR:
            raise PosixError(errno.EISDIR)
        return Created(inodes.load(txn, found.ino), created=False)
    dentry.check_insert(who, parent, subdirectory=False)
    _check_number(txn, context, request, parent)
    mode = stat.S_IFREG | request.mode & make_entry.PERMISSION_BITS
    child = make_entry.make(txn, context, who, parent, request.name, mode, umask=request.umask, ino=request.ino)
    return Created(_complete(txn, context, request, child), created=True)


def _check_attributes(request: Create) -> None:
    """They are such as whoever makes the file may set: nothing of :func:`setattr_` refuses them afterwards."""
    asked, who = request.attributes, request.who
    if asked is None:
        return
    if not request.ino or (asked.mode is not None and asked.mode & ~_PLAIN_BITS):
        raise BadMessage("attributes of a new file: of one with a number, and no set-id bits")
    if any(number is not None and not inodes.is_id(number) for number in (asked.uid, asked.gid)):
        raise PosixError(errno.EINVAL)
    times = (asked.atime_ns, asked.mtime_ns, asked.ctime_ns)
    if any(t is not None and not TIME_NS_MIN <= t <= TIME_NS_MAX for t in times):
        raise PosixError(errno.EINVAL)
    if who.uid != 0 and (asked.uid not in (None, who.uid) or asked.gid not in (None, who.gid)):
        raise PosixError(errno.EPERM)


def _check_number(txn: ReadTxn, context: Context, request: Create, parent: Inode) -> None:
    """The number is free and the session's to give, the bytes will find room, and the chunks are there: checked before
    the first write."""
    if not request.ino:
        return
    row = records.SESSION.load(txn, keys.session(context.session))
    if row is None or not any(first <= request.ino < end for first, end in row.inodes):
        raise BadMessage(f"inode number {request.ino} is not reserved for this session")
    if records.INODE.load(txn, keys.inode(request.ino)) is not None:
        raise PosixError(errno.EEXIST, f"inode {request.ino} exists under another name")
    if len(request.data) > min(parent.inline_bytes_max, INLINE_BYTES_MAX):
        raise LayoutConflict("the file is too large for the metadata")
    check_first(txn, context.session, inodes.pool_below(txn, parent), request.extents, request.receipts)


def _is_empty(child: Inode) -> bool:
    """Nobody has put anything into it."""
    return child.data_version == 1


def _complete(txn: Txn, context: Context, request: Create, child: Inode) -> Inode:
    child = _filled(txn, context, request, child)
    if request.attributes is None:
        return child
    asked = msgspec.structs.asdict(request.attributes)
    ctime_ns = asked.pop("ctime_ns")
    if any(value is not None for value in asked.values()):
        child = setattr_(txn, context, SetAttr(request.who, child.ino, **asked)).inode
    if ctime_ns is not None:
        child = msgspec.structs.replace(child, ctime_ns=min(ctime_ns, context.now_ns))
        inodes.store(txn, child)
    return child


def _filled(txn: Txn, context: Context, request: Create, child: Inode) -> Inode:
    """The file with what it is made with, once."""
    if not _is_empty(child):
        return child
    if request.extents:
        return link_first(txn, context, child, request.extents)
    if request.data:
        return commit_inline(txn, context, CommitInline(child.ino, (Patch(0, request.data),))).inode
    return child
