"""Small blocking jobs, many to one visit of a worker thread.

A visit costs more than storing a small chunk does: two switches of threads and a quarrel over the interpreter lock. So
whatever has queued up while the last visit lasted is done in the next one. Alone, a job waits for nothing.
"""

from collections.abc import Callable
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
        self._jobs: list[_Job] = []
        self._refusal: Exception | None = None
        self._work_came = trio.Event()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do ``work`` in the thread; returns or raises what it does. Cancelled: it may still be done."""
        if self._refusal is not None:
            raise self._refusal
        job = _Job(work)
        self._jobs.append(job)
        self._work_came.set()
        await job.done.wait()
        assert job.result is not None
        value: _T = job.result.unwrap()
        return value

    def refuse(self, error: Exception) -> None:
        """Whoever waits for a job that was not begun, and whoever comes, gets this error."""
        self._refusal = error
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result = outcome.Error(error)
            job.done.set()

    async def serve(self) -> Never:
        """Do the jobs until cancelled."""
        while True:
            await self._work_came.wait()
            visit, self._jobs = self._jobs[:_JOBS_PER_VISIT], self._jobs[_JOBS_PER_VISIT:]
            if not self._jobs:
                self._work_came = trio.Event()
            await trio.to_thread.run_sync(_do_all, visit)
            for job in visit:
                job.done.set()


def _do_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.result = outcome.capture(job.work)
