"""`shoal` commands without starting an interpreter for each of them, which takes longer than most commands do.

A process that has imported the whole program, and nothing else, forks one for each command: it has the arguments, the
environment, the working directory and the output of a command that was started, and a process id and a session of
signals like it. What a command starts in its turn (`shoal up -d`) is started as ever.

The process ends when the one that asks it ends: its socket is closed then.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence

import typer.main

REQUEST_BYTES_MAX = 128 * 1024
_CLONE_NEWNET = 0x40000000  # sched.h


class Commands:
    """The process that forks, seen from the one that asks. Calls of several threads may overlap."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for who asks
            )

    def run(
        self, arguments: Sequence[str], *, env: dict[str, str], netns: str = "", timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `shoal` with ``arguments`` in ``/``, in the network ``netns`` if one is named; returns its exit code and
        what it printed. Raises TimeoutExpired, after it was killed, if it has not ended in time."""
        mask = os.umask(0)
        os.umask(mask)
        request = {"arguments": list(arguments), "env": env, "netns": netns, "umask": mask}
        pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and what became of it
        try:
            theirs = array.array("i", [writing for _, writing in pipes])
            self._socket.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs)])
        finally:
            for _, writing in pipes:
                os.close(writing)
        out, err, told = _read_all([reading for reading, _ in pipes], timeout_s, arguments)
        return subprocess.CompletedProcess(list(arguments), int(told), out.decode(), err.decode())


def _read_all(descriptors: list[int], timeout_s: float, arguments: Sequence[str]) -> list[bytes]:
    """Everything up to the end of each of these, which are closed. The last one begins with a line of its own, the
    process id of the command."""
    parts: dict[int, bytes] = dict.fromkeys(descriptors, b"")
    give_up = time.monotonic() + timeout_s
    try:
        pid = b""
        while not pid.endswith(b"\n"):
            received = os.read(descriptors[-1], 1)
            assert received, "the command was not started"
            pid += received
        with selectors.DefaultSelector() as selector:
            for descriptor in descriptors:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(give_up - time.monotonic())
                if not ready and time.monotonic() >= give_up:
                    os.kill(int(pid), signal.SIGKILL)
                    while os.read(descriptors[-1], 100):
                        pass  # until it has ended
                    raise subprocess.TimeoutExpired(list(arguments), timeout_s, *list(parts.values())[:2])
                for key, _ in ready:
                    received = os.read(key.fd, 1 << 16)
                    parts[key.fd] += received
                    if not received:
                        selector.unregister(key.fd)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return list(parts.values())


_commands: Commands | None = None
_making = threading.Lock()


def run_command(
    arguments: Sequence[object], *, env: dict[str, str], netns: str = "", timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """:meth:`Commands.run`, by a process of our own: a fork of us, which may be another user, has another one."""
    global _commands
    with _making:
        if _commands is None or _commands.pid != os.getpid():
            _commands = Commands()
    return _commands.run([*map(str, arguments)], env=env, netns=netns, timeout_s=timeout_s)


# --- the process that forks ------------------------------------------------------------------------------------------
def serve(asked: socket.socket) -> None:
    """Fork for each request until nobody asks any more."""
    while True:
        message, ancillary, _, _ = asked.recvmsg(REQUEST_BYTES_MAX, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # who watched over a command has ended
        if not message:
            return
        (_, _, data) = ancillary[0]
        out, err, told = descriptors = array.array("i", data)
        if os.fork() == 0:
            asked.close()
            _watch(json.loads(message), out, err, told)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(request: dict, out: int, err: int, told: int) -> None:
    """Tell the process id of the command and how it ended."""
    try:
        pid = os.fork()
        if pid == 0:
            os.close(told)
            _become(request, out, err)
        os.close(out)
        os.close(err)
        os.write(told, b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(told, b"%d" % code)
    finally:
        os._exit(0)


def _become(request: dict, out: int, err: int) -> None:
    """Be the command, and end."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["env"])
        if request["netns"]:
            _enter(request["netns"])
        from shoalfs.__main__ import main

        code = main(request["arguments"])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _enter(netns: str) -> None:
    fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {netns}")
    os.close(fd)


def _import_everything() -> None:
    """Also what commands import when they need it, and what the parser of the command line makes when it is used."""
    import shoalfs.fs.cli
    import shoalfs.mds.leader
    import shoalfs.transport.network
    from shoalfs.__main__ import app

    for module in pkgutil.iter_modules(shoalfs.fs.cli.__path__, "shoalfs.fs.cli."):
        importlib.import_module(module.name)
    typer.main.get_command(app).make_context("shoal", ["status"])
    gc.freeze()  # or the first collection of each fork would copy every page


if __name__ == "__main__":
    _import_everything()
    serve(socket.socket(fileno=int(sys.argv[1])))
