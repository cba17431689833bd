"""A whole cluster over verbs: metadata node, two chunkservers, and a mount that writes and reads through them."""

import hashlib
import os
import random
import re
import subprocess
import sys
import time

import pytest

from shoalfs.fs.cli import mountpoint

START_S = 90

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cluster(tmp_path):
    """The processes by name, and the mount point. All are ended afterwards, by their ids."""
    folder = tmp_path
    point = folder / "mnt"
    point.mkdir()
    config = folder / "shoal.toml"
    for number in (1, 2):
        (folder / f"t{number}").mkdir()
        (folder / f"c{number}.toml").write_text(
            f"""
[chunkserver]
name = "node{number}"
listen = "tcp:127.0.0.1:741{number}"
mds = ["tcp:127.0.0.1:7400"]
targets = [{{ path = "{folder}/t{number}", size = "1GiB" }}]
[net]
transport = "rdma"
"""
        )
    config.write_text(
        f"""
[mds]
listen = "tcp:127.0.0.1:7400"
data_dir = "{folder}/mds"
replicas = 2
[mount]
mds = ["tcp:127.0.0.1:7400"]
[net]
transport = "rdma"
"""
    )
    running = {}

    def start(name, *arguments):
        with open(folder / f"{name}.log", "ab") as log:
            running[name] = subprocess.Popen(
                [sys.executable, "-m", "shoalfs", *map(str, arguments)], stdout=log, stderr=log, cwd="/"
            )

    try:
        # One after the other: an emulated machine takes seconds to start a program.
        start("mds", "mds", "run", "--config", config)
        wait_for_log(folder / "mds.log", "listens at")
        start("c1", "chunkserver", "run", "--config", folder / "c1.toml")
        start("c2", "chunkserver", "run", "--config", folder / "c2.toml")
        wait_for_log(folder / "c1.log", "is target")
        wait_for_log(folder / "c2.log", "is target")
        start("mount", "mount", point, "--config", config)
        mountpoint.wait_answers(str(point), START_S)
        yield running, point, config, folder
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        raise
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_log(log, text):
    began = time.monotonic()
    while text not in log.read_text():
        assert time.monotonic() - began < START_S, f"{log.name} does not say {text!r}"
        time.sleep(0.2)


def shoal(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "shoalfs", *map(str, arguments)], capture_output=True, text=True, cwd="/", check=False
    )


def test_files_through_a_mount_over_verbs(cluster):
    running, point, config, folder = cluster
    chance = random.Random(1)
    wanted = {}
    for n in range(20):
        size = chance.choice([0, 10, 5000, 70_000, 300_000]) if n else 6 * 1024 * 1024
        data = chance.randbytes(size)
        (point / f"file{n}").write_bytes(data)
        wanted[f"file{n}"] = hashlib.sha256(data).digest()
    os.rename(point / "file1", point / "renamed")
    wanted["renamed"] = wanted.pop("file1")
    # What was written is read back from the chunkservers, not from this mount's memory.
    assert shoal("umount", point).returncode == 0
    running.pop("mount").wait(30)
    with open(folder / "mount.log", "ab") as log:
        running["mount"] = subprocess.Popen(
            [sys.executable, "-m", "shoalfs", "mount", str(point), "--config", str(config)], stdout=log, stderr=log
        )
    mountpoint.wait_answers(str(point), START_S)
    found = {name: hashlib.sha256((point / name).read_bytes()).digest() for name in os.listdir(point)}
    assert found == wanted
    # A chunkserver that is killed: the other one serves, and when it is back, it is dialled again.
    running["c1"].kill()
    running["c1"].wait()
    assert hashlib.sha256((point / "file0").read_bytes()).digest() == wanted["file0"]
    logs = "".join(log.read_text() for log in folder.glob("*.log"))
    assert len(re.findall("over verbs", logs)) >= 4, logs[-3000:]
    assert "over TCP" not in logs
