"""Which pieces of a file are to become one. Pure.

A program that appends a line and syncs it, again and again, leaves a chunk for each line: 8 KiB on each of its targets,
a row in the metadata, a request when it is read. So neighbours are merged, as the runs of a log-structured tree are
(O'Neil et al., The log-structured merge-tree, 1996): only those of about equal size, so that a byte is stored again
once for each doubling and not once for each append, and of n bytes written one by one there are about log2(n) pieces.
"""

from collections.abc import Iterable, Iterator, Sequence

from shoalfs.fs.extents import Span
from shoalfs.mds.messages import Extent
from shoalfs.transport.limits import MERGED_BYTES_MAX, MERGED_EXTENTS_MAX

PIECES_MIN = 16  # fewer are left as they are


def choose(spans: Iterable[Span], limit_bytes: int = MERGED_BYTES_MAX) -> Sequence[Extent]:
    """The last neighbours in ``spans`` that are worth it: PIECES_MIN or more, together at most ``limit_bytes``, none of
    them with more bytes than the others have together. Empty if there are none."""
    for run in reversed(list(_runs(spans, limit_bytes // 2))):
        for end in range(len(run), PIECES_MIN - 1, -1):
            count = _worth(run, end, limit_bytes)
            if count >= PIECES_MIN:
                return run[end - count : end]
    return ()


def _worth(run: Sequence[Extent], end: int, limit_bytes: int) -> int:
    """How many before ``end`` may become one; none if there is always one that is too large beside the others."""
    best = total_bytes = largest_bytes = 0
    for count in range(1, min(end, MERGED_EXTENTS_MAX) + 1):
        length_bytes = run[end - count].length_bytes
        total_bytes += length_bytes
        if total_bytes > limit_bytes:
            break
        largest_bytes = max(largest_bytes, length_bytes)
        if 2 * largest_bytes <= total_bytes:
            best = count
    return best


def _runs(spans: Iterable[Span], piece_bytes_max: int) -> Iterator[list[Extent]]:
    """Neighbours, none of which has more than so many bytes."""
    run: list[Extent] = []
    for span in spans:
        if isinstance(span, Extent) and span.length_bytes <= piece_bytes_max:
            run.append(span)
        elif run:
            yield run
            run = []
    if run:
        yield run
