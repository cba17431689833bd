"""The stream over a queue pair: order, credits, slots, and its end."""

import random

import pytest
import trio

from harness.verbs import simulated_pairs
from shoalfs.transport import link as link_module
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import KIB, MIB, RDMA_BULK_SLOT_BYTES
from shoalfs.transport.rdma_link import VerbsLink
from shoalfs.transport.rdma_memory import Pool


async def send(link, *buffers):
    if not link.send_now(buffers):
        await link.drain()


async def receive(link, count):
    data = bytearray()
    while len(data) < count:
        view = memoryview(bytearray(min(count - len(data), 100_000)))
        got = await link.receive_into(view)
        assert got, "ended early"
        data += view[:got]
    return bytes(data)


@pytest.fixture
def links(nursery):
    chance = random.Random(1)
    dialler, acceptor = simulated_pairs(nursery, lambda: chance.choice([0, 0, 0.0001]))
    return VerbsLink(dialler), VerbsLink(acceptor)


@pytest.mark.parametrize("size", [1, 4083, 4084, 4085, 8191, 8192, 8193, 256 * KIB, 256 * KIB + 1, 3 * MIB + 5])
async def test_a_stream_arrives_whole_both_ways(links, size):
    for here, there in (links, links[::-1]):
        data = random.Random(size).randbytes(size)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, here, data)
                assert await receive(there, size) == data


async def test_heads_and_payloads_of_all_sizes(nursery):
    chance = random.Random(1)
    for turn in (1, -1):
        links = [VerbsLink(pair) for pair in simulated_pairs(nursery, lambda: chance.choice([0, 0, 0.0001]))]
        with trio.fail_after(60):
            await check_a_mixture(*links[::turn], chance)


async def check_a_mixture(here, there, chance):
    sent = bytearray()

    async def sender():
        for _ in range(100):
            sizes = [chance.choice([1, 60, 3000, 5000, 9000, 70_000, 700_000]) for _ in range(chance.randint(1, 5))]
            buffers = [chance.randbytes(size) for size in sizes]
            for buffer in buffers:
                sent.extend(buffer)
            await send(here, *buffers)
        here.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender)
        got = bytearray()
        view = memoryview(bytearray(64 * KIB))
        while count := await there.receive_into(view):
            got += view[:count]
    assert got == sent


async def test_both_directions_full_at_once(links):
    data = random.Random(3).randbytes(5 * MIB)

    async def check(link):
        assert await receive(link, len(data)) == data

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(send, link, data)
                nursery.start_soon(check, link)


async def test_many_small_messages_one_way_need_no_answer(links):
    one, other = links
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def sender():
                for n in range(2000):
                    await send(one, n.to_bytes(4, "little"))

            nursery.start_soon(sender)
            data = await receive(other, 8000)
    assert data == b"".join(n.to_bytes(4, "little") for n in range(2000))


async def test_who_is_not_read_cannot_send_on(links, monkeypatch):
    monkeypatch.setattr(link_module, "STALL_TIMEOUT_MS", 50)
    for here in links:
        assert not here.send_now([bytes(30 * MIB)])
        with pytest.raises(PeerUnreachable, match="no byte moved"):
            await here.drain()


async def test_bulk_is_not_fetched_before_its_head_is_taken(nursery):
    dialler, acceptor = simulated_pairs(nursery, lambda: 0)
    there, here = VerbsLink(dialler), VerbsLink(acceptor)
    reads = []
    post_read = acceptor.post_read
    acceptor.post_read = lambda slot, size: (reads.append(slot), post_read(slot, size))
    await send(there, b"head", bytes(100 * KIB))
    view = memoryview(bytearray(10))
    assert await here.receive_into(view) == 4
    await trio.sleep(0.01)
    assert reads == []
    assert await receive(here, 100 * KIB) == bytes(100 * KIB)
    assert reads == [0]


async def test_what_was_handed_over_arrives_after_close(links):
    here, there = links
    data = bytes(RDMA_BULK_SLOT_BYTES) + b"last words"
    await send(here, data)
    here.close()
    assert await receive(there, len(data)) == data
    assert await there.receive_into(memoryview(bytearray(10))) == 0


async def test_memory_comes_back_when_both_have_closed(nursery):
    pool = Pool(2)
    for _ in range(3):
        one, other = map(VerbsLink, simulated_pairs(nursery, lambda: 0, pool))
        await send(one, b"x" * 100_000)
        one.close()
        other.close()
        with trio.fail_after(5):
            while len(pool._free) < 2:
                await trio.sleep(0.001)


async def test_a_failed_operation_is_an_unreachable_peer(nursery):
    dialler, _ = simulated_pairs(nursery, lambda: 0)
    here = VerbsLink(dialler)
    async with trio.open_nursery() as inner:

        async def waits():
            with pytest.raises(PeerUnreachable):
                await here.receive_into(memoryview(bytearray(10)))

        inner.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        dialler.fail()
    with pytest.raises(PeerUnreachable):
        here.send_now([b"x"])
    here.close()
    assert dialler.closed


async def test_a_dead_peer_ends_the_stream_inside_bulk(nursery):
    dialler, acceptor = simulated_pairs(nursery, lambda: 0)
    there, here = VerbsLink(dialler), VerbsLink(acceptor)
    await send(there, b"head", bytes(100 * KIB))
    assert await here.receive_into(memoryview(bytearray(4))) == 4
    dialler.close()
    with pytest.raises(PeerUnreachable):
        await receive(here, 100 * KIB)


async def test_a_receive_that_is_cancelled_loses_nothing(links):
    one, other = links
    view = memoryview(bytearray(100))
    with trio.move_on_after(0.01):
        await other.receive_into(view)
    await send(one, b"later")
    assert await other.receive_into(view) == 5
