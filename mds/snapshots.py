"""The side that gives snapshots: copies of the store, kept for as long as a follower reads them.

A copy is a compact LMDB copy of one committed state, made in a thread while the service goes on writing. Each follower
has one at most, the node SNAPSHOTS_KEPT_MAX. It is removed when its last piece has been read, or when nobody has read
for the time of a lease. The log is kept from the copy's last entry on (`held_index`) for one lease after the last read,
so that the follower can install it and go on from there.

The one rule: a snapshot that cannot be made is the follower's bad luck and never this node's end. The copies are
scratch: nothing is synced, and the directory is emptied at every start.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
import xxhash

from shoalfs.mds.raft_messages import peer_name
from shoalfs.mds.snapshot_messages import OpenSnapshot, ReadSnapshot, SnapshotOffer
from shoalfs.mds.store import DATA_FILE, LmdbStore
from shoalfs.transport.errors import BadMessage, DamagedRecord, NotAllowed, Overloaded, StorageFailed
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import SNAPSHOT_CHUNK_BYTES, SNAPSHOT_LEASE_MS, SNAPSHOTS_KEPT_MAX
from shoalfs.transport.method import Nothing
from shoalfs.transport.service import Call

log: Final = logging.getLogger("shoal.mds.snapshots")

_HASHED_AT_ONCE_BYTES: Final = 1 << 20
_SWEEP_SECONDS: Final = 5.0


@dataclass(slots=True)
class _Kept:
    offer: SnapshotOffer
    directory: Path
    is_read: bool = False  # to its end: the files are gone
    until: float = 0.0  # on trio's clock: for so long the copy, and the log from its entry on, are kept


def digest_file(path: Path) -> bytes:
    """xxh3-128 of the file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE_BYTES):
            digest.update(piece)
    return digest.digest()


class SnapshotSource:
    """Answers OPEN_SNAPSHOT and READ_SNAPSHOT. ``run`` removes what nobody reads any more.

    ``directory`` is for its use alone. ``applied_index`` is the state machine's.
    """

    def __init__(self, store: LmdbStore, directory: Path, applied_index: Callable[[], int]) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        self._store = store
        self._directory = directory
        self._applied_index = applied_index
        self._kept: dict[NodeId, _Kept] = {}
        self._making: dict[NodeId, int] = {}  # member -> index that its copy will have at least
        self._number = 0

    def held_index(self) -> int | None:
        """What follows this entry is needed by a member that reads a snapshot, or has just read one."""
        held = [kept.offer.index for kept in self._kept.values()] + list(self._making.values())
        return min(held, default=None)

    async def handle_open(self, call: Call, request: OpenSnapshot, payload: memoryview) -> SnapshotOffer:
        """Raises NotAllowed, and Overloaded if there is no room for a copy or another one is being made."""
        node = _asker(call, request.node)
        others = sum(not kept.is_read for member, kept in self._kept.items() if member != node)
        if others + len(self._making) >= SNAPSHOTS_KEPT_MAX or node in self._making:
            raise Overloaded(f"this node keeps {SNAPSHOTS_KEPT_MAX} snapshots already")
        await self._remove(node)
        self._number += 1
        directory = self._directory / str(self._number)
        self._making[node] = self._applied_index()
        try:
            offer = await trio.to_thread.run_sync(self._make, self._number, directory)
            self._kept[node] = _Kept(offer, directory)
            self._renew(self._kept[node])
        except (OSError, StorageFailed, DamagedRecord) as error:
            log.error("no snapshot for member %d: %s", node, error)
            raise Overloaded(f"no snapshot could be made: {error}") from error
        finally:
            del self._making[node]
            if node not in self._kept:
                _remove_tree(directory)
        log.info("member %d reads a snapshot at entry %d, %d bytes", node, offer.index, offer.size_bytes)
        return offer

    async def handle_read(self, call: Call, request: ReadSnapshot, payload: memoryview) -> tuple[Nothing, bytes]:
        """Raises NotAllowed, and BadMessage for a snapshot that is not kept (any more)."""
        kept = self._kept.get(_asker(call, request.node))
        if kept is None or kept.is_read or kept.offer.number != request.number:
            raise BadMessage(f"there is no snapshot {request.number} here: open a new one")
        if not 0 <= request.offset < kept.offer.size_bytes:
            raise BadMessage(f"the snapshot has {kept.offer.size_bytes} bytes, not {request.offset}")
        self._renew(kept)
        data = await trio.to_thread.run_sync(_read_piece, kept.directory / DATA_FILE, request.offset)
        if request.offset + len(data) == kept.offer.size_bytes:
            kept.is_read = True  # if the answer is lost, the follower opens a new one
            await trio.to_thread.run_sync(_remove_tree, kept.directory)
        return Nothing(), data

    async def run(self) -> None:
        """Remove copies whose lease has run out, and forget what was read, until cancelled."""
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            for node in [node for node, kept in self._kept.items() if kept.until < trio.current_time()]:
                await self._remove(node)

    async def _remove(self, node: NodeId) -> None:
        kept = self._kept.pop(node, None)
        if kept is not None:
            await trio.to_thread.run_sync(_remove_tree, kept.directory)

    def _renew(self, kept: _Kept) -> None:
        kept.until = trio.current_time() + SNAPSHOT_LEASE_MS / 1000

    def _make(self, number: int, directory: Path) -> SnapshotOffer:
        """In a thread. Raises OSError and StorageFailed."""
        space = os.statvfs(self._directory)
        needed = self._store.size_bytes()
        if space.f_bavail * space.f_frsize < needed:
            raise StorageFailed(f"{self._directory} has less than {needed} bytes free")
        directory.mkdir(mode=0o700)
        applied = self._store.copy_to(str(directory))
        data = directory / DATA_FILE
        return SnapshotOffer(number, data.stat().st_size, digest_file(data), applied.index, applied.term)


def _asker(call: Call, node: NodeId) -> NodeId:
    if call.peer.name != peer_name(node):
        raise NotAllowed(f"{call.peer.name} is not member {node}")
    return node


def _remove_tree(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _read_piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), SNAPSHOT_CHUNK_BYTES, offset)
