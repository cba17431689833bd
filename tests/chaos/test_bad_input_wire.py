"""What becomes of wrong configurations and mount points, and of peers that send what no client of ours would.

Whoever asks for something that cannot be is refused, by an errno or by one line; nobody else notices, and the
filesystem is whole afterwards.
"""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from harness import workload
from harness.cluster import Cluster, require_fuse, shoal, wait_until
from harness.load import Workload
from harness.parts import assert_no_traceback, configuration, one_line, write_configuration
from harness.refusals import failing
from shoalfs.chunkserver import messages as c
from shoalfs.chunkserver.client import ChunkClient, hash_chunk
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient, caches_nothing, open_session
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import BadMessage, ChunkNotReserved, PosixError, ShoalError, StaleReceipt
from shoalfs.transport.ids import ROOT_INODE, ChunkId, TargetId, chunk_id, chunk_pg, chunk_sequence
from shoalfs.transport.limits import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    EXTENTS_PER_COMMIT_MAX,
    FILE_SIZE_BYTES_MAX,
    MIB,
)
from shoalfs.transport.network import Network, open_network
from shoalfs.transport.session import Hello

U64_MAX = (1 << 64) - 1
DATA = Random(4).randbytes(3 * BLOCK_BYTES)
ROOT = m.ROOT_CREDENTIALS


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """The cluster of this module's tests, with one file."""
    require_fuse()
    with Cluster() as cluster:
        cluster.up()
        (cluster.point / "data").write_bytes(DATA)
        yield cluster


@pytest.fixture
def whole(own: Cluster) -> Iterator[Cluster]:
    """The cluster; whatever the test does to it, no process of it ends and nothing of it changes."""
    pids = {record.name: record.process for record in own.records()}
    with own.unhung(60.0):
        yield own
        assert own.dead() == []
        assert {record.name: record.process for record in own.records()} == pids
        assert (own.point / "data").read_bytes() == DATA
        (own.point / "new").write_bytes(DATA)
        (own.point / "new").unlink()
        assert_no_traceback(own)
        own.fsck()


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("mds", "run"), ("chunkserver", "run"), ("mount", "/mnt")])
def test_a_missing_configuration(command: tuple[str, ...], tmp_path: Path):
    path = tmp_path / "none.toml"
    line = one_line(shoal(*command, "--config", path), 2)
    assert line == f"shoal: configuration: {path}: no such file: create it, or leave --config out"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mds]\ndata_dri = '/x'\n", "mds.data_dri: unknown key; did you mean mds.data_dir?"),
        ("[mds]\nsize = 1\n", "mds.size: unknown key"),
        ("[mdss]\nnode = 1\n", "mdss: unknown key; did you mean mds?"),
        ("[mds]\nnode = 'one'\n", "mds.node: expected int, got str"),
        ("[mds]\nnode = 0\n", "mds.node: expected int >= 1"),
        ("[mds]\nlisten = 'nowhere'\n", 'mds.listen: expected "unix:/path" or "tcp:host:port", got \'nowhere\''),
        ("[cluster]\nid = 'abc'\n", "cluster.id: expected"),
        ("[chunkserver]\ntargets = [{ size = 1 }]\n", "path: missing: it has no default"),
        ("mds = 1\n", "mds: expected a table, got int"),
        ("[mds\n", "not valid TOML"),
        ("\0", "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_told_by_its_path(text: str, words: str, tmp_path: Path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    line = one_line(shoal("mds", "run", "--config", path), 2)
    assert line.startswith(f"shoal: configuration: {path}: ")
    assert words in line


def test_a_configuration_that_cannot_be_read(tmp_path: Path):
    assert "make it a readable file" in one_line(shoal("mds", "run", "--config", tmp_path), 2)
    path = tmp_path / "binary.toml"
    path.write_bytes(Random(5).randbytes(1000))
    assert "not valid TOML" in one_line(shoal("mds", "run", "--config", path), 2)


# --- mount points -----------------------------------------------------------------------------------------------------


def test_a_mount_point_that_cannot_be_used(whole: Cluster, tmp_path: Path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_bytes(b"bytes")
    full.mkdir()
    (full / "letter").touch()
    busy = whole.point
    for point, words in (
        (tmp_path / "none", "no such directory: create it, or add --mkdir"),
        (file, "not a directory: name an empty directory"),
        (full, "not empty: name an empty directory"),
        (busy, f"shoalfs is mounted there already: shoal umount {busy}"),
        (Path("/proc"), "another filesystem is mounted there"),
    ):
        line = one_line(shoal("mount", "--state", whole.state, point), 2)
        assert line.startswith(f"shoal: mount point: {point}: {words}")
    for point, words in (
        (tmp_path, "nothing is mounted there"),
        (Path("/proc"), "not a mount of shoalfs: use umount"),
    ):
        assert words in one_line(shoal("umount", point), 2)
    assert file.read_bytes() == b"bytes"


def test_no_metadata_service_at_the_address(tmp_path: Path):
    point = tmp_path / "mnt"
    point.mkdir()
    address = f"unix:{tmp_path}/none.sock"
    done = mount_alone(address, point, tmp_path, wait_s=3)
    line = one_line(done, 1)
    assert "mount: not ready after 3 s" in line
    assert not os.path.ismount(point)
    for wrong, words in (
        ("nowhere", 'expected "unix:/path" or "tcp:host:port"'),
        (f"unix:/{'x' * 200}", "socket path of 201 bytes, the kernel allows 107"),
    ):
        assert words in one_line(mount_alone(wrong, point, tmp_path, wait_s=3), 2)


def mount_alone(address: str, point: Path, home: Path, *, wait_s: int) -> subprocess.CompletedProcess[str]:
    """`shoal mount -d`, with its log below ``home``."""
    return subprocess.run(
        [sys.executable, "-m", "shoalfs", "mount", "-d", "--wait", str(wait_s), address, str(point)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home)},
    )


def test_a_mount_of_another_cluster_is_refused(whole: Cluster, tmp_path: Path):
    tables = configuration(whole, "mount")
    tables["cluster"]["id"] = "f" * 32
    line = one_line(shoal("mount", "--config", write_configuration(whole, "other", tables), tmp_path), 1)
    assert "cluster" in line
    assert "check the address, and cluster.id in the configuration" in line


# --- bytes that are no message ----------------------------------------------------------------------------------------


def test_garbage_on_every_socket_does_not_disturb_a_workload(whole: Cluster, tmp_path: Path):
    (whole.point / "tree").mkdir()
    load = Workload(whole.point / "tree", tmp_path / "journal")
    try:
        load.wait_progress(5)
        random = Random(6)
        sockets = sorted((whole.state / "sock").glob("*.sock"))
        assert len(sockets) == 3
        for _ in range(20):
            for path in sockets:
                for garbage in (
                    random.randbytes(random.randrange(1, 100_000)),
                    b"GET / HTTP/1.1\r\n\r\n" * 10,
                    b"",
                    bytes(4096),
                ):
                    say(path, garbage)
        load.wait_progress(5)
        load.stop()
        assert load.done > 10
    finally:
        if load.process.poll() is None:
            os.kill(load.process.pid, signal.SIGKILL)
        load.process.communicate()
    assert workload.verify(whole.point / "tree", tmp_path / "journal") > 10
    for child in (whole.point / "tree").iterdir():
        child.unlink()
    (whole.point / "tree").rmdir()


def say(path: Path, data: bytes) -> None:
    """Connect, send, and hang up; the other side may do so first."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10.0)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            return


# --- offsets and extents ----------------------------------------------------------------------------------------------


def test_offsets_beyond_the_limit_through_the_mount(whole: Cluster):
    path = whole.point / "far"
    with open(path, "wb", buffering=0) as file:
        fd = file.fileno()
        for offset in (FILE_SIZE_BYTES_MAX, FILE_SIZE_BYTES_MAX + 4096, 1 << 62, (1 << 63) - 4096):
            assert failing(os.pwrite, fd, b"xx", offset) == errno.EFBIG
        for size in (FILE_SIZE_BYTES_MAX + 1, 1 << 62, (1 << 63) - 1):
            assert failing(os.ftruncate, fd, size) == errno.EFBIG
            assert failing(os.truncate, path, size) == errno.EFBIG
        assert path.stat().st_size == 0
        os.ftruncate(fd, FILE_SIZE_BYTES_MAX)
        assert os.pwrite(fd, b"xx", FILE_SIZE_BYTES_MAX - 1) == 1  # as far as it goes
    assert path.stat().st_size == FILE_SIZE_BYTES_MAX
    with open(path, "rb") as file:
        assert os.pread(file.fileno(), 10, FILE_SIZE_BYTES_MAX - 2) == b"\0x"
    with open(path, "ab", buffering=0) as file:
        assert failing(file.write, b"x") == errno.EFBIG
    whole.fsck()
    path.unlink()


class Rogue:
    """A client that says hello as it should, and then what it likes."""

    def __init__(self, cluster: Cluster, network: Network, session: MdsClient, address: str) -> None:
        self.network = network
        self.session = session
        self.address = address
        self.servers = sorted(f"unix:{path}" for path in (cluster.state / "sock").glob("chunkserver-*.sock"))

    async def refused(self, method: Any, body: Any, address: str = "", payload: bytes = b"") -> ShoalError:
        """The error that this request is answered with; it has to be one, and the service goes on."""
        with pytest.raises(ShoalError) as raised:
            await self.network.call(address or self.address, method, body, payload)
        await self.network.call(self.address, m.GETATTR, m.GetAttr(ROOT_INODE))
        return raised.value

    async def refused_op(self, op: m.Op, body: Any, reply: type = m.Entry) -> ShoalError:
        """As :meth:`refused`, for a mutation of the session."""
        with pytest.raises(ShoalError) as raised:
            await self.session.mutate(op, body, reply)
        await self.network.call(self.address, m.GETATTR, m.GetAttr(ROOT_INODE))
        return raised.value

    async def store(self, payload: bytes) -> tuple[ChunkId, bytes, tuple[m.Receipt, ...]]:
        """A chunk of the session's, on all targets of a group: its id, hash and receipts."""
        group = self.session.map.groups[0]
        chunk = chunk_id(group.id, await self.session.chunk_sequence())
        digest = await hash_chunk(payload)
        client = ChunkClient(self.network)
        receipts = []
        for target in self.session.map.targets:
            if target.id in group.targets:
                put = partial(client.put, target, chunk=chunk, ino=ROOT_INODE, offset_bytes=0, payload=payload)
                receipts.append(await put(chunk_hash=digest, durable=False))
        return chunk, digest, tuple(receipts)


def as_rogue(cluster: Cluster, work: Callable[[Rogue], Awaitable[None]]) -> None:
    address = configuration(cluster, "mds-1")["mds"]["listen"]

    async def connected() -> None:
        cluster_id = bytes.fromhex(configuration(cluster, "mds-1")["cluster"]["id"])
        hello = Hello(cluster_id=cluster_id, role=m.CLIENT, name="rogue")
        with trio.fail_after(50):
            async with (
                open_network(Carriers.standard(), hello, caches_nothing()) as network,
                open_session(network, [address], "rogue", patience_ms=5_000) as session,
            ):
                await work(Rogue(cluster, network, session, address))

    trio.run(connected)


def test_sizes_beyond_the_limit_over_the_wire(whole: Cluster):
    ino = (whole.point / "data").stat().st_ino

    async def work(rogue: Rogue) -> None:
        for size, number in (
            (FILE_SIZE_BYTES_MAX + 1, errno.EFBIG),
            (U64_MAX, errno.EFBIG),
            (-1, errno.EINVAL),
            (-(1 << 63), errno.EINVAL),
        ):
            error = await rogue.refused_op(m.Op.SETATTR, m.SetAttr(ROOT, ino, size_bytes=size))
            assert error.errno == number, size
        patch = m.CommitInline(ino, (m.Patch(U64_MAX, b"x"),))
        await rogue.refused_op(m.Op.COMMIT_INLINE, patch, m.Committed)

    as_rogue(whole, work)


def test_absurd_extents_are_refused(whole: Cluster):
    (whole.point / "victim").touch()
    ino = (whole.point / "victim").stat().st_ino

    async def work(rogue: Rogue) -> None:
        chunk, digest, receipts = await rogue.store(DATA)
        right = m.Extent(0, len(DATA), chunk, 0, len(DATA), digest)
        change = partial(msgspec.structs.replace, right)
        absurd: dict[str, tuple[type[ShoalError], tuple[m.Extent, ...]]] = {
            "beyond the largest file": (PosixError, (change(offset_bytes=FILE_SIZE_BYTES_MAX),)),
            "offset of 64 bits": (PosixError, (change(offset_bytes=U64_MAX),)),
            "negative offset": (BadMessage, (change(offset_bytes=-1),)),
            "no length": (BadMessage, (change(length_bytes=0),)),
            "negative length": (BadMessage, (change(length_bytes=-5),)),
            "length of 64 bits": (BadMessage, (change(length_bytes=U64_MAX),)),
            "past the chunk": (BadMessage, (change(length_bytes=len(DATA) + 1),)),
            "negative place in the chunk": (BadMessage, (change(chunk_offset_bytes=-1, length_bytes=1),)),
            "place past the chunk": (BadMessage, (change(chunk_offset_bytes=len(DATA)),)),
            "a huge chunk": (BadMessage, (change(chunk_bytes=CHUNK_BYTES_MAX + 1),)),
            "two lengths": (BadMessage, (right, change(offset_bytes=MIB, chunk_bytes=len(DATA) + 9))),
            "a short hash": (BadMessage, (change(chunk_hash=b"x"),)),
            "chunk 0": (BadMessage, (change(chunk=0),)),
            "a negative chunk": (BadMessage, (change(chunk=-1),)),
            "a chunk of no group": (BadMessage, (change(chunk=chunk_sequence(chunk)),)),
            "a chunk of another group": (StaleReceipt, (change(chunk=chunk_id(65_535, chunk_sequence(chunk))),)),
            "a chunk nobody reserved": (ChunkNotReserved, (change(chunk=chunk_id(chunk_pg(chunk), 1 << 40)),)),
            "a chunk of another session": (ChunkNotReserved, (change(chunk=foreign_chunk(whole)),)),
            "too many extents": (BadMessage, (right,) * (EXTENTS_PER_COMMIT_MAX + 1)),
        }
        for what, (expected, extents) in absurd.items():
            for append in (False, True):
                request = m.CommitExtents(ino, extents, receipts, append=append)
                error = await rogue.refused_op(m.Op.COMMIT_EXTENTS, request, m.Committed)
                assert type(error) is expected, (what, error)
                assert expected is not PosixError or error.errno == errno.EFBIG, what
        old = tuple(msgspec.structs.replace(receipt, target_epoch=receipt.target_epoch - 1) for receipt in receipts)
        lent = tuple(msgspec.structs.replace(receipt, target=9) for receipt in receipts)
        for wrong in ((), old, lent):
            request = m.CommitExtents(ino, (right,), wrong)
            error = await rogue.refused_op(m.Op.COMMIT_EXTENTS, request, m.Committed)
            assert type(error) is StaleReceipt
        for wrong_ino, number in ((ROOT_INODE, errno.EISDIR), (1 << 40, errno.ESTALE), (-1, errno.ESTALE)):
            request = m.CommitExtents(wrong_ino, (right,), receipts)
            error = await rogue.refused_op(m.Op.COMMIT_EXTENTS, request, m.Committed)
            assert error.errno in (number, errno.EINVAL), wrong_ino
        request = m.CommitExtents(ino, (), (), size_bytes=FILE_SIZE_BYTES_MAX + 1)
        assert (await rogue.refused_op(m.Op.COMMIT_EXTENTS, request, m.Committed)).errno == errno.EFBIG
        assert (await inode(rogue, ino)).size_bytes == 0

        # Overlapping ones are no mistake: later extents lie over earlier ones.
        over = change(offset_bytes=BLOCK_BYTES, chunk_offset_bytes=0, length_bytes=BLOCK_BYTES)
        request = m.CommitExtents(ino, (right, over), receipts)
        await rogue.session.mutate(m.Op.COMMIT_EXTENTS, request, m.Committed)
        assert (await inode(rogue, ino)).used_bytes == len(DATA)

    as_rogue(whole, work)
    expected = DATA[:BLOCK_BYTES] + DATA[:BLOCK_BYTES] + DATA[2 * BLOCK_BYTES :]
    # The kernel may hold the attributes for a second.
    wait_until(lambda: (whole.point / "victim").read_bytes() == expected, "later extents lie over earlier ones", 5.0)
    whole.fsck()
    (whole.point / "victim").unlink()


async def inode(rogue: Rogue, ino: int) -> m.Inode:
    return (await rogue.network.call(rogue.address, m.GETATTR, m.GetAttr(ino))).body.inode


def foreign_chunk(cluster: Cluster) -> ChunkId:
    """A number that the mount's session has reserved and not used."""
    info = json.loads(shoal("info", "-o", "json", cluster.point / "data").stdout)
    return ChunkId(int(info["extents"][0]["chunk"], 16) + 500)


# --- messages that are none -------------------------------------------------------------------------------------------


def nested(depth: int) -> msgspec.Raw:
    return msgspec.Raw(b"\x91" * depth + b"\xc0")


SHAPELESS = {
    "nothing": None,
    "a number": 7,
    "a map": {"who": 1},
    "an empty list": [],
    "text for a number": [[0, 0, []], "one", b"x"],
    "a number for a name": [[0, 0, []], 1, 5],
    "a list for a number": [[0, 0, []], [1], b"x"],
    "a number beyond 64 bits": [[0, 0, []], 2.0**70, b"x"],
    "nesting": nested(500_000),
    "nesting in a field": msgspec.Raw(b"\x93" + b"\x91" * 500_000 + b"\xc0" + b"\x01\xc4\x01x"),
    "nesting behind the fields": msgspec.Raw(b"\x94\x93\x00\x00\x90\x01\xc4\x01x" + b"\x91" * 500_000 + b"\xc0"),
    "a length that is not there": msgspec.Raw(b"\xdd\xff\xff\xff\xff"),
    "a name that is cut off": msgspec.Raw(b"\x93\x93\x00\x00\x90\x01\xc6\x7f\xff\xff\xff"),
    "invalid bytes": msgspec.Raw(b"\xc1\xc1\xc1"),
    "a million groups": [[0, 0, [1] * 900_000], 1, b"x"],
}


@pytest.mark.parametrize("body", SHAPELESS.values(), ids=SHAPELESS)
def test_a_message_of_another_shape_is_refused(whole: Cluster, body: Any):
    async def work(rogue: Rogue) -> None:
        await rogue.refused(m.LOOKUP, body)
        await rogue.refused(m.MUTATE, body)
        command = msgspec.Raw(msgspec.msgpack.encode([0, 1, int(m.Op.MKDIR), body]))
        try:
            reply = await rogue.network.call(rogue.address, m.MUTATE, [rogue.session.session, [command]])
        except ShoalError:
            pass
        else:
            assert all(outcome.code for outcome in reply.body.outcomes)
        for server in rogue.servers:
            await rogue.refused(c.GET, body, server)
            await rogue.refused(c.PUT, body, server, payload=b"bytes")

    as_rogue(whole, work)


def test_names_that_are_none_are_refused(whole: Cluster):
    async def work(rogue: Rogue) -> None:
        for name, number in (
            (b"", errno.EINVAL),
            (b"a/b", errno.EINVAL),
            (b"/", errno.EINVAL),
            (b"a\0b", errno.EINVAL),
            (b"n" * 256, errno.ENAMETOOLONG),
            (b"n" * 200_000, errno.ENAMETOOLONG),
        ):
            assert (await rogue.refused(m.LOOKUP, m.Lookup(ROOT, ROOT_INODE, name))).errno == number
            for op, body in (
                (m.Op.MKDIR, m.Mkdir(ROOT, ROOT_INODE, name, 0o755)),
                (m.Op.SYMLINK, m.Symlink(ROOT, ROOT_INODE, name, b"target")),
                (m.Op.UNLINK, m.Unlink(ROOT, ROOT_INODE, name)),
                (m.Op.RENAME, m.Rename(ROOT, ROOT_INODE, b"data", ROOT_INODE, name)),
            ):
                assert (await rogue.refused_op(op, body)).errno == number
        for name in (b".", b".."):
            await rogue.refused_op(m.Op.MKDIR, m.Mkdir(ROOT, ROOT_INODE, name, 0o755))
        name = b"n" * (MIB - 1000)
        assert (await rogue.refused(m.LOOKUP, m.Lookup(ROOT, ROOT_INODE, name))).errno == errno.ENAMETOOLONG
        mkdir = m.Mkdir(ROOT, ROOT_INODE, name, 0o755)
        assert (await rogue.refused_op(m.Op.MKDIR, mkdir)).errno == errno.E2BIG
        with pytest.raises(ShoalError):  # does not even leave this side
            await rogue.network.call(rogue.address, m.LOOKUP, m.Lookup(ROOT, ROOT_INODE, b"n" * (MIB + 1)))

    as_rogue(whole, work)
    assert sorted(os.listdir(whole.point)) == ["data"]


def test_numbers_and_roles_that_are_none_are_refused(whole: Cluster):
    async def work(rogue: Rogue) -> None:
        session = rogue.session.session
        for ino in (0, -1, 1 << 48, U64_MAX):
            await rogue.refused(m.GETATTR, m.GetAttr(ino))
            await rogue.refused(m.GET_EXTENTS, m.GetExtents(ino, -5, U64_MAX, -1))
            await rogue.refused(m.OPEN, m.Open(ROOT, session, ino, True, False))
        for other in (0, -1, session + 1000, U64_MAX):
            await rogue.refused(m.RENEW, m.Renew(other))
            await rogue.refused(m.RELEASE, m.Release(other, (1,)))
        body = msgspec.Raw(msgspec.msgpack.encode(m.Mkdir(ROOT, ROOT_INODE, b"d", 0o755)))
        for wrong in (session + 1000, -1, U64_MAX):
            await rogue.refused(m.MUTATE, m.Mutate(wrong, (m.Command(1, 1, m.Op.MKDIR, body),)))
        for slot, seq in ((-1, 1), (1 << 20, 1), (1, 0), (1, -1)):
            reply = await rogue.network.call(
                rogue.address, m.MUTATE, m.Mutate(session, (m.Command(slot, seq, m.Op.MKDIR, body),))
            )
            assert reply.body.outcomes[0].code
        for op in (0, 9999, -1, m.Op.REAP, m.Op.REGISTER_TARGET, m.Op.ADD_GARBAGE):
            await rogue.refused(m.MUTATE, m.Mutate(session, (m.Command(1, 1, op, body),)))
        await rogue.refused(m.MUTATE, m.Mutate(session, ()))
        await rogue.refused(m.OPEN_CHECK, m.OpenCheck())
        await rogue.refused(m.HEARTBEAT, m.Heartbeat("rogue", ()))
        for server in rogue.servers:
            chunk, digest, _ = await rogue.store(DATA)
            target = next(t.id for t in rogue.session.map.targets if t.address == server)
            for request in (
                c.GetChunk(target, chunk, 0, len(DATA) + 1),
                c.GetChunk(target, chunk, -1, 5),
                c.GetChunk(target, chunk, 0, 0),
                c.GetChunk(target, chunk, U64_MAX, U64_MAX),
                c.GetChunk(target, ChunkId(U64_MAX), 0, 1),
                c.GetChunk(target, ChunkId(-1), 0, 1),
                c.GetChunk(TargetId(77), chunk, 0, 1),
            ):
                await rogue.refused(c.GET, request, server)
            for put, payload in (
                (c.PutChunk(target, chunk, 1, 0, digest, False), b"other bytes"),
                (c.PutChunk(target, chunk, 1, 0, b"", False), DATA),
                (c.PutChunk(target, chunk, -1, 0, digest, False), DATA),
                (c.PutChunk(target, chunk, 1, U64_MAX, digest, False), DATA),
                (c.PutChunk(target, ChunkId(chunk + 1), 1, 0, digest, False), b""),
            ):
                await rogue.refused(c.PUT, put, server, payload)
            await rogue.refused(c.LIST, c.ListChunks(target, ChunkId(0), 10), server)

    as_rogue(whole, work)
