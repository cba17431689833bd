"""Names that a listing told the kernel of are forgotten before an acknowledgement, also by a kernel that takes them in
late."""

import pytest
import trio

from harness.vfs_world import world
from shoalfs.fs.directory_pages import DirectoryPages, Timeouts
from shoalfs.fs.unparsed import Unparsed
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.ids import ROOT_INODE, InodeId
from unit.fs.test_coherent import leased

A, B = InodeId(10), InodeId(11)
THREAD = 77


class Threads:
    """Each asks for something at its time."""

    def __init__(self, **asks_s):
        self._asks_s = asks_s

    def listen_to(self, thread):
        return trio.current_time()

    def has_asked(self, thread, since):
        return since < self._asks_s.get(f"t{thread}", since) <= trio.current_time()


async def settled(unparsed, *directories):
    """What settle says, and how long it took."""
    began_s = trio.current_time()
    return await unparsed.settle(directories or None), trio.current_time() - began_s


async def test_nothing_is_waited_for_where_nothing_is_on_its_way(autojump_clock):
    unparsed = Unparsed(Threads())
    assert await settled(unparsed) == (False, 0)
    unparsed.taken_in(1)
    unparsed.sent(1, A, 0)
    assert await settled(unparsed, B) == (False, 0)
    unparsed.taken_in(1)
    assert await settled(unparsed, A) == (False, 0)


async def test_the_next_request_on_the_handle_ends_the_wait(autojump_clock):
    unparsed = Unparsed(Threads())
    unparsed.sent(1, A, 0)
    unparsed.sent(2, A, 0)
    async with trio.open_nursery() as nursery:

        async def ask():
            await trio.sleep(0.25)
            unparsed.taken_in(1)
            unparsed.sent(1, A, 0)  # this one is not waited for: it was made with what was known then
            await trio.sleep(0.25)
            unparsed.taken_in(2)

        nursery.start_soon(ask)
        assert await settled(unparsed, A) == (True, pytest.approx(0.5))


async def test_a_program_that_stops_in_the_middle_is_waited_for_a_second_from_its_part(autojump_clock):
    unparsed = Unparsed(Threads())
    unparsed.sent(1, A, 0)
    await trio.sleep(0.75)
    unparsed.sent(2, B, 0)
    assert await settled(unparsed, A) == (True, pytest.approx(0.25))
    assert await settled(unparsed) == (True, pytest.approx(0.75))
    assert await settled(unparsed) == (False, 0)
    unparsed.sent(1, A, 0)
    began_s = trio.current_time()
    assert await unparsed.settle([A], 0.25) is True
    assert trio.current_time() - began_s == pytest.approx(0.25)


async def test_another_request_of_the_thread_ends_the_wait(autojump_clock):
    now_s = trio.current_time()
    unparsed = Unparsed(Threads(t5=now_s + 0.25, t6=now_s + 9))
    unparsed.sent(1, A, 5)
    unparsed.sent(2, B, 6)
    assert await settled(unparsed, A) == (True, pytest.approx(0.25, abs=0.01))
    assert await settled(unparsed, B) == (True, pytest.approx(0.75, abs=0.01))


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


async def part_sent(client):
    """A program of the client has begun to list the root: its pages and its handle."""
    pages = DirectoryPages(client.vfs, lambda: True, Timeouts(60.0, 60.0))
    with trio.fail_after(5):  # until the names are leased
        while True:
            handle = client.vfs.opendir(ROOT, ROOT_INODE)
            if any(entry[3] for entry in (await pages.after(handle, 0, 1 << 20, THREAD)).entries):
                return pages, handle
            client.vfs.releasedir(handle)
            await trio.sleep(0.02)


@pytest.mark.parametrize("how", ["read on", "closed", "something else"])
async def test_a_recall_is_acknowledged_when_the_kernel_has_forgotten_what_it_took_in_late(cluster, how):
    async with cluster.client() as one, cluster.client() as two, trio.open_nursery() as nursery:
        await leased(one, two)
        await one.write_file(b"f", b"")
        pages, handle = await part_sent(two)
        done = trio.Event()

        async def unlink():
            await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
            done.set()

        before = two.kernel.names
        nursery.start_soon(unlink)
        with trio.fail_after(5):
            while two.kernel.names == before:
                await trio.sleep(0.001)
            await trio.sleep(0.2)
            assert not done.is_set()
            told = two.kernel.names
            if how == "closed":
                two.vfs.releasedir(handle)
            elif how == "something else":
                two.compiled.asked.add(THREAD)
            else:
                await pages.after(handle, 1 << 40, 1 << 20)
            await done.wait()
        assert two.kernel.names > told


async def test_a_listing_with_names_that_may_not_be_kept_holds_nobody_up(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        await one.write_file(b"f", b"")
        await part_sent(two)
        handle = two.vfs.opendir(ROOT, ROOT_INODE)
        two.coherent.unparsed = Unparsed(Threads())
        await DirectoryPages(two.vfs, lambda: False, Timeouts(60.0, 60.0)).after(handle, 0, 1 << 20)
        assert await two.coherent.unparsed.settle() is False
