"""The pure parts of the data path against a bytearray: ranges, extents, dirty bytes, units, the block
cache."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoalfs.fs.block_cache import BlockCache, Run
from shoalfs.fs.dirty import Dirty
from shoalfs.fs.extents import ExtentMap, Hole
from shoalfs.fs.ranges import RangeMap
from shoalfs.fs.readahead import Readahead
from shoalfs.fs.units import Backlog, Stored, Unit
from shoalfs.mds.messages import Extent
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import (
    BLOCK_BYTES,
    DIRTY_RUN_COST_BYTES,
    READAHEAD_BYTES_MAX,
    UNITS_EXTENTS_MAX,
)

SIZE = 200
spans = st.tuples(st.integers(0, SIZE), st.integers(1, 60)).map(lambda s: (s[0], min(SIZE, s[0] + s[1])))
spans = spans.filter(lambda s: s[0] < s[1])


@given(st.lists(st.tuples(spans, st.integers(1, 255) | st.none())), spans)
def test_range_map_is_the_array_it_stands_for(changes, window) -> None:
    ranges: RangeMap[int] = RangeMap()
    model = bytearray(SIZE)
    for (start, end), value in changes:
        if value is None:
            ranges.clear(start, end)
        else:
            ranges.set(start, end, value)
        model[start:end] = bytes([value or 0]) * (end - start)
    shown = bytearray(SIZE)
    last = 0
    for piece in ranges.pieces(0, SIZE):
        assert last <= piece.start < piece.end
        last = piece.end
        shown[piece.start : piece.end] = bytes([piece.value]) * (piece.end - piece.start)
    assert shown == model
    gaps = ranges.gaps(*window)
    missing = {offset for start, end in gaps for offset in range(start, end)}
    assert missing == {offset for offset in range(*window) if not model[offset]}
    inside = [p for p in ranges.pieces(0, SIZE) if p.start <= window[0] and window[1] <= p.end]
    assert ranges.covering(*window) == (inside[0].value if inside else None)
    assert ranges.end == max((offset + 1 for offset in range(SIZE) if model[offset]), default=0)


def extent(start: int, end: int, chunk: int) -> Extent:
    return Extent(start, end - start, ChunkId(chunk), 1000 + start, 5000, b"h" * 16)


@given(st.lists(st.one_of(spans, st.integers(0, SIZE)), max_size=30), spans)
def test_extent_map_is_the_array_of_chunk_bytes_it_stands_for(changes, window) -> None:
    extents = ExtentMap()
    extents.know(0, SIZE)
    model: list[tuple[int, int] | None] = [None] * SIZE
    for number, change in enumerate(changes, 1):
        if isinstance(change, int):
            extents.truncate(change)
            model[change:] = [None] * (SIZE - change)
        else:
            extents.overlay(extent(*change, number))
            model[change[0] : change[1]] = [(number, 1000 + offset) for offset in range(*change)]
    shown: list[tuple[int, int] | None] = []
    for span in extents.lookup(window[0], window[1] - window[0]):
        assert span.offset_bytes == window[0] + len(shown)
        for index in range(span.end_bytes - span.offset_bytes):
            shown.append(None if isinstance(span, Hole) else (int(span.chunk), span.chunk_offset_bytes + index))
    assert shown == model[slice(*window)]
    one = extents.covering(*window)
    if one is not None:
        shift = one.chunk_offset_bytes - one.offset_bytes
        assert [(int(one.chunk), shift + offset) for offset in range(*window)] == shown
    else:
        assert len({place and place[0] for place in shown}) > 1 or None in shown or len(changes) > 1


@given(st.lists(spans), spans)
def test_extent_map_says_what_it_does_not_know(pages, window) -> None:
    extents = ExtentMap()
    for start, end in pages:
        extents.know(start, end)
    known = {offset for page in pages for offset in range(*page)}
    unknown = {offset for start, end in extents.unknown(*window) for offset in range(start, end)}
    assert unknown == set(range(*window)) - known


def test_a_hundred_thousand_extents_are_looked_up_at_once() -> None:
    extents = ExtentMap()
    extents.know(0, 1 << 40)
    for number in range(100_000):
        extents.overlay(extent(2 * number, 2 * number + 1, number + 1))
    assert len(extents) == 100_000
    assert extents.lookup(99_999, 3) == [
        Hole(99_999, 100_000), extent(100_000, 100_001, 50_001), Hole(100_001, 100_002)
    ]  # fmt: skip


def by_offset(pieces) -> dict[int, int]:
    return {offset: value for start, data in pieces for offset, value in enumerate(data, start)}


WINDOW = 64
KINDS = ["write"] * 4 + ["take_all"] * 2 + ["take_full", "drop", "drop", "truncate"]
changes_of_a_file = st.tuples(st.sampled_from(KINDS), st.integers(0, SIZE), st.integers(1, 90))


@pytest.mark.parametrize("large_bytes", [16, 1 << 16], ids=["large writes are kept", "all is copied"])
@given(st.lists(changes_of_a_file, min_size=5, max_size=40))
@settings(max_examples=200)
def test_dirty_bytes_and_backlog_show_the_last_write_of_each_byte(large_bytes, steps) -> None:
    with patch("shoalfs.fs.dirty._LARGE_BYTES", large_bytes):
        check_steps(steps)


def check_steps(steps) -> None:
    dirty, backlog = Dirty(WINDOW), Backlog()
    model: dict[int, int] = {}  # what is neither committed nor cut off
    committed: dict[int, int] = {}
    for number, (kind, at, length) in enumerate(steps, 1):
        if kind == "write":
            dirty.write(at, bytes([number]) * length)
            model.update(dict.fromkeys(range(at, at + length), number))
        elif kind == "truncate":
            dirty.truncate(at)
            backlog.truncate(at)
            model = {offset: value for offset, value in model.items() if offset < at}
            committed = {offset: value for offset, value in committed.items() if offset < at}
        elif kind == "drop":
            units = backlog.units[: length % 4]  # committed in order, a prefix
            for unit in units:
                for part in unit.parts:
                    committed.update(enumerate(part.data, part.offset_bytes))
            backlog.drop(units)
        else:
            before = by_offset(dirty.read(0, 2 * SIZE))
            units = getattr(dirty, kind)()
            after = by_offset((part.offset_bytes, part.data) for unit in units for part in unit.parts)
            assert before.items() >= after.items()
            assert kind == "take_full" or (before == after and not dirty)
            assert all(unit.payload_bytes <= WINDOW for unit in units)
            for unit in units:
                backlog.add(unit)
        shown = dict(committed)
        for layer in (backlog, dirty):
            for start, view in layer.read(0, 2 * SIZE):
                shown.update(enumerate(view, start))
        assert shown == {**committed, **model}
        assert all(shown[offset] == value for offset, value in model.items())
        runs = list(dirty.read(0, 2 * SIZE))
        counts: dict[int, int] = {}
        for start, view in runs:
            counts[start // WINDOW] = counts.get(start // WINDOW, 0) + len(view)
            assert start // WINDOW == (start + len(view) - 1) // WINDOW
        assert dirty.full == {window for window, count in counts.items() if count == WINDOW}
        assert dirty.cost_bytes == sum(counts.values()) + len(runs) * DIRTY_RUN_COST_BYTES
        assert dirty.end_bytes == max((start + len(view) for start, view in runs), default=0)
        assert backlog.cost_bytes == sum(unit.cost_bytes for unit in backlog.units)


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, 20)), min_size=1), st.integers(0, 250))
def test_a_unit_links_each_of_its_bytes_to_where_the_payload_has_it(written, cut) -> None:
    dirty = Dirty(WINDOW)
    model = bytearray(300)
    for number, (at, length) in enumerate(written, 1):
        dirty.write(at, bytes([number]) * length)
        model[at : at + length] = bytes([number]) * length
    shown = bytearray(300)
    for unit in dirty.take_all():
        unit.truncate(cut)
        unit.stored = Stored(ChunkId(7), b"h" * 16, ())
        payload = b"".join(unit.payload)
        assert len(payload) == unit.payload_bytes
        for e in unit.extents(shift_bytes=3):
            assert e.chunk_offset_bytes + e.length_bytes <= e.chunk_bytes == len(payload)
            piece = payload[e.chunk_offset_bytes : e.chunk_offset_bytes + e.length_bytes]
            shown[e.offset_bytes - 3 : e.end_bytes - 3] = piece
    assert shown[:cut] == model[:cut]
    assert not any(shown[cut:])


def test_packing_closes_a_unit_at_its_bound_of_extents_and_joins_neighbours() -> None:
    dirty = Dirty(1 << 20)
    for number in range(2 * UNITS_EXTENTS_MAX + 1):
        dirty.write(10 * number, b"x")
    units = dirty.take_all()
    assert [len(unit.parts) for unit in units] == [UNITS_EXTENTS_MAX, UNITS_EXTENTS_MAX, 1]
    for start in (50, 0):  # written backwards: two runs that touch
        dirty.write(start, b"y" * 50)
    (unit,) = dirty.take_all()
    unit.stored = Stored(ChunkId(7), b"h" * 16, ())
    assert [(e.offset_bytes, e.length_bytes) for e in unit.extents()] == [(0, 100)]


def test_small_sequential_writes_lengthen_one_run() -> None:
    dirty = Dirty(1 << 20)
    for at in range(1000):
        dirty.write(at, b"z")
    assert dirty.cost_bytes == 1000 + DIRTY_RUN_COST_BYTES
    assert Unit(list(dirty.read(0, 1000))).payload_bytes == 1000


runs = st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(1, 3))


@given(st.lists(st.tuples(runs, st.tuples(st.integers(1, 3), st.integers(0, 9)))))
def test_block_cache_is_right_and_bounded(steps) -> None:
    def block_bytes(chunk: int, block: int) -> bytes:
        return bytes([chunk * 16 + block]) * BLOCK_BYTES

    cache = BlockCache(5 * BLOCK_BYTES)
    for (chunk, first, count), (asked, block) in steps:
        data = b"".join(block_bytes(chunk, first + index) for index in range(count))
        cache.put(Run(ChunkId(chunk), first, memoryview(data)))
        assert all((ChunkId(chunk), first + index) in cache for index in range(count))
        assert cache.size_bytes <= cache.limit_bytes
        found = cache.get(ChunkId(asked), block)
        assert found is None or found == block_bytes(asked, block)


def test_readahead_doubles_for_a_scan_and_stops_for_jumps() -> None:
    readahead, asked, step = Readahead(), 0, 1 << 17
    requests = 0
    for at in range(0, 256 << 20, step):
        ahead = readahead.advance(at, step)
        if ahead is not None:
            start, end = ahead
            assert start == max(asked, at + step), "nothing is asked for twice or left out"
            asked, requests = end, requests + 1
        assert asked <= at + step + READAHEAD_BYTES_MAX
    assert asked >= (256 << 20) + READAHEAD_BYTES_MAX // 4
    assert requests < 60
    assert [readahead.advance(at << 30, step) for at in (9, 3, 7, 5)] == [None] * 4


@given(st.permutations(range(8)))
def test_readahead_takes_reads_that_arrive_in_another_order_for_a_scan(order) -> None:
    readahead = Readahead()
    readahead.advance(0, 1 << 16)
    found = [readahead.advance((1 + index) << 16, 1 << 16) for index in order]
    assert any(found)


def test_a_large_write_is_not_copied_until_some_of_it_is_written_again() -> None:
    dirty, mine = Dirty(1 << 20), bytes(100_000)
    dirty.write(0, mine)
    assert [part.obj for _, part in dirty.read(0, 10)] == [mine]
    assert next(iter(dirty.read(0, 10)))[1].obj is mine
    dirty.write(5, b"x")
    assert bytes(next(iter(dirty.read(0, 10)))[1]) == b"\0" * 5 + b"x" + b"\0" * 4
    assert mine == bytes(100_000)


def test_a_large_write_of_what_may_change_is_copied() -> None:
    dirty, theirs = Dirty(1 << 20), bytearray(100_000)
    dirty.write(0, theirs)
    theirs[0] = 1
    assert bytes(next(iter(dirty.read(0, 1)))[1]) == b"\0"
