"""One node of the replicated log over a real journal: propose, restart, kill, and the disk's failure."""

import errno
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from shoalfs.mds import raft_node as node_module
from shoalfs.mds.journal import Journal, JournalFailed, JournalRefused, create_journal
from shoalfs.mds.raft_members import Member, Members, founders
from shoalfs.mds.raft_node import RaftNode
from shoalfs.transport.errors import NotLeader
from shoalfs.transport.ids import NodeId

CLUSTER = bytes(range(16))
ME = NodeId(1)
MEMBERS = founders([Member(ME, "unix:/nowhere/peer", "unix:/nowhere/client")])


class Recorder:
    """A state machine: the list of what was applied. ``durable`` is what a power loss would leave of it."""

    def __init__(self, applied: Sequence[tuple[int, int, bytes]] = ()) -> None:
        self.applied = list(applied)
        self.batches: list[int] = []
        self.durable = len(self.applied)

    @property
    def applied_index(self) -> int:
        return len(self.applied)

    members = None

    def apply(self, entries: Sequence[tuple[int, int, bytes]], members: Members | None = None) -> list[Any]:
        assert [index for index, _, _ in entries] == list(
            range(self.applied_index + 1, self.applied_index + 1 + len(entries))
        )
        self.applied.extend(entries)
        self.batches.append(len(entries))
        return [entry.upper() for _, _, entry in entries]

    def durable_index(self) -> int:
        return self.durable

    @property
    def commands(self) -> list[bytes]:
        return [entry for _, _, entry in self.applied if entry]


class NoNetwork:
    async def notify(self, address: str, method: Any, request: Any, payload: Any = ()) -> None:
        raise AssertionError("a single node talks to nobody")


@asynccontextmanager
async def running(directory, machine):
    journal = Journal(directory, CLUSTER, ME)
    try:
        raft = RaftNode(ME, MEMBERS, journal, machine, NoNetwork())
        async with trio.open_nursery() as nursery:
            await nursery.start(raft.run)
            await raft.read_barrier() if raft.term_as_leader() else await until_leading(raft)
            yield raft
            nursery.cancel_scope.cancel()
    finally:
        journal.close()


async def until_leading(raft):
    while not raft.may_serve_reads():
        await trio.lowlevel.checkpoint()


@pytest.fixture
def directory(tmp_path):
    create_journal(tmp_path / "log", CLUSTER, ME)
    return tmp_path / "log"


async def test_propose_returns_index_and_result(directory):
    machine = Recorder()
    async with running(directory, machine) as raft:
        assert await raft.propose(b"one") == (2, b"ONE")
        assert await raft.propose(b"two") == (3, b"TWO")
        assert raft.term_as_leader() == 1
        assert raft.leader_address() == "unix:/nowhere/client"
        status = raft.status()
    assert machine.applied == [(1, 1, b""), (2, 1, b"one"), (3, 1, b"two")]
    assert (status.leader, status.term, status.commit_index, status.applied_index) == (1, 1, 3, 3)


async def test_nothing_is_applied_before_it_is_on_disk(directory, monkeypatch):
    """While the disk is busy nothing is applied; all that was proposed meanwhile rides on the next sync."""
    machine = Recorder()
    gate = trio.Event()
    writes = []
    async with running(directory, machine) as raft:
        real = raft._journal.write

        def slow(batch):
            writes.append(len(batch.records))
            trio.from_thread.run(gate.wait)
            real(batch)

        monkeypatch.setattr(raft._journal, "write", slow)
        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(raft.propose, b"%d" % n)
            await trio.testing.wait_all_tasks_blocked()
            assert machine.commands == []
            assert raft.status().commit_index == 1
            gate.set()
    assert sorted(machine.commands) == [b"%d" % n for n in range(10)]
    assert sum(writes) == 10
    assert len(writes) <= 2


async def test_restart_replays_from_the_applied_index(directory):
    machine = Recorder()
    async with running(directory, machine) as raft:
        for n in range(20):
            await raft.propose(b"%d" % n)
    restored = Recorder(machine.applied[:8])  # what the store's checkpoint had
    async with running(directory, restored) as raft:
        assert restored.commands == machine.commands
        assert raft.term_as_leader() == 2
        await raft.propose(b"more")
    assert restored.commands == [*machine.commands, b"more"]


async def test_killed_at_any_moment_keeps_what_was_acknowledged(directory, tmp_path):
    """A copy of the files while the node runs is what a kill leaves."""
    machine = Recorder()
    acknowledged = []
    async with running(directory, machine) as raft:
        for n in range(30):
            await raft.propose(b"%d" % n)
            acknowledged.append(b"%d" % n)
            if n % 10 == 9:
                copy = tmp_path / f"copy-{n}"
                shutil.copytree(directory, copy)
                fresh = Recorder()
                async with running(copy, fresh):
                    assert fresh.commands == acknowledged


async def test_not_leader_before_it_runs(directory):
    journal = Journal(directory, CLUSTER, ME)
    raft = RaftNode(ME, MEMBERS, journal, Recorder(), NoNetwork())
    with pytest.raises(NotLeader):
        await raft.propose(b"x")
    with pytest.raises(NotLeader):
        await raft.read_barrier()
    assert not raft.may_serve_reads()
    journal.close()


async def test_a_failed_sync_ends_the_node(directory):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(directory, CLUSTER, ME, sync_file=full)
    machine = Recorder()
    raft = RaftNode(ME, MEMBERS, journal, machine, NoNetwork())
    with pytest.RaisesGroup(JournalFailed):
        await raft.run()
    assert machine.applied == []
    journal.close()


async def test_a_disk_that_hangs_ends_the_node(directory, monkeypatch):
    monkeypatch.setattr(node_module, "LOG_SYNC_MS_MAX", 50)
    release = threading.Event()
    journal = Journal(directory, CLUSTER, ME, sync_file=lambda _descriptor: release.wait(10))
    raft = RaftNode(ME, MEMBERS, journal, Recorder(), NoNetwork())
    with pytest.RaisesGroup(pytest.RaisesExc(JournalFailed, match="hangs")):
        await raft.run()
    journal.close()
    release.set()


async def test_a_process_that_was_stopped_does_not_blame_its_disk(directory, monkeypatch):
    """Stopped for longer than a sync may take, while one is under way."""
    monkeypatch.setattr(node_module, "LOG_SYNC_MS_MAX", 200)
    begun, release = threading.Event(), threading.Event()

    def sync(_descriptor: int) -> None:
        begun.set()
        release.wait(10)

    journal = Journal(directory, CLUSTER, ME, sync_file=sync)
    raft = RaftNode(ME, MEMBERS, journal, Recorder(), NoNetwork())
    async with trio.open_nursery() as nursery:
        await nursery.start(raft.run)
        while not begun.is_set():
            await trio.lowlevel.checkpoint()
        time.sleep(0.5)  # noqa: ASYNC251 - the whole loop stands still, as after SIGSTOP
        await trio.sleep(0.05)
        release.set()
        await until_leading(raft)
        nursery.cancel_scope.cancel()
    journal.close()


async def test_a_disk_that_hangs_does_not_hold_up_the_end(directory, monkeypatch):
    monkeypatch.setattr(node_module, "LOG_SYNC_MS_MAX", 100)
    begun, release = threading.Event(), threading.Event()

    def sync(_descriptor: int) -> None:
        begun.set()
        release.wait(10)

    journal = Journal(directory, CLUSTER, ME, sync_file=sync)
    raft = RaftNode(ME, MEMBERS, journal, Recorder(), NoNetwork())
    with trio.fail_after(5), pytest.RaisesGroup(pytest.RaisesExc(JournalFailed, match="hangs"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(raft.run)
            while not begun.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    journal.close()
    release.set()


async def test_an_exception_of_the_state_machine_ends_the_node(directory):
    class Broken(Recorder):
        def apply(self, entries, members=None):
            raise ValueError("bug")

    journal = Journal(directory, CLUSTER, ME)
    raft = RaftNode(ME, MEMBERS, journal, Broken(), NoNetwork())
    with pytest.RaisesGroup(ValueError):
        await raft.run()
    journal.close()


def test_a_store_of_another_moment_is_refused(directory):
    journal = Journal(directory, CLUSTER, ME)
    ahead = Recorder([(1, 1, b"")])
    with pytest.raises(JournalRefused, match="the store is at entry 1"):
        RaftNode(ME, MEMBERS, journal, ahead, NoNetwork())
    journal.close()
