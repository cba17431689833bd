"""The store of one target: put, get, delete, full, failing."""

import errno
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import lmdb
import msgspec
import pytest

from chunkserver_support import SEGMENTS, TARGET, Rig, content, hash_of
from shoalfs.chunkserver.index import Row
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.record import record_bytes
from shoalfs.transport.checksum import block_hashes
from shoalfs.transport.errors import (
    BadMessage,
    ChunkConflict,
    ChunkCorrupt,
    ChunkMissing,
    TargetDown,
    TargetFull,
)
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import BLOCK_BYTES

SIZES = [1, 4095, 4096, 4097, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 17]


def flip(rig: Rig, chunk: int, offset: int, bit: int = 0) -> None:
    """Damage one bit of the chunk's record, ``offset`` bytes from its start."""
    row = rig.store.verify(ChunkId(chunk), deep=False)
    sealed = row.segment in rig.store._segments._sealed
    rig.flip(rig.store._segments.file(row.segment, sealed=sealed), row.position_bytes + offset, 1 << bit)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_is_got(rig, size):
    rig.put(1, content(size, size))
    assert rig.get(1) == content(size, size)
    assert rig.store.verify(ChunkId(1), deep=True).chunk_bytes == size


def test_a_range_comes_with_the_blocks_around_it(rig):
    data = content(1, 4 * BLOCK_BYTES + 100)
    rig.put(1, data)
    for offset, length, start, stop in [
        (0, 1, 0, BLOCK_BYTES),
        (BLOCK_BYTES - 1, 2, 0, 2 * BLOCK_BYTES),
        (BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES),
        (4 * BLOCK_BYTES + 5, 1, 4 * BLOCK_BYTES, len(data)),
        (3 * BLOCK_BYTES, BLOCK_BYTES + 100, 3 * BLOCK_BYTES, len(data)),
    ]:
        for get in (rig.store.reader.get, rig.store.reader.get_cached):
            blocks = get(ChunkId(1), offset, length)
            assert blocks.offset_bytes == start
            assert bytes(blocks.data) == data[start:stop]
            assert blocks.block_hashes == block_hashes([data])
            assert blocks.chunk_bytes == len(data)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, 101), (100, 1), (50, 51)])
def test_a_range_outside_the_chunk_is_refused(rig, offset, length):
    rig.put(1, content(1, 100))
    with pytest.raises(BadMessage):
        rig.store.reader.get(ChunkId(1), offset, length)


def test_data_may_come_in_pieces(rig):
    pieces = [content(1, 10), content(2, BLOCK_BYTES), memoryview(content(3, 77))]
    whole = b"".join(pieces)
    rig.store.put(chunk=ChunkId(1), ino=InodeId(1), offset_bytes=0, data=pieces, expected_hash=hash_of(whole))
    assert rig.get(1) == whole


def test_an_empty_chunk_is_refused(rig):
    with pytest.raises(BadMessage):
        rig.put(1, b"")


def test_bytes_that_do_not_match_their_hash_are_not_stored(rig):
    with pytest.raises(ChunkCorrupt):
        rig.store.put(chunk=ChunkId(1), ino=InodeId(1), offset_bytes=0, data=[b"abc"], expected_hash=hash_of(b"abd"))
    with pytest.raises(ChunkMissing):
        rig.store.reader.get(ChunkId(1), 0, 1)


def test_the_same_bytes_again_take_no_room(rig):
    rig.put(1, b"abc")
    used = rig.disk.space("/").free_bytes
    rig.put(1, b"abc")
    assert rig.disk.space("/").free_bytes == used
    assert rig.store.usage().chunks == 1


def test_other_bytes_for_a_chunk_are_refused(rig):
    rig.put(1, b"abc")
    with pytest.raises(ChunkConflict):
        rig.put(1, b"abd")
    assert rig.get(1) == b"abc"


def test_chunks_are_listed_in_order_of_their_ids(rig):
    ids = [5, 1 << 60, 3, (1 << 64) - 2, 4]
    for chunk in ids:
        rig.put(chunk, b"x" * 10)
    assert rig.chunks() == sorted(ids)
    assert [chunk for chunk, _ in rig.store.chunks_after(ChunkId(3), 2)] == [4, 5]


# --- damage ----------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_record_is_noticed_and_never_served(rig):
    data = content(1, BLOCK_BYTES + 4096)
    rig.put(1, data)
    header, hashes, first_data = range(100), range(100, 116), (4096, 4096 + BLOCK_BYTES, 4096 + len(data) - 1)
    for offset in (*header, *hashes, *first_data):
        flip(rig, 1, offset, bit=offset % 8)
        with pytest.raises(ChunkCorrupt):
            rig.store.reader.get(ChunkId(1), 0, len(data))
        with pytest.raises(ChunkCorrupt):
            rig.store.verify(ChunkId(1), deep=True)
        flip(rig, 1, offset, bit=offset % 8)
    assert rig.get(1) == data


def test_damage_in_one_block_leaves_the_others_readable(rig):
    data = content(1, 3 * BLOCK_BYTES)
    rig.put(1, data)
    flip(rig, 1, 4096 + BLOCK_BYTES)
    assert bytes(rig.store.reader.get(ChunkId(1), 0, BLOCK_BYTES).data) == data[:BLOCK_BYTES]
    with pytest.raises(ChunkCorrupt, match="block 1"):
        rig.store.reader.get(ChunkId(1), BLOCK_BYTES, 1)


def test_two_swapped_records_are_noticed(rig):
    rig.put(1, content(1, 5000))
    rig.put(2, content(2, 5000))
    path = f"{SEGMENTS}/00000001.open"
    data = rig.disk.contents(path)
    rig.disk.rot(path, 0, data[12_288:24_576] + data[:12_288])
    for chunk in (1, 2):
        with pytest.raises(ChunkCorrupt, match="belongs to segment 1, offset"):
            rig.store.reader.get(ChunkId(chunk), 0, 1)


def test_a_truncated_segment_is_noticed(rig):
    rig.put(1, content(1, 50_000))
    rig.disk.cut(f"{SEGMENTS}/00000001.open", 40_000)
    with pytest.raises(ChunkCorrupt, match="cannot be read"):
        rig.store.reader.get(ChunkId(1), 0, 50_000)


def test_an_unreadable_sector_condemns_the_chunk_not_the_target(rig):
    rig.put(1, b"abc")
    rig.disk.fail("preadv", errno.EIO, count=2)
    with pytest.raises(ChunkCorrupt):
        rig.store.reader.get(ChunkId(1), 0, 3)
    assert rig.store.failed == ""
    assert rig.get(1) == b"abc"


def test_putting_a_damaged_chunk_again_repairs_it_and_keeps_the_old_record(rig):
    data = content(1, 10_000)
    rig.put(1, data)
    flip(rig, 1, 5000)
    rig.put(1, data)
    assert rig.get(1) == data
    assert [(segment, offset) for segment, offset, _ in rig.store.quarantined()] == [(1, 0)]
    rig.power_cut()
    rig.put(1, data)
    assert rig.get(1) == data


# --- deleting --------------------------------------------------------------------------------------------


def test_a_deleted_chunk_is_gone_and_its_space_too(rig):
    rig.put(1, content(1, 500_000))
    before = rig.disk.space("/").free_bytes
    rig.put(2, content(2, 500_000))
    rig.store.delete([ChunkId(2), ChunkId(99)])
    assert rig.disk.space("/").free_bytes == before - 4096  # the dead header stays
    with pytest.raises(ChunkMissing):
        rig.store.reader.get(ChunkId(2), 0, 1)
    rig.store.delete([ChunkId(2)])
    assert rig.chunks() == [1]


def test_a_deletion_survives_a_power_loss(rig):
    rig.put(1, content(1, 10_000), durable=True)
    rig.store.delete([ChunkId(1)])
    for seed in range(5):
        rig.power_cut(seed)
        assert rig.chunks() == []
        assert rig.store.quarantined() == []


def test_a_process_crash_between_marking_and_forgetting_leaves_a_chunk_that_is_missing(rig):
    rig.put(1, content(1, 10_000))
    row = rig.store.verify(ChunkId(1), deep=False)
    assert rig.store._mark_dead(ChunkId(1), row) == ""
    rig.crash()
    with pytest.raises(ChunkMissing):
        rig.store.reader.get(ChunkId(1), 0, 1)
    rig.store.delete([ChunkId(1)])
    assert rig.chunks() == []


def test_deleting_a_damaged_record_quarantines_it(rig):
    rig.put(1, content(1, 10_000))
    flip(rig, 1, 3)
    rig.store.delete([ChunkId(1)])
    assert rig.chunks() == []
    assert len(rig.store.quarantined()) == 1


def test_an_empty_sealed_segment_is_unlinked(make_rig):
    rig = make_rig(segment_bytes_max=40_000)
    for chunk in range(1, 7):
        rig.put(chunk, content(chunk, 10_000))
    rig.store.sync_round()
    assert rig.segment_names() == ["00000001.seg", "00000002.seg", "00000003.open"]
    rig.store.delete([ChunkId(1)])
    assert "00000001.seg" in rig.segment_names()
    rig.store.delete([ChunkId(2)])
    assert rig.segment_names() == ["00000002.seg", "00000003.open"]
    assert rig.get(3) == content(3, 10_000)
    rig.store.delete([ChunkId(5), ChunkId(6)])
    assert "00000003.open" in rig.segment_names()


def test_a_segment_that_is_emptied_before_it_is_sealed_goes_when_it_is_sealed(make_rig):
    rig = make_rig(segment_bytes_max=40_000)
    rig.put(1, content(1, 30_000))
    rig.store.delete([ChunkId(1)])
    rig.put(2, content(2, 30_000))
    assert rig.segment_names() == ["00000001.open", "00000002.open"]
    rig.store.sync_round()
    assert rig.segment_names() == ["00000002.open"]


# --- full ------------------------------------------------------------------------------------------------


def fill_up(rig: Rig) -> int:
    """Put chunks of 4 KiB until the target is full; how many it took."""
    for chunk in range(1, 1000):
        try:
            rig.put(chunk, content(chunk, 4096))
        except TargetFull:
            return chunk - 1
    raise AssertionError("it never was full")


def test_a_target_is_full_at_98_percent_of_its_limit(make_rig):
    rig = make_rig(size_limit_bytes=1_000_000)
    stored = 8192 * fill_up(rig)
    assert 980_000 - 8192 < stored <= 980_000
    assert rig.store.usage().used_bytes == stored
    rig.store.delete([ChunkId(1)])
    rig.put(1000, b"there is room again")
    assert rig.store.failed == ""


def test_the_reserve_of_the_filesystem_is_kept(make_rig):
    rig = make_rig(disk=MemoryDisk(capacity_bytes=1_000_000))
    fill_up(rig)
    assert rig.disk.space("/").free_bytes >= 20_000
    rig.store.delete([ChunkId(1)])


def test_no_space_during_a_write_withdraws_the_record(rig):
    rig.put(1, content(1, 10_000))
    rig.disk.fail("pwritev", errno.ENOSPC)
    with pytest.raises(TargetFull):
        rig.put(2, content(2, 100_000))
    assert rig.store.failed == ""
    rig.put(3, content(3, 10_000))
    assert rig.chunks() == [1, 3]
    rig.power_cut(1)
    assert rig.store.quarantined() == []


def test_no_space_in_the_middle_leaves_a_gap_that_recovery_steps_over(rig):
    """The record behind the one that failed was allocated first and must be found again."""
    place = rig.store._segments.allocate(8192)
    rig.put(2, content(2, 10_000), durable=True)
    with rig.store._segments.use(place.segment) as fd:
        rig.disk.pwritev(fd, [b"half a record"], place.position_bytes + 4096)
    rig.store._segments.withdraw(place)
    rig.store.sync_round()
    rig.power_cut(1)
    assert rig.get(2) == content(2, 10_000)
    assert rig.store.quarantined() == []


# --- large records ---------------------------------------------------------------------------------------


@pytest.fixture
def direct_rig(make_rig):
    """Chunks from 100,000 bytes on are large."""
    return make_rig(direct_bytes_min=100_000)


def test_large_records_are_written_past_the_page_cache_to_a_segment_of_their_own(direct_rig):
    rig = direct_rig
    for chunk, length in enumerate([10_000, 100_000, 99_999, 204_800], 1):
        rig.put(chunk, content(chunk, length))
    segments = {chunk: row.segment for chunk, row in rig.rows()}
    assert segments == {1: 1, 2: 2, 3: 1, 4: 2}
    assert rig.disk.calls["pwritev_direct"] == 2
    assert rig.disk.calls["pwritev_direct refused"] == 0
    rig.crash()
    rig.put(5, content(5, 150_000))
    for chunk, length in enumerate([10_000, 100_000, 99_999, 204_800, 150_000], 1):
        assert rig.get(chunk) == content(chunk, length)


def test_a_large_record_survives_a_power_cut_once_it_is_synced(direct_rig):
    direct_rig.put(1, content(1, 150_000), durable=True)
    direct_rig.put(2, content(2, 150_000))
    direct_rig.power_cut(3)
    assert direct_rig.get(1) == content(1, 150_000)
    assert direct_rig.store.quarantined() == []


@pytest.mark.parametrize("pages", [0, 1, 2, 30])
def test_what_a_direct_write_leaves_is_written_through_the_page_cache(direct_rig, pages):
    direct_rig.disk.direct_bytes_max = pages * 4096
    direct_rig.put(1, content(1, 150_000), durable=True)
    direct_rig.put(2, content(2, 150_000), durable=True)
    direct_rig.power_cut(1)
    assert [direct_rig.get(chunk) for chunk in (1, 2)] == [content(chunk, 150_000) for chunk in (1, 2)]


def test_a_filesystem_without_direct_writes_takes_large_records_like_others(direct_rig):
    direct_rig.disk.takes_direct = False
    for chunk in range(1, 5):
        direct_rig.put(chunk, content(chunk, 150_000))
    assert {row.segment for chunk, row in direct_rig.rows() if chunk > 1} == {2}
    direct_rig.restart()
    assert direct_rig.get(4) == content(4, 150_000)


def test_bytes_that_lie_otherwise_in_memory_are_stored_all_the_same(direct_rig):
    data = content(1, 150_000)
    direct_rig.store.put(chunk=ChunkId(1), ino=InodeId(7), offset_bytes=0, data=[data], expected_hash=hash_of(data))
    assert direct_rig.disk.calls["pwritev_direct refused"] == 1
    assert direct_rig.get(1) == data


def test_no_space_for_a_large_record_withdraws_it_and_lets_the_next_have_its_turn(direct_rig):
    rig = direct_rig
    rig.disk.fail("pwritev_direct", errno.ENOSPC)
    with pytest.raises(TargetFull):
        rig.put(1, content(1, 150_000))
    rig.put(2, content(2, 150_000))
    assert rig.store.failed == ""
    rig.power_cut(1)
    assert rig.store.quarantined() == []


def test_room_behind_the_end_of_the_file_is_all_that_direct_writes_get(direct_rig):
    """Else the system might have some of its pages in memory, and somebody change them meanwhile."""
    rig = direct_rig
    ends, pwritev_direct = [], rig.disk.pwritev_direct
    index_add, chance = rig.store._index.add, random.Random(1)

    def note(fd, buffers, offset):
        time.sleep(chance.random() / 1000)  # those that begin together are overtaken
        ends.append((offset, rig.disk.size(fd)))
        return pwritev_direct(fd, buffers, offset)

    def full(*row):
        raise lmdb.MapFullError

    rig.disk.pwritev_direct = note
    rig.put(1, content(1, 150_000))
    rig.store._index.add = full  # the record is written, and withdrawn
    with pytest.raises(TargetFull):
        rig.put(2, content(2, 150_000))
    rig.store._index.add = index_add
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda chunk: rig.put(chunk, content(chunk, 150_000)), range(3, 40)))
    rig.restart()
    rig.put(50, content(50, 150_000))
    assert len(ends) == 40
    assert all(offset >= size for offset, size in ends)


def test_a_failed_direct_write_takes_the_target_out(direct_rig):
    direct_rig.put(1, b"abc")
    direct_rig.disk.fail("pwritev_direct", errno.EIO)
    with pytest.raises(TargetDown):
        direct_rig.put(2, content(2, 150_000))
    assert_out_of_service(direct_rig)


# --- failing ---------------------------------------------------------------------------------------------


def assert_out_of_service(rig: Rig) -> None:
    with pytest.raises(TargetDown):
        rig.put(50, b"xyz")
    with pytest.raises(TargetDown):
        rig.store.sync(1)
    with pytest.raises(TargetDown):
        rig.store.delete([ChunkId(1)])
    assert rig.get(1) == b"abc"  # reading is safe: every byte is verified


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_failed_write_takes_the_target_out(rig, number):
    rig.put(1, b"abc")
    rig.disk.fail("pwritev", number)
    with pytest.raises(TargetDown):
        rig.put(2, b"def")
    assert "a write failed" in rig.store.failed
    assert_out_of_service(rig)
    assert rig.chunks() == [1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_takes_the_target_out_and_no_later_one_hides_it(rig, number):
    rig.put(1, b"abc")
    rig.disk.fail("fdatasync", number)
    with pytest.raises(TargetDown):
        rig.store.sync(1)
    assert_out_of_service(rig)
    with pytest.raises(OSError, match="earlier fdatasync"):
        rig.store._segments.sync(1)


def test_a_chunk_that_is_deleted_while_it_is_verified_is_missing_and_not_damaged(rig, monkeypatch):
    """Found by bench/chaos_data: the scrubber called it damaged. One that is dead and still listed is: it counts as a
    copy until somebody says so."""
    rig.put(1, b"here")
    rig.put(2, b"here, too")
    row = rig.store.verify(ChunkId(2), deep=True)
    check = rig.store.reader.check

    def check_late(chunk: ChunkId, row: Row) -> str:
        rig.store.delete([chunk])
        return check(chunk, row)

    monkeypatch.setattr(rig.store.reader, "check", check_late)
    with pytest.raises(ChunkMissing):
        rig.store.verify(ChunkId(1), deep=True)
    monkeypatch.undo()
    assert rig.store._mark_dead(ChunkId(2), row) == ""
    with pytest.raises(ChunkCorrupt):
        rig.store.verify(ChunkId(2), deep=True)


def test_a_directory_that_does_not_answer_takes_the_target_out(rig):
    rig.put(1, b"here")
    before = rig.store.usage()
    rig.disk.fail("space", errno.EIO)
    assert rig.store.usage() == before
    assert "does not answer" in rig.store.failed
    assert rig.get(1) == b"here", "what can still be read is"
    with pytest.raises(TargetDown):
        rig.put(2, b"more")


def test_a_put_to_a_directory_that_does_not_answer_takes_the_target_out(rig):
    rig.disk.fail("space", errno.EIO)
    with pytest.raises(TargetDown):
        rig.put(1, b"more")
    assert rig.store.failed


def test_a_failed_target_stays_out_until_a_person_has_looked(rig):
    rig.put(1, b"abc")
    rig.store.sync_round()
    rig.put(2, b"lost at the failed sync")
    rig.disk.fail("fdatasync", errno.EIO)
    with pytest.raises(TargetDown):
        rig.store.sync(1)
    rig.store.close()
    with pytest.raises(TargetDown, match="a sync failed"):
        rig.open()
    rig.disk.unlink(f"{TARGET}/state.json")
    rig.open()
    assert rig.get(1) == b"abc"
    assert rig.chunks() == [1]  # the other was only in memory: it is not taken for stored


# --- threads ---------------------------------------------------------------------------------------------


def test_threads_that_put_the_same_chunk_store_it_once(rig):
    data = content(1, 200_000)
    threads = [threading.Thread(target=rig.put, args=(1, data)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.get(1) == data
    usage = rig.store.usage()
    assert (usage.chunks, usage.quarantined) == (1, 0)
    assert rig.store._index.live_bytes == record_bytes(200_000)
    assert rig.store._segments.in_flight_bytes == 0


def test_threads_put_and_sync_side_by_side(make_rig):
    rig = make_rig(segment_bytes_max=100_000)
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for chunk in range(first, first + 25):
                rig.put(chunk, content(chunk, 1000 + chunk), durable=chunk % 3 == 0)
                if chunk % 5 == 0:
                    rig.store.delete([ChunkId(chunk)])
                if chunk % 10 == 0:
                    rig.store.sync_round()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (100, 200, 300, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    expected = [first + i for first in (100, 200, 300, 400) for i in range(25) if (first + i) % 5]
    assert rig.chunks() == expected
    assert all(rig.get(chunk) == content(chunk, 1000 + chunk) for chunk in expected)
    rows = rig.rows()
    rig.store.sync_round()
    rig.power_cut(3)
    assert rig.rows() == rows


def test_while_deleted_data_is_punched_out_others_are_stored(rig, monkeypatch):
    """Thousands of chunks are deleted with one order, and a filesystem may take long to free their room."""
    rig.put(1, b"old")
    punch, put = rig.store._punch, []

    def slow(row):
        other = threading.Thread(target=lambda: put.append(rig.put(2, b"new")), daemon=True)
        other.start()
        other.join(5)
        assert put, "it waits for the deletion"
        punch(row)

    monkeypatch.setattr(rig.store, "_punch", slow)
    rig.store.delete([ChunkId(1)])
    assert put
    assert [chunk for chunk, _ in rig.store.chunks_after(ChunkId(0), 10)] == [2]


@pytest.mark.parametrize("was_read", [False, True])
def test_while_the_room_of_a_removed_segment_is_freed_others_are_read(make_rig, monkeypatch, was_read):
    """Closing the last descriptor of a file without a name frees it. The whole chunkserver once waited for that."""
    rig = make_rig(segment_bytes_max=1 << 16)
    for chunk in range(1, 4):
        rig.put(chunk, content(chunk, 60_000))
        rig.store.sync_round()
    if was_read:
        rig.get(1)
    close, read = rig.disk.close, []

    def slow(fd):
        other = threading.Thread(target=lambda: read.append(rig.get(3)), daemon=True)
        other.start()
        other.join(5)
        close(fd)

    monkeypatch.setattr(rig.disk, "close", slow)
    rig.store.delete([ChunkId(1)])
    monkeypatch.undo()
    assert read == [content(3, 60_000)]
    assert "00000001.seg" not in rig.segment_names()


def test_a_segment_that_is_filled_while_it_is_found_empty_is_not_removed(make_rig, monkeypatch):
    """Between the look at the index and the removal, another thread stores a chunk there and seals the segment."""
    rig = make_rig(segment_bytes_max=20_000)
    rig.put(1, content(1, 1000))
    look, meanwhile = rig.store._index.segment, []

    def fill_and_seal():
        if not meanwhile:
            meanwhile.append(True)
            rig.put(2, content(2, 1000))
            rig.put(3, content(3, 30_000))  # begins the next segment
            rig.store.sync_round()

    def slow_look(number):
        seen = look(number)
        fill_and_seal()
        return seen

    monkeypatch.setattr(rig.store._index, "segment", slow_look)
    rig.store.delete([ChunkId(1)])
    fill_and_seal()
    assert rig.get(2) == content(2, 1000)


def test_a_block_is_not_served_by_hashes_that_are_damaged_elsewhere(rig):
    rig.put(1, content(1, 3 * BLOCK_BYTES))
    flip(rig, 1, 100 + 2 * 8)  # the hash of block 2
    with pytest.raises(ChunkCorrupt, match="block hashes"):
        rig.store.reader.get(ChunkId(1), 0, 1)


def test_a_fragment_that_is_not_what_it_is_said_to_be_is_refused(rig):
    data = content(1, 100)
    hashes = b"".join((hash_of(data), b"b" * 16, b"c" * 16))
    good = Fragment(0, 2, 1, 199, hashes)
    put = partial(
        rig.store.put, chunk=ChunkId(5), ino=InodeId(7), offset_bytes=0, data=[data], expected_hash=hash_of(data)
    )
    for changes in ({"place": 1}, {"place": 3}, {"data": 1}, {"chunk_bytes": 201}, {"chunk_bytes": 1 << 40}):
        with pytest.raises(BadMessage):
            put(fragment=msgspec.structs.replace(good, **changes))
    put(fragment=good)
    assert rig.get(5) == data
