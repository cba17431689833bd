"""One suite for all implementations of the Disk port."""

import errno
import random
from dataclasses import dataclass

import pytest

from shoalfs.chunkserver.disk import Disk, RealDisk
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.watch import Watch, WatchedDisk
from shoalfs.transport.aligned import aligned
from shoalfs.transport.limits import DISK_CALL_MS_MAX

PAGE = 4096


@dataclass
class Place:
    disk: Disk
    dir: str


@pytest.fixture(params=["real", "memory", "watched"])
def place(request, tmp_path):
    if request.param == "real":
        return Place(RealDisk(), str(tmp_path))
    if request.param == "watched":
        return Place(WatchedDisk(RealDisk(), Watch(DISK_CALL_MS_MAX)), str(tmp_path))
    disk = MemoryDisk()
    disk.make_dirs("/d")
    return Place(disk, "/d")


@pytest.fixture
def file(place):
    return place.disk.open(f"{place.dir}/file", create=True)


def read(disk: Disk, fd: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: disk.preadv(fd, [buffer], offset)])


def test_what_is_written_is_read_back_across_buffers(place, file):
    place.disk.pwritev(file, [b"abc", memoryview(b"defg"), bytearray(b"h")], 10)
    left, right = bytearray(4), bytearray(10)
    assert place.disk.preadv(file, [left, right], 8) == 10
    assert (bytes(left), bytes(right[:6])) == (b"\0\0ab", b"cdefgh")


def test_more_buffers_than_one_system_call_takes(place, file):
    place.disk.pwritev(file, [bytes([index % 251]) for index in range(3000)], 0)
    assert read(place.disk, file, 0, 4000) == bytes(index % 251 for index in range(3000))


def test_empty_buffers_are_skipped(place, file):
    place.disk.pwritev(file, [b"", b"x", b""], 0)
    assert read(place.disk, file, 0, 9) == b"x"


def test_reading_past_the_end_is_short(place, file):
    place.disk.pwritev(file, [b"abc"], 0)
    assert read(place.disk, file, 2, 10) == b"c"
    assert read(place.disk, file, 3, 10) == b""


def test_reading_without_waiting_says_false_when_the_file_is_short(place, file):
    place.disk.pwritev(file, [b"abc"], 0)
    assert not place.disk.preadv_nowait(file, [bytearray(4)], 0)


def test_a_missing_file_is_not_made_unless_asked(place):
    with pytest.raises(FileNotFoundError):
        place.disk.open(f"{place.dir}/none")
    with pytest.raises(FileNotFoundError):
        place.disk.open(f"{place.dir}/nodir/none", create=True)


def test_opening_twice_leads_to_the_same_bytes(place, file):
    other = place.disk.open(f"{place.dir}/file", create=True)
    place.disk.pwritev(file, [b"abc"], 0)
    assert read(place.disk, other, 0, 3) == b"abc"


def test_a_lock_is_held_until_its_descriptor_is_closed(place, file):
    other = place.disk.open(f"{place.dir}/file")
    assert place.disk.lock(file)
    assert not place.disk.lock(other)
    place.disk.close(file)
    assert place.disk.lock(other)


def test_truncate_cuts_and_extends_with_zeros(place, file):
    place.disk.pwritev(file, [b"abcdef"], 0)
    place.disk.truncate(file, 2)
    place.disk.truncate(file, 4)
    assert read(place.disk, file, 0, 9) == b"ab\0\0"
    assert place.disk.size(file) == 4


def test_a_hole_reads_as_zeros_and_the_size_stays(place, file):
    place.disk.pwritev(file, [b"x" * (3 * PAGE)], 0)
    place.disk.punch_hole(file, PAGE, PAGE)
    assert read(place.disk, file, 0, 3 * PAGE) == b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
    place.disk.punch_hole(file, 2 * PAGE, 10 * PAGE)
    assert place.disk.size(file) == 3 * PAGE


def test_names(place, file):
    place.disk.make_dirs(f"{place.dir}/sub/deep")
    place.disk.rename(f"{place.dir}/file", f"{place.dir}/sub/other")
    assert place.disk.list_dir(place.dir) == ["sub"]
    assert place.disk.list_dir(f"{place.dir}/sub") == ["deep", "other"]
    place.disk.unlink(f"{place.dir}/sub/other")
    assert place.disk.list_dir(f"{place.dir}/sub") == ["deep"]
    with pytest.raises(FileNotFoundError):
        place.disk.unlink(f"{place.dir}/sub/other")
    with pytest.raises(FileNotFoundError):
        place.disk.list_dir(f"{place.dir}/none")


def test_an_unlinked_file_is_readable_while_it_is_open(place, file):
    place.disk.pwritev(file, [b"abc"], 0)
    place.disk.unlink(f"{place.dir}/file")
    assert read(place.disk, file, 0, 3) == b"abc"


def test_rename_replaces(place, file):
    place.disk.pwritev(file, [b"new"], 0)
    old = place.disk.open(f"{place.dir}/old", create=True)
    place.disk.pwritev(old, [b"old"], 0)
    place.disk.rename(f"{place.dir}/file", f"{place.dir}/old")
    assert read(place.disk, place.disk.open(f"{place.dir}/old"), 0, 9) == b"new"


def test_syncing_keeps_everything_as_it_is(place, file):
    place.disk.pwritev(file, [b"abc"], 0)
    place.disk.fdatasync(file)
    place.disk.sync_dir(place.dir)
    place.disk.drop_cache(file)
    assert read(place.disk, file, 0, 9) == b"abc"


def test_a_closed_descriptor_is_refused(place, file):
    place.disk.close(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        place.disk.pwritev(file, [b"x"], 0)


def direct(place: Place) -> int:
    fd = place.disk.open_direct(f"{place.dir}/file")
    if fd is None:
        pytest.skip("this filesystem has no descriptors for direct writes")
    return fd


def in_memory(data: bytes, start: int = 0) -> memoryview:
    """The bytes, ``start`` bytes behind the beginning of a page."""
    view = aligned(start + len(data))[start:]
    view[:] = data
    return view


@pytest.mark.parametrize("tail", [0, 1, PAGE - 1])
def test_a_direct_write_is_read_back_by_other_descriptors(place, file, tail):
    head, data, padding = b"h" * PAGE, random.Random(1).randbytes(20 * PAGE + tail), bytes(-tail % PAGE)
    written = place.disk.pwritev_direct(direct(place), [head, in_memory(data), padding], 3 * PAGE)
    assert written == PAGE + len(data) + len(padding)
    assert read(place.disk, file, 3 * PAGE, 100 * PAGE) == head + data + padding
    assert place.disk.size(file) == 3 * PAGE + written
    place.disk.fdatasync(file)


def test_a_direct_write_covers_what_the_system_had_in_memory(place, file):
    place.disk.pwritev(file, [b"old" * 50_000], 0)
    assert read(place.disk, file, 0, 3) == b"old"
    assert place.disk.pwritev_direct(direct(place), [in_memory(b"new!" * PAGE)], 0) == 4 * PAGE
    assert read(place.disk, file, 0, 4 * PAGE) == b"new!" * PAGE
    assert read(place.disk, file, 4 * PAGE, 5) == (b"old" * 50_000)[4 * PAGE : 4 * PAGE + 5]


def test_what_would_have_to_be_copied_is_not_written_directly(place, file):
    data = b"x" * 40 * PAGE
    for buffers in ([in_memory(data, 512)], [data], [in_memory(data).toreadonly()]):
        assert place.disk.pwritev_direct(direct(place), buffers, 0) == 0
    assert place.disk.size(file) == 0


def test_a_little_is_copied_to_be_written_directly(place, file):
    buffers = [b"a" * 100, b"b" * (PAGE - 100), in_memory(b"c" * PAGE), in_memory(b"d" * PAGE, 7)]
    assert place.disk.pwritev_direct(direct(place), buffers, 0) == 3 * PAGE
    assert read(place.disk, file, 0, 9 * PAGE) == b"".join(buffers)


def test_space_and_boot_are_told(place):
    space = place.disk.space(place.dir)
    assert 0 < space.free_bytes <= space.capacity_bytes
    assert place.disk.boot_id() == place.disk.boot_id() != ""


# --- what only the memory disk can do --------------------------------------------------------------------


class Nothing(random.Random):
    """Chance that keeps nothing that was not synced."""

    def choice(self, seq):
        return seq[0]

    def randint(self, a, b):
        return a


def memory_file(disk: MemoryDisk) -> int:
    disk.make_dirs("/d")
    fd = disk.open("/d/file", create=True)
    disk.sync_dir("/d")
    return fd


def test_a_power_cut_loses_what_was_not_synced():
    disk = MemoryDisk()
    fd = memory_file(disk)
    disk.pwritev(fd, [b"a" * 1000], 0)
    disk.fdatasync(fd)
    disk.pwritev(fd, [b"b" * 1000], 500)
    boot = disk.boot_id()
    disk.power_cut(Nothing())
    assert disk.boot_id() != boot
    assert read(disk, disk.open("/d/file"), 0, 5000) == b"a" * 1000
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.size(fd)


def test_a_power_cut_may_tear_a_write_at_sectors():
    outcomes = set()
    for seed in range(60):
        disk = MemoryDisk()
        fd = memory_file(disk)
        disk.pwritev(fd, [b"b" * 2048], 0)
        disk.power_cut(random.Random(seed))
        data = read(disk, disk.open("/d/file"), 0, 2048)
        assert all(data[at : at + 512] in (b"b" * 512, bytes(512), b"") for at in range(0, 2048, 512))
        outcomes.add(data)
    assert {b"", b"b" * 2048} < outcomes


def test_a_power_cut_loses_a_name_that_was_not_synced():
    disk = MemoryDisk()
    fd = memory_file(disk)
    other = disk.open("/d/other", create=True)
    disk.pwritev(other, [b"x"], 0)
    disk.fdatasync(other)
    disk.rename("/d/file", "/d/renamed")
    disk.fdatasync(fd)
    disk.power_cut(Nothing())
    assert disk.list_dir("/d") == ["file"]


def test_a_failed_sync_hides_its_loss_from_the_next():
    disk = MemoryDisk()
    fd = memory_file(disk)
    disk.pwritev(fd, [b"x"], 0)
    disk.fail("fdatasync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(fd)
    disk.fdatasync(fd)
    disk.power_cut(Nothing())
    assert b"x" not in read(disk, disk.open("/d/file"), 0, 9)


def test_a_direct_write_is_lost_in_a_power_cut_as_others_are():
    disk = MemoryDisk()
    fd = memory_file(disk)
    direct_fd = disk.open_direct("/d/file")
    disk.pwritev_direct(direct_fd, [in_memory(b"a" * PAGE)], 0)
    disk.fdatasync(fd)
    disk.pwritev_direct(direct_fd, [in_memory(b"b" * PAGE)], PAGE)
    disk.power_cut(Nothing())
    assert read(disk, disk.open("/d/file"), 0, 9 * PAGE) == b"a" * PAGE


def test_a_full_disk_takes_part_of_a_write():
    disk = MemoryDisk(capacity_bytes=4 * PAGE)
    fd = memory_file(disk)
    with pytest.raises(OSError, match="No space"):
        disk.pwritev(fd, [b"x" * 6 * PAGE], 0)
    assert 0 < disk.size(fd) < 6 * PAGE
    disk.punch_hole(fd, 0, 6 * PAGE)
    assert disk.space("/d").free_bytes == 4 * PAGE


def test_faults_come_when_they_are_ordered():
    disk = MemoryDisk()
    fd = memory_file(disk)
    disk.fail("pwritev", errno.EIO, skip=1, count=2)
    disk.pwritev(fd, [b"x"], 0)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            disk.pwritev(fd, [b"x"], 0)
    disk.pwritev(fd, [b"x"], 0)


def test_after_a_process_crash_everything_written_is_there():
    disk = MemoryDisk()
    fd = memory_file(disk)
    assert disk.lock(fd)
    disk.pwritev(fd, [b"abc"], 0)
    disk.kill()
    again = disk.open("/d/file")
    assert disk.lock(again)
    assert read(disk, again, 0, 9) == b"abc"
