"""What is in the trash: for operators, and what is due. Pure."""

from itertools import islice

from shoalfs.mds import keys, records, trash
from shoalfs.mds.messages import ListTrash, Trashed, TrashListing
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import TRASH_LIST_MAX

_DEPTH_MAX = 256
_PATH_BYTES_MAX = 4096
_REPLY_BYTES_MAX = 512 << 10


def due(txn: ReadTxn, now_ns: int, count: int) -> tuple[InodeId, ...]:
    """Up to ``count`` inodes whose retention is over, the oldest first."""
    end = keys.trash_by_time(max(0, now_ns - trash.retention_ms(txn) * 1_000_000), InodeId(0))
    return tuple(InodeId(keys.second_field(key)) for key, _ in islice(txn.range(keys.all_of(b"q")[0], end), count))


def list_trash(txn: ReadTxn, request: ListTrash) -> TrashListing:
    after_ns, after_ino = (min(max(0, value), keys.U64_MAX) for value in (request.after_ns, request.after_ino))
    first = keys.trash_by_time(after_ns, InodeId(after_ino)) + b"\0"
    count = max(1, min(request.count, TRASH_LIST_MAX))
    paths: dict[InodeId, bytes] = {ROOT_INODE: b""}
    items: list[Trashed] = []
    size_bytes = 0
    for key, _ in txn.range(first, keys.all_of(b"q")[1]):
        if len(items) == count or size_bytes > _REPLY_BYTES_MAX:
            return TrashListing(tuple(items), eof=False)
        ino = InodeId(keys.second_field(key))
        row, inode = trash.row_of(txn, ino), records.INODE.load(txn, keys.inode(ino))
        if row is None or inode is None:
            continue  # the check says so
        path = _path(txn, row.parent, paths) + b"/" + row.name
        above = trash.row_of(txn, row.parent) is not None
        items.append(Trashed(inode, row.deleted_ns, row.parent, row.name, path, above))
        size_bytes += len(path) + 400
    return TrashListing(tuple(items), eof=True)


def _path(txn: ReadTxn, directory: InodeId, known: dict[InodeId, bytes]) -> bytes:
    """Of a directory that is there or in the trash; begins with "?" where that is not known any more."""
    chain: list[tuple[InodeId, bytes]] = []
    at = directory
    while at not in known:
        place = _place(txn, at)
        if place is None or len(chain) == _DEPTH_MAX:
            known[at] = b"?"
            break
        chain.append((at, place[1]))
        at = place[0]
    for ino, name in reversed(chain):
        known[ino] = (known[at] + b"/" + name)[-_PATH_BYTES_MAX:]
        at = ino
    return known[directory]


def _place(txn: ReadTxn, ino: InodeId) -> tuple[InodeId, bytes] | None:
    row = trash.row_of(txn, ino)
    if row is not None:
        return row.parent, row.name
    inode = records.INODE.load(txn, keys.inode(ino)) if 0 < ino <= keys.U64_MAX else None
    if inode is None or not inode.is_dir or inode.nlink == 0:
        return None
    for key, value in txn.range(*keys.under(b"D", inode.parent)):
        if records.DENTRY.decode(key, value).ino == ino:
            return inode.parent, keys.name_of(key)
    return None
