"""Which pieces of a file are to become one: few, and each byte stored again seldom."""

import math
from collections import Counter

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from shoalfs.fs import merging
from shoalfs.fs.extents import Hole
from shoalfs.fs.merger import Merger
from shoalfs.mds.messages import Extent
from shoalfs.transport.errors import LayoutConflict, PeerUnreachable
from shoalfs.transport.limits import MERGED_BYTES_MAX, MERGED_EXTENTS_MAX, MERGES_QUEUED_MAX


def spans(*lengths, start=0):
    """Neighbours of these lengths; a negative one is a hole."""
    found = []
    for number, length in enumerate(lengths):
        end = start + abs(length)
        found.append(Hole(start, end) if length < 0 else Extent(start, length, number, 0, length, b"h" * 16))
        start = end
    return found


def chosen(*lengths, **options):
    return [extent.length_bytes for extent in merging.choose(spans(*lengths), **options)]


def test_equal_ones_from_sixteen_on():
    assert chosen(*[35] * 15) == []
    assert chosen(*[35] * 16) == [35] * 16
    assert chosen(*[35] * 20) == [35] * 20


def test_one_that_is_larger_than_all_others_together_is_left_alone():
    assert chosen(561, *[35] * 16) == [35] * 16
    assert chosen(560, *[35] * 16) == [560, *[35] * 16]


def test_a_large_one_behind_them_does_not_hide_them():
    assert chosen(*[35] * 20, 100_000) == [35] * 20


def test_only_neighbours():
    assert chosen(*[35] * 10, -1, *[35] * 10) == []
    assert chosen(*[35] * 16, -1, *[35] * 10) == [35] * 16, "the last ones that are enough"
    assert chosen(*[35] * 16, -1, *[36] * 16) == [36] * 16


def test_what_is_large_separates():
    assert chosen(*[35] * 10, MERGED_BYTES_MAX // 2 + 1, *[35] * 10) == []
    assert chosen(*[MERGED_BYTES_MAX // 16] * 40) == [MERGED_BYTES_MAX // 16] * 16


def test_so_many_at_a_time():
    assert len(chosen(*[1] * 2 * MERGED_EXTENTS_MAX)) == MERGED_EXTENTS_MAX


def test_nothing_of_nothing():
    assert chosen() == chosen(-100) == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-50, 300).filter(bool), max_size=80), st.integers(20, 2000))
def test_what_is_chosen_is_worth_it(lengths, limit_bytes):
    everything = spans(*lengths)
    run = merging.choose(everything, limit_bytes)
    if not run:
        return
    first = everything.index(run[0])
    assert list(run) == everything[first : first + len(run)], "they are neighbours"
    sizes = [extent.length_bytes for extent in run]
    assert len(run) >= merging.PIECES_MIN
    assert 2 * max(sizes) <= sum(sizes) <= limit_bytes


@pytest.mark.parametrize("each", [1, 35, 4096])
def test_a_log_of_lines(each):
    """n appends leave log2(n) pieces and some, and each byte is stored again log2(n) times at most."""
    sizes, stored = [], 0
    count = 4000
    for number in range(1, count + 1):
        sizes.append(each)
        if number % merging.PIECES_MIN == 0:
            run = chosen(*sizes)
            if run:
                del sizes[-len(run) :]
                sizes.append(sum(run))
                stored += sum(run)
    full = count * each // (MERGED_BYTES_MAX // 2)
    assert len(sizes) <= full + merging.PIECES_MIN + math.log2(count)
    assert stored <= count * each * math.log2(count)


# --- in the background -----------------------------------------------------------------------------------------------


class File:
    def __init__(self, *results):
        self.ino = 7
        self.results = list(results)
        self.asked = []

    async def merge(self, start, end):
        await trio.lowlevel.checkpoint()
        self.asked.append((start, end))
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def test_one_after_the_other_and_a_failure_is_counted(nursery):
    counters = Counter()
    merger = Merger(counters)
    file = File(16, LayoutConflict(), 0)
    for at in range(3):
        merger.ask(file, at, at + 1)
    nursery.start_soon(merger.run)
    await trio.testing.wait_all_tasks_blocked()
    assert file.asked == [(0, 1), (1, 2), (2, 3)]
    assert (counters["merges"], counters["pieces_merged"], counters["merges_failed"]) == (1, 16, 1)


async def test_what_was_in_vain_is_tried_again_a_few_times(nursery, autojump_clock):
    counters = Counter()
    merger = Merger(counters)
    busy, other = File(*[LayoutConflict()] * 3, 16), File(PeerUnreachable())
    nursery.start_soon(merger.run)
    merger.ask(busy, 0, 9)
    merger.ask(other, 0, 9)
    await trio.sleep(0.5)
    merger.ask(busy, 5, 6)  # it will be looked at anyway
    await trio.sleep(100)
    assert busy.asked == [(0, 9)] * 4
    assert len(other.asked) == 1
    never = File(*[LayoutConflict()] * 100)
    merger.ask(never, 0, 9)
    await trio.sleep(1000)
    assert len(never.asked) == 7


def test_what_cannot_be_queued_is_dropped():
    counters = Counter()
    merger = Merger(counters)
    for _ in range(MERGES_QUEUED_MAX + 2):
        merger.ask(File(), 0, 1)
    assert counters["merges_dropped"] == 2
