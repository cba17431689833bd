"""Processes are named for ever, and only the one that is meant is ended."""

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from shoalfs.fs.cli import processes
from shoalfs.transport.errors import ShoalError


@pytest.fixture
def child():
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate()


def test_stat_of_a_process_with_a_nasty_name():
    text = "7 (a) b (c) S 1 7 7 0 -1 4194560 " + " ".join(str(number) for number in range(10, 40))
    state, start_ticks = processes.parse_stat(text)
    assert state == "S"
    assert start_ticks == int(text.split()[23])  # two fields more than proc(5) counts: the name's spaces


def test_a_running_process_has_one_identity(child):
    itself = processes.identity(child.pid)
    assert itself == processes.identity(child.pid)
    assert processes.is_running(itself)
    assert itself != processes.identity(os.getpid())


def test_an_ended_process_does_not_run_even_before_it_is_reaped(child):
    itself = processes.identity(child.pid)
    child.kill()
    assert processes.wait_end(itself, 10)
    assert not processes.is_running(itself)
    child.wait()
    assert processes.identity(child.pid) is None
    assert not processes.is_running(itself)
    assert processes.stop(itself, 1) is False


@pytest.mark.parametrize("field", ["start_ticks", "boot_id"])
def test_a_process_with_a_used_number_is_left_alone(child, field):
    itself = processes.identity(child.pid)
    stranger = msgspec.structs.replace(itself, **{field: 1 if field == "start_ticks" else "another boot"})
    assert processes.stop(stranger, 1) is False
    assert processes.wait_end(stranger, 0)
    assert child.poll() is None


def test_stop_asks_first(child):
    assert processes.stop(processes.identity(child.pid), 10) is True
    assert child.wait() == -signal.SIGTERM


def test_stop_insists():
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert processes.stop(processes.identity(child.pid), 0.1) is True
        assert child.wait() == -signal.SIGKILL


def test_a_process_that_says_why_it_does_not_start(tmp_path):
    log = str(tmp_path / "log")
    starting = processes.Starting("mds-1", ["mds", "run", "--config", "/no/such/file"], log)
    with pytest.raises(ShoalError) as caught:
        starting.wait_ready(30)
    assert not processes.is_running(starting.identity), "who starts it again must not find it"
    starting.process.wait()
    assert str(caught.value) == (
        f"mds-1: configuration: /no/such/file: no such file: create it, or leave --config out: read {log}"
    )
    assert "no such file" in (tmp_path / "log").read_text()


def test_a_process_that_ends_without_a_word(tmp_path):
    log = str(tmp_path / "log")
    starting = processes.Starting("mds-1", ["--version"], log)
    with pytest.raises(ShoalError, match=rf"mds-1: ended with status 0 before it was ready: read {log}"):
        starting.wait_ready(30)
