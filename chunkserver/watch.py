"""Which calls of a target's disk are under way, and since when: how a disk that hangs is told from one that is slow.

A disk dies in three ways: its calls fail, its bytes rot, or its calls do not return: a controller that tries again for
minutes, a network that is cut, a process in state D. Only the calls themselves say anything about the last, so each is
timed by itself: a queue may be long and a batch may take its time while each call returns.

The one rule: whoever waits for a thread that may be in such a call can stop waiting; the thread cannot be ended, and is
left behind.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, TypeVar

import outcome
import trio

from shoalfs.chunkserver.disk import Disk, Space
from shoalfs.transport.errors import TargetDown
from shoalfs.transport.frame import Buffer

_T = TypeVar("_T")
_LOOKS_PER_LIMIT: Final = 16


class Call:
    """Notes a call for as long as the block lasts. What lies around it is taken for one that begins anew when it ends:
    that it ended is progress."""

    __slots__ = ("_name", "_outer", "_thread", "_watch")

    def __init__(self, watch: "Watch", name: str) -> None:
        self._watch = watch
        self._name = name

    def __enter__(self) -> None:
        watch, thread = self._watch, threading.get_ident()
        self._thread = thread
        self._outer = watch.under_way.get(thread)
        watch.under_way[thread] = (self._name, watch.clock_s())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        watch = self._watch
        if self._outer is None:
            del watch.under_way[self._thread]
        else:
            watch.under_way[self._thread] = (self._outer[0], watch.clock_s())


class Watch:
    """Of one target. A call that lasts for longer than ``limit_ms`` will not return, as far as others are concerned.
    ``under_way``: what each thread is at, and since when; an entry is changed by its own thread only."""

    def __init__(self, limit_ms: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.limit_s: Final = limit_ms / 1000
        self.clock_s: Final = clock_s
        self.under_way: dict[int, tuple[str, float]] = {}

    @property
    def look_s(self) -> float:
        """How often to look."""
        return self.limit_s / _LOOKS_PER_LIMIT

    def call(self, name: str) -> Call:
        """A block that is a call to the disk, or may become one: a page of a mapped file that has to be read."""
        return Call(self, name)

    @property
    def longest_s(self) -> float:
        """How long the oldest call has lasted by now; 0 if there is none."""
        now_s = self.clock_s()
        return now_s - min([began_s for _, began_s in list(self.under_way.values())], default=now_s)

    @property
    def late(self) -> str:
        """In one line which call lasts for too long; empty if none does."""
        now_s = self.clock_s()
        name, began_s = min(list(self.under_way.values()), key=lambda call: call[1], default=("", now_s))
        if now_s - began_s <= self.limit_s:
            return ""
        return f"its disk does not answer: {name} has not returned for {now_s - began_s:.0f} s"


async def in_time(watch: Watch, what: str, work: Callable[[], _T]) -> _T:
    """``work()`` in a thread, for as long as none of its calls to the disk hangs. Raises what it raises; TargetDown,
    saying that ``what`` hangs: then the thread is left behind. Cancelled: likewise."""
    found: outcome.Outcome[_T] | None = None
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            while not watch.late:  # noqa: ASYNC110 - threads set no events
                await trio.sleep(watch.look_s)
            nursery.cancel_scope.cancel()

        nursery.start_soon(look)
        # With a limiter of its own: threads that are left behind must not use up what others share.
        found = await trio.to_thread.run_sync(
            partial(outcome.capture, work), abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
        nursery.cancel_scope.cancel()
    if found is None:
        raise TargetDown(f"{what}: {watch.late or 'its disk does not answer'}")
    return found.unwrap()


class WatchedDisk:
    """A disk all of whose calls are noted, but for the one that does not wait."""

    def __init__(self, disk: Disk, watch: Watch) -> None:
        self._disk = disk
        self._watch = watch

    def boot_id(self) -> str:
        return self._disk.boot_id()

    def make_dirs(self, path: str) -> None:
        with self._watch.call("mkdir"):
            self._disk.make_dirs(path)

    def list_dir(self, path: str) -> list[str]:
        with self._watch.call("readdir"):
            return self._disk.list_dir(path)

    def open(self, path: str, *, create: bool = False) -> int:
        with self._watch.call("open"):
            return self._disk.open(path, create=create)

    def close(self, fd: int) -> None:
        with self._watch.call("close"):
            self._disk.close(fd)

    def lock(self, fd: int) -> bool:
        with self._watch.call("flock"):
            return self._disk.lock(fd)

    def size(self, fd: int) -> int:
        with self._watch.call("fstat"):
            return self._disk.size(fd)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        with self._watch.call("write"):
            self._disk.pwritev(fd, buffers, offset)

    def open_direct(self, path: str) -> int | None:
        with self._watch.call("open"):
            return self._disk.open_direct(path)

    def pwritev_direct(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._watch.call("write"):
            return self._disk.pwritev_direct(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._watch.call("read"):
            return self._disk.preadv(fd, buffers, offset)

    def preadv_nowait(self, fd: int, buffers: Sequence[Buffer], offset: int) -> bool:
        return self._disk.preadv_nowait(fd, buffers, offset)

    def truncate(self, fd: int, size: int) -> None:
        with self._watch.call("truncate"):
            self._disk.truncate(fd, size)

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        with self._watch.call("fallocate"):
            self._disk.punch_hole(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        with self._watch.call("fdatasync"):
            self._disk.fdatasync(fd)

    def drop_cache(self, fd: int) -> None:
        with self._watch.call("fadvise"):
            self._disk.drop_cache(fd)

    def sync_dir(self, path: str) -> None:
        with self._watch.call("fsync"):
            self._disk.sync_dir(path)

    def rename(self, old: str, new: str) -> None:
        with self._watch.call("rename"):
            self._disk.rename(old, new)

    def unlink(self, path: str) -> None:
        with self._watch.call("unlink"):
            self._disk.unlink(path)

    def space(self, path: str) -> Space:
        with self._watch.call("statfs"):
            return self._disk.space(path)
