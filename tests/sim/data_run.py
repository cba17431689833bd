"""One random history of the data world: clients write, sync, remove files and restore them from the trash; servers
die, lose power, return, are cut off, are drained, resumed and added, groups move by themselves; disks lose and change
what they had, or lie; leaders change; the metadata are damaged and mended. Now and then all faults end, and everything
has to come to rest as it should be.

At most one disk at a time is without what it should have kept, and none at all where nothing protects from that.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from shoalfs.mds import keys, mending, records
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import chunk_id
from sim.broken import Broken
from sim.data_rest import come_to_rest
from sim.data_server import Server, copy_of
from sim.data_world import DataWorld
from sim.data_writer import WRITE_BYTES

STEPS = 150
SLOTS = 6  # places in a file that are written
FILES_MAX = 6
POOLS = {"copies": (2, 1, 1), "safe copies": (2, 2, 1), "three": (3, 2, 1), "fragments": (4, 3, 2)}
"""(replicas, min_ack, data)."""


class History:
    """``kinds``: what may go wrong beside messages that are lost."""

    def __init__(self, seed: int, pool: str, kinds: Sequence[str] = ("crash", "cut", "move", "mend", "disk")) -> None:
        self.chance = chance = random.Random(f"{seed} {pool}")
        replicas, min_ack, data = POOLS[pool]
        self.kinds = kinds
        self.met: Counter[str] = Counter()
        capacity = chance.choice((1 << 30, 200)) if "move" in kinds else 1 << 30
        self.world = DataWorld(0, replicas, min_ack, data, capacity=capacity)
        for _ in range(chance.choice((1, 2, 3)) + replicas):
            self.add_server()
        self.files = [self.world.ino]
        self.liar: Server | None = None
        if "disk" in kinds and min_ack > data and chance.random() < 0.4:
            self.liar = chance.choice(self.world.servers)
            self.liar.lies = True
        for _ in range(2):
            self.world.add_writer()
        self.put_foreign(chance.choice(self.world.servers))
        if chance.random() < 0.5:
            self.world.md.do(m.Upkeep(trash_retention_ms=chance.choice((3_000, 20_000))), session=0)

    def put_foreign(self, server: Server) -> None:
        """Something that this cluster never stored, under a number that it has not given out."""
        group = self.chance.choice(self.world.md.map().groups)
        chunk = chunk_id(group.id, 1 << 40)
        server.disk[chunk] = copy_of(b"foreign")
        self.world.foreign.add(chunk)

    def run(self, steps: int = STEPS) -> DataWorld:
        """Raises Broken."""
        world, chance = self.world, self.chance
        for number in range(steps):
            world.now_ms += chance.choice((50, 300, 1_000, 3_000))
            self.beats()
            for _ in range(chance.choice((0, 1, 3))):
                self.note(world.duties())
            for _ in range(chance.choice((1, 3, 6))):
                self.client()
            self.fault()
            world.check()
            if number % 10 == 9:
                world.read_all()
            if number % 50 == 49:
                self.rest()
        return world

    def note(self, said: list[str]) -> None:
        """Count why groups moved."""
        for why in ("is out", "is draining", "is too close", "is fuller"):
            self.met[f"moved: {why}"] += sum(why in text and "moves from" in text for text in said)

    def rest(self) -> None:
        """All faults end, and everything comes back."""
        world = self.world
        world.silent = world.unreachable = frozenset()
        world.md.do(m.Upkeep(deletions_held=False), session=0)
        come_to_rest(world, 400)
        world.hurt = frozenset()
        for writer in world.writers:
            writer.state = "gone"
        world.writers = []
        for _ in range(2):
            world.add_writer()
        self.met["rest"] += 1
        if "disk" in self.kinds and self.chance.random() < 0.7:
            self.disk(self.chance.choice(world.servers))

    # --- servers and the leader --------------------------------------------------------------------------------------

    def beats(self) -> None:
        """In any order; some are heard late, some answers are lost, some orders are carried out late."""
        world, chance = self.world, self.chance
        for server in chance.sample(world.servers, len(world.servers)):
            if chance.random() < 0.3:
                server.sync_all()
            if server.up:
                server.scrub()
            if not server.up or server.number in world.silent:
                continue
            if server.sent is None:
                world.send_beat(server)
                if chance.random() < 0.2:
                    continue
            world.hear_beat(server)
            if chance.random() < 0.9:
                server.take_reply()
            else:
                server.forget_beat()
            if chance.random() < 0.8:
                world.carry_out(server)

    def add_server(self) -> Server:
        racks = ("", "r1", "r2")
        node = self.chance.choice((None, None, f"n{self.chance.randrange(1, 4)}"))
        return self.world.add_server(node, self.chance.choice(racks))

    # --- clients -----------------------------------------------------------------------------------------------------

    def client(self) -> None:
        world, chance = self.world, self.chance
        writer = chance.choice(world.writers)
        if writer.state == "gone" or writer.ino == self.under_repair:
            return
        if writer.state == "idle":
            if writer.undurable and chance.random() < 0.4:
                unheard = [s.id for s in world.servers if chance.random() < 0.1]
                self.met["fsync"] += world.fsync(writer, unheard)
                return
            if chance.random() < 0.15:
                self.on_files()
            free = [ino for ino in self.files if ino != self.under_repair]
            if not free:
                return
            writer.ino = chance.choice(free)
            if chance.random() < 0.1:
                writer.map = world.md.map()
            makes = chance.random() < 0.2 and len(self.files) < FILES_MAX
            offset, durable = chance.randrange(SLOTS) * WRITE_BYTES, not makes and chance.random() < 0.5
            world.start_write(writer, offset, durable=durable, makes=makes)
        elif writer.state == "storing":
            target = chance.choice(writer.waiting)
            if chance.random() < 0.1:
                world.abandon(writer, target)
            else:
                world.put(writer, target, answered=chance.random() < 0.95)
        elif writer.late and chance.random() < 0.3:
            world.arrive_late(writer, chance.randrange(len(writer.late)))
        else:
            done = world.commit(writer, answered=chance.random() < 0.95)
            self.met["commit"] += done
            if done and writer.makes:
                self.files.append(writer.ino)
                self.met["made"] += 1

    def on_files(self) -> None:
        world, chance = self.world, self.chance
        draw = chance.random()
        if draw < 0.4 and len(self.files) < FILES_MAX:
            self.files.append(world.md.create(b"file %d" % world.md.machine.applied_index).ino)
        elif draw < 0.7 and len(self.files) > 1:
            self.remove(chance.choice(self.files))
        elif draw < 0.9:
            self.from_trash(restore=draw < 0.8)

    def remove(self, ino: int) -> None:
        if ino == self.under_repair:
            return
        names = self.names(ino)
        if names:
            self.world.md.do(m.Unlink(m.ROOT_CREDENTIALS, *names[0]))
            self.files.remove(ino)
            self.met["remove"] += 1

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        with self.world.md.store.read() as txn:
            return [
                (keys.first_field(key), key[9:])
                for key, value in txn.range(*keys.all_of(b"D"))
                if records.DENTRY.decode(key, value).ino == ino
            ]

    def from_trash(self, *, restore: bool) -> None:
        with self.world.md.store.read() as txn:
            trashed = [keys.first_field(key) for key, _ in txn.range(*keys.all_of(b"Q"))]
        if not trashed:
            return
        ino = self.chance.choice(trashed)
        if not restore:
            self.world.md.do(m.PurgeTrash((ino,)), session=0)
            self.met["purge"] += 1
            return
        try:
            self.world.md.do(m.RestoreTrash(ino), session=0)
        except PosixError:
            return  # its directory is gone, or the name is taken
        self.files.append(ino)
        self.met["restore"] += 1

    # --- faults ------------------------------------------------------------------------------------------------------

    under_repair = 0

    def fault(self) -> None:
        chance = self.chance
        if chance.random() < 0.05:
            self.world.new_leader()
            self.met["new leader"] += 1
        if chance.random() < 0.03:
            writer = chance.choice(self.world.writers)
            if writer.state != "gone":
                self.world.fence(writer)
                self.world.add_writer()
                self.met["fence"] += 1
        if chance.random() < 0.03:
            self.world.md.do(m.Upkeep(deletions_held=chance.random() < 0.5), session=0)
            self.met["hold"] += 1
        if chance.random() < 0.4:
            kind = chance.choice([kind for kind in self.kinds if kind in _FAULTS])
            _FAULTS[kind](self, chance.choice(self.world.servers))

    def crash(self, server: Server) -> None:
        if not server.up:
            if self.chance.random() < 0.6:
                server.restart()
        elif self.chance.random() < 0.5:
            server.stop()
            self.met["kill"] += 1
        else:
            kept = self.chance.random()
            server.cut_power({chunk for chunk in server.unsynced if self.chance.random() >= kept})
            self.met["power cut"] += 1

    def cut(self, server: Server) -> None:
        """From the leader, from everybody else, or from nobody."""
        world, number = self.world, frozenset({server.number})
        world.silent = self.chance.choice((world.silent ^ number, frozenset()))
        world.unreachable = self.chance.choice((world.unreachable ^ number, frozenset()))
        self.met["cut"] += 1

    def disk(self, server: Server) -> None:
        """A disk that was whole, among whole ones, loses or changes some of what it had, or all. Everything is at
        rest, so others have what it loses; and nobody else has lost anything before it has it again."""
        world, chance = self.world, self.chance
        if self.liar is not None:
            return
        world.hurt = frozenset({server.id})
        chunks = sorted(server.disk.keys() - world.foreign)
        hurt = chunks if chance.random() < 0.3 else chance.sample(chunks, min(3, len(chunks)))
        for chunk in hurt:
            draw = chance.random()
            copy = server.disk[chunk]
            if draw < 0.4:
                del server.disk[chunk]
            elif draw < 0.7:
                server.disk[chunk] = copy._replace(data=bytes([copy.data[0] ^ 1]) + copy.data[1:])
            else:
                server.disk[chunk] = server.disk.get(chance.choice(chunks)) or copy_of(b"misdirected")
        self.met["disk"] += len(hurt)

    def move(self, server: Server) -> None:
        world, chance = self.world, self.chance
        if chance.random() < 0.2 and len(world.servers) < 5 + world.pool.replicas:
            self.add_server()
            self.met["add"] += 1
            return
        state = world.states()[server.id]
        if state in (TargetState.UP, TargetState.SYNCING):
            if sum(s is TargetState.UP for s in world.states().values()) > world.pool.replicas:
                world.md.do(m.SetTargetState(server.id, TargetState.DRAINING), session=0)
                self.met["drain"] += 1
        elif state is TargetState.DOWN:
            drains = next(t.draining for t in world.md.map().targets if t.id == server.id)
            new = TargetState.SYNCING if drains else TargetState.DRAINING
            world.md.do(m.SetTargetState(server.id, new), session=0)
            self.met["drain down"] += not drains
        else:
            world.md.do(m.SetTargetState(server.id, TargetState.SYNCING), session=0)

    def resize(self, server: Server) -> None:
        """Another number of copies; never so few that all of them have to acknowledge."""
        world, chance = self.world, self.chance
        replicas = chance.choice((world.pool.min_ack + 1, world.pool.min_ack + 2))
        usable = sum(s in (TargetState.UP, TargetState.SYNCING) for s in world.states().values())
        if usable >= replicas != world.pool.replicas and chance.random() < 0.8:
            world.pool = world.md.do(m.SetPool("hot", replicas=replicas), session=0).pool
            self.met["resize"] += 1

    def mend(self, server: Server) -> None:
        """Some row of the metadata is wrong. The repair is worked out; then others do what they do, and it is made, or
        refused and worked out again. All within the grace: what looks like garbage for longer is deleted."""
        world = self.world
        linked = world.linked()
        if not linked:
            return
        ino, extent = self.chance.choice(linked)
        self.under_repair = ino
        world.is_damaged = True
        kind = self.chance.choice(list(_DAMAGE))
        _DAMAGE[kind](self, ino, extent)
        findings = world.md.findings()
        if not findings:
            raise Broken(f"fsck does not find {kind}")
        plans = self.plans(findings)
        self.beats()
        for _ in range(3):
            self.client()
        world.duties()
        if self.apply(plans) and self.apply(plans):
            raise Broken("the same repair was made twice")
        for _ in range(10):
            if not (findings := world.md.findings()):
                break
            self.apply(self.plans(findings))
        else:
            raise Broken(f"{kind} is not mended: {findings[:3]}")
        self.under_repair = 0
        world.is_damaged = False
        self.met["mend"] += 1

    def plans(self, findings: Sequence[m.Finding]) -> list[m.Plan]:
        with self.world.md.store.read() as txn:
            *_, last = mending.plan(txn, m.PlanMend(tuple(findings[:100])))
        assert last is not None
        plans = last.plans
        first = min((plan.phase for plan in plans if plan.mend is not None), default=0)
        return [plan for plan in plans if plan.mend is not None and plan.phase == first]

    def apply(self, plans: Sequence[m.Plan]) -> int:
        """How many were made: of those that were worked out together, one at most."""
        made = 0
        for plan in plans:
            try:
                self.world.md.do(plan.mend, session=0)
                made += 1
            except PosixError:
                self.met["mend refused"] += 1
        return made

    # --- damage of the metadata --------------------------------------------------------------------------------------

    def forget_use(self, ino: int, extent: m.Extent) -> None:
        with self.world.md.store.write() as txn:
            txn.delete(keys.chunk_use(extent.chunk))

    def miscount_use(self, ino: int, extent: m.Extent) -> None:
        with self.world.md.store.write() as txn:
            use = records.CHUNK_USE.require(txn, keys.chunk_use(extent.chunk))
            more = msgspec.structs.replace(use, extents=use.extents + 1)
            records.CHUNK_USE.store(txn, keys.chunk_use(extent.chunk), more)

    def call_it_garbage(self, ino: int, extent: m.Extent) -> None:
        now_ns = self.world.now_ms * 1_000_000
        with self.world.md.store.write() as txn:
            records.GARBAGE.store(txn, keys.garbage(extent.chunk), records.GarbageRow(now_ns))
            txn.put(keys.garbage_by_time(now_ns, extent.chunk), b"")

    def lose_name(self, ino: int, extent: m.Extent) -> None:
        """Of a file that has one; else its link count is wrong."""
        names = self.names(ino)
        with self.world.md.store.write() as txn:
            if names:
                parent, name = names[0]
                row = records.DENTRY.require(txn, keys.dentry(parent, name))
                txn.delete(keys.listing(parent, row.cookie))
                txn.delete(keys.dentry(parent, name))
            else:
                inode = records.INODE.require(txn, keys.inode(ino))
                records.INODE.store(txn, keys.inode(ino), msgspec.structs.replace(inode, nlink=1))

    def miscount_garbage(self, ino: int, extent: m.Extent) -> None:
        with self.world.md.store.write() as txn:
            counters = records.COUNTERS.require(txn, keys.COUNTERS)
            more = msgspec.structs.replace(counters, garbage_chunks=counters.garbage_chunks + 1)
            records.COUNTERS.store(txn, keys.COUNTERS, more)

    def other_hash(self, ino: int, extent: m.Extent) -> None:
        """The row that repairs are made by says other bytes than the file."""
        with self.world.md.store.write() as txn:
            use = records.CHUNK_USE.require(txn, keys.chunk_use(extent.chunk))
            other = msgspec.structs.replace(use, chunk_hash=b"o" * 16)
            records.CHUNK_USE.store(txn, keys.chunk_use(extent.chunk), other)


_DAMAGE: dict[str, Callable[[History, int, m.Extent], None]] = {
    "a use forgotten": History.forget_use,
    "a use miscounted": History.miscount_use,
    "a used chunk is garbage": History.call_it_garbage,
    "a name lost": History.lose_name,
    "garbage miscounted": History.miscount_garbage,
    "a hash changed": History.other_hash,
}
_FAULTS: dict[str, Callable[[History, Server], None]] = {
    "crash": History.crash,
    "cut": History.cut,
    "move": History.move,
    "mend": History.mend,
    "resize": History.resize,
}


def history(seed: int, pool: str, **options: Sequence[str]) -> History:
    """Raises Broken, with the seed."""
    run = History(seed, pool, **options)
    try:
        run.run()
    except Broken as error:
        raise Broken(f"seed {seed}, {pool}: {error}") from error
    return run
