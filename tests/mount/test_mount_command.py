"""The command line around a mount: what it shows, and how it refuses.

A refusal is one line on stderr, "shoal: what: where: what to do next", and exit code 2 for a mistake in what was asked.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from harness.cluster import Cluster, shoal


def refusal(*arguments: object, code: int = 2) -> str:
    """The one line that a command refuses with."""
    done = shoal(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("shoal: ")
    assert done.stdout == ""
    return lines[0]


def test_status_is_healthy(cluster: Cluster):
    status = json.loads(cluster.run("status", "-o", "json", "--state", cluster.state))
    assert status["health"] == "healthy"
    assert len(status["targets"]) == 2
    assert "healthy" in cluster.run("status", "--state", cluster.state)


def test_fsck_is_clean(mnt: Path, cluster: Cluster):
    (mnt / "f").write_bytes(os.urandom(200_000))
    report = json.loads(cluster.run("fsck", "--json", "--deep", "--state", cluster.state))
    assert report["clean"]
    assert report["replicas"] >= 2
    assert cluster.run("fsck", "--state", cluster.state)


def test_up_again_changes_nothing(cluster: Cluster):
    before = cluster.records()
    cluster.up()
    assert cluster.records() == before


def test_up_refuses_another_shape(cluster: Cluster):
    line = refusal("up", cluster.point, "--state", cluster.state, "--nodes", 3, "-d")
    assert "--nodes 3" in line


def test_mount_refuses_a_point_that_is_missing_busy_or_no_directory(cluster: Cluster, tmp_path: Path):
    assert "no such directory" in refusal("mount", tmp_path / "absent", "--state", cluster.state, "-d")
    (tmp_path / "file").touch()
    assert "not a directory" in refusal("mount", tmp_path / "file", "--state", cluster.state, "-d")
    assert "not empty" in refusal("mount", tmp_path, "--state", cluster.state, "-d")
    assert "mounted there already" in refusal("mount", cluster.point, "--state", cluster.state, "-d")


def test_umount_refuses_what_is_not_mounted_and_what_is_busy(mnt: Path, cluster: Cluster, tmp_path: Path):
    assert str(tmp_path) in refusal("umount", tmp_path)
    with open(mnt / "f", "wb"):
        assert "busy" in refusal("umount", cluster.point, code=1)
    assert not cluster.dead()


def test_info_tells_inline_from_chunks(mnt: Path, cluster: Cluster):
    (mnt / "small").write_bytes(b"x" * 100)
    (mnt / "large").write_bytes(os.urandom(9_000_000))
    small = json.loads(cluster.run("info", mnt / "small", "-o", "json"))
    large = json.loads(cluster.run("info", mnt / "large", "-o", "json"))
    assert (small["storage"], small["size_bytes"], small["extents"]) == ("inline", 100, [])
    assert (large["storage"], large["size_bytes"]) == ("extents", 9_000_000)
    assert sum(extent["length_bytes"] for extent in large["extents"]) == 9_000_000
    assert all(len(extent["targets"]) == 2 for extent in large["extents"])
    assert large["ino"] == (mnt / "large").stat().st_ino
    assert "extents" in cluster.run("info", mnt / "large")


def test_info_of_what_is_absent_or_elsewhere(mnt: Path, cluster: Cluster, tmp_path: Path):
    assert str(tmp_path) in refusal("info", tmp_path)
    refusal("info", mnt / "absent", code=1)


def test_fsck_finds_lost_data(fresh: Cluster):
    """The checker that every test here ends with must be able to fail."""
    fresh.up()
    (fresh.point / "f").write_bytes(os.urandom(1_000_000))
    fresh.fsck()
    fresh.down()
    for path in (fresh.state / "data").glob("chunkserver-*/**/*"):
        if path.is_file() and path.stat().st_size > 500_000:
            os.truncate(path, 8192)
    fresh.up()
    done = shoal("fsck", "--json", "--deep", "--state", fresh.state)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["clean"]
    assert "/f" in {finding.get("path") for finding in report["findings"]}


def test_up_refuses_a_missing_mount_point_without_mkdir(fresh: Cluster):
    assert "no such directory" in refusal("up", fresh.point, "--state", fresh.state, "-d")
    assert fresh.dead() == [record.name for record in fresh.records()], "nothing is left running"


def test_a_wrong_key_in_the_configuration_is_named(mnt: Path, tmp_path: Path):
    config = tmp_path / "shoal.toml"
    config.write_text('[mount]\nentry_timeout = 5\nmds = ["unix:/nowhere.sock"]\n')
    line = refusal("mount", tmp_path, "--config", config, "-d")
    assert "mount.entry_timeout" in line
    assert "entry_timeout_ms" in line


def test_commands_without_a_cluster_say_how_to_get_one(tmp_path: Path):
    for command in ("status", "fsck", "down"):
        assert str(tmp_path) in refusal(command, "--state", tmp_path / "absent")


def test_a_usage_error_is_one_line(tmp_path: Path):
    assert "--nonsense" in refusal("up", tmp_path, "--nonsense")
    assert "nodes" in refusal("up", tmp_path / "mnt", "--state", tmp_path / "state", "--nodes", 0)


def test_down_takes_all_with_it_and_up_brings_all_back(fresh: Cluster):
    fresh.up()
    (fresh.point / "small").write_bytes(b"small")
    (fresh.point / "large").write_bytes(b"large" * 1_000_000)
    fresh.down()
    assert os.listdir(fresh.point) == []
    fresh.up()
    assert (fresh.point / "small").read_bytes() == b"small"
    assert (fresh.point / "large").read_bytes() == b"large" * 1_000_000
    fresh.fsck()
    fresh.down()
    fresh.run("down", "--purge", "--yes", "--state", fresh.state)
    assert not fresh.state.exists()


def heed_interrupts() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and whoever starts a process hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_up_in_the_foreground_ends_with_ctrl_c(fresh: Cluster):
    command = [sys.executable, "-m", "shoalfs", "up", fresh.point, "--state", fresh.state, "--mkdir"]
    staying = subprocess.Popen(
        command,
        cwd="/",
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert staying.stderr is not None
        for line in staying.stderr:
            if "Ctrl-C" in line:
                break
        (fresh.point / "f").write_text("served")
        known = fresh.records()
        assert len(known) == 4
    finally:
        staying.send_signal(signal.SIGINT)
        staying.communicate(timeout=60)
    assert fresh.records() == []
    assert os.listdir(fresh.point) == []
