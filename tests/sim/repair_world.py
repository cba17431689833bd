"""A cluster in one process for tests of repair: the real state machine, the real leader's memory and decisions, and the
real membership of chunkservers; their disks are dictionaries, and the network is a function call that may fail.

One step is one heartbeat, one round of duties, one write, one fault. After each, :meth:`RepairWorld.check_last_copies`
asserts the one promise that no fault within the bounds may break: a chunk that a file uses is on some disk that the map
leads to.
"""

import msgspec

from harness.metadata import Metadata
from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.mds import cluster, keys, reads, records, upkeep
from shoalfs.mds import messages as m
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.evictions import Evictions
from shoalfs.mds.heartbeats import Heartbeats
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.messages import TargetState
from shoalfs.mds.repairs import Repairs
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.checksum import chunk_hash
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError, StaleReceipt
from shoalfs.transport.ids import ChunkId, chunk_pg
from shoalfs.transport.limits import SESSION_TTL_MS

HASH = b"h" * 16  # of every good chunk here; of fragments, see RepairWorld.hash_at
BAD = b"b" * 16
CAPACITY = 1 << 30
GRACE_MS = 5_000
OUT_MS = 20_000


class Server:
    """A chunkserver with one target. ``disk``: chunk -> the hash of what is stored; ``beyond_repair``: it is gone."""

    def __init__(self, number: int, node: str, rack: str = "") -> None:
        self.number = number
        self.uuid = number.to_bytes(16, "big")
        self.node = node
        self.rack = rack
        self.disk: dict[ChunkId, bytes] = {}
        self.id = 0
        self.up = True
        self.epoch = 0
        self.membership = Membership(node, [self.uuid])

    def restart(self) -> None:
        self.up = True
        self.membership = Membership(self.node, [self.uuid])


class _Timed(Metadata):
    """The state machine on the world's clock."""

    clock_ms = 0

    def entry(self, commands):
        self.now_ns = self.clock_ms * 1_000_000
        return self.apply(encode_entry(self.now_ns, commands))


class RepairWorld:
    """``replicas`` copies of every chunk, each acknowledged by at least ``min_ack``; or as many fragments, ``data`` of
    which give the chunk."""

    def __init__(self, servers: int, replicas: int = 2, min_ack: int = 1, data: int = 1) -> None:
        self.md = _Timed()
        self.data = data
        self.fragments = b"".join(map(self.hash_at, range(replicas))) if data > 1 else b""
        self.hash = chunk_hash(self.fragments) if data > 1 else HASH
        self.set_pool(replicas, min_ack)
        self.servers: list[Server] = []
        self.state = self.fresh_state()
        self.beats = Heartbeats(self.state, lambda: self.now_ms)
        for _ in range(servers):
            self.add_server()
        self.ino = self.md.create(b"file").ino
        self.written = 0
        self.copies = 0
        self.rebuilt = 0  # of these, from other fragments

    @property
    def now_ms(self) -> int:
        return self.md.clock_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self.md.clock_ms = now_ms

    def hash_at(self, place: int) -> bytes:
        """Of what the holder at this place of a group should have of any chunk."""
        return HASH if self.data == 1 else bytes([place + 1]) * 16

    def is_good(self, group: m.PlacementGroup, target: int, chunk: ChunkId) -> bool:
        """The target has what it should of the chunk."""
        server = self.by_id(target)
        return server is not None and server.disk.get(chunk) == self.hash_at(group.place(target))

    def set_pool(self, replicas: int, min_ack: int) -> None:
        with self.md.store.write() as txn:
            pool = m.Pool(1, "hot", replicas, min_ack, self.data)
            records.POOL.store(txn, keys.pool(pool.id), pool)

    def fresh_state(self) -> LeaderState:
        return LeaderState(SessionTable(SESSION_TTL_MS), repairs=Repairs(1 << 30), evictions=Evictions(GRACE_MS))

    def new_leader(self) -> None:
        """Everything that only the leader knew is gone."""
        with self.md.store.read() as txn:
            self.state.lead(txn, self.state.term + 1, self.now_ms)

    # --- servers -----------------------------------------------------------------------------------------------------

    def add_server(self, node: str | None = None, rack: str = "") -> Server:
        number = len(self.servers) + 1
        server = Server(number, node or f"n{number}", rack)
        self.servers.append(server)
        self.register(server)
        return server

    def register(self, server: Server) -> None:
        request = m.RegisterTarget(server.uuid, server.node, f"mem:{server.number}", CAPACITY, server.rack)
        given = self.md.do(request, session=0).target
        server.id, server.epoch = given.id, given.epoch
        server.membership.registered(server.uuid, given.id, given.epoch)

    def by_id(self, target: int) -> Server | None:
        return next((server for server in self.servers if server.id == target), None)

    def states(self) -> dict[int, TargetState]:
        return {target.id: target.state for target in self.md.map().targets}

    def beat(self, server: Server, *, answered: bool = True) -> None:
        """One heartbeat, and everything that was ordered is carried out. ``answered`` False: the answer is lost."""
        if not server.up:
            return
        if server.membership.unregistered():
            self.register(server)
        part = server.membership.next_part(server.uuid)
        inventory = sorted(chunk for chunk in server.disk if chunk > part.after)[: part.chunks_max]
        condition = Condition(
            CAPACITY,
            len(server.disk),
            len(server.disk),
            "",
            part,
            tuple(inventory),
            b"".join(server.disk[chunk] for chunk in inventory),
        )
        sent = server.membership.heartbeat({server.uuid: condition})
        with self.md.store.read() as txn:
            reply = self.beats.heartbeat(txn, sent)
        if answered:
            server.membership.answered(sent, reply)
            self.carry_out(server)

    def carry_out(self, server: Server) -> None:
        chunks = server.membership.begin_deleting(server.uuid)
        for chunk in chunks:
            server.disk.pop(chunk, None)
        server.membership.end_deleting(server.uuid, chunks)
        while (work := server.membership.begin_copy()) is not None:
            _, order = work
            copied, failures = self.copy(server, order)
            server.membership.end_copy(server.uuid, order.chunk, copied=copied, failures=failures)

    def copy(self, server: Server, order: m.CopyOrder) -> tuple[bool, list[m.CopyFailed]]:
        if server.disk.get(order.chunk) == order.chunk_hash:
            return True, []
        failures = []
        for source in order.sources:
            peer = self.by_id(source.target)
            held = peer.disk.get(order.chunk) if peer is not None and peer.up else None
            if held == order.chunk_hash:
                server.disk[order.chunk] = held
                self.copies += 1
                return True, failures
            code = 1001 if peer is None or not peer.up else ChunkMissing.code if held is None else ChunkCorrupt.code
            failures.append(m.CopyFailed(order.chunk, source.target, code))
        if order.rebuild is not None and self.rebuild(server, order, order.rebuild, failures):
            return True, failures
        return False, failures or [m.CopyFailed(order.chunk, 0, ChunkMissing.code)]

    def rebuild(self, server: Server, order: m.CopyOrder, plan: m.Rebuild, failures: list[m.CopyFailed]) -> bool:
        places = set()
        for source in plan.sources:
            peer = self.by_id(source.target)
            held = peer.disk.get(order.chunk) if peer is not None and peer.up else None
            if held == source.fragment_hash == self.hash_at(source.place):
                places.add(source.place)
            else:
                code = 1001 if peer is None or not peer.up else ChunkMissing.code if held is None else ChunkCorrupt.code
                failures.append(m.CopyFailed(order.chunk, source.target, code))
        if len(places) < plan.data:
            return False
        assert order.chunk_hash == self.hash_at(plan.place), "the fragment that was ordered is that of its place"
        server.disk[order.chunk] = order.chunk_hash
        self.copies += 1
        self.rebuilt += 1
        return True

    # --- the leader --------------------------------------------------------------------------------------------------

    def duties(self) -> list[str]:
        """One round of what the leader does about targets, groups and garbage. Returns what it said."""
        for target in self.state.targets.lost(self.md.map(), self.now_ms):
            self.md.do(m.SetTargetState(target, TargetState.DOWN), session=0)
        with self.md.store.read() as txn:
            view = upkeep.View(
                index=self.state.map_index(txn),
                repairs=self.state.repairs,
                answers=self.beats.answers,
                now_ns=self.now_ms * 1_000_000,
                out_ms=OUT_MS,
                rebalance=not cluster.load_upkeep(txn).rebalance_paused,
            )
        said = []
        for _, change, text in upkeep.changes(view):
            said.append(text)
            self.md.do(change, session=0)
        self.collect_garbage()
        return said

    def collect_garbage(self) -> None:
        garbage = self.state.garbage
        if self.state.strays:
            self.md.do(m.ChunkList(tuple(self.state.strays)), op=m.Op.ADD_GARBAGE, session=0)
            self.state.strays.clear()
        with self.md.store.read() as txn:
            map_ = self.state.map_index(txn).map
            garbage.let_go(map_)
            before = max(0, self.now_ms - GRACE_MS) * 1_000_000
            garbage.add(reads.garbage_before(txn, before, garbage.room(), garbage.knows), map_)
        if done := garbage.take_done(1_000):
            self.md.do(m.ChunkList(done), op=m.Op.DROP_GARBAGE, session=0)

    def step(self, ms: int = 1_000) -> None:
        self.now_ms += ms
        for server in self.servers:
            self.beat(server)
        self.duties()
        self.duties()  # the leader looks more often than targets report

    # --- files -------------------------------------------------------------------------------------------------------

    def write(self, group: m.PlacementGroup, reached: set[int]) -> ChunkId | None:
        """Store a chunk on those members of the group, as it may be in an old map, that are up and in ``reached``, and
        link it. None: it was refused."""
        chunk = self.md.chunk(group.id)
        epochs = {target.id: target.epoch for target in self.md.map().targets}
        receipts = []
        for target in group.targets:
            server = self.by_id(target)
            if server is not None and server.up and target in reached:
                server.disk[chunk] = self.hash_at(group.place(target))
                receipts.append(m.Receipt(chunk, target, server.epoch, True, server.disk[chunk]))
        extent = m.Extent(self.written * 10, 10, chunk, 0, 10, self.hash, self.fragments)
        assert epochs
        try:
            self.md.do(m.CommitExtents(self.ino, (extent,), tuple(receipts)))
        except StaleReceipt:
            return None
        self.written += 1
        return chunk

    def punch(self, number: int) -> None:
        """Link other bytes over a range that was written: its chunk becomes garbage."""
        extents = self.extents()
        if extents:
            chosen = extents[number % len(extents)]
            group = {g.id: g for g in self.md.map().groups}[chunk_pg(chosen.chunk)]
            chunk = self.md.chunk(group.id)
            receipts = []
            for target in group.targets:
                server = self.by_id(target)
                if server is not None and server.up:
                    server.disk[chunk] = self.hash_at(group.place(target))
                    receipts.append(m.Receipt(chunk, target, server.epoch, True, server.disk[chunk]))
            extent = msgspec.structs.replace(chosen, chunk=chunk)
            try:
                self.md.do(m.CommitExtents(self.ino, (extent,), tuple(receipts)))
            except ShoalError as error:
                assert isinstance(error, StaleReceipt), error

    def extents(self) -> list[m.Extent]:
        with self.md.store.read() as txn:
            return [records.EXTENT.decode(*row) for row in txn.range(*keys.all_of(b"X"))]

    def status(self) -> m.RepairStatus:
        with self.md.store.read() as txn:
            return self.beats.repair_status(self.state.map_index(txn))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check_last_copies(self) -> None:
        """A good copy of every chunk in use is on the disk of a holder of its group, in service or not; or as many
        fragments as it takes."""
        groups = {group.id: group for group in self.md.map().groups}
        for extent in self.extents():
            group = groups[chunk_pg(extent.chunk)]
            good = [target for target in group.holders if self.is_good(group, target, extent.chunk)]
            found = {group.place(target) for target in good} if self.data > 1 else good
            assert len(found) >= self.data, f"chunk {extent.chunk:x} of {group} is nowhere"

    def lacking(self) -> list[tuple[int, ChunkId]]:
        """(target, chunk) of every copy that should be there."""
        groups = {group.id: group for group in self.md.map().groups}
        return [
            (target, extent.chunk)
            for extent in self.extents()
            for target in groups[chunk_pg(extent.chunk)].targets
            if not self.is_good(groups[chunk_pg(extent.chunk)], target, extent.chunk)
        ]

    def surplus(self) -> list[tuple[int, ChunkId]]:
        """(target, chunk) of every copy that nobody needs."""
        groups = {group.id: group for group in self.md.map().groups}
        used = {extent.chunk for extent in self.extents()}
        return [
            (server.id, chunk)
            for server in self.servers
            for chunk in server.disk
            if chunk not in used or server.id not in groups[chunk_pg(chunk)].targets
        ]

    def until(self, condition, what: str, steps: int = 200) -> int:
        """Let time pass, at least one heartbeat, until ``condition()``; returns the steps."""
        for taken in range(1, steps + 1):
            self.step()
            if condition():
                return taken
        raise AssertionError(f"not after {steps} heartbeats: {what}: {self.states()} {self.lacking()[:5]}")
