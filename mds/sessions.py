"""Who is alive and what they have open: the leader's memory of sessions. Pure: time comes in.

That a session *exists* is replicated state; when it was last heard of and which inodes it holds open is only known to
the leader, because writing a Raft entry for every open would cost more than the open. A new leader therefore begins
with a **grace period**: it gives every session a fresh TTL, asks each for its open inodes at its next renewal, and
until all have answered (or the TTL has passed) treats every orphan as open.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shoalfs.transport.ids import InodeId, SessionId
from shoalfs.transport.limits import OPENS_PER_SESSION_MAX


@dataclass(slots=True)
class _Live:
    client: str
    renewed_ms: int
    reported: bool  # its opens are known, its leases are dropped: it has said so, or was opened under this leader
    condemned: bool = False  # it does not drop what it must: nothing more is taken from it, and it expires
    opens: set[InodeId] = field(default_factory=set)


class SessionTable:
    """The live sessions, as the present leader knows them."""

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self._live: dict[SessionId, _Live] = {}
        # Invariant: the number of sessions that have the inode in their ``opens``; no zero entries.
        self._holders: Counter[InodeId] = Counter()
        self._grace_until_ms = 0
        self._unreported: set[SessionId] = set()  # Invariant: those of ``_live`` that are not ``reported``

    def lead(self, sessions: Iterable[tuple[SessionId, str]], now_ms: int) -> None:
        """Leadership begins: all sessions of the replicated state get a fresh TTL and have yet to report."""
        self._live = {sid: _Live(client, now_ms, reported=False) for sid, client in sessions}
        self._unreported = set(self._live)
        self._holders.clear()
        self._grace_until_ms = now_ms + self.ttl_ms if self._live else now_ms

    def opened(self, session: SessionId, client: str, now_ms: int) -> None:
        """A session was opened under this leader (or its opening was repeated)."""
        self._live.setdefault(session, _Live(client, now_ms, reported=True))

    def ended(self, session: SessionId) -> None:
        live = self._live.pop(session, None)
        self._unreported.discard(session)
        if live is not None:
            for ino in live.opens:
                self._drop(ino)

    def knows(self, session: SessionId) -> bool:
        return session in self._live

    def accepts(self, session: SessionId) -> bool:
        """True if the session is alive and may ask for something."""
        live = self._live.get(session)
        return live is not None and not live.condemned

    def condemn(self, session: SessionId) -> None:
        """Take nothing more from the session. It ends when it has said that it dropped everything, or when its TTL
        is over: until then it may believe in its leases."""
        if session in self._live:
            self._live[session].condemned = True

    def has_reported(self, session: SessionId) -> bool:
        live = self._live.get(session)
        return live is not None and live.reported

    def in_grace(self, besides: SessionId) -> bool:
        """True if a session other than ``besides`` may hold leases that the present leader does not know of."""
        return len(self._unreported) > (besides in self._unreported)

    def renew(self, session: SessionId, opens: Iterable[InodeId] | None, now_ms: int) -> bool:
        """Heard from ``session``. Returns whether it should send its opens. The session must be known."""
        live = self._live[session]
        live.renewed_ms = now_ms
        if opens is not None and not live.reported:
            live.reported = True
            self._unreported.discard(session)
            for ino in opens:
                self.hold(session, ino)
        return not live.reported

    def hold(self, session: SessionId, ino: InodeId) -> bool:
        """The session has ``ino`` open. False if it may not open more (ENFILE), or has ended."""
        live = self._live.get(session)
        if live is None:
            return False
        opens = live.opens
        if ino not in opens:
            if len(opens) >= OPENS_PER_SESSION_MAX:
                return False
            opens.add(ino)
            self._holders[ino] += 1
        return True

    def release(self, session: SessionId, inos: Iterable[InodeId]) -> None:
        live = self._live.get(session)
        if live is None:
            return
        for ino in inos:
            if ino in live.opens:
                live.opens.remove(ino)
                self._drop(ino)

    def may_be_open(self, ino: InodeId, now_ms: int) -> bool:
        """True if a session has it open, or if in the grace period one might."""
        return ino in self._holders or self._in_grace(now_ms)

    def expired(self, now_ms: int) -> list[SessionId]:
        """Sessions that were not heard of for their TTL."""
        return [sid for sid, live in self._live.items() if now_ms - live.renewed_ms > self.ttl_ms]

    def describe(self, now_ms: int) -> list[tuple[SessionId, str, int, int]]:
        """(session, client, opens, milliseconds since the last renewal) of each, for status."""
        return [
            (sid, live.client, len(live.opens), now_ms - live.renewed_ms) for sid, live in sorted(self._live.items())
        ]

    def _in_grace(self, now_ms: int) -> bool:
        return now_ms < self._grace_until_ms and bool(self._unreported)

    def _drop(self, ino: InodeId) -> None:
        self._holders[ino] -= 1
        if not self._holders[ino]:
            del self._holders[ino]
