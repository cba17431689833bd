"""SETATTR: mode, owner, group, times and size. As chmod(2), chown(2), utimensat(2) and truncate(2) on
Linux."""

import errno
import stat
from typing import Any

from shoalfs.mds import acl, extents, inline, permission, privileges
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import NOW, Entry, Inode, SetAttr, Storage
from shoalfs.mds.ops.context import Context
from shoalfs.mds.ops.make_entry import PERMISSION_BITS
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, TIME_NS_MAX, TIME_NS_MIN


def setattr_(txn: Txn, context: Context, request: SetAttr) -> Entry:
    """All that is asked for, or nothing. A file that is cut is short at once, however many extents it had; what it
    takes to remove them is bounded (:class:`shoalfs.mds.extents.Edit`)."""
    inode = inodes.load(txn, request.ino)
    _check_owners(request, inode)
    _check_mode(request, inode)
    _check_times(request, inode)
    _check_size(request, inode)
    fields: dict[str, Any] = {"mode": _mode_after(request, inode)}
    rewritten = (request.uid, request.gid, request.size_bytes) != (None, None, None) or _asks_nothing(request)
    if inode.is_file and rewritten:
        fields |= privileges.without_capability(txn, inode)
    if request.mode is not None and inode.acl:
        fields["acl"] = acl.encode(acl.with_mode(acl.decode(inode.acl), request.mode))
    if request.uid is not None:
        fields["uid"] = request.uid
    if request.gid is not None:
        fields["gid"] = request.gid
    if request.size_bytes is None:
        fields |= _times_after(request, context.now_ns)
        inode = inodes.changed(inode, context.now_ns, **fields)
    else:
        fields |= _resize(txn, inode, request.size_bytes, context)
        fields |= {"data_version": inode.data_version + 1, "mtime_ns": context.now_ns}
        fields |= _times_after(request, context.now_ns)
        inode = inodes.changed(inode, context.now_ns, **fields)
    inodes.store(txn, inode)
    return Entry(inode)


# --- checks -------------------------------------------------------------------------------------------------


def _check_owners(request: SetAttr, inode: Inode) -> None:
    who = request.who
    takes_bits = _asks_nothing(request) and _mode_after(request, inode) != inode.mode
    if takes_bits and not permission.permits(who, inode, permission.WRITE):
        permission.check_owner(who, inode)
    for number in (request.uid, request.gid):
        if number is not None and not inodes.is_id(number):
            raise PosixError(errno.EINVAL)
    if request.uid is not None and who.uid != 0 and not who.uid == inode.uid == request.uid:
        raise PosixError(errno.EPERM)
    if request.gid is not None and who.uid != 0:
        permitted = request.gid == inode.gid or permission.in_group(who, request.gid)
        if who.uid != inode.uid or not permitted:
            raise PosixError(errno.EPERM)


def _asks_nothing(request: SetAttr) -> bool:
    """Two calls come as a request without fields, and both take set-id bits and capabilities away: chown(2) that leaves
    owner and group as they are (fs/open.c, chown_common), which is the owner's, and write(2) to a file that has
    capabilities (fs/inode.c, file_remove_privs), which is for whoever may write. They cannot be told apart."""
    fields = (request.mode, request.uid, request.gid, request.size_bytes, request.atime_ns, request.mtime_ns)
    return all(field is None for field in fields)


def _check_mode(request: SetAttr, inode: Inode) -> None:
    """A mode is the owner's to set. But whoever writes to a file takes its set-id bits away, and Linux asks for that as
    a change of mode on behalf of the writer (fs/fuse/dir.c, fuse_setattr)."""
    if request.mode is None:
        return
    gone = (inode.mode ^ request.mode) & PERMISSION_BITS
    if inode.is_file and gone and not gone & ~(stat.S_ISUID | stat.S_ISGID) and not request.mode & gone:
        if not permission.is_owner(request.who, inode) and not request.by_handle:
            permission.check(request.who, inode, permission.WRITE)
        return
    permission.check_owner(request.who, inode)


def _check_times(request: SetAttr, inode: Inode) -> None:
    """Times of one's choice are the owner's to set; the present time is for whoever may write. A truncation
    carries the present time with it, and has its own check."""
    times = [t for t in (request.atime_ns, request.mtime_ns) if t is not None]
    if any(t != NOW and not TIME_NS_MIN <= t <= TIME_NS_MAX for t in times):
        raise PosixError(errno.EINVAL)
    if any(t != NOW for t in times):
        permission.check_owner(request.who, inode)
    elif times and request.size_bytes is None and not permission.is_owner(request.who, inode):
        permission.check(request.who, inode, permission.WRITE)


def _check_size(request: SetAttr, inode: Inode) -> None:
    if request.size_bytes is None:
        return
    if inode.is_dir:
        raise PosixError(errno.EISDIR)
    if not inode.is_file or request.size_bytes < 0:
        raise PosixError(errno.EINVAL)
    if not request.by_handle:
        permission.check(request.who, inode, permission.WRITE)
    if request.size_bytes > FILE_SIZE_BYTES_MAX:
        raise PosixError(errno.EFBIG)


# --- effects ------------------------------------------------------------------------------------------------


def _mode_after(request: SetAttr, inode: Inode) -> int:
    """The new mode. A set-group-id bit needs membership in the group; a change of owner, also by root, and a
    truncation by anybody else take the set-id bits off a file."""
    if request.mode is not None:
        mode = stat.S_IFMT(inode.mode) | request.mode & PERMISSION_BITS
        gid = inode.gid if request.gid is None else request.gid
        if request.who.uid != 0 and not permission.in_group(request.who, gid):
            mode &= ~stat.S_ISGID
        return mode
    chowned = request.uid is not None or request.gid is not None or _asks_nothing(request)
    truncated = request.size_bytes is not None and request.who.uid != 0
    if not inode.is_dir and (chowned or truncated):
        return permission.without_set_id(inode.mode)
    return inode.mode


def _times_after(request: SetAttr, now_ns: int) -> dict[str, int]:
    wanted = {"atime_ns": request.atime_ns, "mtime_ns": request.mtime_ns}
    return {name: now_ns if t == NOW else t for name, t in wanted.items() if t is not None}


def _resize(txn: Txn, inode: Inode, size_bytes: int, context: Context) -> dict[str, int]:
    """Drop what lies past the new size. Returns the fields of the inode that follow from it."""
    if inode.storage is Storage.INLINE:
        before = inline.load(txn, inode.ino)
        inline.store(txn, inode.ino, before, before[:size_bytes])
        return {"size_bytes": size_bytes, "used_bytes": min(len(before), size_bytes)}
    if size_bytes >= inode.size_bytes:
        return {"size_bytes": size_bytes}
    edit = extents.Edit(txn, inode, context.bounds.rows_max)
    edit.cut_off(size_bytes)
    return {"size_bytes": size_bytes} | edit.settle(context.now_ns)
