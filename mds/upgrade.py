"""Brings a metadata store of an older release up to the present format, once, when it is opened.

Format 1 to 2: inodes count their extents (``Inode.extents``). A store that was never upgraded has none that were cut
off (row ``C``), because no older program cuts without removing.

In steps, each one transaction; the format is noted with the last. A crash in between leaves a store of format 1, some
of whose inodes know their extents already: the next start counts again. What comes out depends on nothing but the
store, so the nodes of a group stay the same, whenever each of them is upgraded. An older program refuses format 2.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final, Protocol

import msgspec

from shoalfs.mds import keys, records
from shoalfs.mds.machine import FORMAT_VERSION
from shoalfs.mds.messages import Inode, Storage
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.ids import InodeId

log = logging.getLogger("shoal.mds.upgrade")

_INODES_PER_STEP: Final = 1_000
_WITHOUT_COUNTS: Final = 1


class Upgradable(Protocol):
    """What is needed of a store."""

    def read(self) -> AbstractContextManager[ReadTxn]: ...

    def write(self) -> AbstractContextManager[Txn]: ...


def upgrade(store: Upgradable) -> None:
    """Does nothing with a store that is empty, up to date, or of a format that this program does not know. Raises
    DamagedRecord at a record that cannot be read: repair it with the release that wrote it."""
    with store.read() as txn:
        made = records.FORMAT.load(txn, keys.FORMAT)
    if made is None or made.version != _WITHOUT_COUNTS:
        return
    log.warning("the metadata store has format %d: it is brought to format %d", made.version, FORMAT_VERSION)
    after = 0
    while True:
        with store.write() as txn:
            step = list(islice(_inodes(txn, after), _INODES_PER_STEP))
            for inode in step:
                if inode.storage is Storage.EXTENTS:
                    counted = sum(1 for _ in txn.range(*keys.under(b"X", inode.ino)))
                    records.INODE.store(txn, keys.inode(inode.ino), msgspec.structs.replace(inode, extents=counted))
            if len(step) < _INODES_PER_STEP:
                records.FORMAT.store(txn, keys.FORMAT, msgspec.structs.replace(made, version=FORMAT_VERSION))
                return
            after = step[-1].ino


def _inodes(txn: ReadTxn, after: int) -> Iterator[Inode]:
    for key, value in txn.range(keys.inode(InodeId(after + 1)), keys.all_of(b"I")[1]):
        yield records.INODE.decode(key, value)
