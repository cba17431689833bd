"""Where inodes are in the tree, when only their numbers are known. Pure.

An inode does not know its names, but a directory knows the one above it. So all entries are read twice: for the names
of what is wanted, and for those of the directories above. Memory is that of what is wanted.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final

from shoalfs.mds import keys, records
from shoalfs.mds.check_findings import TICK_ROWS, Findings
from shoalfs.mds.messages import FoundPaths, Inode
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import LISTING_BYTES_MAX

_DEPTH_MAX: Final = 4096
_ROW_BYTES: Final = 16  # of a path in a page, at most, beside its characters

Names = dict[InodeId, tuple[InodeId, bytes]]
"""The directory and the name; of a file with several, the first."""


def find(txn: ReadTxn, inos: Sequence[InodeId]) -> Iterator[FoundPaths | None]:
    """Paths of these inodes, page by page; None: it goes on, there is no page yet. What has no name, or has one only
    below a damaged record, has no path."""
    names: Names = {}
    yield from _read_names(txn, set(inos), names)
    above = {directory for parent, _ in names.values() for directory in _way_up(txn, parent)}
    yield from _read_names(txn, above - names.keys(), names)
    page: list[tuple[InodeId, bytes]] = []
    size_bytes = 0
    for number, ino in enumerate(inos, 1):
        path = _path(ino, names)
        if path is not None:
            size_bytes += len(path) + _ROW_BYTES
            if size_bytes > LISTING_BYTES_MAX and page:
                yield FoundPaths(tuple(page), False)
                page, size_bytes = [], len(path) + _ROW_BYTES
            page.append((ino, path))
        if number % TICK_ROWS == 0:
            yield None
    yield FoundPaths(tuple(page), True)


def _read_names(txn: ReadTxn, wanted: set[InodeId], names: Names) -> Generator[None, None, None]:
    damage = Findings()
    for number, (key, value) in enumerate(damage.rows(txn, *keys.all_of(b"D")), 1):
        entry = damage.decoded(records.DENTRY, key, value, InodeId(0))
        if entry is not None and entry.ino in wanted:
            names.setdefault(entry.ino, (InodeId(keys.first_field(key)), keys.name_of(key)))
        if number % TICK_ROWS == 0:
            yield


def _way_up(txn: ReadTxn, directory: InodeId) -> set[InodeId]:
    """The directory and those above it, the root left out; as far as their records say."""
    seen: set[InodeId] = set()
    while directory != ROOT_INODE and directory not in seen and len(seen) < _DEPTH_MAX:
        seen.add(directory)
        inode: Inode | None = Findings().load(records.INODE, txn, keys.inode(directory), directory)
        if inode is None or not 0 < inode.parent <= keys.U64_MAX:
            break
        directory = inode.parent
    return seen


def _path(ino: InodeId, names: Names) -> bytes | None:
    parts: list[bytes] = []
    while ino != ROOT_INODE:
        if ino not in names or len(parts) >= _DEPTH_MAX:
            return None
        ino, name = names[ino]
        parts.append(name)
    return b"/" + b"/".join(reversed(parts))
