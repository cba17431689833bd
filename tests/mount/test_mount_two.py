"""Two mounts of one cluster: what is written here is read there, and when.

Contents are close-to-open: an open after a close sees what was written. Names and attributes are the same everywhere
at every moment: nothing here waits for a timeout.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from harness.cluster import Cluster
from harness.refusals import failing


@pytest.mark.parametrize("size", [0, 100, 20_456, 20_457, 100_000, 5_000_000])
def test_an_open_there_sees_what_was_closed_here(mnt: Path, there: Path, size: int):
    data = Random(size).randbytes(size)
    (mnt / "f").write_bytes(data)
    assert (there / "f").read_bytes() == data
    assert (there / "f").stat().st_size == size


@pytest.mark.parametrize("size", [100, 4000, 100_000, 5_000_000])
def test_both_write_in_turn_and_read_each_other(mnt: Path, there: Path, size: int):
    (mnt / "f").write_bytes(bytes(size))
    for turn in range(6):
        ours, theirs = (mnt, there) if turn % 2 else (there, mnt)
        word = b"turn %d" % turn
        with open(ours / "f", "r+b") as file:
            file.seek(turn * size // 10)
            file.write(word)
        with open(theirs / "f", "rb") as file:
            file.seek(turn * size // 10)
            assert file.read(len(word)) == word
    assert (mnt / "f").read_bytes() == (there / "f").read_bytes()


def test_a_file_replaced_by_shorter_and_longer_ones_is_read_whole(mnt: Path, there: Path):
    for size in (5000, 10, 90_000, 0, 300, 4_500_000, 7):
        (mnt / "f").write_bytes(b"%d" % (size % 10) * size)
        assert (there / "f").read_bytes() == b"%d" % (size % 10) * size


def test_fsync_here_is_enough_for_there(mnt: Path, there: Path):
    with open(mnt / "f", "wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
        assert (there / "f").read_bytes() == b"synced"


def test_names_made_here_are_there(mnt: Path, there: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    (mnt / "d" / "e" / "f").write_text("deep")
    (mnt / "s").symlink_to("d/e/f")
    os.link(mnt / "d" / "e" / "f", mnt / "h")
    assert (there / "s").read_text() == "deep"
    assert sorted(os.listdir(there)) == ["d", "h", "s"]
    assert (there / "h").stat().st_ino == (mnt / "d" / "e" / "f").stat().st_ino


def test_a_listing_that_began_before_a_change_does_not_take_it_back(mnt: Path, there: Path):
    """The kernel gets attributes with a listing, of which a page may be older than what it was told since."""
    (mnt / "d").mkdir()
    names = [f"{number:03d}-" + "n" * 200 for number in range(600)]
    for name in names:
        (there / "d" / name).touch()
    with os.scandir(mnt / "d") as entries:
        listed = [next(entries).name]
        (there / "d" / names[-1]).write_text("longer")
        assert (mnt / "d" / names[-1]).stat().st_size == 6
        listed += [entry.name for entry in entries]
    assert listed == names
    assert (mnt / "d" / names[-1]).stat().st_size == 6


def test_a_rename_is_seen(mnt: Path, there: Path):
    (mnt / "f").write_text("old name")
    assert (there / "f").read_text() == "old name"
    os.rename(mnt / "f", mnt / "g")
    assert (there / "g").read_text() == "old name"
    assert not (there / "f").exists()


def test_a_file_renamed_over_another_is_seen(mnt: Path, there: Path):
    (mnt / "f").write_text("old")
    assert (there / "f").read_text() == "old"
    (mnt / "new").write_text("new")
    os.rename(mnt / "new", mnt / "f")
    assert (there / "f").read_text() == "new"


def test_a_name_that_was_looked_for_in_vain_appears(mnt: Path, there: Path):
    assert not (there / "f").exists()
    (mnt / "f").touch()
    assert (there / "f").exists()


def test_a_mode_changed_here_is_seen_there(mnt: Path, there: Path):
    (mnt / "f").touch()
    (there / "f").stat()
    (mnt / "f").chmod(0o600)
    assert (there / "f").stat().st_mode & 0o777 == 0o600


def test_a_truncation_there_reaches_a_handle_here(mnt: Path, there: Path):
    (mnt / "f").write_bytes(b"x" * 100_000)
    with open(mnt / "f", "rb", buffering=0) as file:
        assert len(file.read(10)) == 10
        os.truncate(there / "f", 5)
        assert os.fstat(file.fileno()).st_size == 5
    assert (mnt / "f").read_bytes() == b"xxxxx"


def test_o_excl_lets_one_mount_win(mnt: Path, there: Path):
    for number in range(20):
        os.close(os.open(mnt / f"{number}", os.O_CREAT | os.O_EXCL))
        assert failing(os.open, there / f"{number}", os.O_CREAT | os.O_EXCL) == 17


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(100):
    os.write(fd, f"{sys.argv[2]}-{number:04}-".encode().ljust(int(sys.argv[3]) - 1, b".") + b"\\n")
os.close(fd)
"""


@pytest.mark.parametrize("record", [30, 5_000])
def test_appends_from_both_mounts_land_once_and_whole(mnt: Path, there: Path, record: int):
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDER, root / "log", str(who), str(record)])
        for who, root in enumerate((mnt, there, mnt, there))
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = (mnt / "log").read_bytes().splitlines()
    assert {len(line) for line in lines} == {record - 1}
    for who in range(4):
        assert [int(line.split(b"-")[1]) for line in lines if line.startswith(b"%d-" % who)] == list(range(100))
    assert (there / "log").read_bytes() == (mnt / "log").read_bytes()


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_a_file_unlinked_here_stays_readable_where_it_is_open(mnt: Path, there: Path, size: int):
    data = Random(size).randbytes(size)
    (mnt / "f").write_bytes(data)
    with open(there / "f", "rb") as file:
        (mnt / "f").unlink()
        assert file.read() == data


def test_a_file_replaced_here_stays_readable_where_it_is_open(mnt: Path, there: Path):
    (mnt / "f").write_bytes(b"old" * 100_000)
    with open(there / "f", "rb") as file:
        (mnt / "g").write_bytes(b"new")
        os.rename(mnt / "g", mnt / "f")
        assert file.read() == b"old" * 100_000


def test_both_fill_one_directory(mnt: Path, there: Path):
    for number in range(100):
        ((mnt, there)[number % 2] / f"f{number}").write_text(str(number))
    assert len(os.listdir(mnt)) == len(os.listdir(there)) == 100
    assert all((there / f"f{number}").read_text() == str(number) for number in range(100))


HAMMER = """
import os, sys
root, me, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(root)
won = 0
for number in range(rounds):
    try:
        os.close(os.open("lock", os.O_CREAT | os.O_EXCL))
        won += 1
        os.unlink("lock")
    except FileExistsError:
        pass
    with open(f"{me}-{number}.tmp", "w") as file:
        file.write("x" * number)
    os.rename(f"{me}-{number}.tmp", "shared")
    assert os.stat("shared").st_size < rounds
    os.listdir(".")
print(won)
"""


def test_two_mounts_hammer_one_directory_without_standing_still(mnt: Path, there: Path):
    """Both change and look up the same names at once: the push of one meets the locks that the other's kernel holds."""
    started = [
        subprocess.Popen([sys.executable, "-c", HAMMER, root, str(who), "60"], stdout=subprocess.PIPE)
        for who, root in enumerate((mnt, there, mnt, there))
    ]
    assert all(int(process.communicate(timeout=60)[0]) > 0 for process in started)
    assert os.listdir(mnt) == os.listdir(there) == ["shared"]


def test_what_was_read_once_is_read_again_without_asking_anybody(cluster: Cluster, mnt: Path, there: Path):
    sizes = (10, 5_000, 100_000)
    for size in sizes:
        (mnt / f"{size}").write_bytes(b"x" * size)
    for _ in range(2):  # the second time nothing is left to be learned
        assert [len((there / f"{size}").read_bytes()) for size in sizes] == list(sizes)
        time.sleep(0.3)
    before = cluster.counters()["questions"]
    for _ in range(10):
        assert [len((there / f"{size}").read_bytes()) for size in sizes] == list(sizes)
    assert cluster.counters()["questions"] - before <= 1


def test_what_is_there_and_unchanged_is_not_asked_for_again(cluster: Cluster, mnt: Path, there: Path):
    for number in range(20):
        (mnt / f"f{number}").write_text("x")
    for root in (mnt, there):
        assert [os.stat(root / f"f{number}").st_size for number in range(20)] == [1] * 20
    before = cluster.counters()["questions"]
    for _ in range(5):
        for root in (mnt, there):
            assert [os.stat(root / f"f{number}").st_size for number in range(20)] == [1] * 20
            assert not (root / "absent").exists()
    asked = cluster.counters()["questions"] - before
    assert asked <= 4, f"{asked} requests for two directories and a missing name in each"


CHECKPOINTER = """
import os, sys
directory, rounds = sys.argv[1], int(sys.argv[2])
for number in range(rounds):
    with open(f"{directory}/new", "wb") as file:
        file.write(b"%d " % number * 20_000)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{directory}/new", f"{directory}/checkpoint")
"""


def test_a_checkpoint_is_the_old_one_or_the_new_one_wherever_it_is_read(mnt: Path, there: Path):
    rounds, seen = 15, -1
    (mnt / "checkpoint").write_bytes(b"0 " * 20_000)
    writer = subprocess.Popen([sys.executable, "-c", CHECKPOINTER, mnt, str(rounds)])
    while writer.poll() is None:
        words = (there / "checkpoint").read_bytes().split()
        assert len(words) == 20_000
        assert set(words) == {words[0]}
        assert int(words[0]) >= seen, "an older one after a newer one"
        seen = int(words[0])
    assert writer.returncode == 0
    assert int((there / "checkpoint").read_bytes().split()[0]) == rounds - 1


@pytest.mark.parametrize("append", [True, False], ids=["O_APPEND", "fsync"])
def test_a_log_is_tailed_elsewhere_through_one_open_file(mnt: Path, there: Path, append: bool):
    """What an append or an fsync has returned for is read there by the next read, with no open in between."""
    (mnt / "log").touch()
    writer = os.open(mnt / "log", os.O_WRONLY | (os.O_APPEND if append else 0))
    with open(there / "log", "rb", buffering=0) as tail:
        for number in range(50):
            record = (b"record %d " % number).ljust(3_000, b".")
            os.write(writer, record)
            if not append:
                os.fsync(writer)
            assert tail.read(10_000) == record, number
    os.close(writer)


_LIST = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    list(os.scandir(sys.argv[1]))
"""
_WORK = "import os\nos.nice(15)\nwhile True: pass"


def test_a_name_removed_there_is_gone_here_while_threads_list_that_hardly_run(mnt: Path, there: Path):
    """The kernel takes in what a listing brought when its thread runs next: names that were called back since, too."""
    for number in range(300):
        (there / f"{number:03}").touch()
    processes = [subprocess.Popen([sys.executable, "-c", _LIST, str(mnt)]) for _ in range(4)]
    processes += [subprocess.Popen([sys.executable, "-c", _WORK]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(1)
        for number in range(25):
            time.sleep(0.1 + Random(number).random() / 10)
            (there / f"{number:03}").unlink()
            assert not (mnt / f"{number:03}").exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()
