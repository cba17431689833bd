"""Pools that are changed and removed by the commands, with real servers."""

import json
import os
from collections.abc import Iterator
from random import Random

import pytest

from chaos.test_chaos_redundancy import HUNG_S, is_whole
from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.parts import one_line

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def three() -> Iterator[Cluster]:
    """A directory with a pool of one copy, on three chunkservers."""
    require_fuse()
    with Cluster("--nodes", "3") as cluster:
        cluster.up()
        with cluster.unhung(HUNG_S):
            cluster.run("pool", "create", "thin", "--replicas", 1, "--state", cluster.state)
            (cluster.point / "thin").mkdir()
            cluster.run("pool", "use", "thin", cluster.point / "thin")
            yield cluster


def pools(cluster: Cluster) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(cluster.run("pool", "list", "-o", "json", "--state", cluster.state))}


def test_more_copies_are_made_so_that_a_server_may_be_lost(three: Cluster):
    data = {three.point / "thin" / f"f{at}": Random(at).randbytes(700_000) for at in range(12)}
    for path, content in data.items():
        path.write_bytes(content)
        assert os.getxattr(path, "trusted.shoal.pool") == b"thin"
    three.run("pool", "set", "thin", "--replicas", 3, "--min-ack", 2, "--state", three.state)
    assert (pools(three)["thin"]["redundancy"], pools(three)["thin"]["min_ack"]) == ("3 replicas", 2)
    wait_until(lambda: is_whole(three), "there are three copies of everything", 60.0)
    three.fsck()
    three.kill("chunkserver-1", "chunkserver-3")
    point = three.mount("fresh")
    for path, content in data.items():
        assert (point / path.relative_to(three.point)).read_bytes() == content
    three.umount("fresh")
    three.up()
    wait_until(lambda: is_whole(three), "all are back", 60.0)
    three.run("pool", "set", "thin", "--replicas", 1, "--state", three.state)
    wait_until(lambda: is_whole(three), "and one copy is enough", 60.0)
    three.fsck()
    for path, content in data.items():
        assert path.read_bytes() == content


def test_a_pool_is_removed_when_nobody_uses_it_and_not_before(three: Cluster):
    def refusal(*arguments: object) -> str:
        return one_line(shoal("pool", *arguments, "--state", three.state), 2)

    (three.point / "thin" / "small").write_bytes(b"in its inode")
    said = refusal("remove", "thin")
    assert "1 files and 1 directories" in said
    number = (three.point / "thin").stat().st_ino
    assert f"find MOUNTPOINT -inum {number}" in said
    assert pools(three)["thin"]["state"] == "open"
    assert "no pool" in refusal("remove", "thick")
    assert "in use" in refusal("remove", "default")
    assert "needs 4 targets" in refusal("set", "thin", "--replicas", 4)
    (three.point / "thin" / "small").unlink()
    (three.point / "thin").rmdir()
    (three.point / "sound").write_bytes(b"x" * 300_000)
    wait_until(lambda: not shoal("pool", "remove", "thin", "--state", three.state).returncode, "nobody uses it", 20.0)
    assert list(pools(three)) == ["default"]
    assert failing_use(three) == 2
    three.fsck()
    assert (three.point / "sound").read_bytes() == b"x" * 300_000


def failing_use(cluster: Cluster) -> int:
    return shoal("pool", "use", "thin", cluster.point).returncode
