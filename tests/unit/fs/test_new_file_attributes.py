"""What programs set of a file that was made here and of which the leader does not know yet: attributes, and another
name."""

import errno
import os
import struct

import pytest

from harness.vfs_world import world
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError
from unit.fs.test_own_directories import TTL_MS, alone, changes
from unit.fs.test_write_leases import counted


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1, session_ttl_ms=TTL_MS) as running:
        yield running


async def made_and_set(one, directory, *, data=b"data", **fields):
    """A new file with attributes, still open: its inode and its handle."""
    ino, number = await one.make(b"f", directory)
    if data:
        await one.vfs.write(number, 0, data)
    await one.vfs.setattr(m.SetAttr(ROOT, ino, by_handle=True, **fields))
    return ino, number


SET = {"mode": 0o600, "uid": 7, "gid": 8, "atime_ns": 5, "mtime_ns": -(10**9)}


def is_set(inode):
    return (inode.mode, inode.uid, inode.gid, inode.atime_ns, inode.mtime_ns) == (0o100600, 7, 8, 5, -(10**9))


@pytest.mark.parametrize("data", [b"", b"data", b"x" * 100_000], ids=["empty", "in its inode", "in a chunk"])
async def test_attributes_go_with_the_file(cluster, data):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        sent = counted(one)
        ino, number = await made_and_set(one, directory, data=data, **SET)
        assert is_set(await one.vfs.getattr(ino))
        await one.close(number)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        for client in (one, two):
            inode = await client.vfs.lookup(ROOT, directory, b"f")
            assert is_set(inode)
            assert inode.size_bytes == len(data)


async def test_attributes_are_those_that_were_set_last(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        ino, number = await made_and_set(one, directory, mode=0o600, mtime_ns=3)
        await one.vfs.setattr(m.SetAttr(ROOT, ino, mode=0o640))
        await one.vfs.setattr(m.SetAttr(ROOT, ino, atime_ns=4))
        await one.close(number)
        await one.vfs.setattr(m.SetAttr(ROOT, ino, uid=9))
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        inode = await one.vfs.getattr(ino)
        assert (inode.mode, inode.uid, inode.atime_ns, inode.mtime_ns) == (0o100640, 9, 4, 3)


async def test_what_is_written_later_changes_its_time(cluster):
    async with alone(cluster) as (one, directory):
        ino, number = await made_and_set(one, directory, mode=0o600, mtime_ns=3)
        await one.vfs.write(number, 4, b"more")
        assert (await one.vfs.getattr(ino)).mtime_ns > 10**18
        await one.close(number)
        await one.vfs.closing.settle()
        inode = await one.vfs.getattr(ino)
        assert inode.mtime_ns > 10**18
        assert inode.mode == 0o100600


@pytest.mark.parametrize("data", [b"data", b"x" * 100_000], ids=["in its inode", "in a chunk"])
async def test_times_outlast_a_commit_that_comes_after_the_telling(cluster, data):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        ino, number = await made_and_set(one, directory, data=data, mtime_ns=3, atime_ns=4)
        await one.coherent.new_files.tell(ino)
        assert ino not in one.coherent.new_files
        await one.vfs.fsync(number)
        inode = (await one.session.read(m.GETATTR, m.GetAttr(ino))).body.inode
        assert (inode.atime_ns, inode.mtime_ns, inode.size_bytes) == (4, 3, len(data))
        assert (await one.vfs.getattr(ino)).mtime_ns == 3
        await one.vfs.write(number, 0, b"d")
        await one.close(number)
        assert (await two.vfs.lookup(ROOT, directory, b"f")).mtime_ns > 10**18


async def test_times_of_what_was_cut_after_they_were_set_are_newer(cluster):
    async with alone(cluster) as (one, directory):
        ino, number = await made_and_set(one, directory, mtime_ns=3)
        await one.coherent.new_files.tell(ino)
        await one.vfs.setattr(m.SetAttr(ROOT, ino, size_bytes=2, by_handle=True))
        await one.close(number)
        inode = await one.vfs.getattr(ino)
        assert (inode.size_bytes, inode.mtime_ns > 10**18) == (2, True)


async def test_times_that_went_with_the_bytes_are_set_once(cluster):
    async with alone(cluster) as (one, directory):
        _, number = await made_and_set(one, directory, mtime_ns=3)
        await one.vfs.fsync(number)
        sent = counted(one)
        await one.vfs.write(number, 4, b"more")
        await one.vfs.fsync(number)
        assert m.Op.SETATTR not in changes(sent)
        await one.close(number)


@pytest.mark.parametrize(
    "request_", [{"mode": 0o4755}, {"mtime_ns": m.NOW}, {"size_bytes": 2}, {}], ids=["set-id", "now", "size", "nothing"]
)
async def test_other_attributes_are_the_leaders_to_set(cluster, request_):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        _, number = await made_and_set(one, directory, **request_)
        assert changes(sent)[-1] == m.Op.SETATTR
        await one.close(number)


async def test_what_somebody_else_sets_is_checked_by_the_leader(cluster):
    async with alone(cluster) as (one, directory):
        await one.vfs.setattr(m.SetAttr(ROOT, directory, mode=0o777))
        await one.own(directory)
        who = m.Credentials(1000, 1000)
        inode, number, _ = await one.vfs.create(who, directory, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        assert inode.ino in one.coherent.new_files
        with pytest.raises(PosixError) as refused:
            await one.vfs.setattr(m.SetAttr(who, inode.ino, uid=0))
        assert refused.value.errno == errno.EPERM
        await one.close(number)


async def test_a_new_file_gets_another_name_without_a_word(cluster):
    async with alone(cluster) as (one, directory), cluster.client() as two:
        sent = counted(one)
        before = await one.vfs.getattr(directory)
        ino, number = await made_and_set(one, directory, mtime_ns=3)
        await one.close(number)
        await one.vfs.rename(ROOT, directory, b"f", directory, b"g", 0)
        assert not changes(sent)
        assert (await one.vfs.getattr(directory)).mtime_ns > before.mtime_ns
        assert await one.vfs.lookup_or_none(ROOT, directory, b"f") is None
        assert (await one.vfs.lookup(ROOT, directory, b"g")).ino == ino
        _, again = await one.make(b"f", directory)
        await one.close(again)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE] * 2
        assert await two.read_file(b"g", directory) == b"data"
        assert await two.read_file(b"f", directory) == b""
        assert (await two.vfs.lookup(ROOT, directory, b"g")).mtime_ns == 3


@pytest.mark.parametrize("flags", [0, 1, 2])
async def test_a_name_that_is_taken_or_exchanged_is_the_leaders(cluster, flags):
    async with alone(cluster) as (one, directory):
        await one.write_file(b"g", b"old", directory)
        await one.vfs.closing.settle()
        sent = counted(one)
        await one.write_file(b"f", b"new", directory)
        if flags == 1:
            with pytest.raises(PosixError) as refused:
                await one.vfs.rename(ROOT, directory, b"f", directory, b"g", flags)
            assert refused.value.errno == errno.EEXIST
        else:
            await one.vfs.rename(ROOT, directory, b"f", directory, b"g", flags)
            assert await one.read_file(b"g", directory) == b"new"
        assert m.Op.RENAME in changes(sent)


async def test_one_that_the_leader_may_know_is_renamed_by_him(cluster):
    async with alone(cluster) as (one, directory):
        await one.write_file(b"f", b"data", directory)
        await one.vfs.closing.settle()
        sent = counted(one)
        await one.vfs.rename(ROOT, directory, b"f", directory, b"g", 0)
        assert changes(sent) == [m.Op.RENAME]


def access_list(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFF_FFFF
PLAIN = [(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)]


async def test_a_list_that_is_nothing_but_permissions_goes_with_the_file(cluster):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        ino, number = await made_and_set(one, directory, mode=0o600)
        await one.vfs.xattrs.set(ROOT, ino, m.ACL_ACCESS, access_list(*PLAIN))
        await one.close(number)
        await one.vfs.closing.settle()
        assert changes(sent) == [m.Op.CREATE]
        inode = await one.vfs.getattr(ino)
        assert (inode.mode, inode.acl) == (0o100640, b"")


@pytest.mark.parametrize(
    "entries",
    [PLAIN[:2], [*PLAIN[:1], (2, 7, 1000), *PLAIN[1:2], (16, 7, NOBODY), *PLAIN[2:]], [*PLAIN[:2], (16, 7, NOBODY)]],
)
async def test_any_other_list_is_the_leaders_to_set(cluster, entries):
    async with alone(cluster) as (one, directory):
        sent = counted(one)
        ino, number = await made_and_set(one, directory, mode=0o600)
        try:
            await one.vfs.xattrs.set(ROOT, ino, m.ACL_ACCESS, access_list(*entries))
        except PosixError as error:
            assert error.errno == errno.EINVAL
        assert m.Op.SETXATTR in changes(sent)
        await one.close(number)
