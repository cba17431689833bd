"""rename(2) and renameat2(2): every case that POSIX and Linux tell apart."""

import errno
import os
import subprocess
import sys
from pathlib import Path

from harness.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from harness.refusals import failing


def test_a_file_is_moved(mnt: Path):
    (mnt / "d").mkdir()
    (mnt / "f").write_text("data")
    number = (mnt / "f").stat().st_ino
    os.rename(mnt / "f", mnt / "d" / "g")
    assert os.listdir(mnt) == ["d"]
    assert (mnt / "d" / "g").read_text() == "data"
    assert (mnt / "d" / "g").stat().st_ino == number


def test_a_directory_is_moved_with_all_below_it(mnt: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    (mnt / "d" / "e" / "f").write_text("data")
    (mnt / "other").mkdir()
    os.rename(mnt / "d", mnt / "other" / "moved")
    assert (mnt / "other" / "moved" / "e" / "f").read_text() == "data"
    assert not (mnt / "d").exists()


def test_a_file_replaces_a_file(mnt: Path):
    (mnt / "f").write_text("new")
    (mnt / "g").write_text("old")
    os.link(mnt / "g", mnt / "g2")
    os.rename(mnt / "f", mnt / "g")
    assert (mnt / "g").read_text() == "new"
    assert (mnt / "g2").read_text() == "old"
    assert (mnt / "g2").stat().st_nlink == 1
    assert sorted(os.listdir(mnt)) == ["g", "g2"]


def test_a_directory_replaces_an_empty_directory_only(mnt: Path):
    for name in ("d", "empty", "full"):
        (mnt / name).mkdir()
    (mnt / "d" / "f").touch()
    (mnt / "full" / "f").touch()
    assert failing(os.rename, mnt / "d", mnt / "full") in (errno.ENOTEMPTY, errno.EEXIST)
    os.rename(mnt / "d", mnt / "empty")
    assert sorted(os.listdir(mnt)) == ["empty", "full"]
    assert os.listdir(mnt / "empty") == ["f"]
    assert mnt.stat().st_nlink == 4


def test_files_and_directories_do_not_replace_each_other(mnt: Path):
    (mnt / "d").mkdir()
    (mnt / "f").touch()
    assert failing(os.rename, mnt / "f", mnt / "d") == errno.EISDIR
    assert failing(os.rename, mnt / "d", mnt / "f") == errno.ENOTDIR


def test_onto_itself_and_onto_its_own_link_nothing_happens(mnt: Path):
    (mnt / "f").write_text("data")
    os.link(mnt / "f", mnt / "g")
    os.rename(mnt / "f", mnt / "f")
    os.rename(mnt / "f", mnt / "g")
    assert sorted(os.listdir(mnt)) == ["f", "g"]
    assert (mnt / "f").stat().st_nlink == 2


def test_a_directory_does_not_move_into_itself(mnt: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    assert failing(os.rename, mnt / "d", mnt / "d" / "inside") == errno.EINVAL
    assert failing(os.rename, mnt / "d", mnt / "d" / "e" / "inside") == errno.EINVAL
    assert failing(os.rename, mnt / "d" / "e", mnt / "d") == errno.ENOTEMPTY


def test_what_is_absent_is_not_moved(mnt: Path):
    (mnt / "f").touch()
    assert failing(os.rename, mnt / "absent", mnt / "g") == errno.ENOENT
    assert failing(os.rename, mnt / "f", mnt / "absent" / "g") == errno.ENOENT
    assert failing(os.rename, mnt / "f", f"{mnt}/g/") == errno.ENOTDIR


def test_a_symlink_is_moved_itself(mnt: Path):
    (mnt / "target").write_text("data")
    (mnt / "s").symlink_to("target")
    (mnt / "f").write_text("over")
    os.rename(mnt / "s", mnt / "t")
    assert os.readlink(mnt / "t") == "target"
    os.rename(mnt / "f", mnt / "t")
    assert (mnt / "target").read_text() == "data"
    assert (mnt / "t").read_text() == "over"


def test_noreplace_refuses_a_taken_name(mnt: Path):
    (mnt / "f").write_text("f")
    (mnt / "g").write_text("g")
    assert failing(renameat2, mnt / "f", mnt / "g", RENAME_NOREPLACE) == errno.EEXIST
    renameat2(mnt / "f", mnt / "h", RENAME_NOREPLACE)
    assert sorted(os.listdir(mnt)) == ["g", "h"]


def test_exchange_swaps_two_files(mnt: Path):
    (mnt / "f").write_text("f")
    (mnt / "g").write_text("g")
    renameat2(mnt / "f", mnt / "g", RENAME_EXCHANGE)
    assert (mnt / "f").read_text() == "g"
    assert (mnt / "g").read_text() == "f"


def test_exchange_swaps_a_file_and_a_directory_of_other_directories(mnt: Path):
    (mnt / "a" / "sub").mkdir(parents=True)
    (mnt / "a" / "sub" / "x").write_text("x")
    (mnt / "b").mkdir()
    (mnt / "b" / "f").write_text("f")
    renameat2(mnt / "a" / "sub", mnt / "b" / "f", RENAME_EXCHANGE)
    assert (mnt / "b" / "f" / "x").read_text() == "x"
    assert (mnt / "a" / "sub").read_text() == "f"
    assert (mnt / "a").stat().st_nlink == 2
    assert (mnt / "b").stat().st_nlink == 3
    assert os.stat(mnt / "b" / "f" / "..").st_ino == (mnt / "b").stat().st_ino


def test_exchange_needs_both_names_and_makes_no_circle(mnt: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    assert failing(renameat2, mnt / "d", mnt / "absent", RENAME_EXCHANGE) == errno.ENOENT
    assert failing(renameat2, mnt / "d", mnt / "d" / "e", RENAME_EXCHANGE) == errno.EINVAL
    assert failing(renameat2, mnt / "d", mnt / "d", RENAME_EXCHANGE | RENAME_NOREPLACE) == errno.EINVAL


def test_a_reader_finds_the_old_or_the_new_file_and_never_none(mnt: Path):
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for number in range(200):\n"
        "    with open('new', 'w') as file: file.write(f'{number:06}' * 1000)\n"
        "    os.rename('new', 'current')\n"
    )
    (mnt / "current").write_text("------" * 1000)
    writer = subprocess.Popen([sys.executable, "-c", script, mnt])
    while writer.poll() is None:
        text = (mnt / "current").read_text()
        assert len(text) == 6000
        assert text == text[:6] * 1000
    assert writer.returncode == 0
    assert (mnt / "current").read_text() == "000199" * 1000
