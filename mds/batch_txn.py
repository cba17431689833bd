"""The transaction that a batch of entries is applied in: rows are read once, and written once, at the end. Pure.

Commands that come together touch the same few rows: the directory in which thousands of files are made, the counters,
the session. Each sees what those before it have done, in memory and decoded; the store below gets the last version.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from shoalfs.mds.txn import Txn

ROWS_MAX: Final = 65_536  # kept in memory at a time, about 30 MB; then they are written, and forgotten

_ABSENT: Final = object()
_UNKNOWN: Final = object()


class BatchTxn:
    """A Txn over another one. :meth:`flush` must be called before that is committed.

    Invariants: of a key in ``decoded``, that record is its present value, whatever ``_rows`` holds; a key of
    ``_unsaved`` is in ``decoded`` or in ``_rows``.
    """

    def __init__(self, below: Txn) -> None:
        self._below = below
        self._rows: dict[bytes, Any] = {}  # bytes, or _ABSENT
        self.decoded: dict[bytes, Any] = {}
        self._unsaved: dict[bytes, Callable[[Any], bytes] | None] = {}  # how a decoded record is encoded
        self.writes = 0  # proves that refused operations made none

    def get(self, key: bytes) -> bytes | None:
        value = self._rows.get(key, _UNKNOWN)
        encode = self._unsaved.get(key)
        if encode is not None and key in self.decoded:
            return encode(self.decoded[key])
        if value is _UNKNOWN:
            found = self._below.get(key)
            self._rows[key] = _ABSENT if found is None else found
            return found
        return None if value is _ABSENT else value

    def range(self, first: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._save()
        return self._below.range(first, end, reverse=reverse)

    def put(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self.decoded.pop(key, None)
        self._rows[key] = value
        self._unsaved[key] = None

    def put_record(self, key: bytes, record: Any, encode: Callable[[Any], bytes]) -> None:
        self.writes += 1
        self.decoded[key] = record
        self._unsaved[key] = encode

    def delete(self, key: bytes) -> bool:
        self.writes += 1
        found = key in self.decoded or self.get(key) is not None
        self.decoded.pop(key, None)
        self._rows[key] = _ABSENT
        self._unsaved[key] = None
        return found

    def between_commands(self) -> None:
        """A good moment to keep the bound: nobody iterates."""
        if len(self._rows) + len(self.decoded) > ROWS_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what is not written, and forget everything."""
        self._save()
        self._rows.clear()
        self.decoded.clear()

    def _save(self) -> None:
        below = self._below
        for key, encode in self._unsaved.items():
            if encode is not None:
                self._rows[key] = encode(self.decoded[key])
            value = self._rows[key]
            if value is _ABSENT:
                below.delete(key)
            else:
                below.put(key, value)
        self._unsaved.clear()
