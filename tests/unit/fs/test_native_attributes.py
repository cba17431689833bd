"""Inodes of which the compiled part says that they have no attributes: which, and until when."""

import errno

import pytest
import trio

from harness.vfs_world import Client, world
from shoalfs.mds.messages import ACL_ACCESS, SetAttr
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from unit.fs.test_coherent import leased

# user::rw-, user:5:r--, group::r--, mask::r--, other::r--; version 2 (linux/posix_acl_xattr.h)
ACL = bytes.fromhex("02000000 01000600ffffffff 0200040005000000 04000400ffffffff 10000400ffffffff 20000400ffffffff")


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


async def listed(client: Client) -> None:
    number = client.vfs.opendir(ROOT, ROOT_INODE)
    cookie = 0
    while entries := await client.vfs.readdir(number, cookie):
        cookie = entries[-1].cookie
    client.vfs.releasedir(number)


async def known_bare(client: Client, *inos: InodeId) -> None:
    """List until these are what the compiled part was offered: a moment after a close its write lease ends."""
    with trio.fail_after(5):
        while client.compiled.bare != set(inos):
            await trio.sleep(0.02)
            await listed(client)


async def refused(client: Client, ino: InodeId, name: bytes) -> int:
    with pytest.raises(PosixError) as caught:
        await client.vfs.xattrs.get(ROOT, ino, name)
    return caught.value.errno


async def test_what_was_listed_and_has_none_is_known_to_have_none(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        plain, named, listed_one = [await one.write_file(name, b"") for name in (b"plain", b"named", b"acl")]
        await one.vfs.xattrs.set(ROOT, named, b"user.a", b"1")
        await one.vfs.xattrs.set(ROOT, listed_one, ACL_ACCESS, ACL)
        await known_bare(two, plain)


async def test_who_was_told_so_by_python_is_told_so_by_the_compiled_part_afterwards(cluster):
    async with cluster.client() as one:
        await leased(one)
        inos = [await one.write_file(b"%d" % number, b"") for number in range(4)]
        await one.vfs.closing.settle()
        assert one.compiled.bare == set()
        assert await refused(one, inos[0], b"security.selinux") == errno.ENODATA
        assert await refused(one, inos[1], ACL_ACCESS) == errno.ENODATA
        assert await one.vfs.xattrs.list(ROOT, inos[2]) == ()
        await one.vfs.xattrs.set(ROOT, inos[3], b"user.a", b"1")
        assert await refused(one, inos[3], ACL_ACCESS) == errno.ENODATA
        assert one.compiled.bare == set(inos[:3]), "one has another attribute"


@pytest.mark.parametrize("here", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize(("name", "value"), [(b"user.a", b"1"), (ACL_ACCESS, ACL)], ids=["attribute", "list"])
async def test_one_that_is_given_an_attribute_is_taken_back_first(cluster, here, name, value):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino, other = [await one.write_file(each, b"") for each in (b"f", b"g")]
        await known_bare(two, ino, other)
        await (two if here else one).vfs.xattrs.set(ROOT, ino, name, value)
        assert two.compiled.bare == {other}, "the change has returned"
        assert await two.vfs.xattrs.get(ROOT, ino, name) == value
        await listed(two)
        assert two.compiled.bare == {other}
        await one.vfs.xattrs.remove(ROOT, ino, name)
        await known_bare(two, ino, other)


async def test_what_is_not_leased_is_not_offered(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino, number = await one.make(b"f")
        await one.vfs.write(number, 0, b"kept")
        assert one.coherent.keeps_writes(ino)
        await listed(two)  # while the other has the write lease
        assert ino not in two.compiled.bare
        assert await refused(two, ino, b"user.a") == errno.ENODATA
        await one.close(number)


async def test_all_are_taken_back_when_the_leases_are_gone(cluster):
    async with cluster.client() as one:
        await leased(one)
        ino = await one.write_file(b"f", b"")
        await known_bare(one, ino)
        one.coherent.drop_everything()
        assert one.compiled.bare == set()


async def test_an_answer_that_comes_after_the_recall_offers_nothing(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"")
        await known_bare(two, ino)
        two.coherent.drop_everything()
        read = two.session.read

        async def late(method, request):
            reply = await read(method, request)
            if method.name == "mds.readdir":
                await one.vfs.xattrs.set(ROOT, ino, b"user.a", b"1")
            return reply

        two.session.read = late
        await listed(two)
        assert two.compiled.bare == set()
        two.session.read = read
        assert await two.vfs.xattrs.get(ROOT, ino, b"user.a") == b"1"


async def test_a_change_of_another_kind_makes_it_another_inode(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await leased(one, two)
        ino = await one.write_file(b"f", b"")
        await known_bare(two, ino)
        await one.vfs.setattr(SetAttr(ROOT, ino, mode=0o600))
        assert two.compiled.bare == set()
        await known_bare(two, ino)
