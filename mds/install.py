"""How a received snapshot becomes this node's store, so that a crash at any moment leaves the old one or the new one.

A node's directory holds ``store`` and ``log``; while it receives, ``receiving``; then ``installing``, a whole and
durable store that waits; for a moment ``replaced``, the old one.

Durable steps:

1. The copy is received into ``receiving``, its digest compared, and it is made a store there: opened, its cluster,
   format and applied entry compared, and a checkpoint written and synced.
2. ``receiving`` is renamed to ``installing``, and the parent directory synced. From here on it goes forward only.
3. The node ends its tasks and begins again, as after a crash. The steps from here are those of every start:
4. The log is reset to begin after the snapshot's entry (a record, synced), unless that is done already.
5. ``store`` is renamed to ``replaced``, ``installing`` to ``store``; the parent directory is synced after each.
6. ``replaced`` is removed.

==================  =====================================================================================
a crash after       is met by the next start with
==================  =====================================================================================
a part of 1         the old store and log; ``receiving`` is removed
2, 3                ``installing`` beside the old ones: step 4
4                   a log that begins after the old store's end, and ``installing``, at which it begins: step 5
the first rename    no ``store``, and ``installing``: the second rename
5                   the new ones; ``replaced`` is removed
==================  =====================================================================================

The one rule: never an older state for a newer one. A snapshot replaces a store that is behind it, and a log that does
not hold its entry; for a log that does, the node already has all that the snapshot could tell, and may have
acknowledged more: then the snapshot is thrown away. What such a log holds in the place of the snapshot's entry was
never committed.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Final, Protocol

from shoalfs.mds import keys, records
from shoalfs.mds.journal import Journal, JournalRefused, read_owner
from shoalfs.mds.machine import check_format, load_applied
from shoalfs.mds.snapshot_messages import SnapshotOffer
from shoalfs.mds.snapshots import digest_file
from shoalfs.mds.store import DATA_FILE, LmdbStore
from shoalfs.mds.upgrade import upgrade
from shoalfs.transport.errors import StorageFailed
from shoalfs.transport.ids import NodeId

log: Final = logging.getLogger("shoal.mds.install")

STORE: Final = "store"
LOG: Final = "log"
RECEIVING: Final = "receiving"
INSTALLING: Final = "installing"
REPLACED: Final = "replaced"


class LogView(Protocol):
    """What `is_wanted` needs of a log."""

    @property
    def base_index(self) -> int: ...
    def term_at(self, index: int) -> int | None: ...


def is_wanted(journal: LogView, store_index: int | None, index: int, term: int) -> bool:
    """Whether a snapshot of (index, term) replaces a store at ``store_index`` (None: there is none) with this log."""
    if store_index is None:
        return True
    if index <= store_index:
        return False
    if journal.base_index > store_index:  # only a reset does that
        return (journal.base_index, journal.term_at(journal.base_index)) == (index, term)
    return journal.term_at(index) != term


def stage(directory: Path, cluster_id: bytes, offer: SnapshotOffer) -> None:
    """The end of step 1, and step 2. Raises StorageFailed, and the node goes on as it was."""
    receiving = directory / RECEIVING
    data = receiving / DATA_FILE
    if data.stat().st_size != offer.size_bytes or digest_file(data) != offer.digest:
        raise StorageFailed(f"{data}: what arrived is not the snapshot that was sent")
    made, applied = _look_into(LmdbStore.adopt(str(receiving)))
    if made.cluster_id != cluster_id:
        raise StorageFailed(f"{data}: this is a snapshot of cluster {made.cluster_id.hex()}, not {cluster_id.hex()}")
    if (applied.index, applied.term) != (offer.index, offer.term):
        raise StorageFailed(f"{data}: this snapshot is at entry {applied.index}, {offer.index} was announced")
    _rename(directory, RECEIVING, INSTALLING)


def finish(directory: Path) -> None:
    """Steps 4 to 6, at every start, before store and log are opened. Raises JournalRefused and StorageFailed."""
    shutil.rmtree(directory / RECEIVING, ignore_errors=True)
    if (directory / INSTALLING).exists():
        owner = read_owner(directory / LOG)
        if owner is None:
            raise JournalRefused(f"{directory}: a snapshot waits for a log that is gone: start a new node instead")
        journal = Journal(directory / LOG, owner.cluster_id, NodeId(owner.node))
        try:
            _install(directory, journal)
        finally:
            journal.close()
    shutil.rmtree(directory / REPLACED, ignore_errors=True)


def _install(directory: Path, journal: Journal) -> None:
    has_store = (directory / STORE).exists()
    store_index = _look_into(LmdbStore.open(str(directory / STORE)))[1].index if has_store else None
    _, applied = _look_into(LmdbStore.open(str(directory / INSTALLING)))
    if not is_wanted(journal, store_index, applied.index, applied.term):
        log.error("a snapshot at entry %d is thrown away: this node has all of it", applied.index)
        shutil.rmtree(directory / INSTALLING)
        return
    reset_log(journal, applied.index, applied.term)
    if has_store:
        shutil.rmtree(directory / REPLACED, ignore_errors=True)
        _rename(directory, STORE, REPLACED)
    _rename(directory, INSTALLING, STORE)
    log.info("installed a snapshot at entry %d; the store was at %s", applied.index, store_index)


def reset_log(journal: Journal, index: int, term: int) -> None:
    """Step 4. Raises JournalFailed."""
    if journal.term_at(index) != term:
        journal.reset(index, term)
    if term > journal.current_term:
        journal.set_hard_state(term, 0)
    journal.sync()


def _look_into(store: LmdbStore) -> tuple[records.Format, records.Applied]:
    """What it is a store of, and its last entry. Closes it."""
    try:
        upgrade(store)
        with store.read() as txn:
            check_format(txn)
            return records.FORMAT.require(txn, keys.FORMAT), load_applied(txn)
    finally:
        store.close()


def _rename(directory: Path, old: str, new: str) -> None:
    (directory / old).rename(directory / new)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
