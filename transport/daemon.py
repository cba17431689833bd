"""The edges of a long-running process: its log, the word that it serves, and its end by a signal.

A process that starts another one (``shoal up``, ``shoal mount -d``) hands it the writing end of a pipe, whose
number is in the environment. The child says one thing there, once: that it serves, or in one line why it does
not. If it ends without a word, the pipe closes, which is an answer too.

The one rule: SIGTERM and SIGINT cancel the server's task, and what must still be done is done while it
unwinds. A second signal ends the process at once.
"""

import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # trio is loaded when a server starts: `shoal --help` does not need it
    import trio

log = logging.getLogger("shoal.transport.daemon")

_YOUNG_OBJECTS: Final = 10_000  # between two collections; those of a failed request are some hundred
READY_FD: Final = "SHOAL_READY_FD"
READY: Final = b"ready\n"


class Readiness:
    """Tells whoever started this process how the start went. Says one thing at most."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd  # None: nobody waits, or it has been said

    @classmethod
    def from_environment(cls) -> "Readiness":
        """Take the pipe that was handed over; our own children do not see it."""
        text = os.environ.pop(READY_FD, "")
        if not text.isdecimal():
            return cls()
        os.set_inheritable(int(text), False)
        return cls(int(text))

    def ready(self) -> None:
        self._say(READY)

    def failed(self, line: str) -> None:
        self._say(line.replace("\n", " ").encode() + b"\n")

    def _say(self, message: bytes) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, message)
        except BrokenPipeError:
            log.info("whoever started this process did not wait for it")
        finally:
            os.close(fd)


def set_up_logging(level: str) -> None:
    """Log to stderr, which is a file when the process was started in the background. SIGUSR1 adds the stacks of all
    threads, and of all tasks of the event loop."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    faulthandler.enable()
    signal.signal(signal.SIGUSR1, _write_tasks)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def _write_tasks(_number: int, _frame: object) -> None:
    """Where each task waits, the innermost call last. Called between two steps of the program, so it sees a state that
    there really was."""
    import trio

    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:  # no event loop runs (any more)
        return
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        print(f"Task {task.name}:", file=sys.stderr)
        for frame, line in task.iter_await_frames():
            code = frame.f_code
            print(f'  File "{code.co_filename}", line {line} in {code.co_qualname}', file=sys.stderr)
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    sys.stderr.flush()


def run(serve: Callable[..., Awaitable[Any]], readiness: Readiness) -> None:
    """Run ``serve(task_status=...)`` until it returns or a signal asks for the end.

    ``readiness`` hears of it when ``serve`` has started. Raises what ``serve`` raises.
    """
    import trio

    _collect_seldom()
    trio.run(_supervise, serve, readiness)


def _collect_seldom() -> None:
    """Look for cycles of garbage less often than a program that ends soon: what a server remembers is much, lives long
    and has no cycles, and the collector goes through it again and again (docs/performance.md). What was imported is
    never looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


async def _supervise(serve: Callable[..., Awaitable[Any]], readiness: Readiness) -> None:
    import trio

    async with trio.open_nursery() as nursery:

        async def served(*, task_status: "trio.TaskStatus[Any]") -> None:
            await serve(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(_cancel_on_signal, nursery.cancel_scope)
        await nursery.start(served)
        readiness.ready()


async def _cancel_on_signal(scope: "trio.CancelScope", *, task_status: "trio.TaskStatus[None]") -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: shutting down", signal.Signals(number).name)
            scope.cancel()
            return
