"""Mistakes that can be planted into the protocol of write leases (docs/leases.md): each takes one rule out of the code
under test, and the checker of file_world.py must find it. Two of them it had found by itself: these are marked.

A switch patches until the test ends. What proves that each is found is `test_file_leases_sim.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.leases import Asking
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.vfs import Vfs
from shoalfs.mds import messages as m
from shoalfs.mds.coherence import Coherence
from shoalfs.mds.leases import LeaseTable
from shoalfs.mds.recalls import Recalls
from shoalfs.mds.sessions import SessionTable

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
MISTAKES: dict[str, tuple[Plant, tuple[str, ...]]] = {}
"""With the faults among which each is looked for."""


def mistake(*causes: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        MISTAKES[plant.__name__] = (plant, causes)
        return plant

    return note


# --- the leader ------------------------------------------------------------------------------------------------------


@mistake()
def a_write_lease_is_given_beside_readers(patch: Patch) -> None:
    real = LeaseTable.lease_write

    def lease_write(self: Any, session: Any, ino: Any) -> bool:
        readers, self._inode_holders = self._inode_holders, {}
        try:
            return real(self, session, ino)
        finally:
            self._inode_holders = readers

    patch.setattr(LeaseTable, "lease_write", lease_write)


@mistake()
def readers_may_cache_what_somebody_writes(patch: Patch) -> None:
    real = LeaseTable.lease_inode

    def lease_inode(self: Any, session: Any, ino: Any, own: Any = None) -> bool:
        writers, self._writers = self._writers, {}
        try:
            return real(self, session, ino, own)
        finally:
            self._writers = writers

    patch.setattr(LeaseTable, "lease_inode", lease_inode)


@mistake()
def a_question_does_not_wait_for_written_bytes(patch: Patch) -> None:
    patch.setattr(Coherence, "must_settle", lambda self, session, ino: False)


@mistake()
def a_second_writer_is_not_in_the_way_of_the_first(patch: Patch) -> None:
    real = LeaseTable.begin

    def begin(self: Any, session: Any, touched: Any, now_ms: int) -> Any:
        change = real(self, session, touched, now_ms)
        change.writers.clear()
        return change

    patch.setattr(LeaseTable, "begin", begin)
    patch.setattr(LeaseTable, "drop_write", lambda self, session, ino: self._writers.pop(ino, None))


@mistake("cut", "stop")
def a_writer_that_is_silent_is_not_waited_for(patch: Patch) -> None:
    real = Recalls._write_back

    async def impatient(self: Any, session: Any, ino: Any, done: Callable[[], None]) -> None:
        with trio.move_on_after(0.3) as waiting:
            await real(self, session, ino, done)
        if waiting.cancelled_caught:
            done()

    patch.setattr(Recalls, "_write_back", impatient)


@mistake("leader", "crash")
def a_new_leader_does_not_wait_for_reports(patch: Patch) -> None:
    patch.setattr(SessionTable, "in_grace", lambda self, besides: False)


@mistake("leader", "crash")
def a_new_leader_does_not_believe_who_keeps_what(patch: Patch) -> None:
    patch.setattr(Coherence, "restore_writes", lambda self, session, inodes: None)


# --- the mount -------------------------------------------------------------------------------------------------------


@mistake()
def a_lease_that_is_called_back_is_used_on(patch: Patch) -> None:
    real = Coherent.handle_write_back

    async def handle(self: Any, call: Any, request: Any, payload: Any) -> m.WrittenBack:
        kept = set(self.cache.writes)
        answer = await real(self, call, request, payload)
        self.cache.writes |= kept
        return answer

    patch.setattr(Coherent, "handle_write_back", handle)


@mistake()
def written_back_is_said_before_it_is_done(patch: Patch) -> None:
    async def handle(self: Any, call: Any, request: Any, payload: Any) -> m.WrittenBack:
        self.cache.drop_write(request.ino)
        self._nursery.start_soon(self._files.write_back, request.ino)
        await trio.lowlevel.checkpoint()
        return m.WrittenBack(done=True)

    patch.setattr(Coherent, "handle_write_back", handle)


@mistake()
def a_grant_that_comes_late_is_believed(patch: Patch) -> None:
    """Although it was called back while it was on its way."""
    patch.setattr(Asking, "may_learn_write", lambda self, ino: True)


@mistake("leader", "crash")
def a_new_leader_is_not_told_what_is_kept(patch: Patch) -> None:
    patch.setattr(Coherent, "kept_writes", lambda self: ())

    async def meet(self: Any) -> None:
        self.drop_everything()
        await trio.lowlevel.checkpoint()

    patch.setattr(Coherent, "meet_new_leader", meet)


@mistake("leader", "crash", "reset")
def a_commit_that_was_called_back_ends_with_the_connection(patch: Patch) -> None:
    """Found. The commit was cut short, of what was being committed no new leader knew, and it was repeated later."""

    async def handle(self: Any, call: Any, request: Any, payload: Any) -> m.WrittenBack:
        if request.session != self.session:
            return m.WrittenBack(done=True)
        self.cache.drop_write(request.ino)
        done = False
        with trio.move_on_after(self._session.ttl_ms * 0.2 / 1000):
            done = await self._files.write_back(request.ino)
        return m.WrittenBack(done)

    patch.setattr(Coherent, "handle_write_back", handle)


@mistake("evict", "cut", "stop")
def a_lost_session_is_no_matter_to_what_was_written(patch: Patch) -> None:
    patch.setattr(DataPath, "lose_all", lambda self, error: None)


# --- files -----------------------------------------------------------------------------------------------------------


@mistake()
def a_close_reports_an_open_that_is_under_way(patch: Patch) -> None:
    """Found. The last close of another handle was told after the open, and took its write lease with it."""
    real = Vfs._ask_open

    async def ask(self: Any, who: Any, ino: Any, access: int) -> Any:
        self._unhold(ino, None)
        try:
            return await real(self, who, ino, access)
        finally:
            self._handles.hold(ino)

    patch.setattr(Vfs, "_ask_open", ask)


@mistake()
def a_close_does_not_commit(patch: Patch) -> None:
    async def flush(self: Any, number: int) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Vfs, "flush", flush)


@mistake()
def pages_are_good_at_every_open(patch: Patch) -> None:
    patch.setattr(KernelPages, "still_good", lambda self, inode: True)
    real = Vfs.open

    async def open_(self: Any, *args: Any) -> Any:
        number, caching = await real(self, *args)
        return number, caching._replace(keep=True)

    patch.setattr(Vfs, "open", open_)
    patch.setattr(Coherent, "getattr", _remembered(Coherent.getattr))


def _remembered(real: Any) -> Any:
    """Answers of the leader are used again for half a second, whatever it said of leases."""

    async def getattr_(self: Any, ino: Any) -> Any:
        known = self.__dict__.setdefault("_remembered", {}).get(ino)
        if known is not None and trio.current_time() < known[0] + 0.5:
            return known[1]
        inode = await real(self, ino)
        self._remembered[ino] = (trio.current_time(), inode)
        return inode

    return getattr_


@mistake()
def an_append_goes_where_this_mount_believes_the_end_to_be(patch: Patch) -> None:
    real = Vfs.write

    async def write(self: Any, number: int, offset: int, data: Any) -> int:
        handle = self._handles.file(number)
        if not handle.append:
            return await real(self, number, offset, data)
        await handle.file.write(handle.file.size_bytes, data)
        await handle.file.flush(durable=False)
        return len(data)

    patch.setattr(Vfs, "write", write)
