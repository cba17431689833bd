"""The lease table against the only thing that matters of it: what clients believe.

The model knows for each session what it was given and has not dropped. Two things may never be: that a mutation is
applied while somebody else believes in what it changes, and that somebody keeps written bytes of a file, or new files
of a directory, of which another session believes anything.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoalfs.mds.leases import Change, LeaseTable
from shoalfs.mds.touched import Touched
from shoalfs.transport.ids import InodeId, SessionId

SESSIONS = [SessionId(number) for number in (1, 2, 3)]
INODES = [InodeId(number) for number in (10, 11, 12)]
DIRECTORIES = [InodeId(number) for number in (20, 21)]
NAMES = [b"a", b"b"]

sessions = st.sampled_from(SESSIONS)
inodes = st.sampled_from(INODES)
anything = st.sampled_from(INODES + DIRECTORIES)
names = st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(NAMES))


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(per_session_max=16)
        self.inodes: set[tuple[SessionId, InodeId]] = set()
        self.names: set[tuple[SessionId, InodeId, bytes]] = set()
        self.writes: set[tuple[SessionId, InodeId]] = set()
        self.changes: list[Change] = []
        self.now_ms = 0

    # --- answers -----------------------------------------------------------------------------------------------------

    @rule(session=sessions, ino=inodes)
    def ask_inode(self, session, ino):
        if self.table.lease_inode(session, ino):
            assert not any(ino in change.touched.inodes for change in self.changes), "it is being changed"
            self.inodes.add((session, ino))

    @rule(session=sessions, some=st.lists(inodes, max_size=3))
    def ask_inodes(self, session, some):
        refused = self.table.lease_inodes(session, some)
        for ino in some:
            assert self.table.lease_inode(session, ino) == (ino not in refused), "as one by one"
            if ino not in refused:
                assert not any(ino in change.touched.inodes for change in self.changes), "it is being changed"
                self.inodes.add((session, ino))

    @rule(session=sessions, name=names)
    def ask_name(self, session, name):
        if self.table.lease_names(session, *name, self.now_ms):
            assert not any(name in change.touched.names for change in self.changes)
            self.names.add((session, *name))

    @rule(session=sessions, directory=st.sampled_from(DIRECTORIES))
    def list_directory(self, session, directory):
        if self.table.lease_names(session, directory, None, self.now_ms):
            self.names |= {(session, directory, name) for name in NAMES}

    @rule(session=sessions, ino=anything)
    def ask_to_write(self, session, ino):
        if self.table.lease_write(session, ino):
            assert not any(ino in change.touched.inodes for change in self.changes if change.session != session)
            self.writes.add((session, ino))

    # --- mutations ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.changes) < 4)
    @rule(session=sessions, some=st.sets(inodes, max_size=2), named=st.sets(names, max_size=2))
    def begin(self, session, some, named):
        touched = Touched(set(named), set(some) | {directory for directory, _ in named})
        if (written := self.table.written_directory(session, touched)) is not None:
            assert any((who, written) in self.writes for who in SESSIONS if who != session)
            return
        if self.table.blocked(touched):
            assert any(change.touched.names & named for change in self.changes)
            return
        change = self.table.begin(session, touched, self.now_ms)
        for ino, writer in change.writers.items():
            assert (writer, ino) in self.writes
            assert writer != session
        self.changes.append(change)

    @precondition(lambda self: any(change.recalls for change in self.changes))
    @rule(data=st.data())
    def acknowledge(self, data):
        change = data.draw(st.sampled_from([change for change in self.changes if change.recalls]))
        session = data.draw(st.sampled_from(sorted(change.recalls)))
        told = change.recalls[session]
        self.inodes -= {(session, ino) for ino in told.inodes}
        self.names -= {(session, *name) for name in told.names}
        self.names = {held for held in self.names if held[0] != session or held[1] not in told.directories}
        self.table.acknowledged(change, session)

    @precondition(lambda self: self.writes)
    @rule(data=st.data())
    def write_back(self, data):
        """It was called back, or the file was closed."""
        session, ino = data.draw(st.sampled_from(sorted(self.writes)))
        self.writes.discard((session, ino))
        self.table.called_back(ino, self.now_ms)
        self.table.drop_write(session, ino)

    @precondition(lambda self: self.changes)
    @rule(data=st.data(), leases=st.booleans(), writes=st.booleans())
    def apply(self, data, leases, writes):
        """All have acknowledged: whoever believed in the state of before has been told. Or it is given up."""
        change = data.draw(st.sampled_from(self.changes))
        own = change.session
        if not change.recalls and not any((who, ino) in self.writes for ino, who in change.writers.items()):
            for ino in change.touched.inodes:
                assert {who for who, held in self.inodes | self.writes if held == ino} <= {own}
            for name in change.touched.names:
                assert {held[0] for held in self.names if held[1:] == name} <= {own}
            for ino in change.touched.inodes:
                if leases and self.table.lease_inode(own, ino, change):
                    self.inodes.add((own, ino))
                if writes and self.table.lease_write(own, ino):
                    self.writes.add((own, ino))
        self.table.end(change)
        self.changes.remove(change)

    @rule(session=sessions)
    def end_session(self, session):
        self.inodes = {held for held in self.inodes if held[0] != session}
        self.names = {held for held in self.names if held[0] != session}
        self.writes = {held for held in self.writes if held[0] != session}
        self.table.forget(session)
        for change in self.changes:
            self.table.acknowledged(change, session)

    @rule(passed_ms=st.sampled_from([1, 100, 5_000]))
    def wait(self, passed_ms):
        self.now_ms += passed_ms

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def who_writes_is_alone(self):
        for writer, ino in self.writes:
            assert self.table.writer(ino) == writer
            assert {who for who, held in self.inodes | self.writes if held == ino} <= {writer}
            assert {who for who, directory, _ in self.names if directory == ino} <= {writer}

    @invariant()
    def nothing_is_forgotten(self):
        """Whoever believes in something would be told of its change."""
        for ino in INODES:
            holders = {who for who, held in self.inodes if held == ino}
            assert holders <= self.table._inode_holders.get(ino, set())
        for who, directory, _ in self.names:
            assert who in self.table._names_holders[directory]


Leases.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestLeases = Leases.TestCase
