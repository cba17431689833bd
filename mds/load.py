"""Make the store of a metadata node of a dump: `shoal load`.

Into a directory that holds neither a store nor a log. The steps, and what a crash in each gap leaves:

1. The rows are written into ``loading``, the last line of the dump compared, and a checkpoint synced. A crash leaves
   ``loading``, which the next attempt removes; nothing else ever looks at it.
2. ``loading`` is renamed to ``store``, and the directory synced. From here on it is a node that was never started.

What is not as in the dump, because time went on after it was made:

* Numbers that are handed out (inodes, chunks, sessions) go on far behind those of the dump, and so do the
  epochs of map and targets: what was handed out after the dump is never handed out again.
* Deletion is held until an operator releases it: chunks that the metadata do not know may be newer than the dump, and
  all that is left of their files.
* There are no sessions, and the members are those that the configuration names. To restore a group, load the same dump
  on each of its nodes with its configuration.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from shoalfs.mds import cluster, dump, keys, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.install import LOG, STORE
from shoalfs.mds.journal_files import sync_directory
from shoalfs.mds.machine import check_format
from shoalfs.mds.raft_members import Members
from shoalfs.mds.records import Applied
from shoalfs.mds.store import LmdbStore
from shoalfs.mds.txn import Txn
from shoalfs.mds.upgrade import upgrade
from shoalfs.transport.errors import UserError
from shoalfs.transport.ids import CHUNK_SEQUENCE_MAX

LOADING: Final = "loading"
_ROWS_PER_TRANSACTION: Final = 5_000
SKIPPED: Final = 1 << 32  # numbers of inodes and chunks that may have been handed out after the dump
SKIPPED_EPOCHS: Final = 1 << 20


def load(source: BinaryIO, directory: Path, cluster_id: bytes, members: Members) -> dump.Header:
    """Fill ``directory``. Raises UserError if it is in use or the dump is not whole, StorageFailed."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for name in (STORE, LOG):
        if (directory / name).exists():
            raise UserError(f"load: {directory}: holds a {name} already: choose an empty directory")
    loading = directory / LOADING
    shutil.rmtree(loading, ignore_errors=True)
    loading.mkdir(mode=0o700)
    store = LmdbStore.open(str(loading))
    try:
        header = _fill(store, source, cluster_id, members)
        store.checkpoint().write()
    finally:
        store.close()
    loading.rename(directory / STORE)
    sync_directory(directory)
    return header


def _lines(source: BinaryIO) -> Iterator[bytes]:
    while line := source.readline(dump.LINE_BYTES_MAX + 1):
        yield line


def _fill(store: LmdbStore, source: BinaryIO, cluster_id: bytes, members: Members) -> dump.Header:
    rows = dump.rows(_lines(source))
    header, _, _ = next(rows)
    assert header is not None, "the first row is the header"
    if cluster_id not in (b"", bytes.fromhex(header.cluster_id)):
        raise UserError(f"load: the dump is of cluster {header.cluster_id}, the configuration names {cluster_id.hex()}")
    while batch := list(islice(rows, _ROWS_PER_TRANSACTION)):
        with store.write() as txn:
            for _, key, value in batch:
                txn.put(key, value)
    upgrade(store)
    with store.write() as txn:
        check_format(txn)
        _begin_anew(txn, header, members)
    return header


def _begin_anew(txn: Txn, header: dump.Header, members: Members) -> None:
    """Once all rows are there."""
    replace = msgspec.structs.replace
    old = inodes.load_counters(txn)
    inodes.store_counters(
        txn,
        replace(
            old,
            next_ino=old.next_ino + SKIPPED,
            next_sequence=min(old.next_sequence + SKIPPED, CHUNK_SEQUENCE_MAX),
            next_session=old.next_session + SKIPPED_EPOCHS,
            sessions=0,
        ),
    )
    cluster.store_epoch(txn, cluster.load_epoch(txn) + SKIPPED_EPOCHS)
    for target in cluster.load_targets(txn):
        cluster.store_target(txn, replace(target, epoch=target.epoch + SKIPPED_EPOCHS))
    reason = f"the metadata were restored from a dump, as of entry {header.index}"
    cluster.store_upkeep(txn, replace(cluster.load_upkeep(txn), deletions_held=True, held_reason=reason))
    records.MEMBERS.store(txn, keys.MEMBERS, members)
    records.APPLIED.store(txn, keys.APPLIED, Applied(0, 0, header.time_ns))
