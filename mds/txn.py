"""The Txn port: the ordered key-value transaction that operations are written against.

Operations know only this interface, so the same code runs over LMDB under Raft, over a dictionary in tests, and one
day over an external transactional store. Keys and values are bytes; keys are at most 511 bytes, values at most 64 KiB
plus a record's header. The limits are LMDB's; an implementation asserts them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol


class ReadTxn(Protocol):
    """A consistent view of the store."""

    @property
    def decoded(self) -> dict[bytes, Any] | None:
        """Records by key, as they are at present, if this transaction keeps any. For shoalfs.mds.records.Codec only."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Raises DamagedRecord if it does not match its checksum."""

    def range(self, first: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with first <= key < end, in key order (or from the last one down).

        Raises DamagedRecord at the pair that does not match. The caller must not write while it iterates.
        """


class Txn(ReadTxn, Protocol):
    """A view that can be changed; all of it becomes visible and durable at once, or nothing."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def put_record(self, key: bytes, record: Any, encode: Callable[[Any], bytes]) -> None:
        """Put ``encode(record)``, now or when it is needed."""

    def delete(self, key: bytes) -> bool:
        """Remove the key. False if it was not there."""
