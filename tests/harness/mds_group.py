"""Three metadata nodes, each a process on a host of its own, and a load that remembers what it was told."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.cluster import shoal
from harness.hosts import Host, Hosts
from harness.metadata import contents
from shoalfs.mds import keys
from shoalfs.mds.store import LmdbStore

CLUSTER = "7e" * 16
PORT = 7400
SERVES_S = 60.0
STOPS = 5


class MdsGroup:
    def __init__(self, hosts: Hosts, env: dict[str, str] | None = None) -> None:
        self.hosts = hosts
        self.root = hosts.root
        self.env = env or {}
        self.addresses = [f"tcp:{host.address}:{PORT}" for host in hosts.hosts]
        self.processes: dict[Host, subprocess.Popen[bytes]] = {}
        for host in [*hosts.hosts, hosts.client]:
            self._config(host).write_text(self._text(host))

    # --- nodes -------------------------------------------------------------------------------------------------------
    def _config(self, host: Host) -> Path:
        return self.root / f"{host.name}.toml"

    def _text(self, host: Host) -> str:
        tls = "".join(f'{name} = "{path}"\n' for name, path in self.hosts.tls(host).items())
        text = f'[cluster]\nid = "{CLUSTER}"\n[tls]\n{tls}'
        if host is self.hosts.client:
            return text + f"[mount]\nmds = {json.dumps(self.addresses)}\n"
        peers = ", ".join(f'{number} = "{address}"' for number, address in enumerate(self.addresses, 1))
        return text + (
            f'[mds]\nnode = {host.number}\nlisten = "tcp:{host.address}:{PORT}"\n'
            f'data_dir = "{host.root}/mds"\npeers = {{ {peers} }}\n'
        )

    def start(self, *hosts: Host) -> None:
        for host in hosts or self.hosts.hosts:
            assert host not in self.processes or self.processes[host].poll() is not None, f"{host.name} runs already"
            command = [sys.executable, "-m", "shoalfs", "mds", "run", "--config", self._config(host)]
            self.processes[host] = host.start(command, self.log_path(host), self.env)

    def kill(self, *hosts: Host) -> None:
        for host in hosts:
            self.processes[host].send_signal(signal.SIGKILL)
        for host in hosts:
            self.processes[host].wait(20.0)

    def stop(self) -> None:
        """As an operator would."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for host, process in self.processes.items():
            assert process.wait(30.0) == 0, self.log(host)

    def end_of(self, host: Host, timeout_s: float = 30.0) -> int:
        """The exit code of a node that ends by itself."""
        return self.processes[host].wait(timeout_s)

    def log_path(self, host: Host) -> Path:
        return self.root / f"{host.name}.log"

    def log(self, host: Host) -> str:
        return self.log_path(host).read_text(errors="replace")

    # --- looking -----------------------------------------------------------------------------------------------------
    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`shoal` on the clients' host."""
        client = self.hosts.client
        return shoal(*arguments, "--config", self._config(client), netns=client.netns)

    def status(self) -> list[dict[str, Any]]:
        told = self.command("raft", "status", "-o", "json").stdout
        return json.loads(told) if told else []

    def leader(self) -> Host:
        """Waits for one that all who answer agree on."""
        give_up = time.monotonic() + SERVES_S
        while True:
            leading = [row["node"] for row in self.status() if row["state"] == "leader"]
            if len(leading) == 1:
                return self.hosts.hosts[leading[0] - 1]
            assert time.monotonic() < give_up, f"no leader: {self.status()}"

    def followers(self) -> list[Host]:
        leader = self.leader()
        return [host for host in self.hosts.hosts if host is not leader]

    def wait_equal(self) -> None:
        """Until all nodes have applied the same; a member that was away has much to fetch."""
        give_up = time.monotonic() + SERVES_S
        while True:
            status = self.status()
            if len(status) == len(self.addresses) and len({row["applied_index"] for row in status}) == 1:
                return
            assert time.monotonic() < give_up, f"not equal: {status}"
            time.sleep(0.2)

    def fsck(self) -> None:
        done = self.command("fsck", "-o", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["clean"], done.stdout

    def stop_equal(self) -> None:
        """End all nodes when they have applied the same. What the leader does by itself may come in between, and reach
        some of them only: then once more."""
        for _ in range(STOPS):
            self.wait_equal()
            self.stop()
            if len({store[keys.APPLIED] for store in self.stores()}) == 1:
                return
            self.start()
        raise AssertionError(f"not stopped with the same applied in {STOPS} tries")

    def stores(self) -> list[dict[bytes, bytes]]:
        """After :meth:`stop`: every row of every node."""
        stores = []
        for host in self.hosts.hosts:
            store = LmdbStore.open(os.fspath(host.root / "mds" / "store"), boot_id=host.boot_id.read_text().strip())
            stores.append(contents(store))
            store.close()
        return stores

    def check_stores_equal(self) -> None:
        """After :meth:`stop_equal`."""
        stores = self.stores()
        for host, rows in zip(self.hosts.hosts[1:], stores[1:], strict=True):
            differing = [key for key in stores[0].keys() | rows.keys() if stores[0].get(key) != rows.get(key)]
            assert not differing, f"{host.name} differs from host-1 in {len(differing)} rows: {differing[:5]}"


class Load:
    """The clients of tests/harness/metadata_load.py, in a process on their own host."""

    def __init__(self, group: MdsGroup) -> None:
        self.group = group
        root, client = group.root, group.hosts.client
        self.paths = {name: root / f"load-{name}" for name in ("stop", "report", "progress")}
        for path in self.paths.values():
            path.unlink(missing_ok=True)
        config = root / "load.json"
        told = {name: str(path) for name, path in self.paths.items()}
        config.write_text(json.dumps({"addresses": group.addresses, "tls": group.hosts.tls(client), **told}))
        self.log = root / "load.log"
        script = Path(__file__).with_name("metadata_load.py")
        self.process = client.start([sys.executable, script, config], self.log)
        self.wait_progress(50)

    def told(self, what: str = "progress") -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.paths[what].read_text())
        except FileNotFoundError:
            found = {"operations": 0, "wrong": [], "waiting_s": 0.0}
        return found

    def wait_progress(self, operations: int, timeout_s: float = SERVES_S) -> None:
        """Until so many more are acknowledged."""
        began, before = time.monotonic(), self.told()["operations"]
        while (told := self.told())["operations"] < before + operations:
            assert self.process.poll() is None, f"the load ended: {self.log.read_text()}"
            assert time.monotonic() < began + timeout_s, f"stalled: {told}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def stands_still(self, seconds: float) -> bool:
        """Whether nothing is acknowledged for so long."""
        before = self.told()["operations"]
        time.sleep(seconds)
        return self.told()["operations"] == before

    def finish(self) -> dict[str, Any]:
        """Stop, and have everything compared."""
        self.paths["stop"].touch()
        code = self.process.wait(150.0)
        assert code == 0, self.log.read_text()[-4000:]
        report = self.told("report")
        assert report["finished"]
        assert not report["wrong"], "\n".join(report["wrong"])
        return report


@contextlib.contextmanager
def metadata_group(count: int = 3, disk_mib: int = 256, env: dict[str, str] | None = None) -> Iterator[MdsGroup]:
    """A group that serves."""
    hosts = Hosts(count, disk_mib)
    try:
        group = MdsGroup(hosts, env)
        group.start()
        group.leader()
        try:
            yield group
        finally:
            for host in hosts.hosts:  # pytest shows it if the test failed
                print(f"== {host.name}\n{group.log(host)[-4000:]}")
    finally:
        hosts.close()


def check_all(group: MdsGroup, load: Load) -> dict[str, Any]:
    """The end of every test: what was acknowledged is there, the check is clean, all nodes are equal."""
    report = load.finish()
    group.fsck()
    group.stop_equal()
    group.check_stores_equal()
    return report


# --- faults ----------------------------------------------------------------------------------------------------------
class Nemesis:
    """Faults, each of which is over when its method returns; ``counts`` says how many there were of each kind."""

    def __init__(self, group: MdsGroup, load: Load, seed: int) -> None:
        self.group, self.load = group, load
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.kinds: list[Callable[[], None]] = [
            self.kill_leader,
            self.kill_follower,
            self.kill_all,
            self.pause_leader,
            self.cut_leader,
            self.cut_one_way,
            self.cut_follower,
            self.power_of_one,
            self.power_of_all,
        ]

    def strike(self) -> None:
        kind = self.chance.choice(self.kinds)
        kind()
        self.counts[kind.__name__] += 1

    def kill_leader(self) -> None:
        leader = self.group.leader()
        self.group.kill(leader)
        self.load.wait_progress(20)
        self.group.start(leader)

    def kill_follower(self) -> None:
        follower = self.chance.choice(self.group.followers())
        self.group.kill(follower)
        self.load.wait_progress(50)
        self.group.start(follower)

    def kill_all(self) -> None:
        self.group.kill(*self.group.hosts.hosts)
        self.group.start()
        self.load.wait_progress(20)

    def pause_leader(self) -> None:
        """For longer than its lease and any election; it must not answer from what it knew before."""
        # `ip netns exec` and `sh` replace themselves by what they start, so this is the node.
        process = self.group.processes[self.group.leader()]
        process.send_signal(signal.SIGSTOP)
        try:
            self.load.wait_progress(50)
        finally:
            process.send_signal(signal.SIGCONT)
        self.load.wait_progress(20)

    def cut_leader(self) -> None:
        self._cut(self.group.leader(), incoming=True, outgoing=True)

    def cut_one_way(self) -> None:
        leader = self.group.leader()
        incoming = self.chance.random() < 0.5
        self._cut(leader, incoming=incoming, outgoing=not incoming)

    def cut_follower(self) -> None:
        self._cut(self.chance.choice(self.group.followers()), incoming=True, outgoing=True)

    def _cut(self, host: Host, *, incoming: bool, outgoing: bool) -> None:
        """From the other nodes; clients still reach it, and must not get old answers."""
        others = [other for other in self.group.hosts.hosts if other is not host]
        host.cut(*others, incoming=incoming, outgoing=outgoing)
        try:
            self.load.wait_progress(50)
        finally:
            host.heal()
        self.load.wait_progress(20)

    def power_of_one(self) -> None:
        host = self.chance.choice(self.group.hosts.hosts)
        host.isolate()
        host.cut_power()
        self.load.wait_progress(20)
        self.group.start(host)
        self.load.wait_progress(20)

    def power_of_all(self) -> None:
        for host in self.group.hosts.hosts:
            host.isolate()
        for host in self.group.hosts.hosts:
            host.cut_power()
        self.group.start()
        self.load.wait_progress(20)
