"""POSIX without a kernel: the Vfs over real services in this process, alone and with a second mount."""

import errno
import os
import random

import pytest
import trio

from harness.vfs_world import world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.method import Nothing

ALICE = m.Credentials(1000, 1000)
LARGE = random.Random(1).randbytes(9_000_000)


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path) as running:
        yield running


@pytest.mark.parametrize("data", [b"", b"small", LARGE[:20_456], LARGE[:20_457], LARGE], ids=len)
async def test_what_one_mount_closed_another_reads(cluster, data):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"f", data)
        assert await two.read_file(b"f") == data
        assert await one.read_file(b"f") == data


async def test_uncommitted_bytes_show_in_attributes_and_reads_of_every_mount(cluster):
    async with cluster.client() as one, cluster.client() as two:
        inode, number, _ = await one.vfs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR)
        await one.vfs.write(number, 100, b"tail")
        assert (await one.vfs.getattr(inode.ino)).size_bytes == 104
        assert bytes(await one.vfs.read(number, 0, 1000)) == bytes(100) + b"tail"
        assert (await two.vfs.getattr(inode.ino)).size_bytes == 104
        await one.close(number)
        assert (await two.vfs.getattr(inode.ino)).size_bytes == 104


async def test_pages_are_kept_across_opens_until_somebody_else_changes_the_file(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"f", b"first")
        number, keep = await one.open(b"f", os.O_RDWR)
        assert keep, "this mount's own close left the pages as they are in the file"
        await one.vfs.write(number, 0, b"FIRST")
        await one.close(number)
        number, keep = await one.open(b"f", os.O_RDONLY)
        assert keep
        await one.close(number)
        await two.write_file(b"f", b"other")
        number, keep = await one.open(b"f", os.O_RDONLY)
        assert not keep
        assert bytes(await one.vfs.read(number, 0, 10)) == b"other"
        await one.close(number)
        _, keep = await one.open(b"f", os.O_RDONLY)
        assert keep


async def test_pages_are_not_kept_after_both_mounts_wrote_while_it_was_open(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"f", b"a" * 100)
        mine, _ = await one.open(b"f", os.O_RDWR)
        theirs, _ = await two.open(b"f", os.O_RDWR)
        await two.vfs.write(theirs, 50, b"T" * 50)
        await two.close(theirs)
        await one.vfs.write(mine, 0, b"M" * 50)
        await one.close(mine)
        number, keep = await one.open(b"f", os.O_RDONLY)
        assert not keep
        assert bytes(await one.vfs.read(number, 0, 200)) == b"M" * 50 + b"T" * 50


async def test_a_change_elsewhere_makes_the_kernel_ask_for_the_size(cluster):
    async with cluster.client() as one, cluster.client() as two:
        ino = await one.write_file(b"f", b"")
        await two.write_file(b"f", LARGE)
        assert ino in one.kernel.attributes
        one.kernel.attributes.clear()
        number, _ = await one.vfs.open(ROOT, ino, os.O_RDONLY)
        await one.close(number)
        assert one.kernel.attributes == [], "once is enough"


async def test_the_kernel_is_not_asked_again_for_what_this_mount_wrote_itself(cluster):
    async with cluster.client() as one:
        ino = await one.write_file(b"f", LARGE)
        number, caching = await one.vfs.open(ROOT, ino, os.O_RDONLY)
        assert one.kernel.attributes == []
        assert caching == (True, False)
        await one.close(number)


async def test_appends_of_two_mounts_land_once_and_whole(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"log", b"")

        async def append(client, mark):
            number, _ = await client.open(b"log", os.O_WRONLY | os.O_APPEND)
            for index in range(30):
                await client.vfs.write(number, 0, b"%s%05d\n" % (mark, index))
            await client.close(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, one, b"A")
            nursery.start_soon(append, two, b"B")
        lines = (await one.read_file(b"log")).splitlines()
        assert sorted(lines) == sorted(b"%s%05d" % (mark, index) for mark in (b"A", b"B") for index in range(30))
        for mark in (b"A", b"B"):
            assert [line for line in lines if line.startswith(mark)] == sorted(x for x in lines if x.startswith(mark))
        assert one.kernel.pages
        assert two.kernel.pages


async def test_a_file_unlinked_elsewhere_is_readable_until_it_is_closed_here(cluster):
    async with cluster.client() as one, cluster.client() as two:
        ino = await one.write_file(b"f", LARGE)
        number, _ = await one.open(b"f", os.O_RDONLY)
        await two.vfs.unlink(ROOT, ROOT_INODE, b"f")
        await trio.sleep(0.5)
        assert bytes(await one.vfs.read(number, 0, len(LARGE))) == LARGE
        await one.close(number)
        with trio.fail_after(10):
            while True:
                try:
                    await two.vfs.getattr(ino)
                except PosixError as error:
                    assert error.errno == errno.ESTALE
                    break
                await trio.sleep(0.05)


async def test_a_lost_session_takes_what_was_not_committed_and_nothing_else(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await one.write_file(b"kept", b"committed")
        _, number, _ = await one.vfs.create(ROOT, ROOT_INODE, b"lost", 0o644, os.O_RDWR)
        await one.vfs.write(number, 0, b"never committed")
        await one.session.mutate(m.Op.END_SESSION, m.EndSession(one.session.session), Nothing)
        with pytest.raises(ShoalError):  # SessionGone, or EIO if the renewal was first to notice
            await one.vfs.flush(number)
        with pytest.raises(PosixError) as caught:
            await one.vfs.write(number, 0, b"more")
        assert caught.value.errno == errno.EIO
        await one.vfs.release(number)
        assert await one.read_file(b"kept") == b"committed"
        assert await two.read_file(b"lost") == b""
        await one.write_file(b"lost", b"again")
        assert await two.read_file(b"lost") == b"again"


async def test_an_open_that_meets_a_lost_session_is_repeated_under_the_new_one(cluster):
    async with cluster.client() as one:
        await one.write_file(b"f", LARGE)
        await one.session.mutate(m.Op.END_SESSION, m.EndSession(one.session.session), Nothing)
        assert await one.read_file(b"f") == LARGE


async def test_touch_by_somebody_who_may_write_but_does_not_own(cluster):
    async with cluster.client() as one:
        ino = await one.write_file(b"f", b"")
        await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o666, mtime_ns=5, atime_ns=5))
        touched = await one.vfs.setattr(m.SetAttr(ALICE, ino, mtime_ns=7, atime_ns=7))
        assert touched.mtime_ns > 7, "the service's time, not the one that was sent"
        with pytest.raises(PosixError) as caught:
            await one.vfs.setattr(m.SetAttr(ALICE, ino, mode=0o600))
        assert caught.value.errno == errno.EPERM


async def test_set_id_bits_set_after_a_write_survive_the_commit(cluster):
    async with cluster.client() as one:
        inode, number, _ = await one.vfs.create(ROOT, ROOT_INODE, b"tool", 0o755, os.O_RDWR)
        await one.vfs.write(number, 0, b"#!/bin/true")
        await one.vfs.setattr(m.SetAttr(ROOT, inode.ino, mode=0o4755))
        await one.close(number)
        assert (await one.vfs.getattr(inode.ino)).mode & 0o7777 == 0o4755


async def test_a_listing_continues_where_it_was_while_entries_come_and_go(cluster):
    async with cluster.client() as one:
        for index in range(0, 2_500, 250):
            await one.vfs.mkdir(ROOT, ROOT_INODE, b"d%04d" % index, 0o755)
        number = one.vfs.opendir(ROOT, ROOT_INODE)
        first = await one.vfs.readdir(number, 0)
        names = [entry.name for entry in first]
        assert names == [b"d%04d" % index for index in range(0, 2_500, 250)]
        await one.vfs.rmdir(ROOT, ROOT_INODE, names[3])
        await one.vfs.mkdir(ROOT, ROOT_INODE, b"late", 0o755)
        assert [e.name for e in await one.vfs.readdir(number, first[4].cookie)] == names[5:]
        again = one.vfs.opendir(ROOT, ROOT_INODE)
        after = await one.vfs.readdir(again, first[3].cookie)
        assert [e.name for e in after] == [*names[4:], b"late"]
        assert await one.vfs.readdir(again, after[-1].cookie) == ()


async def test_a_rename_makes_what_was_written_durable_first(cluster):
    async with cluster.client() as one:
        await one.write_file(b"tmp", LARGE)
        file = one.data_path.find((await one.vfs.lookup(ROOT, ROOT_INODE, b"tmp")).ino)
        assert file.needs_fsync
        await one.vfs.rename(ROOT, ROOT_INODE, b"tmp", ROOT_INODE, b"checkpoint", 0)
        assert not file.needs_fsync
        assert await one.read_file(b"checkpoint") == LARGE


async def test_extended_attributes_and_layouts(cluster):
    async with cluster.client() as one:
        ino = await one.write_file(b"f", b"")
        with pytest.raises(PosixError) as caught:
            await one.vfs.xattrs.get(ROOT, ino, b"user.a")
        assert caught.value.errno == errno.ENODATA
        await one.vfs.xattrs.set(ROOT, ino, b"user.a", b"1")
        assert await one.vfs.xattrs.get(ROOT, ino, b"user.a") == b"1"
        assert await one.vfs.xattrs.list(ROOT, ino) == (b"user.a",)
        await one.vfs.xattrs.remove(ROOT, ino, b"user.a")
        assert await one.vfs.xattrs.list(ROOT, ino) == ()
        assert await one.vfs.xattrs.get(ROOT, ROOT_INODE, b"trusted.shoal.inline_bytes") == b"20456"
