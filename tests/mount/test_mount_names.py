"""Names: making them, removing them, linking them, and what they may be called."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from harness.refusals import failing

# --- directories -----------------------------------------------------------------------------------------------------


def test_a_directory_is_made_and_removed(mnt: Path):
    (mnt / "d").mkdir()
    assert stat.S_ISDIR((mnt / "d").stat().st_mode)
    assert os.listdir(mnt / "d") == []
    (mnt / "d").rmdir()
    assert os.listdir(mnt) == []


def test_mkdir_refuses_a_taken_name(mnt: Path):
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    assert failing(os.mkdir, mnt / "f") == errno.EEXIST
    assert failing(os.mkdir, mnt / "d") == errno.EEXIST


def test_rmdir_refuses_what_is_not_empty_or_no_directory(mnt: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    (mnt / "f").touch()
    assert failing(os.rmdir, mnt / "d") == errno.ENOTEMPTY
    assert failing(os.rmdir, mnt / "f") == errno.ENOTDIR
    assert failing(os.rmdir, mnt / "absent") == errno.ENOENT
    assert failing(os.rmdir, f"{mnt}/d/.") == errno.EINVAL


def test_unlink_refuses_a_directory_and_what_is_absent(mnt: Path):
    (mnt / "d").mkdir()
    assert failing(os.unlink, mnt / "d") == errno.EISDIR
    assert failing(os.unlink, mnt / "absent") == errno.ENOENT


def test_link_count_of_a_directory_is_two_and_its_subdirectories(mnt: Path):
    (mnt / "d").mkdir()
    assert (mnt / "d").stat().st_nlink == 2
    (mnt / "d" / "a").mkdir()
    (mnt / "d" / "b").mkdir()
    (mnt / "d" / "file").touch()
    assert (mnt / "d").stat().st_nlink == 4
    os.rename(mnt / "d" / "a", mnt / "a")
    assert (mnt / "d").stat().st_nlink == 3
    (mnt / "d" / "b").rmdir()
    assert (mnt / "d").stat().st_nlink == 2


def test_dot_and_dot_dot(mnt: Path):
    (mnt / "d" / "e").mkdir(parents=True)
    assert os.stat(f"{mnt}/d/e/.").st_ino == (mnt / "d" / "e").stat().st_ino
    assert os.stat(f"{mnt}/d/e/..").st_ino == (mnt / "d").stat().st_ino
    os.rename(mnt / "d" / "e", mnt / "e")
    assert os.stat(f"{mnt}/e/..").st_ino == mnt.stat().st_ino


def test_a_removed_directory_that_is_open_takes_no_names(mnt: Path):
    (mnt / "d").mkdir()
    fd = os.open(mnt / "d", os.O_RDONLY | os.O_DIRECTORY)
    (mnt / "d").rmdir()
    with pytest.raises(FileNotFoundError):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_deep_paths(mnt: Path):
    depth = 200
    fd = os.open(mnt, os.O_RDONLY)
    for level in range(depth):
        os.mkdir(f"level{level}", dir_fd=fd)
        inner = os.open(f"level{level}", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    path = os.path.join(mnt, *(f"level{level}" for level in range(depth)))
    Path(path, "f").write_text("deep")
    assert Path(path, "f").read_text() == "deep"


# --- what a name may be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\xfe\x80", b"new\nline", b" ", b"-rf", "naïve".encode(), b"a\\b"])
def test_any_bytes_but_slash_and_nul_are_a_name(mnt: Path, name: bytes):
    path = os.path.join(os.fsencode(mnt), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(mnt)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.unlink(path)


def test_names_of_256_bytes_are_too_long(mnt: Path):
    (mnt / "f").touch()
    name = mnt / ("n" * 256)
    assert failing(os.mkdir, name) == errno.ENAMETOOLONG
    assert failing(os.open, name, os.O_CREAT) == errno.ENAMETOOLONG
    assert failing(os.rename, mnt / "f", name) == errno.ENAMETOOLONG
    assert failing(os.link, mnt / "f", name) == errno.ENAMETOOLONG
    assert failing(os.symlink, "f", name) == errno.ENAMETOOLONG
    assert failing(os.stat, name) == errno.ENAMETOOLONG


def test_names_differ_in_case(mnt: Path):
    (mnt / "readme").write_text("small")
    (mnt / "README").write_text("large")
    assert sorted(os.listdir(mnt)) == ["README", "readme"]
    assert (mnt / "readme").read_text() == "small"


# --- hard links ------------------------------------------------------------------------------------------------------


def test_hard_links_are_one_file(mnt: Path):
    (mnt / "f").write_bytes(b"first")
    os.link(mnt / "f", mnt / "g")
    assert (mnt / "f").stat().st_nlink == (mnt / "g").stat().st_nlink == 2
    assert (mnt / "f").stat().st_ino == (mnt / "g").stat().st_ino
    (mnt / "g").write_bytes(b"second, longer")
    assert (mnt / "f").read_bytes() == b"second, longer"
    assert (mnt / "f").stat().st_size == 14


def test_a_file_lives_until_its_last_name_goes(mnt: Path):
    (mnt / "f").write_bytes(b"data")
    (mnt / "d").mkdir()
    os.link(mnt / "f", mnt / "d" / "g")
    (mnt / "f").unlink()
    assert (mnt / "d" / "g").stat().st_nlink == 1
    assert (mnt / "d" / "g").read_bytes() == b"data"


def test_link_refuses_directories_taken_names_and_absent_files(mnt: Path):
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    assert failing(os.link, mnt / "d", mnt / "e") == errno.EPERM
    assert failing(os.link, mnt / "f", mnt / "d") == errno.EEXIST
    assert failing(os.link, mnt / "absent", mnt / "g") == errno.ENOENT


def test_a_link_to_a_symlink_is_a_link_to_the_symlink(mnt: Path):
    (mnt / "s").symlink_to("target")
    os.link(mnt / "s", mnt / "t", follow_symlinks=False)
    assert os.readlink(mnt / "t") == "target"
    assert os.lstat(mnt / "s").st_nlink == 2


def test_a_file_without_a_name_cannot_get_one_back(mnt: Path):
    with open(mnt / "f", "wb") as file:
        (mnt / "f").unlink()
        assert failing(os.link, f"/proc/self/fd/{file.fileno()}", mnt / "g") in (errno.ENOENT, errno.EXDEV)


# --- symbolic links --------------------------------------------------------------------------------------------------


def test_a_symlink_leads_on(mnt: Path):
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_text("found")
    (mnt / "s").symlink_to("d")
    assert os.readlink(mnt / "s") == "d"
    assert (mnt / "s" / "f").read_text() == "found"
    assert stat.S_ISLNK(os.lstat(mnt / "s").st_mode)
    assert os.lstat(mnt / "s").st_size == 1


def test_a_dangling_symlink_can_be_read_and_created_through(mnt: Path):
    (mnt / "s").symlink_to("later")
    assert os.readlink(mnt / "s") == "later"
    assert failing(os.stat, mnt / "s") == errno.ENOENT
    (mnt / "s").write_text("made")
    assert (mnt / "later").read_text() == "made"


def test_a_loop_of_symlinks_is_refused(mnt: Path):
    (mnt / "a").symlink_to("b")
    (mnt / "b").symlink_to("a")
    assert failing(os.stat, mnt / "a") == errno.ELOOP


@pytest.mark.parametrize("length", [1, 255, 4095])
def test_targets_of_symlinks_may_be_long_and_hold_anything(mnt: Path, length: int):
    target = (b"../\xff" * 2000)[:length]
    os.symlink(target, os.fsencode(mnt / "s"))
    assert os.readlink(os.fsencode(mnt / "s")) == target
    assert os.lstat(mnt / "s").st_size == length


def test_readlink_of_something_else(mnt: Path):
    (mnt / "f").touch()
    assert failing(os.readlink, mnt / "f") == errno.EINVAL


# --- special files ---------------------------------------------------------------------------------------------------


def test_a_fifo_carries_bytes(mnt: Path):
    os.mkfifo(mnt / "fifo", 0o640)
    assert (mnt / "fifo").stat().st_mode == stat.S_IFIFO | 0o640
    reading = os.open(mnt / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with open(mnt / "fifo", "wb") as file:
        file.write(b"through")
    assert os.read(reading, 100) == b"through"
    os.close(reading)


def test_a_unix_socket_is_bound_and_reached(mnt: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(mnt)  # a socket's path is limited to 107 bytes
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind("sock")
        listening.listen()
        assert stat.S_ISSOCK((mnt / "sock").stat().st_mode)
        client.connect("sock")
        serving, _ = listening.accept()
        with serving:
            client.sendall(b"hello")
            assert serving.recv(10) == b"hello"


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root only")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_nodes_keep_their_numbers(mnt: Path, kind: int):
    device = os.makedev(259, 70_000)
    os.mknod(mnt / "dev", kind | 0o600, device)
    assert (mnt / "dev").stat().st_mode == kind | 0o600
    assert (mnt / "dev").stat().st_rdev == device


def test_mknod_makes_a_regular_file(mnt: Path):
    os.mknod(mnt / "f", stat.S_IFREG | 0o600)
    (mnt / "f").write_text("ordinary")
    assert (mnt / "f").read_text() == "ordinary"
    assert failing(os.mknod, mnt / "f") == errno.EEXIST
