"""The data protocol in its small configuration, as a space to be explored: two clients, three targets, one placement
group of two copies, and as many events of each kind as its bounds say.

What happens at once: storing on one target, a commit, a heartbeat with its answer, the carrying out of one order.
Between them anything may happen. As often as the bounds say, a heartbeat is heard only some time after it was made, an
answer is lost, and a PUT arrives after its client has given it up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from shoalfs.mds import messages as m
from shoalfs.mds import placement
from shoalfs.mds.cluster import store_group
from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, PgId, TargetId
from sim.data_fork import LEADER, MD, NOW_MS, digest, fill_rooms, fork, let_time_pass, own_sessions, what_is_stored
from sim.data_rest import come_to_rest
from sim.data_server import Copy, Server, copy_of
from sim.data_world import DataWorld
from sim.data_writer import POOL, WRITE_BYTES
from sim.explore import Event


@dataclass(frozen=True)
class Bounds:
    """Where it begins (see BEGINNINGS), and how much of each may happen. ``hurts``: copies that a disk loses, or turns
    into other bytes, though they were synced; allowed as long as ``min_ack`` protects from them."""

    begin: str = "empty"
    min_ack: int = 2
    writers: int = 2
    writes: int = 2
    durable: tuple[bool, ...] = (True,)
    offsets: tuple[int, ...] = (0,)
    crashes: int = 0
    slow: int = 0  # heartbeats that are heard some time after they were made
    lost: int = 0  # answers
    late: int = 0  # PUTs that arrive after their client has given up
    downs: int = 0
    drains: int = 0
    leaders: int = 0
    hurts: int = 0
    fences: int = 0
    removals: int = 0
    passes: int = 4  # how often time passes
    makes: bool = False  # each write is of a new file, which is told of with its extent
    liar: int = 0  # number of a server whose disk lies

    def __post_init__(self) -> None:
        assert self.hurts + bool(self.liar) < self.min_ack, "what nothing protects from is no finding"


class DataStates:
    """A :class:`~sim.explore.Space`."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.seen: set[bytes] = set()  # digests of all states, whatever may still happen in them
        self._checked: set[bytes] = set()
        self._idle: set[tuple[str, bytes, bytes]] = set()  # duties of the leader that change nothing in these states

    def initial(self) -> DataWorld:
        world = DataWorld(3, replicas=2, min_ack=self.bounds.min_ack)
        with world.md.store.write() as txn:
            store_group(txn, m.PlacementGroup(PgId(1), POOL, (TargetId(1), TargetId(2)), epoch=1))
        world.md.do(m.Upkeep(rebalance_paused=True), session=0)
        world.now_ms = NOW_MS
        world.digests, world.fenced = {}, ()
        world.budget = {name: getattr(self.bounds, name) for name in _SPENT}
        for _ in range(self.bounds.writers):
            world.add_writer()
        if self.bounds.liar:
            world.servers[self.bounds.liar - 1].lies = True
        world.new_leader()
        _all_known(world)
        BEGINNINGS[self.bounds.begin](world)
        return world

    def digest(self, world: DataWorld) -> bytes:
        known, whole = digest(world)
        self.seen.add(known)
        return whole

    def check(self, world: DataWorld) -> None:
        stored = what_is_stored(world)
        if stored not in self._checked:
            world.check()
            world.read_all()
            self._checked.add(stored)

    # --- what can happen ---------------------------------------------------------------------------------------------

    def events(self, world: DataWorld) -> Iterator[Event]:
        for number in range(len(world.writers)):
            yield from self._of_writer(world, number)
        for server in world.servers:
            yield from self._of_server(world, server)
        yield from self._of_leader(world)

    def _of_writer(self, world: DataWorld, number: int) -> Iterator[Event]:
        writer, left = world.writers[number], world.budget
        if writer.state == "gone":
            return
        # Writers are alike until the first has begun: it is always the same one.
        if writer.state == "idle" and left["writes"] and (number == 0 or left["writes"] < self.bounds.writes):
            if self.bounds.makes:
                yield "make", number
            for offset in () if self.bounds.makes else self.bounds.offsets:
                yield from (("start", number, offset, durable) for durable in self.bounds.durable)
        for target in writer.waiting:
            yield "put", number, target
            if left["lost"]:
                yield "put unanswered", number, target
            if left["late"]:
                yield "give up put", number, target
        if writer.state == "stored":
            yield "commit", number
            if left["lost"]:
                yield "commit unanswered", number
        if writer.undurable:
            yield "fsync", number
        yield from (("late put", number, which) for which in range(len(writer.late)))
        if left["fences"] and number not in world.fenced:
            yield "fence", number

    def _of_server(self, world: DataWorld, server: Server) -> Iterator[Event]:
        left, n = world.budget, server.number
        if not server.up:
            yield "return", n
            return
        if server.sent is None:
            yield "beat", n
            if left["slow"]:
                yield "send beat", n
        else:
            yield "hear", n
        if left["lost"]:
            yield "answer lost", n
        if server.deleting:
            yield "deleted", n
        yield from (("copied", n, chunk) for chunk in server.copying)
        if left["crashes"]:
            yield "kill", n
            if server.unsynced or server.undead:
                yield "power cut", n
        if left["hurts"] and (not world.hurt or server.id in world.hurt):
            for chunk in server.disk:
                yield "lose", n, chunk
                yield "rot", n, chunk
                yield "swap", n, chunk
        if any(not copy.is_intact for copy in server.disk.values()):
            yield "scrub", n

    def _of_leader(self, world: DataWorld) -> Iterator[Event]:
        left = world.budget
        if left["downs"]:
            yield from (("down", target) for target in world.state.targets.lost(world.md.map(), world.now_ms))
        seen = world.digests[MD], world.digests[LEADER]
        yield from ((name,) for name in _DUTIES if (name, *seen) not in self._idle)
        if left["leaders"]:
            yield ("new leader",)
        if left["passes"] and not any(writer.unsure for writer in world.writers):
            yield ("time passes",)
        if left["drains"]:
            yield from (("drain", target) for target, state in world.states().items() if state is TargetState.UP)
        if left["removals"] and world.extents():
            yield ("remove file",)

    # --- what it does ------------------------------------------------------------------------------------------------

    def after(self, world: DataWorld, event: Event) -> DataWorld:
        name, *arguments = event
        reached = _EVENTS[name](world, *arguments)
        if name in _DUTIES:
            seen = world.digests[MD], world.digests[LEADER]
            digest(reached)
            if seen == (reached.digests[MD], reached.digests[LEADER]):
                self._idle.add((name, *seen))
        return reached

    def at_rest(self, world: DataWorld) -> None:
        """Faults end, and everything comes back: then every copy is in its place and nothing else is anywhere."""
        come_to_rest(own_sessions(fork(world, [MD, LEADER, *world.servers, *world.writers])))


@contextmanager
def one_group() -> Iterator[None]:
    """No other placement group is made than the one that the exploration begins with."""
    with patch.object(placement, "PGS_PER_TARGET", 0):
        yield


# --- beginnings -------------------------------------------------------------------------------------------------------


def _all_known(world: DataWorld) -> None:
    """The leader has compared everything, and everybody knows the map."""
    for _ in range(3):
        for server in world.servers:
            world.beat(server)
            fill_rooms(world)


def _written(world: DataWorld) -> None:
    """A file has one chunk, on both targets of its group."""
    (group,) = world.md.map().groups
    world.write(group, set(group.targets), 0)
    _all_known(world)


def _overwritten(world: DataWorld) -> None:
    """It was written over, long ago: the first chunk is garbage that nobody was told to delete."""
    _written(world)
    world.punch(0)
    let_time_pass(world)
    _all_known(world)


def _moving(world: DataWorld) -> None:
    """Target 1 is draining, and the third has just taken its place; clients and targets do not know."""
    _written(world)
    _set_state(world, TargetId(1), TargetState.DRAINING)
    world.propose(world.rounds.change_map())


def _moved(world: DataWorld) -> None:
    """Target 1 was drained and let go, and still has its copy; clients do not know."""
    _moving(world)
    for _ in range(6):
        for server in world.servers:
            world.beat(server)
            world.carry_out(server)
        world.propose(world.rounds.change_map())
    (group,) = world.md.map().groups
    assert not group.leaving, group


def _returned(world: DataWorld) -> None:
    """Target 1 was down, and has just registered again, with an empty disk; if one copy is enough, the chunk was
    written over meanwhile."""
    _written(world)
    world.servers[0].stop()
    _set_state(world, TargetId(1), TargetState.DOWN)
    world.servers[0].disk.clear()
    (group,) = world.md.map().groups
    if world.pool.min_ack == 1:
        world.write(group, {2}, 0)
    world.servers[0].restart()
    world.register(world.servers[0])


def _evicting(world: DataWorld) -> None:
    """Target 1 was drained and let go, is back, and is about to delete what it had; then it became a member again. It
    does not know."""
    _moved(world)
    _set_state(world, TargetId(1), TargetState.SYNCING)
    _all_known(world)
    world.propose(world.rounds.change_map())
    let_time_pass(world)
    for server in reversed(world.servers):
        _beat(world, server)
    assert world.servers[0].deleting
    _set_state(world, TargetId(3), TargetState.DRAINING)
    world.propose(world.rounds.change_map())
    (group,) = world.md.map().groups
    assert group.targets == (1, 2), group


BEGINNINGS: dict[str, Callable[[DataWorld], None]] = {
    "empty": lambda world: None,
    "written": _written,
    "overwritten": _overwritten,
    "moving": _moving,
    "moved": _moved,
    "evicting": _evicting,
    "returned": _returned,
}


# --- events -----------------------------------------------------------------------------------------------------------


def _start(world: DataWorld, number: int, offset: int, durable: bool) -> DataWorld:
    world = fork(world, [MD, world.writers[number]])
    world.budget["writes"] -= 1
    world.start_write(world.writers[number], offset * WRITE_BYTES, durable=durable)
    return world


def _make(world: DataWorld, number: int) -> DataWorld:
    world = fork(world, [MD, world.writers[number]])
    world.budget["writes"] -= 1
    world.start_write(world.writers[number], 0, durable=False, makes=True)
    return world


def _put(world: DataWorld, number: int, target: TargetId, answered: bool = True) -> DataWorld:
    server = world.by_id(target)
    world = fork(world, [server, world.writers[number]])
    world.budget["lost"] -= not answered
    world.put(world.writers[number], target, answered=answered)
    return world


def _give_up_put(world: DataWorld, number: int, target: TargetId) -> DataWorld:
    world = fork(world, [world.writers[number]])
    world.budget["late"] -= 1
    world.abandon(world.writers[number], target)
    return world


def _late_put(world: DataWorld, number: int, which: int) -> DataWorld:
    writer = world.writers[number]
    world = fork(world, [world.by_id(writer.late[which][0]), writer])
    world.arrive_late(world.writers[number], which)
    return world


def _commit(world: DataWorld, number: int, answered: bool = True) -> DataWorld:
    world = fork(world, [MD, world.writers[number]])
    world.budget["lost"] -= not answered
    world.commit(world.writers[number], answered=answered)
    return world


def _fsync(world: DataWorld, number: int) -> DataWorld:
    world = fork(world, [*world.servers, world.writers[number]])
    world.fsync(world.writers[number])
    return world


def _fence(world: DataWorld, number: int) -> DataWorld:
    world = own_sessions(fork(world, [MD, LEADER]))
    world.budget["fences"] -= 1
    world.fenced = (*world.fenced, number)
    world.fence(world.writers[number])
    return world


def _on_server(act: Callable[[DataWorld, Server], object], *parts: str, spends: str = "") -> Callable[..., DataWorld]:
    """An event of one server that touches these parts besides."""

    def event(world: DataWorld, number: int, *more: object) -> DataWorld:
        world = fork(world, [*parts, world.servers[number - 1]])
        if spends:
            world.budget[spends] -= 1
        act(world, world.servers[number - 1], *more)
        return world

    return event


def _hear(world: DataWorld, server: Server) -> None:
    world.hear_beat(server)
    server.take_reply()


def _beat(world: DataWorld, server: Server) -> None:
    world.send_beat(server)
    _hear(world, server)


def _answer_lost(world: DataWorld, server: Server) -> None:
    if server.sent is None:
        world.send_beat(server)
    world.hear_beat(server)
    server.forget_beat()


def _hurt(world: DataWorld, server: Server, chunk: int, change: Callable[[Copy], Copy | None]) -> None:
    world.hurt |= {server.id}
    changed = change(server.disk[chunk])
    if changed is None:
        del server.disk[chunk]
        server.unsynced.discard(chunk)
    else:
        server.disk[chunk] = changed


def _in_md(act: Callable[[DataWorld], object], *parts: str, spends: str = "") -> Callable[..., DataWorld]:
    def event(world: DataWorld, *more: object) -> DataWorld:
        world = fork(world, [MD, *parts])
        if spends:
            world.budget[spends] -= 1
        act(world, *more)
        return world

    return event


def _time_passes(world: DataWorld) -> DataWorld:
    world = fork(world, [MD, LEADER, *world.servers])
    world.budget["passes"] -= 1
    let_time_pass(world)
    return world


def _new_leader(world: DataWorld) -> DataWorld:
    world = own_sessions(fork(world, [LEADER]))
    world.budget["leaders"] -= 1
    world.new_leader()
    return world


def _set_state(world: DataWorld, target: TargetId, state: TargetState) -> None:
    world.md.do(m.SetTargetState(target, state), session=0)


def _remove_file(world: DataWorld) -> None:
    try:
        world.md.do(m.Unlink(m.ROOT_CREDENTIALS, ROOT_INODE, b"file"))
        world.md.do(m.Reap(world.ino), session=0)
    except PosixError:
        return


SWAPPED = copy_of(b"other chunk's"[:WRITE_BYTES])
_DUTIES = ("map", "collect")
_SPENT = frozenset(
    {"writes", "crashes", "lost", "late", "downs", "drains", "leaders", "hurts", "fences", "removals", "passes", "slow"}
)
_EVENTS: dict[str, Callable[..., DataWorld]] = {
    "start": _start,
    "make": _make,
    "put": _put,
    "put unanswered": lambda world, number, target: _put(world, number, target, answered=False),
    "give up put": _give_up_put,
    "late put": _late_put,
    "commit": _commit,
    "commit unanswered": lambda world, number: _commit(world, number, answered=False),
    "fsync": _fsync,
    "fence": _fence,
    "return": _on_server(lambda world, server: server.restart()),
    "beat": _on_server(_beat, MD, LEADER),
    "send beat": _on_server(lambda world, server: world.send_beat(server), MD, spends="slow"),
    "hear": _on_server(_hear, LEADER),
    "answer lost": _on_server(_answer_lost, MD, LEADER, spends="lost"),
    "deleted": _on_server(lambda world, server: world.finish_deleting(server)),
    "copied": _on_server(lambda world, server, chunk: world.finish_copy(server, chunk)),
    "kill": _on_server(lambda world, server: server.stop(), spends="crashes"),
    "power cut": _on_server(lambda world, server: server.cut_power(set(server.unsynced)), spends="crashes"),
    "lose": _on_server(lambda world, server, chunk: _hurt(world, server, chunk, lambda copy: None), spends="hurts"),
    "rot": _on_server(
        lambda world, server, chunk: _hurt(world, server, chunk, lambda copy: copy._replace(data=b"rotten bytes")),
        spends="hurts",
    ),
    "swap": _on_server(lambda world, server, chunk: _hurt(world, server, chunk, lambda copy: SWAPPED), spends="hurts"),
    "scrub": _on_server(lambda world, server: server.scrub()),
    "down": _in_md(lambda world, target: _set_state(world, target, TargetState.DOWN), spends="downs"),
    "drain": _in_md(lambda world, target: _set_state(world, target, TargetState.DRAINING), spends="drains"),
    "map": _in_md(lambda world: world.propose(world.rounds.change_map()), LEADER),
    "collect": _in_md(lambda world: world.propose(world.rounds.collect_garbage()), LEADER),
    "remove file": _in_md(_remove_file, spends="removals"),
    "time passes": _time_passes,
    "new leader": _new_leader,
}
