"""A cluster on this machine for a test: made, broken and repaired through the command line, as its users would.

Everything of it is under one temporary directory. The one rule: :meth:`Cluster.close` leaves no process and no mount
behind, whatever happened before; nothing is ever ended that this cluster's own records do not name.
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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.commands import run_command
from shoalfs.fs import mountinfo
from shoalfs.fs.cli import fsck, mountpoint, processes
from shoalfs.fs.cli.cluster import call, locate
from shoalfs.fs.cli.state import RunRecord, StateDir
from shoalfs.transport.limits import GARBAGE_GRACE_MS_DEFAULT

COMMAND_S = 90.0  # longer than any command is allowed to wait for a process to become ready
_LOG_LINES = 40
_LOG_LINE_CHARS = 500

running: "set[Cluster]" = set()
"""Clusters that are not closed: whose logs belong to a failed test."""


def require_fuse() -> None:
    """Skip where the machine has no FUSE. In CI that fails: a run that mounted nothing proves nothing."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
        missing = None if shutil.which("fusermount3") or os.geteuid() == 0 else "fusermount3 is not installed"
    except OSError as error:
        missing = f"/dev/fuse: {error.strerror}"
    if missing is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NO MOUNT IS TESTED HERE: {missing}")


def shoal(*arguments: object, netns: str = "", timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Run one command, in the network ``netns`` if one is named; returns its exit code and what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return run_command(arguments, env=env, netns=netns, timeout_s=timeout_s)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Return when ``condition`` holds; fail with ``what`` was expected if it does not in time."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not after {timeout_s:g} s: {what}"
        time.sleep(0.02)


class Cluster:
    """One metadata node, two chunkservers and a mount, unless ``options`` of `shoal up` say otherwise."""

    def __init__(self, *options: str) -> None:
        # Short, because the paths of Unix sockets are limited; open for others to pass, because tests change user.
        self.root = Path(tempfile.mkdtemp(prefix="shoal-"))
        self.root.chmod(0o711)
        self.state = self.root / "state"
        self.point = self.root / "mnt"
        self._options = options
        self._mounts: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: set[processes.Identity] = set()
        running.add(self)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- commands ----------------------------------------------------------------------------------------------------

    def run(self, *arguments: object) -> str:
        """A command that has to succeed; returns its stdout."""
        done = shoal(*arguments)
        assert done.returncode == 0, f"shoal {' '.join(map(str, arguments))}: {done.returncode}: {done.stderr}"
        return done.stdout

    def up(self) -> None:
        """Start whatever does not run, the mount included; returns when it answers."""
        self.run("up", self.point, "--state", self.state, "--mkdir", "-d", *self._options)

    def mount(self, name: str, options: str = "") -> Path:
        """One more mount of the same cluster, at a directory of this name. Its process is a child of ours."""
        point = self.root / name
        point.mkdir(exist_ok=True)
        with open(self.state / "log" / f"{name}.log", "ab") as log:
            self._mounts[name] = subprocess.Popen(
                [sys.executable, "-m", "shoalfs", "mount", point, "--state", self.state, "-o", options],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        mountpoint.wait_answers(str(point), COMMAND_S)
        return point

    def umount(self, name: str) -> None:
        """Take such a mount off in order; returns when its process has ended."""
        self.run("umount", self.root / name)
        assert self._mounts.pop(name).wait(COMMAND_S) == 0

    def terminate(self, name: str) -> int:
        """SIGTERM to such a mount; returns what its process ended with."""
        process = self._mounts.pop(name)
        process.terminate()
        try:
            return process.wait(COMMAND_S)
        finally:
            process.kill()
            process.wait()

    def hide(self, name: str) -> subprocess.Popen[bytes]:
        """Take such a mount out of sight; returns its process, which ends when nobody uses it any more."""
        self.run("umount", "-l", self.root / name)
        return self._mounts.pop(name)

    def down(self) -> None:
        """Stop in order. Nothing may be left running, and nothing mounted."""
        known = self.records()
        self.run("down", "--state", self.state)
        left = [record.name for record in known if processes.is_running(record.process)]
        assert not left, f"still running after shoal down: {left}"
        assert not self._mounted(), f"still mounted after shoal down: {self._mounted()}"

    def findings(self) -> list[dict[str, Any]]:
        """What `shoal fsck` finds. Without its process: starting an interpreter hundreds of times takes minutes."""
        check = partial(fsck.check, deep=False, grace_ms=GARBAGE_GRACE_MS_DEFAULT)
        findings: list[dict[str, Any]] = call(locate(None, None, str(self.state)), check).as_json()["findings"]
        return findings

    def counters(self) -> dict[str, int]:
        """What the leader has counted."""
        return dict(self.status()["counters"])

    def status(self) -> dict[str, Any]:
        """What `shoal status` says, also if something is down or missing at the moment, which is code 1."""
        done = shoal("status", "--state", self.state, "-o", "json")
        assert done.returncode in (0, 1), f"shoal status: {done.returncode}: {done.stderr}"
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def fsck(self) -> None:
        """Every invariant holds and every byte that is promised is there; otherwise the report is the failure."""
        findings = self.findings()
        assert not findings, json.dumps(findings, indent=2)

    # --- processes ---------------------------------------------------------------------------------------------------

    def records(self) -> list[RunRecord]:
        found = StateDir(str(self.state)).records()
        self._seen.update(record.process for record in found)
        return found

    def dead(self) -> list[str]:
        """The processes that were started and have ended without being asked to."""
        ended = [record.name for record in self.records() if not processes.is_running(record.process)]
        return ended + [name for name, process in self._mounts.items() if process.poll() is not None]

    def kill(self, *kinds: str) -> None:
        """SIGKILL every process of these kinds, or of this name, at once, as far as signals can."""
        chosen = [record for record in self.records() if record.kind in kinds or record.name in kinds]
        assert chosen, f"no process {kinds} among {self.records()}"
        for record in chosen:
            assert processes.is_running(record.process), f"{record.name} had ended already"
            os.kill(record.process.pid, signal.SIGKILL)
        for record in chosen:
            assert processes.wait_end(record.process, 10.0), f"{record.name} survived SIGKILL"

    @contextmanager
    def unhung(self, seconds: float) -> Iterator[None]:
        """End the mounts if the block lasts longer. A call into a mount that hangs cannot be interrupted otherwise."""
        pids = [str(record.process.pid) for record in self.records() if record.kind == "mount"]
        pids += [str(process.pid) for process in self._mounts.values()]
        if not pids:
            yield
            return
        script = f"sleep {seconds} && kill -KILL {' '.join(pids)}"
        watchdog = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
        try:
            yield
        finally:
            os.killpg(watchdog.pid, signal.SIGKILL)
            watchdog.wait()

    # --- the end -----------------------------------------------------------------------------------------------------

    def logs(self) -> str:
        """The last lines of every log."""
        parts = []
        for path in sorted((self.state / "log").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            parts += [f"== {path.name}", *(line[:_LOG_LINE_CHARS] for line in lines)]
        return "\n".join(parts)

    def close(self) -> None:
        """Take everything off the machine: processes, mounts, files. Mounts go first, so that no umount can hang."""
        for child in self._mounts.values():
            child.kill()
            child.wait()
        self.records()
        for process in self._seen:
            if processes.is_running(process):
                os.kill(process.pid, signal.SIGKILL)
                processes.wait_end(process, 10.0)
        for point in self._mounted():
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
            if subprocess.run(["umount", point], **quiet).returncode != 0:
                subprocess.run(["umount", "-l", point], **quiet)
        assert not self._mounted(), f"cannot unmount {self._mounted()}"
        shutil.rmtree(self.root)
        running.discard(self)

    def _mounted(self) -> list[str]:
        """What is mounted under our directory, the last made first."""
        inside = f"{self.root}/"
        return [mount.point for mount in reversed(mountinfo.mounts()) if mount.point.startswith(inside)]


def attach_logs(report: pytest.TestReport) -> None:
    """Put the daemons' last words beside a failure."""
    if report.failed:
        report.sections += [(f"cluster {cluster.root.name}", cluster.logs()) for cluster in running]
