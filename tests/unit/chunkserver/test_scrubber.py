"""Scrubbing: every chunk is read once a round, what is damaged is reported, rounds come when they should."""

import itertools
from contextlib import asynccontextmanager

import pytest
import trio

from chunkserver_support import SEGMENTS, content
from shoalfs.chunkserver.directory import ScrubFile
from shoalfs.chunkserver.scrubber import Scrubber, bytes_per_s, is_due
from shoalfs.chunkserver.target import open_target
from shoalfs.mds.messages import ScrubOrder
from shoalfs.transport.limits import MIB

HOUR_MS = 3_600_000
HOUR_NS = HOUR_MS * 1_000_000


@pytest.mark.parametrize(
    ("state", "order", "now_ns", "due"),
    [
        (ScrubFile(), ScrubOrder(HOUR_MS, 0, 1), 2 * HOUR_NS, True),
        (ScrubFile(began_ns=HOUR_NS), ScrubOrder(HOUR_MS, 0, 1), 2 * HOUR_NS - 1, False),
        (ScrubFile(began_ns=HOUR_NS), ScrubOrder(HOUR_MS, 0, 1), 2 * HOUR_NS, True),
        (ScrubFile(began_ns=HOUR_NS, is_running=True), ScrubOrder(HOUR_MS, 0, 1), 9 * HOUR_NS, False),
        (ScrubFile(began_ns=HOUR_NS, is_running=True), ScrubOrder(HOUR_MS, 5, 1), HOUR_NS, True),
        (ScrubFile(began_ns=HOUR_NS, requested_ns=5), ScrubOrder(HOUR_MS, 5, 1), HOUR_NS, False),
    ],
)
def test_when_a_round_is_due(state, order, now_ns, due):
    assert is_due(order, state, now_ns) is due


def test_a_round_takes_the_period_unless_somebody_waits_for_it():
    order = ScrubOrder(period_ms=1_000_000, requested_ns=0, bytes_per_s=500)
    assert bytes_per_s(order, ScrubFile(), 100_000) == 110
    assert bytes_per_s(order, ScrubFile(), 10_000_000) == 500, "never faster than ordered"
    assert bytes_per_s(order, ScrubFile(asked_for=True), 100_000) == 500
    assert bytes_per_s(order, ScrubFile(), 0) == 1


class World:
    def __init__(self, make_rig) -> None:
        self.rig = make_rig()
        self.order: ScrubOrder | None = None
        self.found: list[int] = []
        self.room = 100
        self.now_ns = HOUR_NS
        self.scrubber: Scrubber

    def note(self, chunk: int) -> bool:
        if len(self.found) < self.room:
            self.found.append(chunk)
        return chunk in self.found

    @asynccontextmanager
    async def running(self):
        async with open_target(self.rig.open) as target, trio.open_nursery() as nursery:
            self.scrubber = Scrubber(target, lambda: self.order, self.note, lambda: self.now_ns)
            nursery.start_soon(self.scrubber.run)
            yield target
            nursery.cancel_scope.cancel()

    async def until(self, condition) -> None:
        with trio.fail_after(600):
            while not condition():
                await trio.sleep(0.5)

    def fill(self, chunks: int) -> None:
        for chunk in range(1, chunks + 1):
            self.rig.put(chunk, content(chunk, 10_000))
        self.rig.store.close()

    def rot(self, *chunks: int) -> None:
        rows = dict(self.rig.rows())
        for chunk in chunks:
            row = rows[chunk]
            (name,) = [n for n in self.rig.segment_names() if n.startswith(f"{row.segment:08d}")]
            self.rig.flip(f"{SEGMENTS}/{name}", row.position_bytes + 4096 + 77)


@pytest.fixture
def world(make_rig):
    return World(make_rig)


FAST = ScrubOrder(HOUR_MS, 1, 100 * MIB)


async def test_damage_is_found_and_reported_and_nothing_else_is(world, patient_clock):
    for chunk in range(1, 200):
        world.rig.put(chunk, content(chunk, 10_000))
    world.rot(7, 131)
    world.rig.store.close()
    world.order = FAST
    async with world.running():
        await world.until(lambda: world.scrubber.report.finished_ns)
        report = world.scrubber.report
    assert world.found == [7, 131]
    assert (report.chunks, report.damaged, report.began_ns, report.requested_ns) == (199, 2, 0, 1)
    assert report.bytes == 197 * 10_000


async def test_without_an_order_nothing_is_read(world, patient_clock):
    world.fill(3)
    async with world.running():
        await trio.sleep(5)
        assert world.scrubber.report.chunks == 0


async def test_a_round_goes_on_after_a_restart(world, patient_clock):
    world.fill(150)
    world.order = ScrubOrder(HOUR_MS, 1, 200_000)  # twenty chunks a second
    async with world.running() as target:
        await world.until(lambda: world.scrubber.report.chunks >= 70)
        await target.write_scrub(world.scrubber._state)  # as it is done once a minute
        before = world.scrubber.report.chunks
    async with world.running():
        await world.until(lambda: world.scrubber.report.chunks)
        assert world.scrubber.report.chunks >= before
        await world.until(lambda: world.scrubber.report.finished_ns)
        assert world.scrubber.report.chunks == 150


async def test_a_request_begins_anew_and_goes_fast(world, patient_clock):
    world.fill(100)
    world.order = ScrubOrder(HOUR_MS, 0, 100 * MIB)  # an hour for all of it
    async with world.running():
        await world.until(lambda: world.scrubber.report.chunks >= 1)
        world.order = FAST
        await world.until(lambda: world.scrubber.report.finished_ns)
        assert world.scrubber.report.chunks == 100


async def test_damage_that_cannot_be_reported_yet_waits(world, patient_clock):
    for chunk in range(1, 20):
        world.rig.put(chunk, content(chunk, 10_000))
    world.rot(3, 4)
    world.rig.store.close()
    world.order, world.room = FAST, 1
    async with world.running():
        await world.until(lambda: world.found == [3])
        await trio.sleep(3)
        assert not world.scrubber.report.finished_ns
        world.room = 2
        await world.until(lambda: world.scrubber.report.finished_ns)
    assert world.found == [3, 4]


def test_how_far_it_is_survives_damage_to_its_file(make_rig):
    rig = make_rig()
    assert rig.store.read_scrub() == ScrubFile()
    rig.store.write_scrub(ScrubFile(after=9))
    assert rig.restart().read_scrub() == ScrubFile(after=9)
    rig.flip("/target/scrub.json", 3)
    assert rig.restart().read_scrub() == ScrubFile()


async def test_a_pause_that_is_over_while_it_is_looked_at(make_rig, monkeypatch):
    """Time goes on between two looks at the clock, by much if the machine is busy."""
    order = ScrubOrder(HOUR_MS, 0, MIB)
    rig = make_rig()
    rig.store.close()
    async with open_target(rig.open) as target:
        scrubber = Scrubber(target, lambda: order, lambda chunk: True, lambda: HOUR_NS)
        times = itertools.count(0.0, 1.2)
        monkeypatch.setattr(trio, "current_time", lambda: next(times))
        await scrubber._pause_until(1.0, order)
