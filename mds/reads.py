"""The reads of the metadata service: functions of a consistent view and a request. Pure.

They know nothing of leases, leaders or sessions; who calls them has seen to that. Answers are bounded: a page
ends where LISTING_BYTES_MAX or the method's payload limit would be passed, and the caller asks again.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from shoalfs.mds import cluster, dentry, extents, inline, keys, layout, permission, records, xattr
from shoalfs.mds import inode as inodes
from shoalfs.mds import messages as m
from shoalfs.mds.ops.commit_extents import reserved_by
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import BadMessage, DamagedRecord, PosixError, ShoalError
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId, SessionId, TargetId, chunk_sequence
from shoalfs.transport.limits import (
    CHUNK_LIST_MAX,
    FETCH_BATCH_MAX,
    FETCH_EXTENTS_MAX,
    FILE_SIZE_BYTES_MAX,
    LISTING_BYTES_MAX,
    LOOKUP_BATCH_MAX,
    PATH_BYTES_MAX,
    READDIR_ENTRIES_MAX,
)
from shoalfs.transport.method import Message, Nothing

INODES_MAX = 1 << 48  # of one shard
_ITEM_BYTES = 32  # what goes with an encoded inode in a list, beside its name
_EXTENT_BYTES = 80
_EXTENTS_MAX = LISTING_BYTES_MAX // _EXTENT_BYTES


# Messages as they go on the wire, with inodes that are stored records, whose checksum was compared: to decode them and
# encode them again would be half of what a long answer costs.


class _StoredEntry(Message, frozen=True, gc=False):
    """A DirEntry."""

    cookie: int
    name: bytes
    inode: msgspec.Raw
    damaged: bool = False


class StoredListing(Message, frozen=True):
    """A Listing."""

    entries: tuple[_StoredEntry, ...]
    eof: bool
    leased: bool = False
    unleased: tuple[InodeId, ...] = ()


class _StoredFound(Message, frozen=True):
    """A Found."""

    errno: int
    inode: msgspec.Raw | None = None
    data_bytes: int = 0


class _StoredFoundMany(Message, frozen=True):
    """A FoundMany."""

    items: tuple[_StoredFound, ...]


class StoredMutated(Message, frozen=True):
    """A Mutated."""

    index: int
    outcomes: tuple[m.Outcome, ...]
    leased: tuple[bool, ...] = ()
    directories: tuple[msgspec.Raw, ...] = ()


class StoredFetched(Message, frozen=True):
    """A Fetched."""

    inode: msgspec.Raw | None = None
    data_bytes: int = 0
    extents: tuple[m.Extent, ...] = ()
    leased: bool = False


class StoredFetchedMany(Message, frozen=True):
    """A FetchedMany."""

    items: tuple[StoredFetched, ...]


# --- names --------------------------------------------------------------------------------------------------


def lookup(txn: ReadTxn, request: m.Lookup) -> m.Entry:
    """Raises ESTALE, ENOTDIR, EACCES, ENAMETOOLONG, EINVAL, ENOENT."""
    return m.Entry(_find(txn, request.who, request.parent, request.name))


def _find(txn: ReadTxn, who: m.Credentials, parent: InodeId, name: bytes) -> m.Inode:
    return inodes.load(txn, _number(txn, dentry.search(txn, who, parent), name))


def _number(txn: ReadTxn, directory: m.Inode, name: bytes) -> InodeId:
    """Where a name leads."""
    dentry.check_name(name)
    if name == b".":
        return directory.ino
    if name == b"..":
        return directory.parent
    return dentry.require(txn, directory, name).ino


def lookup_many(txn: ReadTxn, request: m.LookupMany) -> tuple[_StoredFoundMany, bytes]:
    """As many of the items as fit the reply, at least one. An item's failure is its own errno."""
    if len(request.items) > LOOKUP_BATCH_MAX:
        raise BadMessage(f"at most {LOOKUP_BATCH_MAX} names are looked up at a time")
    found: list[_StoredFound] = []
    payload: list[bytes] = []
    payload_bytes = size_bytes = 0
    searched: dict[InodeId, m.Inode] = {}
    for parent, name in request.items:
        item, data = _found(txn, request, searched, parent, name)
        payload_bytes += len(data)
        size_bytes += len(bytes(item.inode or b"")) + _ITEM_BYTES
        if found and (payload_bytes > m.LOOKUP_MANY.reply_payload_bytes_max or size_bytes > LISTING_BYTES_MAX):
            break
        found.append(item)
        payload.append(data)
    return _StoredFoundMany(tuple(found)), b"".join(payload)


def _found(
    txn: ReadTxn, request: m.LookupMany, searched: dict[InodeId, m.Inode], parent: InodeId, name: bytes
) -> tuple[_StoredFound, bytes]:
    """``searched``: directories of this request in which ``who`` may look names up."""
    try:
        directory = searched.get(parent)
        if directory is None:
            directory = searched[parent] = dentry.search(txn, request.who, parent)
        ino = _number(txn, directory, name)
        stored = _stored_inode(txn, ino)
        data = b""
        if request.want_data and _is_inline(records.INODE.decode(keys.inode(ino), stored)):
            data = inline.load(txn, ino)
    except ShoalError as error:
        return _StoredFound(error.errno), b""
    return _StoredFound(0, msgspec.Raw(stored), len(data)), data


def stored_inodes(txn: ReadTxn, inos: Iterable[InodeId]) -> tuple[msgspec.Raw, ...]:
    """The records of those that can be read."""
    found = []
    for ino in inos:
        try:
            found.append(msgspec.Raw(_stored_inode(txn, ino)))
        except ShoalError:
            continue
    return tuple(found)


def _stored_inode(txn: ReadTxn, ino: InodeId) -> bytes:
    """Its record as it is. Raises ESTALE, DamagedRecord."""
    stored = txn.get(keys.inode(ino))
    if stored is None:
        raise PosixError(errno.ESTALE)
    return stored


def resolve(txn: ReadTxn, request: m.ResolvePath) -> m.Entry:
    """Follow a path from the root as root, without following symlinks. Raises ENOENT, ENOTDIR,
    ENAMETOOLONG."""
    if len(request.path) > PATH_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    inode = inodes.load(txn, ROOT_INODE)
    for name in filter(None, request.path.split(b"/")):
        inode = _find(txn, m.ROOT_CREDENTIALS, inode.ino, name)
    return m.Entry(inode)


def readdir(txn: ReadTxn, request: m.ReadDir) -> StoredListing:
    """Raises ESTALE, ENOTDIR, EACCES."""
    directory = inodes.load(txn, request.ino)
    if not directory.is_dir:
        raise PosixError(errno.ENOTDIR)
    permission.check(request.who, directory, permission.READ)
    if not 0 <= request.cookie < keys.U64_MAX:
        raise PosixError(errno.EINVAL)
    count = max(1, min(request.count, READDIR_ENTRIES_MAX))
    entries: list[_StoredEntry] = []
    size_bytes = 0
    first, (_, end) = keys.listing(directory.ino, request.cookie + 1), keys.under(b"E", directory.ino)
    for key, value in txn.range(first, end):
        if len(entries) == count:
            return StoredListing(tuple(entries), eof=False)
        row = records.LISTING.decode(key, value)
        damaged = False
        try:
            stored = _stored_inode(txn, row.ino)
        except DamagedRecord:
            stored, damaged = _unknown_inode(txn, directory, row), True
        size_bytes += len(row.name) + len(stored) + _ITEM_BYTES
        if size_bytes > LISTING_BYTES_MAX:
            return StoredListing(tuple(entries), eof=False)
        entries.append(_StoredEntry(keys.second_field(key), row.name, msgspec.Raw(stored), damaged))
    return StoredListing(tuple(entries), eof=True)


def _unknown_inode(txn: ReadTxn, directory: m.Inode, row: records.ListingRow) -> bytes:
    """In the place of a damaged one, which must not hide its name, and even less the names behind it."""
    kind = dentry.require(txn, directory, row.name).kind
    unknown = m.Inode(row.ino, kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version=0, data_version=0)
    return records.INODE.encode(unknown)


# --- inodes -------------------------------------------------------------------------------------------------


def getattr_(txn: ReadTxn, request: m.GetAttr) -> m.Entry:
    return m.Entry(inodes.load(txn, request.ino))


def readlink(txn: ReadTxn, request: m.ReadLink) -> m.LinkTarget:
    """Raises EINVAL if it is no symlink."""
    inode = inodes.load(txn, request.ino)
    if not inode.is_symlink:
        raise PosixError(errno.EINVAL)
    return m.LinkTarget(inline.load(txn, inode.ino))


def access(txn: ReadTxn, request: m.Access) -> Nothing:
    permission.check(request.who, inodes.load(txn, request.ino), request.mask & 0o7)
    return Nothing()


def open_(txn: ReadTxn, request: m.Open) -> tuple[m.Opened, bytes]:
    """The inode, and its inline bytes. Raises ESTALE, EACCES, EISDIR (a directory is not opened for writing).

    ``execute`` in the mask is not asked for here: execve(2) checks it by itself before it opens.
    """
    inode = inodes.load(txn, request.ino)
    if inode.is_dir and request.write:
        raise PosixError(errno.EISDIR)
    if request.check:
        mask = permission.READ * request.read | permission.WRITE * request.write
        permission.check(request.who, inode, mask)
    return m.Opened(inode), _inline_bytes(txn, inode)


def fetch_files(txn: ReadTxn, request: m.FetchFiles) -> tuple[StoredFetchedMany, list[bytes]]:
    """As many of the files as fit the reply, at least one. Permissions are the client's to check, with the attributes
    that come with the bytes, as for everything that it caches."""
    if len(request.inos) > FETCH_BATCH_MAX:
        raise BadMessage(f"at most {FETCH_BATCH_MAX} files are fetched at a time")
    found: list[StoredFetched] = []
    payload: list[bytes] = []
    payload_bytes = size_bytes = 0
    for ino in request.inos:
        item, data = _fetched(txn, ino)
        payload_bytes += len(data)
        size_bytes += len(bytes(item.inode or b"")) + len(item.extents) * _EXTENT_BYTES + _ITEM_BYTES
        if found and (payload_bytes > m.FETCH_FILES.reply_payload_bytes_max or size_bytes > LISTING_BYTES_MAX):
            break
        found.append(item)
        payload.append(data)
    return StoredFetchedMany(tuple(found)), payload


def _fetched(txn: ReadTxn, ino: InodeId) -> tuple[StoredFetched, bytes]:
    try:
        stored = _stored_inode(txn, ino)
        inode = records.INODE.decode(keys.inode(ino), stored)
        if not inode.is_file:
            return StoredFetched(), b""
        if _is_inline(inode):
            data = inline.load(txn, ino)
            return StoredFetched(msgspec.Raw(stored), len(data)), data
        linked = tuple(islice(extents.visible(txn, inode, 0, FILE_SIZE_BYTES_MAX), FETCH_EXTENTS_MAX + 1))
    except ShoalError:
        return StoredFetched(), b""  # who opens it is told the error
    return (StoredFetched() if len(linked) > FETCH_EXTENTS_MAX else StoredFetched(msgspec.Raw(stored), 0, linked)), b""


def get_extents(txn: ReadTxn, request: m.GetExtents) -> tuple[m.ExtentMap, bytes]:
    """Raises ESTALE, EINVAL."""
    inode = inodes.load(txn, request.ino)
    if not inode.is_file or request.offset_bytes < 0 or request.length_bytes < 0:
        raise PosixError(errno.EINVAL)
    count = max(1, min(request.count, _EXTENTS_MAX))
    first = min(request.offset_bytes, FILE_SIZE_BYTES_MAX)
    end = min(request.offset_bytes + request.length_bytes, FILE_SIZE_BYTES_MAX)
    found = list(islice(extents.visible(txn, inode, first, end), count + 1)) if end > first else []
    return m.ExtentMap(inode, tuple(found[:count]), eof=len(found) <= count), _inline_bytes(txn, inode)


def _is_inline(inode: m.Inode) -> bool:
    return inode.is_file and inode.storage is m.Storage.INLINE


def _inline_bytes(txn: ReadTxn, inode: m.Inode) -> bytes:
    return inline.load(txn, inode.ino) if _is_inline(inode) else b""


# --- extended attributes ------------------------------------------------------------------------------------


def getxattr(txn: ReadTxn, request: m.GetXattr) -> m.XattrValue:
    """Raises ESTALE, ENODATA, EACCES, EOPNOTSUPP, ERANGE."""
    xattr.check_name(request.name)
    inode = inodes.load(txn, request.ino)
    if request.name in inode.access_lists:
        return m.XattrValue(inode.access_lists[request.name])
    xattr.check_read(request.who, inode, request.name)
    if layout.is_layout(request.name):
        return m.XattrValue(layout.read(inode, request.name, cluster.load_pools(txn)))
    value = txn.get(keys.xattr(inode.ino, request.name))
    if value is None:
        raise PosixError(errno.ENODATA)
    return m.XattrValue(value)


def listxattr(txn: ReadTxn, request: m.ListXattr) -> m.XattrNames:
    """All names that ``who`` may see; their values may still be refused."""
    inode = inodes.load(txn, request.ino)
    names = (keys.name_of(key) for key, _ in txn.range(*keys.under(b"A", inode.ino)))
    seen = tuple(name for name in names if xattr.visible(request.who, name))
    return m.XattrNames((*inode.access_lists, *seen))


# --- the cluster --------------------------------------------------------------------------------------------


def cluster_map(txn: ReadTxn) -> m.ClusterMap:
    return cluster.load_map(txn)


def map_epoch(txn: ReadTxn) -> int:
    return cluster.load_epoch(txn)


def statfs(txn: ReadTxn, usage: Mapping[TargetId, tuple[int, int]]) -> m.FsStat:
    """Of the root's pool. ``usage``: (capacity, used) as last reported; a target that is out counts nothing,
    one that was not heard of yet counts its capacity as used."""
    pool = records.POOL.require(txn, keys.pool(inodes.load(txn, ROOT_INODE).pool))
    capacity_bytes = free_bytes = 0
    for target in cluster.load_map(txn).targets:
        if target.state is m.TargetState.OUT:
            continue
        capacity, used = usage.get(target.id, (target.capacity_bytes, target.capacity_bytes))
        capacity_bytes += capacity
        free_bytes += max(0, capacity - used)
    count = counts(txn).inodes
    fits = (pool.data * capacity_bytes // pool.replicas, pool.data * free_bytes // pool.replicas)
    return m.FsStat(*fits, count, INODES_MAX - count)


def counts(txn: ReadTxn) -> records.Counters:
    """How many inodes, inline files, orphans, garbage chunks and sessions there are."""
    return inodes.load_counters(txn)


def sessions(txn: ReadTxn) -> list[tuple[SessionId, str]]:
    """All sessions, and the names that their clients gave."""
    rows = txn.range(*keys.all_of(b"S"))
    return [(SessionId(keys.first_field(key)), records.SESSION.decode(key, value).client) for key, value in rows]


def orphans(txn: ReadTxn, count: int) -> list[InodeId]:
    """The first ``count`` inodes without a name."""
    return [InodeId(keys.first_field(key)) for key, _ in islice(txn.range(*keys.all_of(b"O")), count)]


def cut_off(txn: ReadTxn, count: int) -> list[InodeId]:
    """The first ``count`` files with extents that were cut off."""
    return [InodeId(keys.first_field(key)) for key, _ in islice(txn.range(*keys.all_of(b"C")), count)]


# --- chunks -------------------------------------------------------------------------------------------------


def garbage_before(
    txn: ReadTxn, before_ns: int, count: int, skip: Callable[[ChunkId], bool] = lambda _: False
) -> list[ChunkId]:
    """Up to ``count`` chunks that became garbage before ``before_ns``, the oldest first, without those to
    ``skip``."""
    end = keys.garbage_by_time(max(0, before_ns), ChunkId(0))
    due = (ChunkId(keys.second_field(key)) for key, _ in txn.range(keys.all_of(b"z")[0], end))
    return list(islice((chunk for chunk in due if not skip(chunk)), count))


def strays(txn: ReadTxn, chunks: Iterable[ChunkId]) -> list[ChunkId]:
    """Those chunks that nobody can ever use and that are not garbage yet."""
    return [chunk for chunk, kind in _classified(txn, chunks) if kind is m.ChunkClass.UNKNOWN]


def classified(txn: ReadTxn, chunks: Iterable[ChunkId]) -> dict[ChunkId, m.ChunkClass]:
    return dict(_classified(txn, chunks))


def classify_chunks(txn: ReadTxn, request: m.ClassifyChunks) -> m.ChunkClasses:
    if len(request.chunks) > CHUNK_LIST_MAX:
        raise BadMessage(f"at most {CHUNK_LIST_MAX} chunks are classified at a time")
    return m.ChunkClasses(tuple(int(kind) for _, kind in _classified(txn, request.chunks)))


def _classified(txn: ReadTxn, chunks: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, m.ChunkClass]]:
    for chunk in chunks:
        if not 0 < chunk <= keys.U64_MAX:
            raise BadMessage(f"{chunk} is no chunk")
        if txn.get(keys.chunk_use(chunk)) is not None:
            yield chunk, m.ChunkClass.LINKED
        elif txn.get(keys.garbage(chunk)) is not None:
            yield chunk, m.ChunkClass.GARBAGE
        elif reserved_by(txn, chunk) is not None:
            yield chunk, m.ChunkClass.RESERVED
        elif chunk_sequence(chunk) >= counts(txn).next_sequence:
            yield chunk, m.ChunkClass.BEYOND
        else:
            yield chunk, m.ChunkClass.UNKNOWN
