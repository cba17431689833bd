"""Make a namespace of nothing but the headers of chunks: when all metadata and all dumps are lost.

A header holds the inode and the offset for which it was stored, and its length and hash. From these come back:
which files there were, and their bytes, as far as they were in chunks. They are in ``/lost+found`` under the number of
their inode, as root's, mode 0600. What the headers do not hold is lost: names, directories, owners, modes, times,
links, extended attributes, and every file small enough to live in its inode.

A later chunk (its sequence number is higher) lies over an earlier one of the same file, as when they were written. What
had been cut off, punched out or removed shortly before comes back as long as its chunks were still there; what was
shared between files by cloning comes back in the file it was written for.

Where copies of one chunk differ, the one that most targets hold counts; if there is no such one, the chunk is left out
and counted. How chunks in fragments and their pools come back is in :mod:`shoalfs.mds.rebuild_fragments`. Deletion is
held afterwards, as after a load. Steps and crashes: as in :mod:`shoalfs.mds.load`. All headers are held in memory:
about 300 bytes for each chunk, and more for each fragment.
"""

import os
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from shoalfs.mds import cluster, dentry, extents, keys, rebuild_fragments
from shoalfs.mds import inode as inodes
from shoalfs.mds.bounds import UNBOUNDED
from shoalfs.mds.install import LOG, STORE
from shoalfs.mds.journal_files import sync_directory
from shoalfs.mds.load import LOADING, SKIPPED, SKIPPED_EPOCHS
from shoalfs.mds.machine import Layout, format_store
from shoalfs.mds.messages import Extent, Inode, PlacementGroup, Pool, Storage, Target, TargetState
from shoalfs.mds.raft_members import Members
from shoalfs.mds.rebuild_fragments import Fragmented, FragmentLine, Piece, Pieces
from shoalfs.mds.store import LmdbStore
from shoalfs.mds.txn import Txn
from shoalfs.transport.errors import UserError
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId, PgId, PoolId, TargetId, chunk_pg, chunk_sequence
from shoalfs.transport.limits import CHUNK_BYTES_MAX, FILE_SIZE_BYTES_MAX, LOST_FOUND

_VERSION: Final = 1
_LINE_BYTES_MAX: Final = 4096
_FILES_PER_TRANSACTION: Final = 500
_HASH_BYTES: Final = 16


class _Line(msgspec.Struct, frozen=True):
    """Any line of a file of headers (chunkserver/headers.py)."""

    shoal_headers: int = 0
    cluster_id: str = ""
    uuid: str = ""
    chunk: int = 0
    ino: int = 0
    offset: int = 0
    bytes: int = 0
    hash: str = ""
    fragment: FragmentLine | None = None
    end: bool = False
    chunks: int = 0


@dataclass(slots=True)
class Headers:
    """All that was read: of each chunk, what each target says of it."""

    cluster_id: bytes = b""
    targets: list[bytes] = field(default_factory=list)  # uuids; their place + 1 is their number
    said: dict[ChunkId, list[tuple[int, int, int, int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    pieces: Pieces = field(default_factory=lambda: defaultdict(list))  # the same of fragments

    @property
    def last_sequence(self) -> int:
        return max((chunk_sequence(chunk) for chunk in (*self.said, *self.pieces)), default=0)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    files: int
    chunks: int
    left_out: int  # chunks whose copies differ, or of which there are too few fragments


def read(headers: Headers, source: BinaryIO, name: str) -> None:
    """Add one file. Raises UserError, with name and line, at what is not as it should be or cut short."""
    count, target = 0, 0
    for number, line in enumerate(_lines(source), 1):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UserError(f"rebuild: {name}: line {number}: {error}") from error
        if number == 1:
            target = _begin(headers, found, name)
        elif found.end:
            if found.chunks != count:
                raise UserError(f"rebuild: {name}: it has {count} chunks and should have {found.chunks}")
            return
        else:
            chunk = _chunk(found, name, number)
            if found.fragment is None:
                said = (target, found.ino, found.offset, found.bytes, bytes.fromhex(found.hash))
                headers.said[chunk].append(said)
            else:
                try:
                    fragment = found.fragment.parsed(found.bytes, found.hash)
                except ValueError as error:
                    raise UserError(f"rebuild: {name}: line {number}: {error}") from error
                headers.pieces[chunk].append(Piece(target, found.ino, found.offset, fragment))
            count += 1
    raise UserError(f"rebuild: {name}: it is cut short: its last line is missing")


def _lines(source: BinaryIO) -> Iterator[bytes]:
    while line := source.readline(_LINE_BYTES_MAX):
        yield line


def _begin(headers: Headers, found: _Line, name: str) -> int:
    try:
        cluster_id, uuid = bytes.fromhex(found.cluster_id), bytes.fromhex(found.uuid)
    except ValueError:
        cluster_id = uuid = b""
    if found.shoal_headers != _VERSION or len(cluster_id) != 16 or len(uuid) != 16:
        raise UserError(f"rebuild: {name}: these are no headers of version {_VERSION}")
    if headers.cluster_id not in (b"", cluster_id):
        raise UserError(
            f"rebuild: {name}: it is of cluster {cluster_id.hex()}, the others of {headers.cluster_id.hex()}"
        )
    if uuid in headers.targets:
        raise UserError(f"rebuild: {name}: target {uuid.hex()} was read already")
    headers.cluster_id = cluster_id
    headers.targets.append(uuid)
    return len(headers.targets)


def _chunk(found: _Line, name: str, number: int) -> ChunkId:
    fits = 0 < found.chunk <= keys.U64_MAX and chunk_pg(ChunkId(found.chunk)) and chunk_sequence(ChunkId(found.chunk))
    fits = fits and ROOT_INODE < found.ino < keys.U64_MAX - SKIPPED and 0 < found.bytes <= CHUNK_BYTES_MAX
    fits = fits and 0 <= found.offset <= FILE_SIZE_BYTES_MAX - found.bytes
    try:
        fits = fits and len(bytes.fromhex(found.hash)) == _HASH_BYTES
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"rebuild: {name}: line {number}: this is no chunk of a file")
    return ChunkId(found.chunk)


def rebuild(headers: Headers, directory: Path, pool: Pool, layout: Layout, members: Members) -> Rebuilt:
    """Fill an empty directory. Raises UserError if it is in use, StorageFailed."""
    if not headers.targets:
        raise UserError("rebuild: name at least one file of headers")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for name in (STORE, LOG):
        if (directory / name).exists():
            raise UserError(f"rebuild: {directory}: holds a {name} already: choose an empty directory")
    shutil.rmtree(directory / LOADING, ignore_errors=True)
    (directory / LOADING).mkdir(mode=0o700)
    store = LmdbStore.open(str(directory / LOADING))
    try:
        fragmented = rebuild_fragments.of(headers.pieces, len(headers.targets), pool.id)
        pools = [pool, *fragmented.pools]
        format_store(store, headers.cluster_id, pools, layout, members=members)
        rebuilt = _fill(store, headers, pool, fragmented)
        store.checkpoint().write()
    finally:
        store.close()
    (directory / LOADING).rename(directory / STORE)
    sync_directory(directory)
    return rebuilt


def _fill(store: LmdbStore, headers: Headers, pool: Pool, fragmented: Fragmented) -> Rebuilt:
    files: dict[InodeId, list[Extent]] = defaultdict(list)
    left_out = fragmented.left_out
    for owner, extent in fragmented.extents:
        files[owner].append(extent)
    pool_of = {group.id: group.pool for group in fragmented.groups}
    for chunk, said in headers.said.items():
        ranked = Counter(says[1:] for says in said).most_common(2)
        # Without more about it, what lies in a group of fragments may be one.
        if chunk_pg(chunk) in pool_of or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
            left_out += 1
            continue
        ino, offset, size_bytes, digest = ranked[0][0]
        files[InodeId(ino)].append(Extent(offset, size_bytes, chunk, 0, size_bytes, digest))
    with store.write() as txn:
        _make_map(txn, headers, pool, fragmented)
        lost = _make_lost_found(txn, headers, fragmented.absent, max(files, default=InodeId(ROOT_INODE)))
    pending = iter(sorted(files.items()))
    while batch := list(islice(pending, _FILES_PER_TRANSACTION)):
        with store.write() as txn:
            for ino, laid in batch:
                at = pool_of.get(chunk_pg(laid[0].chunk), pool.id)
                lost = dentry.insert(txn, lost, b"#%d" % ino, _make_file(txn, ino, laid, at), 0)
            inodes.store(txn, lost)
    return Rebuilt(len(files), len(headers.said) + len(headers.pieces) - left_out, left_out)


def _make_map(txn: Txn, headers: Headers, pool: Pool, fragmented: Fragmented) -> None:
    """Targets as they will register again, by their uuid; of each group, those that hold most of its chunks first. In
    the places of fragments of which nobody has any are targets that are out, for the leader to replace."""
    held: dict[PgId, Counter[int]] = defaultdict(Counter)
    for chunk, said in headers.said.items():
        held[chunk_pg(chunk)].update(says[0] for says in said)
    uuids = [*headers.targets, *(secrets.token_bytes(16) for _ in range(fragmented.absent))]
    for number, uuid in enumerate(uuids, 1):
        target = TargetId(number)
        state = TargetState.DOWN if number <= len(headers.targets) else TargetState.OUT
        row = Target(target, uuid, f"rebuilt-{number}", "unix:/unknown", SKIPPED_EPOCHS, state, 0)
        cluster.store_target(txn, row)
        txn.put(keys.target_uuid(uuid), target.to_bytes(4, "big"))
    for fragment_group in fragmented.groups:
        cluster.store_group(txn, fragment_group)
        held.pop(fragment_group.id, None)
    for group, counts in held.items():
        ranked = tuple(TargetId(number) for number, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        row_of = PlacementGroup(group, pool.id, ranked[: pool.replicas], ranked[pool.replicas :], SKIPPED_EPOCHS)
        cluster.store_group(txn, row_of)
    cluster.store_epoch(txn, SKIPPED_EPOCHS)
    reason = "the namespace was rebuilt from the headers of chunks"
    upkeep = cluster.load_upkeep(txn)
    cluster.store_upkeep(txn, msgspec.structs.replace(upkeep, deletions_held=True, held_reason=reason))


def _make_lost_found(txn: Txn, headers: Headers, absent: int, last_ino: InodeId) -> Inode:
    counters = inodes.load_counters(txn)
    counters = msgspec.structs.replace(
        counters,
        next_ino=last_ino + SKIPPED,
        next_sequence=headers.last_sequence + SKIPPED,
        next_session=SKIPPED_EPOCHS,
        next_target=len(headers.targets) + absent + 1,
    )
    inodes.store_counters(txn, counters)
    root = inodes.load(txn, InodeId(ROOT_INODE))
    lost = inodes.make(txn, root, mode=0o040700, uid=0, gid=0, now_ns=0, rdev=0, size_bytes=0)
    inodes.store(txn, dentry.insert(txn, root, LOST_FOUND, lost, 0))
    return lost


def _make_file(txn: Txn, ino: InodeId, laid: Iterable[Extent], pool: PoolId) -> Inode:
    root = inodes.load(txn, InodeId(ROOT_INODE))
    made = msgspec.structs.replace(
        root,
        ino=ino,
        mode=0o100600,
        nlink=1,
        size_bytes=0,
        used_bytes=0,
        version=SKIPPED,
        data_version=SKIPPED,
        storage=Storage.EXTENTS,
        pool=pool,
        parent=InodeId(0),
        next_cookie=0,
    )
    edit = extents.Edit(txn, made, UNBOUNDED.rows_max)
    size_bytes = 0
    for extent in sorted(laid, key=lambda extent: chunk_sequence(extent.chunk)):
        edit.link(extent)
        size_bytes = max(size_bytes, extent.end_bytes)
    made = msgspec.structs.replace(made, size_bytes=size_bytes, **edit.settle(0))
    inodes.store(txn, made)
    counters = inodes.load_counters(txn)
    inodes.store_counters(txn, msgspec.structs.replace(counters, inodes=counters.inodes + 1))
    return made
