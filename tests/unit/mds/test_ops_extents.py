"""How many extents a file has and may have, and what a command leaves for later. Histories of it:
tests/property/mds/test_extents_model.py."""

import errno
from contextlib import contextmanager

import msgspec
import pytest

from harness.metadata import ROOT, Metadata, bounded, command, contents
from shoalfs.mds import keys, machine, reads, records
from shoalfs.mds import messages as m
from shoalfs.mds.entry import encode_entry, is_bounded
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.machine import Machine, OnDamage
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.rounds import _TRIMS_PER_ROUND, Clock, Rounds
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.upgrade import _INODES_PER_STEP, upgrade
from shoalfs.transport.errors import PosixError, StorageFailed
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import EXTENT_ROWS_MAX, EXTENTS_PER_COMMIT_MAX, FILE_SIZE_BYTES_MAX, REAP_EXTENTS_MAX

HOLE = m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    yield md
    assert md.findings() == []


def inode_of(md, ino):
    return md.read(reads.getattr_, m.GetAttr(ino)).inode


def extents(md, ino):
    found = md.read(reads.get_extents, m.GetExtents(ino, 0, FILE_SIZE_BYTES_MAX, 1 << 20))[0].extents
    return [(e.offset_bytes, e.end_bytes) for e in found]


def rows(md, prefix):
    with md.store.read() as txn:
        return list(txn.range(*keys.all_of(prefix)))


def scattered(md, name, count):
    """A file with so many extents of one byte, at 0, 2, 4, ..."""
    ino = md.create(name).ino
    for first in range(0, count, EXTENTS_PER_COMMIT_MAX):
        chunk = md.chunk()
        last = min(first + EXTENTS_PER_COMMIT_MAX, count)
        md.commit(ino, *(md.extent(chunk, 2 * at, 1, chunk_bytes=1) for at in range(first, last)))
    return ino


def refused(md, call):
    with pytest.raises(PosixError) as raised:
        call()
    return raised.value.errno


# --- counting and joining ---------------------------------------------------------------------------------------------


def test_an_inode_counts_its_extents(md):
    ino = md.create(b"f").ino
    assert inode_of(md, ino).extents == 0
    md.write(ino, 0, 100)
    md.write(ino, 200, 100)
    md.do(m.Allocate(ino, 40, 10, HOLE))
    assert extents(md, ino) == [(0, 40), (50, 100), (200, 300)]
    assert inode_of(md, ino).extents == 3
    md.write(ino, 30, 180)
    assert extents(md, ino) == [(0, 30), (30, 210), (210, 300)]
    assert inode_of(md, ino).extents == 3


def test_neighbours_in_one_chunk_become_one_extent(md):
    ino, other = md.create(b"f").ino, md.create(b"g").ino
    chunk = md.chunk()
    pieces = [md.extent(chunk, at, 10, chunk_offset=at, chunk_bytes=100) for at in range(0, 100, 10)]
    md.commit(ino, *pieces[:5])
    md.commit(ino, *pieces[5:])
    assert extents(md, ino) == [(0, 100)]
    for at in range(0, 100, 20):
        md.do(m.CloneRange(ino, other, at, at, 20))
    assert extents(md, other) == [(0, 100)]
    md.commit(ino, *(md.extent(chunk, 200 + at, 10, chunk_offset=0, chunk_bytes=100) for at in (0, 10)))
    assert extents(md, ino) == [(0, 100), (200, 210), (210, 220)]


# --- the limit --------------------------------------------------------------------------------------------------------


def test_a_file_has_no_more_extents_than_it_may(md):
    ino = scattered(md, b"f", 4)
    source = scattered(md, b"g", 4)
    with bounded(EXTENT_ROWS_MAX, extents_max=5):
        md.write(ino, 100, 10)
        chunk = md.chunk()
        before = contents(md.store)
        assert refused(md, lambda: md.commit(ino, md.extent(chunk, 300, 10))) == errno.EFBIG
        assert refused(md, lambda: md.do(m.Allocate(ino, 102, 2, HOLE))) == errno.EFBIG
        assert refused(md, lambda: md.do(m.CloneRange(source, ino, 0, 50, 5))) == errno.EFBIG
        changed = {key[:1] for key, value in contents(md.store).items() if before.get(key) != value}
        assert changed <= {b"R", b"M"}, "a refusal changes nothing but its record"
        md.write(ino, 100, 10)
        md.write(ino, 0, 3)
        md.do(m.Allocate(ino, 0, 200, HOLE))
        md.commit(ino, md.extent(md.chunk(), 300, 10))
    assert inode_of(md, ino).extents == 1


def test_what_was_cut_off_makes_room_first(md):
    ino = scattered(md, b"f", 10)
    with bounded(2, extents_max=10):
        md.do(m.SetAttr(ROOT, ino, size_bytes=0))
        assert inode_of(md, ino).extents == 8
    with bounded(2, extents_max=6):
        answer = md.write(ino, 1000, 10)
        assert (answer.left, answer.inode.size_bytes, answer.inode.extents) == (1, 0, 6)
        assert md.do(m.Allocate(ino, 0, 10, HOLE)).left == 0
        while answer.left:
            answer = md.write(ino, 1000, 10)
    assert extents(md, ino) == [(1000, 1010)]


# --- what is left for later -------------------------------------------------------------------------------------------


def test_a_cut_is_seen_at_once_and_removed_a_piece_at_a_time(md):
    count = EXTENT_ROWS_MAX * 2 + 100
    ino = scattered(md, b"f", count)
    inode = md.do(m.SetAttr(ROOT, ino, size_bytes=21)).inode
    assert inode.size_bytes == 21
    assert len(extents(md, ino)) == 11
    assert len(rows(md, b"X")) == inode.extents == count - EXTENT_ROWS_MAX
    assert [key for key, _ in rows(md, b"C")] == [keys.cut_off(ino)]
    md.do(m.SetAttr(ROOT, ino, size_bytes=1 << 30))
    assert len(extents(md, ino)) == 11, "growing brings nothing back"
    steps = 1
    while not md.do(m.Trim(ino), session=0).done:
        steps += 1
    assert steps == 2
    inode = inode_of(md, ino)
    assert (inode.extents, inode.used_bytes, inode.cut_off_bytes) == (11, 11, m.NOT_CUT_OFF)
    assert (len(rows(md, b"X")), rows(md, b"C")) == (11, [])
    assert md.do(m.Trim(ino), session=0).done
    assert md.do(m.Trim(12345), session=0).done


def test_trimming_moves_no_times_and_no_data_version(md):
    ino = scattered(md, b"f", 10)
    with bounded(3):
        cut = md.do(m.SetAttr(ROOT, ino, size_bytes=1)).inode
        md.do(m.Trim(ino), session=0)
    inode = inode_of(md, ino)
    assert (inode.mtime_ns, inode.ctime_ns, inode.data_version) == (cut.mtime_ns, cut.ctime_ns, cut.data_version)
    assert inode.version > cut.version


def test_a_removed_file_takes_what_was_cut_off_with_it(md):
    ino = scattered(md, b"f", REAP_EXTENTS_MAX + 500)
    with bounded(10):
        md.do(m.SetAttr(ROOT, ino, size_bytes=400))
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    steps = 1
    while not md.do(m.Reap(ino), session=0).done:
        assert md.findings() == []
        steps += 1
    assert steps == 2
    assert rows(md, b"X") == rows(md, b"C") == rows(md, b"K") == []


def test_an_append_waits_for_room_and_is_never_divided(md):
    ino = scattered(md, b"f", 10)
    with bounded(2):
        md.do(m.SetAttr(ROOT, ino, size_bytes=0))
        steps = 0
        while (answer := md.write(ino, 0, 30, append=True)).left:
            assert (answer.left, answer.inode.size_bytes) == (1, 0)
            steps += 1
    assert steps == 3
    assert (extents(md, ino), answer.offset_bytes) == ([(0, 30)], 0)


def test_writing_over_many_ends_in_front_of_the_rest(md):
    ino = scattered(md, b"f", 10)
    with bounded(4):
        answer = md.write(ino, 0, 40)
        assert (answer.left, answer.left_from_bytes) == (1, 8)
        assert extents(md, ino) == [(0, 8), *((at, at + 1) for at in range(8, 20, 2))]
        assert answer.inode.size_bytes == 19


def test_entries_of_an_older_release_are_not_bounded(md):
    """Every node of a group makes the same of an entry, whichever release it ran when it applied it."""
    ino = scattered(md, b"f", 10)
    request = m.SetAttr(ROOT, ino, size_bytes=0)
    entry = encode_entry(md.now_ns + 1, [(md.session, command(request, slot=1, seq=1))])
    assert is_bounded(entry)
    with bounded(2, extents_max=3):
        (outcome,) = md.apply(b"\x01" + entry[1:])
        assert outcome.code == 0
        assert rows(md, b"X") == []


class Told:
    """In the place of the leases: whose attributes clients are told to ask for again."""

    def __init__(self):
        self.inodes = []

    def attributes_changed(self, ino):
        self.inodes.append(ino)


def one_round(md, rounds):
    """What the leader proposes about files that were cut, applied; how many commands."""
    steps, commands = rounds.trim_files(), 0
    proposal = next(steps, None)
    while proposal is not None:
        commands += len(proposal.requests)
        outcomes = md.entry([(0, command(request, seq=0)) for request in proposal.requests])
        try:
            proposal = steps.send(outcomes)
        except StopIteration:
            break
    return commands


def test_the_leader_removes_what_was_cut_off_a_bounded_number_of_commands_a_round(md):
    long, short, kept = (scattered(md, name, count) for name, count in ((b"long", 60), (b"short", 6), (b"kept", 6)))
    with bounded(2):
        for ino in (long, short):
            md.do(m.SetAttr(ROOT, ino, size_bytes=1))
        state = LeaderState(SessionTable(20_000))
        state.coherence = told = Told()
        rounds = Rounds(md.store, state, Clock(lambda: 0, lambda: md.now_ns), grace_ms=1, out_ms=1)
        assert one_round(md, rounds) == _TRIMS_PER_ROUND + 2
        assert told.inodes == [short]
        assert md.findings() == []
        while one_round(md, rounds):
            pass
    assert told.inodes == [short, long]
    assert [inode_of(md, ino).extents for ino in (long, short, kept)] == [1, 1, 6]
    assert rows(md, b"C") == []


# --- stores of an older release ---------------------------------------------------------------------------------------


def older(md, extra=0):
    """The same store as format 1 has it: inodes without the last two fields."""
    for number in range(extra):
        md.create(b"many-%d" % number)
    with md.store.write() as txn:
        for key, value in list(txn.range(*keys.all_of(b"I"))):
            fields = msgspec.msgpack.decode(value)
            txn.put(key, msgspec.msgpack.encode(fields[:-2]))
        made = records.FORMAT.require(txn, keys.FORMAT)
        records.FORMAT.store(txn, keys.FORMAT, msgspec.structs.replace(made, version=1))


def test_a_store_of_format_1_is_counted(md):
    ino = scattered(md, b"f", 5)
    expected = contents(md.store)
    older(md)
    with pytest.raises(StorageFailed, match="format 1"):
        Machine(md.store, OnDamage.STOP)
    upgrade(md.store)
    assert inode_of(md, ino).extents == 5
    Machine(md.store, OnDamage.STOP)
    with md.store.read() as txn:
        for key, value in expected.items():
            if key[:1] != b"I":
                assert txn.get(key) == value
            else:
                assert records.INODE.require(txn, key) == records.INODE.decode(key, value)
    after = contents(md.store)
    upgrade(md.store)
    assert contents(md.store) == after


def test_an_upgrade_that_was_interrupted_is_made_again(md):
    ino = scattered(md, b"f", 5)
    older(md, extra=_INODES_PER_STEP)

    class Stopped(Exception):
        pass

    class Stopping:
        """Stops after one step."""

        steps = 0
        read = staticmethod(md.store.read)

        @contextmanager
        def write(self):
            if self.steps:
                raise Stopped
            self.steps += 1
            with md.store.write() as txn:
                yield txn

    with pytest.raises(Stopped):
        upgrade(Stopping())
    with pytest.raises(StorageFailed, match="format 1"):
        Machine(md.store, OnDamage.STOP)
    upgrade(md.store)
    assert inode_of(md, ino).extents == 5


def test_what_is_empty_or_unknown_is_left_alone(monkeypatch):
    store = MemoryStore()
    upgrade(store)
    assert contents(store) == {}
    monkeypatch.setattr(machine, "FORMAT_VERSION", 3)
    newer = Metadata().store
    before = contents(newer)
    upgrade(newer)
    assert contents(newer) == before
