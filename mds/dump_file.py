"""Write a dump into a file, in a thread, without keeping the service from its work.

One read transaction holds one state of the store for as long as it takes; the pages of that state are not used again
meanwhile, so the data file may grow by what is changed in that time.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from shoalfs.mds import dump
from shoalfs.mds.machine import load_applied
from shoalfs.mds.records import Applied
from shoalfs.mds.store import LmdbStore

_AT_ONCE_BYTES: Final = 64 << 10  # about 2 ms of work, then a pause of the same length: the other half is the service's


def write(store: LmdbStore, file: BinaryIO, is_wanted: Callable[[], bool] = lambda: True) -> Applied | None:
    """Returns the last entry in the dump; None if it was given up because it was not wanted any more. The file is
    flushed and not synced. Raises OSError, StorageFailed, and DamagedRecord at a row that cannot be read."""
    with store.read() as txn:
        applied = load_applied(txn)
        pending = bytearray()
        began = time.monotonic()
        for line in dump.lines(txn):
            pending += line
            if len(pending) >= _AT_ONCE_BYTES:
                file.write(pending)
                file.flush()
                pending.clear()
                if not is_wanted():
                    return None
                time.sleep(min(0.05, time.monotonic() - began))
                began = time.monotonic()
        file.write(pending)
        file.flush()
    return applied


def name(cluster_id: bytes, index: int) -> str:
    """Of a dump that is kept: names sort as the entries do."""
    return f"shoal-{cluster_id.hex()[:8]}-{index:020d}.jsonl"


def kept(directory: Path) -> list[Path]:
    """Finished dumps, the oldest first."""
    return sorted(directory.glob("shoal-*-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
