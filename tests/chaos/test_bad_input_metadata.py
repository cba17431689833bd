"""What becomes of a metadata node whose disk holds something else than it wrote, or is full.

A damaged record costs the file it belongs to. Everything that the node cannot know to be whole (the data file, the
log) ends the start with one line instead: going on would be guessing. Nothing acknowledged is lost by a refusal, so
every test puts the right bytes back and looks.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.damage import damaged_row, flipped, moved_away, replaced
from harness.parts import (
    assert_no_traceback,
    configuration,
    fsck_findings,
    one_line,
    refusal_of_up,
    remount,
    small_disk,
    write_configuration,
)
from harness.refusals import failing
from shoalfs.mds import keys
from shoalfs.mds.journal import create_journal
from shoalfs.transport.ids import InodeId, NodeId

SMALL, LARGE = b"small " * 100, Random(8).randbytes(3_000_000)


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """The cluster of this module's tests, with two files."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        (cluster.point / "small").write_bytes(SMALL)
        (cluster.point / "large").write_bytes(LARGE)
        yield cluster


@pytest.fixture
def made(own: Cluster) -> Iterator[Cluster]:
    """The cluster after its metadata service was killed; it must come back whole."""
    own.up()
    own.kill("mds")
    yield own
    own.up()
    with own.unhung(30.0):
        assert_whole(own)
        own.fsck()
    assert_no_traceback(own)


def assert_whole(cluster: Cluster) -> None:
    remount(cluster)
    assert (cluster.point / "small").read_bytes() == SMALL
    assert (cluster.point / "large").read_bytes() == LARGE


def store(cluster: Cluster) -> Path:
    return cluster.state / "data" / "mds-1" / "store"


def journal(cluster: Cluster) -> Path:
    return sorted((cluster.state / "data" / "mds-1" / "log").glob("*.log"))[-1]


def damaged_paths(cluster: Cluster) -> set[str]:
    """Whose records fsck says are damaged. What follows from that, such as counters, are findings of their own."""
    return {found["path"] for found in fsck_findings(cluster) if found["kind"] == "damaged-record"}


# --- one record -------------------------------------------------------------------------------------------------------


def test_a_damaged_inode_costs_one_file(made: Cluster):
    made.up()
    (made.point / "victim").write_bytes(b"victim")
    ino = (made.point / "victim").stat().st_ino
    made.run("umount", made.point, "--state", made.state)
    made.kill("mds")
    with damaged_row(store(made), keys.inode(InodeId(ino))):
        made.up()
        with made.unhung(60.0):
            assert failing(os.stat, made.point / "victim") == errno.EIO
            assert failing(open, made.point / "victim", "rb") == errno.EIO
            assert failing(open, made.point / "victim", "wb") == errno.EIO
            assert_whole(made)
            (made.point / "new").write_bytes(SMALL)
            assert (made.point / "new").read_bytes() == SMALL
            (made.point / "new").unlink()
        assert damaged_paths(made) == {"/victim"}
        assert made.dead() == []
        made.run("umount", made.point, "--state", made.state)
        made.kill("mds")


def test_a_directory_with_a_damaged_inode_still_lists_its_names(made: Cluster):
    made.up()
    (made.point / "d").mkdir()
    for name in ("a", "victim", "z"):
        (made.point / "d" / name).write_bytes(b"bytes of " + name.encode())
    ino = (made.point / "d" / "victim").stat().st_ino
    made.run("umount", made.point, "--state", made.state)
    made.kill("mds")
    with damaged_row(store(made), keys.inode(InodeId(ino))):
        made.up()
        with made.unhung(60.0):
            assert sorted(os.listdir(made.point / "d")) == ["a", "victim", "z"]
            assert failing(os.stat, made.point / "d" / "victim") == errno.EIO  # the listing told no attributes
            assert (made.point / "d" / "z").read_bytes() == b"bytes of z"
        made.run("umount", made.point, "--state", made.state)
        made.kill("mds")


def test_damaged_inline_bytes_are_not_returned(made: Cluster):
    made.up()
    ino = (made.point / "small").stat().st_ino
    made.run("umount", made.point, "--state", made.state)
    made.kill("mds")
    with damaged_row(store(made), keys.inline(InodeId(ino))):
        made.up()
        with made.unhung(60.0):
            assert (made.point / "small").stat().st_size == len(SMALL)
            assert failing((made.point / "small").read_bytes) == errno.EIO
            assert (made.point / "large").read_bytes() == LARGE
        assert damaged_paths(made) == {"/small"}
        made.run("umount", made.point, "--state", made.state)
        made.kill("mds")


# --- the data file ----------------------------------------------------------------------------------------------------


def test_a_store_that_is_none_is_refused(made: Cluster):
    data, checkpoint = store(made) / "data.mdb", store(made) / "checkpoint"
    with replaced(data, Random(1).randbytes(data.stat().st_size)):
        assert "not an LMDB file, or its first pages are damaged" in refusal_of_up(made)
    with flipped(data, 16):  # the magic in the first meta page
        assert "not an LMDB file, or its first pages are damaged" in refusal_of_up(made)
    with replaced(data, data.read_bytes()[:20_000]):
        assert "the metadata file ends at 20000 bytes" in refusal_of_up(made)
    with replaced(data, b""):
        assert "the metadata file ends at 0 bytes" in refusal_of_up(made)
    with moved_away(data):
        assert "has a checkpoint but no data.mdb" in refusal_of_up(made)
    with flipped(checkpoint, 40):
        assert f"{checkpoint} is damaged" in refusal_of_up(made)
    with moved_away(checkpoint):
        assert "but no checkpoint beside it" in refusal_of_up(made)


def test_a_store_of_another_cluster_is_refused(made: Cluster):
    tables = configuration(made, "mds-1")
    tables["cluster"]["id"] = "f" * 32
    path = write_configuration(made, "other", tables)
    line = one_line(shoal("mds", "run", "--config", path), 2)
    assert f"the configuration names {'f' * 32}" in line
    assert "correct cluster.id" in line


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_torn_tail_of_the_log_is_cut(made: Cluster):
    """What a crash may leave behind the last record that was synced, and so behind everything acknowledged."""
    path = journal(made)
    before = path.read_bytes()
    part_of_a_record = before[before.rindex(b"\xa7ShR") :][:-1]
    for tail in (Random(2).randbytes(5_000), bytes(8192), part_of_a_record):
        end = path.stat().st_size
        with open(path, "ab") as file:
            file.write(tail)
        made.up()
        assert f"cut a torn tail of {len(tail)} bytes at offset {end}" in made.logs()
        made.kill("mds")


def test_a_damaged_log_is_refused_with_its_place(made: Cluster):
    path = journal(made)
    before = path.read_bytes()
    record = before.index(b"\xa7ShR", len(before) // 2)  # with records behind it that say it was synced
    with flipped(path, record + 20):
        line = refusal_of_up(made)
        assert f"{path}: damaged at offset {record}, in bytes that had been synced" in line
    with flipped(path, 20):  # in the header
        assert f"{path}: the checksum of its header is wrong" in refusal_of_up(made)
    assert path.read_bytes() == before


def test_a_log_of_another_cluster_or_node_is_refused(made: Cluster):
    log = made.state / "data" / "mds-1" / "log"
    own = bytes.fromhex(configuration(made, "mds-1")["cluster"]["id"])
    for cluster_id, node, words in (
        (b"another  cluster", 1, f"this log is of cluster {b'another  cluster'.hex()}, not of {own.hex()}"),
        (own, 2, "this log is of node 2, not of node 1"),
    ):
        with moved_away(log):
            create_journal(log, cluster_id, NodeId(node))
            assert words in refusal_of_up(made)


def test_a_store_without_its_log_is_refused(made: Cluster):
    log = made.state / "data" / "mds-1" / "log"
    with moved_away(log):
        assert "the log is gone, the store has applied entries up to" in refusal_of_up(made)
    # A new, empty log is not the lost one: what the store has applied is not in it.
    own = bytes.fromhex(configuration(made, "mds-1")["cluster"]["id"])
    with moved_away(log):
        create_journal(log, own, NodeId(1))
        assert "log" in refusal_of_up(made)


# --- in use, and full -------------------------------------------------------------------------------------------------


def test_a_second_node_on_the_same_data_is_refused(own: Cluster):
    cluster = own
    cluster.up()
    tables = configuration(cluster, "mds-1")
    tables["mds"]["listen"] = f"unix:{cluster.state}/sock/twin.sock"
    tables["mds"]["peers"] = {}
    line = one_line(shoal("mds", "run", "--config", write_configuration(cluster, "twin", tables)), 2)
    assert "is in use by another metadata service" in line
    (cluster.point / "f").write_bytes(SMALL)
    assert cluster.dead() == []


class Writer(threading.Thread):
    """Makes small files, one after the other, and remembers those that were made."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.made = 0
        self.stop = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                (self.directory / f"f{self.made}").write_bytes(content(self.made))
                self.made += 1
        except OSError as error:
            self.error = error


def fill(path: Path) -> None:
    """Leave no block free."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def content(number: int) -> bytes:
    return Random(number).randbytes(4_000)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_metadata_disk_stops_the_service_and_loses_nothing():
    """It ends, because a node that cannot write its log cannot promise anything; calls stall until it is back."""
    require_fuse()
    with small_disk(64) as disk, Cluster("--nodes", "1") as cluster:
        data = cluster.state / "data"
        data.mkdir(parents=True, mode=0o700)
        (data / "mds-1").symlink_to(disk)
        cluster.up()
        (cluster.point / "d").mkdir()
        space = os.statvfs(disk)
        filler = disk / "filler"
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - (2 << 20)))
        writer = Writer(cluster.point / "d")
        with cluster.unhung(60.0):
            writer.start()
            wait_until(lambda: cluster.dead() == ["mds-1"], "the full metadata service ends", 40.0)
            last = (cluster.state / "log" / "mds-1.log").read_text().splitlines()[-1]
            assert last.startswith("shoal: cannot write"), last
            assert "bytes free" in last or "No space left on device" in last
            fill(disk / "rest")
            assert "No space left on device" in refusal_of_up(cluster)
            filler.unlink()
            (disk / "rest").unlink()
            cluster.up()
            stalled = writer.made
            wait_until(lambda: writer.made > stalled + 5, "the stalled call and further ones succeed")
            writer.stop.set()
            writer.join(20.0)
            assert writer.error is None
            remount(cluster)
            for number in range(writer.made):
                assert (cluster.point / "d" / f"f{number}").read_bytes() == content(number)
        assert_no_traceback(cluster)
        cluster.fsck()
