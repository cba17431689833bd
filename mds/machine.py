"""The state machine: committed log entries in, outcomes out, the store changed. Deterministic, without clock
or chance.

All entries of one call are one store transaction, which also holds the applied index: after a crash the store
is as of some entry, whole, and the log goes on from there. Each command is applied at most once: its outcome
is recorded in the same transaction under (session, slot), and repeating it returns what is recorded.

Refusals are outcomes like any other: a request that does not decode, an unknown session, ENOENT. They change
nothing but the record of the outcome, which is checked here: an operation that raises after it has written is
a bug and stops the node.

A damaged record is different on each node, so it must not become an outcome in a group: there the node stops
and is restored from the others (``stop``). A single node has nobody to ask; it refuses that command and goes
on (``refuse``).
"""

import enum
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec

from shoalfs.mds import cluster, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.batch_txn import BatchTxn
from shoalfs.mds.bounds import BOUNDS, UNBOUNDED, Bounds
from shoalfs.mds.entry import decode_entry, is_bounded
from shoalfs.mds.messages import OP_TYPES, Command, Inode, Op, Outcome, Pool
from shoalfs.mds.ops.context import Context
from shoalfs.mds.ops.table import OPERATIONS
from shoalfs.mds.raft_members import Members
from shoalfs.mds.records import Applied, Recorded
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import (
    BadMessage,
    DamagedRecord,
    NotAllowed,
    SessionGone,
    ShoalError,
    StaleOperation,
    StorageFailed,
    WrongCluster,
    wire_code,
)
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId
from shoalfs.transport.limits import (
    CHUNK_BYTES_DEFAULT,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    ERROR_TEXT_BYTES_MAX,
    INLINE_BYTES_DEFAULT,
    INLINE_BYTES_MAX,
    OUTCOME_BYTES_MAX,
    SLOTS_PER_SESSION,
)

FORMAT_VERSION: Final = 2
SERVICE_OPS: Final = frozenset(
    {
        Op.OPEN_SESSION,
        Op.END_SESSION,
        Op.REAP,
        Op.TRIM,
        Op.REGISTER_TARGET,
        Op.SET_TARGET_STATE,
        Op.ADD_GARBAGE,
        Op.DROP_GARBAGE,
        Op.CHANGE_GROUP,
        Op.SETTLE_GROUP,
        Op.REMOVE_TARGET,
        Op.SET_UPKEEP,
        Op.MEND,
        Op.PURGE_TRASH,
        Op.RESTORE_TRASH,
        Op.CREATE_POOL,
        Op.SET_POOL,
        Op.REMOVE_POOL,
    }
)
"""What runs without a session (session 0), hence without a recorded outcome: each of them may be repeated.
All but END_SESSION run only so."""

_OPS: Final = {int(op): op for op in Op}
_DECODERS: Final = {op: msgspec.msgpack.Decoder(types[0]) for op, types in OP_TYPES.items()}
_encode: Final = msgspec.msgpack.Encoder().encode
_NOTHING_APPLIED: Final = Applied(0, 0, 0)


class Store(Protocol):
    """What the machine needs of a store."""

    def read(self) -> AbstractContextManager[ReadTxn]: ...

    def write(self) -> AbstractContextManager[Txn]: ...

    def durable_applied(self) -> int: ...


class OnDamage(enum.Enum):
    """What a damaged record met while applying leads to."""

    REFUSE = "refuse"  # that command is answered with DamagedRecord, while the node is the only member
    STOP = "stop"  # DamagedRecord leaves ``apply``, and the node ends


class _DamagedCommandError(Exception):
    """A command met a damaged record; ``place`` is (index of the entry, position in it)."""

    def __init__(self, place: tuple[int, int], error: DamagedRecord) -> None:
        super().__init__(str(error))
        self.place = place
        self.error = error


class Machine:
    """Implements :class:`shoalfs.mds.replicated.StateMachine` over a formatted store."""

    def __init__(self, store: Store, on_damage: OnDamage) -> None:
        self._store = store
        self._on_damage = on_damage
        with store.read() as txn:
            check_format(txn)
            self._applied = load_applied(txn)
            self._members = records.MEMBERS.load(txn, keys.MEMBERS)

    @property
    def applied_index(self) -> int:
        return self._applied.index

    @property
    def members(self) -> Members | None:
        return self._members

    def durable_index(self) -> int:
        return self._store.durable_applied()

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[list[Outcome]]:
        """Per entry, the outcomes of its commands. Raises StorageFailed and, unless damage is refused,
        DamagedRecord; the store is then as before the call."""
        refused: dict[tuple[int, int], DamagedRecord] = {}
        is_alone = members is None and (self._members is None or len(self._members.members) == 1)
        while True:
            # Ends: each turn but the last refuses one more command.
            try:
                return self._apply_all(entries, members, refused)
            except _DamagedCommandError as damaged:
                if self._on_damage is OnDamage.STOP or not is_alone:
                    raise damaged.error from damaged
                place = damaged.place
                assert place not in refused, place
                refused[place] = damaged.error

    def _apply_all(
        self,
        entries: Sequence[tuple[int, int, bytes]],
        members: Members | None,
        refused: Mapping[tuple[int, int], DamagedRecord],
    ) -> list[list[Outcome]]:
        applied = self._applied
        outcomes: list[list[Outcome]] = []
        with self._store.write() as txn:
            batch = BatchTxn(txn)
            for index, term, data in entries:
                assert index == applied.index + 1, (index, applied.index)
                now_ns, entry_outcomes = applied.now_ns, []
                if data:
                    entry = decode_entry(data)
                    bounds = BOUNDS if is_bounded(data) else UNBOUNDED
                    now_ns = max(now_ns, entry.now_ns)
                    for position, (session, command) in enumerate(entry.commands):
                        place = (index, position)
                        if place in refused:
                            entry_outcomes.append(_outcome_of(refused[place]))
                            continue
                        try:
                            batch.between_commands()
                            entry_outcomes.append(_run(batch, now_ns, session, command, bounds))
                        except DamagedRecord as error:
                            raise _DamagedCommandError(place, error) from error
                applied = Applied(index, term, now_ns)
                outcomes.append(entry_outcomes)
            batch.flush()
            records.APPLIED.store(txn, keys.APPLIED, applied)
            if members is not None:
                records.MEMBERS.store(txn, keys.MEMBERS, members)
        self._applied = applied
        self._members = members or self._members
        return outcomes


# --- one command --------------------------------------------------------------------------------------------


def _run(txn: BatchTxn, now_ns: int, session: SessionId, command: Command, bounds: Bounds) -> Outcome:
    """Apply a command unless it was applied already. Raises DamagedRecord."""
    op = _OPS.get(command.op)
    if session == 0:
        if op not in SERVICE_OPS:
            return _outcome_of(NotAllowed("this operation needs a session"))
        return _execute(txn, Context(now_ns, session, bounds), op, command.body)
    if not 0 < session <= keys.U64_MAX or txn.get(keys.session(session)) is None:
        return _outcome_of(SessionGone())
    if not 0 <= command.slot < SLOTS_PER_SESSION or not 0 < command.seq <= keys.U64_MAX:
        return _outcome_of(BadMessage("a command has no such slot or sequence number"))
    slot = keys.slot(session, command.slot)
    recorded = records.RECORDED.load(txn, slot)
    if recorded is not None and command.seq <= recorded.seq:
        return recorded.outcome if command.seq == recorded.seq else _outcome_of(StaleOperation())
    if op in SERVICE_OPS and op is not Op.END_SESSION:
        outcome = _outcome_of(NotAllowed("this operation is not for sessions"))
    else:
        outcome = _execute(txn, Context(now_ns, session, bounds), op, command.body)
    if op is Op.END_SESSION and outcome.code == 0 and txn.get(keys.session(session)) is None:
        return outcome  # the session has no slots any more
    record = records.RECORDED.encode(Recorded(command.seq, outcome))
    assert len(record) <= OUTCOME_BYTES_MAX, (command.op, len(record))
    txn.put(slot, record)
    return outcome


def _execute(txn: BatchTxn, context: Context, op: Op | None, body: msgspec.Raw) -> Outcome:
    if op is None:
        return _outcome_of(BadMessage("there is no such operation"))
    try:
        request = _DECODERS[op].decode(body)
    except msgspec.DecodeError as error:
        return _outcome_of(BadMessage(f"{op.name} does not decode: {error}"))
    writes = txn.writes
    try:
        reply: Any = OPERATIONS[op](txn, context, request)
    except DamagedRecord:
        raise
    except ShoalError as error:
        outcome = _outcome_of(error)
        assert txn.writes == writes, f"{op.name} wrote before it refused: {outcome.text}"
        return outcome
    return Outcome(0, "", msgspec.Raw(_encode(reply)))


def _outcome_of(error: ShoalError) -> Outcome:
    return Outcome(wire_code(error), str(error)[: ERROR_TEXT_BYTES_MAX // 4])


# --- the empty filesystem -----------------------------------------------------------------------------------


class Layout(msgspec.Struct, frozen=True):
    """How files are stored unless a directory says otherwise; handed down from the root at creation."""

    chunk_bytes: int = CHUNK_BYTES_DEFAULT
    inline_bytes_max: int = INLINE_BYTES_DEFAULT

    def __post_init__(self) -> None:
        assert CHUNK_BYTES_MIN <= self.chunk_bytes <= CHUNK_BYTES_MAX, self.chunk_bytes
        assert 0 <= self.inline_bytes_max <= INLINE_BYTES_MAX, self.inline_bytes_max


def format_store(
    store: Store,
    cluster_id: bytes,
    pools: Sequence[Pool],
    layout: Layout,
    *,
    created_ns: int = 0,
    members: Members | None = None,
) -> None:
    """Make the empty filesystem, unless the store has it already. Raises WrongCluster if it has another one.

    Every node of a group formats for itself, before its first entry: all arguments must be the same on all of
    them. ``created_ns`` is the time on the root directory; ``members`` are the founders of the group.
    """
    assert pools, "a filesystem has at least one pool"
    assert all(1 <= pool.data <= pool.min_ack <= pool.replicas for pool in pools), pools
    with store.read() as reader:
        before = records.FORMAT.load(reader, keys.FORMAT)
    if before is not None:
        if before.cluster_id != cluster_id:
            raise WrongCluster(f"this store belongs to cluster {before.cluster_id.hex()}")
        return
    with store.write() as txn:
        records.FORMAT.store(txn, keys.FORMAT, records.Format(cluster_id, FORMAT_VERSION))
        for pool in pools:
            records.POOL.store(txn, keys.pool(pool.id), pool)
        cluster.store_epoch(txn, 1)
        inodes.store_counters(txn, records.Counters(next_ino=ROOT_INODE + 1, inodes=1))
        inodes.store(txn, _root(pools[0], layout, created_ns))
        if members is not None:
            records.MEMBERS.store(txn, keys.MEMBERS, members)
        records.APPLIED.store(txn, keys.APPLIED, _NOTHING_APPLIED)


def _root(pool: Pool, layout: Layout, created_ns: int) -> Inode:
    return Inode(
        ino=ROOT_INODE,
        mode=0o040755,
        nlink=2,
        uid=0,
        gid=0,
        rdev=0,
        size_bytes=0,
        used_bytes=0,
        atime_ns=created_ns,
        mtime_ns=created_ns,
        ctime_ns=created_ns,
        btime_ns=created_ns,
        version=1,
        data_version=1,
        pool=pool.id,
        chunk_bytes=layout.chunk_bytes,
        inline_bytes_max=layout.inline_bytes_max,
        parent=InodeId(ROOT_INODE),
        next_cookie=inodes.FIRST_COOKIE,
    )


def check_format(txn: ReadTxn) -> None:
    """Raises StorageFailed if the store is not formatted, or in a way that this program does not know."""
    made = records.FORMAT.load(txn, keys.FORMAT)
    if made is None:
        raise StorageFailed("the metadata store is empty: it was never formatted")
    if made.version != FORMAT_VERSION:
        raise StorageFailed(f"the metadata store has format {made.version}, this program reads {FORMAT_VERSION}")


def load_applied(txn: ReadTxn) -> Applied:
    """The last entry applied; index 0 if none was."""
    return records.APPLIED.load(txn, keys.APPLIED) or _NOTHING_APPLIED
