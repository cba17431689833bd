"""The namespace check: every invariant between the rows of the store. Pure, changes nothing.

A damaged record is a finding like the others, and the check goes on behind it; what hangs on the damaged record is then
often found as well (a directory entry that leads nowhere). The invariants that belong to no single inode (chunks,
counters, rows that belong to nothing) come last, from :mod:`shoalfs.mds.check_totals`.

An inode does not know its names. So the entries of all directories are read once, in advance, and what each leads to
is put into a scratch file by ranges of inodes; then the inodes are checked range by range. The time is linear in what
there is, the memory that of a range.
"""

import stat
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from shoalfs.mds import acl, check_totals, keys, records
from shoalfs.mds.buckets import Buckets, Ranges
from shoalfs.mds.check_findings import TICK_ROWS, Findings, NewFile
from shoalfs.mds.messages import NOT_CUT_OFF, Extent, Inode, NamespaceChecked, Storage
from shoalfs.mds.records import Dentry
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import DamagedRecord, PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import CONTROL_BYTES_MAX

_LISTED_BYTES_MAX = CONTROL_BYTES_MAX // 2  # of extents, in one page; the findings have the other half
_EXTENT_BYTES: Final = 80  # at most, encoded with its inode and without its fragments
_INODES_PER_RANGE = 100_000

Names = dict[InodeId, list[InodeId]]
"""For each inode of a range, the directories that have a name for it, one element per name."""

Steps = Generator[None, None, None]
"""Work that stops every TICK_ROWS rows."""


def check(txn: ReadTxn, new_file: NewFile) -> Iterator[NamespaceChecked | None]:
    """Check everything, page by page; None: it goes on, there is no page yet. The last page is ``done``.

    A page ends when it has as many extents or findings as fit. Of a file with more extents than fit, all are checked,
    and those that are not listed are named as such. What ``new_file`` raises is raised.
    """
    findings = Findings()
    page = _Page()
    for checked in _check_inodes(txn, new_file, findings):
        if checked is not None and not page.has_room_for(checked):
            yield page.end(findings)
            page = _Page()
        if checked is not None:
            page.add(checked)
        elif findings.are_many:
            yield page.end(findings)
            page = _Page()
        else:
            yield None
    for _ in check_totals.check(txn, new_file, findings):
        if findings.are_many:
            yield page.end(findings)
            page = _Page()
        else:
            yield None
    yield page.end(findings, done=True)


@dataclass(slots=True)
class _Checked:
    """An inode, and those of its extents that are to be listed; ``unlisted_bytes``: the offset of the first further
    one."""

    ino: InodeId
    extents: list[Extent]
    listed_bytes: int = 0
    unlisted_bytes: int | None = None

    def add(self, extent: Extent) -> None:
        if self.unlisted_bytes is not None:
            return
        self.listed_bytes += _EXTENT_BYTES + len(extent.fragments)
        if self.listed_bytes > _LISTED_BYTES_MAX:
            self.unlisted_bytes = extent.offset_bytes
        else:
            self.extents.append(extent)


class _Page:
    def __init__(self) -> None:
        self._inodes = 0
        self._listed_bytes = 0
        self._extents: list[tuple[InodeId, Extent]] = []
        self._unlisted: list[tuple[InodeId, int]] = []

    def has_room_for(self, checked: _Checked) -> bool:
        return not self._extents or self._listed_bytes + checked.listed_bytes <= _LISTED_BYTES_MAX

    def add(self, checked: _Checked) -> None:
        self._inodes += 1
        self._listed_bytes += checked.listed_bytes
        self._extents += [(checked.ino, extent) for extent in checked.extents]
        if checked.unlisted_bytes is not None:
            self._unlisted.append((checked.ino, checked.unlisted_bytes))

    def end(self, findings: Findings, *, done: bool = False) -> NamespaceChecked:
        return NamespaceChecked(done, self._inodes, findings.take(), tuple(self._extents), tuple(self._unlisted))


# --- inodes, a range at a time --------------------------------------------------------------------------------------


def _check_inodes(txn: ReadTxn, new_file: NewFile, findings: Findings) -> Iterator[_Checked | None]:
    ranges = yield from _ranges(txn)
    with new_file() as file:
        names = Buckets(file, len(ranges), 2)
        yield from _sort_names(txn, ranges, names)
        for at in range(len(ranges)):
            parents: Names = defaultdict(list)
            for number, (ino, parent) in enumerate(names.read(at), 1):
                parents[InodeId(ino)].append(InodeId(parent))
                if number % TICK_ROWS == 0:
                    yield None
            first, end = ranges.bounds(at)
            behind = keys.all_of(b"I")[1] if end is None else keys.inode(InodeId(end))
            rows = findings.rows(txn, keys.inode(InodeId(first)), behind)
            for number, (key, value) in enumerate(rows, 1):
                inode = _inode(key, value, findings)
                if inode is not None:
                    yield (yield from _check_inode(txn, inode, parents.get(inode.ino, []), findings))
                if number % TICK_ROWS == 0:
                    yield None


def _ranges(txn: ReadTxn) -> Generator[None, None, Ranges]:
    """Damaged inodes are reported when they are read again."""
    starts: list[int] = []
    for number, (key, _) in enumerate(Findings().rows(txn, *keys.all_of(b"I"))):
        if number % _INODES_PER_RANGE == 0:
            starts.append(keys.first_field(key))
        if number % TICK_ROWS == TICK_ROWS - 1:
            yield
    return Ranges(starts)


def _sort_names(txn: ReadTxn, ranges: Ranges, names: Buckets) -> Steps:
    """Damaged entries are reported with their directory, not here."""
    unreported = Findings()
    for number, (key, value) in enumerate(unreported.rows(txn, *keys.all_of(b"D")), 1):
        entry = unreported.decoded(records.DENTRY, key, value, InodeId(0))
        if entry is not None and 0 <= entry.ino <= keys.U64_MAX:
            names.add(ranges.of(entry.ino), (entry.ino, keys.first_field(key)))
        if number % TICK_ROWS == 0:
            yield


def _inode(key: bytes, value: bytes, findings: Findings) -> Inode | None:
    ino = InodeId(keys.first_field(key))
    inode = findings.decoded(records.INODE, key, value, ino)
    if inode is not None and inode.ino != ino:
        findings.add("wrong-inode-number", ino, f"the record says {inode.ino}")
        return None
    return inode


def _check_inode(
    txn: ReadTxn, inode: Inode, parents: list[InodeId], findings: Findings
) -> Generator[None, None, _Checked]:
    """Returns the inode's extents, those that were cut off left out: nobody needs their bytes any more."""
    _check_orphan(txn, inode, findings)
    _check_xattrs(txn, inode, findings)
    _check_acls(inode, findings)
    if inode.is_dir:
        _check_directory_links(txn, inode, parents, findings)
        yield from _check_entries(txn, inode, findings)
    else:
        _check_names(inode, parents, findings)
    checked = _Checked(inode.ino, [])
    extents = _Extents(inode)
    for number, extent in enumerate(_extents(txn, inode, findings), 1):
        extents.add(extent, findings)
        if extents.is_seen(extent):
            checked.add(extent)
        if number % TICK_ROWS == 0:
            yield
    _check_cut_off(txn, inode, extents, findings)
    inline_bytes = _inline_bytes(txn, inode, findings)
    if inode.is_file:
        _check_bytes(inode, extents, inline_bytes, findings)
    elif extents.count or (inline_bytes and not inode.is_symlink):
        findings.add("bytes-of-no-file", inode.ino, f"mode {inode.mode:o} has bytes")
    if inode.is_symlink and inline_bytes is not None and inline_bytes != inode.size_bytes:
        findings.add("wrong-symlink-size", inode.ino, f"size {inode.size_bytes}, target of {inline_bytes} bytes")
    return checked


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


def _check_entries(txn: ReadTxn, directory: Inode, findings: Findings) -> Steps:
    """Both rows of each entry, what it leads to, and the directory's own counts."""
    entries = subdirectories = 0
    for number, (key, value) in enumerate(findings.rows(txn, *keys.under(b"D", directory.ino)), 1):
        entry = findings.decoded(records.DENTRY, key, value, directory.ino)
        if entry is not None:
            entries += 1
            subdirectories += entry.kind == stat.S_IFDIR
            _check_entry(txn, directory, key, entry, findings)
        if number % TICK_ROWS == 0:
            yield
    yield from _check_listing(txn, directory, findings)
    if directory.size_bytes != entries:
        findings.add("wrong-directory-size", directory.ino, f"size {directory.size_bytes}, but {entries} entries")
    if directory.nlink and directory.nlink != 2 + subdirectories:
        findings.add("wrong-nlink", directory.ino, f"nlink {directory.nlink}, but {subdirectories} subdirectories")


def _check_entry(txn: ReadTxn, directory: Inode, key: bytes, entry: Dentry, findings: Findings) -> None:
    """What it leads to is there, and it is listed where it says."""
    name = keys.name_of(key)
    try:
        child = records.INODE.load(txn, keys.inode(entry.ino)) if 0 <= entry.ino <= keys.U64_MAX else None
    except DamagedRecord:
        pass  # reported as an inode
    else:
        if child is None:
            text = f"{name!r} leads to inode {entry.ino}, which is not there"
            findings.add("dangling-dentry", directory.ino, text, key)
        elif stat.S_IFMT(child.mode) != entry.kind:
            text = f"{name!r} is of type {entry.kind:o}, not {child.mode:o}"
            findings.add("wrong-dentry-type", directory.ino, text, key)
    is_place = 0 <= entry.cookie <= keys.U64_MAX
    place = keys.listing(directory.ino, entry.cookie) if is_place else b""
    row = findings.load(records.LISTING, txn, place, directory.ino) if is_place else None
    if row is None or row.name != name:
        findings.add("dentry-not-listed", directory.ino, f"{name!r} is not listed at {entry.cookie}", key)


def _check_listing(txn: ReadTxn, directory: Inode, findings: Findings) -> Steps:
    for number, (key, value) in enumerate(findings.rows(txn, *keys.under(b"E", directory.ino)), 1):
        row = findings.decoded(records.LISTING, key, value, directory.ino)
        if row is not None:
            cookie = keys.second_field(key)
            entry = findings.load(records.DENTRY, txn, keys.dentry(directory.ino, row.name), directory.ino)
            if entry is None or entry.cookie != cookie or entry.ino != row.ino:
                findings.add("listing-without-dentry", directory.ino, f"{row.name!r} is listed at {cookie} only", key)
            if cookie >= directory.next_cookie:
                text = f"{row.name!r} is at {cookie}, which is yet to be given"
                findings.add("wrong-cookie", directory.ino, text, key)
        if number % TICK_ROWS == 0:
            yield


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


class _Extents:
    """What the extents of an inode come to, met in the order of their offsets. Those that were cut off count, but end
    nothing."""

    def __init__(self, inode: Inode) -> None:
        self._inode = inode
        self.count = 0
        self.used_bytes = 0
        self.end_bytes = 0  # of those that were not cut off
        self._before: Extent | None = None

    def is_seen(self, extent: Extent) -> bool:
        return extent.offset_bytes < self._inode.cut_off_bytes or self._inode.cut_off_bytes == NOT_CUT_OFF

    def add(self, extent: Extent, findings: Findings) -> None:
        before, self._before = self._before, extent
        if self._inode.is_file and before is not None and before.end_bytes > extent.offset_bytes:
            text = f"at {before.offset_bytes} and {extent.offset_bytes}"
            findings.add("overlapping-extents", self._inode.ino, text)
        self.count += 1
        self.used_bytes += extent.length_bytes
        if self.is_seen(extent):
            self.end_bytes = max(self.end_bytes, extent.end_bytes)


def _check_cut_off(txn: ReadTxn, inode: Inode, extents: _Extents, findings: Findings) -> None:
    """What was cut off is listed, so that it is removed; and begins where what is not ends."""
    listed = findings.get(txn, keys.cut_off(inode.ino), inode.ino) is not None
    if (inode.cut_off_bytes == NOT_CUT_OFF) == listed:
        text = "is listed for it" if listed else "is listed nowhere"
        findings.add("wrong-cut-off", inode.ino, f"extents are cut off at {inode.cut_off_bytes}, and it {text}")
    if extents.count != inode.extents:
        text = f"it claims {inode.extents} extents, there are {extents.count}"
        findings.add("wrong-extent-count", inode.ino, text)
    if inode.cut_off_bytes != NOT_CUT_OFF and extents.end_bytes > inode.cut_off_bytes:
        text = f"extents are cut off at {inode.cut_off_bytes}, one before ends at {extents.end_bytes}"
        findings.add("wrong-cut-off", inode.ino, text)


def _check_bytes(inode: Inode, extents: _Extents, inline_bytes: int | None, findings: Findings) -> None:
    if max(extents.end_bytes, inline_bytes or 0) > inode.size_bytes:
        findings.add("bytes-past-size", inode.ino, f"bytes end past its size, {inode.size_bytes}")
    if inode.storage is Storage.INLINE and extents.count:
        findings.add("inline-and-extents", inode.ino, f"it is inline and has {extents.count} extents")
    if inode.storage is Storage.EXTENTS and inline_bytes:
        findings.add("inline-and-extents", inode.ino, f"it is in chunks and has {inline_bytes} inline bytes")
    if inline_bytes is None:
        return
    used_bytes = inline_bytes + extents.used_bytes
    if used_bytes != inode.used_bytes:
        findings.add("wrong-used-bytes", inode.ino, f"it claims {inode.used_bytes} bytes, there are {used_bytes}")
