"""Scans over real services: a directory that is read is fetched in bulk, and what was fetched is never used when it is
old."""

import os

import pytest
import trio
import trio.testing

from harness.vfs_world import world
from shoalfs.fs import scans as scans_module
from shoalfs.fs.coherent import FetchedFile
from shoalfs.fs.scans import Scans
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId
from shoalfs.transport.limits import GET_MANY_CHUNK_BYTES_MAX

FILES = 40


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


def content(number):
    # Every fourth is too large for its inode.
    return b"%06d" % number * (5_000 if number % 4 == 0 else 50)


async def filled(client):
    made = []
    for number in range(FILES):
        made.append(await client.write_file(b"f%d" % number, content(number)))
    await client.vfs.closing.settle()
    await client.releases.send_all()  # until the leader knows that they are closed, nobody else is leased them
    for ino in made:
        await client.releases.settle(ino)
    return made


def asked(client):
    counted = []
    original = client.session.read

    async def read(method, request):
        counted.append(method.name)
        return await original(method, request)

    client.session.read = read
    return counted


async def leased(client):
    with trio.fail_after(5):
        while not client.coherent.left_s():
            await trio.sleep(0.01)


async def read_all(client, numbers):
    for number in numbers:
        handle, _ = await client.open(b"f%d" % number, os.O_RDONLY)
        assert bytes(await client.vfs.read(handle, 0, 1 << 20)) == content(number)
        await client.vfs.flush(handle)
        await client.vfs.release(handle)


async def list_root(client):
    number = client.vfs.opendir(ROOT, ROOT_INODE)
    cookie = 0
    while entries := await client.vfs.readdir(number, cookie):
        cookie = entries[-1].cookie
    client.vfs.releasedir(number)


async def scanned(one, two):
    """``one`` has filled the root, ``two`` has read so much of it that the rest is fetched."""
    await leased(one)
    await leased(two)
    await filled(one)
    await list_root(two)
    await read_all(two, range(4))
    with trio.fail_after(5):
        while not two.data_path.counters["scanned_files"]:
            await trio.sleep(0.01)


async def test_a_listed_directory_is_opened_with_few_questions(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one)
        await leased(two)
        await filled(one)
        await list_root(two)
        questions = asked(two)
        await read_all(two, range(4))
        with trio.fail_after(5):
            while not two.data_path.counters["scanned_files"]:
                await trio.sleep(0.01)
        del questions[:]
        await read_all(two, range(4, FILES))
        assert set(questions) <= {"mds.release", "mds.renew"}, questions


async def test_names_that_are_asked_for_one_by_one_are_listed(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one)
        await leased(two)
        await filled(one)
        questions = asked(two)
        await read_all(two, range(FILES))
        with trio.fail_after(5):
            while not two.data_path.counters["scanned_pages"]:
                await trio.sleep(0.01)
        assert questions.count("mds.lookup") < FILES
        assert questions.count("mds.open") < FILES


async def test_what_was_fetched_and_changed_elsewhere_is_not_used(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await scanned(one, two)
        for number in (5, 8):  # one inline, one in chunks
            handle, _ = await one.open(b"f%d" % number, os.O_WRONLY)
            await one.vfs.write(handle, 0, b"new")
            await one.vfs.flush(handle)
            await one.vfs.release(handle)
            handle, _ = await two.open(b"f%d" % number, os.O_RDONLY)
            assert bytes(await two.vfs.read(handle, 0, 1 << 20)) == b"new" + content(number)[3:]
            await two.vfs.release(handle)


async def test_an_unlinked_file_that_was_opened_from_what_was_fetched_stays(cluster):
    """The leader was not told of the open; it asks when the name goes."""
    async with cluster.client() as one, cluster.client() as two:
        await scanned(one, two)
        questions = asked(two)
        handle, _ = await two.open(b"f8", os.O_RDONLY)
        assert "mds.open" not in questions
        await one.vfs.unlink(ROOT, ROOT_INODE, b"f8")
        await trio.sleep(0.3)
        assert bytes(await two.vfs.read(handle, 0, 1 << 20)) == content(8)
        await two.vfs.release(handle)


async def test_the_chunks_of_small_files_come_with_them(cluster):
    """Ten of the forty files have a chunk; of these, few are asked for one by one."""
    async with cluster.client() as one, cluster.client() as two:
        await scanned(one, two)
        await trio.sleep(0.3)
        fetched = two.data_path.counters["chunks_fetched_together"]
        assert fetched >= FILES // 4 - 3
        single = []
        original = two.data_path._services.reader._ask

        async def ask(*arguments):
            single.append(arguments)
            return await original(*arguments)

        two.data_path._services.reader._ask = ask
        await read_all(two, range(FILES))
        assert len(single) + fetched <= FILES // 4


class FakeOpens:
    """A mount without a compiled part, of which these files are known."""

    def __init__(self, known=()):
        self.known = known

    def offer_fetched(self, fetched, data, directory, name):
        return False

    def take_back(self, ino):
        pass

    def read_through(self):
        return []

    def was_read(self, fetched):
        raise AssertionError("nothing was offered")

    def has_all(self, ino):
        return ino in self.known


def scans(fake, known=(), **options):
    made = Scans(fake, fake.fetch_many, **options)
    made.serve(FakeOpens(known))
    return made


class Fake:
    """Answers fetches from nothing. ``chunk_bytes``: of the one chunk that each file has; 0: they are small."""

    def __init__(self, chunk_bytes=0):
        self.asked = []
        self.chunk_bytes = chunk_bytes
        self.together = []

    async def fetch_many(self, extents, came):
        self.together += extents
        await trio.lowlevel.checkpoint()

    async def fetch_files(self, inos):
        self.asked.append(inos)
        await trio.lowlevel.checkpoint()
        if self.chunk_bytes:
            return [FetchedFile(inode(ino), b"", (self.extent(ino),)) for ino in inos]
        return [FetchedFile(inode(ino), b"x" * 1000, ()) for ino in inos]

    def extent(self, ino):
        return m.Extent(0, self.chunk_bytes, ChunkId(ino), 0, self.chunk_bytes, b"h" * 16)


def inode(number):
    return m.Inode(InodeId(number), 0o100644, 1, 0, 0, 0, 1000, 0, 0, 0, 0, 0, version=1, data_version=1)


async def test_a_directory_of_which_little_is_used_is_fetched_less_and_less(monkeypatch):
    fake = Fake()
    seen = scans(fake)
    numbers = range(10, 100_010)
    seen.listed(InodeId(2), [m.DirEntry(n, b"%d" % n, inode(n)) for n in numbers])
    monkeypatch.setattr(scans_module, "SCAN_BYTES_MAX", 1 << 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.run)
        for n in range(50_000, 50_600):  # far from where the windows are
            assert seen.take(inode(n)) is None
            seen.missed(InodeId(n))
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sum(map(len, fake.asked)) <= 600


async def test_what_was_fetched_and_not_opened_is_bounded(monkeypatch):
    monkeypatch.setattr(scans_module, "SCAN_BYTES_MAX", 200_000)
    fake = Fake()
    opened = set()
    seen = scans(fake, opened)
    seen.listed(InodeId(2), [m.DirEntry(n, b"%d" % n, inode(n)) for n in range(10, 5_010)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.run)
        for n in range(10, 3_000):
            if seen.take(inode(n)) is None:
                seen.missed(InodeId(n))
            opened.add(n)
            await trio.testing.wait_all_tasks_blocked()
            assert seen._ready_bytes <= 200_000 + 256 * 1_512
            assert seen._ready_bytes == sum(1_512 for _ in seen._ready)
        nursery.cancel_scope.cancel()
    assert sum(map(len, fake.asked)) >= 2_000, "a scan goes on being fetched"


async def test_chunks_that_were_fetched_and_not_read_are_bounded():
    """And the next are fetched before the last are used up: who goes through a directory misses little."""
    fake = Fake(chunk_bytes=100_000)
    opened = set()
    bound = 20_000_000
    seen = scans(fake, opened, chunk_bytes_max=bound)
    seen.listed(InodeId(2), [m.DirEntry(n, b"%d" % n, inode(n)) for n in range(10, 3_010)])
    missed = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.run)
        for n in range(10, 3_010):
            if seen.take(inode(n)) is None:
                seen.missed(InodeId(n))
                missed += 1
            opened.add(n)
            await trio.testing.wait_all_tasks_blocked()
            assert seen._chunk_bytes <= bound
            assert seen._chunk_bytes == sum(one.chunk_bytes for one in seen._ready.values())
        nursery.cancel_scope.cancel()
    assert len(fake.together) == len({extent.chunk for extent in fake.together}) > 2_000
    assert missed < 100


async def test_files_of_large_chunks_are_fetched_without_them():
    fake = Fake(chunk_bytes=GET_MANY_CHUNK_BYTES_MAX + 1)
    seen = scans(fake)
    seen.listed(InodeId(2), [m.DirEntry(n, b"%d" % n, inode(n)) for n in range(10, 100)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.run)
        for n in range(10, 13):
            seen.missed(InodeId(n))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert fake.asked
    assert not fake.together
