"""Builds a chunkserver from its options and runs it.

Order of the start: learn which cluster this is; open the targets (which recovers them); listen; register and beat.
At the end everything that was stored is put on disk, whatever ended the server.

A target whose disk does not answer is left out and shown as failed; a mistake in the options (a directory of another
cluster, one that is in use) stops the start. Targets may come and go meanwhile: see keeper.py.
"""

import logging
from dataclasses import dataclass
from typing import Final, Never

import outcome
import trio

from shoalfs.chunkserver.added import AddedTargets
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.directory import cluster_of
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.forwarder import Addresses, Forwarder
from shoalfs.chunkserver.heartbeat import Heart
from shoalfs.chunkserver.keeper import TargetOptions, open_keeper
from shoalfs.chunkserver.messages import ADD_TARGET
from shoalfs.chunkserver.service import ChunkService
from shoalfs.chunkserver.watch import Watch, in_time
from shoalfs.mds.leader import Leader
from shoalfs.mds.messages import CHUNKSERVER, GET_MAP, GetMap
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import PeerUnreachable, TargetDown, UserError
from shoalfs.transport.limits import DISK_CALL_MS_MAX, HEARTBEAT_PATIENCE_MS, TARGETS_PER_SERVER_MAX
from shoalfs.transport.network import open_network
from shoalfs.transport.rpc import serve
from shoalfs.transport.session import Hello

_log: Final = logging.getLogger("shoal.chunkserver.server")


@dataclass(frozen=True)
class ServerOptions:
    """``advertise``: the address that clients are told, None: the one it listens on. ``cluster_id`` None: that of the
    targets, or at the first start of all what the metadata service says. ``mds``: any of its members. ``added_path``:
    the file in which targets are written down that are added while it runs; None: none can be. ``disk_call_ms_max``: a
    disk one of whose calls takes longer has failed."""

    node: str
    listen: str
    targets: tuple[TargetOptions, ...]
    mds: tuple[str, ...]
    advertise: str | None = None
    cluster_id: bytes | None = None
    rack: str = ""
    added_path: str | None = None
    disk_call_ms_max: int = DISK_CALL_MS_MAX


async def run(
    options: ServerOptions,
    carriers: Carriers,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Serve until cancelled. Started with ``nursery.start()`` it returns the address once it listens.

    Raises UserError.
    """
    _check(options)
    disk = RealDisk()
    cluster_id = options.cluster_id or await _cluster_of_targets(disk, options)
    if cluster_id is None:
        cluster_id = await _ask_cluster_id(options, carriers)
    hello = Hello(cluster_id=cluster_id, role=CHUNKSERVER, name=options.node)
    limit = options.disk_call_ms_max
    added = None if options.added_path is None else AddedTargets(disk, options.added_path)
    async with open_keeper(disk, cluster_id, added, limit) as keeper, open_network(carriers, hello) as network:
        await keeper.open_configured(options.targets)
        leader = Leader(network, options.mds, HEARTBEAT_PATIENCE_MS)
        service = ChunkService(options.node, keeper.targets, Forwarder(network, Addresses(leader)))
        service.rpc.add(ADD_TARGET, keeper.answer_add)
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve, carriers, options.listen, service.rpc, hello)
            peers = ChunkClient(network)
            heart = Heart(leader, options.node, options.rack, options.advertise or address, keeper, peers)
            nursery.start_soon(heart.run)
            _log.info("%s serves %d targets on %s", options.node, len(keeper.targets.living), address)
            task_status.started(address)
    raise AssertionError("a server ends by being cancelled")


def _check(options: ServerOptions) -> None:
    if not options.mds:
        raise UserError("a chunkserver needs the address of a metadata server")
    if not 0 < len(options.targets) <= TARGETS_PER_SERVER_MAX:
        raise UserError(f"a chunkserver has 1 to {TARGETS_PER_SERVER_MAX} targets, not {len(options.targets)}")


async def _cluster_of_targets(disk: RealDisk, options: ServerOptions) -> bytes | None:
    """The cluster that an initialised target belongs to, the first that answers. Opening the others compares them with
    it. Raises UserError."""
    answers, get_answer = trio.open_memory_channel[outcome.Outcome[bytes | None]](len(options.targets))

    async def ask(path: str) -> None:
        watch = Watch(options.disk_call_ms_max)

        def look() -> bytes | None:
            with watch.call("looking at it"):
                return cluster_of(disk, path)

        try:
            answer: outcome.Outcome[bytes | None] = outcome.Value(await in_time(watch, path, look))
        except UserError as error:
            answer = outcome.Error(error)
        except (OSError, TargetDown) as error:  # opening it will fail, too, and be shown
            _log.warning("%s cannot be read: %s", path, error)
            answer = outcome.Value(None)
        answers.send_nowait(answer)

    found: outcome.Outcome[bytes | None] = outcome.Value(None)
    async with trio.open_nursery() as nursery:
        for target in options.targets:
            nursery.start_soon(ask, target.path)
        for _ in options.targets:
            found = await get_answer.receive()
            if found != outcome.Value(None):
                break
        nursery.cancel_scope.cancel()
    return found.unwrap()


async def _ask_cluster_id(options: ServerOptions, carriers: Carriers) -> bytes:
    """At the first start of all: the metadata service says which cluster this is. Waits for it as long as it takes."""
    hello = Hello(cluster_id=b"", role=CHUNKSERVER, name=options.node)
    async with open_network(carriers, hello) as network:
        leader = Leader(network, options.mds, HEARTBEAT_PATIENCE_MS)
        while True:
            try:
                reply = await leader.call(GET_MAP, GetMap())
            except PeerUnreachable as error:
                _log.warning("waiting for the metadata service to learn the cluster's id: %s", error)
            else:
                return reply.body.cluster_id
