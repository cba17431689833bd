"""What a repair is worked out from, and what it becomes. Pure.

``View`` reads whole prefixes once, however many findings need them: names by inode, extents by chunk.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from shoalfs.mds import keys, records
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


class View:
    def __init__(self, txn: ReadTxn) -> None:
        self.txn = txn
        self._names: dict[InodeId, list[Name]] | None = None
        self._extents: dict[ChunkId, list[Extent]] | None = None

    def names(self, ino: InodeId) -> list[Name]:
        """All entries that lead to the inode."""
        if self._names is None:
            self._names = defaultdict(list)
            for key, value in self.txn.range(*keys.all_of(b"D")):
                entry = records.DENTRY.decode(key, value)
                self._names[entry.ino].append(Name(InodeId(keys.first_field(key)), keys.name_of(key), entry))
        return self._names.get(ino, [])

    def extents(self, chunk: ChunkId) -> list[Extent]:
        """All extents that use the chunk."""
        if self._extents is None:
            self._extents = defaultdict(list)
            for key, value in self.txn.range(*keys.all_of(b"X")):
                extent = records.EXTENT.decode(key, value)
                self._extents[extent.chunk].append(extent)
        return self._extents.get(chunk, [])

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
