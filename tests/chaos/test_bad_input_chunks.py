"""What becomes of damaged chunks, of targets that are another's, and of targets that are full.

Bytes that do not match their checksum are never returned: another replica answers, or the read fails for that range.
A directory that is not this cluster's target stops the chunkserver before it has written anything there.
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.damage import flipped, moved_away, occurrences
from harness.parts import (
    assert_no_traceback,
    collecting_soon,
    configuration,
    fsck_findings,
    one_line,
    refusal_of_up,
    remount,
    running,
    small_disk,
    write_configuration,
)
from harness.refusals import failing
from shoalfs.chunkserver.directory import TargetDirectory
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.transport.limits import BLOCK_BYTES, MIB

DATA = Random(3).randbytes(6 * MIB + 1234)
OTHER = b"another  cluster"


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """The cluster of this module's tests, with two files."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        (cluster.point / "data").write_bytes(DATA)
        (cluster.point / "beside").write_bytes(DATA[::-1])
        yield cluster


@pytest.fixture
def whole(own: Cluster) -> Iterator[Cluster]:
    """The cluster, whole before the test and after it."""
    own.up()
    with own.unhung(60.0):
        yield own
        own.up()
        assert (own.point / "data").read_bytes() == DATA
        assert_no_traceback(own)
        done = shoal("fsck", "--deep", "--state", own.state)
        assert done.returncode == 0, done.stdout


def stored(cluster: Cluster, server: int, content: bytes) -> tuple[Path, int]:
    """The segment of a chunkserver, and the offset in it, that hold these bytes."""
    for path in (cluster.state / "data" / f"chunkserver-{server}" / "segments").iterdir():
        for at in occurrences(path, content):
            return path, at
    raise AssertionError(f"chunkserver {server} does not have them")


def blocks_read(path: Path) -> list[bytes | int]:
    """Each block of the file, or the errno that reading it met."""
    found: list[bytes | int] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        for offset in range(0, os.fstat(fd).st_size, BLOCK_BYTES):
            try:
                found.append(os.pread(fd, BLOCK_BYTES, offset))
            except OSError as error:
                found.append(error.errno or 0)
    finally:
        os.close(fd)
    return found


# --- wrong bits -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_one_replica_is_never_seen(whole: Cluster):
    path, at = stored(whole, 1, DATA[5 * MIB : 5 * MIB + 64])
    with flipped(path, at):
        (found,) = fsck_findings(whole, "--deep")  # before a reader meets it, who would have it repaired
        remount(whole)
        assert (whole.point / "data").read_bytes() == DATA
    assert (found["kind"], found["path"]) == ("damaged-replica", "/data")
    info = shoal("info", "-o", "json", whole.point / "data").stdout
    assert found["chunk"] in info
    targets = {target["id"]: target["node"] for target in json.loads(info)["extents"][1]["targets"]}
    assert targets[found["target"]] == "chunkserver-1"
    assert f"chunk {found['chunk']} is damaged on target {found['target']}" in found["text"]
    remount(whole)


def test_flipped_bits_in_both_replicas_cost_one_block(whole: Cluster):
    offset = 2 * MIB + 5 * BLOCK_BYTES + 77
    with ExitStack() as damage:
        for server in (1, 2):
            path, at = stored(whole, server, DATA[offset : offset + 64])
            damage.enter_context(flipped(path, at))
        remount(whole)
        blocks = blocks_read(whole.point / "data")
        expected = [DATA[at : at + BLOCK_BYTES] for at in range(0, len(DATA), BLOCK_BYTES)]
        assert [n for n, block in enumerate(blocks) if block != expected[n]] == [offset // BLOCK_BYTES]
        assert blocks[offset // BLOCK_BYTES] == errno.EIO
        assert failing((whole.point / "data").read_bytes) == errno.EIO
        assert (whole.point / "beside").read_bytes() == DATA[::-1]
        (found,) = fsck_findings(whole, "--deep")
        assert (found["kind"], found["path"]) == ("lost-chunk", "/data")
        assert re.fullmatch(
            r"no good copy of chunk [0-9a-f]{16}: damaged on target \d, damaged on target \d", found["text"]
        )
        assert whole.dead() == []
    remount(whole)


def test_a_damaged_record_header_costs_nothing_while_a_replica_is_good(whole: Cluster):
    """The header says which chunk lies there; a chunkserver that starts anew has to do with what is left."""
    path, at = stored(whole, 1, DATA[:64])
    whole.kill("chunkserver-1")
    with flipped(path, at - 4096 + 30):
        remount(whole)
        assert (whole.point / "data").read_bytes() == DATA
        # It may have been mended by now: the reader has reported it.
        told = json.loads(shoal("fsck", "--json", "--deep", "--state", whole.state).stdout)
        status = json.loads(shoal("status", "-o", "json", "--state", whole.state).stdout)
        assert told["findings"] or status["repair"]["copied_chunks"] > 0
        assert {found["kind"] for found in told["findings"]} <= {"damaged-replica", "missing-replica"}
        whole.kill("chunkserver-1")
    remount(whole)


# --- targets of others ------------------------------------------------------------------------------------------------


def test_a_target_of_another_cluster_is_refused(whole: Cluster):
    target = whole.state / "data" / "chunkserver-1"
    whole.kill("chunkserver-1")
    with moved_away(target):
        TargetDirectory(RealDisk(), str(target), cluster_id=OTHER, fresh_uuid=bytes(16)).close()
        before = sorted(target.rglob("*"))
        line = refusal_of_up(whole)
        assert f"{target} belongs to cluster {OTHER.hex()}" in line
        assert "use another directory" in line
        assert sorted(target.rglob("*")) == before
        assert (whole.point / "data").read_bytes() == DATA  # from the other one


def test_a_directory_that_is_no_target_is_refused(whole: Cluster):
    target = whole.state / "data" / "chunkserver-1"
    whole.kill("chunkserver-1")
    with moved_away(target):
        target.mkdir()
        (target / "letters").write_bytes(b"of somebody")
        assert "is not empty and is no target of shoalfs (found 'letters')" in refusal_of_up(whole)
        assert [path.name for path in target.iterdir()] == ["letters"]
    damaged = target / "target.json"
    with flipped(damaged, 30):
        assert f"{damaged} is damaged" in refusal_of_up(whole)


def test_a_chunkserver_configured_for_another_cluster_is_refused(whole: Cluster, tmp_path: Path):
    tables = configuration(whole, "chunkserver-1")
    tables["cluster"]["id"] = OTHER.hex()
    tables["chunkserver"]["listen"] = f"unix:{whole.state}/sock/other.sock"
    whole.kill("chunkserver-1")
    line = one_line(shoal("chunkserver", "run", "--config", write_configuration(whole, "other", tables)), 2)
    assert f"not to {OTHER.hex()}: use another directory" in line
    tables["chunkserver"]["targets"] = [{"path": str(tmp_path / "fresh")}]
    path = write_configuration(whole, "other", tables)
    line = one_line(shoal("chunkserver", "run", "--config", path, timeout_s=20.0), 1)
    assert "cluster" in line
    assert "check the address, and cluster.id in the configuration" in line


def test_a_second_chunkserver_on_the_same_target_is_refused(whole: Cluster):
    tables = configuration(whole, "chunkserver-1")
    tables["chunkserver"]["listen"] = f"unix:{whole.state}/sock/twin.sock"
    line = one_line(shoal("chunkserver", "run", "--config", write_configuration(whole, "twin", tables)), 2)
    assert "is in use by another chunkserver: stop that one or use another directory" in line
    tables = configuration(whole, "chunkserver-1")
    tables["chunkserver"]["targets"] = [{"path": f"{whole.root}/twin"}]
    line = one_line(shoal("chunkserver", "run", "--config", write_configuration(whole, "twin", tables)), 2)
    assert "another process listens there" in line
    assert whole.dead() == []


# --- full targets -----------------------------------------------------------------------------------------------------


def content(number: int) -> bytes:
    return Random(number).randbytes(2 * MIB)


def fill(directory: Path) -> list[int]:
    """Write files until one does not fit; the numbers of those that were closed well."""
    fitting: list[int] = []
    for number in range(100):
        try:
            (directory / f"f{number}").write_bytes(content(number))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return fitting
        fitting.append(number)
    raise AssertionError("the target was never full")


def check_that_full_is_survived(cluster: Cluster) -> None:
    point = cluster.point
    wait_until(lambda: 30 * MIB < capacity_bytes(point) < 64 * MIB, "df shows the target's size")
    total_bytes = capacity_bytes(point)
    fitting = fill(point)
    assert len(fitting) * 2 * MIB > total_bytes * 6 // 10
    (point / f"f{len(fitting)}").unlink()
    wait_until(lambda: free_bytes(point) < 4 * MIB, "df shows that it is full")

    fd = os.open(point / "synced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, DATA)
    assert failing(os.fsync, fd) == errno.ENOSPC
    assert failing(os.close, fd) == errno.ENOSPC  # it tried again
    (point / "synced").unlink()
    check_that_write_fails_when_memory_is_full(cluster)
    (point / "inline").write_bytes(b"small files go to the metadata")

    remount(cluster)
    for number in fitting:
        assert (point / f"f{number}").read_bytes() == content(number)
    for number in fitting[::2]:
        (point / f"f{number}").unlink()
    wait_until(lambda: free_bytes(point) > total_bytes // 4, "the space comes back")
    wait_until(lambda: fits(point / "again"), "writing works again")
    remount(cluster)
    assert (point / "again").read_bytes() == DATA
    for number in fitting[1::2]:
        assert (point / f"f{number}").read_bytes() == content(number)
    assert cluster.dead() == []
    assert_no_traceback(cluster)
    cluster.fsck()


def check_that_write_fails_when_memory_is_full(cluster: Cluster) -> None:
    """What cannot be stored stays in memory, which is bounded: then write(2) is told, without fsync or close."""
    tables = configuration(cluster, "mount")
    tables["mount"]["dirty_bytes"] = "8MiB"
    second = cluster.root / "second"
    second.mkdir()
    with running(cluster, "mount-2", tables, "mount", second):
        fd = os.open(second / "endless", os.O_WRONLY | os.O_CREAT)
        assert failing(write_on, fd) == errno.ENOSPC
        assert failing(os.close, fd) == errno.ENOSPC
        (second / "endless").unlink()
        cluster.run("umount", second, "--state", cluster.state)


def write_on(fd: int) -> None:
    for number in range(32):
        os.write(fd, content(number))


def capacity_bytes(point: Path) -> int:
    space = os.statvfs(point)
    return space.f_blocks * space.f_frsize


def free_bytes(point: Path) -> int:
    space = os.statvfs(point)
    return space.f_bavail * space.f_frsize


def fits(path: Path) -> bool:
    try:
        path.write_bytes(DATA)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        path.unlink()
        return False
    return True


def test_a_target_that_reached_its_size_limit():
    require_fuse()
    with Cluster("--nodes", "1") as cluster:
        cluster.up()
        cluster.kill("chunkserver", "mds")
        tables = configuration(cluster, "chunkserver-1")
        tables["chunkserver"]["targets"][0]["size"] = "40MiB"
        with (
            collecting_soon(cluster, 500),
            running(cluster, "chunkserver-1", tables),
            cluster.unhung(80.0),
        ):
            check_that_full_is_survived(cluster)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_target_whose_disk_is_full():
    require_fuse()
    with small_disk(64) as disk, Cluster("--nodes", "1") as cluster:
        data = cluster.state / "data"
        data.mkdir(parents=True, mode=0o700)
        (data / "chunkserver-1").symlink_to(disk)
        cluster.up()
        cluster.kill("mds")
        with collecting_soon(cluster, 500), cluster.unhung(80.0):
            check_that_full_is_survived(cluster)
