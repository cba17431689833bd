"""How a long-running process tells that it serves, and how it ends."""

import os
import signal
import subprocess
import sys

import pytest

from shoalfs.transport.daemon import READY_FD, Readiness

SERVER = """
import sys, trio
from shoalfs.transport import daemon

async def serve(*, task_status):
    if sys.argv[1] == "fails":
        raise OSError("no room")
    task_status.started()
    try:
        await trio.sleep(0 if sys.argv[1] == "ends" else 60)
    finally:
        print("cleaned up", flush=True)

daemon.set_up_logging("info")
daemon.run(serve, daemon.Readiness.from_environment())
"""


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def start(mode, writing):
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, mode],
        env={**os.environ, READY_FD: str(writing)},
        pass_fds=(writing,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    return child


def test_one_thing_is_said(pipe):
    reading, writing = pipe
    readiness = Readiness(writing)
    readiness.failed("a line\nand more")
    readiness.ready()
    assert os.read(reading, 100) == b"a line and more\n"
    assert os.read(reading, 100) == b""


def test_nobody_listens():
    Readiness().ready()
    Readiness().failed("a line")


def test_the_pipe_is_not_handed_on(pipe, monkeypatch):
    _, writing = pipe
    os.set_inheritable(writing, True)
    monkeypatch.setenv(READY_FD, str(writing))
    readiness = Readiness.from_environment()
    assert READY_FD not in os.environ
    assert not os.get_inheritable(writing)
    readiness.ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_cleanly(pipe, number):
    reading, writing = pipe
    child = start("stays", writing)
    assert os.read(reading, 100) == b"ready\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "cleaned up\n")
    assert f"{number.name}: shutting down" in err


def test_a_server_may_end_by_itself(pipe):
    reading, writing = pipe
    child = start("ends", writing)
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "cleaned up\n")
    assert os.read(reading, 100) in (b"ready\n", b"")


def test_a_server_that_fails_is_never_called_ready(pipe):
    reading, writing = pipe
    child = start("fails", writing)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "no room" in err
    assert os.read(reading, 100) == b""


def test_its_tasks_are_told_on_demand_and_it_goes_on(pipe):
    reading, writing = pipe
    child = start("serves", writing)
    assert os.read(reading, 100) == b"ready\n"
    child.send_signal(signal.SIGUSR1)
    lines = []
    while not any("in serve" in line for line in lines):
        line = child.stderr.readline()
        assert line, lines
        lines.append(line)
    assert any(line.startswith("Task ") for line in lines)
    child.send_signal(signal.SIGTERM)
    told, rest = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "cleaned up" in told
    assert "Current thread" in rest or any("Current thread" in line for line in lines)
