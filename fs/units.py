"""Units: bytes of one file on their way from memory into a chunk and into the file's metadata. Pure.

A unit is the payload of one chunk together with the places of the file that point into it. Its bytes stay
readable, and are kept for another try, until the commit that links them has succeeded.

    taken from Dirty -> (stored: a quorum of targets gave receipts) -> committed: dropped from the backlog

The one rule: units are committed in the order in which they were taken, so what was written later lies on
top.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from shoalfs.fs.ports import Buffer
from shoalfs.fs.ranges import RangeMap
from shoalfs.mds.messages import Extent, Receipt
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import DIRTY_RUN_COST_BYTES, FILE_SIZE_BYTES_MAX


class Stored(NamedTuple):
    """A chunk that at least ``min_ack`` targets have taken. ``fragments``: as in its extents."""

    chunk: ChunkId
    chunk_hash: bytes
    receipts: tuple[Receipt, ...]
    fragments: bytes = b""

    @property
    def durable_receipts(self) -> int:
        return sum(receipt.durable for receipt in self.receipts)

    @property
    def holders(self) -> tuple[TargetId, ...]:
        return tuple(receipt.target for receipt in self.receipts)

    def is_current(self, epochs: Mapping[TargetId, int]) -> bool:
        """All receipts are of the targets' present lives. ``epochs``: as the cluster map has them."""
        return all(epochs.get(receipt.target) == receipt.target_epoch for receipt in self.receipts)


class Part(NamedTuple):
    """``data`` belongs at ``offset_bytes`` of the file and lies at ``payload_offset_bytes`` of the
    payload."""

    offset_bytes: int
    payload_offset_bytes: int
    data: memoryview

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + len(self.data)


class Unit:
    """``payload`` never changes; ``parts`` shrink when the file is truncated. ``stored`` is None until the
    chunk is on the targets, and again when their receipts have turned out to be worth nothing."""

    def __init__(self, runs: Iterable[tuple[int, Buffer]]) -> None:
        self.parts: list[Part] = []
        self.payload_bytes = 0
        for offset, data in runs:
            self.parts.append(Part(offset, self.payload_bytes, memoryview(data).cast("B").toreadonly()))
            self.payload_bytes += len(data)
        self.payload: Sequence[memoryview] = tuple(part.data for part in self.parts)
        self.cost_bytes = self.payload_bytes + len(self.parts) * DIRTY_RUN_COST_BYTES
        self.stored: Stored | None = None

    @property
    def offset_bytes(self) -> int:
        """Where the file has its first byte."""
        return self.parts[0].offset_bytes if self.parts else 0

    def truncate(self, size_bytes: int) -> None:
        self.parts = [
            Part(
                part.offset_bytes,
                part.payload_offset_bytes,
                part.data[: max(0, size_bytes - part.offset_bytes)],
            )
            for part in self.parts
            if part.offset_bytes < size_bytes
        ]

    def extents(self, *, shift_bytes: int = 0) -> list[Extent]:
        """What a commit has to link, neighbours joined, ``shift_bytes`` further on. The unit must be
        stored."""
        assert self.stored is not None
        spans: list[tuple[int, int, int]] = []
        for part in self.parts:
            start, within, length = part.offset_bytes + shift_bytes, part.payload_offset_bytes, len(part.data)
            if spans and spans[-1][0] + spans[-1][2] == start and spans[-1][1] + spans[-1][2] == within:
                start, within, length = spans[-1][0], spans[-1][1], spans[-1][2] + length
                spans.pop()
            spans.append((start, within, length))
        chunk = self.stored
        return [
            Extent(start, length, chunk.chunk, within, self.payload_bytes, chunk.chunk_hash, chunk.fragments)
            for start, within, length in spans
        ]


def syncs_needed(acknowledged: Collection[TargetId], min_ack: int) -> int:
    """On how many targets a chunk has to be synced that these acknowledged before. Fewer than ``min_ack`` acknowledged
    what was committed before the pool asked for more. A group may have moved since: who has it now is asked as well,
    and counts."""
    return max(1, min(min_ack, len(acknowledged)))


def give_up_refused(units: Iterable[Unit], epochs: Mapping[TargetId, int]) -> None:
    """A commit of these units was refused for its chunks: those that have to be stored again are as if never stored.
    That are those with a receipt of an old epoch; where none has one, something else is wrong with a chunk (an earlier
    commit happened and the chunk was overwritten since; it went to targets that are not its group's any more), and none
    is used again."""
    stored = [unit for unit in units if unit.stored is not None]
    stale = [unit for unit in stored if unit.stored is not None and not unit.stored.is_current(epochs)]
    for unit in stale or stored:
        unit.stored = None


class Backlog:
    """The units of one file that are taken and not committed, in order, and their bytes as a reader sees
    them."""

    def __init__(self) -> None:
        self._units: dict[Unit, None] = {}
        self._visible: RangeMap[tuple[Unit, Part]] = RangeMap()
        self.cost_bytes = 0  # Invariant: the sum of the units' costs

    def __bool__(self) -> bool:
        return bool(self._units)

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(self._units)

    @property
    def end_bytes(self) -> int:
        return self._visible.end

    def add(self, unit: Unit) -> None:
        """A unit that lies over all that are here."""
        self._units[unit] = None
        self.cost_bytes += unit.cost_bytes
        for part in unit.parts:
            self._visible.set(part.offset_bytes, part.end_bytes, (unit, part))

    def drop(self, units: Iterable[Unit]) -> None:
        """These are committed (or given up): what they show is found elsewhere now. Others stay on top of
        it."""
        for unit in units:
            if unit not in self._units:
                continue  # the file was lost meanwhile, and everything with it
            del self._units[unit]
            self.cost_bytes -= unit.cost_bytes
            for part in unit.parts:
                for piece in list(self._visible.pieces(part.offset_bytes, part.end_bytes)):
                    if piece.value[0] is unit:
                        self._visible.clear(piece.start, piece.end)

    def truncate(self, size_bytes: int) -> None:
        """Show nothing from ``size_bytes`` on. A unit may be left without parts; it stays until it is
        dropped."""
        self._visible.clear(size_bytes, FILE_SIZE_BYTES_MAX)
        for unit in self._units:
            unit.truncate(size_bytes)

    def read(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """The parts of [start, end) that are here, as (file offset, bytes), in order."""
        for piece in self._visible.pieces(start, end):
            part = piece.value[1]
            yield piece.start, part.data[piece.start - part.offset_bytes : piece.end - part.offset_bytes]
