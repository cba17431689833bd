"""Files that were fetched before anybody opened them: the compiled part has their bytes, until when, and what follows
from their being read there."""

import os
import struct

import pytest
import trio

from harness.vfs_world import world
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.messages import SetAttr
from shoalfs.transport.ids import ROOT_INODE
from unit.fs.test_coherent import leased
from unit.fs.test_scans import asked, content, filled, list_root, read_all

FILES = 120


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["in its inode", "in a chunk"])
def has_chunk(request):
    return request.param


async def scanned(one, two, has_chunk=False):
    """``one`` has filled the root; ``two`` has read a few files of it, and the compiled part was offered others."""
    await leased(one, two)
    made = await filled(one)
    await list_root(two)
    await read_all(two, range(4))
    with trio.fail_after(5):
        while not (fetched := [n for n, ino in enumerate(made) if is_large(n) == has_chunk and offered(two, ino)]):
            await trio.sleep(0.01)
    number = fetched[0]
    return number, made[number]


def offered(client, ino):
    return ino in client.compiled.data and ino in client.vfs._scans._ready


def is_large(number):
    """Too large for its inode."""
    return len(content(number)) > 1_000


async def read_natively(client, ino):
    assert client.compiled.open(ino) is not None
    data = client.compiled.read(ino)
    assert client.compiled.release(ino)
    return data


async def noted(client):
    with trio.fail_after(5):
        while client.compiled.through:
            await trio.sleep(0.005)
    await trio.sleep(0.02)


async def test_what_was_fetched_is_read_without_a_word(cluster, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        questions = asked(two)
        assert await read_natively(two, ino) == content(number)
        assert not questions
        await noted(two)
        assert two.data_path.counters["scanned_used"] > 0


async def test_after_it_was_read_the_kernel_has_it_and_it_stays_open_to_all(cluster, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        await read_natively(two, ino)
        await noted(two)
        assert ino in two.compiled.opens
        handle, keep = await two.open(b"f%d" % number, os.O_RDONLY)
        assert keep, "the pages of the first read are good"
        await two.close(handle)


@pytest.mark.parametrize("was_read", [False, True])
async def test_a_change_elsewhere_takes_it_back_first(cluster, was_read, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        if was_read:
            await read_natively(two, ino)  # and it is not noted yet when the change comes
        handle, _ = await one.open(b"f%d" % number, os.O_WRONLY)
        await one.vfs.write(handle, 0, b"new")
        await one.close(handle)
        assert ino not in two.compiled.opens
        await trio.sleep(0.05)
        handle, keep = await two.open(b"f%d" % number, os.O_RDONLY)
        assert not keep, "the kernel's pages are old"
        assert bytes(await two.vfs.read(handle, 0, 1 << 20)) == b"new" + content(number)[3:]
        await two.close(handle)


async def test_it_is_removed_elsewhere_while_it_is_open_here(cluster, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        native = two.compiled.open(ino)
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f%d" % number)
        assert two.handles.holders(ino) == 1
        assert two.compiled.read(ino) is None
        await two.vfs.adopt(native, ino)
        assert bytes(await two.vfs.read(native, 0, 1 << 20)) == content(number)
        await two.vfs.flush(native)
        await two.vfs.release(native, ino)


async def test_a_truncation_here_takes_it_back(cluster, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        await two.vfs.setattr(SetAttr(ROOT, ino, size_bytes=3))
        assert two.compiled.data.get(ino) in (None, content(number)[:3])
        assert await two.read_file(b"f%d" % number) == content(number)[:3]


async def test_what_is_not_read_for_long_is_forgotten(cluster, monkeypatch):
    async with cluster.client() as one, cluster.client() as two:
        _, ino = await scanned(one, two)
        monkeypatch.setattr("shoalfs.fs.scans._OLD_S", 0.0)
        await trio.sleep(0.01)
        two.vfs._scans._drop_old()
        assert ino not in two.compiled.opens
        assert ino not in two.compiled.data


async def test_all_of_a_directory_is_fetched_once(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        made = await filled(one)
        await list_root(two)
        fetched = []
        fetch = two.coherent.fetch_files

        async def counted(inos):
            fetched.extend(inos)
            return await fetch(inos)

        two.coherent.fetch_files = counted
        for number, ino in enumerate(made):
            if two.compiled.open(ino) is None:
                await read_all(two, [number])
                continue
            if two.compiled.read(ino) is None:
                await two.vfs.getattr(ino)
            two.compiled.release(ino)
            await trio.sleep(0.005)
        assert len(fetched) == len(set(fetched))


# --- names -----------------------------------------------------------------------------------------------------------


def looked_up(client, number):
    """What the compiled part says of the name: number and size of the file."""
    told = client.compiled.lookup(ROOT_INODE, b"f%d" % number)
    return None if told is None else struct.unpack_from("=QQ", told)


async def test_the_name_of_what_was_fetched_is_looked_up_without_a_word_once(cluster, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two, has_chunk)
        assert looked_up(two, number) == (ino, len(content(number)))
        assert looked_up(two, number) is None


async def by_a_rename(client, number):
    await client.vfs.rename(ROOT, ROOT_INODE, b"f%d" % number, ROOT_INODE, b"other", 0)


async def by_another_in_its_place(client, number):
    await client.write_file(b"new", b"x")
    await client.vfs.closing.settle()
    await client.vfs.rename(ROOT, ROOT_INODE, b"new", ROOT_INODE, b"f%d" % number, 0)


async def by_removal(client, number):
    await client.vfs.unlink(ROOT, ROOT_INODE, b"f%d" % number)


async def by_another_mode(client, number):
    inode = await client.vfs.lookup(ROOT, ROOT_INODE, b"f%d" % number)
    await client.vfs.setattr(SetAttr(ROOT, inode.ino, mode=0o600))


async def by_more_bytes(client, number):
    handle, _ = await client.open(b"f%d" % number, os.O_WRONLY)
    await client.vfs.write(handle, 0, b"x" * 50_000)
    await client.close(handle)


@pytest.mark.parametrize("here", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize(
    "change",
    [by_a_rename, by_another_in_its_place, by_removal, by_another_mode, by_more_bytes],
    ids=lambda change: change.__name__,
)
async def test_a_name_is_taken_back_when_it_says_something_else(cluster, change, here, has_chunk):
    async with cluster.client() as one, cluster.client() as two:
        number, _ = await scanned(one, two, has_chunk)
        assert (ROOT_INODE, b"f%d" % number) in two.compiled.names
        await change(two if here else one, number)
        assert looked_up(two, number) is None


async def test_when_names_are_not_leased_any_more_none_is_looked_up_here(cluster):
    async with cluster.client() as one, cluster.client() as two:
        number, ino = await scanned(one, two)
        two.coherent.cache.drop(directories=(ROOT_INODE,))
        assert two.coherent.known(ino) is not None, "its inode is"
        assert looked_up(two, number) is None


async def test_when_nothing_is_believed_any_more_none_is_looked_up_here(cluster):
    async with cluster.client() as one, cluster.client() as two:
        number, _ = await scanned(one, two)
        two.coherent.drop_everything()
        assert looked_up(two, number) is None
