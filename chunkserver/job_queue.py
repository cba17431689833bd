"""Small blocking jobs, many to one visit of a worker thread.

A visit costs more than storing a small chunk does: two switches of threads and a quarrel over the interpreter lock. So
whatever has queued up while the last visit lasted is done in the next one. Alone, a job waits for nothing.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Never, TypeVar

import outcome
import trio

_T = TypeVar("_T")
_JOBS_PER_VISIT: Final = 64  # those who asked first need not wait for many that came later


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = trio.Event()
        self.result: outcome.Outcome[Any] | None = None  # set before ``done``


class JobQueue:
    """Bounded by its users: each waits for its own job."""

    def __init__(self) -> None:
        self._jobs: dict[_Job, None] = {}  # not begun, the first first
        self._visit: list[_Job] = []  # of the thread
        self._refusal: Exception | None = None
        self._work_came = trio.Event()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do ``work`` in the thread; returns or raises what it does. Cancelled: it may still be done."""
        if self._refusal is not None:
            raise self._refusal
        job = _Job(work)
        self._jobs[job] = None
        self._work_came.set()
        try:
            await job.done.wait()
        finally:
            self._jobs.pop(job, None)  # who is cancelled leaves nothing behind: a disk that hangs would collect it
        assert job.result is not None
        value: _T = job.result.unwrap()
        return value

    def refuse(self, error: Exception) -> None:
        """Whoever waits for a job that was not begun, and whoever comes, gets this error."""
        self._refusal = error
        self._fail(list(self._jobs), error)
        self._jobs.clear()

    def abandon(self, error: Exception) -> None:
        """As :meth:`refuse`, and so does who waits for one that was begun: it will not be done in time, if at all."""
        self.refuse(error)
        visit, self._visit = self._visit, []
        self._fail(visit, error)

    def _fail(self, jobs: Iterable[_Job], error: Exception) -> None:
        for job in jobs:
            job.result = outcome.Error(error)
            job.done.set()

    async def serve(self, run: Callable[[Callable[[], list[outcome.Outcome[Any]]]], Awaitable[Any]]) -> Never:
        """Do the jobs until cancelled. ``run`` runs a visit in a thread."""
        while True:
            await self._work_came.wait()
            visit = self._visit = [job for job, _ in zip(self._jobs, range(_JOBS_PER_VISIT), strict=False)]
            for job in visit:
                del self._jobs[job]
            if not self._jobs:
                self._work_came = trio.Event()
            results = await run(partial(_do_all, visit)) if visit else []
            if self._visit is visit:
                for job, result in zip(visit, results, strict=True):
                    job.result = result
                    job.done.set()
                self._visit = []


def _do_all(jobs: list[_Job]) -> list[outcome.Outcome[Any]]:
    return [outcome.capture(job.work) for job in jobs]
