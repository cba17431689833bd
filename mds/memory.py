"""The store in memory: a sorted dictionary with transactions. For tests and for reading the code without
LMDB. Pure.

Rows are sealed as in the real store, so damage shows here too. The one rule: who reads keeps what it saw; a
writer copies the rows first when somebody reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sortedcontainers import SortedDict

from shoalfs.mds.seal import seal, unseal
from shoalfs.mds.txn import ReadTxn, Txn


class MemoryTxn:
    """A transaction over the rows; changes are undone from ``undo`` (key -> stored value before, or None)."""

    decoded: Final = None

    def __init__(self, rows: SortedDict) -> None:
        self._rows = rows
        self._undo: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        stored = self._rows.get(key)
        return None if stored is None else unseal(key, stored)

    def range(self, first: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for key in self._rows.irange(first, end, inclusive=(True, False), reverse=reverse):
            yield key, unseal(key, self._rows[key])

    def put(self, key: bytes, value: bytes) -> None:
        self._undo.setdefault(key, self._rows.get(key))
        self._rows[key] = seal(key, value)

    def put_record(self, key: bytes, record: Any, encode: Callable[[Any], bytes]) -> None:
        self.put(key, encode(record))

    def delete(self, key: bytes) -> bool:
        stored = self._rows.pop(key, None)
        if stored is None:
            return False
        self._undo.setdefault(key, stored)
        return True

    def abort(self) -> None:
        for key, stored in self._undo.items():
            if stored is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = stored


class MemoryStore:
    """All rows in one dictionary; nothing survives the process."""

    def __init__(self) -> None:
        self.rows = SortedDict()  # key -> sealed value; tests damage it
        self._readers = 0
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        assert not self._writing, "this store shows a reader no committed state while somebody writes"
        self._readers += 1
        try:
            yield MemoryTxn(self.rows)
        finally:
            self._readers -= 1

    @contextmanager
    def write(self) -> Iterator[Txn]:
        assert not self._writing, "one writer at a time"
        if self._readers:
            self.rows = SortedDict(self.rows)
        self._writing = True
        txn = MemoryTxn(self.rows)
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        finally:
            self._writing = False

    def durable_applied(self) -> int:
        """Nothing is durable here: a log would have to be kept from its first entry."""
        return 0
