"""Files on a mount that is told of no open: what counts as open, and which pages are dropped when."""

import pytest
import trio
import trio.testing

from harness.vfs_world import Client, world
from shoalfs.fs.handles import REPORTED_MAX, Handles
from shoalfs.fs.known_files import KnownFiles
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.releases import _DELAY_S
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.messages import SetAttr
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from unit.fs.test_coherent import live_sessions


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path) as running:
        yield running


def known_files(client: Client) -> KnownFiles:
    client.vfs._pages = KernelPages(client.kernel.forget_pages)
    return KnownFiles(client.vfs, client.handles, client.vfs._pages, client.kernel)


async def look_up(client: Client, known: KnownFiles, name: bytes) -> InodeId:
    """As the kernel does before it opens: it looks at the attributes again if it may not keep them."""
    inode = await client.vfs.lookup(ROOT, ROOT_INODE, name)
    await known.before_attributes(inode)
    known.told(inode)
    if not client.vfs.attributes_left_s(inode.ino):
        inode = await client.vfs.getattr(inode.ino)
        await known.before_open(inode)
    return inode.ino


async def read(client: Client, known: KnownFiles, ino: InodeId) -> bytes:
    return bytes(await client.vfs.read(await known.reading(ino), 0, 100))


async def test_what_the_kernel_knows_is_open_until_it_forgets(cluster):
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"bytes")
        ino = await look_up(two, known, b"f")
        assert await look_up(two, known, b"f") == ino
        assert two.handles.holders(ino) == 1
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert ino in two.handles.registered
        assert await read(two, known, ino) == b"bytes"
        known.forgotten(ino, 1)
        assert await read(two, known, ino) == b"bytes"
        known.forgotten(ino, 1)
        assert two.handles.open_inodes() == ()
        with pytest.raises(PosixError), trio.fail_after(10):
            while True:
                await one.vfs.getattr(ino)
                await trio.sleep(_DELAY_S)


async def test_what_is_not_leased_is_open_for_the_leader(cluster):
    """Somebody writes to it all the time."""
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"bytes")
        ino = await look_up(two, known, b"f")
        two.coherent.cache.drop(inodes=[ino])
        two.handles.registered.clear()
        two.coherent.cache.learn_inode = lambda asking, inode: None
        await known.before_open(await two.vfs.getattr(ino))
        assert ino in two.handles.registered
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert await read(two, known, ino) == b"bytes"


async def test_what_is_known_again_at_once_is_not_reported_as_closed(cluster):
    """The kernel forgets a file and asks for it again before the leader was told that it is closed."""
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"bytes")
        ino = await look_up(two, known, b"f")
        await one.vfs.setattr(SetAttr(ROOT, ino, mode=0o600))  # the acknowledgement has said that it is open
        assert ino in two.handles.registered
        inode = await two.vfs.getattr(ino)
        known.forgotten(ino, 1)
        known.told(inode)
        await one.vfs.setattr(SetAttr(ROOT, ino, mode=0o640))
        await trio.sleep(3 * _DELAY_S)
        assert (await live_sessions(cluster))[two.session.session].opens == 1
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert await read(two, known, ino) == b"bytes"


async def test_directories_and_strangers_count_for_nothing(cluster):
    async with cluster.client() as one:
        known = known_files(one)
        await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)
        ino = await look_up(one, known, b"d")
        known.forgotten(ino, 1)
        known.forgotten(InodeId(999), 3)
        assert one.handles.open_inodes() == ()


async def test_a_recall_drops_pages_before_it_is_acknowledged(cluster):
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        recalled: list[tuple[InodeId, ...]] = []
        two.coherent.on_recalled = recalled.append
        await one.write_file(b"f", b"first")
        ino = await look_up(two, known, b"f")
        assert await read(two, known, ino) == b"first"
        two.kernel.pages.clear()
        await one.write_file(b"f", b"other")
        assert ino in two.kernel.pages
        assert (ino,) in recalled
        assert await read(two, known, await look_up(two, known, b"f")) == b"other"


async def test_attributes_of_other_contents_are_not_told_beside_old_pages(cluster):
    """Nothing was leased, so nobody pushed: another mount writes, and sets the time back."""
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"first")
        ino = await look_up(two, known, b"f")
        times = (await two.vfs.getattr(ino)).mtime_ns
        await read(two, known, ino)
        number, _ = await one.open(b"f", 1)
        await one.vfs.write(number, 0, b"other")
        await one.vfs.setattr(SetAttr(ROOT, ino, mtime_ns=times))
        two.kernel.pages.clear()
        inode = await two.vfs.getattr(ino)
        assert (inode.mtime_ns, inode.size_bytes) == (times, 5), "the kernel sees no difference"
        await known.before_open(inode)
        assert two.kernel.pages == [ino]
        await known.before_open(inode)
        assert two.kernel.pages == [ino], "once"
        assert await read(two, known, ino) == b"other"
        await one.close(number)


async def test_where_the_kernel_sees_a_difference_it_drops_pages_by_itself(cluster):
    """It would ignore the answer, and with it the new size, if it were told to."""
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"first")
        ino = await look_up(two, known, b"f")
        await read(two, known, ino)
        await one.write_file(b"f", b"longer")
        two.kernel.pages.clear()
        await look_up(two, known, b"f")
        assert two.kernel.pages == []
        assert await read(two, known, ino) == b"longer"


async def test_nobody_is_told_while_pages_are_being_dropped(cluster):
    async with cluster.client() as one:
        known = known_files(one)
        await one.write_file(b"f", b"bytes")
        inode = await one.vfs.lookup(ROOT, ROOT_INODE, b"f")
        known.told(inode)
        one.vfs._pages.valid_at(inode.ino, inode.data_version - 1)
        dropped = trio.Event()

        async def drop(inodes):
            await dropped.wait()

        one.kernel.drop_pages = drop
        order = []

        async def tell(who):
            await known.before_attributes(inode)
            order.append(who)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell, 1)
            nursery.start_soon(tell, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            dropped.set()
        assert sorted(order) == [1, 2]


async def test_pages_of_which_the_version_is_forgotten_are_dropped(cluster, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.pages._ENTRIES_MAX", 2)
    async with cluster.client() as one:
        known = known_files(one)
        inodes = [await one.write_file(b"f%d" % n, b"bytes") for n in range(3)]
        for ino in inodes:
            await look_up(one, known, b"f%d" % inodes.index(ino))
        one.kernel.pages.clear()
        for ino in (*inodes, inodes[0]):
            await read(one, known, ino)
        assert one.kernel.pages == [inodes[1], inodes[2], inodes[0], inodes[1]], "the ones that were used least"


async def test_a_new_leader_is_told(cluster):
    async with cluster.client() as one, cluster.client() as two:
        known = known_files(two)
        await one.write_file(b"f", b"bytes")
        ino = await look_up(two, known, b"f")
        await cluster.stop_mds()
        await cluster.start_mds()
        with trio.fail_after(30):
            while ino not in two.handles.registered:
                await trio.sleep(0.05)
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert await read(two, known, ino) == b"bytes"


def test_what_is_told_of_fits_a_message():
    handles = Handles()
    for ino in range(REPORTED_MAX + 10):
        handles.hold(InodeId((1 << 40) + ino))
    reported = handles.reported()
    assert len(reported) == REPORTED_MAX
    assert reported[0] == (1 << 40) + REPORTED_MAX + 9, "the newest"
    assert len(handles.open_inodes()) == REPORTED_MAX + 10
