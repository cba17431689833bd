"""Group commit: what arrives together travels together, in order, within the bounds."""

import errno

import msgspec
import pytest
import trio
import trio.testing

from shoalfs.mds.batcher import Batcher
from shoalfs.mds.entry import decode_entry
from shoalfs.mds.messages import Command, Op, Outcome
from shoalfs.transport.errors import Overloaded, PeerUnreachable, PosixError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import (
    COMMAND_BYTES_MAX,
    ENTRIES_IN_FLIGHT_MAX,
    ENTRY_BYTES_MAX,
    ENTRY_COMMANDS_MAX,
)

SESSION = SessionId(5)


class HeldLog:
    """A replicated log that applies an entry when the test says so; the outcome of a command is its slot."""

    def __init__(self) -> None:
        self.entries: list[list[Command]] = []
        self.stamps: list[int] = []
        self.gate = trio.Semaphore(0)
        self.fail: Exception | None = None

    async def propose(self, entry: bytes) -> tuple[int, list[Outcome]]:
        decoded = decode_entry(entry)
        self.entries.append([command for _, command in decoded.commands])
        self.stamps.append(decoded.now_ns)
        index = len(self.entries)
        await self.gate.acquire()
        if self.fail is not None:
            raise self.fail
        return index, [Outcome(0, str(command.slot)) for _, command in decoded.commands]


def command(slot: int, size_bytes: int = 1) -> Command:
    return Command(slot, 1, Op.CREATE, msgspec.Raw(msgspec.msgpack.encode(bytes(size_bytes))))


@pytest.fixture
async def held(nursery):
    log = HeldLog()
    batcher = Batcher(log, lambda: 42)
    nursery.start_soon(batcher.run)
    await trio.testing.wait_all_tasks_blocked()
    return log, batcher


async def test_a_lone_operation_is_proposed_at_once_and_gets_its_own_outcome(held):
    log, batcher = held
    log.gate.release()
    index, outcomes = await batcher.submit(SESSION, [command(7)])
    assert (index, outcomes[0].text) == (1, "7")
    assert log.stamps == [42]


async def test_what_arrives_while_entries_are_in_flight_is_merged_in_order(held, nursery):
    log, batcher = held
    answers = {}

    async def one(slot):
        _, outcomes = await batcher.submit(SESSION, [command(slot)])
        answers[slot] = outcomes[0].text

    for slot in range(10):
        nursery.start_soon(one, slot)
        await trio.testing.wait_all_tasks_blocked()
    assert [len(entry) for entry in log.entries] == [1] * ENTRIES_IN_FLIGHT_MAX
    for _ in range(3):
        log.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert [c.slot for entry in log.entries for c in entry] == list(range(10))
    assert len(log.entries) == ENTRIES_IN_FLIGHT_MAX + 1
    assert answers == {slot: str(slot) for slot in range(10)}


async def test_an_entry_is_bounded_in_commands(held):
    log, batcher = held
    for _ in range(10):
        log.gate.release()
    _, outcomes = await batcher.submit(SESSION, [command(n % 256) for n in range(ENTRY_COMMANDS_MAX + 5)])
    assert len(outcomes) == ENTRY_COMMANDS_MAX + 5
    assert [len(entry) for entry in log.entries] == [ENTRY_COMMANDS_MAX, 5]


async def test_an_entry_is_bounded_in_bytes(held):
    log, batcher = held
    for _ in range(10):
        log.gate.release()
    size = COMMAND_BYTES_MAX - 200
    await batcher.submit(SESSION, [command(n, size) for n in range(5)])
    assert len(log.entries) > 1
    assert all(sum(len(bytes(c.body)) for c in entry) <= ENTRY_BYTES_MAX for entry in log.entries)


async def test_a_command_that_is_too_large_is_refused_and_nothing_is_queued(held):
    log, batcher = held
    with pytest.raises(PosixError) as caught:
        await batcher.submit(SESSION, [command(1), command(2, COMMAND_BYTES_MAX)])
    assert caught.value.errno == errno.E2BIG
    assert log.entries == []


async def test_too_many_waiting_operations_are_refused(held, monkeypatch, nursery):
    _, batcher = held
    monkeypatch.setattr("shoalfs.mds.batcher.PROPOSALS_QUEUED_MAX", 2)
    for slot in range(ENTRIES_IN_FLIGHT_MAX + 2):
        nursery.start_soon(batcher.submit, SESSION, [command(slot)])
        await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Overloaded):
        await batcher.submit(SESSION, [command(9)])


async def test_a_failed_proposal_fails_all_its_commands_and_the_next_entry_goes_on(held):
    log, batcher = held
    log.fail = PeerUnreachable("leadership was lost")
    log.gate.release()
    with pytest.raises(PeerUnreachable):
        await batcher.submit(SESSION, [command(1)])
    log.fail = None
    log.gate.release()
    _, outcomes = await batcher.submit(SESSION, [command(2)])
    assert outcomes[0].text == "2"
