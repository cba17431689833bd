"""The catalogue of damage in docs/fsck.md, class by class: put in, found as it says, repaired or reported as it says.

Classes of the metadata are put into a state machine, those of chunks into the files of real chunkservers that do not
run meanwhile. The commands are the real ones.
"""

import errno
import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from harness.damaged_chunks import Disk
from harness.damaged_metadata import FAULTS, World
from harness.mending import Desk
from harness.vfs_world import MDS, world
from shoalfs.chunkserver import scrubber
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.fs.cli import repair
from shoalfs.fs.cli.cluster import Operator
from shoalfs.fs.cli.fsck import check
from shoalfs.fs.cli.targets import mutate
from shoalfs.mds import keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.leader import Leader
from shoalfs.mds.server import MdsOptions
from shoalfs.mds.server import run as run_mds
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, chunk_id
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "fsck.md"
CLASSES_MIN = 30


def catalogue():
    """Of each class in the document: what it is found as, and what becomes of it."""
    rows = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[2] in ("repaired", "reported", "in part", "by itself"):
            assert cells[0] not in rows, f"{cells[0]} twice"
            rows[cells[0]] = (set(re.findall(r"`([a-z-]+)`", cells[1])), cells[2])
    return rows


CATALOGUE = catalogue()


# --- metadata ---------------------------------------------------------------------------------------------------------


def group_gone(w):
    with w.store.read() as txn:
        extent = records.EXTENT.require(txn, keys.extent(w.g, 0))
    w.delete(keys.group(extent.chunk >> 48))


METADATA = {name: inject for name, (inject, _, _) in FAULTS.items()} | {
    "two hashes of one chunk": lambda w: w.change(records.EXTENT, keys.extent(w.g, 60), chunk_hash=b"x" * 16),
    "group of a chunk gone": group_gone,
}


@pytest.mark.parametrize("name", METADATA)
async def test_metadata(name):
    kinds, outcome = CATALOGUE[name]
    w = World()
    w.root = ROOT_INODE
    METADATA[name](w)
    before = dict(w.store.rows)
    desk = Desk(w)
    planned = await desk.repair(apply=False)
    assert {step.finding.kind for step in planned.steps} == kinds
    assert (dict(w.store.rows), desk.mends) == (before, []), "a plan changes nothing"
    result = await desk.repair(apply=True)
    left = await desk.repair(apply=True)
    assert not left.counts["repaired"]
    if outcome == "repaired":
        assert result.is_clean, result.steps
        assert left.steps == []
        assert w.findings() == []
    elif outcome == "reported":
        assert result.counts.keys() == {"reported"}
        assert dict(w.store.rows) == before
    else:
        assert outcome == "in part"
        assert result.counts.keys() == {"repaired", "reported"}


# --- chunks -----------------------------------------------------------------------------------------------------------


def lost(disk):
    disk.segment.unlink()
    disk.drop_index()


def swapped_bytes(disk):
    a, b = disk.records()[:2]
    first, second = (disk.read(disk.data_of(h), h.chunk_bytes) for h in (a, b))
    disk.write(disk.data_of(a), second)
    disk.write(disk.data_of(b), first)


def swapped_records(disk):
    a, b = disk.records()[:2]
    first, second = (disk.read(h.position_bytes, h.record_bytes) for h in (a, b))
    disk.write(a.position_bytes, second)
    disk.write(b.position_bytes, first)


def truncated(disk):
    last = disk.records()[-1]
    os.truncate(disk.segment, last.position_bytes + last.data_offset + 100)


def stale_index(disk):
    shutil.rmtree(disk.path / "index")
    (disk.path.parent / "index.old").rename(disk.path / "index")


def duplicate(disk):
    disk.append_copy(disk.records()[0])
    disk.drop_index()
    disk.rescan()


def other_cluster(disk):
    disk.rewrite_header(disk.records()[0], cluster_id=b"of another one!!")
    disk.drop_index()
    disk.rescan()


def other_bytes(disk):
    header = disk.records()[0]
    disk.rewrite(header, bytes(header.chunk_bytes))
    disk.drop_index()


def damaged_scanned(disk):
    header = disk.records()[0]
    disk.flip(header.position_bytes + 45)
    disk.drop_index()
    disk.rescan()


CHUNKS = {
    # name: (what is done to the disk, how many of the three files are lost)
    "all chunks of a disk gone": (lost, 3),
    "wrong byte in a chunk": (lambda disk: disk.flip(disk.data_of(disk.records()[0]) + 5), 1),
    "wrong byte in a header": (lambda disk: disk.flip(disk.records()[0].position_bytes + 45), 1),
    "wrong byte in the block hashes": (lambda disk: disk.flip(disk.records()[0].position_bytes + 101), 1),
    "bytes of two chunks exchanged": (swapped_bytes, 2),
    "two chunks exchanged": (swapped_records, 2),
    "segment truncated": (truncated, 1),
    "header damaged, then all read": (damaged_scanned, 1),
    "other bytes under the same id": (other_bytes, 1),
    "chunk of another cluster": (other_cluster, 1),
    "index lost": (lambda disk: disk.drop_index(), 0),
    "index damaged": (lambda disk: (disk.path / "index" / "data.mdb").write_bytes(b"x" * 8192), 0),
    "index stale": (stale_index, 0),
    "same id twice": (duplicate, 0),
}
OTHERS = {"chunk without extent", "one copy of two wrong", "target away"}


async def fill(path, contents):
    async with world(path, chunkservers=1, replicas=1) as services, services.client() as client:
        for name, data in contents.items():
            await client.write_file(name, data)


def operator_of(services):
    return open_network(services.carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test"))


@pytest.mark.parametrize("name", CHUNKS)
async def test_chunks(name, tmp_path):
    kinds, outcome = CATALOGUE[name]
    inject, lost_files = CHUNKS[name]
    first = {b"a": os.urandom(200_000)}
    later = {b"b": os.urandom(200_000), b"c": os.urandom(200_000)}
    await fill(tmp_path, first)
    shutil.copytree(tmp_path / "target0" / "index", tmp_path / "index.old")
    await fill(tmp_path, later)
    inject(Disk(tmp_path / "target0"))
    async with world(tmp_path, chunkservers=1, replicas=1) as services, operator_of(services) as network:
        operator = Operator(network, Leader(network, [MDS]))
        report = await check(operator, deep=True, grace_ms=0)
        assert {found.kind for found in report.findings} == kinds
        damaged = {found.path.encode()[1:] for found in report.findings}
        assert len(damaged) == lost_files
        result = await repair.carry_out(operator, apply=True, deep=True)
        assert result.counts.keys() == ({"reported"} if outcome == "reported" else set())
        async with services.client() as client:
            for file, data in (first | later).items():
                if file in damaged:
                    with pytest.raises(PosixError) as refused:
                        await client.read_file(file)
                    assert refused.value.errno == errno.EIO
                else:
                    assert await client.read_file(file) == data


async def test_chunk_without_extent(tmp_path):
    kinds, outcome = CATALOGUE["chunk without extent"]
    async with world(tmp_path, chunkservers=1, replicas=1) as services, operator_of(services) as network:
        operator = Operator(network, Leader(network, [MDS]))
        await mutate(operator, m.Op.SET_UPKEEP, m.Upkeep(deletions_held=True))  # else it is garbage before it is seen
        async with services.client() as client:
            sequence = await client.session.mutate(m.Op.RESERVE_CHUNKS, m.ReserveChunks(1), m.ChunksReserved)
            map_ = await client.session.refresh_map()
            (target,) = map_.targets
            chunk = chunk_id(map_.groups[0].id, sequence.first_sequence)
            await put(ChunkClient(network), target, chunk)
        report = await check(operator, deep=False, grace_ms=0)
        assert {found.kind for found in report.findings} == kinds
        assert [found.chunk for found in report.findings] == [chunk]
        assert outcome == "by itself"


async def put(client, target, chunk):
    data = b"x" * 5000
    await client.put(
        target,
        chunk=chunk,
        ino=9,
        offset_bytes=0,
        payload=data,
        chunk_hash=chunk_hash(block_hashes([data])),
        durable=True,
    )


@asynccontextmanager
async def without_targets(path):
    """The metadata service alone."""
    carriers = Carriers(MemoryFabric())
    async with trio.open_nursery() as nursery:
        await nursery.start(run_mds, MdsOptions(str(path / "mds"), MDS), carriers)
        yield SimpleNamespace(carriers=carriers)
        nursery.cancel_scope.cancel()


async def test_one_copy_of_two_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(scrubber, "is_due", lambda *_: False)  # which would find it first, now and then
    kinds, outcome = CATALOGUE["one copy of two wrong"]
    assert outcome == "repaired"
    data = os.urandom(200_000)
    async with world(tmp_path) as services, services.client() as client:
        await client.write_file(b"a", data)
    disk = Disk(tmp_path / "target0")
    disk.flip(disk.data_of(disk.records()[0]) + 5)
    async with world(tmp_path) as services, operator_of(services) as network:
        operator = Operator(network, Leader(network, [MDS]))
        planned = await repair.carry_out(operator, apply=False, deep=True)
        assert {step.finding.kind for step in planned.steps} == kinds
        assert planned.counts == {"planned": 1}
        ordered = await repair.carry_out(operator, apply=True, deep=True)
        assert ordered.counts == {"ordered": 1}
        with trio.fail_after(30):
            while (await check(operator, deep=True, grace_ms=0)).findings:
                await trio.sleep(0.2)


async def test_target_away(tmp_path):
    kinds, outcome = CATALOGUE["target away"]
    await fill(tmp_path, {b"a": os.urandom(200_000)})
    async with without_targets(tmp_path) as services, operator_of(services) as network:
        result = await repair.carry_out(Operator(network, Leader(network, [MDS])), apply=True)
        assert {step.finding.kind for step in result.steps} == kinds
        assert (result.counts.keys(), outcome) == ({"reported"}, "reported")


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_every_class_is_injected_and_every_injection_is_a_class():
    injected = METADATA.keys() | CHUNKS.keys() | OTHERS
    assert injected == CATALOGUE.keys()
    assert len(CATALOGUE) >= CLASSES_MIN


def test_every_kind_of_finding_is_in_the_catalogue():
    from shoalfs.fs.fsck import Kind
    from shoalfs.mds.mending import WAYS

    listed = set().union(*(kinds for kinds, _ in CATALOGUE.values()))
    seldom = {"more-findings"}
    assert listed | seldom >= WAYS.keys(), WAYS.keys() - listed
    not_injected = {Kind.MISSING_REPLICA, Kind.WRONG_REPLICA}  # the leader makes them good before anybody looks
    assert listed >= {str(kind) for kind in Kind} - not_injected
