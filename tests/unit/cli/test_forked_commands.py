"""The commands that tests run by harness/commands.py are the commands that users run."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.cluster import shoal


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--version"],
        ["status", "--help"],
        ["status", "--state", "absent"],
        ["mount", "--nonsense"],
        ["mount", "tcp:127.0.0.1:1", "absent"],
        ["mds", "run", "--config", "absent.toml"],
    ],
    ids=" ".join,
)
def test_the_same_answer_as_from_an_interpreter_of_its_own(arguments):
    alone = subprocess.run(
        [sys.executable, "-m", "shoalfs", *arguments], cwd="/", capture_output=True, text=True, check=False
    )
    forked = shoal(*arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_it_has_the_environment_of_who_asks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    narrow = shoal("--help").stdout
    monkeypatch.setenv("COLUMNS", "100")
    assert len(narrow.splitlines()) > len(shoal("--help").stdout.splitlines())


def test_several_at_once_are_not_mixed_up():
    words = [f"word-{number}" for number in range(6)]
    with ThreadPoolExecutor(len(words)) as threads:
        told = list(threads.map(shoal, words))
    assert all(word in done.stderr for word, done in zip(words, told, strict=True))


def test_one_that_does_not_end_is_killed(tmp_path):
    fifo = tmp_path / "config"
    os.mkfifo(fifo)  # whoever reads it waits for a writer
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        shoal("mds", "run", "--config", fifo, timeout_s=0.5)
    assert time.monotonic() - began < 20
    with pytest.raises(OSError, match="No such device"):  # nobody has it open any more
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
