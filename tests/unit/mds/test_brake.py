"""The brake on mass deletion: when it is pulled, what it stops, what a release means."""

import msgspec
import pytest

from harness.metadata import Metadata
from shoalfs.mds import brake, keys, reads
from shoalfs.mds import extents as extent_rows
from shoalfs.mds import messages as m
from shoalfs.mds.heartbeats import Heartbeats
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.targets import TargetTable
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import TargetId, chunk_id
from shoalfs.transport.limits import BRAKE_CHUNKS_MIN

STORED = 300_000  # chunks, on each of two of the three targets


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets(3)
    return md


def report(md, number, chunks, **fields):
    (target,) = [t for t in md.map().targets if t.id == number]
    return m.TargetReport(target.id, target.epoch, 1 << 40, 0, chunks, **fields)


def heard(md, chunks=STORED * 2 // 3):
    table = TargetTable()
    for number in (1, 2, 3):
        table.report(report(md, number, chunks), 0)
    return table


def make_garbage(md, first, count, since_ns, *, merged=False):
    with md.store.write() as txn:
        extent_rows.add_garbage(txn, [chunk_id(1, first + i) for i in range(count)], since_ns, merged=merged)


def reason(md, table):
    return md.read(lambda txn, _: brake.reason_to_hold(txn, MapIndex(md.map()), table), None)


def upkeep(md, **fields):
    return md.do(m.Upkeep(**fields), session=0)


def test_a_usual_share_goes(md):
    make_garbage(md, 1, STORED * 5 // 100 - 1, 5)
    assert reason(md, heard(md)) == ""


def test_an_unusual_share_is_held(md):
    make_garbage(md, 1, STORED * 5 // 100 + 1, 5)
    assert "would be deleted at once" in reason(md, heard(md))


def test_what_was_merged_does_not_count(md):
    """Files that grow by a line at a time leave more garbage than they hold chunks."""
    make_garbage(md, 1, STORED, 5, merged=True)
    assert reason(md, heard(md)) == ""
    make_garbage(md, STORED + 1, STORED * 5 // 100 - 1, 6)
    assert reason(md, heard(md)) == ""
    room = md.read(lambda txn, _: brake.room(txn, MapIndex(md.map()), heard(md)), None)
    assert room == 1
    make_garbage(md, 2 * STORED, 2, 7)
    assert "would be deleted at once" in reason(md, heard(md))


def test_few_chunks_go_whatever_their_share(md):
    make_garbage(md, 1, BRAKE_CHUNKS_MIN, 5)
    assert reason(md, heard(md, chunks=0)) == ""


def test_the_share_can_be_set(md):
    make_garbage(md, 1, STORED * 6 // 100, 5)
    upkeep(md, brake_percent=10)
    assert reason(md, heard(md)) == ""
    upkeep(md, brake_percent=1)
    assert reason(md, heard(md))
    upkeep(md, brake_percent=100)
    assert reason(md, heard(md, chunks=0)) == ""
    with pytest.raises(BadMessage):
        upkeep(md, brake_percent=0)


def test_what_was_released_does_not_count_again_and_what_comes_later_does(md):
    make_garbage(md, 1, STORED // 10, md.now_ns)
    assert reason(md, heard(md))
    upkeep(md, deletions_held=True, held_reason="why")
    held = upkeep(md, deletions_held=False, deletions_released_ns=m.NOW)
    assert (held.deletions_held, held.held_reason, held.deletions_released_ns) == (False, "", md.now_ns)
    assert reason(md, heard(md)) == ""
    make_garbage(md, STORED, STORED // 10, md.now_ns + 1)
    assert reason(md, heard(md))


def test_nothing_is_judged_before_all_targets_were_heard(md):
    table = TargetTable()
    index = MapIndex(md.map())
    table.report(report(md, 1, 5), 0)
    assert not brake.all_heard(index, table)
    assert brake.all_heard(index, heard(md))
    for number in (2, 3):
        md.do(m.SetTargetState(TargetId(number), m.TargetState.DOWN), session=0)
    assert brake.all_heard(MapIndex(md.map()), table)


def test_while_it_is_held_nothing_is_ordered_and_nothing_unknown_becomes_garbage(md):
    state = LeaderState(SessionTable(20_000))
    with md.store.read() as txn:
        state.lead(txn, 1, 0)
    beats = Heartbeats(state, lambda: 0)
    stray = md.chunk()
    ino = md.create(b"file").ino
    md.write(ino, 0, 10)
    (gone,) = md.read(reads.get_extents, m.GetExtents(ino, 0, 10))[0].extents
    md.write(ino, 0, 10)  # the first chunk is garbage
    md.do(m.EndSession(md.session), session=0)  # what it reserved and did not commit can never be used
    group = next(g for g in md.map().groups if g.id == 1)

    def orders():
        state.garbage.add([gone.chunk], md.map())
        target = group.targets[0]
        inventory = {"inventory": (stray,), "inventory_through": keys.U64_MAX, "inventory_hashes": b"h" * 16}
        request = m.Heartbeat("node", (report(md, target, 1, **inventory),))
        with md.store.read() as txn:
            return beats.heartbeat(txn, request).orders[0].delete

    upkeep(md, deletions_held=True)
    assert orders() == ()
    assert not state.strays
    upkeep(md, deletions_held=False, deletions_released_ns=m.NOW)
    assert orders() == (gone.chunk,)
    assert stray in state.strays


def test_an_older_release_reads_what_is_stored_now():
    old = msgspec.msgpack.encode((True, 5))
    assert msgspec.msgpack.decode(old, type=m.Upkeep) == m.Upkeep(True, 5)
