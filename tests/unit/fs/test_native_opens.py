"""Files that the compiled part opens by itself: which, until when, and who knows that they are open."""

import os

import pytest
import trio

from harness.vfs_world import Client, world
from shoalfs.fs.releases import _DELAY_S
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.messages import SetAttr
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path) as running:
        yield running


async def offered(client: Client, name: bytes) -> InodeId:
    """Read the file, until the compiled part may open it."""
    ino = (await client.vfs.lookup(ROOT, ROOT_INODE, name)).ino
    with trio.fail_after(10):
        while ino not in client.compiled.opens:
            await client.read_file(name)
            await trio.sleep(2 * _DELAY_S)
    return ino


async def opened(client: Client, name: bytes) -> tuple[InodeId, int]:
    ino = await offered(client, name)
    number = client.compiled.open(ino)
    assert number is not None
    return ino, number


async def close(client: Client, ino: InodeId, number: int) -> None:
    """As the kernel: the compiled part is asked first."""
    if not client.compiled.release(ino):
        await client.vfs.flush(number)
        await client.vfs.release(number, ino)


async def read(client: Client, ino: InodeId, number: int) -> bytes:
    await client.vfs.adopt(number, ino)
    return bytes(await client.vfs.read(number, 0, 100))


async def test_a_file_that_was_read_is_opened_without_a_word(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, number = await opened(one, b"f")
        assert not one.handles.registered
        await close(one, ino, number)
        assert one.compiled.opens == {ino: 0}


async def test_what_is_not_read_whole_or_not_released_yet_is_not_offered(cluster):
    async with cluster.client() as one:
        ino, number = await one.make(b"f")
        await one.vfs.write(number, 0, b"x")
        assert one.compiled.opens == {}
        await one.vfs.flush(number)
        await one.vfs.release(number)
        assert ino in one.releases, "the leader counts it as open"
        assert one.compiled.opens == {}


@pytest.mark.parametrize("data", [b"", b"bytes"])
async def test_a_file_that_ends_with_a_hole_is_not_taken_to_end_before_it(cluster, data):
    async with cluster.client() as one:
        ino = await one.write_file(b"f", data)
        await one.vfs.setattr(SetAttr(ROOT, ino, size_bytes=5_000))
        await offered(one, b"f")
        assert ino not in one.compiled.data, "its inline bytes are not all of it"
        assert await one.read_file(b"f") == data.ljust(5_000, b"\0")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
async def test_an_open_that_python_answers_takes_it_back(cluster, flags):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, native = await opened(one, b"f")
        number, _ = await one.open(b"f", flags)
        assert one.compiled.opens == {}
        assert one.handles.holders(ino) == 2
        await one.close(number)
        assert one.handles.holders(ino) == 1
        await close(one, ino, native)
        assert one.handles.open_inodes() == ()


async def test_it_is_read_through_the_handle(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, first = await opened(one, b"f")
        second = one.compiled.open(ino)
        assert await read(one, ino, first) == b"bytes"
        with pytest.raises(PosixError):
            await one.vfs.write(first, 0, b"x")
        await close(one, ino, first)
        assert await read(one, ino, second) == b"bytes"
        await close(one, ino, second)
        assert one.handles.open_inodes() == ()
        assert await offered(one, b"f") == ino


async def test_a_change_elsewhere_takes_it_back_and_is_read(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"f", b"first")
        ino, number = await opened(one, b"f")
        await two.write_file(b"f", b"other")
        assert one.compiled.opens == {}
        assert ino in one.handles.registered, "the leader was told with the acknowledgement"
        assert ino in one.kernel.pages
        assert await read(one, ino, number) == b"other"
        await close(one, ino, number)
        await offered(one, b"f")


@pytest.mark.parametrize("here", [True, False])
async def test_an_open_file_without_a_name_keeps_its_bytes(cluster, here):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"f", b"bytes")
        ino, number = await opened(one, b"f")
        await (one if here else two).vfs.unlink(ROOT, ROOT_INODE, b"f")
        await trio.sleep(2 * _DELAY_S)
        assert one.compiled.opens == {}
        one.data_path._files.clear()  # nothing of it is left here
        assert await read(one, ino, number) == b"bytes"
        await close(one, ino, number)
        assert one.compiled.opens == {}
        with pytest.raises(PosixError), trio.fail_after(10):
            while True:
                await two.vfs.getattr(ino)
                await trio.sleep(0.05)


async def test_a_file_that_replaces_an_open_one_leaves_its_bytes(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        await one.write_file(b"g", b"others")
        ino, number = await opened(one, b"f")
        await one.vfs.rename(ROOT, ROOT_INODE, b"g", ROOT_INODE, b"f", 0)
        assert ino in one.handles.registered
        assert await read(one, ino, number) == b"bytes"


async def test_changes_of_this_mount_take_it_back(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, number = await opened(one, b"f")
        await one.vfs.setattr(SetAttr(ROOT, ino, size_bytes=2))
        assert one.compiled.opens == {}
        assert await read(one, ino, number) == b"by"


async def test_without_leases_nothing_is_opened(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, _ = await opened(one, b"f")
        one.coherent.drop_everything()
        assert one.compiled.opens == {}
        assert one.handles.open_inodes() == (ino,)


async def test_a_new_leader_is_told_of_it(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, number = await opened(one, b"f")
        await cluster.stop_mds()
        await cluster.start_mds()
        with trio.fail_after(30):
            while ino not in one.handles.registered:
                await trio.sleep(0.05)
        assert one.compiled.opens == {}
        async with cluster.client() as two:
            await two.vfs.unlink(ROOT, ROOT_INODE, b"f")
        assert await read(one, ino, number) == b"bytes"


async def test_a_lost_lock_is_known_to_every_handle(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", b"bytes")
        ino, number = await opened(one, b"f")
        one.handles.lose([ino])
        assert one.compiled.opens == {}
        with pytest.raises(PosixError):
            await read(one, ino, number)
        await close(one, ino, number)
        number, _ = await one.open(b"f", os.O_RDONLY)
        assert bytes(await one.vfs.read(number, 0, 10)) == b"bytes"
