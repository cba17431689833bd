"""Listing directories, also large ones, also while they change."""

import os
from pathlib import Path

from harness.libc import DirStream

# Each is made, and removed at the end, one after the other: the kernel lets one process at a time change a directory.
# On a machine that is very busy 5,000 took longer than the fixture lets a test take, and the mount was ended.
MANY = 2_000
LONG = "n" * 200  # so long that few names fill what the kernel and the C library fetch at a time


def fill(directory: Path, count: int, prefix: str = "entry") -> list[bytes]:
    """Make ``count`` names; returns them in order."""
    names = [f"{prefix}-{number:05}" for number in range(count)]
    for name in names:
        os.mknod(directory / name, 0o100644)
    return [name.encode() for name in names]


def test_a_listing_has_every_name_with_its_type(mnt: Path):
    (mnt / "file").touch()
    (mnt / "dir").mkdir()
    (mnt / "link").symlink_to("file")
    os.mkfifo(mnt / "fifo")
    entries = {entry.name: entry for entry in os.scandir(mnt)}
    assert entries.keys() == {"file", "dir", "link", "fifo"}
    assert entries["file"].is_file(follow_symlinks=False)
    assert entries["dir"].is_dir(follow_symlinks=False)
    assert entries["link"].is_symlink()
    assert entries["file"].inode() == (mnt / "file").stat().st_ino


def test_dot_and_dot_dot_are_listed_once(mnt: Path):
    (mnt / "f").touch()
    with DirStream(mnt) as stream:
        names = []
        while (name := stream.read()) is not None:
            names.append(name)
    assert sorted(names) == [b".", b"..", b"f"]


def test_many_entries_are_listed_completely_whatever_happens_meanwhile(mnt: Path):
    """Entries that are there from begin to end appear exactly once; others at most once."""
    names = fill(mnt, MANY)
    assert sorted(os.listdir(os.fsencode(mnt))) == names
    doomed = set(names[::7])
    with DirStream(mnt) as stream:
        seen = [stream.read() for _ in range(1_500)]
        for name in doomed:
            os.unlink(os.path.join(os.fsencode(mnt), name))
        fill(mnt, 300, "later")
        os.rename(mnt / "entry-00001", mnt / "renamed")
        seen += stream.rest()
    listed = [name for name in seen if name not in (b".", b"..")]
    assert len(listed) == len(set(listed))
    assert set(names) - doomed - {b"entry-00001"} <= set(listed)
    assert sum(1 for _ in os.scandir(mnt)) == MANY - len(doomed) + 300


def test_a_directory_is_emptied_while_it_is_listed(mnt: Path):
    fill(mnt, 400, LONG)
    with DirStream(mnt) as stream:
        while (name := stream.read()) is not None:
            if name not in (b".", b".."):
                os.unlink(os.path.join(os.fsencode(mnt), name))
    assert os.listdir(mnt) == []


def test_a_stream_goes_back_to_where_it_was(mnt: Path):
    fill(mnt, 300, LONG)
    with DirStream(mnt) as stream:
        for _ in range(150):
            stream.read()
        position = stream.tell()
        rest = stream.rest()
        assert len(rest) >= 300 - 150
        stream.seek(position)
        assert stream.rest() == rest


def test_a_position_stays_good_when_names_around_it_go(mnt: Path):
    """Whether a name that was removed since the stream was opened is still listed, POSIX leaves open."""
    fill(mnt, 300, LONG)
    with DirStream(mnt) as stream:
        before = [stream.read() for _ in range(100)]
        position = stream.tell()
        rest = stream.rest()
        gone = [before[50], *rest[:5]]
        for name in gone:
            os.unlink(os.path.join(os.fsencode(mnt), name))
        stream.seek(position)
        assert [name for name in stream.rest() if name not in gone] == rest[5:]


def test_rewind_shows_what_was_made_since(mnt: Path):
    fill(mnt, 3)
    with DirStream(mnt) as stream:
        assert len(stream.rest()) == 3
        (mnt / "new").touch()
        stream.rewind()
        assert b"new" in stream.rest()


def test_a_new_name_is_listed_at_once_and_a_removed_one_is_not(mnt: Path):
    for number in range(20):
        (mnt / f"f{number}").touch()
        assert len(os.listdir(mnt)) == 1
        (mnt / f"f{number}").unlink()
        assert os.listdir(mnt) == []


def test_a_listing_has_current_sizes(mnt: Path):
    with open(mnt / "f", "wb", buffering=0) as file:
        file.write(b"12345")
        assert [entry.stat().st_size for entry in os.scandir(mnt)] == [5]
        file.write(bytes(100_000))
        assert [entry.stat().st_size for entry in os.scandir(mnt)] == [100_005]
