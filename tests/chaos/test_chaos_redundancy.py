"""Copies come back and move while a verifying workload runs: a server that is gone for good, a drained one, bit rot."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.damage import occurrences
from harness.load import Workload
from harness.parts import configuration, one_line, running
from shoalfs.fs.cli.cluster import call, locate
from shoalfs.fs.cli.targets import ask_status, describe
from shoalfs.transport.limits import MIB

OUT_MS = 3_000
HUNG_S = 110.0
pytestmark = pytest.mark.timeout(150)


@contextmanager
def impatient(cluster: Cluster, **changes: object) -> Iterator[None]:
    """The metadata service replaces a target that was down for OUT_MS, within the block."""
    cluster.kill("mds")
    tables = configuration(cluster, "mds-1")
    tables["mds"] |= {"target_out_ms": OUT_MS} | changes
    with running(cluster, "mds-1", tables):
        yield


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Two copies on three chunkservers."""
    require_fuse()
    with Cluster("--nodes", "3") as cluster:
        cluster.up()
        with impatient(cluster), cluster.unhung(HUNG_S):
            yield cluster


@pytest.fixture
def two() -> Iterator[Cluster]:
    """Two copies on two chunkservers."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        with cluster.unhung(HUNG_S):
            yield cluster


@contextmanager
def loaded(cluster: Cluster, directory: Path) -> Iterator[Workload]:
    tree = cluster.point / "tree"
    tree.mkdir()
    load = Workload(tree, directory / "journal")
    try:
        load.wait_progress(20)
        yield load
    finally:
        if load.process.poll() is None:
            os.kill(load.process.pid, signal.SIGKILL)
        load.process.communicate()


@pytest.fixture
def load(three: Cluster, tmp_path: Path) -> Iterator[Workload]:
    with loaded(three, tmp_path) as load:
        yield load


def rows(cluster: Cluster) -> dict[str, list[dict[str, object]]]:
    """The targets by the name of their node. Without a process for `shoal target list`, which is asked for often."""
    found: dict[str, list[dict[str, object]]] = {}
    for row in describe(call(locate(None, None, str(cluster.state)), ask_status)):
        found.setdefault(row["node"], []).append(row)
    return found


def status(cluster: Cluster) -> dict[str, object]:
    return json.loads(shoal("status", "-o", "json", "--state", cluster.state).stdout)


def is_whole(cluster: Cluster) -> bool:
    found = status(cluster)
    return found["health"] == "healthy" and not found["repair"]["groups_moving"] and not cluster.findings()


def files(cluster: Cluster, count: int) -> dict[str, bytes]:
    data = {f"f{number}": Random(number).randbytes(700_000) for number in range(count)}
    for name, content in data.items():
        (cluster.point / name).write_bytes(content)
    return data


def check_files(cluster: Cluster, data: dict[str, bytes]) -> None:
    for name, content in data.items():
        assert (cluster.point / name).read_bytes() == content


def test_a_server_that_loses_its_disk_is_replaced_and_comes_back_empty(three: Cluster, load: Workload):
    data = files(three, 10)
    three.kill("chunkserver-2")
    shutil.rmtree(three.state / "data" / "chunkserver-2")
    load.wait_progress(10)
    wait_until(lambda: rows(three)["chunkserver-2"][0]["state"] == "out", "it is given up", 40.0)
    load.wait_progress(10)
    wait_until(lambda: not rows(three)["chunkserver-2"][0]["leaving"], "others hold its part", 40.0)
    three.up()  # with an empty disk, which is a new target
    load.wait_progress(10)
    load.stop()
    wait_until(lambda: is_whole(three), "everything has all its copies again", 60.0)
    load.verify()
    check_files(three, data)
    old, new = rows(three)["chunkserver-2"]
    assert (old["state"], old["groups"], old["leaving"], new["state"]) == ("out", 0, 0, "up")
    three.run("target", "remove", old["id"], "--state", three.state)
    assert [row["id"] for row in rows(three)["chunkserver-2"]] == [new["id"]]


def test_a_node_is_drained_and_removed_under_load(three: Cluster, load: Workload):
    data = files(three, 10)
    refused = shoal("node", "remove", "chunkserver-1", "--state", three.state)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    three.run("node", "drain", "chunkserver-1", "--state", three.state)
    load.wait_progress(10)

    def drained() -> bool:
        (row,) = rows(three)["chunkserver-1"]
        return row["state"] == "draining" and not row["groups"] and not row["leaving"]

    wait_until(drained, "no group needs it", 60.0)
    load.wait_progress(10)
    three.kill("chunkserver-1")
    load.wait_progress(10)
    load.stop()
    three.run("node", "remove", "chunkserver-1", "--state", three.state)
    assert "chunkserver-1" not in rows(three)
    point = three.mount("fresh")  # nothing comes from a cache
    for name, content in data.items():
        assert (point / name).read_bytes() == content
    load.verify()
    wait_until(lambda: is_whole(three), "what was written as the node went has all its copies", 60.0)
    three.fsck()


def test_a_target_is_added_and_the_old_one_removed_under_load(two: Cluster, tmp_path: Path):
    """Both belong to one running server, which is killed in between: the new disk is its own after that, too."""
    state = ("--state", two.state)
    with loaded(two, tmp_path) as load:
        data = files(two, 10)
        disk = two.root / "disk"
        assert "there is none" in one_line(shoal("target", "add", "nobody", disk, *state), 2)
        disk.mkdir()
        two.run("target", "add", "chunkserver-2", disk, "--size", "1GiB", *state)
        old, new = rows(two)["chunkserver-2"]
        assert (new["state"], new["capacity_bytes"]) == ("up", 1 << 30), "it is listed at once"
        two.kill("chunkserver-2")
        assert "does not answer" in one_line(shoal("target", "add", "chunkserver-2", disk, *state), 2)
        two.up()
        load.wait_progress(5)
        two.run("target", "drain", old["id"], *state)

        def row_of(number: object) -> dict[str, object]:
            (row,) = [row for row in rows(two)["chunkserver-2"] if row["id"] == number]
            return row

        def is_drained() -> bool:
            row = row_of(old["id"])
            return not row["groups"] and not row["leaving"]

        wait_until(is_drained, "no group needs it", 60.0)
        load.wait_progress(5)
        two.run("target", "remove", old["id"], *state)
        assert [row["id"] for row in rows(two)["chunkserver-2"]] == [new["id"]]
        load.wait_progress(10)
        load.stop()
        assert [row["id"] for row in rows(two)["chunkserver-2"]] == [new["id"]], "it does not register again"
        assert row_of(new["id"])["chunks"]
        shutil.rmtree(two.state / "data" / "chunkserver-2")  # nothing of it is needed
        load.verify()
        point = two.mount("fresh")  # nothing comes from a cache
        for name, content in data.items():
            assert (point / name).read_bytes() == content
        wait_until(lambda: is_whole(two), "everything has all its copies", 60.0)
        two.run("fsck", "--deep", *state)
    two.kill("chunkserver-2")
    two.up()  # with a configured directory that is empty, hence one more target, and with what was added
    wait_until(lambda: row_of(new["id"])["state"] == "up", "what was added is there after a restart")


def test_what_a_reader_finds_damaged_is_replaced(three: Cluster):
    content = Random(1).randbytes(3 * MIB)
    (three.point / "f").write_bytes(content)
    damaged = damage(three, content)
    assert damaged
    # Clients prefer different copies; so many of them meet the bad one for certain, or nearly so.
    for number in range(6):
        point = three.mount(f"reader-{number}")
        assert (point / "f").read_bytes() == content
        three.umount(f"reader-{number}")
    wait_until(lambda: shoal("fsck", "--deep", "--state", three.state).returncode == 0, "a good copy took its place")


def damage(cluster: Cluster, content: bytes) -> int:
    """Flip a bit in one copy of the content. Returns in how many places."""
    for path in sorted(cluster.state.glob("data/chunkserver-*/segments/*")):
        places = occurrences(path, content[MIB : MIB + 64])
        if places:
            with open(path, "r+b") as file:
                file.seek(places[0])
                file.write(bytes([content[MIB] ^ 1]))
            return len(places)
    return 0


def test_scrubbing_finds_damage_that_no_reader_met(three: Cluster, load: Workload):
    content = Random(2).randbytes(3 * MIB)
    (three.point / "f").write_bytes(content)
    assert damage(three, content)
    assert shoal("fsck", "--deep", "--state", three.state).returncode == 1
    three.run("scrub", "start", "--state", three.state)

    def scrubs() -> list[dict[str, object]]:
        return json.loads(three.run("scrub", "status", "-o", "json", "--state", three.state))

    wait_until(lambda: all(row["state"] == "idle" and row["finished_ns"] for row in scrubs()), "all is verified", 60.0)
    assert [row["damaged"] for row in scrubs() if row["damaged"]] == [1]
    load.wait_progress(5)
    load.stop()
    wait_until(lambda: shoal("fsck", "--deep", "--state", three.state).returncode == 0, "a good copy took its place")
    load.verify()
    assert (three.point / "f").read_bytes() == content
