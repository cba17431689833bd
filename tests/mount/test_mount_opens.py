"""Files that are opened and closed without a word to Python: programs see nothing of it."""

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.refusals import failing
from shoalfs.fs import native

pytestmark = pytest.mark.skipif(native.shim is None, reason="NOT TESTED: the compiled part was not built")

SETTLED_S = 0.2  # a close is reported after 50 ms, and then the file is offered


@pytest.fixture
def here(cluster: Cluster, mnt: Path) -> Iterator[Path]:
    """The directory of ``mnt``, on a second mount."""
    yield cluster.mount("opens") / mnt.name
    if os.path.ismount(cluster.root / "opens"):
        cluster.umount("opens")


def warm(path: Path) -> bytes:
    """Read it twice, so that the third open is one without a word."""
    for _ in range(2):
        data = path.read_bytes()
        time.sleep(SETTLED_S)
    return data


def opened(cluster: Cluster) -> int:
    """End the mount: how many opens were answered so."""
    cluster.umount("opens")
    log = (cluster.state / "log" / "opens.log").read_text()
    return int(re.findall(r"(\d+) files were opened by the compiled part", log)[-1])


def test_most_opens_of_a_second_epoch(cluster: Cluster, mnt: Path, here: Path):
    for n in range(50):
        (mnt / f"f{n}").write_bytes(b"%d" % n * 1000)
    for _ in range(2):
        for n in range(50):
            assert (here / f"f{n}").read_bytes() == b"%d" % n * 1000
        time.sleep(SETTLED_S)
    for n in range(50):
        with open(here / f"f{n}", "rb") as file:
            assert file.read() == b"%d" % n * 1000
            assert not file.isatty()
    assert opened(cluster) >= 50


def test_what_is_changed_elsewhere_is_read_by_the_next_open_and_the_open_file(mnt: Path, here: Path):
    (mnt / "f").write_bytes(b"0")
    warm(here / "f")
    for n in range(1, 12):
        with open(here / "f", "rb", buffering=0) as file:
            (mnt / "f").write_bytes(b"%d" % n)
            assert file.read() == b"%d" % n
        assert (here / "f").read_bytes() == b"%d" % n
        if n % 5 == 0:
            warm(here / "f")


def test_an_open_file_outlives_its_name(mnt: Path, here: Path):
    for name, size in (("small", 100), ("large", 300_000)):
        for remover in (mnt, here):
            data = os.urandom(size)
            (mnt / name).write_bytes(data)
            warm(here / name)
            with open(here / name, "rb", buffering=0) as file:
                (remover / name).unlink()
                time.sleep(SETTLED_S)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read() == data


def test_pages_that_the_kernel_dropped_are_read_again(mnt: Path, here: Path):
    data = os.urandom(200_000)
    (mnt / "f").write_bytes(data)
    warm(here / "f")
    with open(here / "f", "rb", buffering=0) as first, open(here / "f", "rb", buffering=0) as second:
        os.posix_fadvise(first.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert first.read() == data
        os.fsync(second.fileno())
        assert os.lseek(second.fileno(), 0, os.SEEK_HOLE) == len(data)
    assert (here / "f").read_bytes() == data


def test_locks_through_such_a_handle(mnt: Path, here: Path):
    (mnt / "f").write_bytes(b"bytes")
    warm(here / "f")
    with open(mnt / "f", "r+b") as other:
        with open(here / "f", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            assert failing(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        fcntl.flock(other, fcntl.LOCK_EX)  # it is gone soon
        fcntl.flock(other, fcntl.LOCK_UN)
        warm(here / "f")
        with open(here / "f", "rb") as file, open(here / "f", "rb") as duplicate:
            fcntl.lockf(file, fcntl.LOCK_SH)
            assert failing(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
            duplicate.close()  # fcntl(2): any close of the process ends its locks
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_written_and_read_in_turn(cluster: Cluster, mnt: Path, here: Path):
    (mnt / "f").write_bytes(b"")
    for n in range(5):
        warm(here / "f")
        with open(here / "f", "rb", buffering=0) as reader, open(here / "f", "ab", buffering=0) as writer:
            writer.write(b"%d" % n)
            assert reader.read()[-1:] == b"%d" % n
    assert (mnt / "f").read_bytes() == b"01234"
    assert opened(cluster) > 0


def test_a_scan_that_others_disturb_finds_what_is_there(mnt: Path, here: Path):
    """Names, attributes and bytes that were fetched ahead and are answered without a word, while another mount renames,
    replaces, removes and changes."""
    known = {f"f{n:03d}": b"%03d" % n * (40_000 if n % 5 == 0 else 300) for n in range(300)}
    for name, data in known.items():
        (mnt / name).write_bytes(data)
    names, removed = list(known), []
    for turn, name in enumerate(names[::7] + names[3::7] + names[5::7]):
        if name in known:
            assert (here / name).read_bytes() == known[name]
        other = names[(turn * 2 + 150) % len(names)]
        if turn % 5 == 0:
            (mnt / other).unlink()
            del known[other]
            removed.append(other)
        elif turn % 5 == 1:
            (mnt / "new").write_bytes(known[other] + b"replaced")
            os.rename(mnt / "new", mnt / other)
            known[other] += b"replaced"
        elif turn % 5 == 2:
            os.rename(mnt / other, mnt / f"{other}-moved")
            known[f"{other}-moved"] = known.pop(other)
            removed.append(other)
        elif turn % 5 == 3:
            with open(mnt / other, "ab") as file:
                file.write(b"more")
            known[other] += b"more"
        else:
            os.chmod(mnt / other, 0o640)
            assert (here / other).stat().st_mode & 0o777 == 0o640
        if other in known:
            assert (here / other).stat().st_size == len(known[other])
        names = [name for name in names if name in known]
    for name in removed:
        assert failing(lambda name=name: (here / name).stat()) == errno.ENOENT
    assert {name: (here / name).read_bytes() for name in known} == known
    assert sorted(os.listdir(here)) == sorted(known)


def test_most_names_of_a_first_epoch_are_answered_so(cluster: Cluster, mnt: Path, here: Path):
    for n in range(400):
        (mnt / f"f{n}").write_bytes(b"%d" % n * 100)
    for n in range(400):
        assert (here / f"f{n}").read_bytes() == b"%d" % n * 100
        if n % 20 == 0:
            time.sleep(0.02)
    cluster.umount("opens")
    log = (cluster.state / "log" / "opens.log").read_text()
    assert int(re.findall(r"(\d+) names were looked up", log)[-1]) >= 200
