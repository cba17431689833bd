"""A received snapshot becomes the store: whole or not at all, whatever the moment of a crash, and never backwards."""

import shutil
from itertools import count

import pytest

from harness.metadata import Metadata, contents
from shoalfs.mds import install
from shoalfs.mds.journal import Journal, JournalRefused, create_journal
from shoalfs.mds.machine import load_applied
from shoalfs.mds.raft_messages import COMMAND
from shoalfs.mds.snapshot_messages import SnapshotOffer
from shoalfs.mds.snapshots import digest_file
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import StorageFailed

NODE = 3


class Crash(Exception):
    """The machine stops here."""


def make_store(path, files, cluster=b"cluster-of-tests"):
    """A store with some files; returns its last entry and its rows."""
    store = LmdbStore.open(str(path))
    metadata = Metadata(store)
    for number in range(files):
        metadata.create(b"f%d" % number)
    rows, index = contents(store), metadata.machine.applied_index
    store.close()
    return index, rows


def make_node(directory, files, entries):
    """A node that has applied ``files`` + 1 entries, all of term 1, with a log of ``entries``."""
    index, rows = make_store(directory / install.STORE, files)
    create_journal(directory / install.LOG, b"cluster-of-tests", NODE)
    journal = Journal(directory / install.LOG, b"cluster-of-tests", NODE)
    journal.set_hard_state(1, 2)
    for number in range(1, entries + 1):
        journal.append(number, 1, COMMAND + b"%d" % number)
    journal.sync()
    journal.close()
    return index, rows


@pytest.fixture
def leader(tmp_path):
    """A copy of a leader's store, with the offer and the rows in it."""
    index, rows = make_store(tmp_path / "leader", 20)
    store = LmdbStore.open(str(tmp_path / "leader"))
    (tmp_path / "copy").mkdir()
    applied = store.copy_to(str(tmp_path / "copy"))
    store.close()
    assert applied.index == index
    data = tmp_path / "copy" / "data.mdb"
    return data, SnapshotOffer(1, data.stat().st_size, digest_file(data), applied.index, applied.term), rows


def receive(directory, leader):
    (directory / install.RECEIVING).mkdir(parents=True)
    shutil.copy(leader[0], directory / install.RECEIVING / "data.mdb")


def start(directory):
    """What every start does first. Returns the rows of the store, its last entry, and the log's base."""
    install.finish(directory)
    store = LmdbStore.open(str(directory / install.STORE))
    journal = Journal(directory / install.LOG, b"cluster-of-tests", NODE)
    with store.read() as txn:
        applied = load_applied(txn)
    rows, base, voted = contents(store), journal.base_index, (journal.current_term, journal.voted_for)
    assert journal.base_index <= applied.index <= journal.last_index
    journal.close()
    store.close()
    left = {path.name for path in directory.iterdir()}
    assert left == {install.STORE, install.LOG}, left
    return rows, applied.index, base, voted


def test_a_snapshot_replaces_store_and_log(tmp_path, leader):
    make_node(tmp_path / "n", 2, 5)
    receive(tmp_path / "n", leader)
    install.stage(tmp_path / "n", b"cluster-of-tests", leader[1])
    rows, index, base, voted = start(tmp_path / "n")
    assert rows == leader[2]
    assert index == base == leader[1].index
    assert voted == (1, 2), "the vote is kept"
    assert start(tmp_path / "n")[0] == leader[2]


def test_the_log_goes_on_after_a_reset_and_old_segments_may_go(tmp_path, monkeypatch):
    monkeypatch.setattr("shoalfs.mds.journal.LOG_SEGMENT_BYTES", 400)
    create_journal(tmp_path / "log", bytes(16), NODE)
    journal = Journal(tmp_path / "log", bytes(16), NODE)
    for number in range(1, 30):
        journal.append(number, 1, COMMAND + bytes(20))
        journal.sync()
    journal.reset(20, 2)
    assert (journal.base_index, journal.last_index, journal.last_term) == (20, 20, 2)
    journal.sync()
    assert journal.durable_index == 20
    for number in range(21, 60):
        journal.append(number, 2, COMMAND + b"new")
        journal.sync()
        if number % 10 == 0:
            journal.remove(journal.drop_through(number - 5))
    kept = list(journal.entries)
    journal.close()
    again = Journal(tmp_path / "log", bytes(16), NODE)
    assert again.entries[-len(kept) + 1 :] == kept[1:]
    assert all(entry[2] == 2 for entry in again.entries)
    again.close()


def test_a_reset_that_was_not_synced_leaves_the_old_log(tmp_path):
    make_node(tmp_path / "n", 2, 5)
    journal = Journal(tmp_path / "n" / "log", b"cluster-of-tests", NODE)
    journal.reset(9, 4)
    journal.close()
    again = Journal(tmp_path / "n" / "log", b"cluster-of-tests", NODE)
    assert (again.base_index, again.last_index, again.last_term) == (0, 5, 1)
    again.close()


@pytest.mark.parametrize("steps", range(8))
def test_a_crash_after_any_step_leaves_the_old_or_the_new(tmp_path, leader, monkeypatch, steps):
    """A step is a rename, a removal of a directory, or a sync of the log."""
    node = tmp_path / "n"
    _, old_rows = make_node(node, 2, 5)
    receive(node, leader)
    counter = count()

    def interrupted(function):
        def step(*arguments, **options):
            if next(counter) == steps:
                raise Crash
            return function(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(install, "_rename", interrupted(install._rename))
        patch.setattr(install.shutil, "rmtree", interrupted(shutil.rmtree))
        patch.setattr(Journal, "sync", interrupted(Journal.sync))
        crashed = False
        try:
            install.stage(node, b"cluster-of-tests", leader[1])
            install.finish(node)
        except Crash:
            crashed = True
    is_staged = (node / install.INSTALLING).exists() or not (node / install.RECEIVING).exists()
    rows, index, base, _ = start(node)
    if is_staged:
        assert (rows, index, base) == (leader[2], leader[1].index, leader[1].index)
    else:
        assert (rows, base) == (old_rows, 0)
    assert crashed == (steps < 7), "the last parameter is beyond the last step"


def test_a_snapshot_that_the_log_covers_is_thrown_away(tmp_path, leader):
    """The log has its entry, and may have been acknowledged beyond it."""
    _, rows = make_node(tmp_path / "n", 2, leader[1].index + 3)
    receive(tmp_path / "n", leader)
    install.stage(tmp_path / "n", b"cluster-of-tests", leader[1])
    assert start(tmp_path / "n")[0] == rows
    journal = Journal(tmp_path / "n" / "log", b"cluster-of-tests", NODE)
    assert journal.last_index == leader[1].index + 3
    journal.close()


def test_an_older_snapshot_is_thrown_away(tmp_path, leader):
    index, rows = make_node(tmp_path / "n", 30, 40)
    assert index > leader[1].index
    receive(tmp_path / "n", leader)
    install.stage(tmp_path / "n", b"cluster-of-tests", leader[1])
    assert start(tmp_path / "n")[0] == rows


class Log:
    def __init__(self, base, terms):
        self.base_index, self._terms = base, terms

    def term_at(self, index):
        return self._terms.get(index)


@pytest.mark.parametrize(
    ("log", "store", "wanted"),
    [
        (Log(0, {0: 0, 1: 1, 2: 1}), 2, True),  # far behind
        (Log(0, {0: 0}), None, True),  # a new node
        (Log(0, {0: 0, **dict.fromkeys(range(1, 12), 1)}), 5, True),  # other entries stand there: never committed
        (Log(0, {0: 0, **dict.fromkeys(range(1, 12), 3)}), 5, False),  # the log covers it
        (Log(8, {8: 3, 9: 3, 10: 3}), 10, False),  # no newer than the store
        (Log(8, {8: 3, 9: 3}), 11, False),
        (Log(10, {10: 3}), 5, True),  # the log was reset to it already
        (Log(12, {12: 3}), 5, False),  # it was reset to another one
    ],
)
def test_which_snapshot_is_wanted(log, store, wanted):
    assert install.is_wanted(log, store, 10, 3) is wanted


def test_what_arrived_damaged_is_refused_and_the_old_state_stays(tmp_path, leader):
    _, rows = make_node(tmp_path / "n", 2, 5)
    receive(tmp_path / "n", leader)
    data = tmp_path / "n" / install.RECEIVING / "data.mdb"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(StorageFailed, match="not the snapshot that was sent"):
        install.stage(tmp_path / "n", b"cluster-of-tests", leader[1])
    assert start(tmp_path / "n")[0] == rows


def test_a_snapshot_of_another_cluster_is_refused(tmp_path, leader):
    _, rows = make_node(tmp_path / "n", 2, 5)
    receive(tmp_path / "n", leader)
    with pytest.raises(StorageFailed, match="is a snapshot of cluster"):
        install.stage(tmp_path / "n", b"another cluster!", leader[1])
    assert start(tmp_path / "n")[0] == rows


def test_a_snapshot_at_another_entry_than_announced_is_refused(tmp_path, leader):
    make_node(tmp_path / "n", 2, 5)
    receive(tmp_path / "n", leader)
    data, offer, _ = leader
    wrong = SnapshotOffer(1, offer.size_bytes, digest_file(data), offer.index + 1, offer.term)
    with pytest.raises(StorageFailed, match="was announced"):
        install.stage(tmp_path / "n", b"cluster-of-tests", wrong)


def test_a_snapshot_without_a_log_is_refused(tmp_path, leader):
    make_node(tmp_path / "n", 2, 5)
    receive(tmp_path / "n", leader)
    install.stage(tmp_path / "n", b"cluster-of-tests", leader[1])
    shutil.rmtree(tmp_path / "n" / install.LOG)
    with pytest.raises(JournalRefused, match="a log that is gone"):
        install.finish(tmp_path / "n")
