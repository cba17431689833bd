"""Putting what a reader gets together: from memory, from chunks, zeros where there is nothing. Pure."""

from collections.abc import Iterable, Iterator

from shoalfs.fs.extents import Span
from shoalfs.fs.ports import Buffer
from shoalfs.mds.messages import Extent
from shoalfs.transport.errors import ShoalError


def extents_of(spans: Iterable[Span]) -> list[Extent]:
    """What of these is no hole."""
    return [span for span in spans if isinstance(span, Extent)]


def place(extents: Iterable[Extent], read: Iterable[list[memoryview] | ShoalError]) -> Iterator[tuple[int, Buffer]]:
    """What was read of the extents, each piece with its offset in the file."""
    for extent, views in zip(extents, read, strict=True):
        assert not isinstance(views, ShoalError)
        offset = extent.offset_bytes
        for view in views:
            yield offset, view
            offset += len(view)


def gaps_in(pieces: Iterable[tuple[int, Buffer]], start: int, end: int) -> list[tuple[int, int]]:
    """What ``pieces``, in order, leave of [start, end)."""
    gaps: list[tuple[int, int]] = []
    for offset, data in pieces:
        if start < offset:
            gaps.append((start, offset))
        start = offset + len(data)
    if start < end:
        gaps.append((start, end))
    return gaps


def join(start: int, end: int, pieces: list[tuple[int, Buffer]]) -> Buffer:
    """The pieces in their places, zeros between them. No copy if one piece is all."""
    if len(pieces) == 1 and pieces[0][0] == start and len(pieces[0][1]) == end - start:
        return pieces[0][1]
    whole = bytearray(end - start)
    for offset, data in pieces:
        whole[offset - start : offset - start + len(data)] = data
    return whole
