"""A cluster in one process for tests of the data protocol: writing, committing, repairing, moving, collecting garbage.

What is real: the state machine, the leader's memory and all of its decisions (:mod:`shoalfs.mds.rounds`, heartbeats,
repairs, evictions, upkeep), the membership and the copier of chunkservers, the client's placement, units and receipts,
and the client that verifies what it reads. Simulated are disks, the network and time; and tasks: what waits for
something in the product is a step of its own here, so that everything else can happen in between.

Two ways to use it: :meth:`DataWorld.step` lets a second pass as on a healthy cluster; the single steps are put into any
order by random histories (`data_run.py`) and by the exploration of all orders (`data_states.py`).
"""

from collections.abc import Sequence
from functools import partial

import msgspec

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.fs.placement import Placement
from shoalfs.fs.units import syncs_needed
from shoalfs.mds import keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.evictions import Evictions
from shoalfs.mds.heartbeats import Heartbeats
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.messages import TargetState
from shoalfs.mds.repairs import Repairs
from shoalfs.mds.rounds import Clock, Rounds, Steps
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.errors import ChunkConflict, ChunkNotReserved, PosixError, SessionGone, ShoalError, StaleReceipt
from shoalfs.transport.fragments import fragment_hash
from shoalfs.transport.ids import ChunkId, InodeId, TargetId, chunk_pg
from shoalfs.transport.limits import SESSION_TTL_MS
from sim import data_promises as promises
from sim.broken import Broken
from sim.data_clock import Timed
from sim.data_server import CAPACITY, Peers, Server, driven
from sim.data_writer import POOL, WRITE_BYTES, Writer, payload_of, pieces_of

GRACE_MS = 5_000
OUT_MS = 20_000


class DataWorld:
    """``replicas`` copies of every chunk, each acknowledged by at least ``min_ack``; or as many fragments, ``data`` of
    which give the chunk."""

    def __init__(
        self, servers: int, replicas: int = 2, min_ack: int = 1, data: int = 1, capacity: int = CAPACITY
    ) -> None:
        self.md = Timed()
        self.capacity = capacity  # bytes that each target says it has
        self.pool = m.Pool(POOL, "hot", replicas, min_ack, data)
        with self.md.store.write() as txn:
            records.POOL.store(txn, keys.pool(POOL), self.pool)
        self.servers: list[Server] = []
        self.state = self.fresh_state()
        self.bind()
        for _ in range(servers):
            self.add_server()
        self.ino = self.md.create(b"file").ino
        self.written = 0
        self.copies = 0
        self.rebuilt = 0  # of these, from other fragments
        self.writers: list[Writer] = []
        self.silent: frozenset[int] = frozenset()  # numbers of servers that the leader does not hear
        self.unreachable: frozenset[int] = frozenset()  # of those that clients and other servers do not reach
        self.promised: set[ChunkId] = set()  # fsync has said of them that they are on disk
        self.condemned: set[ChunkId] = set()  # some leader ordered their deletion as garbage
        self.told: dict[ChunkId, tuple[TargetId, ...]] = {}  # of these, by the present leader, and who was told
        self.foreign: set[ChunkId] = set()  # on a disk, of another time or another cluster: numbers never given out
        self.arrived_late: set[ChunkId] = set()
        self.were_out: frozenset[int] = frozenset()
        self.left: dict[tuple[int, int], int] = {}  # (group, target) -> when the target ceased to hold the group
        self.hurt: frozenset[int] = frozenset()  # targets that lost or changed something that they should have kept
        self.is_damaged = False  # the metadata contradict themselves at present
        self.grace_ms = GRACE_MS

    def bind(self) -> None:
        """What refers to the leader's memory and to the clock of this world."""
        self.beats = Heartbeats(self.state, lambda: self.md.clock_ms)
        clock = Clock(lambda: self.md.clock_ms, lambda: self.md.clock_ms * 1_000_000)
        self.rounds = Rounds(self.md.store, self.state, clock, grace_ms=GRACE_MS, out_ms=OUT_MS)

    @property
    def now_ms(self) -> int:
        return self.md.clock_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self.md.clock_ms = now_ms

    def fresh_state(self) -> LeaderState:
        return LeaderState(SessionTable(SESSION_TTL_MS), repairs=Repairs(1 << 30), evictions=Evictions(GRACE_MS))

    def new_leader(self) -> None:
        """Everything that only the leader knew is gone."""
        with self.md.store.read() as txn:
            self.state.lead(txn, self.state.term + 1, self.now_ms)
        self.told = {}

    # --- servers -----------------------------------------------------------------------------------------------------

    def add_server(self, node: str | None = None, rack: str = "") -> Server:
        number = len(self.servers) + 1
        server = Server(number, node or f"n{number}", rack)
        self.servers.append(server)
        self.register(server)
        return server

    def register(self, server: Server) -> None:
        request = m.RegisterTarget(server.uuid, server.node, f"mem:{server.number}", self.capacity, server.rack)
        before = self.states().get(server.id)
        given = self.md.do(request, session=0).target
        promises.check_registered(server, before, given.state)
        server.id, server.epoch = given.id, given.epoch
        server.membership.registered(server.uuid, given.id, given.epoch)

    def by_id(self, target: int) -> Server | None:
        return next((server for server in self.servers if server.id == target), None)

    def states(self) -> dict[int, TargetState]:
        return {target.id: target.state for target in self.md.map().targets}

    def reaches(self, server: Server) -> bool:
        """Clients and other servers get an answer from it."""
        return server.up and server.number not in self.unreachable

    def send_beat(self, server: Server) -> None:
        if server.membership.unregistered():
            self.register(server)
        server.collect()

    def hear_beat(self, server: Server) -> None:
        """The leader gets it, and answers."""
        assert server.sent is not None
        with self.md.store.read() as txn:
            server.reply = self.beats.heartbeat(txn, server.sent)
        promises.check_orders(self, server, server.reply.orders)

    def finish_deleting(self, server: Server) -> None:
        for chunk in server.finish_deleting():
            promises.check_deleted(self, server, chunk)

    def finish_copy(self, server: Server, chunk: ChunkId) -> bool:
        peers = Peers(self.servers, lambda server: not self.reaches(server))
        rebuilds = server.copying[chunk].rebuild is not None
        done = server.finish_copy(chunk, peers)
        if all(chunk != extent.chunk for extent in self.extents()):
            self.arrived_late.add(chunk)  # it was ordered when a file used it
        if done and peers.fetched:
            self.copies += 1
            self.rebuilt += rebuilds and peers.fetched >= self.pool.data
        return done

    def beat(self, server: Server, *, answered: bool = True) -> None:
        """One heartbeat, and everything that was ordered is carried out. ``answered`` False: the answer is lost."""
        if not server.up:
            return
        server.forget_beat()
        self.send_beat(server)
        self.hear_beat(server)
        if not answered:
            server.forget_beat()
            return
        server.take_reply()
        self.carry_out(server)

    def carry_out(self, server: Server) -> None:
        while server.deleting:
            self.finish_deleting(server)
        for chunk in list(server.copying):
            self.finish_copy(server, chunk)

    # --- the leader --------------------------------------------------------------------------------------------------

    def propose(self, steps: Steps) -> list[str]:
        """Carry out what the leader decided; returns what it said. What is refused is refused."""
        said = []
        proposal = next(steps, None)
        while proposal is not None:
            said.append(proposal.text)
            before = promises.groups_of(self)
            with self.md.store.read() as txn:
                promises.check_proposal(self, txn, proposal)
            commands = [(0, m.Command(0, 0, proposal.op, _raw(request))) for request in proposal.requests]
            try:
                proposal = steps.send(self._entry(commands, before))
            except StopIteration:
                break
        self._note_condemned()
        return said

    def _entry(self, commands: list[tuple[int, m.Command]], before: dict[int, m.PlacementGroup]) -> Sequence[m.Outcome]:
        outcomes = self.md.entry(commands)
        self.were_out |= {target for target, state in self.states().items() if state is TargetState.OUT}
        for group in self.md.map().groups:
            held = before[group.id].holders if group.id in before else ()
            for target in group.holders:
                self.left.pop((group.id, target), None)
            self.left |= {(group.id, target): self.now_ms for target in held if target not in group.holders}
        return outcomes

    def _note_condemned(self) -> None:
        waiting = self.state.garbage._waiting
        self.told |= {chunk: tuple(waiting[chunk]) for chunk in waiting.keys() - self.told.keys()}
        fresh = waiting.keys() - self.condemned
        with self.md.store.read() as txn:
            promises.check_condemned(self, txn, fresh)
        self.condemned |= fresh

    def duties(self) -> list[str]:
        """One round of what the leader does by itself; sessions of this world do not expire."""
        return [
            *self.propose(self.rounds.note_lost_targets()),
            *self.propose(self.rounds.change_map()),
            *self.propose(self.rounds.empty_trash()),
            *self.propose(self.rounds.reap_orphans()),
            *self.propose(self.rounds.trim_files()),
            *self.propose(self.rounds.collect_garbage()),
        ]

    def step(self, ms: int = 1_000) -> None:
        self.now_ms += ms
        for server in self.servers:
            if server.up:
                server.sync_all()
                server.scrub()
            self.beat(server)
        self.duties()
        self.duties()  # the leader looks more often than targets report

    # --- clients, step by step ---------------------------------------------------------------------------------------

    def add_writer(self) -> Writer:
        nonce = b"writer %9d" % self.md.machine.applied_index
        session = self.md.do(m.OpenSession(nonce, "tests"), session=0).session
        self.writers.append(Writer(session, self.ino, self.md.map()))
        return self.writers[-1]

    def start_write(self, writer: Writer, offset: int, *, durable: bool, makes: bool = False) -> bool:
        """Choose and reserve a chunk; ``makes``: and a number, for a new file. False: it sees no group that takes it,
        or it was fenced."""
        writer.begin(offset, durable=durable, makes=makes)
        group = writer.choose(offset // WRITE_BYTES)
        if group is None:
            writer.map = self.md.map()
            return False
        try:
            reserved = self.md.do(m.ReserveChunks(1), session=writer.session)
            if makes:
                writer.ino = self.md.do(m.ReserveInodes(1), session=writer.session).first_ino
        except SessionGone:
            writer.state = "gone"
            return False
        writer.send(group, reserved.first_sequence)
        return True

    def arrive(self, server: Server, chunk: ChunkId, place: int, *, durable: bool) -> m.Receipt | None:
        """A PUT reaches its server. None: refused."""
        data = pieces_of(payload_of(chunk), self.pool).each[place]
        try:
            server.store(chunk, data)
        except ChunkConflict:
            return None
        if chunk in self.condemned:
            self.arrived_late.add(chunk)  # of a writer that was fenced long ago; it is found in an inventory again
        if durable and not server.lies:
            server.unsynced.discard(chunk)
        return server.receipt(chunk, durable=durable)

    def put(self, writer: Writer, target: TargetId, *, answered: bool = True) -> None:
        """The request reaches the target if that is up; else, or if the answer is lost, it counts as not stored."""
        server = self.by_id(target)
        receipt = None
        if server is not None and self.reaches(server):
            receipt = self.arrive(server, writer.chunk, writer.place(target), durable=writer.durable)
        writer.answered(target, receipt if answered else None)
        if not writer.waiting:
            self._all_answered(writer)

    def abandon(self, writer: Writer, target: TargetId) -> None:
        """The writer waits no longer for an answer; the request may arrive later all the same."""
        writer.late = (*writer.late, (target, writer.chunk))
        writer.answered(target, None)
        if not writer.waiting:
            self._all_answered(writer)

    def arrive_late(self, writer: Writer, number: int) -> None:
        target, chunk = writer.late[number]
        writer.late = writer.late[:number] + writer.late[number + 1 :]
        server = self.by_id(target)
        group = next(group for group in writer.map.groups if group.id == chunk_pg(chunk))
        if server is not None and server.up and target in group.targets:
            self.arrive(server, chunk, group.place(target), durable=False)
            self.arrived_late.add(chunk)

    def _all_answered(self, writer: Writer) -> None:
        if writer.is_stored():
            writer.stored(self.pool)
        else:
            writer.map = self.md.map()
            writer.rest()

    def commit(self, writer: Writer, *, answered: bool = True) -> bool:
        """Link it. False: it was refused. The answer may be lost: then it is repeated."""
        chunk = writer.chunk
        try:
            self.md.do(writer.commit(), session=writer.session)
        except (StaleReceipt, ChunkNotReserved):
            writer.refused(self.md.map())
            return False
        except SessionGone:
            writer.state = "gone"
            return False
        except PosixError:
            writer.rest()  # the file is gone
            return False
        if not (writer.makes and writer.unsure):  # told again, it may have been applied long ago
            promises.check_linked(self, chunk, durable=writer.durable)
        if not answered:
            writer.unsure = True
            return False
        if writer.durable:
            self.promised.add(chunk)
        writer.committed()
        self.written += 1
        return True

    def fsync(self, writer: Writer, unheard: Sequence[TargetId] = ()) -> bool:
        """Put on disk what was committed without. False: that failed. The answers of ``unheard`` are lost."""
        for chunk, holders in list(writer.undurable.items()):
            synced, placement = 0, Placement(writer.map)
            asked = {*holders, *(target.id for target in placement.replicas(chunk, 0, ()))}
            for target in sorted(asked):
                server = self.by_id(target)
                if server is None or not self.reaches(server) or chunk not in server.disk:
                    continue
                if not server.lies:
                    server.unsynced.discard(chunk)
                synced += target not in unheard
            if synced >= syncs_needed(holders, placement.min_ack(POOL)):
                del writer.undurable[chunk]
                self.promised.add(chunk)
            elif all(chunk != extent.chunk for extent in self.extents()):
                del writer.undurable[chunk]
        return not writer.undurable

    def fence(self, writer: Writer) -> None:
        """The session ends; its client may not know."""
        self.md.do(m.EndSession(writer.session, expired=True), session=0)
        self.state.session_ended(writer.session)

    def read_all(self) -> int:
        """What every holder has of every extent is read, if it answers, by the real client, which trusts nobody.
        Returns how many copies were right; raises Broken if wrong bytes come."""
        client, right = ChunkClient(Peers(self.servers, lambda server: not self.reaches(server))), 0
        map_ = self.md.map()
        targets = {target.id: target for target in map_.targets}
        groups = {group.id: group for group in map_.groups}
        for extent in self.extents():
            group = groups[chunk_pg(extent.chunk)]
            each = pieces_of(payload_of(extent.chunk), self.pool).each
            for holder in group.holders:
                wanted = each[group.place(holder)]
                try:
                    found = driven(
                        partial(
                            client.get,
                            targets[holder],
                            chunk=extent.chunk,
                            chunk_bytes=len(wanted),
                            chunk_hash=self.wanted_hash(group, holder, extent),
                            offset_bytes=0,
                            length_bytes=len(wanted),
                        )
                    )
                except ShoalError:
                    continue
                if bytes(found) != wanted:
                    raise Broken(f"wrong bytes of chunk {extent.chunk:x} from target {holder}")
                right += 1
        return right

    # --- files, at once ----------------------------------------------------------------------------------------------

    def extent(self, offset: int, chunk: ChunkId) -> m.Extent:
        pieces = pieces_of(payload_of(chunk), self.pool)
        return m.Extent(offset, WRITE_BYTES, chunk, 0, WRITE_BYTES, pieces.chunk_hash, pieces.fragments)

    def write(
        self, group: m.PlacementGroup, reached: set[int], offset: int | None = None, ino: InodeId | None = None
    ) -> ChunkId | None:
        """Store a chunk on those members of the group, as it may be in an old map, that are up and in ``reached``, and
        link it durably. None: it was refused."""
        chunk = self.md.chunk(group.id)
        receipts = []
        for target in group.targets:
            server = self.by_id(target)
            if server is not None and server.up and target in reached:
                receipt = self.arrive(server, chunk, group.place(target), durable=True)
                assert receipt is not None
                receipts.append(receipt)
        extent = self.extent(self.written * WRITE_BYTES if offset is None else offset, chunk)
        try:
            self.md.do(m.CommitExtents(ino or self.ino, (extent,), tuple(receipts), durable=True))
        except StaleReceipt:
            return None
        self.written += 1
        self.promised.add(chunk)
        return chunk

    def punch(self, number: int) -> None:
        """Link other bytes over a range that was written: its chunk becomes garbage."""
        extents = self.extents()
        if extents:
            chosen = extents[number % len(extents)]
            group = {g.id: g for g in self.md.map().groups}[chunk_pg(chosen.chunk)]
            self.write(group, set(group.targets), chosen.offset_bytes)

    def linked(self) -> list[tuple[InodeId, m.Extent]]:
        """Of all files, those in the trash and those that wait for their removal too."""
        with self.md.store.read() as txn:
            rows = list(txn.range(*keys.all_of(b"X")))
        return [(InodeId(keys.first_field(key)), records.EXTENT.decode(key, value)) for key, value in rows]

    def extents(self) -> list[m.Extent]:
        return [extent for _, extent in self.linked()]

    def new_session(self) -> None:
        """What the old one had reserved and did not link is nobody's."""
        self.md.do(m.EndSession(self.md.session), session=0)
        nonce = b"session%9d" % self.md.machine.applied_index
        self.md.session = self.md.do(m.OpenSession(nonce, "tests"), session=0).session

    def status(self) -> m.RepairStatus:
        with self.md.store.read() as txn:
            return self.beats.repair_status(self.state.map_index(txn))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def wanted_hash(self, group: m.PlacementGroup, target: int, extent: m.Extent) -> bytes:
        """Of what a holder of the group should have of an extent's chunk."""
        return fragment_hash(extent.fragments, group.place(target)) if self.pool.data > 1 else extent.chunk_hash

    def is_good(self, group: m.PlacementGroup, target: int, extent: m.Extent) -> bool:
        server = self.by_id(target)
        return server is not None and server.good(extent.chunk, self.wanted_hash(group, target, extent))

    def is_on_platter(self, group: m.PlacementGroup, target: int, extent: m.Extent) -> bool:
        server = self.by_id(target)
        return server is not None and server.on_platter(extent.chunk, self.wanted_hash(group, target, extent))

    def spread(self, group: m.PlacementGroup, extent: m.Extent, *, durable: bool) -> int:
        """Copies, or different fragments, of an extent's chunk with the holders of its group, in service or not."""
        have = self.is_on_platter if durable else self.is_good
        found = [target for target in group.holders if have(group, target, extent)]
        return len({group.place(target) for target in found}) if self.pool.data > 1 else len(found)

    def check(self) -> None:
        """Raises Broken unless everything holds that must hold in every state."""
        promises.check_state(self)

    def lacking(self) -> list[tuple[int, ChunkId]]:
        """(target, chunk) of every copy that should be there."""
        groups = {group.id: group for group in self.md.map().groups}
        return [
            (target, extent.chunk)
            for extent in self.extents()
            for target in groups[chunk_pg(extent.chunk)].targets
            if not self.is_good(groups[chunk_pg(extent.chunk)], target, extent)
        ]

    def surplus(self) -> list[tuple[int, ChunkId]]:
        """(target, chunk) of every copy that nobody needs."""
        groups = {group.id: group for group in self.md.map().groups}
        used = {extent.chunk for extent in self.extents()}
        return [
            (server.id, chunk)
            for server in self.servers
            for chunk in server.disk
            if chunk not in self.foreign and (chunk not in used or server.id not in groups[chunk_pg(chunk)].targets)
        ]

    def settled(self) -> bool:
        """Every copy is where it should be, and nothing is on its way."""
        groups = self.md.map().groups
        states = self.states()
        return (
            not self.lacking()
            and not any(group.leaving for group in groups)
            and all(states[target] is TargetState.UP for group in groups for target in group.targets)
        )

    def until(self, condition, what: str, steps: int = 200) -> int:
        """Let time pass, at least one heartbeat, until ``condition()``; returns the steps."""
        for taken in range(1, steps + 1):
            self.step()
            if condition():
                return taken
        raise Broken(f"not after {steps} heartbeats: {what}: {self.states()} {self.lacking()[:5]}")


def _raw(request: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(request))
