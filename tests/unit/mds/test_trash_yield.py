"""When a pool is nearly full, removed files go before their time: which, how many, and when not."""

import logging

import pytest

from harness.metadata import ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads, trash_list
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.rounds import Clock, Rounds
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.trash_yield import Tally, nearly_full
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import BRAKE_CHUNKS_MIN, TRASH_YIELD_MS

CAPACITY = 100_000
HOUR_MS = 3_600_000


class Desk:
    """Metadata with three targets, and the leader's decision about the trash."""

    def __init__(self):
        self.md = Metadata()
        self.md.add_targets()
        self.md.do(m.Upkeep(trash_retention_ms=HOUR_MS), session=0)
        self.state = LeaderState(SessionTable(20_000))
        with self.md.store.read() as txn:
            self.state.lead(txn, 1, 0)
        self.now_ms = 0
        clock = Clock(lambda: self.now_ms, lambda: self.md.now_ns)
        self.rounds = Rounds(self.md.store, self.state, clock, grace_ms=1, out_ms=1)

    def fill(self, *percents, chunks=100):
        for target, percent in zip(self.md.map().targets, percents, strict=True):
            report = m.TargetReport(target.id, target.epoch, CAPACITY, CAPACITY * percent // 100, chunks)
            self.state.targets.report(report, self.now_ms)

    def removed(self, name, size_bytes):
        ino = self.md.create(name).ino
        if size_bytes:
            self.md.write(ino, 0, size_bytes)
        self.md.do(m.Unlink(ROOT, ROOT_INODE, name))
        return ino

    def round(self):
        """One look, TRASH_YIELD_MS after the last. Returns what is said."""
        self.now_ms += TRASH_YIELD_MS
        said = []
        steps = self.rounds.yield_trash()
        proposal = next(steps, None)
        while proposal is not None:
            said.append((proposal.level, proposal.text))
            for request in proposal.requests:
                self.md.do(request, session=0)
            proposal = next(steps, None)
        return said

    def kept(self):
        return [item.name for item in self.md.read(trash_list.list_trash, m.ListTrash()).items]


@pytest.fixture
def desk():
    return Desk()


def test_nothing_goes_while_there_is_room(desk):
    desk.removed(b"old", 5000)
    desk.fill(94, 94, 94)
    assert desk.round() == []
    assert desk.kept() == [b"old"]


def test_a_pool_is_nearly_full_when_no_group_has_room_on_all_its_targets(desk):
    index = MapIndex(desk.md.map())
    desk.fill(97, 50, 50)
    assert nearly_full(index, desk.state.targets) == (), "groups of the two others take new chunks"
    desk.fill(97, 96, 50)
    assert [full.percent for full in nearly_full(index, desk.state.targets)] == [96]


def test_the_oldest_go_first_and_no_more_than_is_needed(desk):
    for name in (b"first", b"second", b"third", b"fourth"):
        desk.removed(name, 3000)
    desk.fill(96, 96, 96)  # 3 percent of three targets are 9,000 bytes: two files with two copies each
    ((level, text),) = desk.round()
    assert level == logging.WARNING
    assert text.startswith("targets are 96 % full: the 2 oldest removed files with chunks")
    assert desk.kept() == [b"third", b"fourth"]
    assert desk.md.findings() == []


def test_what_waits_for_its_deletion_counts_as_gone(desk):
    for name in (b"first", b"second"):
        desk.removed(name, 3000)
    busy = desk.md.create(b"busy").ino
    for _ in range(11):
        desk.md.write(busy, 0, 10)  # ten chunks become garbage
    desk.fill(96, 96, 96, chunks=10)  # a copy has 9,600 bytes on the mean: more than enough
    assert desk.round() == []
    assert desk.kept() == [b"first", b"second"]


def test_what_merging_left_does_not_count_as_gone(desk):
    """A log that grows by a line at a time leaves thousands of small chunks, which free next to nothing."""
    for name in (b"first", b"second"):
        desk.removed(name, 3000)
    log = desk.md.create(b"log").ino
    for end in range(10, 120, 10):
        pieces = tuple(desk.md.extent(desk.md.chunk(), at, 5) for at in (end - 10, end - 5))
        desk.md.commit(log, *pieces)
        merged = desk.md.extent(desk.md.chunk(), end - 10, 10)
        desk.md.do(m.MergeExtents(log, pieces, merged, desk.md.receipts(merged.chunk)))
    counts = desk.md.read(lambda txn, _: reads.counts(txn), None)
    assert counts.merged_garbage == counts.garbage_chunks == 22
    desk.fill(96, 96, 96, chunks=60)
    assert len(desk.round()) == 1
    assert desk.kept() == []


def test_what_takes_no_chunks_stays(desk):
    desk.removed(b"small", 0)
    desk.removed(b"large", 3000)
    desk.fill(96, 96, 96)
    assert len(desk.round()) == 1
    assert desk.kept() == [b"small"]


def test_nothing_goes_while_deletion_is_held(desk):
    desk.removed(b"old", 5000)
    desk.fill(99, 99, 99)
    desk.md.do(m.Upkeep(deletions_held=True, held_reason="restored"), session=0)
    assert desk.round() == []
    assert desk.kept() == [b"old"]
    desk.md.do(m.Upkeep(deletions_held=False), session=0)
    assert len(desk.round()) == 1


def test_nothing_goes_before_every_target_was_heard(desk):
    desk.removed(b"old", 5000)
    for target in desk.md.map().targets[:2]:
        desk.state.targets.report(m.TargetReport(target.id, target.epoch, CAPACITY, CAPACITY, 1), 0)
    assert desk.round() == []


def test_it_cannot_pull_the_brake(desk, monkeypatch):
    desk.removed(b"many chunks", 5000)
    desk.removed(b"few chunks", 5000)
    monkeypatch.setattr("shoalfs.mds.brake.BRAKE_CHUNKS_MIN", 1)
    desk.fill(99, 99, 99, chunks=0)  # half of one chunk may go: none
    assert desk.round() == []
    monkeypatch.setattr("shoalfs.mds.brake.BRAKE_CHUNKS_MIN", 2)
    assert len(desk.round()) == 1
    assert desk.kept() == [b"few chunks"], "one chunk is half of what the brake allows"
    assert BRAKE_CHUNKS_MIN > 2


def test_the_tally_goes_by_pieces_and_begins_again_when_files_come_or_go(desk):
    for i in range(5):
        desk.removed(b"file %d" % i, 1000 + i)
    tally = Tally()

    def look(now_ms=0, count=2):
        with desk.md.store.read() as txn:
            tally.look(txn, now_ms, count, 60_000)
        return tally.total_bytes

    assert [look() for _ in range(3)] == [None, None, 5010]
    assert look() == 5010
    desk.removed(b"more", 90)
    assert [look() for _ in range(3)] == [5010, 5010, 5100]
    with desk.md.store.read() as txn:
        inos = tuple(item.inode.ino for item in trash_list.list_trash(txn, m.ListTrash()).items)
    desk.md.do(m.PurgeTrash(inos), session=0)
    assert look() == 0


def test_the_tally_sees_open_files_grow_after_a_while(desk):
    ino = desk.removed(b"open", 1000)
    tally = Tally()
    with desk.md.store.read() as txn:
        tally.look(txn, 0, 10, 60_000)
    desk.md.write(ino, 1000, 500)
    for now_ms, expected in ((59_999, 1000), (60_000, 1500)):
        with desk.md.store.read() as txn:
            tally.look(txn, now_ms, 10, 60_000)
        assert tally.total_bytes == expected
    assert desk.md.read(lambda txn, _: reads.counts(txn), None).trashed == 1
