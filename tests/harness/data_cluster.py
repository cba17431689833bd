"""Chunkservers on hosts of their own, with disks whose power can be cut; a metadata node and a mount on the clients'.

The mount is seen by everybody on this machine, and only its network is that of the clients' host: so a link of a given
speed, a cut or a dead host is met by the filesystem and by nothing else.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import server_counters
from harness.cluster import shoal, wait_until
from harness.hosts import Host, Hosts, run
from shoalfs.fs.cli import mountpoint
from shoalfs.transport.config import render

CLUSTER = "da" * 16
MDS_PORT, PORT = 7400, 7410
READY_S = 60.0


class DataCluster:
    """``mds`` and ``mount``: further settings of these tables."""

    def __init__(self, hosts: Hosts, mds: dict[str, object], mount: dict[str, object]) -> None:
        self.hosts = hosts
        self.root = hosts.root
        # Whoever starts a process on a host copies all mounts for it. Below a shared one, what is unmounted here is
        # unmounted there as well; else the filesystem would live on.
        self.shared = self.root / "shared"
        self.shared.mkdir()
        run("mount", "--bind", self.shared, self.shared)
        run("mount", "--make-shared", self.shared)
        self.point = self.shared / "mnt"
        self.point.mkdir()
        self.address = f"tcp:{hosts.client.address}:{MDS_PORT}"
        self.servers: dict[Host, subprocess.Popen[bytes]] = {}
        self.mds: subprocess.Popen[bytes] | None = None
        self.mount: subprocess.Popen[bytes] | None = None
        self.others: dict[Path, subprocess.Popen[bytes]] = {}
        self._mds = {"listen": self.address, "data_dir": str(self.root / "mds"), **mds}
        self._mount = {"mds": [self.address], **mount}
        self.write_configurations()

    def write_configurations(self, **mount: object) -> None:
        """``mount``: what its next start does otherwise."""
        for host in self.hosts.hosts:
            served = {"name": host.name, "listen": f"tcp:{host.address}:{PORT}", "mds": [self.address]}
            self._write(host, host.name, {"chunkserver": {**served, "targets": [{"path": str(self.target(host))}]}})
        self._write(self.hosts.client, "mds", {"mds": self._mds})
        self._write(self.hosts.client, "mount", {"mount": {**self._mount, **mount}})

    def _write(self, host: Host, name: str, tables: dict[str, dict[str, Any]]) -> None:
        """Between machines everything is encrypted."""
        self.config(name).write_text(render({"cluster": {"id": CLUSTER}, "tls": self.hosts.tls(host), **tables}))

    def config(self, name: str) -> Path:
        return self.root / f"{name}.toml"

    def target(self, host: Host) -> Path:
        return host.root / "target"

    # --- processes ---------------------------------------------------------------------------------------------------
    def start_mds(self) -> None:
        command = [sys.executable, "-m", "shoalfs", "mds", "run", "--config", self.config("mds")]
        self.mds = self.hosts.client.start(command, self.root / "mds.log")

    def start(self, *hosts: Host) -> None:
        for host in hosts or self.hosts.hosts:
            assert host not in self.servers or self.servers[host].poll() is not None, f"{host.name} runs already"
            command = [sys.executable, "-m", "shoalfs", "chunkserver", "run", "--config", self.config(host.name)]
            self.servers[host] = host.start(command, self.root / f"{host.name}.log")

    def kill(self, *hosts: Host) -> None:
        for host in hosts:
            self.servers[host].send_signal(signal.SIGKILL)
        for host in hosts:
            self.servers[host].wait(20.0)

    def start_mount(self) -> None:
        self.mount = self._mount_at(self.hosts.client, self.point, "mount")

    def mount_on(self, host: Host) -> Path:
        """One more mount, over the network of this host."""
        name = f"mount-{host.number}"
        point = self.shared / name
        point.mkdir()
        self._write(host, name, {"mount": self._mount})
        self.others[point] = self._mount_at(host, point, name)
        return point

    def _mount_at(self, host: Host, point: Path, name: str) -> subprocess.Popen[bytes]:
        network = ("nsenter", f"--net=/run/netns/{host.netns}")
        command = [*network, sys.executable, "-m", "shoalfs", "mount", point, "--config", self.config(name)]
        with open(self.root / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*map(str, command)], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        mountpoint.wait_answers(str(point), READY_S)
        return process

    def end_mount(self) -> None:
        """In order: everything that was written is committed."""
        run("umount", self.point)
        assert self.mount is not None
        assert self.mount.wait(60.0) == 0, self.log("mount")

    def kill_mount(self) -> None:
        assert self.mount is not None
        self.mount.kill()
        self.mount.wait()
        run("umount", "-l", self.point, check=False)

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")

    # --- looking -----------------------------------------------------------------------------------------------------
    def command(self, *arguments: object, check: bool = True) -> str:
        """`shoal` on the clients' host."""
        done = shoal(*arguments, "--config", self.config("mount"), netns=self.hosts.client.netns)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr}"
        return done.stdout

    def counters(self, host: Host) -> dict[str, int]:
        """What its chunkserver has counted since it was started."""
        inside = ("ip", "netns", "exec", self.hosts.client.netns, sys.executable, server_counters.__file__)
        told = run(*inside, self.config("mount"), f"tcp:{host.address}:{PORT}").stdout
        found: dict[str, int] = json.loads(told)
        return found

    def status(self) -> dict[str, Any]:
        told = self.command("status", "-o", "json", check=False)
        found: dict[str, Any] = json.loads(told) if told.startswith("{") else {"health": "unreachable"}
        return found

    def targets(self) -> dict[str, list[dict[str, Any]]]:
        """By the name of their node."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(self.command("target", "list", "-o", "json")):
            found.setdefault(row["node"], []).append(row)
        return found

    def is_whole(self) -> bool:
        """Every target that is not out is up, and nothing is missing or moving."""
        found = self.status()
        return found["health"] == "healthy" and not found["repair"]["groups_moving"]

    def wait_whole(self, timeout_s: float = 120.0) -> float:
        """Until everything has all its copies again. Returns how long that took."""
        began = time.monotonic()
        wait_until(self.is_whole, "everything has all its copies", timeout_s)
        return time.monotonic() - began

    def used_bytes(self) -> int:
        """Of all targets together."""
        return sum(row["used_bytes"] or 0 for rows in self.targets().values() for row in rows)

    def close(self) -> None:
        if self.mount is not None and self.mount.poll() is None:
            self.kill_mount()
        for process in self.others.values():
            process.kill()
            process.wait()
        for path in (self.point, *self.others, self.shared):
            run("umount", "-l", path, check=False)
        self.hosts.close()


@contextlib.contextmanager
def data_cluster(
    count: int, disk_mib: int = 512, *, mds: dict[str, object] | None = None, mount: dict[str, object] | None = None
) -> Iterator[DataCluster]:
    """A cluster that serves, mounted."""
    hosts = Hosts(count, disk_mib)
    try:
        cluster = DataCluster(hosts, mds or {}, mount or {})
    except BaseException:
        hosts.close()
        raise
    try:
        cluster.start_mds()
        cluster.start()
        wait_until(lambda: cluster.status()["health"] == "healthy" and len(cluster.targets()) == count, "it serves")
        cluster.start_mount()
        yield cluster
    except BaseException:
        for path in sorted(cluster.root.glob("*.log")):
            print(f"== {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        raise
    finally:
        cluster.close()
