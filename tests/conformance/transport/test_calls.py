"""What every carrier has to do: calls, notifications, credits, and how they end."""

import errno
import os
import time
from functools import partial

import pytest
import trio

from harness.echo_server import (
    ADMIN,
    BACKWARDS,
    BUG,
    CALL_BACK,
    CLUSTER,
    ECHO,
    ECHO_OF_TEXT,
    FAIL,
    KEEP,
    MISSING,
    NOTE,
    PROMPT,
    WAIT,
    Number,
    Server,
    Text,
)
from shoalfs.transport import outbox, rpc
from shoalfs.transport.errors import (
    BadMessage,
    DeadlineExceeded,
    NotAllowed,
    NotLeader,
    PeerUnreachable,
    PosixError,
    UnknownMethod,
    VersionMismatch,
    WrongCluster,
)
from shoalfs.transport.limits import KIB, MIB
from shoalfs.transport.service import Service


async def test_echo(place):
    server = await place.start()
    async with place.network() as network:
        reply = await network.call(server.address, ECHO, Number(7), b"raw")
        assert reply.body == Number(7)
        assert bytes(reply.payload) == b"raw"
        assert (await network.call(server.address, ECHO, Number(8))).payload.nbytes == 0
        assert (await network.hello(server.address)).name == "server"
    assert server.service.counters["connections"] == 1


async def test_a_payload_of_64_mib_goes_both_ways(place):
    server = await place.start()
    parts = [os.urandom(48 * MIB), b"", memoryview(os.urandom(16 * MIB))]
    async with place.network() as network:
        reply = await network.call(server.address, ECHO, Number(1), parts, timeout_ms=60_000)
    assert reply.payload == parts[0] + bytes(parts[2])


@pytest.mark.parametrize("size", [1, 32 * KIB - 4, 32 * KIB, 64 * KIB - 36, 64 * KIB, 1 * MIB + 1])
async def test_payloads_around_the_sizes_of_buffers(place, size):
    server = await place.start()
    payload = os.urandom(size)
    async with place.network() as network, trio.open_nursery() as nursery:

        async def check(n):
            reply = await network.call(server.address, ECHO, Number(n), payload)
            assert (reply.body.value, reply.payload) == (n, payload)

        for n in range(20):
            nursery.start_soon(check, n)


async def test_many_calls_at_once(place):
    server = await place.start()
    replies = {}

    async def call(network, n):
        replies[n] = (await network.call(server.address, ECHO, Number(n), str(n).encode())).payload

    async with place.network() as network, trio.open_nursery() as nursery:
        for n in range(1000):
            nursery.start_soon(call, network, n)
    assert {n: int(bytes(payload)) for n, payload in replies.items()} == {n: n for n in range(1000)}
    assert server.service.counters["connections"] == 1


async def test_replies_come_out_of_order(place):
    server = await place.start()
    order = []

    async def call(network, n):
        await network.call(server.address, BACKWARDS, Number(n))
        order.append(n)

    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(call, network, 0)
        await trio.testing.wait_all_tasks_blocked()
        await call(network, 1)
        server.released.set()
    assert order == [1, 0]


async def test_errors_cross_with_code_and_text(place):
    server = await place.start()
    async with place.network() as network:
        with pytest.raises(PosixError, match="no such thing") as posix:
            await network.call(server.address, FAIL, Number(errno.ENOENT))
        assert posix.value.errno == errno.ENOENT
        with pytest.raises(NotLeader, match=r"^tcp:10\.1\.2\.3:7400$"):
            await network.call(server.address, FAIL, Number(0))


async def test_refused_requests_leave_the_connection_usable(place):
    server = await place.start()
    async with place.network() as network:
        with pytest.raises(UnknownMethod):
            await network.call(server.address, MISSING, Number(1), os.urandom(MIB))
        with pytest.raises(NotAllowed, match="role 'client'"):
            await network.call(server.address, ADMIN, Number(1), os.urandom(MIB))
        with pytest.raises(BadMessage, match="Number"):
            await network.call(server.address, ECHO_OF_TEXT, Text("not a number"))
        assert (await network.call(server.address, ECHO, Number(2))).body == Number(2)
    assert server.service.counters["connections"] == 1
    assert server.service.counters["requests_refused"] == 3


async def test_the_role_that_is_allowed(place):
    server = await place.start()
    async with place.network(role="admin") as network:
        assert (await network.call(server.address, ADMIN, Number(1))).body == Number(1)


async def test_too_large_a_request_is_not_sent(place):
    server = await place.start()
    async with place.network() as network:
        with pytest.raises(BadMessage):
            await network.call(server.address, WAIT, Number(1), b"no payload is allowed here")
        assert (await network.call(server.address, ECHO, Number(2))).body == Number(2)


async def test_deadline(place, until):
    server = await place.start()
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(0))  # dialling is not what is timed here
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await network.call(server.address, WAIT, Number(1), timeout_ms=60)
        assert 0.05 < time.monotonic() - began < 2
        await until(lambda: server.cancelled == 1)  # the server does not work on for nobody
        assert (await network.call(server.address, ECHO, Number(2))).body == Number(2)
    assert server.service.counters["connections"] == 1


async def test_a_cancelled_call_leaves_the_connection_usable(place):
    server = await place.start(credits=2)
    async with place.network() as network:
        for _ in range(5):  # more than there are credits: the late answers bring them back
            with trio.move_on_after(0.01):
                await network.call(server.address, WAIT, Number(1), timeout_ms=100)
        server.released.set()
        for n in range(5):
            assert (await network.call(server.address, ECHO, Number(n))).body == Number(n)
    assert server.service.counters["connections"] == 1


async def test_calls_beyond_the_credit_wait(place, until):
    server = await place.start(credits=4)
    done = []

    async def call(network, n):
        done.append((await network.call(server.address, WAIT, Number(n))).body.value)

    async with place.network() as network, trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(call, network, n)
        await until(lambda: server.running == 4)
        await trio.sleep(0.02)
        assert server.running == 4
        server.released.set()
    assert sorted(done) == list(range(20))
    assert server.running_most == 4


async def test_waiting_for_credit_ends_at_the_deadline(place, until):
    server = await place.start(credits=1)
    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(partial(network.call, server.address, WAIT, Number(1)))
        await until(lambda: server.running == 1)
        with pytest.raises(DeadlineExceeded):
            await network.call(server.address, WAIT, Number(2), timeout_ms=30)
        server.released.set()
    assert server.running_most == 1


async def test_a_caller_that_does_not_use_its_credit_passes_it_on(place, until):
    server = await place.start(credits=1)

    async def too_large(network):
        with pytest.raises(BadMessage):
            await network.call(server.address, WAIT, Number(1), b"no payload is allowed here")

    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(partial(network.call, server.address, WAIT, Number(0)))
        await until(lambda: server.running == 1)
        nursery.start_soon(too_large, network)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(network.call, server.address, ECHO, Number(2)))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(30):
            server.released.set()
            await until(lambda: server.service.counters["requests"] == 2)


async def test_peer_death_fails_all_outstanding_calls_at_once(place, until):
    server = await place.start(credits=3)
    failed = []

    async def call(network, n):
        with pytest.raises(PeerUnreachable):
            await network.call(server.address, WAIT, Number(n))
        failed.append(n)

    async with place.network() as network:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for n in range(6):  # three outstanding, three that wait for credit
                    nursery.start_soon(call, network, n)
                await until(lambda: server.running == 3)
                server.scope.cancel()
    assert len(failed) == 6


async def test_the_handlers_of_a_lost_client_are_cancelled(place, until):
    server = await place.start()
    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(partial(network.call, server.address, WAIT, Number(1)))
        await until(lambda: server.running == 1)
        nursery.cancel_scope.cancel()
    await until(lambda: server.cancelled == 1)


async def test_drop_closes_and_the_next_call_connects_again(place, until):
    server = await place.start()
    async with place.network() as network, trio.open_nursery() as nursery:

        async def call():
            with pytest.raises(PeerUnreachable, match="closed by this side"):
                await network.call(server.address, WAIT, Number(1))

        nursery.start_soon(call)
        await until(lambda: server.running == 1)
        await network.drop(server.address)
        assert (await network.call(server.address, ECHO, Number(2))).body == Number(2)
    assert server.service.counters["connections"] == 2


async def test_wrong_cluster_reaches_the_caller(place):
    server = await place.start()
    async with place.network(cluster_id=bytes(16)) as network:
        with pytest.raises(WrongCluster):
            await network.call(server.address, ECHO, Number(1))
    assert server.service.counters["hellos_refused"] == 1
    assert server.service.counters["requests"] == 0


async def test_a_tool_that_does_not_know_the_cluster_learns_it(place):
    server = await place.start()
    async with place.network(cluster_id=b"", role="admin") as network:
        assert (await network.hello(server.address)).cluster_id == CLUSTER
        assert (await network.call(server.address, ADMIN, Number(1))).body == Number(1)


async def test_another_version_reaches_the_caller(place):
    server = await place.start()
    async with place.network(version=99) as network:
        with pytest.raises(VersionMismatch, match="99"):
            await network.call(server.address, ECHO, Number(1))


async def test_notifications_arrive_in_order(place, until):
    server = await place.start()
    async with place.network() as network:
        await network.call(server.address, ECHO, Number(0))
        for n in range(3000):  # more than are queued: the sender is held back
            await network.notify(server.address, NOTE, Number(n), b"x" * 100)
        await until(lambda: len(server.notes) == 3000)
    assert server.notes == list(range(3000))


async def test_a_notification_that_nobody_takes_is_dropped(place):
    server = await place.start()
    async with place.network() as network:
        await network.notify(server.address, NOTE, Number(1))  # not connected: dropped, and dialled
        assert network.counters["notifications_dropped"] == 1
        await network.call(server.address, ECHO, Number(0))
        await network.notify(server.address, MISSING, Number(2))
        await network.notify(server.address, ADMIN, Number(3))
        assert (await network.call(server.address, ECHO, Number(4))).body == Number(4)
    assert server.notes == []
    assert server.service.counters["connections"] == 1


async def test_the_server_can_ask_the_client(place):
    server = await place.start()
    service = Service()

    async def echo(call, request, payload):
        assert call.peer.name == "server"
        return request

    service.add(ECHO, echo)
    async with place.network(service) as network:
        assert (await network.call(server.address, CALL_BACK, Number(5))).body == Number(6)


async def test_payloads_held_at_one_time_are_bounded(place, until, monkeypatch):
    monkeypatch.setattr(rpc, "PAYLOAD_IN_FLIGHT_BYTES_MAX", 3 * MIB)
    server = await place.start()

    async def call(network):
        await network.call(server.address, KEEP, Number(1), bytes(MIB))

    async with place.network() as one, place.network() as two, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call, one)
            nursery.start_soon(call, two)
        await until(lambda: server.running == 3)
        await trio.sleep(0.05)
        assert server.running == 3
        server.released.set()
    assert server.service.counters["requests"] == 10


async def test_a_bug_in_a_handler_ends_the_server(place):
    server = Server()
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            place.nursery = nursery
            await place.start(server)
            async with place.network() as network:
                with pytest.raises(PeerUnreachable):
                    await network.call(server.address, BUG, Number(1))
                await trio.sleep(5)


async def test_connections_beyond_the_limit_are_closed(place, monkeypatch):
    monkeypatch.setattr(rpc, "CONNECTIONS_MAX", 1)
    server = await place.start()
    async with place.network() as one, place.network() as two:
        await one.call(server.address, ECHO, Number(1))
        with pytest.raises(PeerUnreachable):
            await two.call(server.address, ECHO, Number(1))
        await one.call(server.address, ECHO, Number(2))
    assert server.service.counters["connections_refused"] == 1


async def test_bulk_both_ways_over_one_connection(place, monkeypatch):
    """Requests and answers that each exceed what may be queued do not wait for one another."""
    monkeypatch.setattr(outbox, "SEND_QUEUED_BYTES_MAX", 1 * MIB)
    server = await place.start()
    payload = bytes(2 * MIB)
    async with place.network() as network:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for n in range(12):
                    nursery.start_soon(network.call, server.address, ECHO, Number(n), payload)


async def test_a_prompt_answers_fails_or_leaves_it_to_the_handler(place):
    server = await place.start()
    async with place.network() as network:
        reply = await network.call(server.address, PROMPT, Number(2000), b"raw")
        assert (reply.body, bytes(reply.payload)) == (Number(2000), b"raw")
        with pytest.raises(PosixError) as refused:
            await network.call(server.address, PROMPT, Number(1000))
        assert refused.value.errno == errno.EPERM
        with pytest.raises(PosixError) as handled:
            await network.call(server.address, PROMPT, Number(errno.EXDEV))
        assert handled.value.errno == errno.EXDEV
    assert server.service.counters["requests"] == 3


async def test_a_prompt_may_answer_later_and_in_another_order(place):
    server = await place.start()
    answers = []
    async with place.network() as network, trio.open_nursery() as nursery:

        async def ask():
            try:
                answers.append((await network.call(server.address, PROMPT, Number(1001))).body)
            except PosixError as error:
                answers.append(error.errno)

        for _ in range(3):
            nursery.start_soon(ask)
        while len(server.held) < 3:
            await trio.sleep(0.001)
        assert (await network.call(server.address, PROMPT, Number(2000))).body == Number(2000)
        (first, request), (second, _), (third, _) = server.held
        third(PosixError(errno.EIO))
        second(request)
        first((request, b"with bytes"))
    assert sorted(map(str, answers)) == sorted(map(str, [Number(1001), Number(1001), errno.EIO]))


async def test_an_answer_after_the_end_of_the_connection_is_dropped(place, until):
    server = await place.start()
    async with place.network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(network.call, server.address, PROMPT, Number(1001), bytes(1000))
        await until(lambda: server.held)
        nursery.cancel_scope.cancel()
    await until(lambda: not server.service.accepted)
    ((done, request),) = server.held
    done(request)
    async with place.network() as network:
        assert (await network.call(server.address, PROMPT, Number(2000))).body == Number(2000)


async def test_an_answer_of_a_prompt_that_is_too_large_is_an_error(place, until):
    server = await place.start()
    async with place.network() as network, trio.open_nursery() as nursery:

        async def ask():
            with pytest.raises(BadMessage):
                await network.call(server.address, PROMPT, Number(1001))

        nursery.start_soon(ask)
        await until(lambda: server.held)
        server.held[0][0]((Number(1), bytes(MIB + 1)))
