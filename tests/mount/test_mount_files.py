"""What a program that opens one file and reads and writes it may rely on."""

import errno
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from harness.refusals import failing

KIB = 1024
MIB = 1024 * KIB
INLINE = 20_456  # up to here a file lives in the metadata
CHUNK = 4 * MIB

SIZES = [
    0, 1, INLINE - 1, INLINE, INLINE + 1, 16 * KIB, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1,
    CHUNK - 1, CHUNK, CHUNK + 1, 9 * MIB,
]  # fmt: skip


def noise(size: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(mnt: Path, size: int):
    data = noise(size)
    (mnt / "f").write_bytes(data)
    assert (mnt / "f").read_bytes() == data
    assert (mnt / "f").stat().st_size == size


@pytest.mark.parametrize("size", SIZES)
def test_bytes_in_the_middle_are_replaced(mnt: Path, size: int):
    data = bytearray(noise(size))
    (mnt / "f").write_bytes(data)
    place = size // 2
    with open(mnt / "f", "r+b") as file:
        file.seek(place)
        file.write(b"REPLACED")
    data[place : place + 8] = b"REPLACED"
    assert (mnt / "f").read_bytes() == data


@pytest.mark.parametrize("size", [0, 100, INLINE - 3, INLINE, CHUNK - 3, CHUNK])
def test_append_goes_to_the_end(mnt: Path, size: int):
    (mnt / "f").write_bytes(noise(size))
    with open(mnt / "f", "ab") as file:
        file.write(b"tail" * 3)
    assert (mnt / "f").read_bytes() == noise(size) + b"tail" * 3


@pytest.mark.parametrize("size", [10, INLINE, 70 * KIB, CHUNK + 5])
@pytest.mark.parametrize("new_size", [0, 1, INLINE - 1, 64 * KIB, CHUNK, CHUNK + 9])
def test_truncate_cuts_or_fills_with_zeros(mnt: Path, size: int, new_size: int):
    data = noise(size)
    (mnt / "f").write_bytes(data)
    os.truncate(mnt / "f", new_size)
    assert (mnt / "f").read_bytes() == data[:new_size].ljust(new_size, b"\0")


@pytest.mark.parametrize("size", [3000, 5 * MIB])
def test_what_truncate_cut_off_does_not_come_back(mnt: Path, size: int):
    with open(mnt / "f", "w+b", buffering=0) as file:
        file.write(b"x" * size)
        file.truncate(10)
        file.truncate(size)
        file.seek(0)
        assert file.read() == b"x" * 10 + bytes(size - 10)
    assert (mnt / "f").read_bytes() == b"x" * 10 + bytes(size - 10)


def test_pread_and_pwrite_leave_the_offset_alone(mnt: Path):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789")
    assert os.pwrite(fd, b"AB", 3) == 2
    assert os.pread(fd, 4, 2) == b"2AB5"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 10
    os.close(fd)


def test_pwritev_and_preadv(mnt: Path):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    assert os.pwritev(fd, [b"ab", b"cde"], 1) == 5
    buffers = [bytearray(2), bytearray(4)]
    assert os.preadv(fd, buffers, 0) == 6
    assert b"".join(buffers) == b"\0abcde"
    os.close(fd)


def test_seek_moves_from_start_current_and_end(mnt: Path):
    (mnt / "f").write_bytes(b"0123456789")
    with open(mnt / "f", "rb", buffering=0) as file:
        assert file.seek(4) == 4
        assert file.seek(2, os.SEEK_CUR) == 6
        assert file.read(1) == b"6"
        assert file.seek(-1, os.SEEK_END) == 9
        assert file.read(5) == b"9"


def test_reading_at_and_beyond_the_end_gives_nothing(mnt: Path):
    (mnt / "f").write_bytes(b"abc")
    fd = os.open(mnt / "f", os.O_RDONLY)
    assert os.pread(fd, 10, 3) == b""
    assert os.pread(fd, 10, 1 << 30) == b""
    assert os.pread(fd, 10, 2) == b"c"
    os.close(fd)


def test_a_file_that_is_being_written_is_read_as_written_so_far(mnt: Path):
    with open(mnt / "f", "wb", buffering=0) as out, open(mnt / "f", "rb", buffering=0) as file:
        for size in (10, INLINE, 100 * KIB, CHUNK):
            out.write(noise(size, size))
            assert os.fstat(file.fileno()).st_size == out.tell()
            assert os.pread(file.fileno(), size, out.tell() - size) == noise(size, size)


def test_a_handle_opened_before_sees_what_another_handle_writes(mnt: Path):
    (mnt / "f").write_bytes(b"old" * 100)
    with open(mnt / "f", "rb", buffering=0) as file:
        assert file.read(3) == b"old"
        with open(mnt / "f", "r+b", buffering=0) as out:
            out.write(b"new" * 100)
            assert os.pread(file.fileno(), 6, 0) == b"newnew"
        assert os.pread(file.fileno(), 6, 0) == b"newnew"


@pytest.mark.parametrize("largest", [6_000, 700_000])
def test_random_writes_and_truncations_agree_with_a_bytearray(mnt: Path, largest: int):
    random = Random(largest)
    model = bytearray()
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    for _ in range(150):
        action = random.random()
        place = random.randrange(largest)
        if action < 0.6:
            data = random.randbytes(random.randrange(largest // 4))
            model.extend(bytes(max(0, place - len(model))))
            model[place : place + len(data)] = data
            os.pwrite(fd, data, place)
        elif action < 0.75:
            del model[place:]
            model.extend(bytes(place - len(model)))
            os.ftruncate(fd, place)
        elif action < 0.8:
            os.close(fd)
            fd = os.open(mnt / "f", os.O_RDWR)
        elif action < 0.85:
            os.fsync(fd)
        else:
            assert os.pread(fd, 50_000, place) == model[place : place + 50_000]
    assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert (mnt / "f").read_bytes() == model


def test_large_random_writes_agree_with_a_bytearray(mnt: Path):
    random = Random(3)
    model = bytearray(12 * MIB)
    with open(mnt / "f", "w+b", buffering=0) as file:
        file.truncate(len(model))
        for _ in range(25):
            place = random.randrange(len(model) - 2 * MIB)
            data = random.randbytes(random.randrange(1, 2 * MIB))
            model[place : place + len(data)] = data
            file.seek(place)
            assert file.write(data) == len(data)
    assert (mnt / "f").read_bytes() == model


def test_one_write_call_takes_megabytes(mnt: Path):
    data = noise(9 * MIB)
    fd = os.open(mnt / "f", os.O_WRONLY | os.O_CREAT)
    assert os.write(fd, data) == len(data)
    os.close(fd)
    assert (mnt / "f").read_bytes() == data


# --- holes -----------------------------------------------------------------------------------------------------------


def test_holes_read_as_zeros_and_take_no_space(mnt: Path):
    with open(mnt / "f", "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    status = (mnt / "f").stat()
    assert status.st_size == (1 << 30) + 3
    assert status.st_blocks * 512 < MIB
    with open(mnt / "f", "rb") as file:
        assert file.read(MIB) == bytes(MIB)
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"\0\0end"


def test_a_file_that_only_grew_by_truncate_is_a_hole(mnt: Path):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 40)
    assert os.fstat(fd).st_size == 1 << 40
    assert os.fstat(fd).st_blocks == 0
    assert os.pread(fd, 100, 1 << 39) == bytes(100)
    os.close(fd)


def test_writing_into_a_hole_leaves_the_rest_of_it(mnt: Path):
    os.close(os.open(mnt / "f", os.O_CREAT | os.O_WRONLY))
    os.truncate(mnt / "f", 10 * MIB)
    with open(mnt / "f", "r+b") as file:
        file.seek(5 * MIB)
        file.write(b"island")
    assert (mnt / "f").read_bytes() == bytes(5 * MIB) + b"island" + bytes(5 * MIB - 6)
    assert (mnt / "f").stat().st_blocks * 512 < MIB


def test_blocks_count_what_was_written(mnt: Path):
    (mnt / "f").write_bytes(noise(5 * MIB))
    assert 5 * MIB <= (mnt / "f").stat().st_blocks * 512 < 6 * MIB


# --- how a file is opened --------------------------------------------------------------------------------------------


def test_o_excl_refuses_what_exists(mnt: Path):
    os.close(os.open(mnt / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(mnt / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_o_excl_lets_one_of_many_win(mnt: Path):
    script = (
        "import os, sys\n"
        "for number in range(50):\n"
        "    try: os.close(os.open(f'{sys.argv[1]}/{number}', os.O_CREAT | os.O_EXCL)); print(number)\n"
        "    except FileExistsError: pass\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, mnt], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    won = [int(line) for racer in racers for line in racer.communicate()[0].split()]
    assert sorted(won) == list(range(50))


def test_o_creat_leaves_an_existing_file_as_it_is(mnt: Path):
    (mnt / "f").write_bytes(b"here")
    os.close(os.open(mnt / "f", os.O_CREAT | os.O_WRONLY, 0o600))
    assert (mnt / "f").read_bytes() == b"here"
    assert (mnt / "f").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [100, 5 * MIB])
def test_o_trunc_empties(mnt: Path, size: int):
    (mnt / "f").write_bytes(noise(size))
    fd = os.open(mnt / "f", os.O_RDWR | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    assert os.read(fd, 10) == b""
    os.close(fd)
    assert (mnt / "f").read_bytes() == b""


def test_appends_of_several_processes_land_once_and_whole(mnt: Path):
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for number in range(200):\n"
        "    os.write(fd, f'{sys.argv[2]}-{number:04}-'.encode().ljust(99, b'.') + b'\\n')\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, mnt / "log", str(who)]) for who in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = (mnt / "log").read_bytes().splitlines()
    assert {len(line) for line in lines} == {99}
    for who in range(4):
        mine = [int(line.split(b"-")[1]) for line in lines if line.startswith(b"%d-" % who)]
        assert mine == list(range(200))


def test_o_append_writes_at_the_end_whatever_the_offset(mnt: Path):
    (mnt / "f").write_bytes(b"12345")
    fd = os.open(mnt / "f", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"6")
    os.ftruncate(fd, 2)
    os.write(fd, b"3")
    assert os.pread(fd, 10, 0) == b"123"
    os.close(fd)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(mnt: Path, flag: int):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT | flag)
    for part in range(5):
        assert os.write(fd, noise(3000, part)) == 3000
    os.close(fd)
    assert (mnt / "f").read_bytes() == b"".join(noise(3000, part) for part in range(5))


def test_fsync_fdatasync_and_sync_of_a_directory(mnt: Path):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, noise(100 * KIB))
    os.fsync(fd)
    os.write(fd, b"more")
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(mnt, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    assert (mnt / "f").read_bytes() == noise(100 * KIB) + b"more"


def test_syncing_a_read_only_handle_syncs_what_others_wrote(mnt: Path):
    with open(mnt / "f", "wb", buffering=0) as out, open(mnt / "f", "rb") as file:
        out.write(b"data")
        os.fsync(file.fileno())
        assert file.read() == b"data"


def test_a_duplicate_descriptor_works_after_the_first_is_closed(mnt: Path):
    first = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    second = os.dup(first)
    os.write(first, b"one")
    os.close(first)
    os.write(second, b"two")
    assert os.pread(second, 10, 0) == b"onetwo"
    os.close(second)
    assert (mnt / "f").read_bytes() == b"onetwo"


def test_a_child_process_writes_through_an_inherited_descriptor(mnt: Path):
    with open(mnt / "f", "wb") as file:
        file.write(b"parent ")
        file.flush()
        subprocess.run(["echo", "child"], stdout=file, check=True)
        file.write(b"parent again")
    assert (mnt / "f").read_bytes() == b"parent child\nparent again"


# --- names that go away while a file is open -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5 * MIB])
def test_an_unlinked_open_file_stays_readable(mnt: Path, size: int):
    (mnt / "f").write_bytes(noise(size))
    with open(mnt / "f", "rb") as file:
        (mnt / "f").unlink()
        assert not (mnt / "f").exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == noise(size)


@pytest.mark.parametrize("size", [100, 5 * MIB])
def test_an_unlinked_open_file_stays_writable(mnt: Path, size: int):
    with open(mnt / "f", "w+b") as file:
        file.write(b"before")
        (mnt / "f").unlink()
        file.write(noise(size))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"before" + noise(size)


def test_a_name_that_was_unlinked_can_be_made_again(mnt: Path):
    with open(mnt / "f", "w+b", buffering=0) as old:
        old.write(b"old")
        (mnt / "f").unlink()
        (mnt / "f").write_bytes(b"new")
        assert os.pread(old.fileno(), 9, 0) == b"old"
        assert (mnt / "f").read_bytes() == b"new"
        assert os.fstat(old.fileno()).st_ino != (mnt / "f").stat().st_ino


def test_an_open_file_survives_a_rename_over_it(mnt: Path):
    (mnt / "f").write_bytes(b"old")
    (mnt / "g").write_bytes(b"new")
    with open(mnt / "f", "r+b", buffering=0) as file:
        os.rename(mnt / "g", mnt / "f")
        assert os.pread(file.fileno(), 9, 0) == b"old"
        file.write(b"OLD")
        assert os.pread(file.fileno(), 9, 0) == b"OLD"
    assert (mnt / "f").read_bytes() == b"new"


def test_an_open_file_is_written_under_its_new_name(mnt: Path):
    with open(mnt / "f", "wb", buffering=0) as file:
        file.write(b"one ")
        os.rename(mnt / "f", mnt / "g")
        file.write(b"two")
    assert (mnt / "g").read_bytes() == b"one two"


def test_truncate_by_name_and_by_handle_reach_an_open_file(mnt: Path):
    with open(mnt / "f", "w+b", buffering=0) as file:
        file.write(noise(100 * KIB))
        os.truncate(mnt / "f", 50)
        assert os.fstat(file.fileno()).st_size == 50
        assert os.pread(file.fileno(), 100, 0) == noise(100 * KIB)[:50]
        os.ftruncate(file.fileno(), 60)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    assert (mnt / "f").read_bytes() == noise(100 * KIB)[:50] + bytes(10) + b"end"


def test_temporary_files_without_care_for_the_place(mnt: Path):
    import tempfile

    with tempfile.TemporaryFile(dir=mnt) as file:
        file.write(b"scratch")
        file.seek(0)
        assert file.read() == b"scratch"
    with tempfile.NamedTemporaryFile(dir=mnt) as file:
        assert Path(file.name).exists()
    assert os.listdir(mnt) == []


# --- refusals --------------------------------------------------------------------------------------------------------


def test_beyond_sixteen_tebibytes_is_too_large(mnt: Path):
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    assert failing(os.pwrite, fd, b"x", 1 << 44) == errno.EFBIG
    assert failing(os.ftruncate, fd, (1 << 44) + 1) == errno.EFBIG
    assert os.fstat(fd).st_size == 0
    os.close(fd)


def test_a_directory_is_not_read_or_written_as_a_file(mnt: Path):
    fd = os.open(mnt, os.O_RDONLY)
    assert failing(os.read, fd, 1) == errno.EISDIR
    os.close(fd)
    assert failing(os.open, mnt, os.O_WRONLY) == errno.EISDIR


def test_handles_do_only_what_they_were_opened_for(mnt: Path):
    (mnt / "f").write_bytes(b"data")
    fd = os.open(mnt / "f", os.O_RDONLY)
    assert failing(os.write, fd, b"x") == errno.EBADF
    assert failing(os.ftruncate, fd, 0) in (errno.EBADF, errno.EINVAL)
    os.close(fd)
    fd = os.open(mnt / "f", os.O_WRONLY)
    assert failing(os.read, fd, 1) == errno.EBADF
    os.close(fd)


def test_opening_what_is_not_there(mnt: Path):
    assert failing(os.open, mnt / "absent", os.O_RDONLY) == errno.ENOENT
    assert failing(os.open, mnt / "absent" / "f", os.O_CREAT) == errno.ENOENT
    (mnt / "f").touch()
    assert failing(os.open, mnt / "f" / "g", os.O_RDONLY) == errno.ENOTDIR
    assert failing(os.open, mnt / "f", os.O_DIRECTORY) == errno.ENOTDIR


def test_o_nofollow_refuses_a_symlink(mnt: Path):
    (mnt / "f").touch()
    (mnt / "link").symlink_to("f")
    assert failing(os.open, mnt / "link", os.O_NOFOLLOW) == errno.ELOOP


# --- programs, and the page cache left out ---------------------------------------------------------------------------


def test_a_program_that_runs_is_not_written_and_one_that_is_written_does_not_run(mnt: Path):
    program = mnt / "program"
    shutil.copy("/bin/sleep", program)
    running = subprocess.Popen([str(program), "60"])
    try:
        assert failing(os.open, program, os.O_WRONLY) == errno.ETXTBSY
        assert failing(os.truncate, program, 0) == errno.ETXTBSY
        program.rename(mnt / "moved")  # names may change
    finally:
        running.kill()
        running.wait()
    with (mnt / "moved").open("r+b"):
        assert failing(lambda: subprocess.run([str(mnt / "moved"), "0"], check=True)) == errno.ETXTBSY
    assert subprocess.run([str(mnt / "moved"), "0"], check=False).returncode == 0


@pytest.mark.parametrize("offset", [0, 4096, 70 * 4096])
def test_direct_writes_and_reads(mnt: Path, offset: int):
    """Aligned, as every filesystem takes them; what was buffered before is seen, and the other way round."""
    with mmap.mmap(-1, 3 * 4096) as buffer:  # memory at a page's boundary
        buffer[:] = os.urandom(len(buffer))
        data = bytes(buffer)
        (mnt / "f").write_bytes(b"b" * 5000)
        descriptor = os.open(mnt / "f", os.O_RDWR | os.O_DIRECT)
        try:
            assert os.pwritev(descriptor, [buffer], offset) == len(data)
            buffer[:] = bytes(len(data))
            assert os.preadv(descriptor, [buffer], offset) == len(data)
            assert bytes(buffer) == data
        finally:
            os.close(descriptor)
    expected = bytearray(b"b" * 5000 + bytes(max(0, offset - 5000)))
    expected[offset : offset + len(data)] = data
    assert (mnt / "f").read_bytes() == bytes(expected)


def test_direct_reads_across_the_end(mnt: Path):
    (mnt / "f").write_bytes(b"x" * 5000)
    descriptor = os.open(mnt / "f", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 2 * 4096) as buffer:
        assert os.preadv(descriptor, [buffer], 4096) == 5000 - 4096
        assert os.preadv(descriptor, [buffer], 8192) == 0
    os.close(descriptor)
