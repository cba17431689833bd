"""What is told of repair: what is missing, and targets that have no room for what they lack."""

from harness.metadata import Metadata
from shoalfs.mds import keys
from shoalfs.mds import messages as m
from shoalfs.mds.map_index import MapIndex
from shoalfs.mds.repairs import Repairs
from shoalfs.transport.errors import ChunkMissing, TargetFull
from shoalfs.transport.limits import COPY_RETRY_MS_MAX, COPY_RETRY_MS_MIN, LACK_CERTAIN_MS


class Leader:
    def __init__(self, targets=2, lacking=1):
        self.md = Metadata()
        self.md.add_targets(targets)
        self.ino = self.md.create(b"f").ino
        self.md.write(self.ino, 0, 100)
        self.index = MapIndex(self.md.map())
        self.repairs = Repairs(1 << 30)
        self.now_ms = 10 * LACK_CERTAIN_MS
        if lacking:
            self.hear(target=lacking, inventory_through=keys.U64_MAX)

    def hear(self, target=1, used_bytes=1000, **fields):
        report = m.TargetReport(target, 1, 1 << 40, used_bytes, 0, map_epoch=self.index.epoch, **fields)
        with self.md.store.read() as txn:
            self.repairs.heard(txn, self.index, report, self.now_ms)

    def order(self):
        self.now_ms += LACK_CERTAIN_MS
        with self.md.store.read() as txn:
            (order,) = self.repairs.orders(txn, self.index, 1, self.now_ms, lambda _: True)
        return order.chunk

    def full(self):
        return self.repairs.status(self.index, self.now_ms, lambda _: True).full_targets


def test_a_target_is_full_until_its_next_copy_is_made():
    leader = Leader()
    assert leader.full() == ()
    chunk = leader.order()
    leader.hear(not_copied=(m.CopyFailed(chunk, 0, TargetFull.code),))
    assert leader.full() == (1,)
    leader.now_ms += COPY_RETRY_MS_MIN
    leader.order()
    assert leader.full() == (1,), "it is tried again, and was not heard of yet"
    leader.hear(copied=(chunk,))
    assert leader.full() == ()


def test_what_had_no_room_is_tried_as_soon_as_something_was_deleted():
    leader = Leader()
    for _ in range(5):  # the pause doubles each time
        chunk = leader.order()
        leader.hear(not_copied=(m.CopyFailed(chunk, 0, TargetFull.code),))
        leader.now_ms += COPY_RETRY_MS_MAX
    chunk = leader.order()
    leader.hear(not_copied=(m.CopyFailed(chunk, 0, TargetFull.code),))
    leader.hear()
    assert leader.full() == (1,)
    leader.hear(used_bytes=999)
    assert leader.full() == ()
    assert leader.order() == chunk


def test_other_faults_do_not_make_it_full():
    leader = Leader()
    chunk = leader.order()
    leader.hear(not_copied=(m.CopyFailed(chunk, 0, ChunkMissing.code),))
    assert leader.full() == ()
    leader.now_ms += COPY_RETRY_MS_MIN
    leader.order()
    leader.hear(not_copied=(m.CopyFailed(chunk, 2, TargetFull.code),))
    assert leader.full() == (), "a source that is full can be read"


def test_what_a_target_lacks_that_does_not_answer_is_not_being_made():
    leader = Leader()
    leader.now_ms += LACK_CERTAIN_MS
    both = leader.repairs.status(leader.index, leader.now_ms, lambda _: True)
    assert (both.missing_chunks, both.missing_bytes, both.last_copies, both.lost_chunks) == (1, 100, 1, 0)
    assert both.eta_s is None, "nothing was copied lately"
    away = leader.repairs.status(leader.index, leader.now_ms, lambda target: target != 1)
    assert (away.missing_chunks, away.missing_bytes, away.last_copies, away.eta_s) == (0, 0, 1, 0)
    other = leader.repairs.status(leader.index, leader.now_ms, lambda target: target != 2)
    assert (other.missing_chunks, other.lost_chunks) == (1, 1), "the good copy is out of reach"


def test_copies_of_moves_are_told_apart():
    """Two targets have the chunk, as many as should, and the third is to have it in the place of one that leaves."""
    leader = Leader(targets=3, lacking=0)
    group = next(g for g in leader.index.map.groups if g.id == 1)
    (third,) = {1, 2, 3} - set(group.targets)
    leader.md.do(m.ChangeGroup(1, group.epoch, (third, group.targets[1])), session=0)
    leader.index = MapIndex(leader.md.map())
    leader.hear(target=third, inventory_through=keys.U64_MAX)
    leader.now_ms += LACK_CERTAIN_MS
    found = leader.repairs.status(leader.index, leader.now_ms, lambda _: True)
    assert (found.missing_chunks, found.moving_chunks, found.last_copies) == (1, 1, 0)
    found = leader.repairs.status(leader.index, leader.now_ms, lambda target: target != group.targets[0])
    assert (found.missing_chunks, found.moving_chunks, found.last_copies) == (1, 0, 1), "who leaves is gone"
