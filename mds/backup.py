"""Dumps of all metadata at regular times, on the node's own disk or on one mounted there.

Each node that is told to writes its own, of what it has applied, so a backup does not depend on who leads. The order:
written to ``backup.part``, synced, renamed, the directory synced, and only then the oldest removed. A crash leaves a
``backup.part``, which the next backup replaces, and never fewer whole dumps than are to be kept. A backup that fails is
logged, and tried again at the next time; it never stops the node.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from shoalfs.mds import dump_file, keys, records
from shoalfs.mds.journal_files import sync_directory
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import DamagedRecord, StorageFailed
from shoalfs.transport.limits import BACKUP_INTERVAL_MS_DEFAULT, BACKUPS_KEPT_DEFAULT

log: Final = logging.getLogger("shoal.mds.backup")
_PART: Final = "backup.part"


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """``directory`` empty: no backups are made. ``keep``: so many whole ones, at least 1."""

    directory: str = ""
    interval_ms: int = BACKUP_INTERVAL_MS_DEFAULT
    keep: int = BACKUPS_KEPT_DEFAULT


async def run(store: LmdbStore, options: BackupOptions | None) -> None:
    """Until cancelled. The first one is made when the newest that is there is older than the interval."""
    if options is None or not options.directory:
        return
    stopping = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, stopping)
        await _make_forever(store, Path(options.directory), options, stopping)


async def _tell(stopping: threading.Event) -> None:
    """A thread cannot be cancelled: it looks at this."""
    try:
        await trio.sleep_forever()
    finally:
        stopping.set()


async def _make_forever(store: LmdbStore, directory: Path, options: BackupOptions, stopping: threading.Event) -> None:
    while True:
        try:
            await trio.sleep(await trio.to_thread.run_sync(_wait_s, directory, options.interval_ms))
            path = await trio.to_thread.run_sync(make, store, directory, options.keep, lambda: not stopping.is_set())
            log.info("backup %s is written", path)
        except (OSError, StorageFailed, DamagedRecord) as error:
            log.error("no backup: %s: %s; the next one is tried in %d ms", directory, error, options.interval_ms)
            await trio.sleep(options.interval_ms / 1000)


def _wait_s(directory: Path, interval_ms: int) -> float:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = dump_file.kept(directory)
    if not found:
        return 0.0
    age_s = time.time() - found[-1].stat().st_mtime
    return min(max(0.0, interval_ms / 1000 - age_s), interval_ms / 1000)


def make(store: LmdbStore, directory: Path, keep: int, is_wanted: Callable[[], bool] = lambda: True) -> Path | None:
    """One backup, now; slow, for a thread. None: it was given up. Raises OSError, StorageFailed, DamagedRecord. Nothing
    old is removed unless it is whole."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with store.read() as txn:
        cluster_id = records.FORMAT.require(txn, keys.FORMAT).cluster_id
    part = directory / _PART
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        applied = dump_file.write(store, file, is_wanted)
        os.fsync(file.fileno())
    if applied is None:
        return None
    path = directory / dump_file.name(cluster_id, applied.index)
    part.rename(path)
    sync_directory(directory)
    for old in dump_file.kept(directory)[:-keep]:
        if old != path:
            old.unlink()
    return path
