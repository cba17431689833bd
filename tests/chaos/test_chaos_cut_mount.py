"""A mount whose link to the metadata leader is cut for longer than its lease, by a packet filter in a network of its
own, while another mount changes what it had cached, kept and locked. Then the link comes back.

Nothing here has a file open on the mount that is cut: whoever starts a process closes the copies of its files in it,
which asks the mount, and hangs. Programs of their own have them, started before.
"""

import errno
import fcntl
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import require_fuse, wait_until
from harness.data_cluster import DataCluster, data_cluster
from harness.hosts import require_hosts

TTL_S = 3.0
PROGRAM = """
import fcntl, json, os, sys
root, files = sys.argv[1], {}
def opened(name):
    if name not in files:
        files[name] = os.open(os.path.join(root, name), os.O_RDWR)
    return files[name]
calls = {
    "read": lambda name: os.pread(opened(name), 100, 0).decode(),
    "write": lambda name, text: os.pwrite(opened(name), text.encode(), 0),
    "text": lambda name: open(os.path.join(root, name)).read(),
    "mode": lambda name: os.stat(os.path.join(root, name)).st_mode & 0o777,
    "exists": lambda name: os.path.exists(os.path.join(root, name)),
    "lock": lambda name: fcntl.flock(opened(name), fcntl.LOCK_EX | fcntl.LOCK_NB),
    "fsync": lambda name: os.fsync(opened(name)),
    "close": lambda name: os.close(files.pop(name)),
}
for line in sys.stdin:
    call, *arguments = json.loads(line)
    try:
        answer = calls[call](*arguments)
    except OSError as error:
        answer = {"errno": error.errno}
    print(json.dumps(answer), flush=True)
"""


class Program:
    """On the mount at ``root``; one call at a time."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def begin(self, *call: Any) -> None:
        self._to.write(json.dumps(call).encode() + b"\n")

    def answer(self, timeout_s: float) -> list[Any]:
        """The answer, in a list; nothing if it hangs until then."""
        ready, _, _ = select.select([self._from], [], [], timeout_s)
        return [json.loads(self._from.readline())] if ready else []

    def call(self, *call: Any) -> Any:
        self.begin(*call)
        (answer,) = self.answer(60.0)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def cluster() -> Iterator[DataCluster]:
    require_fuse()
    require_hosts()
    with data_cluster(2, 64, mds={"session_ttl_ms": int(TTL_S * 1000)}) as cluster:
        yield cluster


@pytest.mark.long
def test_a_mount_that_is_cut_off_past_its_lease_serves_nothing_old_and_comes_back_clean(cluster: DataCluster):
    here, host = cluster.point, cluster.hosts.hosts[1]
    there = cluster.mount_on(host)
    (here / "f").write_text("first")
    (here / "kept").write_text("committed")
    (here / "locked").touch()
    writer, *askers = programs = [Program(there) for _ in range(4)]
    try:
        assert writer.call("text", "f") == "first"
        assert writer.call("mode", "f") == 0o644
        assert not writer.call("exists", "absent")
        assert writer.call("lock", "locked") is None
        assert writer.call("write", "kept", "stale") == 5
        host.cut(cluster.hosts.client)
        _change(here)
        # What it had cached and kept is others' by now: it hangs, or fails, or tells what is.
        questions: list[tuple[tuple[str, str], Any]] = [
            (("text", "f"), "second"),
            (("mode", "f"), 0o600),
            (("exists", "absent"), True),
        ]
        for asker, (question, _) in zip(askers, questions, strict=True):
            asker.begin(*question)
        for asker, (_, true) in zip(askers, questions, strict=True):
            answers = asker.answer(1.0)
            assert answers in ([], [true]) or "errno" in answers[0], answers
        host.heal()
        for asker, (question, true) in zip(askers, questions, strict=True):
            wait_until(lambda a=asker, q=question, t=true: _again(a, q) == t, f"{question} is answered", 40.0)
        assert writer.call("fsync", "kept") == {"errno": errno.EIO}, "what it had kept is lost, and it says so"
        writer.call("close", "kept")
        assert (here / "kept").read_text() == "theirs"
        assert writer.call("read", "kept") == "theirs"
        with open(here / "locked", "rb") as mine:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert writer.call("write", "kept", "works again") == 11
        assert (here / "kept").read_text() == "works again"
        assert writer.call("close", "kept") is None
    finally:
        host.heal()
        for program in programs:
            program.end()
    subprocess.run(["umount", there], check=True)
    assert cluster.others[there].wait(60.0) == 0, cluster.log(f"mount-{host.number}")
    found = json.loads(cluster.command("fsck", "-o", "json", check=False))
    assert found["clean"], found


def _change(here: Path) -> None:
    began = time.monotonic()
    (here / "f").chmod(0o600)
    waited_s = time.monotonic() - began
    assert TTL_S / 2 < waited_s < 4 * TTL_S, f"{waited_s}: it may believe in its leases for so long, and no longer"
    (here / "f").write_text("second")
    (here / "absent").touch()
    (here / "kept").write_text("theirs")
    with open(here / "locked", "rb") as mine:
        wait_until(lambda: _is_locked(mine.fileno()), "the lock is free", 2 * TTL_S)


def _is_locked(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _again(asker: Program, question: tuple[str, str]) -> Any:
    """What the call that hung was told, or what it is told now."""
    answers = asker.answer(30.0) or [None]
    asker.begin(*question)
    if not isinstance(answers[0], dict):
        assert asker.answer(30.0) == answers
    return answers[0]
