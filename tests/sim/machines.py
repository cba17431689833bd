"""State machines for the simulated members: a list of entries, and the real one over a store in memory.

What a crash leaves of one is an ``Image``: as of the last checkpoint after a power loss, all of it after a kill.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash
from sortedcontainers import SortedDict

from shoalfs.mds.machine import Layout, Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore, MemoryTxn
from shoalfs.mds.messages import Pool
from shoalfs.mds.raft_members import Members
from shoalfs.mds.txn import Txn
from shoalfs.transport.ids import NodeId, PoolId
from sim.checks import Promises

LoggedEntry = tuple[int, int, bytes]
"""(index, term, entry), as state machines get them."""


@dataclass(frozen=True)
class Image:
    """A whole state: what a snapshot carries, or what a crash leaves."""

    index: int
    term: int
    content: Any


class SimulatedMachine(Protocol):
    """A StateMachine that can be crashed."""

    @property
    def applied_index(self) -> int: ...
    @property
    def members(self) -> Members | None: ...
    def apply(self, entries: Sequence[LoggedEntry], members: Members | None = None) -> list[Any]: ...
    def durable_index(self) -> int: ...
    def make_checkpoint(self) -> None: ...
    def image(self, *, durable: bool) -> Image: ...
    def digest(self) -> object: ...


class ListMachine:
    """The list of what was applied. Its checkpoint is always a few entries behind."""

    def __init__(self, promises: Promises, node: NodeId, image: Image | None) -> None:
        self._promises, self._node = promises, node
        self.applied: list[LoggedEntry] = list(image.content) if image else []
        self._checkpoint = len(self.applied)

    @property
    def applied_index(self) -> int:
        return len(self.applied)

    @property
    def members(self) -> Members | None:
        return self._promises.members_at(len(self.applied))

    def apply(self, entries: Sequence[LoggedEntry], members: Members | None = None) -> list[Any]:
        self._promises.applies(self._node, self.applied_index, entries, members)
        self.applied += entries
        return [None] * len(entries)

    def durable_index(self) -> int:
        return self._checkpoint

    def make_checkpoint(self) -> None:
        self._checkpoint = max(self._checkpoint, len(self.applied) - 5)

    def image(self, *, durable: bool) -> Image:
        content = self.applied[: self._checkpoint] if durable else list(self.applied)
        return Image(len(content), content[-1][1] if content else 0, content)

    def digest(self) -> object:
        return self.applied


class CheckpointStore(MemoryStore):
    """The store in memory, with a copy that counts as being on disk, and a digest of all rows that costs no pass over
    them."""

    def __init__(self, rows: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__()
        if rows is not None:
            self.rows = SortedDict(rows)
        self.digest = 0
        for key, value in self.rows.items():
            self.digest ^= _row(key, value)
        self.on_disk = Image(0, 0, dict(self.rows))

    @contextmanager
    def write(self) -> Iterator[Txn]:
        with super().write() as txn:
            yield txn
        assert isinstance(txn, MemoryTxn)
        for key, old in txn._undo.items():
            new = self.rows.get(key)
            self.digest ^= (0 if old is None else _row(key, old)) ^ (0 if new is None else _row(key, new))

    def durable_applied(self) -> int:
        return self.on_disk.index


def _row(key: bytes, value: bytes) -> int:
    return xxhash.xxh3_64_intdigest(b"%d:" % len(key) + key + value)


def fresh_store(founders: Members) -> CheckpointStore:
    store = CheckpointStore()
    format_store(store, b"simulated-group!", [Pool(PoolId(1), "only", 1, 1)], Layout(), members=founders)
    return CheckpointStore(store.rows)


class StoreMachine:
    """The metadata service's own state machine. A checkpoint is on disk when the next one begins."""

    def __init__(self, promises: Promises, node: NodeId, image: Image | None) -> None:
        self._promises, self._node = promises, node
        if image is None:
            self.store = fresh_store(promises.founders)
        else:
            self.store = CheckpointStore(image.content)
            self.store.on_disk = image
        self._machine = Machine(self.store, OnDamage.STOP)
        self._term = self.store.on_disk.term
        self._begun = self.store.on_disk

    @property
    def applied_index(self) -> int:
        return self._machine.applied_index

    @property
    def members(self) -> Members | None:
        return self._machine.members

    def apply(self, entries: Sequence[LoggedEntry], members: Members | None = None) -> list[Any]:
        self._promises.applies(self._node, self.applied_index, entries, members)
        outcomes = self._machine.apply(entries, members)
        self._term = entries[-1][1]
        self._promises.state_is(self._node, self.applied_index, self.store.digest)
        return outcomes

    def durable_index(self) -> int:
        return self.store.durable_applied()

    def make_checkpoint(self) -> None:
        self.store.on_disk = self._begun
        self._begun = self.image(durable=False)

    def image(self, *, durable: bool) -> Image:
        return self.store.on_disk if durable else Image(self.applied_index, self._term, dict(self.store.rows))

    def digest(self) -> object:
        return self.store.digest
