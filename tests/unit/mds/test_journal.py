"""The log's files: what a crash leaves, what is damage, whose log it is, truncation and compaction."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from shoalfs.mds import journal as journal_module
from shoalfs.mds import journal_files
from shoalfs.mds.journal import Journal, JournalFailed, JournalRefused, create_journal, encode_batch
from shoalfs.mds.journal_format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from shoalfs.transport.ids import NodeId

CLUSTER = bytes(range(16))
ME = NodeId(3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create_journal(tmp_path / "log", CLUSTER, ME)
    return tmp_path / "log"


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LOG_SEGMENT_BYTES", 400)


def opened(directory: Path) -> Journal:
    return Journal(directory, CLUSTER, ME)


def filled(directory: Path, count: int, *, term: int = 1) -> Journal:
    """``count`` entries, each synced by itself."""
    journal = opened(directory)
    for _ in range(count):
        journal.append(journal.last_index + 1, term, b"entry %d" % (journal.last_index + 1))
        journal.sync()
    return journal


def state(journal: Journal) -> tuple[object, ...]:
    return list(journal.entries), journal.current_term, journal.voted_for


def reopened_state(directory: Path) -> tuple[object, ...]:
    journal = opened(directory)
    try:
        assert journal.durable_index == journal.last_index
        assert journal.durable_position == journal.position
        return state(journal)
    finally:
        journal.close()


def only_segment(directory: Path) -> Path:
    (path,) = directory.glob("*.log")
    return path


def test_a_new_log_is_empty(directory):
    journal = opened(directory)
    assert state(journal) == ([(b"", 0, 0)], 0, 0)
    assert (journal.base_index, journal.last_index, journal.last_term) == (0, 0, 0)
    journal.close()


def test_everything_synced_is_back(directory):
    journal = filled(directory, 5)
    journal.set_hard_state(7, 2)
    journal.append(6, 7, b"x" * 100_000)
    journal.sync()
    before = state(journal)
    journal.close()
    assert reopened_state(directory) == before


def test_durable_only_after_batch_written(directory):
    journal = opened(directory)
    journal.append(1, 1, b"a")
    batch = journal.take_batch()
    journal.append(2, 1, b"b")
    assert journal.durable_index == 0
    journal.write(batch)
    assert journal.durable_index == 0
    journal.batch_written(batch)
    assert (journal.durable_index, journal.durable_position, journal.position) == (1, 1, 2)
    journal.sync()
    assert journal.durable_index == 2
    assert journal.take_batch() is None
    journal.close()


def test_many_appends_are_one_sync(directory):
    syncs = []
    journal = Journal(directory, CLUSTER, ME, sync_file=lambda fd: syncs.append(fd))
    for n in range(1, 101):
        journal.append(n, 1, b"x")
    journal.sync()
    assert len(syncs) == 1
    assert journal.durable_index == 100
    journal.close()


def test_truncated_while_a_sync_runs_is_not_durable(directory):
    """Entries 2 and 3 of the batch are void and replaced before it is through: the new ones are not on disk."""
    journal = opened(directory)
    for n in (1, 2, 3):
        journal.append(n, 1, b"old")
    batch = journal.take_batch()
    journal.truncate_after(1)
    journal.append(2, 2, b"new")
    journal.append(3, 2, b"new")
    journal.write(batch)
    journal.batch_written(batch)
    assert journal.durable_index == 1
    journal.sync()
    assert journal.durable_index == 3
    before = state(journal)
    journal.close()
    assert reopened_state(directory) == before


def test_truncation_lowers_what_is_durable(directory):
    journal = filled(directory, 5)
    journal.truncate_after(2)
    assert (journal.last_index, journal.durable_index) == (2, 2)
    journal.close()
    assert reopened_state(directory)[0][-1] == (b"entry 5", 5, 1)  # the truncation was not synced
    journal = opened(directory)
    journal.truncate_after(2)
    journal.sync()
    journal.close()
    assert reopened_state(directory)[0][-1] == (b"entry 2", 2, 1)


def test_a_tail_torn_at_every_byte_is_cut(directory, tmp_path, caplog):
    journal = filled(directory, 3)
    before = state(journal)
    good_bytes = only_segment(directory).stat().st_size
    journal.append(4, 1, b"the last one")
    journal.sync()
    journal.close()
    data = only_segment(directory).read_bytes()
    for size in range(good_bytes, len(data)):
        copy = tmp_path / f"torn-{size}"
        shutil.copytree(directory, copy)
        os.truncate(only_segment(copy), size)
        assert reopened_state(copy) == before
        assert only_segment(copy).stat().st_size == good_bytes
    assert "cut a torn tail" in caplog.text


@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
def test_a_tail_of_garbage_is_cut_and_written_over(directory, fill):
    journal = filled(directory, 3)
    before = state(journal)
    journal.close()
    with only_segment(directory).open("ab") as file:
        file.write(fill * 5000)
    assert reopened_state(directory) == before
    journal = filled(directory, 2)
    after = state(journal)
    journal.close()
    assert reopened_state(directory) == after


def test_a_flipped_bit_in_the_middle_is_refused_wherever_it_is(directory, tmp_path):
    journal = filled(directory, 4)
    journal.close()
    path = only_segment(directory)
    data = path.read_bytes()
    last = RECORD_HEADER_BYTES + len(b"entry 4")
    for offset in range(SEGMENT_HEADER_BYTES, len(data) - last):
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        damaged = bytearray(data)
        damaged[offset] ^= 1 << (offset % 8)
        only_segment(copy).write_bytes(damaged)
        with pytest.raises(JournalRefused, match=r"00000000000000000001\.log: damaged at offset \d+"):
            opened(copy)
        shutil.rmtree(copy)


def test_the_error_names_the_offset_of_the_bad_record(directory):
    journal = filled(directory, 3)
    journal.close()
    path = only_segment(directory)
    data = bytearray(path.read_bytes())
    second = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + len(b"entry 1")
    data[second + RECORD_HEADER_BYTES] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalRefused, match=f"damaged at offset {second},"):
        opened(directory)


def test_pages_of_one_write_may_be_lost_in_any_order(directory):
    """A good record after a bad one is no damage if no sync had finished for either of them."""
    journal = filled(directory, 2)
    before = state(journal)
    for n in (3, 4, 5):
        journal.append(n, 1, b"x" * 3000)
    batch = journal.take_batch()
    data = bytearray(encode_batch(batch))
    data[100:4000] = bytes(3900)
    with only_segment(directory).open("ab") as file:
        file.write(data)
    journal.close()
    assert reopened_state(directory) == before


def test_a_log_inside_an_entry_is_not_mistaken_for_records(directory, tmp_path):
    create_journal(tmp_path / "other", CLUSTER, ME)
    other = filled(tmp_path / "other", 20)
    other.close()
    inner = only_segment(tmp_path / "other").read_bytes()
    journal = filled(directory, 30)
    before = state(journal)
    journal.append(31, 1, inner)
    journal.sync()
    journal.close()
    path = only_segment(directory)
    os.truncate(path, path.stat().st_size - 1)
    assert reopened_state(directory) == before


def test_other_cluster_and_other_node_are_refused(directory):
    filled(directory, 1).close()
    with pytest.raises(JournalRefused, match=f"is of cluster {CLUSTER.hex()}"):
        Journal(directory, b"another cluster!", ME)
    with pytest.raises(JournalRefused, match="is of node 3, not of node 4"):
        Journal(directory, CLUSTER, NodeId(4))


def test_missing_or_in_use_is_refused(tmp_path, directory):
    with pytest.raises(JournalRefused, match="must be initialised"):
        opened(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JournalRefused, match="must be initialised"):
        opened(tmp_path / "empty")
    with pytest.raises(JournalRefused, match="there is a log already"):
        create_journal(directory, CLUSTER, ME)
    journal = opened(directory)
    with pytest.raises(JournalRefused, match="in use"):
        opened(directory)
    journal.close()


def test_a_damaged_header_is_refused(directory):
    filled(directory, 1).close()
    path = only_segment(directory)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalRefused, match="checksum of its header"):
        opened(directory)
    path.write_bytes(b"something else entirely" * 10)
    with pytest.raises(JournalRefused, match="not a segment"):
        opened(directory)


# --- segments -------------------------------------------------------------------------------------------------


def test_segments_begin_when_full_and_all_are_read(directory, small_segments):
    journal = filled(directory, 40)
    before = state(journal)
    assert len(list(directory.glob("*.log"))) > 5
    journal.close()
    assert reopened_state(directory) == before


def test_a_missing_segment_is_refused(directory, small_segments):
    filled(directory, 40).close()
    sorted(directory.glob("*.log"))[2].unlink()
    with pytest.raises(JournalRefused, match="missing or damaged"):
        opened(directory)


def test_a_torn_record_before_the_last_segment_is_refused(directory, small_segments):
    filled(directory, 40).close()
    path = sorted(directory.glob("*.log"))[1]
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(JournalRefused, match="damaged at offset"):
        opened(directory)


def test_compaction_drops_whole_segments_and_keeps_the_rest(directory, small_segments):
    journal = filled(directory, 40)
    journal.set_hard_state(9, 3)
    journal.sync()
    paths = journal.drop_through(25)
    assert paths
    assert 0 < journal.base_index <= 25
    assert journal.term_at(journal.base_index) == 1
    assert journal.bytes_in_memory == sum(len(command) for command, _, _ in journal.entries)
    kept = list(journal.entries)
    journal.remove(paths)
    journal.close()
    journal = opened(directory)
    assert list(journal.entries) == kept
    assert (journal.current_term, journal.voted_for) == (9, 3)
    assert journal.drop_through(0) == ()
    journal.append(41, 9, b"goes on")
    journal.sync()
    journal.close()


def test_a_crash_at_each_step_of_compaction(directory, tmp_path, small_segments):
    """Segments go oldest first; whatever prefix of them is gone, the rest opens and has the newest state."""
    journal = filled(directory, 40)
    journal.set_hard_state(9, 3)
    journal.sync()
    before = state(journal)
    paths = journal.drop_through(30)
    assert len(paths) >= 3
    for count in range(len(paths) + 1):
        copy = tmp_path / f"gone-{count}"
        shutil.copytree(directory, copy)
        for path in paths[:count]:
            (copy / path.name).unlink()
        entries, term, vote = reopened_state(copy)
        assert (term, vote) == (9, 3)
        assert entries[0][1] <= 30
        assert entries[1:] == before[0][entries[0][1] + 1 :]
    journal.close()


def test_compaction_after_a_truncation_that_reaches_back(directory, tmp_path, small_segments):
    """Void entries lie in old segments, what replaced them in new ones; the old ones go, the new ones open."""
    journal = filled(directory, 20)
    journal.truncate_after(10)
    for n in range(11, 41):
        journal.append(n, 2, b"entry %d" % n)
        journal.sync()
    entries = list(journal.entries)
    for index in range(0, 41, 5):
        copy = tmp_path / f"compacted-{index}"
        shutil.copytree(directory, copy)
        again = opened(copy)
        again.remove(again.drop_through(index))
        assert again.entries[1:] == entries[again.base_index + 1 :]
        again.close()
        kept = reopened_state(copy)[0]
        assert kept[-1] == entries[-1]
        assert kept[0][1] <= index
        assert kept[1:] == entries[kept[0][1] + 1 :]
    journal.close()


def test_the_last_segment_on_disk_stays_while_the_next_one_begins(directory, small_segments):
    journal = filled(directory, 3)
    while True:
        journal.append(journal.last_index + 1, 1, b"entry %d" % (journal.last_index + 1))
        batch = journal.take_batch()
        if batch.segment is not None:
            break
        journal.write(batch)
        journal.batch_written(batch)
    assert journal.drop_through(journal.durable_index) == ()
    journal.write(batch)
    journal.batch_written(batch)
    assert len(journal.drop_through(journal.durable_index - 1)) == 1
    journal.close()


@pytest.mark.parametrize("left", ["temporary file", "header only"])
def test_a_crash_while_a_segment_begins(directory, tmp_path, small_segments, left):
    journal = filled(directory, 3)
    while True:
        before = state(journal)
        journal.append(journal.last_index + 1, 1, b"entry %d" % (journal.last_index + 1))
        batch = journal.take_batch()
        if batch.segment is not None:
            break
        journal.write(batch)
        journal.batch_written(batch)
    path, header = batch.segment
    if left == "temporary file":
        path.with_suffix(".tmp").write_bytes(b"SHOALLOG and not much more")
    else:
        os.close(journal_files.begin_segment(path, header))
    journal.close()
    assert reopened_state(directory) == before
    assert not list(directory.glob("*.tmp"))


# --- a disk that fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_sync_is_final(directory, number):
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(number, os.strerror(number))

    journal = Journal(directory, CLUSTER, ME, sync_file=failing)
    journal.append(1, 1, b"x")
    batch = journal.take_batch()
    with pytest.raises(JournalFailed, match=os.strerror(number)):
        journal.write(batch)
    with pytest.raises(AssertionError):
        journal.write(batch)
    assert len(calls) == 1
    assert journal.durable_index == 0
    journal.close()


def test_a_vote_is_never_taken_back(directory):
    journal = opened(directory)
    journal.set_hard_state(5, 2)
    with pytest.raises(AssertionError):
        journal.set_hard_state(5, 1)
    with pytest.raises(AssertionError):
        journal.set_hard_state(4, 0)
    journal.set_hard_state(6, 0)
    journal.close()
