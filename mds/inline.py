"""The inline bytes of small files: one row ``L`` per file, never empty, never longer than the file's size.

Where the row ends before the file's size, the rest reads as zeros (the file was made longer by truncation).
"""

import msgspec

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.ids import InodeId


def load(txn: ReadTxn, ino: InodeId) -> bytes:
    """The inline bytes; empty if there are none."""
    return txn.get(keys.inline(ino)) or b""


def store(txn: Txn, ino: InodeId, before: bytes, after: bytes) -> None:
    """Replace the inline bytes ``before`` by ``after`` (empty: remove the row), and count."""
    if after == before:
        return
    if after:
        txn.put(keys.inline(ino), after)
    else:
        txn.delete(keys.inline(ino))
    counters = inodes.load_counters(txn)
    counters = msgspec.structs.replace(
        counters,
        inline_files=counters.inline_files + bool(after) - bool(before),
        inline_bytes=counters.inline_bytes + len(after) - len(before),
    )
    inodes.store_counters(txn, counters)
