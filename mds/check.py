"""The namespace check: every invariant between the rows of the store, a page of inodes at a time. Pure,
changes nothing.

A damaged record is a finding like the others, and the check goes on behind it; what hangs on the damaged
record is then often found as well (a directory entry that leads nowhere). The invariants that belong to no
single inode (chunks, counters, rows that belong to nothing) come with the last page, from
:mod:`shoalfs.mds.check_totals`.

Known doubt: an inode does not know its names, so each page reads all directory entries once. A caller that
checks a large filesystem asks for large pages.
"""

import stat
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from shoalfs.mds import acl, check_totals, keys, records
from shoalfs.mds.check_findings import Findings
from shoalfs.mds.messages import NOT_CUT_OFF, CheckNamespace, Extent, Inode, NamespaceChecked, Storage
from shoalfs.mds.records import Dentry
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import DamagedRecord, PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import LISTING_BYTES_MAX

_EXTENTS_MAX = LISTING_BYTES_MAX // 80  # listed in one reply
_INODES_MAX = 1_000_000  # of one page

Names = dict[InodeId, list[InodeId]]
"""For each inode of the page, the directories that have a name for it, one element per name."""


def check_namespace(txn: ReadTxn, request: CheckNamespace) -> NamespaceChecked:
    """Check the inodes behind ``after_ino``; ``next_ino`` of the reply is the ``after_ino`` of the next
    request.

    The page ends early when its extents or findings fill the reply. Of an inode with more extents than fit, all
    are checked, and those that are not listed are named as such.
    """
    findings = Findings()
    count = max(1, min(request.count, _INODES_MAX))
    page, last = _load_page(txn, request.after_ino, count, findings)
    names = _names_of(txn, {inode.ino for inode in page})
    listed: list[tuple[InodeId, Extent]] = []
    unlisted: list[tuple[InodeId, int]] = []
    checked = 0
    for inode in page:
        extents = _check_inode(txn, inode, names.get(inode.ino, []), findings)
        room = _EXTENTS_MAX - len(listed)
        listed += [(inode.ino, extent) for extent in extents[:room]]
        if len(extents) > room:
            unlisted.append((inode.ino, extents[room].offset_bytes))
        checked += 1
        if (len(listed) == _EXTENTS_MAX or findings.full) and checked < len(page):
            return NamespaceChecked(inode.ino, checked, findings.found(), tuple(listed), tuple(unlisted))
    if last is None:
        check_totals.check(txn, findings)
    return NamespaceChecked(last or InodeId(0), checked, findings.found(), tuple(listed), tuple(unlisted))


def _load_page(txn: ReadTxn, after_ino: InodeId, count: int, findings: Findings) -> tuple[list[Inode], InodeId | None]:
    """Up to ``count`` inodes behind ``after_ino``, and the last one's number unless these are all."""
    page: list[Inode] = []
    if not 0 <= after_ino < keys.U64_MAX:
        return page, None
    first, (_, end) = keys.inode(InodeId(after_ino + 1)), keys.all_of(b"I")
    for key, value in findings.rows(txn, first, end):
        if len(page) == count:
            return page, page[-1].ino
        ino = InodeId(keys.first_field(key))
        inode = findings.decoded(records.INODE, key, value, ino)
        if inode is not None and inode.ino != ino:
            findings.add("wrong-inode-number", ino, f"the record says {inode.ino}")
        elif inode is not None:
            page.append(inode)
    return page, None


def _names_of(txn: ReadTxn, inos: set[InodeId]) -> Names:
    """Damaged entries are reported with their directory, not here."""
    names: Names = defaultdict(list)
    unreported = Findings()
    for key, value in unreported.rows(txn, *keys.all_of(b"D")):
        entry = unreported.decoded(records.DENTRY, key, value, InodeId(0))
        if entry is not None and entry.ino in inos:
            names[entry.ino].append(InodeId(keys.first_field(key)))
    return names


def _check_inode(txn: ReadTxn, inode: Inode, parents: list[InodeId], findings: Findings) -> list[Extent]:
    """Returns the inode's extents, those that were cut off left out: nobody needs their bytes any more."""
    _check_orphan(txn, inode, findings)
    _check_xattrs(txn, inode, findings)
    _check_acls(inode, findings)
    if inode.is_dir:
        _check_directory_links(txn, inode, parents, findings)
        _check_entries(txn, inode, findings)
    else:
        _check_names(inode, parents, findings)
    extents = list(_extents(txn, inode, findings))
    _check_cut_off(txn, inode, extents, findings)
    inline_bytes = _inline_bytes(txn, inode, findings)
    if inode.is_file:
        _check_bytes(inode, extents, inline_bytes, findings)
    elif extents or (inline_bytes and not inode.is_symlink):
        findings.add("bytes-of-no-file", inode.ino, f"mode {inode.mode:o} has bytes")
    if inode.is_symlink and inline_bytes is not None and inline_bytes != inode.size_bytes:
        findings.add("wrong-symlink-size", inode.ino, f"size {inode.size_bytes}, target of {inline_bytes} bytes")
    return _seen(inode, extents)


# --- names and links ----------------------------------------------------------------------------------------


def _check_orphan(txn: ReadTxn, inode: Inode, findings: Findings) -> None:
    listed = findings.get(txn, keys.orphan(inode.ino), inode.ino)
    kept = findings.load(records.TRASH, txn, keys.trash(inode.ino), inode.ino)
    if kept is not None and (inode.nlink > 0 or listed is not None):
        text = "it is in the trash, although it has a name or is about to be removed"
        findings.add("wrong-trash", inode.ino, text, keys.trash(inode.ino))
    if inode.nlink == 0 and listed is None and kept is None:
        findings.add("orphan-not-listed", inode.ino, "it has no links and no orphan row: it would stay for ever")
    if inode.nlink > 0 and listed is not None:
        findings.add("linked-orphan", inode.ino, f"it has {inode.nlink} links and an orphan row: it would be removed")


def _check_names(inode: Inode, parents: list[InodeId], findings: Findings) -> None:
    if inode.nlink and not parents:
        findings.add("unreachable-inode", inode.ino, f"nlink {inode.nlink}, but no name leads to it")
    elif inode.nlink != len(parents):
        findings.add("wrong-nlink", inode.ino, f"nlink {inode.nlink}, but {len(parents)} names")


def _check_directory_links(txn: ReadTxn, inode: Inode, parents: list[InodeId], findings: Findings) -> None:
    """One name, in the directory that ``..`` leads to, and a way up to the root; none once removed."""
    if inode.ino == ROOT_INODE:
        if inode.parent != ROOT_INODE or parents:
            findings.add("wrong-parent", inode.ino, "the root has a name or another parent than itself")
        return
    if inode.nlink == 0:
        if parents:
            findings.add("wrong-nlink", inode.ino, f"it was removed, but {len(parents)} names lead to it")
        return
    if not parents:
        findings.add("unreachable-inode", inode.ino, "no name leads to the directory")
    elif len(parents) > 1:
        findings.add("directory-with-two-names", inode.ino, f"{len(parents)} names lead to it")
    elif parents[0] != inode.parent:
        findings.add("wrong-parent", inode.ino, f"its name is in {parents[0]}, its parent is {inode.parent}")
    _check_way_up(txn, inode, findings)


def _check_way_up(txn: ReadTxn, inode: Inode, findings: Findings) -> None:
    seen = {inode.ino}
    above = inode.parent
    while above != ROOT_INODE:
        if above in seen:
            findings.add("directory-cycle", inode.ino, f"going up from it comes back to {above}")
            return
        seen.add(above)
        try:
            directory = records.INODE.load(txn, keys.inode(above)) if 0 < above <= keys.U64_MAX else None
        except DamagedRecord:
            return  # reported as an inode
        if directory is None or not directory.is_dir:
            findings.add("wrong-parent", inode.ino, f"going up from it comes to {above}, which is no directory")
            return
        above = directory.parent


def _check_entries(txn: ReadTxn, directory: Inode, findings: Findings) -> None:
    """Both rows of each entry, what it leads to, and the directory's own counts."""
    entries = subdirectories = 0
    cookies: dict[int, bytes] = {}
    for key, value in findings.rows(txn, *keys.under(b"D", directory.ino)):
        entry = findings.decoded(records.DENTRY, key, value, directory.ino)
        if entry is None:
            continue
        entries += 1
        subdirectories += entry.kind == stat.S_IFDIR
        cookies[entry.cookie] = keys.name_of(key)
        _check_entry(txn, directory, key, entry, findings)
    _check_listing(txn, directory, cookies, findings)
    if directory.size_bytes != entries:
        findings.add("wrong-directory-size", directory.ino, f"size {directory.size_bytes}, but {entries} entries")
    if directory.nlink and directory.nlink != 2 + subdirectories:
        findings.add("wrong-nlink", directory.ino, f"nlink {directory.nlink}, but {subdirectories} subdirectories")


def _check_entry(txn: ReadTxn, directory: Inode, key: bytes, entry: Dentry, findings: Findings) -> None:
    name = keys.name_of(key)
    try:
        child = records.INODE.load(txn, keys.inode(entry.ino))
    except DamagedRecord:
        return  # reported as an inode
    if child is None:
        findings.add("dangling-dentry", directory.ino, f"{name!r} leads to inode {entry.ino}, which is not there", key)
    elif stat.S_IFMT(child.mode) != entry.kind:
        findings.add("wrong-dentry-type", directory.ino, f"{name!r} is of type {entry.kind:o}, not {child.mode:o}", key)


def _check_listing(txn: ReadTxn, directory: Inode, cookies: dict[int, bytes], findings: Findings) -> None:
    """``cookies``: the names by the place that they claim in the listing."""
    listed: set[int] = set()
    for key, value in findings.rows(txn, *keys.under(b"E", directory.ino)):
        row = findings.decoded(records.LISTING, key, value, directory.ino)
        if row is None:
            continue
        cookie = keys.second_field(key)
        listed.add(cookie)
        entry = findings.load(records.DENTRY, txn, keys.dentry(directory.ino, row.name), directory.ino)
        if entry is None or entry.cookie != cookie or entry.ino != row.ino:
            findings.add("listing-without-dentry", directory.ino, f"{row.name!r} is listed at {cookie} only", key)
        if cookie >= directory.next_cookie:
            findings.add("wrong-cookie", directory.ino, f"{row.name!r} is at {cookie}, which is yet to be given")
    for cookie in cookies.keys() - listed:
        name = cookies[cookie]
        key = keys.dentry(directory.ino, name)
        findings.add("dentry-not-listed", directory.ino, f"{name!r} is not listed at {cookie}", key)


# --- bytes --------------------------------------------------------------------------------------------------


def _check_xattrs(txn: ReadTxn, inode: Inode, findings: Findings) -> None:
    size_bytes = 0
    for key, value in findings.rows(txn, *keys.under(b"A", inode.ino)):
        size_bytes += len(keys.name_of(key)) + len(value)
    if size_bytes != inode.xattr_bytes:
        findings.add("wrong-xattr-bytes", inode.ino, f"it claims {inode.xattr_bytes} bytes, there are {size_bytes}")


def _check_acls(inode: Inode, findings: Findings) -> None:
    """The lists are valid, where they may be, and the mode agrees."""
    try:
        access, default = (acl.decode(data) if data else () for data in (inode.acl, inode.default_acl))
    except PosixError:
        findings.add("bad-acl", inode.ino, "an access control list is no valid one")
        return
    if inode.acl and (inode.is_symlink or acl.is_minimal(access)):
        findings.add("bad-acl", inode.ino, "it has an access control list that it should not have")
    elif access and acl.permission_bits(access) != inode.mode & 0o777:
        findings.add("bad-acl", inode.ino, f"mode {inode.mode:o} and access control list contradict each other")
    if default and not inode.is_dir:
        findings.add("bad-acl", inode.ino, "it has a default access control list and is no directory")


def _extents(txn: ReadTxn, inode: Inode, findings: Findings) -> Iterator[Extent]:
    for key, value in findings.rows(txn, *keys.under(b"X", inode.ino)):
        extent = findings.decoded(records.EXTENT, key, value, inode.ino)
        if extent is None:
            continue
        inside = extent.chunk_offset_bytes + extent.length_bytes <= extent.chunk_bytes
        if extent.offset_bytes != keys.second_field(key) or extent.length_bytes <= 0 or not inside:
            findings.add("bad-extent", inode.ino, f"the extent at {keys.second_field(key)} contradicts itself")
        yield extent


def _inline_bytes(txn: ReadTxn, inode: Inode, findings: Findings) -> int | None:
    """Length of the inline row, 0 without one, None if it is damaged."""
    damaged_before = findings.damaged
    value = findings.get(txn, keys.inline(inode.ino), inode.ino)
    return None if findings.damaged > damaged_before else len(value or b"")


def _seen(inode: Inode, extents: list[Extent]) -> list[Extent]:
    cut_off_bytes = inode.cut_off_bytes
    if cut_off_bytes == NOT_CUT_OFF:
        return extents
    return [extent for extent in extents if extent.offset_bytes < cut_off_bytes]


def _check_cut_off(txn: ReadTxn, inode: Inode, extents: list[Extent], findings: Findings) -> None:
    """What was cut off is listed, so that it is removed; and begins where what is not ends."""
    listed = findings.get(txn, keys.cut_off(inode.ino), inode.ino) is not None
    if (inode.cut_off_bytes == NOT_CUT_OFF) == listed:
        text = "is listed for it" if listed else "is listed nowhere"
        findings.add("wrong-cut-off", inode.ino, f"extents are cut off at {inode.cut_off_bytes}, and it {text}")
    if len(extents) != inode.extents:
        findings.add("wrong-extent-count", inode.ino, f"it claims {inode.extents} extents, there are {len(extents)}")
    if inode.cut_off_bytes != NOT_CUT_OFF:
        end_bytes = max([extent.end_bytes for extent in _seen(inode, extents)], default=0)
        if end_bytes > inode.cut_off_bytes:
            text = f"extents are cut off at {inode.cut_off_bytes}, one before ends at {end_bytes}"
            findings.add("wrong-cut-off", inode.ino, text)


def _check_bytes(inode: Inode, extents: list[Extent], inline_bytes: int | None, findings: Findings) -> None:
    for before, after in pairwise(extents):
        if before.end_bytes > after.offset_bytes:
            findings.add("overlapping-extents", inode.ino, f"at {before.offset_bytes} and {after.offset_bytes}")
    end_bytes = max([extent.end_bytes for extent in _seen(inode, extents)], default=0)
    if max(end_bytes, inline_bytes or 0) > inode.size_bytes:
        findings.add("bytes-past-size", inode.ino, f"bytes end past its size, {inode.size_bytes}")
    if inode.storage is Storage.INLINE and extents:
        findings.add("inline-and-extents", inode.ino, f"it is inline and has {len(extents)} extents")
    if inode.storage is Storage.EXTENTS and inline_bytes:
        findings.add("inline-and-extents", inode.ino, f"it is in chunks and has {inline_bytes} inline bytes")
    if inline_bytes is None:
        return
    used_bytes = inline_bytes + sum(extent.length_bytes for extent in extents)
    if used_bytes != inode.used_bytes:
        findings.add("wrong-used-bytes", inode.ino, f"it claims {inode.used_bytes} bytes, there are {used_bytes}")
