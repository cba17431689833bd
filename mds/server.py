"""Builds a metadata node from its parts and runs it.

First start, in this order, so that a crash in any gap is repaired by starting again: the store is formatted (one
transaction, then a durable checkpoint), then the journal is begun. A store that has applied entries but no journal has
lost its log: refused.
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from shoalfs.mds import backup, catch_up, keys, records
from shoalfs.mds.backup import BackupOptions
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.dump_source import DumpSource
from shoalfs.mds.duties import Duties
from shoalfs.mds.evictions import Evictions
from shoalfs.mds.group import GroupService
from shoalfs.mds.inspections import Inspections
from shoalfs.mds.install import LOG, STORE, finish
from shoalfs.mds.joining import joined_number
from shoalfs.mds.journal import Journal, create_journal
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.machine import Layout, Machine, OnDamage, check_format, format_store, load_applied
from shoalfs.mds.messages import MDS, Pool
from shoalfs.mds.raft import RaftTimes
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.mds.raft_messages import PEER, peer_name
from shoalfs.mds.raft_node import RaftNode, boot_clock
from shoalfs.mds.repairs import Repairs
from shoalfs.mds.service import MdsService
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.snapshot_messages import OPEN_SNAPSHOT, READ_SNAPSHOT
from shoalfs.mds.snapshots import SnapshotSource
from shoalfs.mds.store import LmdbStore
from shoalfs.mds.upgrade import upgrade
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import StorageFailed, UserError
from shoalfs.transport.ids import NodeId, PoolId
from shoalfs.transport.limits import (
    CHECKPOINT_MS,
    CHUNK_BYTES_DEFAULT,
    GARBAGE_GRACE_MS_DEFAULT,
    INLINE_BYTES_DEFAULT,
    REPAIR_BYTES_PER_S_DEFAULT,
    SCRUB_BYTES_PER_S_DEFAULT,
    SCRUB_PERIOD_MS_DEFAULT,
    SESSION_TTL_MS,
    TARGET_OUT_MS_DEFAULT,
)
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.service import Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

log = logging.getLogger("shoal.mds.server")

CLUSTER_ID_BYTES: Final = 16
SENDING: Final = "sending"  # copies of the store that other members read
DUMPING: Final = "dumping"  # a dump that an operator reads
CHECKING: Final = "checking"  # what a check puts aside


@dataclass(frozen=True, slots=True)
class MdsOptions:
    """One metadata node. ``node`` and ``members`` (the address of each by number, this one included; empty: it is
    alone) make a group for the first time; afterwards the members are in the store, and a node that joined has the
    number that it was given.

    ``cluster_id``: 16 bytes; empty: the store's own, or a new one if this node is alone and starts for the first time.
    ``replicas``, ``min_ack``, ``chunk_bytes`` and ``inline_bytes`` are taken when the filesystem is made and not
    again. ``target_out_ms``: how long a target may be down before others take its place. ``repair_bytes_per_s``: read
    from or written to one target for copies; ``scrub_bytes_per_s``: read of one target to verify all of it once in
    ``scrub_period_ms``. ``read_lease``: the clocks of the group may be trusted (see RaftTimes).
    """

    data_dir: str
    listen: str
    node: int = 1
    members: Mapping[int, str] | None = None
    cluster_id: bytes = b""
    replicas: int = 1
    min_ack: int = 1
    chunk_bytes: int = CHUNK_BYTES_DEFAULT
    inline_bytes: int = INLINE_BYTES_DEFAULT
    garbage_grace_ms: int = GARBAGE_GRACE_MS_DEFAULT
    read_lease: bool = True
    session_ttl_ms: int = SESSION_TTL_MS
    target_out_ms: int = TARGET_OUT_MS_DEFAULT
    repair_bytes_per_s: int = REPAIR_BYTES_PER_S_DEFAULT
    scrub_period_ms: int = SCRUB_PERIOD_MS_DEFAULT
    scrub_bytes_per_s: int = SCRUB_BYTES_PER_S_DEFAULT
    backup: BackupOptions | None = None


async def run(
    options: MdsOptions, carriers: Carriers, *, task_status: "trio.TaskStatus[str]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; reports its address when it listens. Raises UserError if it can not start, and what
    makes a node unfit to go on (its disk failed, an invariant broke)."""
    directory = Path(options.data_dir)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    status = _ToldOnce(task_status)
    while True:
        with ExitStack() as files:
            finish(directory)
            store = LmdbStore.open(str(directory / STORE))
            files.push(partial(_close, store))
            cluster_id = _prepare(store, options)
            journal = Journal(directory / LOG, cluster_id, _node(directory, options))
            files.callback(journal.close)
            await _live(store, journal, cluster_id, options, carriers, status)
        log.info("beginning again with the snapshot that was received")


def _close(store: LmdbStore, kind: object, error: BaseException | None, trace: object) -> None:
    """At the end of a life. What ended it is told; what follows from that, such as a full disk here too, is logged."""
    try:
        store.close()
    except StorageFailed as failure:
        if error is None:
            raise
        log.error("at the end: %s", failure)


def _prepare(store: LmdbStore, options: MdsOptions) -> bytes:
    """Make what is not there yet, in the order that the module describes. Returns the cluster's id."""
    upgrade(store)
    cluster_id = _cluster_id(store, options)
    pool = Pool(PoolId(1), "default", options.replicas, options.min_ack)
    # Every node of a group formats for itself and must come to the same bytes, so the root has no date there.
    created_ns = 0 if options.members and len(options.members) > 1 else time.time_ns()
    layout = Layout(options.chunk_bytes, options.inline_bytes)
    format_store(store, cluster_id, [pool], layout, created_ns=created_ns, members=founders_of(options))
    with store.read() as txn:
        check_format(txn)
        applied = load_applied(txn).index
    directory = Path(options.data_dir, LOG)
    if not directory.exists() or not any(directory.glob("*.log")):
        if applied:
            raise UserError(
                f"mds: {directory}: the log is gone, the store has applied entries up to {applied}: "
                "restore both from the same moment, or start a new node under another number"
            )
        store.checkpoint().write()
        create_journal(directory, cluster_id, NodeId(options.node))
    return cluster_id


def _node(directory: Path, options: MdsOptions) -> NodeId:
    """A node that joined was given its number."""
    return joined_number(directory) or NodeId(options.node)


def founders_of(options: MdsOptions) -> Members:
    """The members of a group that begins."""
    addresses = options.members or {options.node: options.listen}
    return founders(Member(NodeId(node), address, address) for node, address in addresses.items())


def _cluster_id(store: LmdbStore, options: MdsOptions) -> bytes:
    """The store's, which must be the configured one; or, for a new store, the configured one or a new one."""
    with store.read() as txn:
        made = records.FORMAT.load(txn, keys.FORMAT)
    if made is None:
        if not options.cluster_id and options.members and len(options.members) > 1:
            raise UserError("mds: cluster.id: several nodes need the same one: set it to 32 hex digits on all of them")
        return options.cluster_id or secrets.token_bytes(CLUSTER_ID_BYTES)
    if options.cluster_id not in (b"", made.cluster_id):
        raise UserError(
            f"mds: {options.data_dir}: holds cluster {made.cluster_id.hex()}, the configuration names "
            f"{options.cluster_id.hex()}: choose another data_dir, or correct cluster.id"
        )
    return made.cluster_id


class _ToldOnce:
    """Whoever started the node hears once that it serves; beginning again is the node's own business."""

    def __init__(self, task_status: "trio.TaskStatus[str]") -> None:
        self._task_status: trio.TaskStatus[str] | None = task_status

    def started(self, address: str) -> None:
        if self._task_status is not None:
            self._task_status.started(address)
            self._task_status = None


async def _live(
    store: LmdbStore,
    journal: Journal,
    cluster_id: bytes,
    options: MdsOptions,
    carriers: Carriers,
    status: _ToldOnce,
) -> None:
    """Serve until cancelled, or until a snapshot waits to be installed."""
    node = _node(Path(options.data_dir), options)
    hello = Hello(PROTOCOL_VERSION, cluster_id, MDS, peer_name(node))
    service = Service()
    async with open_network(carriers, hello) as network:
        # One damaged record must not take the only node down; the machine sees to it that a group does not differ.
        machine = Machine(store, OnDamage.REFUSE)
        snapshots = SnapshotSource(store, Path(options.data_dir, SENDING), lambda: machine.applied_index)
        times = RaftTimes() if options.read_lease else RaftTimes(lease_share=0.0)
        raft = RaftNode(
            node, founders_of(options), journal, machine, network, held_index=snapshots.held_index, times=times
        )
        batcher = Batcher(raft, time.time_ns)
        state = _leader_state(options)
        metadata = MdsService(store, raft, batcher, state, _now_ms)
        metadata.install(service)
        GroupService(raft, cluster_id).install(service)
        dumps = DumpSource(store, Path(options.data_dir, DUMPING))
        dumps.install(service, metadata.leading)
        inspections = Inspections(store, Path(options.data_dir, STORE), Path(options.data_dir, CHECKING))
        inspections.install(service, metadata.leading)
        service.add(PEER, raft.handle_peer)
        service.add(OPEN_SNAPSHOT, snapshots.handle_open)
        service.add(READ_SNAPSHOT, snapshots.handle_read)
        duties = Duties(
            store,
            raft,
            batcher,
            state,
            now_ms=_now_ms,
            now_ns=time.time_ns,
            grace_ms=options.garbage_grace_ms,
            out_ms=options.target_out_ms,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(raft.run)
            nursery.start_soon(metadata.run)
            nursery.start_soon(batcher.run)
            nursery.start_soon(duties.run)
            nursery.start_soon(snapshots.run)
            nursery.start_soon(dumps.run)
            nursery.start_soon(inspections.run)
            nursery.start_soon(backup.run, store, options.backup)
            nursery.start_soon(_checkpoint_forever, store)
            address: str = await nursery.start(serve, carriers, options.listen, service, hello)
            log.info("metadata node %d of cluster %s listens at %s", node, cluster_id.hex(), address)
            status.started(address)
            directory = Path(options.data_dir)
            await catch_up.run(
                raft.snapshot_source, lambda: machine.applied_index, network, node, directory, cluster_id
            )
            nursery.cancel_scope.cancel()


def _leader_state(options: MdsOptions) -> LeaderState:
    return LeaderState(
        SessionTable(options.session_ttl_ms),
        repairs=Repairs(options.repair_bytes_per_s),
        evictions=Evictions(options.garbage_grace_ms),
        scrub_period_ms=options.scrub_period_ms,
        scrub_bytes_per_s=options.scrub_bytes_per_s,
    )


async def _checkpoint_forever(store: LmdbStore) -> None:
    """Let the log be shortened: everything before a checkpoint is no longer needed to recover from a power loss."""
    applied = -1
    while True:
        await trio.sleep(CHECKPOINT_MS / 1000)
        with store.read() as txn:
            now_applied = load_applied(txn).index
        if now_applied != applied:
            await trio.to_thread.run_sync(store.checkpoint().write)
            applied = now_applied


def _now_ms() -> int:
    return int(boot_clock() * 1000)
