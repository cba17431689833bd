"""A cluster in memory for the tests of the client's data path: metadata and chunkservers as the contract has
them.

Written for obviousness: extents are a list that is cut one by one, chunks are a dictionary per target. It
shares no code with what it tests beyond the messages. Faults are set by the test: see ``Servers`` and
``Service.before``.
"""

import errno
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import trio

from shoalfs.chunkserver.messages import ChainLink, PutChain
from shoalfs.fs.data_path import DataPath
from shoalfs.mds import messages as m
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import (
    ChunkConflict,
    ChunkCorrupt,
    ChunkMissing,
    ChunkNotReserved,
    LayoutConflict,
    PosixError,
    SessionGone,
    ShoalError,
    StaleReceipt,
)
from shoalfs.transport.ids import (
    ChunkId,
    InodeId,
    PgId,
    PoolId,
    SessionId,
    TargetId,
    chunk_pg,
    chunk_sequence,
)
from shoalfs.transport.limits import EXTENTS_PER_COMMIT_MAX
from shoalfs.transport.method import Nothing

KIB = 1024
CHUNK = 64 * KIB
INLINE = 4_064
WHO = m.ROOT_CREDENTIALS


class Reply(NamedTuple):
    body: Any
    payload: memoryview


def make_map(targets: int = 4, replicas: int = 2, min_ack: int = 2, epoch: int = 1, data: int = 1) -> m.ClusterMap:
    """Each target leads four groups."""
    ids = [TargetId(number + 1) for number in range(targets)]
    groups = [
        m.PlacementGroup(
            PgId(turn * targets + lead + 1),
            PoolId(1),
            tuple(ids[(lead + (1 + turn) * step) % targets] for step in range(replicas)),
        )
        for turn in range(4 if targets > 1 else 1)
        for lead in range(targets)
        if len({(lead + (1 + turn) * step) % targets for step in range(replicas)}) == replicas
    ]
    return m.ClusterMap(
        cluster_id=b"c" * 16,
        epoch=epoch,
        pools=(m.Pool(PoolId(1), "hot", replicas, min_ack, data),),
        targets=tuple(m.Target(t, bytes([t]) * 16, f"n{t}", f"memory:{t}", 1, m.TargetState.UP, 1 << 40) for t in ids),
        groups=tuple(groups),
    )


class Servers:
    """All chunkservers. ``on_put``, ``on_get`` and ``on_sync`` may give an error for one request, and ``on_forward``
    break the way from one target to another; ``unreadable`` are (target, chunk) that are corrupt or missing; ``gate``,
    while it is set, holds every PUT."""

    def __init__(self, cluster_map: m.ClusterMap) -> None:
        self.chunks: dict[TargetId, dict[ChunkId, bytes]] = {t.id: {} for t in cluster_map.targets}
        self.durable: dict[TargetId, set[ChunkId]] = {t.id: set() for t in cluster_map.targets}
        self.epochs: dict[TargetId, int] = {t.id: t.epoch for t in cluster_map.targets}
        self.on_put: Callable[[TargetId, ChunkId], ShoalError | None] = lambda target, chunk: None
        self.on_get: Callable[[TargetId, ChunkId], ShoalError | None] = lambda target, chunk: None
        self.on_sync: Callable[[TargetId], ShoalError | None] = lambda target: None
        self.unreadable: dict[tuple[TargetId, ChunkId], ShoalError] = {}
        self.on_forward: Callable[[TargetId, TargetId], ShoalError | None] = lambda sender, target: None
        self.chains: list[tuple[TargetId, ...]] = []
        self.fragments: dict[tuple[TargetId, ChunkId], Any] = {}  # what is kept beside them
        self.gate: trio.Event | None = None
        self.puts: list[tuple[TargetId, ChunkId, bool]] = []
        self.gets: list[tuple[TargetId, ChunkId, int, int]] = []
        self.together: list[tuple[TargetId, tuple[ChunkId, ...]]] = []
        self.syncs: list[tuple[TargetId, tuple[ChunkId, ...]]] = []
        self.getting = self.getting_max = 0

    def receipt(self, target: TargetId, chunk: ChunkId) -> m.Receipt:
        return m.Receipt(
            chunk, target, self.epochs[target], chunk in self.durable[target], hash_of(self.chunks[target][chunk])
        )

    async def put(
        self, target, *, chunk, ino, offset_bytes, payload, chunk_hash: bytes, durable, fragment=None, timeout_ms
    ) -> m.Receipt:
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        data = b"".join(payload)
        assert hash_of(data) == chunk_hash
        assert fragment is None or (fragment.fits(len(data)) and fragment.hash == chunk_hash)
        self.fragments[target.id, chunk] = fragment
        self.puts.append((target.id, chunk, durable))
        error = self.on_put(target.id, chunk)
        if error is not None:
            raise error
        if self.chunks[target.id].setdefault(chunk, data) != data:
            raise ChunkConflict
        if durable:
            self.durable[target.id].add(chunk)
        return self.receipt(target.id, chunk)

    async def put_chain(self, target, request: PutChain, payload) -> list[ChainLink]:
        """Who is first passes it on to everybody else, each of whom it may or may not reach."""
        self.chains.append(request.targets)
        assert target.id == request.targets[0]
        links = []
        for number in request.targets:
            error = self.on_forward(target.id, number)
            if error is None:
                try:
                    receipt = await self.put(
                        msgspec.structs.replace(target, id=number),
                        chunk=request.chunk,
                        ino=request.ino,
                        offset_bytes=request.offset_bytes,
                        payload=payload,
                        chunk_hash=request.chunk_hash,
                        durable=request.durable,
                        timeout_ms=0,
                    )
                except ShoalError as raised:
                    error = raised
                else:
                    links.append(ChainLink(number, receipt))
                    continue
            if number == target.id and error.code < 2_000:
                raise error  # the client hears nothing
            links.append(ChainLink(number, None, error.code, str(error)))
        return links

    async def get(self, target, *, chunk, chunk_bytes, chunk_hash: bytes, offset_bytes, length_bytes) -> memoryview:
        self.getting += 1
        self.getting_max = max(self.getting, self.getting_max)
        try:
            await trio.sleep(0.001)
        finally:
            self.getting -= 1
        self.gets.append((target.id, chunk, offset_bytes, length_bytes))
        error = self.on_get(target.id, chunk)
        if error is not None:
            raise error
        if (target.id, chunk) in self.unreadable:
            raise self.unreadable[target.id, chunk]
        if chunk not in self.chunks[target.id]:
            raise ChunkMissing
        data = self.chunks[target.id][chunk]
        if len(data) != chunk_bytes or hash_of(data) != chunk_hash:
            raise ChunkCorrupt
        assert offset_bytes + length_bytes <= chunk_bytes
        return memoryview(data)[offset_bytes : offset_bytes + length_bytes]

    async def get_many(self, target, wanted) -> list:
        self.together.append((target.id, tuple(one.chunk for one in wanted)))
        found = []
        for one in wanted:
            try:
                found.append(await self.get(target, **one._asdict(), offset_bytes=0, length_bytes=one.chunk_bytes))
            except (ChunkMissing, ChunkCorrupt) as error:
                found.append(error)
        return found

    async def sync(self, target, chunks) -> tuple[m.Receipt, ...]:
        await trio.lowlevel.checkpoint()
        self.syncs.append((target.id, tuple(chunks)))
        error = self.on_sync(target.id)
        if error is not None:
            raise error
        for chunk in chunks:
            if chunk not in self.chunks[target.id]:
                raise ChunkMissing
        self.durable[target.id].update(chunks)
        return tuple(self.receipt(target.id, chunk) for chunk in chunks)

    def restart(self, target: TargetId, *, lose: bool) -> None:
        """The target comes back under a new epoch; with ``lose`` without what was not on its disk."""
        self.epochs[target] += 1
        if lose:
            kept = self.durable[target]
            self.chunks[target] = {c: data for c, data in self.chunks[target].items() if c in kept}


def hash_of(data: bytes) -> bytes:
    return chunk_hash(block_hashes([data]))


class File:
    def __init__(self, inode: m.Inode) -> None:
        self.inode = inode
        self.inline = b""
        self.extents: list[m.Extent] = []

    def lay(self, new: m.Extent) -> None:
        kept: list[m.Extent] = []
        for old in self.extents:
            kept += self._outside(old, new.offset_bytes, new.end_bytes)
        self.extents = sorted([*kept, new], key=lambda e: e.offset_bytes)

    def _outside(self, old: m.Extent, start: int, end: int) -> list[m.Extent]:
        parts = [(old.offset_bytes, min(start, old.end_bytes)), (max(end, old.offset_bytes), old.end_bytes)]
        return [
            msgspec.structs.replace(
                old,
                offset_bytes=low,
                length_bytes=high - low,
                chunk_offset_bytes=old.chunk_offset_bytes + low - old.offset_bytes,
            )
            for low, high in parts
            if low < high
        ]

    def cut(self, size: int) -> None:
        self.inline = self.inline[:size]
        self.extents = [part for old in self.extents for part in self._outside(old, size, 1 << 60)]


class Service:
    """The metadata service. ``before`` sees each mutation and may raise instead of it."""

    def __init__(self, cluster_map: m.ClusterMap, servers: Servers) -> None:
        self.map = cluster_map
        self.servers = servers
        self.files: dict[InodeId, File] = {}
        self.reserved: dict[int, SessionId] = {}
        self.sequence = 0
        self.last_ino = 1
        self.before: Callable[[m.Op, Any], ShoalError | None] = lambda op, request: None
        self.calls: Counter[m.Op] = Counter()
        self.bad: tuple[m.BadReplica, ...] = ()
        self.clock = 1_000

    def create(self, *, chunk_bytes: int = CHUNK, inline_bytes_max: int = INLINE) -> m.Inode:
        self.last_ino += 1
        ino = InodeId(self.last_ino)
        inode = m.Inode(
            ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1,
            chunk_bytes=chunk_bytes, inline_bytes_max=inline_bytes_max,
        )  # fmt: skip
        self.files[ino] = File(inode)
        return inode

    def inode(self, ino: InodeId) -> m.Inode:
        return self.files[ino].inode

    def read_back(self, ino: InodeId) -> bytes:
        """What the committed metadata and the chunks that are stored say the file is."""
        file = self.files[ino]
        data = bytearray(file.inode.size_bytes)
        if file.inode.storage is m.Storage.INLINE or file.inode.storage == m.Storage.INLINE:
            data[: len(file.inline)] = file.inline
        for e in file.extents:
            holders = [held[e.chunk] for held in self.servers.chunks.values() if e.chunk in held]
            assert holders, "a committed chunk that no target has"
            assert all(hash_of(chunk) == e.chunk_hash and len(chunk) == e.chunk_bytes for chunk in holders)
            piece = holders[0][e.chunk_offset_bytes : e.chunk_offset_bytes + e.length_bytes]
            assert len(piece) == e.length_bytes
            data[e.offset_bytes : e.end_bytes] = piece
        return bytes(data)

    def refresh_targets(self) -> None:
        """Targets that restarted have registered."""
        targets = tuple(msgspec.structs.replace(t, epoch=self.servers.epochs[t.id]) for t in self.map.targets)
        self.map = msgspec.structs.replace(self.map, epoch=self.map.epoch + 1, targets=targets)

    def change(self, file: File, **fields: Any) -> m.Inode:
        self.clock += 1
        used = len(file.inline) + sum(e.length_bytes for e in file.extents)
        old = file.inode
        file.inode = msgspec.structs.replace(
            old,
            version=old.version + 1,
            data_version=old.data_version + 1,
            mtime_ns=self.clock,
            used_bytes=used,
            **fields,
        )
        return file.inode

    def set_attr(self, request: m.SetAttr) -> m.Entry:
        file = self.files[request.ino]
        if request.size_bytes is not None:
            file.cut(request.size_bytes)
            self.change(file, size_bytes=request.size_bytes)
        if request.mtime_ns is not None:
            version = file.inode.version + 1
            file.inode = msgspec.structs.replace(file.inode, mtime_ns=request.mtime_ns, version=version)
        return m.Entry(file.inode)

    def commit_inline(self, request: m.CommitInline) -> m.Committed:
        file = self.files[request.ino]
        before = file.inode
        if before.storage != m.Storage.INLINE:
            raise LayoutConflict
        data, size, first = bytearray(file.inline), before.size_bytes, None
        for patch in request.patches:
            offset = size if request.append else patch.offset_bytes
            first = offset if first is None else first
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(patch.data)] = patch.data
            size = max(size, offset + len(patch.data))
        if size > before.inline_bytes_max:
            raise LayoutConflict
        file.inline = bytes(data)
        return m.Committed(self.change(file, size_bytes=size), first or 0, before.data_version)

    def commit_extents(self, session: SessionId, request: m.CommitExtents) -> m.Committed:
        file = self.files[request.ino]
        before = file.inode
        assert 0 < len(request.extents) <= EXTENTS_PER_COMMIT_MAX
        self.check_receipts(session, request)
        inline = before.storage == m.Storage.INLINE
        if request.inline_version is not None:
            if not inline or request.inline_version != before.data_version:
                raise LayoutConflict
        elif inline and file.inline:
            raise LayoutConflict
        base = before.size_bytes if request.append else 0
        file.inline = b""
        size = max(before.size_bytes, request.size_bytes or 0)
        for extent in request.extents:
            moved = msgspec.structs.replace(extent, offset_bytes=extent.offset_bytes + base)
            file.lay(moved)
            size = max(size, moved.end_bytes)
        inode = self.change(file, size_bytes=size, storage=m.Storage.EXTENTS)
        return m.Committed(inode, base + request.extents[0].offset_bytes, before.data_version)

    def check_receipts(self, session: SessionId, request: m.CommitExtents) -> None:
        epochs = {t.id: t.epoch for t in self.map.targets}
        groups = {g.id: g.targets for g in self.map.groups}
        for chunk in {e.chunk for e in request.extents}:
            if self.reserved.get(chunk_sequence(chunk)) != session:
                raise ChunkNotReserved
            good = {
                r.target
                for r in request.receipts
                if r.chunk == chunk
                and epochs[r.target] == r.target_epoch
                and r.target in groups[chunk_pg(chunk)]
                and (r.durable or not request.durable)
            }
            if len(good) < self.map.pools[0].min_ack:
                raise StaleReceipt


class Client:
    """One session at the service: the Metadata port."""

    def __init__(self, service: Service, session: int) -> None:
        self._service = service
        self.session = SessionId(session)
        self.map = service.map
        self.gone = False

    async def refresh_map(self) -> m.ClusterMap:
        await trio.lowlevel.checkpoint()
        self.map = self._service.map
        return self.map

    async def read(self, method, request) -> Any:
        await trio.lowlevel.checkpoint()
        if method is m.REPORT_REPLICAS:
            self._service.bad += request.bad
            return Reply(Nothing(), memoryview(b""))
        assert method is m.GET_EXTENTS
        file = self._service.files.get(request.ino)
        if file is None:
            raise PosixError(errno.ESTALE)
        end = request.offset_bytes + request.length_bytes
        reaching = [e for e in file.extents if e.offset_bytes < end and e.end_bytes > request.offset_bytes]
        page = m.ExtentMap(file.inode, tuple(reaching[: request.count]), len(reaching) <= request.count)
        return Reply(page, memoryview(file.inline))

    async def mutate(self, op, request, reply) -> Any:
        await trio.lowlevel.checkpoint()
        self._service.calls[op] += 1
        if self.gone:
            raise SessionGone
        error = self._service.before(op, request)
        if error is not None:
            raise error
        if request.ino not in self._service.files:
            raise PosixError(errno.ESTALE)
        # Through the encoding, as a real request goes.
        request = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=type(request))
        if op is m.Op.SETATTR:
            return self._service.set_attr(request)
        if op is m.Op.COMMIT_INLINE:
            return self._service.commit_inline(request)
        assert op is m.Op.COMMIT_EXTENTS
        return self._service.commit_extents(self.session, request)

    async def chunk_sequence(self) -> int:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise SessionGone
        self._service.sequence += 1
        self._service.reserved[self._service.sequence] = self.session
        return self._service.sequence


class World:
    """A service, its chunkservers, and as many mounts as a test wants."""

    def __init__(self, **map_options: int) -> None:
        cluster_map = make_map(**map_options)
        self.servers = Servers(cluster_map)
        self.service = Service(cluster_map, self.servers)
        self.clients: list[Client] = []

    def mount(self, **options: Any) -> DataPath:
        """A client without its background tasks."""
        self.clients.append(Client(self.service, len(self.clients) + 1))
        return DataPath(self.clients[-1], self.servers, **options)

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[DataPath]:
        """A client with write-back and readahead running."""
        async with trio.open_nursery() as nursery:
            mount = self.mount(**options)
            nursery.start_soon(mount.run)
            yield mount
            nursery.cancel_scope.cancel()

    async def opened(self, mount: DataPath, ino: InodeId) -> Any:
        """As open(2): the newest inode and its inline bytes."""
        file = mount.file(self.service.inode(ino))
        file.refresh(self.service.inode(ino), self.service.files[ino].inline)
        return file


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


async def new_file(world: World, mount: Any, **options: Any) -> Any:
    return await world.opened(mount, world.service.create(**options).ino)


def durable_copies(world: World, ino: Any) -> list[int]:
    chunks = {e.chunk for e in world.service.files[ino].extents}
    return [sum(chunk in held for held in world.servers.durable.values()) for chunk in chunks]
