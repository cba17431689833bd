"""Real processes: a group grows from one node to three while a client writes, loses one, and takes in another.

What was acknowledged is there at the end, on every member.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from harness.cluster import shoal
from harness.metadata import contents
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, caches_nothing, open_session
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.network import open_network
from shoalfs.transport.session import Hello

SHOAL = (sys.executable, "-m", "shoalfs", "mds")


class Nodes:
    """Metadata nodes as processes of their own, by name."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="shoal-"))  # short: paths of unix sockets are limited
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def address(self, name: str) -> str:
        return f"unix:{self.root}/{name}.sock"

    def start(self, name: str, command: str, *arguments: str) -> None:
        with open(self.root / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*SHOAL, command, "--listen", self.address(name), "--data-dir", str(self.root / name), *arguments],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def status(self) -> list[dict]:
        alive = next(name for name, process in self.processes.items() if process.poll() is None)
        done = shoal("raft", "status", "-o", "json", "--mds", self.address(alive))
        return json.loads(done.stdout) if done.stdout else []

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.root)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


def wait_for(nodes: Nodes, condition: Callable[[list[dict]], bool], what: str) -> list[dict]:
    give_up = time.monotonic() + 30.0
    while not condition(status := nodes.status()):
        assert time.monotonic() < give_up, f"not in time: {what}: {status}"
        time.sleep(0.1)
    return status


def voting(*numbers: int) -> Callable[[list[dict]], bool]:
    def holds(status: list[dict]) -> bool:
        words = sorted(row["state"] for row in status)
        return [row["node"] for row in status] == list(numbers) and words == ["leader"] + ["voter"] * (len(words) - 1)

    return holds


class Writer:
    """Creates files, a few at a time, and remembers what was acknowledged."""

    def __init__(self, session: MdsClient) -> None:
        self.session = session
        self.made: list[bytes] = []
        self.longest_s = 0.0

    async def run(self, number: int) -> None:
        count = 0
        while True:
            name = b"%d-%d" % (number, count)
            count += 1
            began = time.monotonic()
            request = m.Create(m.ROOT_CREDENTIALS, ROOT_INODE, name, 0o644, exclusive=True)
            await self.session.mutate(m.Op.CREATE, request, m.Created)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.made.append(name)


@pytest.mark.long
async def test_one_node_becomes_three_and_a_dead_one_is_replaced(nodes: Nodes) -> None:
    def administer() -> None:
        def run(*arguments: str) -> None:
            done = shoal(*arguments, "--mds", nodes.address("a"), "--mds", nodes.address("b"))
            assert done.returncode == 0, done.stderr

        for name, members in (("b", (1, 2)), ("c", (1, 2, 3))):
            nodes.start(name, "join", "--mds", nodes.address("a"))
            wait_for(nodes, voting(*members), f"{name} votes")
        run("mds", "transfer-leader", "2")
        assert next(row for row in wait_for(nodes, voting(1, 2, 3), "2 leads") if row["state"] == "leader")["node"] == 2
        nodes.kill("c")
        run("mds", "leave", "3")
        nodes.start("d", "join", "--mds", nodes.address("b"))
        wait_for(nodes, voting(1, 2, 4), "d votes")
        nodes.kill("b")  # the leader
        nodes.start("b", "run")
        wait_for(nodes, voting(1, 2, 4), "b is back under its number")
        # A disk is lost, and the node started as if nothing had happened.
        nodes.kill("d")
        shutil.rmtree(nodes.root / "d")
        founders = f'{{ 1 = "{nodes.address("a")}", 2 = "{nodes.address("b")}", 4 = "{nodes.address("d")}" }}'
        cluster = next(line for line in nodes.log("b").splitlines() if "joining cluster" in line).split()[-4]
        (nodes.root / "d.toml").write_text(f'[cluster]\nid = "{cluster}"\n[mds]\nnode = 4\npeers = {founders}\n')
        nodes.start("d", "run", "--config", str(nodes.root / "d.toml"))
        assert nodes.processes.pop("d").wait(30.0) == 2
        assert "node 4 has lost the log that the group knows it by" in nodes.log("d")
        run("mds", "leave", "4")
        shutil.rmtree(nodes.root / "d")
        nodes.start("d", "join", "--mds", nodes.address("a"))
        wait_for(nodes, voting(1, 2, 5), "d is a new node")

    nodes.start("a", "run")
    with trio.fail_after(110):
        async with (
            open_network(Carriers.standard(None), Hello(role=m.CLIENT, name="test"), caches_nothing()) as network,
            open_session(network, [nodes.address("a")], "test") as session,
            trio.open_nursery() as nursery,
        ):
            writer = Writer(session)
            for number in range(4):
                nursery.start_soon(writer.run, number)
            await trio.to_thread.run_sync(administer)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
    print(f"{len(writer.made)} files, the longest create took {writer.longest_s:.2f} s")
    assert len(writer.made) > 200
    await trio.sleep(0.5)  # followers learn with a heartbeat what is committed
    for process in nodes.processes.values():
        process.send_signal(signal.SIGTERM)
    for name, process in nodes.processes.items():
        assert process.wait(20.0) == 0, nodes.log(name)
    rows = []
    for name in ("a", "b", "d"):
        store = LmdbStore.open(os.fspath(nodes.root / name / "store"))
        rows.append({key[9:] for key in contents(store) if key[:1] == b"D"})
        store.close()
    assert rows[0] == rows[1] == rows[2]
    assert set(writer.made) <= rows[0]


def test_what_is_refused_says_why(nodes: Nodes) -> None:
    nodes.start("a", "run")
    wait_for(nodes, voting(1), "a leads")
    a = ("--mds", nodes.address("a"))
    for arguments, line in [
        (("mds", "leave", "1", *a), "node 1 is the only one that votes"),
        (("mds", "leave", "7", *a), "node 7 is no member: the members are 1"),
        (("mds", "transfer-leader", "7", *a), "node 7 is no voting member"),
        (("mds", "join", "--data-dir", str(nodes.root / "x")), "name a node of the group"),
    ]:
        done = shoal(*arguments)
        assert done.returncode in (1, 2)
        assert line in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    (nodes.root / "y" / "store").mkdir(parents=True)
    done = shoal("mds", "join", *a, "--data-dir", str(nodes.root / "y"), "--listen", nodes.address("y"))
    assert "holds a store without a log" in done.stderr
