"""Histories of registers over two mounts: eight bytes in a file, written and read by programs on both, while a mount
stands still and the metadata service is killed. What every program did and saw, with the times, has to be what one
register could have done: a write is seen by every read that begins after it returned, and nothing older after it.

Nothing is synced and files stay open, so this is about bytes that a mount keeps.

One thing is not counted: a program beside the writer, on the same machine, may read what a write(2) is about to write
from the kernel's pages, where the kernel puts it before it asks us.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cluster import Cluster
from sim.check_registers import RegisterCall, is_linearizable

SECONDS = 6.0
WORKER = """
import json, os, random, sys, time
root, me, seconds, places = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
chance, number = random.Random(me), 0
opened = {name: os.open(os.path.join(root, name), os.O_RDWR) for name in places}
until = time.monotonic() + seconds
while time.monotonic() < until:
    time.sleep(chance.expovariate(1 / 0.03))
    name = chance.choice(list(places))
    is_write, again = chance.random() < 0.4, chance.random() < 0.2
    number += 1
    value = b"%d-%06d" % (me, number)
    began = time.monotonic()
    try:
        fd = os.open(os.path.join(root, name), os.O_RDWR) if again else opened[name]
        if is_write:
            os.pwrite(fd, value, places[name])
        else:
            value = os.pread(fd, 8, places[name])
        ended, failed = time.monotonic(), False
        if again:
            os.close(fd)
    except OSError as error:
        ended, failed = time.monotonic(), True
    print(json.dumps([name, began, ended, is_write, value.decode(), failed, me]), flush=True)
"""
PLACES = {"inline": 100, "chunks": 50_000}
FIRST = "0-000000"


def histories(lines: list[str]) -> dict[str, list[RegisterCall]]:
    found: dict[str, list[RegisterCall]] = {name: [] for name in PLACES}
    done = [json.loads(line) for line in lines]
    written = {value: (ended, me) for _, _, ended, is_write, value, _, me in done if is_write}
    for name, began, ended, is_write, value, failed, me in done:
        returned, writer = written.get(value, (0.0, me))
        early = not is_write and returned > began and writer % 2 == me % 2  # on the writer's own mount
        if is_write or not (failed or early):
            found[name].append(RegisterCall(began, math.inf if failed else ended, is_write, value))
    return found


@pytest.mark.parametrize("fault", ["none", "a mount stands still", "the metadata service is killed"])
def test_bytes_of_a_file_are_a_register(cluster: Cluster, fault: str):
    other = cluster.mount("other")
    for name, place in PLACES.items():
        (cluster.point / name).write_bytes(bytes(place) + FIRST.encode() + bytes(place))
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, root, str(me), str(SECONDS), json.dumps(PLACES)], stdout=subprocess.PIPE, text=True)
        for me, root in enumerate((cluster.point, other, cluster.point, other), start=1)
    ]
    with cluster.unhung(60.0):
        time.sleep(SECONDS / 3)
        if fault == "a mount stands still":
            process = cluster._mounts["other"]
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(process.pid, signal.SIGCONT)
        elif fault == "the metadata service is killed":
            cluster.kill("mds")
            cluster.up()
        lines = [line for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0] * 4
    for name, calls in histories(lines).items():
        assert len(calls) > 20, "too little to say anything"
        assert sum(call.is_write for call in calls) > 3
        history = sorted(calls, key=lambda call: call.called_at)
        assert is_linearizable(calls, FIRST), f"{name} is no register: {history}"
        last = _last(Path(cluster.point / name), PLACES[name])
        assert last == _last(other / name, PLACES[name])
    cluster.umount("other")


def _last(path: Path, place: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), 8, place)


def test_the_checker_finds_a_read_of_what_was_written_over():
    """It says something: a read that began after a write returned and saw the one before."""
    calls = [RegisterCall(1, 2, True, "a"), RegisterCall(3, 4, True, "b"), RegisterCall(5, 6, False, "a")]
    assert not is_linearizable(calls, FIRST)
    assert is_linearizable([calls[0], RegisterCall(3, 7, True, "b"), calls[2]], FIRST)
