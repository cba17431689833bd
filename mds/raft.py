"""pysyncobj with its hands tied. The only module that imports it.

None of its threads, sockets, files, clocks, dumps or pickles is used. What is left is its state machine of
roles, terms and votes and its rule for the commit index. `mds/raft_guard.py` decides what it gets to see and
what becomes of what it says.

The one rule: whatever is not replaced here has been read, line by line, in this very version. So the version
is asserted when a node is made, and with it every private name that this module leans on.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pysyncobj.syncobj as library
from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from shoalfs.mds.journal import Journal
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import APPEND_BYTES_MAX

_KNOWN_VERSION: Final = "0.3.17"
_PRIVATE_METHODS: Final = (
    "applyLogEntries", "doApplyCommand", "generateRaftTimeout", "getCurrentLogIndex", "getEntries",
    "loadDumpFile", "onBecomeLeader", "onMessageReceived", "parseChangeClusterRequest", "sendAppendEntries",
    "setCurrentTerm", "setState", "tryLogCompaction",
)  # fmt: skip
_PRIVATE_FIELDS: Final = (
    "lastResponseTime", "newAppendEntriesTime", "noopIDx", "otherNodes", "raftCommitIndex", "raftCurrentTerm",
    "raftElectionDeadline", "raftLastApplied", "raftLeader", "raftMatchIndex", "raftState", "serializer",
    "votedForNodeId",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RaftTimes:
    """In seconds. The defaults are for one site; where an fdatasync often takes 200 ms, use 1.0 to 2.0."""

    election_min: float = 0.4
    election_max: float = 0.8
    heartbeat: float = 0.1
    # Of election_min: how long a leader serves reads after it sent what a majority has answered. Clocks may differ by
    # the rest over election_min. 0 where clocks are not to be trusted at all: each read waits for a round of messages.
    lease_share: float = 0.85


class Guard(Protocol):
    """What pysyncobj's replaced methods call."""

    node: NodeId

    def election_timeout(self) -> float: ...
    def term_changed(self) -> None: ...
    def leadership_begins(self) -> None: ...
    def send_heartbeats(self) -> None: ...
    def apply_committed(self) -> int: ...
    def core_sends(self, peer: NodeId, message: dict[str, Any]) -> None: ...


class _StepClock(threading.local):
    """pysyncobj's clock. It stands still within a step; whoever steps a node sets it first."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class _NoPoller:
    def poll(self, _timeout: float) -> None: ...


step_clock: Final = _StepClock()
library.monotonicTime = step_clock
library.createJournal = lambda port: port
library.createPoller = lambda _kind: _NoPoller()


class _JournalPort:
    """pysyncobj's view of the journal: a list whose first element is the base."""

    def __init__(self, journal: Journal, commit_index: int) -> None:
        self._journal = journal
        self._commit_index = commit_index

    def __len__(self) -> int:
        return len(self._journal.entries)

    def __getitem__(self, item: Any) -> Any:
        return self._journal.entries[item]

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.append(index, term, command)

    def deleteEntriesFrom(self, offset: int) -> None:  # noqa: N802
        if offset < len(self._journal.entries):
            self._journal.truncate_after(self._journal.base_index + offset - 1)

    def setCurrentTerm(self, term: int, voted_for: int | None) -> None:  # noqa: N802
        self._journal.set_hard_state(term, voted_for or 0)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._journal.current_term

    def getVotedForNodeId(self) -> int | None:  # noqa: N802
        return self._journal.voted_for or None

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """At start: what the store has was committed. The rest is learned from the leader."""
        return self._commit_index

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """Not kept on disk: Raft does not need it."""

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Nothing is written behind anyone's back."""


class _Outlet(Transport):  # type: ignore[misc]
    """pysyncobj's transport: hands messages to the guard, and takes only what the guard delivers."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(None, None, [])
        self._guard = guard

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        self._guard.core_sends(node.id, message)
        return True

    def deliver(self, node: Any, message: dict[str, Any]) -> None:
        self._onMessageReceived(node, message)

    def connect(self, node: Any) -> None:
        """Every peer counts as connected: messages may get lost, and Raft expects no more."""
        self._onNodeConnected(node)


class Core(library.SyncObj):  # type: ignore[misc]
    """pysyncobj with its hands tied. Methods named _SyncObj__x replace its private ones."""

    def __init__(self, guard: Guard, times: RaftTimes, journal: Journal, applied_index: int) -> None:
        _assert_known(library.SyncObj)
        self._guard = guard
        self._outlet = _Outlet(guard)
        self._nodes: dict[NodeId, Any] = {}
        self._heartbeat = times.heartbeat
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,  # or it makes a pipe to wake its own thread
            raftMinTimeout=times.election_min,
            raftMaxTimeout=times.election_max,
            appendEntriesPeriod=times.heartbeat,
            leaderFallbackTimeout=times.election_max,
            connectionTimeout=10 * times.election_max,
            appendEntriesBatchSizeBytes=APPEND_BYTES_MAX,
            dynamicMembershipChange=False,
            journalFile=_JournalPort(journal, applied_index),
            fullDumpFile=None,
        )
        super().__init__(Node(guard.node), [], conf, transport=self._outlet)
        _assert_fields(self)
        self._SyncObj__raftLastApplied = applied_index
        self._SyncObj__serializer = None  # dumps are never made; whoever tries, fails

    _SyncObj__otherNodes: Any

    # what the guard reads and sets
    @property
    def is_leader(self) -> bool:
        return bool(self._isLeader())

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> NodeId | None:
        node = self._SyncObj__raftLeader
        return None if node is None else NodeId(node.id)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def no_op_index(self) -> int:
        """Of the leadership that lasts; meaningless otherwise."""
        return self._SyncObj__noopIDx or 0

    @property
    def election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, deadline: float) -> None:
        self._SyncObj__raftElectionDeadline = deadline

    def set_voters(self, others: Iterable[NodeId]) -> None:
        """The other nodes whose votes and acknowledgements count; learners are unknown to it."""
        nodes: set[Any] = {self._node(other) for other in others}
        known: set[Any] = self._SyncObj__otherNodes
        for node in nodes - known:
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = step_clock.now
        self._SyncObj__otherNodes = nodes

    def step_down(self) -> None:
        """Stop leading, in this term. Who leads now is not known."""
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None
        self.election_deadline = step_clock.now + self._guard.election_timeout()

    def _node(self, node: NodeId) -> Any:
        """Its object for a node. At most 255 of them."""
        if node not in self._nodes:
            self._nodes[node] = Node(node)
            self._outlet.connect(self._nodes[node])
        return self._nodes[node]

    def deliver(self, sender: NodeId, message: dict[str, Any]) -> None:
        self._outlet.deliver(self._node(sender), message)

    def note_match(self, peer: NodeId, index: int) -> None:
        self._SyncObj__raftMatchIndex[self._node(peer)] = index

    def note_answer(self, peer: NodeId, now: float) -> None:
        self._SyncObj__lastResponseTime[self._node(peer)] = now

    # what replaces its private methods
    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        return self._guard.election_timeout()

    def _SyncObj__setCurrentTerm(self, term: int, voted_for: int | None) -> None:  # noqa: N802
        if term != self.term:
            self._guard.term_changed()
        super()._SyncObj__setCurrentTerm(term, voted_for)

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        self._guard.leadership_begins()
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        self._SyncObj__newAppendEntriesTime = step_clock.now + self._heartbeat
        self._guard.send_heartbeats()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        self._SyncObj__raftLastApplied = self._guard.apply_committed()
        return False

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """No dumps: the state machine has its own disk, and the journal drops whole segments."""

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Its queue is not used; see GuardedRaft.propose."""

    def _SyncObj__doApplyCommand(self, _command: bytes) -> None:  # noqa: N802
        raise AssertionError("unreachable: unpickles")

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N802, N803
        raise AssertionError("unreachable: unpickles")

    def _SyncObj__parseChangeClusterRequest(self, _command: bytes) -> None:  # noqa: N802
        raise AssertionError("unreachable: unpickles")


def _assert_known(cls: Any) -> None:
    assert VERSION == _KNOWN_VERSION, f"pysyncobj {VERSION} is not {_KNOWN_VERSION}"
    missing = [name for name in _PRIVATE_METHODS if not hasattr(cls, f"_SyncObj__{name}")]
    assert not missing, f"pysyncobj lacks {missing}"
    for name in ("monotonicTime", "createJournal", "createPoller", "_RAFT_STATE"):
        assert hasattr(library, name), name


def _assert_fields(core: Any) -> None:
    missing = [name for name in _PRIVATE_FIELDS if f"_SyncObj__{name}" not in vars(core)]
    assert not missing, f"pysyncobj lacks {missing}"
