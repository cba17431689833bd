"""The state machine: at most once, sessions, refusals, damage, the applied index, and the empty
filesystem."""

import errno

import msgspec
import pytest

from harness.metadata import CLUSTER, LAYOUT, POOLS, ROOT, Metadata, command, contents
from shoalfs.mds import keys, machine, reads
from shoalfs.mds import messages as m
from shoalfs.mds.entry import decode_entry, encode_entry
from shoalfs.mds.machine import SERVICE_OPS, Layout, Machine, OnDamage, format_store
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.messages import Op
from shoalfs.mds.ops.table import OPERATIONS
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import (
    BadMessage,
    DamagedRecord,
    NotAllowed,
    PosixError,
    SessionGone,
    StaleOperation,
    StorageFailed,
    WrongCluster,
)
from shoalfs.transport.ids import ROOT_INODE, InodeId, PoolId
from shoalfs.transport.limits import SLOTS_PER_SESSION


@pytest.fixture
def md():
    return Metadata()


def mkdir(name, **where):
    return command(m.Mkdir(ROOT, ROOT_INODE, name, 0o755), **where)


def names(md):
    return [e.name for e in md.read(reads.readdir, m.ReadDir(ROOT, ROOT_INODE, 0, 1000)).entries]


def getattr_(md, ino):
    return md.read(reads.getattr_, m.GetAttr(ino)).inode


def test_every_operation_has_messages_and_a_function():
    assert set(m.OP_TYPES) == set(Op) == set(OPERATIONS)


# --- at most once -------------------------------------------------------------------------------------------


def test_a_repeated_command_returns_what_it_returned(md):
    session = md.session
    first = md.entry([(session, mkdir(b"a", slot=5, seq=1))])[0]
    assert first.code == 0
    again = md.entry([(session, mkdir(b"a", slot=5, seq=1))])[0]
    assert (again.code, bytes(again.body)) == (0, bytes(first.body))
    refused = md.entry([(session, mkdir(b"a", slot=5, seq=2))])[0]
    assert refused.code == errno.EEXIST
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"a"))
    assert md.entry([(session, mkdir(b"a", slot=5, seq=2))])[0] == refused  # refusals are kept too
    assert md.entry([(session, mkdir(b"a", slot=5, seq=1))])[0].code == StaleOperation.code
    assert names(md) == []


def test_a_command_twice_in_one_entry_is_applied_once(md):
    outcomes = md.entry([(md.session, mkdir(b"a", slot=1, seq=1)), (md.session, mkdir(b"a", slot=1, seq=1))])
    assert [o.code for o in outcomes] == [0, 0]
    assert names(md) == [b"a"]


def test_slots_are_apart_and_sequences_may_skip(md):
    outcomes = md.entry(
        [(md.session, mkdir(b"%d" % i, slot=i, seq=9)) for i in range(3)] + [(md.session, mkdir(b"x", slot=1, seq=20))]
    )
    assert [o.code for o in outcomes] == [0] * 4


@pytest.mark.parametrize(("slot", "seq"), [(-1, 1), (SLOTS_PER_SESSION, 1), (0, 0), (0, -1), (1 << 63, 1)])
def test_slots_and_sequences_have_limits(md, slot, seq):
    outcome = md.entry([(md.session, mkdir(b"a", slot=slot, seq=seq))])[0]
    assert outcome.code == BadMessage.code
    assert names(md) == []


@pytest.mark.parametrize("session", [77, -1, 1 << 63])
def test_unknown_sessions(md, session):
    assert md.entry([(session, mkdir(b"a"))])[0].code == SessionGone.code
    assert names(md) == []


@pytest.mark.parametrize("op", Op)
def test_who_may_send_what(md, op):
    """Session 0 for what the service itself does, a session for the rest; END_SESSION takes both."""
    body = m.Command(0, 10_000, int(op), msgspec.Raw(msgspec.msgpack.encode([])))
    without = md.entry([(0, body)])[0].code
    within = md.entry([(md.session, body)])[0].code
    assert (without == NotAllowed.code) == (op not in SERVICE_OPS)
    assert (within == NotAllowed.code) == (op in SERVICE_OPS and op is not Op.END_SESSION)


def test_what_does_not_decode_is_refused_and_the_rest_of_the_entry_applied(md):
    def raw(op, body, slot):
        return (md.session, m.Command(slot, 1, op, msgspec.Raw(body)))

    outcomes = md.entry(
        [
            raw(int(Op.MKDIR), b"\xc0", 1),
            raw(int(Op.MKDIR), msgspec.msgpack.encode(["not", "a", "mkdir", 1]), 2),
            raw(999, b"\x90", 3),
            (md.session, mkdir(b"a", slot=4)),
        ]
    )
    assert [o.code for o in outcomes] == [BadMessage.code, BadMessage.code, BadMessage.code, 0]
    assert names(md) == [b"a"]


# --- entries, time and index --------------------------------------------------------------------------------


def test_entries_round_trip():
    commands = [(1, mkdir(b"a")), (0, command(m.Reap(InodeId(3))))]
    entry = decode_entry(encode_entry(5, commands))
    assert entry.now_ns == 5
    assert [(s, c.op, bytes(c.body)) for s, c in entry.commands] == [(s, c.op, bytes(c.body)) for s, c in commands]


@pytest.mark.parametrize(
    "data",
    [b"\x06\x92\x00\x90", b"\x02", b"\x01garbage", b"\x00", b"\x02\x92\xff\x90", encode_entry(5, [])[:-1]],
)
def test_an_unreadable_entry_stops_the_node(md, data):
    before, index = contents(md.store), md.machine.applied_index
    with pytest.raises(StorageFailed):
        md.apply(data)
    assert contents(md.store) == before
    assert md.machine.applied_index == index


def test_many_entries_are_one_transaction(md):
    index = md.machine.applied_index
    bad = (index + 2, 1, b"\x07")
    good = (index + 1, 1, encode_entry(1, [(md.session, mkdir(b"a"))]))
    with pytest.raises(StorageFailed):
        md.machine.apply([good, bad])
    assert names(md) == []
    assert md.machine.applied_index == index
    results = md.machine.apply([good, (index + 2, 2, b"")])
    assert [len(r) for r in results] == [1, 0]
    assert md.machine.applied_index == index + 2
    with md.store.read() as txn:
        applied = machine.load_applied(txn)
    assert (applied.index, applied.term) == (index + 2, 2)
    assert Machine(md.store, OnDamage.STOP).applied_index == index + 2


def test_a_gap_in_the_log_is_a_bug(md):
    with pytest.raises(AssertionError):
        md.machine.apply([(md.machine.applied_index + 2, 1, b"")])


def test_time_never_goes_back(md):
    late = md.mkdir(b"a").ctime_ns
    md.apply(encode_entry(5, [(md.session, mkdir(b"b", slot=1))]))
    b = md.read(reads.lookup, m.Lookup(ROOT, ROOT_INODE, b"b")).inode
    assert b.ctime_ns == late


# --- the rule of the operations -----------------------------------------------------------------------------


def test_an_operation_that_raises_after_writing_is_caught(md, monkeypatch):
    def broken(txn, context, request):
        txn.put(b"Mbroken", b"")
        raise PosixError(errno.EPERM)

    monkeypatch.setitem(OPERATIONS, Op.MKDIR, broken)
    before = contents(md.store)
    with pytest.raises(AssertionError, match="MKDIR wrote before it refused"):
        md.mkdir(b"a")
    assert contents(md.store) == before


def damage(md, key):
    stored = bytearray(md.store.rows[key])
    stored[-1] ^= 1
    md.store.rows[key] = bytes(stored)


def test_a_damaged_record_refuses_one_command_on_a_single_node(md):
    a = md.mkdir(b"a").ino
    made = md.create(b"f", parent=a)
    md.mkdir(b"b")
    damage(md, keys.inode(made.ino))
    outcomes = md.entry(
        [
            (md.session, mkdir(b"c", slot=1)),
            (md.session, command(m.Unlink(ROOT, a, b"f"), slot=2)),
            (md.session, mkdir(b"d", slot=3)),
            (md.session, command(m.Unlink(ROOT, a, b"f"), slot=4)),
        ]
    )
    assert [o.code for o in outcomes] == [0, DamagedRecord.code, 0, DamagedRecord.code]
    assert f"I {made.ino}" in outcomes[1].text
    assert names(md) == [b"a", b"b", b"c", b"d"]


def test_damage_met_in_the_middle_of_an_operation_leaves_nothing_of_it(md):
    md.add_targets()
    made = md.create(b"f")
    first, second = md.chunk(), md.chunk()
    md.commit(made.ino, md.extent(first, 0, 10), md.extent(second, 10, 10))
    damage(md, keys.chunk_use(second))
    before = {k: v for k, v in md.store.rows.items() if k[:1] not in (b"M", b"R")}
    with pytest.raises(DamagedRecord):
        md.do(m.SetAttr(ROOT, made.ino, size_bytes=0))
    assert {k: v for k, v in md.store.rows.items() if k[:1] not in (b"M", b"R")} == before


def test_a_damaged_record_stops_a_node_of_a_group():
    md = Metadata(on_damage=OnDamage.STOP)
    made = md.create(b"f")
    damage(md, keys.inode(made.ino))
    index = md.machine.applied_index
    with pytest.raises(DamagedRecord):
        md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert md.machine.applied_index == index


# --- the same everywhere ------------------------------------------------------------------------------------


def test_the_same_entries_give_the_same_rows_on_both_stores(tmp_path):
    entries = []
    recorder = Metadata()
    original = recorder.machine.apply
    recorder.machine.apply = lambda batch: entries.extend(batch) or original(batch)
    run_some(recorder)
    store = LmdbStore.open(str(tmp_path / "store"))
    replayed = Metadata(store)
    assert [e for e in entries if e[0] == 1] == []
    for start in range(0, len(entries), 7):  # in other batches than at first
        replayed.machine.apply(entries[start : start + 7])
    assert contents(store) == contents(recorder.store)
    store.close()


def run_some(md):
    md.add_targets()
    d = md.mkdir(b"d").ino
    for number in range(20):
        made = md.create(b"f%d" % number, parent=d)
        if number % 3 == 0:
            md.write_inline(made.ino, 0, b"x" * number)
        elif number % 3 == 1:
            md.write(made.ino, 0, 1000 + number)
            md.write(made.ino, 500, 100)
        md.do(m.Rename(ROOT, d, b"f%d" % number, ROOT_INODE, b"g%d" % (number % 5)))
    for ino in md.read(reads.orphans, 100):
        md.do(m.Reap(ino), session=0)
    with pytest.raises(PosixError):
        md.do(m.Rmdir(ROOT, ROOT_INODE, b"missing"))
    md.do(m.EndSession(md.session), session=0)


# --- the empty filesystem -----------------------------------------------------------------------------------


def test_the_empty_filesystem(md):
    root = getattr_(md, ROOT_INODE)
    assert (root.mode, root.uid, root.gid, root.nlink, root.parent) == (0o040755, 0, 0, 2, ROOT_INODE)
    assert md.findings() == []
    assert md.map().pools == POOLS
    assert md.map().cluster_id == CLUSTER


def test_formatting_again_changes_nothing(md):
    md.mkdir(b"a")
    before = contents(md.store)
    format_store(md.store, CLUSTER, POOLS, Layout())
    assert contents(md.store) == before
    with pytest.raises(WrongCluster):
        format_store(md.store, b"another cluster!", POOLS, LAYOUT)


def test_an_unformatted_store_has_no_machine():
    with pytest.raises(StorageFailed, match="never formatted"):
        Machine(MemoryStore(), OnDamage.STOP)


def test_a_store_of_another_format_is_refused(md, monkeypatch):
    monkeypatch.setattr(machine, "FORMAT_VERSION", 3)
    with pytest.raises(StorageFailed, match="format 2"):
        Machine(md.store, OnDamage.STOP)


def test_formats_are_checked():
    with pytest.raises(AssertionError):
        Layout(chunk_bytes=1)
    with pytest.raises(AssertionError):
        format_store(MemoryStore(), CLUSTER, [m.Pool(PoolId(1), "p", 1, 2)], LAYOUT)
