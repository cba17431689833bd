"""Which directories this mount writes to alone: it asks for their write leases, and gives them back.

A directory in which this mount makes one file after the other is asked for: from then on its new files are made here
(`fs/new_files.py`). It is given back when nothing was made in it for a while, when its names are no longer all known,
and when somebody else wants to look into it (then the leader calls it back, and it is gone when that is noticed).
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.fs.releases import Releases
from shoalfs.mds import messages as m
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import DIRECTORIES_WRITTEN_MAX, NEW_FILE_MS

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("shoal.fs.own_directories")

_MADE: Final = 8  # so many files made within _WITHIN_S, and the lease is asked for
_WITHIN_S: Final = 1.0
_AGAIN_S: Final = 1.0  # not asked for sooner after it was refused, or was too large
_IDLE_S: Final = 2.0
_LOOK_S: Final = 0.25
_LISTED_MAX: Final = 20_000  # entries: a directory with more is asked for only if it is known already


@dataclass(slots=True)
class _Candidate:
    made: int
    since: float
    not_before: float = 0.0


class OwnDirectories:
    """:meth:`run` must be running. Bounded: DIRECTORIES_WRITTEN_MAX leases, as many candidates."""

    def __init__(self, metadata: Coherent, releases: Releases) -> None:
        # Told of each directory that this mount fills alone, again and again as long as it does.
        self.on_own: Callable[[InodeId], None] = lambda directory: None
        self._metadata = metadata
        self._releases = releases
        self._candidates: OrderedDict[InodeId, _Candidate] = OrderedDict()
        # Since when nothing was made in each, the longest ago first.
        self._own: OrderedDict[InodeId, float] = OrderedDict()
        self._wanted: dict[InodeId, None] = {}
        self._work = trio.Event()

    def made(self, directory: InodeId) -> None:
        """A file was made in the directory."""
        now = trio.current_time()
        if directory in self._own:
            self._own[directory] = now
            self._own.move_to_end(directory)
            return  # as long as there are any, they are looked at
        candidate = self._candidates.get(directory)
        if candidate is None or now - candidate.since > _WITHIN_S:
            not_before = 0.0 if candidate is None else candidate.not_before
            candidate = self._candidates[directory] = _Candidate(0, now, not_before)
            self._candidates.move_to_end(directory)
            if len(self._candidates) > DIRECTORIES_WRITTEN_MAX:
                self._candidates.popitem(last=False)
        candidate.made += 1
        if candidate.made >= _MADE and now >= candidate.not_before:
            candidate.made = 0
            self._wanted[directory] = None
            self._work.set()

    async def run(self) -> None:
        """Ask, tell what is old, give back, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._wanted:
                directory = next(iter(self._wanted))
                del self._wanted[directory]
                await self._ask(directory)
            await self._tell_old()
            for directory, used in list(self._own.items()):
                await self._look_at(directory, used)
            if self._own or len(self._metadata.new_files):
                with trio.move_on_after(_LOOK_S):
                    await self._work.wait()  # somebody wants another directory
                self._work.set()

    async def _ask(self, directory: InodeId) -> None:
        metadata = self._metadata
        if directory in self._own:
            return
        try:
            if not metadata.cache.is_complete(directory) and await self._entries(directory) > _LISTED_MAX:
                self._not_soon(directory)
                return
            await metadata.making.prepare()
            await self._releases.settle(directory)
            await metadata.ask_to_keep_writes(directory)
            if not metadata.keeps_writes(directory):
                self._not_soon(directory)
                self._releases.add(directory)  # whoever asks has it open at the leader
                return
            self._own[directory] = trio.current_time()
            metadata.cache.filled.add(directory)
            if len(self._own) > DIRECTORIES_WRITTEN_MAX:
                await self._give_back(next(iter(self._own)))
            if not metadata.cache.is_complete(directory):
                async for _ in metadata.list_all(m.ROOT_CREDENTIALS, directory, _LISTED_MAX):
                    pass
            self.on_own(directory)
        except ShoalError as error:
            log.debug("directory %d is not leased for writing: %s", directory, error)

    async def _entries(self, directory: InodeId) -> int:
        """How many there are in the directory. Raises ShoalError."""
        return (await self._metadata.getattr(directory)).size_bytes

    def _not_soon(self, directory: InodeId) -> None:
        candidate = self._candidates.get(directory)
        if candidate is not None:
            candidate.not_before = trio.current_time() + _AGAIN_S

    async def _tell_old(self) -> None:
        try:
            await self._metadata.making.tell_older(NEW_FILE_MS)
        except ShoalError as error:
            log.warning("new files could not be told of: %s", error)

    async def _look_at(self, directory: InodeId, used: float) -> None:
        metadata = self._metadata
        if not metadata.keeps_writes(directory):
            if not metadata.new_files.has_in(directory):
                self._forget(directory)  # it was called back
        elif trio.current_time() - used > _IDLE_S or not metadata.cache.is_complete(directory):
            await self._give_back(directory)
        else:
            self.on_own(directory)

    async def _give_back(self, directory: InodeId) -> None:
        """From here on nothing is made in it without asking. What was made is told first, and if that fails, once
        more with the next look."""
        self._metadata.cache.drop_write(directory)
        try:
            await self._metadata.new_files.tell_all_in(directory)
        except ShoalError as error:
            log.warning("files made in directory %d could not be told of: %s", directory, error)
            return
        self._metadata.cache.drop_write(directory)  # a new leader may have been told of it meanwhile
        self._forget(directory)

    def _forget(self, directory: InodeId) -> None:
        self._own.pop(directory, None)
        self._metadata.cache.filled.discard(directory)
        self._releases.add(directory)
