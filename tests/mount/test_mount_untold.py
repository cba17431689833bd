"""A mount that is told of no open (``ro,nolock``) beside one that writes: it reads what is there."""

import errno
import fcntl
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import Cluster, wait_until
from harness.refusals import failing
from shoalfs.fs import native

pytestmark = pytest.mark.skipif(native.shim is None, reason="NOT TESTED: the compiled part was not built")


@pytest.fixture
def ro(cluster: Cluster, mnt: Path) -> Iterator[Path]:
    """The directory of ``mnt``, on a mount that only reads."""
    yield cluster.mount("untold", "ro,nolock") / mnt.name
    cluster.umount("untold")


def drop_pages(file: object) -> None:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 4096, 300_000])
def test_what_is_changed_is_read_by_the_next_open_and_by_the_open_file(mnt: Path, ro: Path, size: int):
    """Same size, same time: only a push can tell."""
    (mnt / "f").write_bytes(bytes(size))
    assert (ro / "f").read_bytes() == bytes(size)
    with open(ro / "f", "rb", buffering=0) as held, open(mnt / "f", "r+b", buffering=0) as writer:
        mapped = mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ)
        for n in range(1, 13):
            before = os.fstat(writer.fileno())
            writer.seek(0)
            writer.write(bytes([n]) * size)
            os.utime(writer.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
            if n % 3 == 0:
                os.fsync(writer.fileno())
            assert (ro / "f").read_bytes() == bytes([n]) * size
            assert os.pread(held.fileno(), size, 0) == bytes([n]) * size
            assert mapped[0] == mapped[-1] == n
        mapped.close()


def test_closed_replaced_cut_and_appended(mnt: Path, ro: Path):
    for n, size in enumerate((5000, 10, 90_000, 0, 300, 7)):
        (mnt / "f").write_bytes(b"%d" % n * size)
        assert (ro / "f").read_bytes() == b"%d" % n * size
    with open(ro / "f", "rb", buffering=0) as held:
        os.truncate(mnt / "f", 3)
        assert os.pread(held.fileno(), 100, 0) == b"555"
        with open(mnt / "f", "ab") as log:
            for n in range(10):
                log.write(b"%d" % n)
                log.flush()
                assert os.pread(held.fileno(), 100, 0)[-1:] == b"%d" % n
        (mnt / "g").write_bytes(b"another")
        old = (ro / "f").read_bytes()
        os.rename(mnt / "g", mnt / "f")
        assert (ro / "f").read_bytes() == b"another"
        drop_pages(held)
        assert os.pread(held.fileno(), 100, 0) == old
    with pytest.raises(FileNotFoundError):
        (ro / "g").read_bytes()


@pytest.mark.parametrize("size", [100, 300_000])
def test_an_open_file_outlives_its_name(mnt: Path, ro: Path, size: int):
    data = os.urandom(size)
    (mnt / "f").write_bytes(data)
    with open(ro / "f", "rb", buffering=0) as held:
        (mnt / "f").unlink()
        time.sleep(0.3)
        assert not (ro / "f").exists()
        drop_pages(held)
        assert held.read() == data
        assert os.fstat(held.fileno()).st_nlink == 0
        assert os.lseek(held.fileno(), 0, os.SEEK_HOLE) == size
        os.fsync(held.fileno())


def test_a_file_that_was_written_while_it_was_opened_outlives_its_name(mnt: Path, ro: Path):
    """Never leased here: the leader has to be told."""
    with open(mnt / "f", "wb", buffering=0) as writer:
        for n in range(10):
            writer.write(b"%d" % n)
            assert (ro / "f").stat().st_size == n + 1
        with open(ro / "f", "rb", buffering=0) as held:
            writer.write(b"last")
            (mnt / "f").unlink()
            writer.close()
            time.sleep(0.3)
            drop_pages(held)
            assert held.read()[-4:] == b"last"


def test_what_nobody_uses_is_released(cluster: Cluster, mnt: Path, ro: Path):
    """Else a removed file would take room as long as some machine remembers that it was there."""
    for n in range(20):
        (mnt / f"f{n}").write_bytes(bytes(100_000))
        (ro / f"f{n}").read_bytes()
    for n in range(20):
        (mnt / f"f{n}").unlink()
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 18):
        os.listdir(ro)
        Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_until(lambda: not cluster.findings(), "the leader has forgotten the files")


def test_locks_are_this_machines_and_nothing_is_changed(mnt: Path, ro: Path):
    (mnt / "f").write_bytes(b"bytes")
    with open(ro / "f", "rb") as file, open(ro / "f", "rb") as other, open(mnt / "f", "r+b") as writer:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert failing(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB) == errno.EAGAIN
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH)
        fcntl.lockf(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert failing(lambda: (ro / "f").open("r+b")) == errno.EROFS


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root")
def test_mounted_again_to_be_written_it_still_is_not(cluster: Cluster, mnt: Path, ro: Path):
    (mnt / "f").write_bytes(b"bytes")
    subprocess.run(["mount", "-i", "-o", "remount,rw", cluster.root / "untold"], check=True)
    with open(ro / "f", "r+b", buffering=0) as file:
        assert failing(file.write, b"x") == errno.EROFS
    assert failing(lambda: (ro / "new").write_bytes(b"x")) == errno.EROFS
    assert failing((ro / "f").unlink) == errno.EROFS
    assert (ro / "f").read_bytes() == b"bytes"


def test_a_new_leader(cluster: Cluster, mnt: Path, ro: Path):
    (mnt / "f").write_bytes(b"first")
    (mnt / "g").write_bytes(b"kept")
    with open(ro / "f", "rb", buffering=0) as file, open(ro / "g", "rb", buffering=0) as removed:
        assert file.read() == b"first"
        cluster.kill("mds")
        cluster.up()
        (mnt / "f").write_bytes(b"other")
        (mnt / "g").unlink()
        assert os.pread(file.fileno(), 100, 0) == b"other"
        assert (ro / "f").read_bytes() == b"other"
        drop_pages(removed)
        assert removed.read() == b"kept"
