"""What a repair is worked out from, and what it becomes. Pure.

Names are kept by directory and wanted by inode, extents by file and wanted by chunk, and counters are of everything. So
``View`` says first what it lacks (:class:`Unread`) and then reads it for all who want something at once: the time is a
pass through all rows, the memory that of what is wanted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from shoalfs.mds import check_totals, keys, records
from shoalfs.mds.check_findings import TICK_ROWS, Findings
from shoalfs.mds.messages import Extent, Inode
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.ids import ChunkId, InodeId


@dataclass(slots=True)
class Change:
    """``text``: what is done, or why nothing is. ``seen`` are rows as they were; every changed row is among them."""

    text: str
    seen: dict[bytes, bytes | None] = field(default_factory=dict)
    put: dict[bytes, bytes] = field(default_factory=dict)
    delete: list[bytes] = field(default_factory=list)
    nameless: list[InodeId] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def is_repair(self) -> bool:
        return bool(self.put or self.delete or self.nameless or self.counters)


def unrepaired(why: str) -> Change:
    return Change(why)


def gone() -> Change:
    """What was found is not so any more."""
    return Change("it is gone: check again")


class Name(NamedTuple):
    parent: InodeId
    name: bytes
    entry: records.Dentry


class Unread(Exception):
    """:meth:`View.read` has to be run, then the same question will be answered."""


class View:
    """Of one transaction."""

    def __init__(self, txn: ReadTxn) -> None:
        self.txn = txn
        self._names: dict[InodeId, list[Name]] = {}
        self._extents: dict[ChunkId, list[Extent]] = {}
        self._counted: Counter[str] | None = None
        self._inodes_wanted: set[InodeId] = set()
        self._chunks_wanted: set[ChunkId] = set()
        self._counting_wanted = False

    def names(self, ino: InodeId) -> list[Name]:
        """All entries that lead to the inode. Raises Unread."""
        if ino not in self._names:
            self._inodes_wanted.add(ino)
            raise Unread
        return self._names[ino]

    def extents(self, chunk: ChunkId) -> list[Extent]:
        """All extents that use the chunk. Raises Unread."""
        if chunk not in self._extents:
            self._chunks_wanted.add(chunk)
            raise Unread
        return self._extents[chunk]

    def counted(self) -> Counter[str]:
        """What the counters should be. Raises Unread."""
        if self._counted is None:
            self._counting_wanted = True
            raise Unread
        return self._counted

    def read(self) -> Iterator[None]:
        """Read what is wanted; stops now and then. Raises DamagedRecord."""
        if self._inodes_wanted:
            self._names |= {ino: [] for ino in self._inodes_wanted}
            for number, (key, value) in enumerate(self.txn.range(*keys.all_of(b"D")), 1):
                entry = records.DENTRY.decode(key, value)
                if entry.ino in self._inodes_wanted:
                    self._names[entry.ino].append(Name(InodeId(keys.first_field(key)), keys.name_of(key), entry))
                if number % TICK_ROWS == 0:
                    yield
        if self._chunks_wanted:
            self._extents |= {chunk: [] for chunk in self._chunks_wanted}
            for number, (key, value) in enumerate(self.txn.range(*keys.all_of(b"X")), 1):
                extent = records.EXTENT.decode(key, value)
                if extent.chunk in self._chunks_wanted:
                    self._extents[extent.chunk].append(extent)
                if number % TICK_ROWS == 0:
                    yield
        if self._counting_wanted:
            self._counted = yield from check_totals.counted(self.txn, Findings())
        self._inodes_wanted.clear()
        self._chunks_wanted.clear()
        self._counting_wanted = False

    def inode(self, ino: InodeId) -> Inode | None:
        return records.INODE.load(self.txn, keys.inode(ino)) if 0 < ino <= keys.U64_MAX else None

    # --- making a change --------------------------------------------------------------------------------------------

    def put(self, change: Change, key: bytes, value: bytes) -> None:
        change.seen[key] = self.txn.get(key)
        change.put[key] = value

    def drop(self, change: Change, key: bytes) -> None:
        value = self.txn.get(key)
        if value is not None:
            change.seen[key] = value
            change.delete.append(key)

    def see(self, change: Change, key: bytes) -> None:
        change.seen[key] = self.txn.get(key)

    def set_inode(self, text: str, inode: Inode, **fields: object) -> Change:
        """The inode with other fields; versions move, so that nobody keeps the old ones."""
        change = Change(text)
        new = msgspec.structs.replace(inode, version=inode.version + 1, data_version=inode.data_version + 1, **fields)
        self.put(change, keys.inode(inode.ino), records.INODE.encode(new))
        return change
