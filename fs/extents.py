"""ExtentMap: the extents of one file as far as this mount knows them. Pure.

A map may be partial: it remembers for which offsets it knows the answer, extent or hole, and says which it
lacks. All that it knows is of one version of the file; `fs/contents.py` sees to that.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from shoalfs.fs.ranges import RangeMap
from shoalfs.mds.messages import Extent
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX


class Hole(NamedTuple):
    """No extent here: zeros, below the file's size."""

    offset_bytes: int
    end_bytes: int


Span: TypeAlias = Extent | Hole


def cut(extent: Extent, start: int, end: int) -> Extent:
    """The part of ``extent`` that lies in [start, end) of the file."""
    assert extent.offset_bytes <= start < end <= extent.end_bytes, (extent, start, end)
    if start == extent.offset_bytes and end == extent.end_bytes:
        return extent
    return Extent(
        offset_bytes=start,
        length_bytes=end - start,
        chunk=extent.chunk,
        chunk_offset_bytes=extent.chunk_offset_bytes + start - extent.offset_bytes,
        chunk_bytes=extent.chunk_bytes,
        chunk_hash=extent.chunk_hash,
        fragments=extent.fragments,
    )


def first_data(found: bytes | Iterable[Span], start: int) -> int | None:
    """The first offset from ``start`` on where something is stored. ``found``: inline bytes from there on, or what a
    range that begins there consists of."""
    if isinstance(found, bytes):
        return start if found else None
    return next((span.offset_bytes for span in found if isinstance(span, Extent)), None)


def first_hole(found: bytes | Iterable[Span], start: int, end: int) -> int | None:
    """Likewise, where nothing is stored before ``end``."""
    if isinstance(found, bytes):
        return start + len(found) if start + len(found) < end else None
    return next((span.offset_bytes for span in found if isinstance(span, Hole)), None)


class ExtentMap:
    """Invariant: every extent lies within a known range."""

    def __init__(self) -> None:
        self._extents: RangeMap[Extent] = RangeMap()
        self._known: RangeMap[None] = RangeMap()

    def __len__(self) -> int:
        return len(self._extents)

    def overlay(self, extent: Extent) -> None:
        """A newer extent over what was there; its range is known from now on."""
        self._extents.set(extent.offset_bytes, extent.end_bytes, extent)
        self.know(extent.offset_bytes, extent.end_bytes)

    def know(self, start: int, end: int) -> None:
        """From now on what no extent covers in [start, end) is a hole."""
        for gap in self._known.gaps(start, end):
            self._known.set(*gap, None)

    def unknown(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that have to be fetched before they can be looked up."""
        return self._known.gaps(start, end)

    def covering(self, start: int, end: int) -> Extent | None:
        """The one extent that is known to have all of [start, end), or had it before others were laid over its other
        parts; None: ask :meth:`lookup`."""
        return self._extents.covering(start, end)

    def lookup(self, offset_bytes: int, length_bytes: int) -> list[Span]:
        """What [offset, offset + length) consists of, in order and without gaps. All of it must be known."""
        start, end = offset_bytes, offset_bytes + length_bytes
        assert not self._known.gaps(start, end), (start, end)
        spans: list[Span] = []
        for piece in self._extents.pieces(start, end):
            if start < piece.start:
                spans.append(Hole(start, piece.start))
            spans.append(cut(piece.value, piece.start, piece.end))
            start = piece.end
        if start < end:
            spans.append(Hole(start, end))
        return spans

    def truncate(self, size_bytes: int) -> None:
        """The file ended at ``size_bytes`` for a moment: nothing but holes from there on."""
        self._extents.clear(size_bytes, FILE_SIZE_BYTES_MAX)
        self.know(size_bytes, FILE_SIZE_BYTES_MAX)

    def forget(self) -> None:
        """Know nothing any more."""
        self._extents = RangeMap()
        self._known = RangeMap()
