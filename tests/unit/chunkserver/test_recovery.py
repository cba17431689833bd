"""What a target finds when it is opened again."""

import random
import shutil

import pytest

from chunkserver_support import CLUSTER, SEGMENTS, TARGET, Rig, content, hash_of
from shoalfs.chunkserver.record import HEADER_BYTES, Header, State, decode, encode, record_bytes
from shoalfs.transport.ids import ChunkId, InodeId

ACTIVE = f"{SEGMENTS}/00000001.open"


def fill(rig: Rig, count: int = 12) -> None:
    for chunk in range(1, count + 1):
        rig.put(chunk, content(chunk, 1000 * chunk))


def drop_index(rig: Rig) -> None:
    rig.store.abandon()
    rig.disk.kill()
    shutil.rmtree(rig.index_dir)
    rig.open()


def quarantined_places(rig: Rig) -> list[tuple[int, int]]:
    return [(segment, offset) for segment, offset, _ in rig.store.quarantined()]


def test_a_clean_end_needs_no_scan(make_rig):
    rig = make_rig(segment_bytes_max=50_000)
    fill(rig)
    rows = rig.rows()
    rig.store.close()
    rig.disk.calls.clear()
    rig.open()
    assert rig.rows() == rows
    assert rig.disk.calls["preadv"] == 2  # the two files that say whose it is and how it ended


def test_a_clean_end_is_believed_after_a_restart_of_the_machine(rig):
    fill(rig)
    rows = rig.rows()
    rig.store.close()
    rig.disk.power_cut(random.Random(1))
    rig.disk.calls.clear()
    rig.open()
    assert rig.rows() == rows
    assert rig.disk.calls["preadv"] == 2


def test_a_process_crash_loses_nothing(rig):
    fill(rig)
    rows = rig.rows()
    rig.crash()
    assert rig.rows() == rows


def test_a_process_crash_scans_only_the_tail(rig):
    fill(rig, 40)
    rig.disk.calls.clear()
    rig.crash()
    assert rig.disk.calls["preadv"] < 8
    assert len(rig.chunks()) == 40


def test_a_record_that_missed_the_index_is_found_after_a_process_crash(rig):
    rig.put(1, content(1, 5000))
    before = rig.store._index
    rig.store._index = LostWrites(before)
    with pytest.raises(AssertionError, match="lost"):
        rig.put(2, content(2, 5000))
    rig.store._index = before
    rig.crash()
    assert rig.get(2) == content(2, 5000)


class LostWrites:
    """An index whose process dies in the middle of an addition."""

    def __init__(self, index):
        self._index = index

    def __getattr__(self, name):
        return getattr(self._index, name)

    def add(self, *arguments):
        raise AssertionError("lost")


def test_the_rebuilt_index_equals_the_old_one(make_rig):
    rig = make_rig(segment_bytes_max=50_000)
    fill(rig, 20)
    rig.store.delete([ChunkId(3), ChunkId(20)])
    rig.store.sync_round()
    rig.put(21, content(21, 100))
    rows, live = rig.rows(), rig.store._index.live_bytes
    segments = {number: row[1:] for number, row in rig.store._index.segments().items() if row.live_records}
    drop_index(rig)
    assert rig.rows() == rows
    assert rig.store._index.live_bytes == live
    rebuilt = {number: row[1:] for number, row in rig.store._index.segments().items() if row.live_records}
    assert rebuilt == segments
    rig.put(22, content(22, 100))
    assert all(rig.get(chunk) == content(chunk, 1000 * chunk) for chunk in range(4, 20))


@pytest.mark.parametrize("damage", [b"", b"no database" * 1000])
def test_a_damaged_index_is_rebuilt(rig, damage):
    fill(rig)
    rows = rig.rows()
    rig.store.close()
    (rig.index_dir / "data.mdb").write_bytes(damage)
    rig.open()
    assert rig.rows() == rows


def test_an_index_of_other_segments_is_rebuilt(make_rig):
    rig = make_rig(segment_bytes_max=50_000)
    fill(rig)
    rig.store.sync_round()
    rig.store.close()
    rig.disk.unlink(f"{SEGMENTS}/00000001.seg")
    rig.open()
    assert all(row.segment != 1 for _, row in rig.rows())
    assert rig.get(12) == content(12, 12_000)


def test_a_segment_that_was_put_back_is_indexed(make_rig):
    rig = make_rig(segment_bytes_max=20_000)
    fill(rig, 6)
    rig.store.sync_round()
    rows = rig.rows()
    kept = bytes(rig.disk.contents(f"{SEGMENTS}/00000001.seg"))
    rig.store.close()
    rig.disk.unlink(f"{SEGMENTS}/00000001.seg")
    rig.open()
    assert rig.rows() != rows
    rig.store.close()
    fd = rig.disk.open(f"{SEGMENTS}/00000001.seg", create=True)
    rig.disk.pwritev(fd, [kept], 0)
    rig.open()
    assert rig.rows() == rows


@pytest.mark.parametrize("keep", [1, 99, 100, 4095, 4096, 5000, 4096 + 9999])
def test_a_torn_tail_is_cut(rig, keep):
    rig.put(1, content(1, 4096), durable=True)
    rig.put(2, content(2, 10_000))
    rig.store.abandon()
    rig.disk.kill()
    rig.disk.cut(ACTIVE, 8192 + keep)
    shutil.rmtree(rig.index_dir)
    rig.open()
    assert rig.chunks() == [1]
    quarantine_expected = [] if keep >= 100 else [(1, 8192)]
    assert quarantined_places(rig) == quarantine_expected
    rig.put(3, content(3, 50))
    drop_index(rig)
    assert rig.get(3) == content(3, 50)


def test_an_unwritten_record_before_others_is_a_gap(rig):
    rig.put(1, content(1, 100))
    rig.put(2, content(2, 9000))
    rig.put(3, content(3, 100))
    rig.disk.rot(ACTIVE, 8192, bytes(4096))  # the header did not reach the disk, data did
    drop_index(rig)
    assert rig.chunks() == [1, 3]
    assert rig.store.quarantined() == []


@pytest.mark.parametrize("offset", [0, 7, 20, 95, 100, 4096, 13_000])
def test_a_damaged_record_is_quarantined_and_the_next_one_is_found(rig, offset):
    for chunk in (1, 2, 3):
        rig.put(chunk, content(chunk, 9000), durable=True)
    size = record_bytes(9000)
    rig.flip(ACTIVE, size + offset, 4)
    before = bytes(rig.disk.contents(ACTIVE))
    rig.power_cut(1)
    assert rig.chunks() == [1, 3]
    assert quarantined_places(rig) == [(1, size)]
    assert bytes(rig.disk.contents(ACTIVE)) == before
    rig.put(2, content(2, 9000))
    assert rig.get(2) == content(2, 9000)
    drop_index(rig)
    assert rig.chunks() == [1, 2, 3]
    assert quarantined_places(rig) == [(1, size)]


def test_a_damaged_last_record_is_kept(rig):
    rig.put(1, content(1, 9000), durable=True)
    rig.flip(ACTIVE, 50, 4)
    drop_index(rig)
    assert quarantined_places(rig) == [(1, 0)]
    assert len(rig.disk.contents(ACTIVE)) == record_bytes(9000)
    rig.put(2, b"x")
    assert rig.store.verify(ChunkId(2), deep=True).position_bytes == record_bytes(9000)


def test_what_a_power_cut_left_half_written_does_not_become_a_chunk_when_its_segment_is_full(make_rig):
    """A sealed segment's data is not verified when the index is rebuilt, so such a segment is not sealed."""
    rig = make_rig(segment_bytes_max=3 * record_bytes(9000))
    for chunk in (1, 2, 3):
        rig.put(chunk, content(chunk, 9000), durable=True)
    rig.flip(ACTIVE, record_bytes(9000) + 5000)  # the header got to the disk, and not all of the data
    rig.power_cut(1)
    assert rig.chunks() == [1, 3]
    for chunk in (4, 5, 6, 7):
        rig.put(chunk, content(chunk, 9000), durable=True)
    rig.store.sync_round()
    assert "00000001.open" in rig.segment_names()
    for _ in range(2):
        rig.power_cut(2)
        assert rig.chunks() == [1, 3, 4, 5, 6, 7]
        assert quarantined_places(rig) == [(1, record_bytes(9000))]
        rig.restart()


def test_a_damaged_header_in_a_sealed_segment_is_quarantined(make_rig):
    rig = make_rig(segment_bytes_max=30_000)
    for chunk in (1, 2, 3):
        rig.put(chunk, content(chunk, 9000))
    rig.store.sync_round()
    rig.flip(f"{SEGMENTS}/00000001.seg", 60, 1)
    drop_index(rig)
    assert rig.chunks() == [2, 3]
    rig.store.delete([ChunkId(2)])
    assert "00000001.seg" in rig.segment_names()  # it holds something in quarantine


def test_a_record_of_another_cluster_is_quarantined(rig):
    rig.put(1, b"ours")
    header = Header(State.LIVE, 1, 8192, b"another-cluster-", ChunkId(2), InodeId(1), 0, 4, b"h" * 16, 1)
    fd = rig.disk.open(ACTIVE)
    rig.disk.pwritev(fd, [encode(header).ljust(8192, b"\0")], 8192)
    drop_index(rig)
    assert rig.chunks() == [1]
    ((_, offset, reason),) = rig.store.quarantined()
    assert offset == 8192
    assert b"another-cluster-".hex() in reason


def test_a_record_inside_another_chunk_is_not_taken_for_one(rig):
    """Somebody stores a segment file in the filesystem, then the header before it rots."""
    rig.put(1, content(1, 9000))
    inner = bytes(rig.disk.contents(ACTIVE))
    rig.put(2, inner)
    position = record_bytes(9000)
    rig.flip(ACTIVE, position + 20, 1)
    rig.put(3, b"after")
    drop_index(rig)
    assert rig.chunks() == [1, 3]
    assert rig.get(1) == content(1, 9000)


def test_of_two_records_of_a_chunk_the_intact_one_wins(make_rig):
    rig = make_rig(segment_bytes_max=30_000)
    for chunk in (1, 2, 3):
        rig.put(chunk, content(chunk, 9000))
    rig.store.sync_round()
    rig.flip(f"{SEGMENTS}/00000001.seg", 5000, 1)  # data of chunk 1, sealed: not read by a rebuild
    rig.put(1, content(1, 9000))
    drop_index(rig)
    assert rig.get(1) == content(1, 9000)
    assert quarantined_places(rig) == [(1, 0)]


def test_recovery_can_be_repeated(rig):
    fill(rig)
    rig.flip(ACTIVE, 5000, 1)
    drop_index(rig)
    rows, places = rig.rows(), quarantined_places(rig)
    for _ in range(2):
        drop_index(rig)
        assert (rig.rows(), quarantined_places(rig)) == (rows, places)
    rig.crash()
    assert (rig.rows(), quarantined_places(rig)) == (rows, places)


def test_files_that_are_no_segments_are_left_alone(rig):
    rig.put(1, b"x")
    rig.disk.open(f"{SEGMENTS}/notes.txt", create=True)
    rig.disk.open(f"{SEGMENTS}/1.seg", create=True)
    drop_index(rig)
    assert rig.chunks() == [1]
    assert "notes.txt" in rig.segment_names()


def test_without_a_state_file_sealed_data_is_read_too(make_rig):
    rig = make_rig(segment_bytes_max=30_000)
    for chunk in (1, 2, 3):
        rig.put(chunk, content(chunk, 9000))
    rig.restart()
    rig.store.close()
    rig.flip(f"{SEGMENTS}/00000001.seg", 5000, 1)
    rig.disk.unlink(f"{TARGET}/state.json")
    rig.open()
    assert rig.chunks() == [2, 3]


def test_a_header_leads_back_to_its_file(rig):
    """A rescue without the metadata service finds inode and offset in the records."""
    rig.store.put(chunk=ChunkId(5), ino=InodeId(77), offset_bytes=1 << 33, data=[b"x"], expected_hash=hash_of(b"x"))
    page = bytes(rig.disk.contents(ACTIVE)[:HEADER_BYTES])
    header = decode(page, segment=1, position_bytes=0, cluster_id=CLUSTER)
    assert (header.ino, header.offset_bytes, header.chunk) == (77, 1 << 33, 5)


def test_after_a_power_loss_chunks_are_whole_or_absent_and_durable_ones_are_there(make_rig):
    for seed in range(40):
        rig = make_rig(segment_bytes_max=60_000)
        for chunk in range(1, 15):
            rig.put(chunk, content(chunk, 900 * chunk), durable=chunk % 4 == 0)
        rig.power_cut(seed)
        present = rig.chunks()
        assert {4, 8, 12} <= set(present), seed
        assert all(rig.get(chunk) == content(chunk, 900 * chunk) for chunk in present)
