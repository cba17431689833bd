"""A cluster over verbs: a metadata node, two chunkservers and a mount, each a process, on the device's address."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trustme

from shoalfs.__main__ import main
from shoalfs.fs.cli import fsck, links, mountpoint, processes, status
from shoalfs.fs.cli.cluster import call, locate
from shoalfs.transport.config import render
from shoalfs.transport.limits import GARBAGE_GRACE_MS_DEFAULT, KIB, MIB

START_S = 180.0  # a process takes ten seconds to start in a guest that is emulated, on a busy machine a minute
WAIT_S = 180.0
LARGE_BYTES = 6 * MIB
CLUSTER = "5d" * 16
PORTS = {"mds": 7400, "one": 7411, "two": 7412}


class Cluster:
    """Processes by name: "mds", "one", "two", "mount"; ``close`` leaves none of them, and nothing mounted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.point = root / "mnt"
        self.point.mkdir()
        self.running: dict[str, processes.Starting] = {}
        self._make_certificates()
        for name in ("mds", "one", "two", "mount"):
            self.configure(name, "auto")

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert(os.environ["SHOAL_TEST_RDMA"])
        authority.cert_pem.write_to_path(self.root / "ca.pem")
        certificate.private_key_pem.write_to_path(self.root / "key.pem")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(self.root / "cert.pem", append=True)

    def address(self, name: str) -> str:
        return f"tcp:{os.environ['SHOAL_TEST_RDMA']}:{PORTS[name]}"

    def config(self, name: str) -> str:
        return str(self.root / f"{name}.toml")

    def configure(self, name: str, transport: str) -> None:
        metadata = [self.address("mds")]
        tables: dict[str, dict[str, object]] = {
            "cluster": {"id": CLUSTER},
            "net": {"transport": transport},
            "tls": {part: str(self.root / f"{part}.pem") for part in ("ca", "cert", "key")},
        }
        if name == "mds":
            tables["mds"] = {"listen": self.address("mds"), "data_dir": str(self.root / "metadata"), "replicas": 2}
        elif name == "mount":  # without a cache, so that what is read is fetched
            tables["mount"] = {"mds": metadata, "cache_bytes": 0}
        else:
            targets = [{"path": str(self.root / name), "size": 256 * MIB}]
            tables["chunkserver"] = {
                "name": name,
                "listen": self.address(name),
                "targets": targets,
                "mds": metadata,
            }
        Path(self.config(name)).write_text(render(tables), encoding="utf-8")

    def start(self, *names: str) -> None:
        """Start these side by side; returns when all serve."""
        for name in names:
            kind = name if name in ("mds", "mount") else "chunkserver"
            arguments = [kind, *([] if kind == "mount" else ["run"]), "--config", self.config(name)]
            arguments += [str(self.point)] * (kind == "mount")
            self.running[name] = processes.Starting(name, arguments, str(self.root / f"{name}.log"))
        for name in names:
            self.running[name].wait_ready(START_S)

    def kill(self, name: str) -> None:
        self.running[name].process.kill()
        self.running.pop(name).process.wait()

    def ask(self, work):
        return call(locate(None, self.config("mount"), None), work)

    def status(self) -> dict[str, object]:
        return status.as_json(*self._status())

    def _status(self):
        found, members, told = self.ask(status._ask_all)
        return found, members, status.assess(found, members), told

    def links(self) -> dict[tuple[str, str], dict[str, object]]:
        """What `shoal status` says of the connections, by server and role of the peer."""
        return {(row["server"], row["role"]): row for row in self.status()["links"]}

    def wait(self, condition, what: str) -> None:
        give_up = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < give_up, f"not after {WAIT_S} s: {what}: {json.dumps(self.status(), indent=1)}"
            time.sleep(0.5)

    def findings(self) -> list[dict[str, object]]:
        return self.ask(partial(fsck.check, deep=True, grace_ms=GARBAGE_GRACE_MS_DEFAULT)).as_json()["findings"]

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)
        if mountpoint.condition(str(self.point)) is not mountpoint.Condition.FREE:
            subprocess.run(["umount", "-l", str(self.point)], check=False)

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])
            for path in sorted(self.root.glob("*.log"))
        )


IN_A_GUEST = """#!{python}
import sys
from shoalfs.chunkserver import index
from shoalfs.mds import store
from shoalfs.transport import network, rdma_setup, rpc
if {small_maps}:
    store.MAP_BYTES = index.INDEX_MAP_BYTES = 1 << 30
rdma_setup.RDMA_PROBE_MS = network.DIAL_TIMEOUT_MS = rpc.HELLO_TIMEOUT_MS = 60_000
for call in (network.Network.call, rpc.Connection.call):
    call.__kwdefaults__["timeout_ms"] = 60_000
from shoalfs.__main__ import main
sys.exit(main(sys.argv[4:]))  # after -P -m shoalfs
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """What starts the processes: with limits on time that an emulated machine can keep, see be_patient; and under
    User-Mode Linux, where a process has 512 GiB of addresses, with smaller maps for the stores."""
    small_maps = "User Mode Linux" in Path("/proc/cpuinfo").read_text()
    wrapper = tmp_path / "python"
    wrapper.write_text(IN_A_GUEST.format(python=sys.executable, small_maps=small_maps))
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    for command in (links, status):
        monkeypatch.setattr(command, "_ASK_MS", 60_000)


@pytest.fixture
def cluster(tmp_path, python):
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()
        print(made.logs())  # shown beside a failure


def device_packets() -> dict[str, int]:
    """What the device itself has counted."""
    folder = Path("/sys/class/infiniband/rxe0/ports/1/hw_counters")
    return {name: int((folder / name).read_text()) for name in ("sent_pkts", "rcvd_pkts")}


def write(path: Path, seed: int, size: int) -> str:
    """Write so many random bytes, durably; their hash."""
    data = random.Random(seed).randbytes(size)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> str:
    """The hash of what the servers hold: the kernel's pages are dropped before."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.sha256(file.read()).hexdigest()


def verify(point: Path, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        assert read(point / name) == expected, name


def store_until_connected(cluster: Cluster, server: str, hashes: dict[str, str]) -> None:
    """Write files until the mount has dialled that chunkserver again: what failed is left alone for some seconds."""

    def connected() -> bool:
        name = f"to-{server}-{len(hashes)}"
        hashes[name] = write(cluster.point / name, len(hashes), MIB)
        return (server, "client") in cluster.links()

    cluster.wait(connected, f"the mount is connected to {server}")


def bulk(rows, direction: str) -> int:
    return sum(row["counters"][f"bulk_{direction}_bytes"] for row in rows if row["carrier"] == "verbs")


@pytest.mark.timeout(800)
def test_a_cluster_over_verbs(cluster, capfd):
    point, hashes = cluster.point, {}
    cluster.start("mds")
    cluster.start("one", "two")
    cluster.wait(lambda: cluster.status()["health"] == "healthy", "both chunkservers are up")
    cluster.start("mount")

    # Everything between the processes goes over verbs, metadata and data.
    packets = device_packets()
    for n in range(8):
        hashes[f"small-{n}"] = write(point / f"small-{n}", n, 3 * KIB)
    hashes["large"] = write(point / "large", 100, LARGE_BYTES)
    verify(point, hashes)
    rows = cluster.links()
    expected = {("mds 1", "client"), ("mds 1", "chunkserver"), ("one", "client"), ("two", "client")}
    assert expected <= set(rows)
    assert {(row["carrier"], row["device"], row["reason"]) for row in rows.values()} == {("verbs", "rxe0", "")}
    stores = [rows["one", "client"], rows["two", "client"]]
    for store in stores:
        assert bulk([store], "received") >= 0.9 * LARGE_BYTES  # a copy on each; the rest rides in messages
    assert bulk(stores, "sent") >= 0.9 * LARGE_BYTES
    assert rows["mds 1", "client"]["counters"]["messages_received"] >= 16  # creates and commits
    sent = device_packets()["sent_pkts"] - packets["sent_pkts"]
    assert sent * 4096 >= 2.7 * LARGE_BYTES  # written twice, read once, by the device's own count
    print(f"device: {sent} packets for {3 * LARGE_BYTES} bytes of bulk; {json.dumps(list(rows.values()))}")

    # A chunkserver is killed: its copies are read elsewhere, files are written on; it comes back over verbs.
    cluster.kill("one")
    hashes["without-one"] = write(point / "without-one", 101, MIB)
    verify(point, {name: hashes[name] for name in ("large", "small-3", "without-one")})
    cluster.start("one")
    cluster.wait(lambda: cluster.status()["health"] == "healthy", "what it missed is copied")
    store_until_connected(cluster, "one", hashes)
    assert cluster.links()["one", "client"]["carrier"] == "verbs"

    # The other one comes back without verbs: chosen per peer, and said why.
    cluster.kill("two")
    cluster.configure("two", "tcp")
    cluster.start("two")
    cluster.wait(lambda: cluster.status()["health"] == "healthy", "the second one is back")
    store_until_connected(cluster, "two", hashes)
    rows = cluster.links()
    assert rows["one", "client"]["carrier"] == "verbs"
    two = rows["two", "client"]
    assert (two["carrier"], two["reason"]) == ("tls", 'the peer declined: transport is "tcp"')

    verify(point, hashes)
    capfd.readouterr()
    assert main(["status", "--config", cluster.config("mount")]) == 0
    shown = capfd.readouterr().out
    assert 'the peer declined: transport is "tcp"' in shown
    assert "verbs rxe0" in shown
    code = main(["doctor", "--config", cluster.config("mount"), "-o", "json"])
    said = {line["topic"]: line for line in json.loads(capfd.readouterr().out)}
    assert code == 0, said
    assert "a queue pair can be made" in said["address"]["text"]
    assert said["metadata"]["text"] == f"{cluster.address('mds')}: over verbs rxe0"
    assert cluster.findings() == []
