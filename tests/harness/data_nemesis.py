"""What happens to a cluster of chunkservers while data are written to it: see tests/chaos/test_chaos_data.py.

Each fault is over, and everything has all its copies again, when its method returns: with that, the promise that holds
is the plain one. Nothing that was fsynced is lost, nothing that is read is wrong.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from harness import data_workload
from harness.cluster import wait_until
from harness.data_cluster import DataCluster
from harness.hosts import Host

PROGRESS_S = 90.0
DOWN_S = 7.0  # longer than it takes for a silent target to be declared down


class DataLoad:
    """The workload in a process of its own."""

    def __init__(self, cluster: DataCluster, seed: int) -> None:
        self.cluster = cluster
        self.paths = {name: cluster.root / f"load-{name}" for name in ("report", "stop")}
        command = [sys.executable, data_workload.__file__, cluster.point, *self.paths.values(), seed]
        self.log = cluster.root / "load.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*map(str, command)], cwd="/", stdout=log, stderr=log)
        self.wait_fsyncs(3)

    def told(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.paths["report"].read_text())
        except FileNotFoundError:
            found = {"counts": {}, "problems": [], "finished": False}
        return found

    @property
    def fsyncs(self) -> int:
        return int(self.told()["counts"].get("fsyncs", 0))

    def wait_fsyncs(self, count: int) -> None:
        """Until so many more are acknowledged."""
        goal = self.fsyncs + count
        wait_until(lambda: self.fsyncs >= goal or self.process.poll() is not None, f"{count} fsyncs", PROGRESS_S)
        assert self.process.poll() is None, self.log.read_text()[-4000:]

    def finish(self) -> dict[str, Any]:
        """Stop, mount anew, and have everything verified: nothing of it comes from a cache."""
        self.paths["stop"].touch()
        wait_until(lambda: self.told().get("synced", False) or self.process.poll() is not None, "synced", 300.0)
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        self.cluster.end_mount()
        self.cluster.start_mount()
        self.paths["stop"].unlink()
        assert self.process.wait(300.0) == 0, self.log.read_text()[-4000:]
        report = self.told()
        assert report["finished"]
        assert not report["problems"], "\n".join(report["problems"])
        return report

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class DataNemesis:
    """``counts``: faults by kind. ``healed``: after each, how long it took until everything had all its copies again,
    from when the cause was over, and how many bytes were copied for it."""

    def __init__(self, cluster: DataCluster, load: DataLoad, seed: int) -> None:
        self.cluster, self.load = cluster, load
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.healed: list[tuple[str, float, int]] = []
        self.kinds: Sequence[Callable[[], None]] = (
            self.kill_server,
            self.pause_server,
            self.cut_off,
            self.cut_from_one_another,
            self.flip_bits,
            self.power_of_one,
            self.power_of_all,
            self.wipe_disk,
            self.kill_metadata,
            self.kill_mount,
        )

    def strike(self, kind: Callable[[], None] | None = None) -> None:
        kind = kind or self.chance.choice(self.kinds)
        kind()
        self.counts[kind.__name__] += 1
        self._resume()
        copied = self._copied()
        took = self.cluster.wait_whole()
        self.healed.append((kind.__name__, took, max(0, self._copied() - copied)))
        self.load.wait_fsyncs(1)

    def _resume(self) -> None:
        """Who was away for long was given up, and only an operator takes it back: else there would be too few left."""
        for rows in self.cluster.targets().values():
            for row in rows:
                if row["state"] == "out":
                    self.cluster.command("target", "resume", row["id"])

    def _copied(self) -> int:
        found = self.cluster.status()
        return int(found.get("repair", {}).get("copied_bytes", 0))

    def _one(self) -> Host:
        return self.chance.choice(self.cluster.hosts.hosts)

    def kill_server(self) -> None:
        host = self._one()
        self.cluster.kill(host)
        self.load.wait_fsyncs(2)
        self.cluster.start(host)

    def pause_server(self) -> None:
        process = self.cluster.servers[self._one()]
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(self.chance.choice((1.0, DOWN_S)))
            self.load.wait_fsyncs(2)
        finally:
            process.send_signal(signal.SIGCONT)

    def cut_off(self) -> None:
        host = self._one()
        host.isolate()
        try:
            time.sleep(self.chance.choice((1.0, DOWN_S)))
            self.load.wait_fsyncs(2)
        finally:
            host.heal()

    def cut_from_one_another(self) -> None:
        """Servers do not reach one of them, clients and the metadata service do."""
        host = self._one()
        host.cut(*(other for other in self.cluster.hosts.hosts if other is not host))
        try:
            self.load.wait_fsyncs(4)
        finally:
            host.heal()

    def flip_bits(self) -> None:
        """In what one disk has of chunks; scrubbing, or whoever reads them, finds it."""
        target = self.cluster.target(self._one())
        flipped = 0
        for path in sorted(target.glob("segments/*")):
            with open(path, "r+b") as file:
                size = os.fstat(file.fileno()).st_size
                for _ in range(3):
                    if size > 4 * data_workload.BLOCK:
                        at = self.chance.randrange(size)
                        file.seek(at)
                        byte = file.read(1)
                        file.seek(at)
                        file.write(bytes([byte[0] ^ (1 << self.chance.randrange(8))]))
                        flipped += 1
        self.counts["bits flipped"] += flipped
        self.load.wait_fsyncs(1)
        before = self._scrubbed()
        self.cluster.command("scrub", "start")

        def is_scrubbed() -> bool:
            return all(finished > before.get(target, 0) for target, finished in self._scrubbed().items())

        wait_until(is_scrubbed, "everything is verified", 90.0)

    def _scrubbed(self) -> dict[int, int]:
        """When each target was last found to be verified."""
        rows = json.loads(self.cluster.command("scrub", "status", "-o", "json"))
        return {row["target"]: row["finished_ns"] for row in rows}

    def power_of_one(self) -> None:
        host = self._one()
        host.isolate()
        host.cut_power()
        self.load.wait_fsyncs(1)
        self.cluster.start(host)

    def power_of_all(self) -> None:
        hosts = self.cluster.hosts.hosts
        for host in hosts:
            host.isolate()
        for host in hosts:
            host.cut_power()
        self.cluster.start()

    def wipe_disk(self) -> None:
        """All that one target has is gone for good, and an empty disk takes its place."""
        host = self._one()
        self.cluster.kill(host)
        shutil.rmtree(self.cluster.target(host))
        self.load.wait_fsyncs(1)

        def is_out() -> bool:
            return any(row["state"] == "out" for row in self.cluster.targets().get(host.name, []))

        wait_until(is_out, "it is given up", 60.0)
        self.cluster.start(host)
        wait_until(lambda: len(self.cluster.targets()[host.name]) > 1, "it is a new target", 30.0)

        def is_left() -> bool:
            (old,) = [row for row in self.cluster.targets()[host.name] if row["state"] == "out"]
            return not old["groups"] and not old["leaving"]

        wait_until(is_left, "others hold its part", 90.0)
        (old,) = [row["id"] for row in self.cluster.targets()[host.name] if row["state"] == "out"]
        self.cluster.command("target", "remove", old)

    def kill_metadata(self) -> None:
        assert self.cluster.mds is not None
        self.cluster.mds.kill()
        self.cluster.mds.wait()
        self.cluster.start_mds()

    def kill_mount(self) -> None:
        self.cluster.kill_mount()
        self.cluster.start_mount()


def gib_rate(healed: Sequence[tuple[str, float, int]]) -> float | None:
    """Seconds for each GiB that was copied, over those faults after which there was much to copy."""
    large = [(took, copied) for _, took, copied in healed if copied > 8 << 20]
    copied = sum(copied for _, copied in large)
    return sum(took for took, _ in large) * (1 << 30) / copied if copied else None
