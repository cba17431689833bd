"""The table of leases: who has to drop what before a mutation, and what may be cached while one is on its way."""

import pytest

from harness.metadata import ALICE, ROOT, Metadata, command
from shoalfs.mds import messages as m
from shoalfs.mds.leases import CONTENDED_MS, CONTENDED_NAMES, LeaseTable
from shoalfs.mds.touched import _TOUCH, TOUCHES_NOTHING, Touched, touched_by
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId

A, B, C = SessionId(1), SessionId(2), SessionId(3)
DIR, FILE, OTHER = InodeId(10), InodeId(11), InodeId(12)


@pytest.fixture
def table():
    return LeaseTable(per_session_max=1_000)


def drop(table, change):
    for session in list(change.recalls):
        table.acknowledged(change, session)


def test_who_holds_a_lease_is_told_and_who_mutates_is_not(table):
    for session in (A, B):
        assert table.lease_inode(session, FILE)
        assert table.lease_names(session, DIR, b"f", 0)
    change = table.begin(A, Touched({(DIR, b"f")}, {FILE, DIR}), 0)
    assert set(change.recalls) == {B}
    assert change.recalls[B].inodes == {FILE}
    assert change.recalls[B].names == {(DIR, b"f")}


def test_nothing_is_told_to_those_who_know_nothing(table):
    assert table.lease_inode(B, OTHER)
    assert table.lease_names(B, OTHER, b"f", 0)
    assert not table.begin(A, Touched({(DIR, b"f")}, {FILE, DIR}), 0).recalls


def test_what_is_being_changed_is_not_leased_to_anybody(table):
    change = table.begin(A, Touched({(DIR, b"f")}, {FILE}), 0)
    for session in (A, B):
        assert not table.lease_inode(session, FILE)
        assert not table.lease_names(session, DIR, b"f", 0)
        assert not table.lease_names(session, DIR, None, 0), "a listing has the name in it"
        assert table.lease_names(session, DIR, b"g", 0), "another name of the directory"
    table.end(change)
    table.end(change)
    assert table.lease_inode(B, FILE)
    assert table.lease_names(B, DIR, b"f", 0)
    assert table.lease_names(B, DIR, None, 0)


def test_the_answer_to_a_mutation_is_leased_unless_another_one_is_on_its_way(table):
    mine = table.begin(A, Touched(inodes={FILE}), 0)
    assert table.lease_inode(A, FILE, mine)
    theirs = table.begin(B, Touched(inodes={FILE}), 0)
    assert A in theirs.recalls, "what was leased at the end of the first is called back for the second"
    assert not table.lease_inode(A, FILE, mine)
    assert not table.lease_inode(B, FILE, theirs)


def test_a_new_inode_is_leased_to_its_maker(table):
    change = table.begin(A, Touched({(DIR, b"new")}, {DIR}), 0)
    assert table.lease_inode(A, OTHER, change)
    table.end(change)
    assert set(table.begin(B, Touched(inodes={OTHER}), 0).recalls) == {A}


def test_a_name_is_changed_by_one_at_a_time_and_an_inode_by_many(table):
    first = table.begin(A, Touched({(DIR, b"f")}, {DIR}), 0)
    assert table.blocked(Touched({(DIR, b"f")}))
    assert not table.blocked(Touched({(DIR, b"g")}, {DIR}))
    second = table.begin(B, Touched({(DIR, b"g")}, {DIR}), 0)
    table.end(first)
    assert not table.lease_inode(C, DIR), "the second still changes it"
    table.end(second)
    assert table.lease_inode(C, DIR)


def test_what_was_acknowledged_is_not_told_again_until_it_is_leased_again(table):
    table.lease_inode(B, FILE)
    change = table.begin(A, Touched(inodes={FILE}), 0)
    table.acknowledged(change, B)
    assert not change.recalls
    table.end(change)
    assert not table.begin(A, Touched(inodes={FILE}), 0).recalls


def test_a_lease_on_names_outlives_the_recall_of_one_name(table):
    table.lease_names(B, DIR, b"f", 0)
    change = table.begin(A, Touched({(DIR, b"f")}), 0)
    drop(table, change)
    table.end(change)
    assert table.begin(A, Touched({(DIR, b"g")}), 0).recalls[B].names == {(DIR, b"g")}


def fill(table, began_ms, gap_ms, number=CONTENDED_NAMES):
    """A makes names in a directory that B has leased; returns the last change."""
    for count in range(number):
        change = table.begin(A, Touched({(DIR, b"%d" % count)}), began_ms + count * gap_ms)
        assert change.recalls[B].names
        drop(table, change)
        table.end(change)
    return began_ms + number * gap_ms


def test_a_directory_that_two_fill_is_not_leased_until_only_one_does(table):
    table.lease_names(B, DIR, b"x", 0)
    now_ms = fill(table, 0, 10)
    whole = table.begin(A, Touched({(DIR, b"last")}), now_ms)
    assert whole.recalls[B].directories == {DIR}
    assert not table.lease_names(C, DIR, b"y", now_ms), "it is being called back"
    drop(table, whole)
    table.end(whole)
    assert not table.lease_names(B, DIR, b"y", now_ms)
    more = table.begin(A, Touched({(DIR, b"more")}), now_ms + 500)
    assert not more.recalls, "from now on it costs nothing"
    table.end(more)
    table.end(table.begin(C, Touched({(DIR, b"another")}), now_ms + 600))
    for later_ms in (700, 800):
        table.end(table.begin(C, Touched({(DIR, b"and another")}), now_ms + later_ms))
    assert not table.lease_names(B, DIR, b"y", now_ms + 600 + CONTENDED_MS - 1)
    assert table.lease_names(B, DIR, b"y", now_ms + 600 + CONTENDED_MS)


def test_a_directory_that_changes_now_and_then_stays_leased(table):
    table.lease_names(B, DIR, b"x", 0)
    fill(table, 0, 100, number=200)


def test_the_end_of_a_session_lets_those_go_who_wait_for_it(table):
    table.lease_inode(B, FILE)
    table.lease_names(B, DIR, None, 0)
    change = table.begin(A, Touched({(DIR, b"f")}, {FILE}), 0)
    table.forget(B)
    table.acknowledged(change, B)
    assert not change.recalls
    assert table.held_by(B) == 0


def test_a_write_lease_of_an_earlier_leader_is_given_back_while_its_holder_commits(table):
    """Found by tests/sim/file_world.py: a commit had met the new leader before the report that named the file did."""
    commit = table.begin(A, Touched(inodes={FILE}), 0)
    assert not table.lease_write(B, FILE)
    assert table.lease_write(A, FILE)
    table.end(commit)
    assert table.writer(FILE) == A
    assert not table.lease_write(B, FILE)


def test_a_session_holds_a_bounded_number_and_its_oldest_are_called_back():
    table = LeaseTable(per_session_max=32)
    assert all(table.lease_inode(A, InodeId(number)) for number in range(1, 33))
    assert not table.lease_inode(A, InodeId(33))
    surplus = table.crowded(A)
    assert surplus.inodes == {1, 2}
    change = table.call_back(A, surplus)
    assert set(change.recalls) == {A}
    assert not table.lease_inode(B, InodeId(1)), "an answer on its way must not meet the acknowledgement"
    table.acknowledged(change, A)
    table.end(change)
    assert table.lease_inode(A, InodeId(33))
    assert table.held_by(A) == 31


# --- what a mutation touches -----------------------------------------------------------------------------------------


def test_every_operation_is_known_to_touch_something_or_nothing():
    assert {int(op) for op in m.Op} == set(_TOUCH) | {int(op) for op in TOUCHES_NOTHING}
    assert not set(_TOUCH) & TOUCHES_NOTHING


@pytest.fixture
def tree():
    metadata = Metadata()
    tree = {b"d": metadata.mkdir(b"d").ino, b"f": metadata.create(b"f").ino, b"g": metadata.create(b"g").ino}
    return metadata, tree


def touched(metadata, *requests):
    with metadata.store.read() as txn:
        return touched_by(txn, [command(request) for request in requests])


def test_names_lead_to_the_inodes_that_are_touched(tree):
    metadata, ino = tree
    root, f, g, d = ROOT_INODE, ino[b"f"], ino[b"g"], ino[b"d"]
    cases = [
        (m.Create(ROOT, root, b"new", 0o644, True), {(root, b"new")}, {root}),
        (m.Create(ROOT, root, b"f", 0o644, False), {(root, b"f")}, set()),
        (m.Mkdir(ROOT, root, b"new", 0o755), {(root, b"new")}, {root}),
        (m.Link(ROOT, f, d, b"l"), {(d, b"l")}, {d, f}),
        (m.Unlink(ROOT, root, b"f"), {(root, b"f")}, {root, f}),
        (m.Rmdir(ROOT, root, b"d"), {(root, b"d")}, {root, d}),
        (m.Unlink(ROOT, root, b"absent"), {(root, b"absent")}, {root}),
        (m.Rename(ROOT, root, b"f", root, b"g"), {(root, b"f"), (root, b"g")}, {root, f, g}),
        (m.Rename(ROOT, root, b"f", d, b"x"), {(root, b"f"), (d, b"x")}, {root, d, f}),
        (m.SetAttr(ROOT, f, mode=0o600), set(), {f}),
        (m.CommitInline(f, ()), set(), {f}),
        (m.SetXattr(ROOT, g, b"user.x", b""), set(), {g}),
    ]
    for request, names, inodes in cases:
        found = touched(metadata, request)
        assert (found.names, found.inodes) == (names, inodes), request


def test_what_will_be_refused_for_its_shape_touches_nothing_and_harms_nothing(tree):
    metadata, _ = tree
    assert not touched(metadata, m.ReserveChunks(1))
    for request in (
        m.Unlink(ALICE, InodeId(0), b"x"),
        m.Unlink(ALICE, InodeId(-5), b"x"),
        m.Unlink(ALICE, ROOT_INODE, b"n" * 10_000),
        m.Rename(ALICE, ROOT_INODE, b"", ROOT_INODE, b""),
    ):
        touched(metadata, request)


def test_of_many_inodes_those_are_refused_that_are_changed_written_or_too_many():
    table = LeaseTable(per_session_max=16)
    inos = [InodeId(number) for number in range(100, 130)]
    change = table.begin(B, Touched(inodes={inos[1]}), 0)
    assert table.lease_write(B, inos[2])
    assert table.lease_inodes(A, inos[:4]) == inos[1:3]
    assert table.lease_inodes(A, inos[:4]) == inos[1:3], "what it has it keeps"
    assert table.lease_inodes(A, inos[4:]) == inos[18:]
    assert table.lease_inodes(A, inos[4:]) == inos[18:], "there is no more room"
    assert table.lease_inodes(C, inos[:1]) == []
    assert set(table.begin(C, Touched(inodes={inos[0]}), 0).recalls) == {A}
    table.end(change)
