"""The journal against a list, with crashes that lose any part of what was not synced."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoalfs.mds import journal as journal_module
from shoalfs.mds.journal import Journal, create_journal, encode_batch
from shoalfs.transport.ids import NodeId

CLUSTER = bytes(16)
ME = NodeId(1)
SMALL = 600  # bytes in a segment here


class JournalModel(RuleBasedStateMachine):
    """``logs[k]`` is the whole state after k operations; the journal may fall back to any k since the last sync."""

    @initialize()
    def begin(self) -> None:
        self.full_size = journal_module.LOG_SEGMENT_BYTES
        journal_module.LOG_SEGMENT_BYTES = SMALL
        self.root = Path(tempfile.mkdtemp())
        create_journal(self.root / "log", CLUSTER, ME)
        self.open()
        self.entries: list[tuple[bytes, int, int]] = []
        self.hard = (0, 0)
        self.base = 0
        self.history = [self.snapshot()]

    def open(self) -> None:
        self.journal = Journal(self.root / "log", CLUSTER, ME, sync_file=lambda _descriptor: None)

    def snapshot(self) -> tuple[list[tuple[bytes, int, int]], tuple[int, int]]:
        return list(self.entries), self.hard

    @rule(command=st.binary(min_size=1, max_size=120), newer=st.booleans())
    def append(self, command: bytes, newer: bool) -> None:
        term = max(self.hard[0], 1)
        if self.entries:
            term = max(term, self.entries[-1][2] + newer)
        entry = (command, len(self.entries) + 1, term)
        self.entries.append(entry)
        self.journal.append(entry[1], entry[2], entry[0])
        self.history.append(self.snapshot())

    @precondition(lambda self: len(self.entries) > self.base)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(self.base, len(self.entries)))
        del self.entries[keep:]
        self.journal.truncate_after(keep)
        self.history.append(self.snapshot())

    @rule(vote=st.integers(0, 3))
    def hard_state(self, vote: int) -> None:
        self.hard = (self.hard[0] + 1, vote)
        self.journal.set_hard_state(*self.hard)
        self.history.append(self.snapshot())

    @rule()
    def sync(self) -> None:
        self.journal.sync()
        self.history = [self.snapshot()]

    @precondition(lambda self: len(self.history) == 1)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        through = data.draw(st.integers(0, len(self.entries)))
        paths = self.journal.drop_through(through)
        assert not paths or self.journal.base_index <= through
        self.base = max(self.base, self.journal.base_index)
        self.journal.remove(paths)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Lose any part of what was not synced: cut it, or zero any piece of it."""
        batch = self.journal.take_batch()
        if batch is not None and batch.segment is None:
            written = bytearray(encode_batch(batch))
            cut = data.draw(st.integers(0, len(written)))
            first = data.draw(st.integers(0, cut))
            last = data.draw(st.integers(first, cut))
            written[first:last] = bytes(last - first)
            with max((self.root / "log").glob("*.log")).open("ab") as file:
                file.write(written[:cut])
        self.journal.close()
        self.open()
        found = (self.journal.entries[1:], (self.journal.current_term, self.journal.voted_for))
        base = self.journal.base_index
        candidates = [number for number, (e, h) in enumerate(self.history) if (e[base:], h) == found]
        assert candidates, (found, self.history)
        self.entries, self.hard = self.history[candidates[-1]]
        self.entries = list(self.entries)
        self.base = max(self.base, base)
        self.history = [self.snapshot()]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "journal"):
            return
        base = self.journal.base_index
        assert self.journal.entries[1:] == self.entries[base:]
        assert self.journal.last_index == len(self.entries)
        synced = self.history[0][0]
        durable = self.journal.durable_index
        assert self.entries[base:durable] == synced[base:durable]

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            journal_module.LOG_SEGMENT_BYTES = self.full_size
            self.journal.close()
            shutil.rmtree(self.root)


JournalModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJournalModel = JournalModel.TestCase
