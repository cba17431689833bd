"""A pool of fragments: as many servers are lost as it can do without, and everything is read, written and healed."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from chaos.test_chaos_redundancy import damage, impatient, is_whole, rows
from harness.cluster import Cluster, require_fuse, shoal, wait_until
from shoalfs.transport.erasure import is_there
from shoalfs.transport.limits import KIB, MIB

HUNG_S = 110.0
SIZES = (100, 9_000, 64 * KIB, 100_001, 3 * MIB + 17, 9 * MIB)
pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(not is_there(), reason="NO FRAGMENTS ARE TESTED HERE: libisal2 is not installed"),
]


@pytest.fixture
def four() -> Iterator[Cluster]:
    """Four chunkservers, and a directory whose files are of two data and two parity fragments."""
    require_fuse()
    with Cluster("--nodes", "4") as cluster:
        cluster.up()
        with impatient(cluster), cluster.unhung(HUNG_S):
            cluster.run("pool", "create", "cold", "--erasure", "2+2", "--min-ack", 2, "--state", cluster.state)
            (cluster.point / "cold").mkdir()
            cluster.run("pool", "use", "cold", cluster.point / "cold")
            yield cluster


def write(directory: Path, seed: int) -> dict[Path, bytes]:
    data = {directory / f"{seed}-{size}": Random(seed + size).randbytes(size) for size in SIZES}
    for path, content in data.items():
        with open(path, "xb") as file:
            file.write(content)
            os.fsync(file.fileno())
    return data


def check(data: dict[Path, bytes], point: Path, cluster: Cluster) -> None:
    """Every byte, through another mount, whose caches are empty; and some ranges before the rest."""
    for path, content in data.items():
        with open(point / path.relative_to(cluster.point), "rb") as file:
            for at in (len(content) // 2, len(content) // 3):
                file.seek(at)
                assert file.read(1_000) == content[at : at + 1_000], path
            file.seek(0)
            assert file.read() == content, path


def test_two_of_four_servers_are_lost_and_one_comes_back_empty(four: Cluster):
    data = write(four.point / "cold", 1)
    assert os.getxattr(four.point / "cold" / "1-9000", "trusted.shoal.pool") == b"cold"
    four.fsck()
    four.kill("chunkserver-1", "chunkserver-3")
    check(data, four.mount("reader"), four)
    four.umount("reader")
    data |= write(four.point / "cold", 2)  # two fragments of each: as few as this pool allows
    shutil.rmtree(four.state / "data" / "chunkserver-3")
    four.up()
    wait_until(lambda: rows(four)["chunkserver-3"][0]["state"] == "out", "what is gone is given up", 40.0)
    wait_until(lambda: is_whole(four), "every fragment is there again", 60.0)
    assert not shoal("fsck", "--deep", "--state", four.state).returncode
    four.kill("chunkserver-2", "chunkserver-4")  # those that had everything: what was rebuilt has to do
    check(data, four.mount("fresh"), four)


def test_a_node_with_fragments_is_drained(four: Cluster):
    with pytest.raises(AssertionError, match="needs 5 targets"):
        four.run("pool", "create", "wide", "--erasure", "3+2", "--state", four.state)
    four.run("pool", "create", "narrow", "--erasure", "2+1", "--state", four.state)
    (four.point / "narrow").mkdir()
    four.run("pool", "use", "narrow", four.point / "narrow")
    data = write(four.point / "narrow", 3)
    four.run("node", "drain", "chunkserver-2", "--state", four.state)

    def moved() -> bool:
        map_groups = json.loads(four.run("pool", "list", "-o", "json", "--state", four.state))
        assert [row["redundancy"] for row in map_groups] == ["2 replicas", "2+2", "2+1"]
        (row,) = rows(four)["chunkserver-2"]
        return row["groups"] == 64 and not row["leaving"]  # of 2+2, which has nowhere else to go

    wait_until(moved, "all that can go has gone", 60.0)
    four.kill("chunkserver-2")
    check(data, four.mount("fresh"), four)


def test_a_damaged_fragment_is_found_and_rebuilt(four: Cluster):
    data = write(four.point / "cold", 4)
    content = data[four.point / "cold" / f"4-{SIZES[-2]}"]
    assert damage(four, content) == 1, "nobody else has these bytes"
    assert shoal("fsck", "--deep", "--state", four.state).returncode == 1
    check(data, four.mount("reader"), four)
    four.run("scrub", "start", "--state", four.state)
    wait_until(
        lambda: not shoal("fsck", "--deep", "--state", four.state).returncode, "it was rebuilt in its place", 60.0
    )
    check(data, four.mount("fresh"), four)
