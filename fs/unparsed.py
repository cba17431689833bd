"""Parts of listings that were sent and that the kernel may not have taken in yet.

A READDIRPLUS tells the kernel names, which it keeps as long as they are leased. It takes them in when the program's
thread runs next, after the reply was written; and it takes them for told **then** (fuse_direntplus_link() of Linux,
which looks at the epoch at that moment, where a LOOKUP looks at it before it asks). So names that are called back in
between are not forgotten with the others: FUSE_NOTIFY_INC_EPOCH comes before they are there. Whoever has names
forgotten before an acknowledgement waits here, and has them forgotten again.

A part is taken in when the next request on its handle comes, since the kernel sends one at a time, or when the thread
that asked for it asks for something else: for a file that it found there, say. A program that stops in the middle does
neither, and what takes in is a thread that needs nothing but a processor: after a second it is believed to have had
one. It holds the directory's lock shared meanwhile, and waits for nobody who waits for an acknowledgement.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from shoalfs.transport.ids import InodeId

TAKEN_IN_S: Final = 1.0
_LOOK_S: Final = 0.005  # the compiled part, which hears threads ask, wakes nobody


class Threads(Protocol):
    """What the compiled part knows of threads (fs/native/askers.h)."""

    def listen_to(self, thread: int, /) -> int: ...

    def has_asked(self, thread: int, since: int, /) -> bool: ...


@dataclass(slots=True, eq=False)
class _Part:
    directory: InodeId
    sent_s: float
    thread: int  # that waits for it; 0: not known
    since: int
    taken_in: trio.Event = field(default_factory=trio.Event)


class Unparsed:
    """The last part of each open directory; bounded by these."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._parts: dict[int, _Part] = {}

    def sent(self, handle: int, directory: InodeId, thread: int) -> None:
        """A reply with names that may be kept is on its way to the thread (0: not known to which)."""
        self._parts[handle] = _Part(directory, trio.current_time(), thread, self._threads.listen_to(thread))

    def taken_in(self, handle: int) -> None:
        """The next request on the handle came, or its last."""
        part = self._parts.pop(handle, None)
        if part is not None:
            part.taken_in.set()

    async def settle(self, directories: Collection[InodeId] | None = None, within_s: float = TAKEN_IN_S) -> bool:
        """Return when what was sent of these directories (None: of any) before this call is taken in, or believed to
        be. False: nothing was on its way."""
        earliest_s = trio.current_time() - within_s
        pending = [
            part
            for part in self._parts.values()
            if part.sent_s > earliest_s and (directories is None or part.directory in directories)
        ]
        for part in pending:
            await self._wait(part, part.sent_s + within_s)
        return bool(pending)

    async def _wait(self, part: _Part, until_s: float) -> None:
        while not (part.taken_in.is_set() or self._threads.has_asked(part.thread, part.since)):
            now_s = trio.current_time()
            if now_s >= until_s:
                return
            with trio.move_on_at(min(until_s, now_s + _LOOK_S)):
                await part.taken_in.wait()
