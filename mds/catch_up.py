"""The side that takes snapshots: fetches one when the leader's log does not reach back far enough.

Until it is staged (see `mds/install.py`) nothing of this node changes; whatever goes wrong is logged and tried again.
The one rule: the store is not replaced under a running node. `run` returns when a snapshot is ready, and whoever runs
the node ends it and begins again.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from shoalfs.mds.install import RECEIVING, stage
from shoalfs.mds.snapshot_messages import OPEN_SNAPSHOT, READ_SNAPSHOT, OpenSnapshot, ReadSnapshot, SnapshotOffer
from shoalfs.mds.store import DATA_FILE
from shoalfs.transport.errors import ShoalError, StorageFailed
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import REQUEST_TIMEOUT_MS_MAX, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_RETRY_MS
from shoalfs.transport.method import Method
from shoalfs.transport.rpc import Reply

log: Final = logging.getLogger("shoal.mds.catch_up")

_LOOK_SECONDS: Final = 0.05


class Caller(Protocol):
    """What is needed of transport.network.Network."""

    async def call(
        self, address: str, method: Method[Any, Any], request: Any, *, timeout_ms: int = ...
    ) -> Reply[Any]: ...


async def run(
    source: Callable[[], str | None],
    applied_index: Callable[[], int],
    network: Caller,
    node: NodeId,
    directory: Path,
    cluster_id: bytes,
) -> None:
    """Wait until ``source`` names a leader's address; fetch a snapshot there and stage it in ``directory``.

    Returns when a snapshot waits for the next start. Cancelled: nothing has changed, or it waits.
    """
    while True:
        address = source()
        if address is None:
            await trio.sleep(_LOOK_SECONDS)
            continue
        began = trio.current_time()
        try:
            offer = await fetch(network, address, node, directory, cluster_id, applied_index)
        except (ShoalError, StorageFailed, OSError) as error:
            log.error("no snapshot from %s, this node stays behind and tries again: %s", address, error)
            await trio.sleep(SNAPSHOT_RETRY_MS / 1000)
            continue
        took_s = trio.current_time() - began
        log.info("received a snapshot at entry %d, %d bytes, in %.2f s", offer.index, offer.size_bytes, took_s)
        return


async def fetch(
    network: Caller,
    address: str,
    node: NodeId,
    directory: Path,
    cluster_id: bytes,
    applied_index: Callable[[], int] = lambda: -1,
) -> SnapshotOffer:
    """Fetch a snapshot and stage it. Raises ShoalError, StorageFailed or OSError, and then nothing has changed."""
    receiving = directory / RECEIVING
    await trio.to_thread.run_sync(_make_empty, receiving)
    opened = await network.call(address, OPEN_SNAPSHOT, OpenSnapshot(node), timeout_ms=REQUEST_TIMEOUT_MS_MAX)
    offer: SnapshotOffer = opened.body
    descriptor = os.open(receiving / DATA_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        while offset < offer.size_bytes:
            reply = await network.call(address, READ_SNAPSHOT, ReadSnapshot(node, offer.number, offset))
            if len(reply.payload) != min(SNAPSHOT_CHUNK_BYTES, offer.size_bytes - offset):
                raise StorageFailed(f"{address} sent {len(reply.payload)} bytes of a snapshot at {offset}")
            await trio.to_thread.run_sync(_write_all, descriptor, reply.payload, offset)
            offset += len(reply.payload)
    finally:
        os.close(descriptor)
    if offer.index <= applied_index():
        raise StorageFailed(f"the snapshot of {address} is at entry {offer.index}, this node is at {applied_index()}")
    await trio.to_thread.run_sync(stage, directory, cluster_id, offer)
    return offer


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
