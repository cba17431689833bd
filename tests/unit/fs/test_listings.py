"""Directories are read page by page, one page ahead of the program."""

import pytest
import trio

from harness.vfs_world import world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.ids import ROOT_INODE
from unit.fs.test_coherent import leased

PAGE = 10


@pytest.fixture
async def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.listings.READDIR_ENTRIES_MAX", PAGE)
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


@pytest.fixture
async def full(cluster):
    """A client, a directory of 35 names, and the cookies that the leader is asked for."""
    async with cluster.client() as one:
        await leased(one)
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
        names = [b"%02d" % number for number in range(35)]
        for name in names:
            await one.write_file(name, b"", directory)
            await one.vfs.closing.settle()  # in this order
        asked, readdir = [], one.coherent.readdir

        async def counted(request):
            asked.append(request.cookie)
            return await readdir(request)

        one.coherent.readdir = counted
        yield one, directory, names, asked


async def rest(client, number, cookie=0):
    found = []
    while entries := await client.vfs.readdir(number, cookie):
        found += [entry.name for entry in entries]
        cookie = entries[-1].cookie
    return found


async def test_each_page_is_asked_for_once_and_before_it_is_wanted(full):
    one, directory, names, asked = full
    number = one.vfs.opendir(ROOT, directory)
    first = await one.vfs.readdir(number, 0)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        while len(asked) < 2:
            await trio.sleep(0.005)
    assert asked == [0, first[-1].cookie], "nobody has asked for the second"
    assert [entry.name for entry in first] + await rest(one, number, first[-1].cookie) == names
    assert len(asked) == 4


async def test_a_page_is_served_in_parts(full):
    one, directory, names, asked = full
    number = one.vfs.opendir(ROOT, directory)
    first = await one.vfs.readdir(number, 0)
    assert [entry.name for entry in await one.vfs.readdir(number, first[6].cookie)] == names[7:10]
    assert await rest(one, number, first[8].cookie) == names[9:]
    assert len(asked) == 4


async def test_rewinding_asks_anew(full):
    one, directory, names, _ = full
    number = one.vfs.opendir(ROOT, directory)
    await one.vfs.readdir(number, 0)
    await one.write_file(b"zz", b"", directory)
    await one.vfs.unlink(ROOT, directory, names[15])
    assert await rest(one, number) == [*names[:15], *names[16:], b"zz"]


async def test_seeking_elsewhere_asks_for_that(full):
    one, directory, names, _ = full
    number = one.vfs.opendir(ROOT, directory)
    listed = []
    cookie = 0
    while entries := await one.vfs.readdir(number, cookie):
        listed += entries
        cookie = entries[-1].cookie
    again = one.vfs.opendir(ROOT, directory)
    await one.vfs.readdir(again, 0)
    assert await rest(one, again, listed[24].cookie) == names[25:]


async def test_a_page_that_could_not_be_had_ahead_is_asked_for_again(full):
    one, directory, names, asked = full
    readdir, number = one.coherent.readdir, one.vfs.opendir(ROOT, directory)

    async def away(request):
        one.coherent.readdir = readdir
        asked.append("failed")
        raise PeerUnreachable("no leader")

    first = await readdir_first(one, number, away)
    with trio.fail_after(5):
        while "failed" not in asked:
            await trio.sleep(0.005)
    assert [entry.name for entry in first] + await rest(one, number, first[-1].cookie) == names


async def readdir_first(one, number, then):
    """The first page; the next is asked for with ``then``."""
    readdir = one.coherent.readdir

    async def once(request):
        one.coherent.readdir = then
        return await readdir(request)

    one.coherent.readdir = once
    return await one.vfs.readdir(number, 0)


async def test_so_many_are_fetched_ahead_and_no_more(full, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.listings._AHEAD_MAX", 3)
    one, directory, names, _ = full
    readdir, gate = one.coherent.readdir, trio.Event()

    async def held(request):
        if request.cookie:
            await gate.wait()
        return await readdir(request)

    one.coherent.readdir = held
    numbers = [one.vfs.opendir(ROOT, directory) for _ in range(5)]
    for number in numbers:
        await one.vfs.readdir(number, 0)
    assert one.vfs.listings._fetching == 3
    gate.set()
    for number in numbers:
        assert await rest(one, number) == names


async def test_what_is_known_better_since_is_passed_on(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one)
        await two.write_file(b"f", b"data")
        (entry,) = await one.vfs.readdir(one.vfs.opendir(ROOT, ROOT_INODE), 0)
        assert one.vfs.newest(entry.inode) == entry.inode
        await one.vfs.setattr(m.SetAttr(ROOT, entry.inode.ino, mode=0o600))
        assert one.vfs.newest(entry.inode).mode & 0o777 == 0o600
