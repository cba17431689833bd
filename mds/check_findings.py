"""What a check has found so far, and reading rows so that a damaged one is a finding and not the end.
Pure."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Final, TypeVar

from shoalfs.mds.messages import Finding
from shoalfs.mds.records import Codec
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import DamagedRecord
from shoalfs.transport.ids import InodeId
from shoalfs.transport.method import Message

T = TypeVar("T", bound=Message)

FINDINGS_MAX: Final = 1_000  # in one reply: at most 450 KiB, with their keys
TICK_ROWS: Final = 400  # a check stops after so many rows, for whoever drives it to do something else

NewFile = Callable[[], AbstractContextManager[IO[bytes]]]
"""An empty scratch file, for reading and writing, that is gone after its block."""
_TEXT_CHARACTERS_MAX: Final = 160


class Findings:
    """At most FINDINGS_MAX findings; further ones are counted in a last one."""

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._damaged_keys: set[bytes] = set()
        self._left_off = 0
        self.damaged = 0  # how often a damaged record was met

    @property
    def are_many(self) -> bool:
        """There is room for those of a few hundred rows yet."""
        return len(self._found) >= FINDINGS_MAX // 2

    def take(self) -> tuple[Finding, ...]:
        """What was found since the last call."""
        found, self._found = self._found, []
        left_off, self._left_off = self._left_off, 0
        if left_off:
            found.append(Finding("more-findings", InodeId(0), f"{left_off} more were found and are not listed"))
        return tuple(found)

    def add(self, kind: str, ino: InodeId, text: str, key: bytes = b"") -> None:
        """``key``: the row, where the inode does not say it all."""
        if len(self._found) >= FINDINGS_MAX:
            self._left_off += 1
        else:
            self._found.append(Finding(kind, ino, text[:_TEXT_CHARACTERS_MAX], key))

    def add_damage(self, error: DamagedRecord, ino: InodeId) -> None:
        """Each record once, however often it is met."""
        self.damaged += 1
        if error.key not in self._damaged_keys:
            self._damaged_keys.add(error.key)
            self.add("damaged-record", ino, str(error), error.key)

    def rows(self, txn: ReadTxn, first: bytes, end: bytes, ino: InodeId | None = None) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a range that can be read. A damaged one is reported for the inode in its key, or for
        ``ino``."""
        while True:
            try:
                yield from txn.range(first, end)
            except DamagedRecord as error:
                damaged = error.key
                assert first <= damaged < end, damaged
                self.add_damage(error, InodeId(int.from_bytes(damaged[1:9], "big")) if ino is None else ino)
                first = damaged + b"\0"
            else:
                return

    def get(self, txn: ReadTxn, key: bytes, ino: InodeId) -> bytes | None:
        """The value; None if it is not there or is damaged."""
        try:
            return txn.get(key)
        except DamagedRecord as error:
            self.add_damage(error, ino)
            return None

    def decoded(self, codec: Codec[T], key: bytes, value: bytes, ino: InodeId) -> T | None:
        """The record; None if it does not decode."""
        try:
            return codec.decode(key, value)
        except DamagedRecord as error:
            self.add_damage(error, ino)
            return None

    def load(self, codec: Codec[T], txn: ReadTxn, key: bytes, ino: InodeId) -> T | None:
        """The record; None if it is not there or is damaged."""
        value = self.get(txn, key, ino)
        return None if value is None else self.decoded(codec, key, value, ino)
