"""What must hold in the data world: in every state, and at each step that could break something for good.

Numbers in brackets are those of the invariants in the design: I4 a chunk is used, or garbage, and never both; I5 what
is used can be read; I6 what fsync said is kept; I7 no wrong bytes; I10 nothing counts that is of an old life; I12
nothing that is used, or younger than the grace, is deleted.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shoalfs.mds import cluster, keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState
from shoalfs.mds.rounds import Proposal
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, chunk_pg
from sim.broken import Broken
from sim.data_server import Server

if TYPE_CHECKING:
    from sim.data_world import DataWorld

_AWAY = (TargetState.DOWN, TargetState.OUT)


def groups_of(world: "DataWorld") -> dict[int, m.PlacementGroup]:
    return {group.id: group for group in world.md.map().groups}


# --- in every state ---------------------------------------------------------------------------------------------------


def check_state(world: "DataWorld") -> None:
    """Of every chunk of which fsync said so, and that a file uses, so many copies or fragments that it can be read are
    on disks of holders of its group (I5, I6). No file uses a chunk that is garbage, or that was ever ordered to be
    deleted as garbage (I4)."""
    groups = groups_of(world)
    extents = world.extents()
    _check_reserved(world)
    with world.md.store.read() as txn:
        garbage = [extent.chunk for extent in extents if txn.get(keys.garbage(extent.chunk)) is not None]
    if garbage and not world.is_damaged:
        raise Broken(f"chunk {garbage[0]:x} is used and garbage")
    for extent in extents:
        group = groups[chunk_pg(extent.chunk)]
        if extent.chunk in world.promised and world.spread(group, extent, durable=True) < world.pool.data:
            raise Broken(f"chunk {extent.chunk:x} of {group} is on no disk that it is read from")
        if extent.chunk in world.condemned:
            raise Broken(f"chunk {extent.chunk:x} is used, and its deletion was ordered")


def _check_reserved(world: "DataWorld") -> None:
    """What a live client stored and has not linked yet is no garbage (I4)."""
    with world.md.store.read() as txn:
        for writer in world.writers:
            is_new = writer.state in ("storing", "stored") and not writer.unsure
            if not is_new or txn.get(keys.session(writer.session)) is None:
                continue
            if txn.get(keys.garbage(writer.chunk)) is not None:
                raise Broken(f"chunk {writer.chunk:x} is garbage, and a live session is about to link it")


# --- at steps ---------------------------------------------------------------------------------------------------------


def check_deleted(world: "DataWorld", server: Server, chunk: ChunkId) -> None:
    """``server`` just deleted the chunk: if a file uses it, it is readable from others, as it was promised; and it was
    a number that this cluster has given out (I12)."""
    if chunk in world.foreign:
        raise Broken(f"target {server.id} was told to delete chunk {chunk:x}, which is of another time")
    groups = groups_of(world)
    for extent in world.extents():
        if extent.chunk == chunk and world.spread(groups[chunk_pg(chunk)], extent, durable=False) < world.pool.data:
            raise Broken(f"target {server.id} was told to delete the last copy of chunk {chunk:x}")


def check_orders(world: "DataWorld", server: Server, orders: Iterable[m.TargetOrders]) -> None:
    """What the leader just ordered: nothing is deleted while deletion is held; a copy that is used, not before whoever
    is to have it has it and readers had time to learn where it is (I12)."""
    deleted = {chunk for order in orders for chunk in order.delete}
    with world.md.store.read() as txn:
        if deleted and cluster.load_upkeep(txn).deletions_held:
            raise Broken(f"target {server.id} is to delete {len(deleted)} chunks although deletion is held")
    if world.is_damaged:
        return
    groups = groups_of(world)
    for extent in world.extents():
        if extent.chunk not in deleted:
            continue
        group = groups[chunk_pg(extent.chunk)]
        left_ms = world.left.get((group.id, server.id))
        if left_ms is not None and world.now_ms - left_ms < world.grace_ms:
            raise Broken(f"target {server.id} is to delete chunk {extent.chunk:x} before the grace is over")
        away = [t for t in group.targets if world.states()[t] is not TargetState.UP]
        if away:
            raise Broken(f"target {server.id} is to delete chunk {extent.chunk:x} while {away} are not up")
        lacking = [t for t in group.targets if not world.is_good(group, t, extent) and not _is_unknown(world, t)]
        if lacking and world.pool.min_ack == world.pool.replicas:
            raise Broken(f"target {server.id} is to delete chunk {extent.chunk:x}, which {lacking} lack")


def _is_unknown(world: "DataWorld", target: int) -> bool:
    """Something happened to it that the leader cannot know of yet."""
    server = world.by_id(target)
    if server is None or not server.up or server.lies or target in world.hurt:
        return True
    return bool(server.membership.unregistered())


def check_linked(world: "DataWorld", chunk: ChunkId, *, durable: bool) -> None:
    """A commit of the chunk just succeeded: ``min_ack`` members of its group that count as present have it, on disk if
    the commit was to be durable, unless a fault that nobody could know of took it (I10)."""
    states = world.states()
    groups = groups_of(world)
    for extent in world.extents():
        if extent.chunk != chunk:
            continue
        group = groups[chunk_pg(chunk)]
        have = world.is_on_platter if durable else world.is_good
        having = [
            t for t in group.targets if states[t] not in _AWAY and (have(group, t, extent) or _is_unknown(world, t))
        ]
        if len(having) < world.pool.min_ack:
            raise Broken(f"chunk {chunk:x} was linked, and {len(having)} members of its group have it")


def check_registered(server: Server, before: TargetState | None, after: TargetState) -> None:
    """Who was away is not read from first before it was compared."""
    if before is TargetState.DOWN and after is TargetState.UP:
        raise Broken(f"target {server.id} was away and is up at once")


def check_proposal(world: "DataWorld", txn: ReadTxn, proposal: Proposal) -> None:
    """What the leader is about to propose."""
    for request in proposal.requests:
        match request:
            case m.SetTargetState(target, TargetState.UP):
                _check_in_sync(world, target)
            case m.ChunkList(chunks) if proposal.op is m.Op.DROP_GARBAGE:
                _check_gone(world, chunks)
            case m.SettleGroup(number, _, kept):
                _check_settled(world, groups_of(world)[number], kept)
            case m.PurgeTrash(inos):
                _check_due(world, txn, inos)
            case _:
                pass


def _check_settled(world: "DataWorld", group: m.PlacementGroup, kept: Iterable[int]) -> None:
    """Who is let go has nothing that a member lacks (I5)."""
    if world.pool.min_ack < world.pool.replicas or world.is_damaged:
        return
    let_go = [t for t in group.leaving if t not in kept]
    for extent in world.extents():
        if chunk_pg(extent.chunk) != group.id:
            continue
        for target in group.targets:
            is_replaced = world.pool.data == 1 or any(group.place(t) == group.place(target) for t in let_go)
            if is_replaced and not world.is_good(group, target, extent) and not _is_unknown(world, target):
                raise Broken(f"{let_go} are let go, and target {target} lacks chunk {extent.chunk:x}")


def _check_in_sync(world: "DataWorld", target: int) -> None:
    """Who becomes up has everything that it should."""
    if world.pool.min_ack < world.pool.replicas or _is_unknown(world, target) or world.is_damaged:
        return
    groups = groups_of(world)
    for extent in world.extents():
        group = groups[chunk_pg(extent.chunk)]
        if target in group.targets and not world.is_good(group, target, extent):
            raise Broken(f"target {target} is to be up and lacks chunk {extent.chunk:x}")


def _check_gone(world: "DataWorld", chunks: Iterable[ChunkId]) -> None:
    """Garbage is forgotten when nobody who counts as present, and was told to delete it, has it any more."""
    states = world.states()
    for chunk in chunks:
        for target in world.told.pop(chunk, ()):
            server = world.by_id(target)
            late = server is None or chunk in world.arrived_late or target in world.were_out or server.lies
            if not late and states[target] is not TargetState.OUT and chunk in server.disk:
                raise Broken(f"chunk {chunk:x} is forgotten, and target {target} has it")


def _check_due(world: "DataWorld", txn: ReadTxn, inos: Iterable[int]) -> None:
    """What leaves the trash has been there for as long as it is kept."""
    retention_ms = cluster.load_upkeep(txn).trash_retention_ms or 0
    for ino in inos:
        row = records.TRASH.require(txn, keys.trash(ino))
        if world.now_ms * 1_000_000 - row.deleted_ns < retention_ms * 1_000_000:
            raise Broken(f"inode {ino} is to leave the trash before its time")


def check_condemned(world: "DataWorld", txn: ReadTxn, chunks: Iterable[ChunkId]) -> None:
    """The leader has just decided to delete these as garbage: they have been it for the grace time (I12)."""
    for chunk in chunks:
        row = records.GARBAGE.load(txn, keys.garbage(chunk))
        if row is not None and world.now_ms * 1_000_000 - row.since_ns < world.grace_ms * 1_000_000:
            raise Broken(f"chunk {chunk:x} is to be deleted before the grace is over")
