"""Repairs of inodes, names, and what belongs to one inode. Pure. The rules: :mod:`shoalfs.mds.mending`."""

import functools
import stat
from collections.abc import Callable
from itertools import chain

import msgspec

from shoalfs.mds import acl, cluster, extents, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.mend_view import Change, Name, View, gone, unrepaired
from shoalfs.mds.messages import NOT_CUT_OFF, Finding, Inode, Storage
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import CHUNK_BYTES_DEFAULT, FILE_SIZE_BYTES_MAX

_FOLLOWS = "it follows from another finding: check again when that is repaired"

# --- inodes that are gone, and their rows ---------------------------------------------------------------------------


def _of_inode(plan: Callable[[View, Inode], Change]) -> Callable[[View, Finding], Change]:
    """A plan about the inode of a finding; if that has gone meanwhile, there is nothing to do."""

    @functools.wraps(plan)
    def planned(view: View, finding: Finding) -> Change:
        inode = view.inode(finding.ino)
        return gone() if inode is None else plan(view, inode)

    return planned


def number(view: View, finding: Finding) -> Change:
    inode = view.inode(finding.ino)
    return gone() if inode is None else view.set_inode("write its own number into the inode", inode_at(inode, finding))


def inode_at(inode: Inode, finding: Finding) -> Inode:
    """The key is right: names lead to it."""
    return msgspec.structs.replace(inode, ino=finding.ino)


def stray(view: View, finding: Finding) -> Change:
    """Rows of a session that is gone go. Bytes and entries of an inode that is gone get a new inode, of what is left to
    see of it; its attributes and orphan rows alone say nothing."""
    prefix = finding.key[:1]
    if prefix in (b"R", b"n"):
        change = Change("remove what belongs to a session that is gone")
        view.drop(change, finding.key)
        return change if change.is_repair else gone()
    if view.inode(finding.ino) is not None:
        return gone()
    inode = _rebuilt(view, finding.ino)
    if inode is None:
        change = Change(f"remove the row {prefix.decode()} of an inode of which nothing else is left")
        view.drop(change, finding.key)
        return change if change.is_repair else gone()
    kind = "directory" if inode.is_dir else "symlink" if inode.is_symlink else "file"
    change = Change(f"make inode {inode.ino} anew as a {kind} of root's: its owner, mode and times are lost")
    view.put(change, keys.inode(inode.ino), records.INODE.encode(inode))
    return change


def _rebuilt(view: View, ino: InodeId) -> Inode | None:
    """An inode for the rows that are left; None if they hold nothing."""
    entries = [records.DENTRY.decode(*row) for row in view.txn.range(*keys.under(b"D", ino))]
    listed = [keys.second_field(key) for key, _ in view.txn.range(*keys.under(b"E", ino))]
    linked = [records.EXTENT.decode(*row) for row in view.txn.range(*keys.under(b"X", ino))]
    inline = view.txn.get(keys.inline(ino))
    if not (entries or listed or linked or inline):
        return None
    names = view.names(ino)
    if entries or listed:
        kind = stat.S_IFDIR
    elif inline and not linked and names and names[0].entry.kind == stat.S_IFLNK:
        kind = stat.S_IFLNK
    else:
        kind = stat.S_IFREG
    is_dir = kind == stat.S_IFDIR
    pools = cluster.load_map(view.txn).pools
    root = view.inode(ROOT_INODE)
    nlink = 2 + sum(entry.kind == stat.S_IFDIR for entry in entries) if is_dir else max(1, len(names))
    return Inode(
        ino=ino,
        mode=kind | (0o777 if kind == stat.S_IFLNK else 0o700 if is_dir else 0o600),
        nlink=nlink,
        uid=0,
        gid=0,
        rdev=0,
        size_bytes=len(entries) if is_dir else max([e.end_bytes for e in linked], default=len(inline or b"")),
        used_bytes=0 if kind != stat.S_IFREG else sum(e.length_bytes for e in linked) + len(inline or b""),
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        btime_ns=0,
        version=1 << 32,  # above whatever it had
        data_version=1 << 32,
        storage=Storage.EXTENTS if linked else Storage.INLINE,
        pool=root.pool if root else pools[0].id,
        chunk_bytes=root.chunk_bytes if root else CHUNK_BYTES_DEFAULT,
        inline_bytes_max=root.inline_bytes_max if root else 0,
        parent=(names[0].parent if names else ROOT_INODE) if is_dir else InodeId(0),
        next_cookie=_next_cookie(entries, listed) if is_dir else 0,
        xattr_bytes=_xattr_bytes(view, ino),
        extents=len(linked),
    )


def _next_cookie(entries: list[records.Dentry], listed: list[int]) -> int:
    return 1 + max(chain((entry.cookie for entry in entries), listed), default=inodes.FIRST_COOKIE - 1)


# --- entries --------------------------------------------------------------------------------------------------------


def listing(view: View, finding: Finding) -> Change:
    """A listing row without its name: bring the name back, unless it leads somewhere else or the inode is gone."""
    row = records.LISTING.load(view.txn, finding.key)
    if row is None:
        return gone()
    parent, cookie = InodeId(keys.first_field(finding.key)), keys.second_field(finding.key)
    key = keys.dentry(parent, row.name)
    child = view.inode(row.ino)
    if records.DENTRY.load(view.txn, key) is not None or child is None or (child.is_dir and view.names(row.ino)):
        change = Change(f"remove {row.name!r} from the listing at {cookie}")
        view.see(change, key)
        view.drop(change, finding.key)
        return change
    change = Change(f"let the name {row.name!r} lead to inode {row.ino} again")
    view.see(change, finding.key)
    view.put(change, key, records.DENTRY.encode(records.Dentry(row.ino, stat.S_IFMT(child.mode), cookie)))
    return change


def not_listed(view: View, finding: Finding) -> Change:
    """A name without its listing row: list it, at the end if its place is taken or cannot be."""
    entry = records.DENTRY.load(view.txn, finding.key)
    parent, name = InodeId(keys.first_field(finding.key)), keys.name_of(finding.key)
    directory = view.inode(parent)
    if entry is None or directory is None:
        return gone()
    cookie = entry.cookie
    if cookie < inodes.FIRST_COOKIE or view.txn.get(keys.listing(parent, cookie)) is not None:
        cookie = directory.next_cookie
        change = view.set_inode(f"list {name!r} at {cookie}", directory, next_cookie=cookie + 1)
    else:
        change = Change(f"list {name!r} at {cookie}")
    row = records.Dentry(entry.ino, entry.kind, cookie)
    view.put(change, finding.key, records.DENTRY.encode(row))
    view.put(change, keys.listing(parent, cookie), records.LISTING.encode(records.ListingRow(name, entry.ino)))
    return change


def dangling(view: View, finding: Finding) -> Change:
    entry = records.DENTRY.load(view.txn, finding.key)
    if entry is None or view.inode(entry.ino) is not None:
        return gone()
    name = Name(InodeId(keys.first_field(finding.key)), keys.name_of(finding.key), entry)
    change = Change(f"remove the name {name.name!r}: nothing is left of inode {entry.ino}")
    view.see(change, keys.inode(entry.ino))
    _remove(view, change, name)
    return change


def entry_type(view: View, finding: Finding) -> Change:
    entry = records.DENTRY.load(view.txn, finding.key)
    child = None if entry is None else view.inode(entry.ino)
    if entry is None or child is None:
        return gone()
    kind = stat.S_IFMT(child.mode)
    change = Change(f"note the type {kind:o} with the name {keys.name_of(finding.key)!r}")
    view.see(change, keys.inode(entry.ino))
    view.put(change, finding.key, records.DENTRY.encode(msgspec.structs.replace(entry, kind=kind)))
    return change


def _remove(view: View, change: Change, name: Name) -> None:
    """Both rows of an entry; the listing row only if it is this entry's."""
    view.drop(change, keys.dentry(name.parent, name.name))
    row = records.LISTING.load(view.txn, keys.listing(name.parent, name.entry.cookie))
    if row is not None and row.name == name.name:
        view.drop(change, keys.listing(name.parent, name.entry.cookie))


# --- the tree -------------------------------------------------------------------------------------------------------


def two_names(view: View, finding: Finding) -> Change:
    """A directory keeps the name in the directory that it calls its parent."""
    inode, names = view.inode(finding.ino), view.names(finding.ino)
    if inode is None or len(names) < 2:
        return gone()
    kept = next((name for name in names if name.parent == inode.parent), names[0])
    removed = [name for name in names if name is not kept]
    change = Change(f"keep the name {kept.name!r} in {kept.parent}, remove {len(removed)} others")
    view.see(change, keys.inode(inode.ino))
    view.see(change, keys.dentry(kept.parent, kept.name))
    for name in removed:
        _remove(view, change, name)
    return change


def parent(view: View, finding: Finding) -> Change:
    inode, names = view.inode(finding.ino), view.names(finding.ino)
    if inode is None:
        return gone()
    if inode.ino == ROOT_INODE:
        if names:
            change = Change("remove the names of the root")
            for name in names:
                _remove(view, change, name)
            return change
        return view.set_inode("make the root its own parent", inode, parent=ROOT_INODE)
    if len(names) != 1 or names[0].parent == inode.parent:
        return unrepaired(_FOLLOWS)
    change = view.set_inode(f"let its parent be {names[0].parent}, where its name is", inode, parent=names[0].parent)
    view.see(change, keys.dentry(names[0].parent, names[0].name))
    return change


def cycle(view: View, finding: Finding) -> Change:
    """Directories that lie below each other: the one with the lowest number is moved to /lost+found, and the others
    with it."""
    ring: list[InodeId] = []
    at = finding.ino
    while at not in ring:
        inode = view.inode(at)
        if inode is None or at == ROOT_INODE:
            return gone()
        ring.append(at)
        at = inode.parent
    ring = ring[ring.index(at) :]
    if finding.ino != min(ring):
        return unrepaired(_FOLLOWS)
    change = Change(f"move directory {finding.ino} to /lost+found")
    for member in ring:
        view.see(change, keys.inode(member))
    for name in view.names(finding.ino):
        _remove(view, change, name)
    change.nameless.append(finding.ino)
    return change


def unreachable(view: View, finding: Finding) -> Change:
    inode = view.inode(finding.ino)
    if inode is None or view.names(finding.ino):
        return gone()
    if inode.size_bytes == 0 and not inode.is_dir and view.txn.get(keys.orphan(inode.ino)) is not None:
        return view.set_inode("let it be removed: it is empty, without a name, and listed as such", inode, nlink=0)
    change = Change(f"give it the name /lost+found/#{inode.ino}")
    view.see(change, keys.inode(inode.ino))
    view.drop(change, keys.orphan(inode.ino))
    change.nameless.append(inode.ino)
    return change


# --- counts and sizes -----------------------------------------------------------------------------------------------


def linked_orphan(view: View, finding: Finding) -> Change:
    inode = view.inode(finding.ino)
    if inode is None or inode.nlink == 0:
        return gone()
    change = Change("strike it from the list of what is to be removed: it has a name")
    view.see(change, keys.inode(inode.ino))
    view.drop(change, keys.orphan(inode.ino))
    return change if change.is_repair else gone()


def orphan(view: View, finding: Finding) -> Change:
    inode = view.inode(finding.ino)
    if inode is None or inode.nlink or view.names(finding.ino):
        return unrepaired(_FOLLOWS)
    if view.txn.get(keys.trash(inode.ino)) is not None:
        return gone()
    change = Change("have it removed: it has no name")
    view.see(change, keys.trash(inode.ino))
    view.see(change, keys.inode(inode.ino))
    view.put(change, keys.orphan(inode.ino), b"")
    return change


def trash(view: View, finding: Finding) -> Change:
    """What has a name, or is about to be removed, is not in the trash; what is, has its place in time."""
    if finding.key[:1] == b"q":
        change = Change("strike it from the list of what is due: it is not in the trash")
        view.drop(change, finding.key)
        return change if change.is_repair else gone()
    row = records.TRASH.load(view.txn, finding.key)
    inode = view.inode(finding.ino)
    if row is None or inode is None:
        return gone()
    by_time = keys.trash_by_time(row.deleted_ns, inode.ino)
    change = Change("take it out of the trash")
    view.see(change, keys.inode(inode.ino))
    view.see(change, keys.orphan(inode.ino))
    if inode.nlink > 0 or view.txn.get(keys.orphan(inode.ino)) is not None:
        view.drop(change, finding.key)
        view.drop(change, by_time)
        return change
    change.text = "let it leave the trash in its turn"
    view.see(change, finding.key)
    view.put(change, by_time, b"")
    return change


def nlink(view: View, finding: Finding) -> Change:
    inode, names = view.inode(finding.ino), view.names(finding.ino)
    if inode is None:
        return gone()
    if not inode.is_dir:
        return view.set_inode(f"count {len(names)} links", inode, nlink=len(names))
    if not names and inode.ino != ROOT_INODE:
        return unrepaired(_FOLLOWS)
    below = [records.DENTRY.decode(*row) for row in view.txn.range(*keys.under(b"D", inode.ino))]
    links = 2 + sum(entry.kind == stat.S_IFDIR for entry in below)
    return view.set_inode(f"count {links} links", inode, nlink=links)


@_of_inode
def directory_size(view: View, inode: Inode) -> Change:
    entries = sum(1 for _ in view.txn.range(*keys.under(b"D", inode.ino)))
    return view.set_inode(f"count {entries} entries", inode, size_bytes=entries)


@_of_inode
def cookies(view: View, inode: Inode) -> Change:
    entries = [records.DENTRY.decode(*row) for row in view.txn.range(*keys.under(b"D", inode.ino))]
    listed = [keys.second_field(key) for key, _ in view.txn.range(*keys.under(b"E", inode.ino))]
    following = _next_cookie(entries, listed)
    return view.set_inode(f"let new entries begin at {following}", inode, next_cookie=following)


@_of_inode
def used_bytes(view: View, inode: Inode) -> Change:
    used = len(view.txn.get(keys.inline(inode.ino)) or b"")
    used += sum(records.EXTENT.decode(*row).length_bytes for row in view.txn.range(*keys.under(b"X", inode.ino)))
    return view.set_inode(f"count {used} bytes", inode, used_bytes=used)


@_of_inode
def extent_count(view: View, inode: Inode) -> Change:
    count = sum(1 for _ in view.txn.range(*keys.under(b"X", inode.ino)))
    return view.set_inode(f"count {count} extents", inode, extents=count)


@_of_inode
def cut_off(view: View, inode: Inode) -> Change:
    """Bytes are not given up for tidiness: an extent that reaches behind the place where the file was cut is shown
    whole. Then the list of what is to be removed follows the inode."""
    if inode.cut_off_bytes == NOT_CUT_OFF:
        change = Change("strike it from the list of files with extents to be removed: nothing was cut off")
        view.see(change, keys.inode(inode.ino))
        view.drop(change, keys.cut_off(inode.ino))
        return change if change.is_repair else gone()
    rows = view.txn.range(keys.under(b"X", inode.ino)[0], keys.extent(inode.ino, inode.cut_off_bytes), reverse=True)
    last = next((records.EXTENT.decode(*row) for row in rows), None)
    if last is not None and last.end_bytes > inode.cut_off_bytes:
        text = f"let what was cut off begin at {last.end_bytes}"
        change = view.set_inode(text, inode, cut_off_bytes=last.end_bytes)
    else:
        change = Change("have the extents removed that were cut off")
        view.see(change, keys.inode(inode.ino))
    view.put(change, keys.cut_off(inode.ino), b"")
    return change


@_of_inode
def xattr_bytes(view: View, inode: Inode) -> Change:
    size_bytes = _xattr_bytes(view, inode.ino)
    return view.set_inode(f"count {size_bytes} bytes of attributes", inode, xattr_bytes=size_bytes)


def _xattr_bytes(view: View, ino: InodeId) -> int:
    return sum(len(keys.name_of(key)) + len(value) for key, value in view.txn.range(*keys.under(b"A", ino)))


@_of_inode
def symlink_size(view: View, inode: Inode) -> Change:
    size_bytes = len(view.txn.get(keys.inline(inode.ino)) or b"")
    return view.set_inode(f"note its length, {size_bytes}", inode, size_bytes=size_bytes)


@_of_inode
def size(view: View, inode: Inode) -> Change:
    """Bytes are there, so the file is as long as they reach."""
    end = len(view.txn.get(keys.inline(inode.ino)) or b"")
    for extent in extents.visible(view.txn, inode, 0, FILE_SIZE_BYTES_MAX):
        end = max(end, extent.end_bytes)
    return view.set_inode(f"let it be {end} bytes long, as far as its bytes reach", inode, size_bytes=end)


@_of_inode
def access_lists(view: View, inode: Inode) -> Change:
    """The mode stays, and no list says more than it could. A mode's group bits with a list are its mask: without the
    list they would be the group's, so the group loses what only the list gave."""
    keep_default = inode.default_acl if inode.is_dir and _is_valid(inode.default_acl) else b""
    text = "remove the list that contradicts the mode: set it again where it is needed"
    if not inode.acl:
        return view.set_inode(text, inode, default_acl=keep_default)
    mode = inode.mode if inode.is_symlink else inode.mode & ~0o070
    return view.set_inode(text, inode, acl=b"", default_acl=keep_default, mode=mode)


def _is_valid(data: bytes) -> bool:
    try:
        acl.decode(data)
    except PosixError:
        return False
    return True


@_of_inode
def bytes_of_no_file(view: View, inode: Inode) -> Change:
    change = Change("remove bytes of what is no file")
    view.see(change, keys.inode(inode.ino))
    if not inode.is_symlink:
        view.drop(change, keys.inline(inode.ino))
    for key, _ in view.txn.range(*keys.under(b"X", inode.ino)):
        view.drop(change, key)
    return change if change.is_repair else gone()
