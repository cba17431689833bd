"""Checks and plans in a process beside the service: over a real store and the real process."""

import errno
import os
import signal
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest
import trio

from harness.metadata import ROOT, Metadata
from shoalfs.mds import inspections, inspector, keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.inspections import Inspections
from shoalfs.mds.store import LmdbStore, read_beside
from shoalfs.transport.errors import BadMessage, Overloaded, PosixError, StorageFailed
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import INSPECTIONS_MAX, PLANS_MAX


class Desk:
    """Asks as an operator's command does, without a network between."""

    def __init__(self, inspections, metadata):
        self.inspections = inspections
        self.metadata = metadata
        self._handlers = {}
        inspections.install(SimpleNamespace(add=self._add), self._leading)

    def _add(self, method, handler):
        self._handlers[method] = handler

    async def _leading(self):
        await trio.lowlevel.checkpoint()

    async def ask(self, method, request):
        reply = await self._handlers[method](None, request, memoryview(b""))
        return msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=method.reply)

    async def open(self):
        return (await self.ask(m.OPEN_CHECK, m.OpenCheck())).number

    async def pages(self, number, method=m.READ_CHECK, first=1):
        pages = []
        while not pages or not pages[-1].done:
            pages.append(await self.ask(method, m.ReadInspection(number, first + len(pages))))
        return pages

    def processes(self):
        return [running.process.pid for running in self.inspections._running.values() if not running.has_ended]


@asynccontextmanager
async def a_desk(path):
    store = LmdbStore.open(str(path / "store"))
    metadata = Metadata(store)
    metadata.add_targets()
    inspections = Inspections(store, path / "store", path / "checking")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inspections.run)
            yield Desk(inspections, metadata)
            nursery.cancel_scope.cancel()
    finally:
        assert not inspections._running
        store.close()


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_check_is_of_one_state(tmp_path):
    async with a_desk(tmp_path) as desk:
        for i in range(30):
            desk.metadata.create(b"%d" % i)
        number = await desk.open()
        (pid,) = desk.processes()
        for i in range(30):
            desk.metadata.do(m.Unlink(ROOT, ROOT_INODE, b"%d" % i))
        pages = await desk.pages(number)
        assert sum(page.inodes for page in pages) == 31
        assert [page.findings for page in pages if page.findings] == []
        assert desk.processes() == []
        assert is_gone(pid)
        again = await desk.pages(await desk.open())
        assert sum(page.inodes for page in again) == 31, "orphans: nobody has reaped them"


async def test_what_is_wrong_is_found_and_planned(tmp_path):
    async with a_desk(tmp_path) as desk:
        ino = desk.metadata.create(b"f").ino
        with desk.metadata.store.write() as txn:
            inode = records.INODE.require(txn, keys.inode(ino))
            txn.put(keys.inode(ino), records.INODE.encode(msgspec.structs.replace(inode, nlink=9)))
        found = [finding for page in await desk.pages(await desk.open()) for finding in page.findings]
        assert [(f.kind, f.ino) for f in found] == [("wrong-nlink", ino)]
        number = (await desk.ask(m.PLAN_MEND, m.PlanMend(tuple(found)))).number
        (plan,) = (await desk.pages(number, m.READ_PLANS))[-1].plans
        desk.metadata.do(plan.mend, session=0)
        assert [page.findings for page in await desk.pages(await desk.open()) if page.findings] == []


async def test_pages_in_their_order_and_the_last_one_again(tmp_path):
    async with a_desk(tmp_path) as desk:
        number = await desk.open()
        with pytest.raises(BadMessage, match="not the next one"):
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, 2))
        pages = await desk.pages(number)
        last = len(pages)
        assert await desk.ask(m.READ_CHECK, m.ReadInspection(number, last)) == pages[-1], "its answer may be lost"
        assert not (await desk.ask(m.READ_CHECK, m.ReadInspection(number, 0))).done
        with pytest.raises(BadMessage, match="not the next one"):
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, last + 1))
        for other in (number + 1, -1):
            with pytest.raises(PosixError) as gone:
                await desk.ask(m.READ_CHECK, m.ReadInspection(other, 1))
            assert gone.value.errno == errno.ESTALE
        with pytest.raises(PosixError) as gone:
            await desk.ask(m.READ_PLANS, m.ReadInspection(number, 1))
        assert gone.value.errno == errno.ESTALE, "it is no plan"


async def test_so_many_and_no_more(tmp_path):
    async with a_desk(tmp_path) as desk:
        numbers = [await desk.open() for _ in range(INSPECTIONS_MAX)]
        with pytest.raises(Overloaded):
            await desk.open()
        await desk.pages(numbers[0])
        await desk.open()
        pids = desk.processes()
        assert len(pids) == INSPECTIONS_MAX
    assert all(map(is_gone, pids)), "they end with the service"
    assert list((tmp_path / "checking").iterdir()) == []


async def test_many_that_ended_are_not_all_kept(tmp_path):
    async with a_desk(tmp_path) as desk:
        for _ in range(INSPECTIONS_MAX + 3):
            await desk.pages(await desk.open())
        assert len(desk.inspections._running) == INSPECTIONS_MAX


async def test_what_nobody_reads_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(inspections, "INSPECTION_LEASE_MS", 1_000)
    monkeypatch.setattr(inspections, "_SWEEP_SECONDS", 0.1)
    async with a_desk(tmp_path) as desk:
        read, kept = await desk.open(), await desk.open()
        lost, other = desk.processes()
        with trio.fail_after(20):
            while not is_gone(lost):
                await desk.ask(m.READ_CHECK, m.ReadInspection(kept, 0))
                await trio.sleep(0.05)
        assert desk.processes() == [other]
        with pytest.raises(PosixError) as gone:
            await desk.ask(m.READ_CHECK, m.ReadInspection(read, 1))
        assert gone.value.errno == errno.ESTALE
        assert (await desk.pages(kept))[-1].done


async def test_a_process_that_is_killed_costs_its_reader_only(tmp_path):
    async with a_desk(tmp_path) as desk:
        number = await desk.open()
        os.kill(desk.processes()[0], signal.SIGKILL)
        with pytest.raises(PosixError, match="has ended"):
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, 1))
        with pytest.raises(PosixError):
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, 1))
        assert (await desk.pages(await desk.open()))[-1].done
        env = desk.metadata.store._env
        assert env.reader_check() == 0, "its place as a reader was given back"


async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(tmp_path):
    async with a_desk(tmp_path) as desk:
        number = await desk.open()
        (pid,) = desk.processes()
        os.kill(pid, signal.SIGSTOP)
        with trio.move_on_after(0.2) as scope:
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, 1))
        assert scope.cancelled_caught
        assert is_gone(pid)
        with pytest.raises(PosixError) as gone:
            await desk.ask(m.READ_CHECK, m.ReadInspection(number, 1))
        assert gone.value.errno == errno.ESTALE


async def test_what_cannot_be_done_is_one_line(tmp_path):
    async with a_desk(tmp_path) as desk:
        many = tuple(m.Finding("wrong-nlink", ROOT_INODE, "x") for _ in range(PLANS_MAX + 1))
        number = (await desk.ask(m.PLAN_MEND, m.PlanMend(many))).number
        with pytest.raises(PosixError, match="at most"):
            await desk.ask(m.READ_PLANS, m.ReadInspection(number, 1))
        assert desk.processes() == []
        number = await desk.open()
        desk.inspections._directory.rmdir()  # as a full disk: nowhere to put anything aside
        with pytest.raises(PosixError) as failed:
            await desk.pages(number)
        assert failed.value.errno == errno.EIO
        assert "\n" not in str(failed.value)


def test_a_store_that_is_none_is_refused(tmp_path):
    with pytest.raises(StorageFailed), read_beside(str(tmp_path)):
        pass


def test_a_page_that_takes_long_is_answered_with_none(monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(inspector.time, "monotonic", lambda: next(times) / 10)
    monkeypatch.setattr(inspector, "INSPECTION_STEP_MS", 500)
    steps = iter([None] * 7 + ["page"])
    assert inspector._step(steps) is None
    assert len(list(steps)) == 3, "five steps of 100 ms were made"
