"""Processes that one command starts and a later one finds and ends again.

A number alone does not name a process: numbers are used again. A process is named by its number together with
the time it started (proc(5), field 22) and the boot it started in. The one rule: a signal goes through a
pidfd that was compared with that name after it was opened, so that it never reaches a stranger.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from shoalfs.transport.daemon import READY, READY_FD
from shoalfs.transport.errors import ShoalError

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_LINE_BYTES_MAX: Final = 8192  # of what a starting process may say
_KILL_PATIENCE_S: Final = 10.0


class Identity(msgspec.Struct, frozen=True):
    """One process, for ever."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_stat(text: str) -> tuple[str, int]:
    """State letter and start time from /proc/PID/stat. The command's name may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def identity(pid: int) -> Identity | None:
    """The process that has this number now, running or ended and not reaped yet; None if there is none."""
    seen = _look(pid)
    return seen[1] if seen else None


def is_running(process: Identity) -> bool:
    seen = _look(process.pid)
    return seen is not None and seen[1] == process and seen[0] not in "ZX"


def _look(pid: int) -> tuple[str, Identity] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, start_ticks = parse_stat(file.read())
        with open(_BOOT_ID, encoding="ascii") as file:
            return state, Identity(pid, start_ticks, file.read().strip())
    except (FileNotFoundError, ProcessLookupError):
        return None


def stop(process: Identity, patience_s: float) -> bool:
    """End ``process`` with SIGTERM, after ``patience_s`` with SIGKILL. False if it was gone already.

    Returns when it has ended. Raises ShoalError if not even SIGKILL ends it (it hangs in the kernel).
    """
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_running(process):
            return False
        for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, _KILL_PATIENCE_S)):
            signal.pidfd_send_signal(fd, number)
            if _readable(fd, seconds):
                return True
    except ProcessLookupError:
        return True  # it ended between the look and the signal
    finally:
        os.close(fd)
    raise ShoalError(f"process {process.pid}: does not end: it waits in the kernel: cat /proc/{process.pid}/stack")


def wait_end(process: Identity, timeout_s: float) -> bool:
    """Whether ``process`` has ended within ``timeout_s``."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return not is_running(process) or _readable(fd, timeout_s)
    finally:
        os.close(fd)


class Starting:
    """A shoal process that was started in the background and has not said yet that it serves."""

    def __init__(self, what: str, arguments: Sequence[str], log_path: str) -> None:
        """Start ``shoal`` with ``arguments`` in a session of its own, its output appended to ``log_path``."""
        self._what = what
        self._log_path = log_path
        self._pipe, writing = os.pipe()
        try:
            with open(log_path, "ab") as log_file:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "shoalfs", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    cwd="/",  # a server holds no directory busy
                    env={**os.environ, READY_FD: str(writing)},
                    pass_fds=(writing,),
                    start_new_session=True,
                )
        finally:
            os.close(writing)
        itself = identity(self.process.pid)
        assert itself is not None, "our own child is there until we reap it"
        self.identity = itself

    def wait_ready(self, timeout_s: float) -> None:
        """Return when it serves. Raises ShoalError with what it said, or that it said nothing, otherwise; then it has
        ended, and whoever starts it again does not find it running."""
        try:
            said = self._listen(timeout_s)
        finally:
            os.close(self._pipe)
        if said == READY:
            return
        if said is None:
            stop(self.identity, _KILL_PATIENCE_S)
            raise ShoalError(f"{self._what}: not ready after {timeout_s:g} s: ended it: read {self._log_path}")
        line = said.decode(errors="replace").strip().removeprefix("shoal: ")
        try:
            status = self.process.wait(_KILL_PATIENCE_S)
        except subprocess.TimeoutExpired:
            stop(self.identity, _KILL_PATIENCE_S)
            status = self.process.wait()
        if not line:
            line = f"ended with status {status} before it was ready"
        raise ShoalError(f"{self._what}: {line}: read {self._log_path}")

    def _listen(self, timeout_s: float) -> bytes | None:
        """The line it says, cut short if it ends; None if time runs out."""
        give_up = time.monotonic() + timeout_s
        said = b""
        while not said.endswith(b"\n") and len(said) < _LINE_BYTES_MAX:
            if not _readable(self._pipe, max(0.0, give_up - time.monotonic())):
                return None
            received = os.read(self._pipe, _LINE_BYTES_MAX)
            if not received:
                break
            said += received
        return said


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # unlike select(2) it takes descriptors above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
