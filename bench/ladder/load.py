"""Work done by several processes at once, timed: operations, their latencies, and the processor time of the machine."""

import multiprocessing
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """``amount`` of something (files, MiB, entries) in ``seconds``. ``cpu_s``: of all processors, whoever used them.
    ``latencies_s``: of single operations, where there are any."""

    amount: float
    seconds: float
    cpu_s: float
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.amount / self.seconds

    def percentile_ms(self, share: float) -> float | None:
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


def busy_s() -> float:
    """Processor time used on this machine since it was started."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(number) for number in file.readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) * _TICK_S


class Stopwatch:
    """``with Stopwatch() as watch: ...``, then ``watch.seconds`` and ``watch.cpu_s``."""

    def __enter__(self) -> "Stopwatch":
        self._busy, self._began = busy_s(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu_s = busy_s() - self._busy


def in_processes(work: Callable[[Any], None], items: Sequence[Any], count: int) -> Measured:
    """``work(item)`` for every item, each timed, by ``count`` processes that begin together. Raises SystemExit if one
    of them fails: what is read is verified, so a figure of wrong bytes never comes out."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Barrier(count + 1), context.Barrier(count + 1)

    def child(share: Sequence[Any], pipe: Any) -> None:
        times = array("d")
        ready.wait()
        go.wait()
        for item in share:
            began = time.perf_counter()
            work(item)
            times.append(time.perf_counter() - began)
        pipe.send_bytes(times.tobytes())

    pipes, children = [], []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        children.append(context.Process(target=child, args=(items[number::count], theirs)))
        children[-1].start()
        theirs.close()
        pipes.append(ours)
    ready.wait()
    latencies = array("d")
    with Stopwatch() as watch:
        go.wait()
        for pipe in pipes:
            try:
                latencies.frombytes(pipe.recv_bytes())
            except EOFError:
                raise SystemExit("bench: a worker failed: its message is above") from None
    for process in children:
        process.join()
    return Measured(len(items), watch.seconds, watch.cpu_s, list(latencies))
