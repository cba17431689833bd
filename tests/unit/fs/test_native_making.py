"""Files that the compiled part makes: nobody, here or elsewhere, can tell them from others."""

import errno
import os
from contextlib import asynccontextmanager

import pytest
import trio

from harness.vfs_world import world
from shoalfs.fs import fuse_wire as wire
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE
from unit.fs.test_coherent import leased
from unit.fs.test_own_directories import changes, listed
from unit.fs.test_write_leases import counted

TTL_MS = 2_000


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1, session_ttl_ms=TTL_MS) as running:
        yield running


async def granted(client, directory):
    """The directory is the mount's own, and the compiled part makes files in it."""
    await client.own(directory)
    with trio.fail_after(10):
        while directory not in client.compiled.granted or not client.compiled.inodes:
            await client.own(directory)
            await trio.sleep(0.01)
    await client.vfs.closing.settle()


@asynccontextmanager
async def alone(cluster, mode=0o755):
    async with cluster.client() as one:
        await leased(one)
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", mode)).ino
        await granted(one, directory)
        yield one, directory


def make(client, directory, name, data=b"data", *, close=True):
    made = client.compiled.create(directory, name)
    assert made is not None
    if data:
        assert client.compiled.write(made.node, data)
    if close:
        assert client.compiled.close(made.node)
    return made


async def is_taken(client):
    with trio.fail_after(5):
        while client.compiled.made:
            await trio.sleep(0.005)


async def test_it_is_one_command_soon_after_its_close(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        for number in range(5):
            make(one, directory, b"f%d" % number)
        await is_taken(one)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE] * 5
        async with cluster.client() as two:
            await leased(two)
            for number in range(5):
                assert await two.read_file(b"f%d" % number, directory) == b"data"


@pytest.mark.parametrize("data", [b"", b"x" * 20_000, b"x" * 100_000], ids=["empty", "in its inode", "in a chunk"])
async def test_whoever_looks_from_elsewhere_finds_it(cluster, data):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        make(one, directory, b"closed", data)
        make(one, directory, b"open", data, close=False)
        assert await two.read_file(b"closed", directory) == data
        assert await two.read_file(b"open", directory) == data
        assert not one.compiled.made
        assert directory not in one.compiled.granted, "it is not this mount's alone any more"
        assert one.compiled.create(directory, b"another") is None


async def test_whoever_lists_from_elsewhere_finds_it(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        await leased(two)
        make(one, directory, b"f", close=False)
        assert b"f" in await listed(two, directory)


async def test_one_that_is_open_goes_on_through_its_handle(cluster):
    async with alone(cluster) as (one, directory):
        made = make(one, directory, b"f", b"some ", close=False)
        one.compiled.give(made.node)
        assert not one.compiled.made
        assert await one.vfs.write(made.handle, 5, b"data") == 4
        assert await one.vfs.read(made.handle, 0, 100) == b"some data"
        assert (await one.vfs.getattr(made.node)).size_bytes == 9
        await one.close(made.handle)
        assert await one.read_file(b"f", directory) == b"some data"


async def test_one_that_stays_open_is_told_of(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        made = make(one, directory, b"f", b"", close=False)
        with trio.fail_after(5):
            while m.Op.CREATE not in sent:
                await trio.sleep(0.02)
        await one.close(made.handle)


async def test_more_than_wait_at_a_time_are_all_there(cluster):
    async with alone(cluster) as (one, directory):
        names = [b"many%d" % number for number in range(700)]
        natively = one.compiled.made_count
        with trio.fail_after(20):
            for name in names:
                while one.compiled.create(directory, name) is None:
                    one.compiled.granted[directory].names.discard(name)
                    await trio.sleep(0.005)
                (made,) = (made for made in one.compiled.made.values() if made.name == name)
                one.compiled.write(made.node, name)
                one.compiled.close(made.node)
        assert one.compiled.made_count == natively + 700
        await is_taken(one)
        await one.vfs.closing.settle()
        assert set(names) <= set(await listed(one, directory))
        assert await one.read_file(b"many699", directory) == b"many699"


async def test_the_directory_is_as_it_is_with_them(cluster):
    async with alone(cluster) as (one, directory):
        before = await one.vfs.getattr(directory)
        assert one.compiled.granted[directory].attributes == wire.attributes(before)
        made = [make(one, directory, b"f%d" % number) for number in range(3)]
        after = await one.vfs.getattr(directory)
        assert after.size_bytes == before.size_bytes + 3
        assert after.mtime_ns >= made[-1].made_ns
        assert one.compiled.granted[directory].attributes == wire.attributes(after)


async def test_what_changes_the_directory_is_not_hidden_by_what_it_was_like(cluster):
    async with alone(cluster) as (one, directory):
        grant = one.compiled.granted[directory]
        await one.vfs.getattr(directory)
        assert grant.attributes is not None
        await one.vfs.mkdir(ROOT, directory, b"sub", 0o755)
        assert grant.attributes is None
        await one.vfs.getattr(directory)
        await one.vfs.unlink(ROOT, directory, b"own0")
        assert grant.attributes is None
        await one.vfs.getattr(directory)
        _, number = await one.make(b"by Python", directory)
        assert grant.attributes is None
        await one.close(number)


async def test_names_that_are_there_or_may_be_are_not_made(cluster):
    async with alone(cluster) as (one, directory):
        grant = one.compiled.granted[directory]
        assert set(await listed(one, directory)) <= grant.names
        assert one.compiled.create(directory, b"own0") is None


async def test_a_change_of_the_directory_ends_it_and_it_begins_again(cluster):
    async with alone(cluster) as (one, directory):
        make(one, directory, b"f", close=False)
        one.compiled.give(directory, changes=True)
        assert not one.compiled.made
        assert directory not in one.compiled.granted
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o700))
        await granted(one, directory)
        make(one, directory, b"g")


@pytest.mark.parametrize("mode", [0o2775, 0o3777])
async def test_where_more_is_inherited_nothing_is_made(cluster, mode):
    async with cluster.client() as one:
        await leased(one)
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=mode, gid=7))
        await one.own(directory)
        await trio.sleep(0.6)
        assert directory not in one.compiled.granted


async def test_whoever_needs_his_groups_asks(cluster):
    async with alone(cluster, 0o775) as (one, directory):
        assert one.compiled.granted[directory].uid == 0
        await one.vfs.setattr(m.SetAttr(ROOT, directory, uid=1000, mode=0o575))
        one.compiled.give(directory, changes=True)
        await granted(one, directory)
        assert one.compiled.granted[directory].uid not in (0, 1000), "the owner may not write"
        assert one.compiled.create(directory, b"f", 1000) is None
        make(one, directory, b"root's")


async def test_a_new_leader_is_told_of_what_was_made(cluster):
    async with alone(cluster) as (one, directory):
        made = make(one, directory, b"open", b"here", close=False)
        make(one, directory, b"closed")
        await cluster.stop_mds()
        await trio.sleep(0.05)
        await cluster.start_mds()
        await leased(one)
        with trio.fail_after(10):
            while directory in one.compiled.granted:
                await trio.sleep(0.02)
        await one.close(made.handle)
        async with cluster.client() as two:
            await leased(two)
            assert await two.read_file(b"closed", directory) == b"data"
            assert await two.read_file(b"open", directory) == b"here"


async def test_without_leases_nothing_is_made_and_what_was_is_kept(cluster):
    async with alone(cluster) as (one, directory):
        make(one, directory, b"f")
        await cluster.stop_mds()
        with trio.fail_after(3 * TTL_MS / 1000):
            while one.compiled.granted:
                await trio.sleep(0.05)
        assert one.compiled.create(directory, b"late") is None
        assert one.compiled.inodes == []
        assert not one.compiled.made
        await cluster.start_mds()


async def test_a_lost_session_takes_its_files_with_it(cluster):
    async with alone(cluster) as (one, directory):
        made = make(one, directory, b"f", close=False)
        one.coherent.session_lost()
        one.handles.registered.clear()
        one.data_path.lose_all(PosixError(errno.ESTALE))
        assert not one.compiled.granted
        assert not one.compiled.made
        with pytest.raises(PosixError):
            await one.vfs.read(made.handle, 0, 10)


async def test_while_commits_fail_closes_wait_for_theirs(cluster):
    async with alone(cluster) as (one, directory):
        _, number = await one.make(b"by Python", directory)
        await one.vfs.write(number, 0, b"data")
        make(one, directory, b"f")
        one.vfs.closing.failed(one.handles.file(number).file)
        with trio.fail_after(5):
            while one.compiled.granted:
                await trio.sleep(0.005)
        assert not one.compiled.made
        with trio.fail_after(10):
            while one.vfs.closing.is_failing:
                await trio.sleep(0.05)
        assert await one.read_file(b"f", directory) == b"data"
        await granted(one, directory)


async def test_numbers_are_of_the_newest_range(cluster):
    async with alone(cluster) as (one, _):
        first = list(one.compiled.inodes)
        while one.session.take_inode_numbers(4_096)[1]:
            pass
        await one.session.reserve_inodes()
        with trio.fail_after(5):
            while set(one.compiled.inodes) & set(first):
                await trio.sleep(0.01)
        assert one.compiled.inodes
        assert max(one.compiled.inodes) < one.session.inode_range


async def test_nothing_is_made_where_closes_are_durable(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running, running.client(durable_close=True) as one:
        await leased(one)
        directory = (await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o755)).ino
        await one.own(directory)
        await trio.sleep(0.5)
        assert not one.compiled.granted
        assert one.compiled.create(directory, b"f", flags=os.O_RDWR) is None
