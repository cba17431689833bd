"""All metadata are lost: what the headers of the chunks give back, with real chunkservers."""

import io
import json
import os
import shutil

import pytest
import trio

from harness.damaged_chunks import Disk
from harness.vfs_world import MDS, world
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.headers import lines
from shoalfs.fs.cli.cluster import Operator
from shoalfs.fs.cli.fsck import check
from shoalfs.fs.cli.targets import mutate
from shoalfs.mds import messages as m
from shoalfs.mds import rebuild, rebuild_fragments
from shoalfs.mds.leader import Leader
from shoalfs.mds.machine import Layout
from shoalfs.mds.raft_members import Member, founders
from shoalfs.transport.erasure import is_there
from shoalfs.transport.errors import UserError
from shoalfs.transport.ids import ROOT_INODE, NodeId, PoolId
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

MEMBERS = founders([Member(NodeId(1), MDS, MDS)])
POOL = m.Pool(PoolId(1), "default", 2, 1)
MIB = 1 << 20


def headers_of(tmp_path, *numbers, deep=False):
    found = rebuild.Headers()
    for number in numbers:
        data = b"".join(lines(RealDisk(), str(tmp_path / f"target{number}"), deep=deep))
        rebuild.read(found, io.BytesIO(data), f"target{number}")
    return found


async def fill(tmp_path):
    """Returns the contents by inode: several chunks, an overwrite in the middle, and a small file."""
    contents = {}
    async with world(tmp_path) as services, services.client() as client:
        big = os.urandom(9 * MIB)
        contents[await client.write_file(b"big", big)] = big
        number, _ = await client.open(b"big", os.O_RDWR)
        await client.vfs.write(number, 3 * MIB, b"x" * MIB)
        await client.close(number)
        (ino,) = contents
        contents[ino] = big[: 3 * MIB] + b"x" * MIB + big[4 * MIB :]
        medium = os.urandom(200_000)
        contents[await client.write_file(b"medium", medium)] = medium
        small = await client.write_file(b"small", b"in the inode")
        assert small not in contents
    return contents


async def test_files_in_chunks_come_back_with_all_their_bytes(tmp_path):
    contents = await fill(tmp_path)
    shutil.rmtree(tmp_path / "mds")
    made = rebuild.rebuild(headers_of(tmp_path, 0, 1), tmp_path / "mds", POOL, Layout(), MEMBERS)
    assert (made.files, made.left_out) == (len(contents), 0)
    async with (
        world(tmp_path) as services,
        services.client() as client,
        open_network(services.carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")) as network,
    ):
        lost = (await client.vfs.lookup(m.ROOT_CREDENTIALS, ROOT_INODE, b"lost+found")).ino
        for ino, data in contents.items():
            assert await client.read_file(b"#%d" % ino, lost) == data
        operator = Operator(network, Leader(network, [MDS]))
        report = await check(operator, deep=True, grace_ms=0)
        assert report.findings == []
        assert (await operator.leader.call(m.STATUS, m.GetStatus())).body.upkeep.deletions_held
        new = os.urandom(5 * MIB)  # and it is a filesystem again
        await client.write_file(b"new", new)
        assert await client.read_file(b"new") == new


async def test_one_of_two_disks_is_enough_and_the_other_copies_are_made_again(tmp_path):
    contents = await fill(tmp_path)
    shutil.rmtree(tmp_path / "mds")
    shutil.rmtree(tmp_path / "target1")
    rebuild.rebuild(headers_of(tmp_path, 0), tmp_path / "mds", POOL, Layout(), MEMBERS)
    async with world(tmp_path, chunkservers=1) as services, services.client() as client:
        lost = (await client.vfs.lookup(m.ROOT_CREDENTIALS, ROOT_INODE, b"lost+found")).ino
        for ino, data in contents.items():
            assert await client.read_file(b"#%d" % ino, lost) == data


async def test_damaged_chunks_are_left_out_when_all_is_read(tmp_path):
    await fill(tmp_path)
    disk = Disk(tmp_path / "target0")
    header = disk.records()[0]
    disk.flip(disk.data_of(header) + 5)
    assert len(headers_of(tmp_path, 0).said) == len(headers_of(tmp_path, 0, deep=True).said) + 1
    disk.flip(header.position_bytes + 45)
    assert header.chunk not in headers_of(tmp_path, 0).said


async def test_a_disk_in_use_is_refused(tmp_path):
    async with world(tmp_path):
        with pytest.raises(UserError, match="stop it first"):
            headers_of(tmp_path, 0)
        await trio.lowlevel.checkpoint()


# --- fragments --------------------------------------------------------------------------------------------------------

needs_isal = pytest.mark.skipif(not is_there(), reason="NO FRAGMENTS ARE TESTED HERE: libisal2 is not installed")


async def fill_fragments(tmp_path):
    """Contents by inode, in a pool of 2+2 on four targets."""
    contents = {}
    async with (
        world(tmp_path, chunkservers=4) as services,
        services.client() as client,
        open_network(services.carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")) as network,
    ):
        with trio.fail_after(20):
            while len((await client.session.refresh_map()).targets) < 4:
                await trio.sleep(0.05)
        operator = Operator(network, Leader(network, [MDS]))
        await mutate(operator, m.Op.CREATE_POOL, m.CreatePool("cold", 4, 2))
        cold = (await client.vfs.mkdir(m.ROOT_CREDENTIALS, ROOT_INODE, b"cold", 0o755)).ino
        request = m.SetXattr(m.ROOT_CREDENTIALS, cold, b"trusted.shoal.pool", b"cold")
        await client.session.mutate(m.Op.SETXATTR, request, m.Entry)
        for size in (30_001, 200_001, 9 * MIB + 1):
            data = os.urandom(size)
            contents[await client.write_file(b"f%d" % size, data, cold)] = data
        plain = os.urandom(MIB)
        contents[await client.write_file(b"plain", plain)] = plain
    return contents


async def check_contents(client, contents):
    lost = (await client.vfs.lookup(m.ROOT_CREDENTIALS, ROOT_INODE, b"lost+found")).ino
    for ino, data in contents.items():
        assert await client.read_file(b"#%d" % ino, lost) == data


@needs_isal
async def test_files_in_fragments_come_back(tmp_path):
    contents = await fill_fragments(tmp_path)
    shutil.rmtree(tmp_path / "mds")
    made = rebuild.rebuild(headers_of(tmp_path, 3, 1, 0, 2), tmp_path / "mds", POOL, Layout(), MEMBERS)
    assert (made.files, made.left_out) == (len(contents), 0)
    async with (
        world(tmp_path, chunkservers=4) as services,
        services.client() as client,
        open_network(services.carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")) as network,
    ):
        await check_contents(client, contents)
        operator = Operator(network, Leader(network, [MDS]))
        assert (await check(operator, deep=True, grace_ms=0)).findings == []
        pools = (await client.session.refresh_map()).pools
        assert [pool.redundancy for pool in pools] == ["2 replicas", "2+2"]


@needs_isal
async def test_any_k_disks_are_enough_and_lost_fragments_are_made_again(tmp_path):
    contents = await fill_fragments(tmp_path)
    for lost in ("mds", "target1", "target3"):
        shutil.rmtree(tmp_path / lost)
    made = rebuild.rebuild(headers_of(tmp_path, 0, 2), tmp_path / "mds", POOL, Layout(), MEMBERS)
    plain = made.files - len(contents)
    assert (made.left_out, plain) in ((0, 0), (0, -1)), "its only copies may have been on the two that are lost"
    async with (
        world(tmp_path, chunkservers=4) as services,
        services.client() as client,
        open_network(services.carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")) as network,
    ):
        *fragmented, _ = contents.items()
        await check_contents(client, dict(fragmented))
        operator = Operator(network, Leader(network, [MDS]))
        with trio.fail_after(60):
            while (await client.session.refresh_map()) and any(
                {3, 4}.intersection(group.holders) for group in client.session.map.groups
            ):  # the places of those that do not exist
                await trio.sleep(0.2)
            while (await check(operator, deep=True, grace_ms=0)).findings:
                await trio.sleep(0.5)
    for number in range(4):
        said = headers_of(tmp_path, number).pieces
        assert len(said) >= 5, "what repair made says what it is of, too"


async def test_one_of_k_disks_is_too_few_and_said_to_be(tmp_path):
    if not is_there():
        pytest.skip("NO FRAGMENTS ARE TESTED HERE: libisal2 is not installed")
    await fill_fragments(tmp_path)
    shutil.rmtree(tmp_path / "mds")
    made = rebuild.rebuild(headers_of(tmp_path, 0), tmp_path / "mds", POOL, Layout(), MEMBERS)
    assert made.left_out >= 5
    assert made.files <= 1


def fragment_line(at, **changes):
    hashes = b"".join(bytes([place]) * 16 for place in range(3))
    said = {"place": at, "data": 2, "parity": 1, "chunk_bytes": 19, "hashes": hashes.hex()}
    return CHUNK | {"hash": hashes[at * 16 :][:16].hex(), "fragment": said | changes}


@pytest.mark.parametrize(
    "changes", [{"place": 1}, {"data": 1}, {"parity": 0}, {"chunk_bytes": 21}, {"hashes": "zz"}, {"hashes": ""}]
)
def test_what_is_no_fragment_is_refused(changes):
    with pytest.raises(UserError, match="line 2"):
        read_lines([fragment_line(0, **changes)])


def test_places_that_moved_and_places_that_nobody_has(tmp_path):
    """Target 1 has place 0 of two chunks, target 3 of one of them; nobody has place 2."""
    second = {"chunk": CHUNK["chunk"] + 1, "ino": 6}
    found = read_lines(
        [fragment_line(0), fragment_line(0) | second], [fragment_line(1), fragment_line(1) | second], [fragment_line(0)]
    )
    made = rebuild_fragments.of(found.pieces, 3, PoolId(1))
    (group,) = made.groups
    assert group.targets == (1, 2, 4)
    assert (group.leaving, group.leaving_places) == ((3,), (0,))
    assert (made.absent, made.left_out, len(made.extents)) == (1, 0, 2)
    assert made.pools == (m.Pool(PoolId(2), "fragments-2-1", 3, 3, 2),)
    done = rebuild.rebuild(found, tmp_path / "a", POOL, Layout(), MEMBERS)
    assert (done.files, done.chunks) == (2, 2)


HEAD = {"shoal_headers": 1, "cluster_id": "ab" * 16, "uuid": "cd" * 16}
CHUNK = {"chunk": (1 << 48) + 1, "ino": 5, "offset": 0, "bytes": 10, "hash": "ef" * 16}
END = {"end": True, "chunks": 1}
BAD = {
    "nothing": [],
    "cut short": [HEAD, CHUNK],
    "a chunk is gone": [HEAD, END],
    "another version": [HEAD | {"shoal_headers": 2}, CHUNK, END],
    "no cluster": [HEAD | {"cluster_id": "x"}, CHUNK, END],
    "no chunk": [HEAD, CHUNK | {"chunk": 0}, END],
    "no inode": [HEAD, CHUNK | {"ino": 1}, END],
    "too long": [HEAD, CHUNK | {"bytes": 1 << 40}, END],
    "too far": [HEAD, CHUNK | {"offset": 1 << 63}, END],
    "negative": [HEAD, CHUNK | {"offset": -1}, END],
    "no hash": [HEAD, CHUNK | {"hash": "zz"}, END],
    "another type": [HEAD, CHUNK | {"ino": "5"}, END],
}


@pytest.mark.parametrize("case", BAD)
def test_what_are_no_headers_is_refused(case):
    data = b"".join(json.dumps(line).encode() + b"\n" for line in BAD[case])
    with pytest.raises(UserError, match="rebuild: file"):
        rebuild.read(rebuild.Headers(), io.BytesIO(data), "file")


def read_lines(*files):
    found = rebuild.Headers()
    for number, chunks in enumerate(files):
        head = HEAD | {"uuid": f"{number:032x}"}
        data = [head, *chunks, {"end": True, "chunks": len(chunks)}]
        rebuild.read(found, io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in data)), f"file{number}")
    return found


def test_the_copy_that_most_have_counts_and_a_draw_is_left_out(tmp_path):
    other = CHUNK | {"hash": "00" * 16}
    made = rebuild.rebuild(read_lines([CHUNK], [other], [CHUNK]), tmp_path / "a", POOL, Layout(), MEMBERS)
    assert (made.files, made.left_out) == (1, 0)
    made = rebuild.rebuild(read_lines([CHUNK], [other]), tmp_path / "b", POOL, Layout(), MEMBERS)
    assert (made.files, made.left_out) == (0, 1)


def test_a_directory_in_use_and_a_target_twice_are_refused(tmp_path):
    rebuild.rebuild(read_lines([CHUNK]), tmp_path / "a", POOL, Layout(), MEMBERS)
    with pytest.raises(UserError, match="holds a store"):
        rebuild.rebuild(read_lines([CHUNK]), tmp_path / "a", POOL, Layout(), MEMBERS)
    found = read_lines([CHUNK])
    with pytest.raises(UserError, match="was read already"):
        rebuild.read(found, io.BytesIO(json.dumps(HEAD | {"uuid": f"{0:032x}"}).encode() + b"\n"), "again")
