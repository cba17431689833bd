"""The two ends of replication: what a leader knows of a follower, and how what it sends fits a follower's log.

Pure. It closes the holes of pysyncobj's own bookkeeping, where a late answer moves these numbers back or,
from an older leadership, forward: an answer counts only for the term it was given in, the match never goes
back, and a refusal counts only if it answers something sent after the last one that counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from shoalfs.mds.journal import Entry
from shoalfs.mds.raft_messages import SendNumber
from shoalfs.transport.limits import (
    APPEND_BYTES_MAX,
    APPEND_ENTRIES_MAX,
    APPEND_IN_FLIGHT_BYTES_MAX,
    APPEND_IN_FLIGHT_MAX,
)

_REMEMBERED_MAX: Final = 4 * APPEND_IN_FLIGHT_MAX  # heartbeats to a silent member are forgotten beyond


@dataclass(frozen=True, slots=True)
class _Sent:
    time: float
    size_bytes: int


@dataclass(slots=True)
class Follower:
    """Begins anew with each leadership. Invariant: match_index < next_index."""

    next_index: int  # the next entry to send
    match_index: int = 0  # on the follower's disk and equal to ours, up to here
    agreed_at: float = float("-inf")  # when the latest message that it answered was sent
    answered_at: float = float("-inf")  # when its latest answer came
    log_id: bytes = b""  # as its latest answer said
    refusals_ignored: int = 0
    _sequence: int = 0
    _reset_at: int = 0  # refusals of messages up to this one are old
    _sent: dict[int, _Sent] = field(default_factory=dict)
    _in_flight_bytes: int = 0

    @property
    def has_room(self) -> bool:
        return len(self._sent) < APPEND_IN_FLIGHT_MAX and self._in_flight_bytes < APPEND_IN_FLIGHT_BYTES_MAX

    def sent(self, now: float, entries: Sequence[Entry]) -> SendNumber:
        """Note a message that carries ``entries``, and number it."""
        self._sequence += 1
        size_bytes = sum(len(command) for command, _, _ in entries)
        self._sent[self._sequence] = _Sent(now, size_bytes)
        self._in_flight_bytes += size_bytes
        if entries:
            self.next_index = entries[-1][1] + 1
        if len(self._sent) > _REMEMBERED_MAX:
            self._forget(next(iter(self._sent)))
        return SendNumber(self._sequence)

    def agreed(self, sequence: SendNumber, index: int, now: float) -> None:
        """The follower has everything up to ``index`` on disk."""
        self._answered(sequence, now)
        self.match_index = max(self.match_index, index)
        self.next_index = max(self.next_index, self.match_index + 1)

    def refused(self, sequence: SendNumber, index: int, now: float) -> None:
        """The follower's log does not match there; it asks for entries from ``index`` on."""
        self._answered(sequence, now)
        if sequence <= self._reset_at or index <= self.match_index:
            self.refusals_ignored += 1
            return
        self._reset_at = self._sequence
        self.next_index = max(self.match_index + 1, min(index, self.next_index))
        self._sent.clear()
        self._in_flight_bytes = 0

    def _answered(self, sequence: SendNumber, now: float) -> None:
        self.answered_at = now
        sent = self._sent.get(sequence)
        if sent is None:
            return
        self.agreed_at = max(self.agreed_at, sent.time)
        # Connections keep the order, so what was sent before this and is unanswered was lost.
        for older in [number for number in self._sent if number <= sequence]:
            self._forget(older)

    def _forget(self, sequence: int) -> None:
        self._in_flight_bytes -= self._sent.pop(sequence).size_bytes


def fitting(entries: Sequence[Entry]) -> list[Entry]:
    """As many of the entries as one message may carry, at least one if there is one."""
    size_bytes = 0
    for count, (command, _, _) in enumerate(entries[:APPEND_ENTRIES_MAX]):
        size_bytes += len(command)
        if size_bytes > APPEND_BYTES_MAX:
            return list(entries[:count])
    return list(entries[:APPEND_ENTRIES_MAX])


class LogView(Protocol):
    """What `fit` needs of a log. Entries up to the base are committed, and gone."""

    @property
    def base_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    def term_at(self, index: int) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Fit:
    """How entries fit a log.

    If ``matches``, the log is the leader's up to ``index`` once it ends after ``keep`` and ``new`` is added;
    nothing that already matched is ever cut (pysyncobj would). If not, the leader should try again from
    ``index``.
    """

    matches: bool
    index: int
    keep: int
    new: list[Entry]


def fit(log: LogView, settled: int, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> Fit:
    """``settled``: entries up to this one are committed here, hence the same everywhere.

    A leader that contradicts one of them ends this node: going on would only spread the damage.
    """
    last = log.last_index
    if prev_index > last:
        return Fit(False, last + 1, last, [])
    if prev_index >= log.base_index and log.term_at(prev_index) != prev_term:
        assert prev_index > settled, f"a leader denies entry {prev_index}, committed to {settled}"
        return Fit(False, _first_of_its_term(log, settled, prev_index), last, [])
    verified = prev_index + len(entries)
    for nth, (_, index, term) in enumerate(entries):
        if index <= log.base_index or (index <= last and log.term_at(index) == term):
            continue
        assert index > settled, f"a leader voids entry {index}, committed to {settled}"
        return Fit(True, verified, index - 1, list(entries[nth:]))
    return Fit(True, verified, last, [])


def _first_of_its_term(log: LogView, settled: int, index: int) -> int:
    """The first index that is not settled with the term of ``index``: all of that term is probably wrong."""
    term = log.term_at(index)
    while index - 1 > settled and log.term_at(index - 1) == term:
        index -= 1
    return index
