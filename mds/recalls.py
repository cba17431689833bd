"""Telling sessions to drop what they cache, and waiting until they have: the leader's push.

One message to a session is on its way at a time; what has to be told meanwhile travels together in the next. So many
mutations at once cost one round trip to each session that is concerned.

Who waits for an acknowledgement never waits for ever: a session that gives none for RECALL_PATIENCE_TTLS is condemned
(:meth:`~shoalfs.mds.sessions.SessionTable.condemn`), and ends when its TTL is over. It is not ended before: a client
that is cut off believes in its leases until then.

A call to write back (:meth:`Recalls.write_back`) is a message of its own: a client may need seconds to commit what it
keeps, and no acknowledgement may wait for that.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from shoalfs.mds.messages import INVALIDATE, WRITE_BACK, Invalidate, WriteBack
from shoalfs.mds.sessions import SessionTable
from shoalfs.mds.touched import Touched
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import (
    RECALL_ATTEMPT_MS,
    RECALL_PATIENCE_TTLS,
    RECALLED_PER_MESSAGE_MAX,
    WRITE_BACK_ATTEMPT_TTLS,
)
from shoalfs.transport.method import A, Method, Q
from shoalfs.transport.rpc import Connection

log = logging.getLogger("shoal.mds.recalls")

_PAUSE_S = 0.05  # between attempts, when there is no connection to the session


@dataclass(slots=True)
class _Recall:
    what: Touched
    everything: bool
    acknowledged: Callable[[], None]


@dataclass(slots=True)
class _Line:
    """What waits to be told to one session."""

    waiting: list[_Recall] = field(default_factory=list)
    busy: bool = False  # a task is telling


class Recalls:
    """The pushes of one leadership. ``nursery`` runs them; ``sessions`` is the leader's memory; once ``is_current`` is
    False nothing is pushed any more, and who waits is let go."""

    def __init__(self, nursery: trio.Nursery, sessions: SessionTable, is_current: Callable[[], bool]) -> None:
        self._nursery = nursery
        self._sessions = sessions
        self._is_current = is_current
        self._links: dict[SessionId, Connection] = {}
        self._lines: dict[SessionId, _Line] = {}
        self.sent = 0  # messages
        self.told = 0  # names, inodes and directories in them

    def heard(self, session: SessionId, connection: Connection) -> None:
        """A request of the session came over this connection: the way back to it."""
        self._links[session] = connection

    def ended(self, session: SessionId) -> None:
        self._links.pop(session, None)

    def push(
        self, session: SessionId, what: Touched, acknowledged: Callable[[], None], *, everything: bool = False
    ) -> None:
        """Have the session drop ``what``; ``acknowledged`` is called once it has, or it or the leadership has ended."""
        line = self._lines.setdefault(session, _Line())
        line.waiting.append(_Recall(what, everything, acknowledged))
        if not line.busy:
            line.busy = True
            self._nursery.start_soon(self._tell_all, session, line)

    async def _tell_all(self, session: SessionId, line: _Line) -> None:
        try:
            while line.waiting:
                batch = _take_batch(line.waiting)
                await self._tell(session, batch)
                for recall in batch:
                    recall.acknowledged()
        finally:
            line.busy = False
        if self._lines.get(session) is line:
            del self._lines[session]

    async def _tell(self, session: SessionId, batch: list[_Recall]) -> None:
        """Return when the session has acknowledged, or has ended."""
        what = Touched()
        for recall in batch:
            what.add(recall.what)
        request = Invalidate(
            session,
            tuple(what.names),
            tuple(what.inodes),
            tuple(what.directories),
            any(recall.everything for recall in batch),
        )
        self.told += len(request.names) + len(request.inodes) + len(request.directories)
        reply = await self._call(session, INVALIDATE, request, RECALL_ATTEMPT_MS)
        for ino in () if reply is None else reply.opens:
            if not self._sessions.hold(session, ino):
                log.warning("session %d has too many files open", session)

    def write_back(self, session: SessionId, ino: InodeId, done: Callable[[], None]) -> None:
        """Have the session commit what it keeps of ``ino``; ``done`` is called once it has, or cannot, or it or the
        leadership has ended."""
        self._nursery.start_soon(self._write_back, session, ino, done)

    async def _write_back(self, session: SessionId, ino: InodeId, done: Callable[[], None]) -> None:
        attempt_ms = int(self._sessions.ttl_ms * WRITE_BACK_ATTEMPT_TTLS)
        reply = await self._call(session, WRITE_BACK, WriteBack(session, ino), attempt_ms)
        if reply is not None and not reply.done:
            log.warning("session %d keeps bytes of inode %d that it could not commit", session, ino)
        done()

    async def _call(self, session: SessionId, method: Method[Q, A], request: Q, attempt_ms: int) -> A | None:
        """Ask the session until it answers; None if it or the leadership has ended."""
        give_up = trio.current_time() + self._sessions.ttl_ms * RECALL_PATIENCE_TTLS / 1000
        while self._is_current() and self._sessions.knows(session):
            if trio.current_time() >= give_up and self._sessions.accepts(session):
                log.warning("session %d does not do what %s asks of it: it will be ended", session, method.name)
                self._sessions.condemn(session)
            link = self._links.get(session)
            if link is not None:
                try:
                    self.sent += 1
                    return (await link.call(method, request, timeout_ms=attempt_ms)).body
                except ShoalError as error:
                    log.debug("session %d did not acknowledge: %s", session, error)
            await trio.sleep(_PAUSE_S)
        return None


def _take_batch(waiting: list[_Recall]) -> list[_Recall]:
    """The next message's recalls, at least one, in their order."""
    batch: list[_Recall] = []
    size = 0
    while waiting:
        what = waiting[0].what
        size += len(what.names) + len(what.inodes) + len(what.directories)
        if batch and size > RECALLED_PER_MESSAGE_MAX:
            break
        batch.append(waiting.pop(0))
    return batch
