"""States of the data world as values: copies of it that share what does not change, and their canonical form.

Time is only "now" and "long ago": :func:`let_time_pass` makes everything that happened long ago, longer than any limit
of the protocol. So states that differ in when something happened, and not in whether that still matters, are one.
"""

import copy
import dataclasses
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sortedcontainers import SortedDict
from xxhash import xxh3_128

from shoalfs.mds import keys, records
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.targets import Usage
from sim.data_clock import Timed
from sim.data_server import Server
from sim.data_world import DataWorld
from sim.data_writer import Writer

NOW_MS: Final = 10_000_000
LONG_AGO: Final = 0
MD, LEADER = "metadata", "leader"
_NOW_NS: Final = NOW_MS * 1_000_000
_encode = msgspec.msgpack.Encoder().encode


# --- copies -----------------------------------------------------------------------------------------------------------


def fork(world: DataWorld, touched: Iterable[Any]) -> DataWorld:
    """A world that has its own of those parts that are ``touched`` (MD, LEADER, servers and writers) and shares the
    rest, which must not be changed."""
    twin: DataWorld = object.__new__(DataWorld)
    twin.__dict__.update(world.__dict__)
    twin.digests = dict(world.digests)
    twin.servers, twin.writers = list(world.servers), list(world.writers)
    twin.promised, twin.condemned, twin.budget = set(world.promised), set(world.condemned), dict(world.budget)
    twin.told = dict(world.told)
    twin.arrived_late, twin.left = set(world.arrived_late), dict(world.left)
    for part in touched:
        if part == MD:
            twin.md = _of_metadata(world.md)
        elif part == LEADER:
            twin.state = _own(world.state)
            fill_rooms(twin)
        elif isinstance(part, Server):
            twin.servers[part.number - 1] = _of_server(part)
        else:
            assert isinstance(part, Writer)
            twin.writers[world.writers.index(part)] = part.duplicate()
        twin.digests.pop(part if isinstance(part, str) else id(part), None)
    twin.bind()
    return twin


def own_sessions(world: DataWorld) -> DataWorld:
    """What is known of sessions is shared with other worlds otherwise, though the leader is not."""
    world.state.sessions = _own(world.state.sessions)
    return world


def fill_rooms(world: DataWorld) -> None:
    """How fast copies are made is not looked at: there is always room for some."""
    for view in world.state.repairs._views.values():
        view.room_bytes = float(1 << 30)


def _of_metadata(md: Timed) -> Timed:
    twin: Timed = copy.copy(md)
    twin.store = copy.copy(md.store)
    twin.store.rows = SortedDict(md.store.rows)
    twin.machine = copy.copy(md.machine)
    twin.machine._store = twin.store
    return twin


def _of_server(server: Server) -> Server:
    twin = copy.copy(server)
    twin.disk, twin.unsynced, twin.undead = dict(server.disk), set(server.unsynced), dict(server.undead)
    twin.membership = _own(server.membership)
    twin.copying = dict(server.copying)
    return twin


# Of what the leader heard of a target a new one is made each time.
_SHARED: Final = frozenset({int, str, bytes, float, bool, tuple, frozenset, type(None), Usage})


def _own(thing: Any) -> Any:
    """A copy of plain objects and collections, all the way down; what cannot change is shared."""
    kind = type(thing)
    if kind in _SHARED or isinstance(thing, msgspec.Struct):
        return thing
    if kind is dict:
        return {key: value if type(value) in _SHARED else _own(value) for key, value in thing.items()}
    if kind is set or kind is Counter:
        return kind(thing)
    if kind is list or kind is deque:
        return kind(map(_own, thing))
    twin = object.__new__(kind)
    names = _SLOTS.get(kind)
    if names is None:
        if hasattr(thing, "__dict__"):
            into = twin.__dict__
            for name, value in thing.__dict__.items():
                into[name] = value if type(value) in _SHARED or name in _LEFT_OUT else _own(value)
            return twin
        names = _SLOTS[kind] = tuple(field.name for field in dataclasses.fields(thing))
    for name in names:
        value = getattr(thing, name)
        setattr(twin, name, value if type(value) in _SHARED else _own(value))
    return twin


_SLOTS: Final[dict[type, tuple[str, ...]]] = {}
# Of the leader: what is made anew for each map, what nothing here changes, and what matters to rebalancing only, which
# is paused.
_LEFT_OUT: Final = frozenset({"_index", "sessions", "locks", "coherence", "group_bytes", "sweep_bytes", "_recent"})


# --- time -------------------------------------------------------------------------------------------------------------


def let_time_pass(world: DataWorld) -> None:
    """All parts must be the world's own."""
    _age_rows(world)
    state = world.state
    state._index = world.md.known = None  # these rows changed without an epoch
    for target, usage in state.targets._usage.items():
        state.targets._usage[target] = dataclasses.replace(usage, seen_ms=LONG_AGO)
    state.targets._since_ms = LONG_AGO
    for view in state.repairs._views.values():
        for lack in view.lacks.values():
            lack.since_ms = lack.not_before_ms = LONG_AGO
    for seen in state.evictions._seen.values():
        for chunk in seen:
            seen[chunk] = LONG_AGO
    world.left = dict.fromkeys(world.left, LONG_AGO)
    for server in world.servers:
        if server.up:
            server.sync_all()


def _age_rows(world: DataWorld) -> None:
    with world.md.store.write() as txn:
        for key, value in list(txn.range(*keys.all_of(b"z"))):
            chunk = keys.second_field(key)
            txn.delete(key)
            txn.put(keys.garbage_by_time(LONG_AGO, chunk), value)
            records.GARBAGE.store(txn, keys.garbage(chunk), records.GarbageRow(LONG_AGO))
        for key, value in list(txn.range(*keys.all_of(b"T"))):
            target = records.TARGET.decode(key, value)
            records.TARGET.store(txn, key, msgspec.structs.replace(target, since_ns=LONG_AGO))


# --- the canonical form -----------------------------------------------------------------------------------------------


def digest(world: DataWorld) -> tuple[bytes, bytes]:
    """Of the world, and of the world together with how much may still happen."""
    known = world.digests
    if MD not in known:
        known[MD] = _rows_digest(world.md)
    if LEADER not in known:
        known[LEADER] = _hashed(_leader_form(world.state))
    for part in (*world.servers, *world.writers):
        if id(part) not in known:
            if isinstance(part, Server):
                known[id(part)] = _hashed(_disk_form(part)) + _hashed(_server_form(part))
            else:
                known[id(part)] = _hashed(_writer_form(part))
    total = xxh3_128(known[MD] + known[LEADER])
    for part in (*world.servers, *world.writers):
        total.update(known[id(part)])
    spent = tuple(sorted((name, count) for name, count in world.budget.items() if count))
    left = sorted((*who, since == LONG_AGO) for who, since in world.left.items())
    known_to_all = (world.promised, world.condemned, world.hurt, world.arrived_late, world.were_out)
    total.update(_encode((*map(sorted, known_to_all), world.fenced, left, sorted(world.told.items()))))
    bare = total.digest()
    total.update(_encode(spent))
    return bare, total.digest()


def what_is_stored(world: DataWorld) -> bytes:
    """The part of the digest that files, promises, writers and disks make: what there is to read. Of a world that has a
    digest."""
    known = world.digests
    total = xxh3_128(known[MD] + _encode((sorted(world.promised), sorted(world.condemned))))
    for server in world.servers:
        total.update(known[id(server)][:16])
    for writer in world.writers:
        total.update(known[id(writer)])
    return total.digest()


def _hashed(form: Any) -> bytes:
    return xxh3_128(_encode(form)).digest()


def _rows_digest(md: Timed) -> bytes:
    """Without times of files, versions, recorded outcomes and the log's index: nothing here depends on them."""
    total = xxh3_128()
    for key, stored in md.store.rows.items():
        kind = key[:1]
        if kind == b"R" or key == keys.APPLIED:
            continue
        total.update(key)
        if kind == b"I":
            inode = records.INODE.decode(key, stored[8:])
            total.update(b"%d %d %d" % (inode.nlink, inode.size_bytes, inode.used_bytes))
        elif kind != b"S":
            total.update(stored)
    return total.digest()


def _leader_form(state: LeaderState) -> Any:
    views = [
        (
            target,
            view.target_epoch,
            view.expected,
            view.began_epoch,
            view.swept_epoch,
            sorted(
                (
                    chunk,
                    lack.deep,
                    lack.since_ms >= NOW_MS,
                    lack.ordered,
                    lack.failures % 2,
                    lack.not_before_ms > NOW_MS,
                )
                for chunk, lack in view.lacks.items()
            ),
        )
        for target, view in sorted(state.repairs._views.items())
    ]
    garbage = state.garbage
    waiting = sorted((chunk, sorted(targets)) for chunk, targets in garbage._waiting.items())
    evictions = sorted(
        (target, sorted((chunk, since >= NOW_MS) for chunk, since in seen.items()))
        for target, seen in state.evictions._seen.items()
        if seen
    )
    usage = sorted((target, u.seen_ms >= NOW_MS, u.failed) for target, u in state.targets._usage.items())
    since = state.targets._since_ms >= NOW_MS
    return views, waiting, sorted(garbage._done), evictions, sorted(state.strays), usage, since


def _server_form(server: Server) -> Any:
    (member,) = server.membership._members.values()
    told = (
        member.id, member.epoch, member.map_epoch, member.deleting_epoch, member.after, list(member.delete),
        list(member.deleted), list(member.copies.values()), sorted(member.copying), list(member.copied),
        list(member.failures.values()), list(member.damaged),
    )  # fmt: skip
    doing = (server.deleting, list(server.copying.values()))
    return server.up, server.epoch, told, server.sent, server.reply, doing


def _disk_form(server: Server) -> Any:
    disk = sorted((chunk, *kept) for chunk, kept in server.disk.items())
    undead = sorted((chunk, *kept) for chunk, kept in server.undead.items())
    return server.up, disk, sorted(server.unsynced), undead


def _writer_form(writer: Writer) -> Any:
    stored = writer.unit.stored if writer.unit is not None else None
    return (
        writer.state, writer.offset, writer.durable, writer.makes, writer.unsure, writer.chunk, sorted(writer.waiting),
        sorted(map(_encode, writer.receipts)), stored is not None, sorted(writer.undurable.items()),
        sorted(writer.late), writer.map,
    )  # fmt: skip
