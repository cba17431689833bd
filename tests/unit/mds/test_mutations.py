"""A client's mutations share requests, and each gets its own outcome."""

import errno

import msgspec
import pytest
import trio
import trio.testing

from shoalfs.mds.messages import MUTATE, Command, Mutate, Mutated, Op, Outcome
from shoalfs.mds.mutations import Mutations
from shoalfs.transport.errors import PeerUnreachable, PosixError, ShoalError
from shoalfs.transport.ids import SessionId
from shoalfs.transport.limits import COMMAND_BYTES_MAX, KIB, MUTATES_IN_FLIGHT_MAX, SHARED_COMMANDS_MAX
from shoalfs.transport.rpc import Reply

ONE, OTHER = SessionId(1), SessionId(2)


class HeldLeader:
    """Answers a request when the test says so; the outcome of a command is its slot."""

    def __init__(self) -> None:
        self.requests: list[Mutate] = []
        self.gate = trio.Semaphore(0)
        self.fail: PeerUnreachable | None = None

    async def call(self, method, request):
        assert method is MUTATE
        self.requests.append(request)
        await self.gate.acquire()
        if self.fail is not None:
            raise self.fail
        return Reply(Mutated(1, tuple(Outcome(0, str(command.slot)) for command in request.commands)), memoryview(b""))

    @property
    def sizes(self) -> list[int]:
        return [len(request.commands) for request in self.requests]


def command(slot: int, size_bytes: int = 1) -> Command:
    return Command(slot, 1, Op.CREATE, msgspec.Raw(msgspec.msgpack.encode(bytes(size_bytes))))


@pytest.fixture
async def held(nursery):
    leader = HeldLeader()
    mutations = Mutations(leader)
    nursery.start_soon(mutations.run)
    await trio.testing.wait_all_tasks_blocked()
    return leader, mutations


async def carry_out(mutations, command, session=ONE):
    """One: its slot, which is in its outcome."""
    (result,) = await mutations.carry_out(session, [command])
    if isinstance(result, ShoalError):
        raise result
    return result.outcome.text


async def under_way(nursery, mutations, slots, answers, session=ONE, size_bytes=1):
    """Begin one mutation after the other, each in a task of its own."""

    async def one(slot):
        try:
            answers[slot] = await carry_out(mutations, command(slot, size_bytes), session)
        except PeerUnreachable as error:
            answers[slot] = error

    for slot in slots:
        nursery.start_soon(one, slot)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_lone_mutation_leaves_at_once_and_gets_its_own_outcome(held):
    leader, mutations = held
    leader.gate.release()
    assert await carry_out(mutations, command(7)) == "7"


async def test_what_gathers_shares_the_next_request_in_order(held, nursery):
    leader, mutations = held
    answers = {}
    await under_way(nursery, mutations, range(MUTATES_IN_FLIGHT_MAX + 10), answers)
    assert leader.sizes == [1] * MUTATES_IN_FLIGHT_MAX
    leader.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert leader.sizes == [1] * MUTATES_IN_FLIGHT_MAX + [10]
    slots = [c.slot for c in leader.requests[-1].commands]
    assert slots == list(range(MUTATES_IN_FLIGHT_MAX, MUTATES_IN_FLIGHT_MAX + 10))
    for _ in range(MUTATES_IN_FLIGHT_MAX):
        leader.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert answers == {slot: str(slot) for slot in range(MUTATES_IN_FLIGHT_MAX + 10)}


async def test_a_request_is_bounded_in_commands_and_in_bytes(held, nursery):
    leader, mutations = held
    await under_way(nursery, mutations, range(MUTATES_IN_FLIGHT_MAX), {})
    await under_way(nursery, mutations, range(SHARED_COMMANDS_MAX + 3), {})
    await under_way(nursery, mutations, range(3), {}, size_bytes=100 * KIB)
    for _ in range(3):
        leader.gate.release()
        await trio.testing.wait_all_tasks_blocked()
    assert leader.sizes[MUTATES_IN_FLIGHT_MAX:] == [SHARED_COMMANDS_MAX, 3 + 2, 1]


async def test_sessions_do_not_share(held, nursery):
    leader, mutations = held
    await under_way(nursery, mutations, range(MUTATES_IN_FLIGHT_MAX), {})
    await under_way(nursery, mutations, [1, 2], {})
    await under_way(nursery, mutations, [3, 4], {}, session=OTHER)
    for _ in range(2):
        leader.gate.release()
        await trio.testing.wait_all_tasks_blocked()
    assert [r.session for r in leader.requests[MUTATES_IN_FLIGHT_MAX:]] == [ONE, OTHER]


async def test_a_failure_meets_all_who_shared_the_request(held, nursery):
    leader, mutations = held
    answers = {}
    leader.fail = PeerUnreachable("gone")
    await under_way(nursery, mutations, range(MUTATES_IN_FLIGHT_MAX + 2), answers)
    for _ in range(MUTATES_IN_FLIGHT_MAX + 1):
        leader.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert set(answers.values()) == {leader.fail}
    assert len(answers) == MUTATES_IN_FLIGHT_MAX + 2


async def test_who_gives_up_does_not_hold_up_the_others(held, nursery):
    leader, mutations = held
    answers = {}
    await under_way(nursery, mutations, range(MUTATES_IN_FLIGHT_MAX), answers)
    with trio.move_on_after(0.01):
        await carry_out(mutations, command(98))
    await under_way(nursery, mutations, [99], answers)
    for _ in range(MUTATES_IN_FLIGHT_MAX + 1):
        leader.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert answers[99] == "99"


async def test_what_is_too_large_for_an_entry_is_refused_here(held):
    leader, mutations = held
    with pytest.raises(PosixError) as refused:
        await carry_out(mutations, command(1, COMMAND_BYTES_MAX))
    assert refused.value.errno == errno.E2BIG
    assert leader.requests == []


async def test_many_at_once_share_a_request_and_one_that_is_too_large_stays_behind(held):
    leader, mutations = held
    leader.gate.release()
    commands = [command(1), command(2, COMMAND_BYTES_MAX), command(3)]
    first, second, third = await mutations.carry_out(ONE, commands)
    assert (first.outcome.text, third.outcome.text) == ("1", "3")
    assert isinstance(second, PosixError)
    assert leader.sizes == [2]


async def test_who_gives_up_on_many_is_told_when_they_are_decided(held, nursery):
    leader, mutations = held
    settled = []
    with trio.move_on_after(0.01):
        await mutations.carry_out(ONE, [command(1), command(2)], lambda: settled.append(True))
    assert not settled
    leader.gate.release()
    await trio.testing.wait_all_tasks_blocked()
    assert settled
