"""Dump and load: everything comes back, nothing damaged is taken, and a restored node deletes nothing."""

import io
import json
from itertools import islice
from pathlib import Path

import msgspec
import pytest
import trio

from harness.metadata import ROOT, Metadata, bounded, contents
from shoalfs.fs.cli.cluster import Operator
from shoalfs.fs.cli.dump import fetch
from shoalfs.mds import backup, dump, keys, load, messages, records
from shoalfs.mds import messages as m
from shoalfs.mds.check import check
from shoalfs.mds.leader import Leader
from shoalfs.mds.machine import Machine, OnDamage
from shoalfs.mds.raft_members import Member, founders
from shoalfs.mds.server import MdsOptions, run
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import DamagedRecord, NotAllowed, PosixError, UserError
from shoalfs.transport.ids import ROOT_INODE, NodeId
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

MEMBERS = founders([Member(NodeId(1), "memory:mds", "memory:mds")])
ODD_NAME = b'\xff\xfe"\\\n'


@pytest.fixture
def md():
    """One of everything that a dump holds."""
    md = Metadata()
    md.add_targets()
    directory = md.mkdir(b"d").ino
    small = md.create(ODD_NAME, parent=directory).ino
    md.write_inline(small, 0, b"\0inline\xff")
    md.do(m.SetXattr(ROOT, small, b"user.\xfe", b"\xff\0"))
    large = md.create(b"large").ino
    md.write(large, 0, 100)
    md.write(large, 0, 50)
    md.write(large, 0, 100)  # the chunks before are garbage
    shared = md.chunk()
    md.commit(large, *(md.extent(shared, offset, 10) for offset in (200, 220, 240)))
    with bounded(rows_max=1):
        md.do(m.SetAttr(ROOT, large, size_bytes=150))  # what lies behind is still there, unseen
    md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"target"))
    md.create(b"orphan")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"orphan"))
    md.do(m.Upkeep(brake_percent=7, trash_retention_ms=5_000_000), session=0)
    md.create(b"trashed")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"trashed"))
    return md


def dumped(md):
    with md.store.read() as txn:
        return list(dump.lines(txn))


def load_into(path: Path, lines, cluster_id=b""):
    return load.load(io.BytesIO(b"".join(lines)), path / "mds", cluster_id, MEMBERS)


def kept_rows(rows):
    return {key: value for key, value in rows.items() if key[:1] not in b"NnSsRM"}


def test_all_rows_come_back(md, tmp_path):
    lines = dumped(md)
    assert all(len(line) <= dump.LINE_BYTES_MAX and json.loads(line) for line in lines)
    header = load_into(tmp_path, lines)
    assert header.index == md.machine.applied_index
    store = LmdbStore.open(str(tmp_path / "mds" / "store"))
    try:
        before, after = kept_rows(contents(md.store)), kept_rows(contents(store))
        assert {key[:1] for key in before} == {kind.prefix for kind in dump._KINDS}
        targets = {key for key in before if key[:1] == b"T"}
        assert {k: v for k, v in before.items() if k not in targets} == {
            k: v for k, v in after.items() if k not in targets
        }
        with store.read() as txn:
            assert [page for page in check(txn, io.BytesIO) if page is not None and page.findings] == []
    finally:
        store.close()


def test_a_restored_node_gives_out_nothing_twice_and_deletes_nothing(md, tmp_path):
    with md.store.read() as txn:
        old = records.COUNTERS.require(txn, keys.COUNTERS)
        epoch = records.MAP_EPOCH.require(txn, keys.MAP_EPOCH).epoch
    load_into(tmp_path, dumped(md))
    store = LmdbStore.open(str(tmp_path / "mds" / "store"))
    try:
        machine = Machine(store, OnDamage.REFUSE)
        assert (machine.applied_index, machine.members) == (0, MEMBERS)
        with store.read() as txn:
            new = records.COUNTERS.require(txn, keys.COUNTERS)
            upkeep = records.UPKEEP.require(txn, keys.UPKEEP)
            assert new.next_ino >= old.next_ino + load.SKIPPED
            assert new.next_sequence >= old.next_sequence + load.SKIPPED
            assert new.next_session > old.next_session
            assert new.sessions == 0
            assert records.MAP_EPOCH.require(txn, keys.MAP_EPOCH).epoch > epoch
            assert upkeep.deletions_held
            assert f"entry {md.machine.applied_index}" in upkeep.held_reason
            assert upkeep.brake_percent == 7
    finally:
        store.close()


def test_every_kind_of_row_is_dumped_or_left_out_on_purpose():
    prefixes = {line.split("``")[1][:1].encode() for line in keys.__doc__.splitlines() if line.startswith("``")}
    assert len(prefixes) > 15
    assert prefixes == {kind.prefix for kind in dump._KINDS} | dump._LEFT_OUT | {b"M"}
    singles = {value for name, value in vars(keys).items() if isinstance(value, bytes) and value[:1] == b"M"}
    assert singles == {kind.prefix for kind in dump._SINGLE} | {keys.APPLIED, keys.MEMBERS}


def altered(lines, number, **fields):
    row = json.loads(lines[number]) | fields
    return [*lines[:number], json.dumps(row).encode() + b"\n", *lines[number + 1 :]]


BAD = {
    "cut short": lambda lines: lines[:-1],
    "cut inside a line": lambda lines: [*lines[:-1], lines[-1][:20]],
    "a line is gone": lambda lines: lines[:5] + lines[6:],
    "a line twice": lambda lines: [*lines[:5], lines[4], *lines[5:]],
    "two lines exchanged": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "another version": lambda lines: altered(lines, 0, shoal_dump=2),
    "no header": lambda lines: lines[1:],
    "unknown row": lambda lines: altered(lines, 3, row="wish"),
    "key too short": lambda lines: altered(lines, 3, key=[]),
    "key too large": lambda lines: altered(lines, 3, key=[1 << 64, "YQ=="]),
    "key of another type": lambda lines: altered(lines, 3, key=["YQ==", "YQ=="]),
    "value of another type": lambda lines: altered(lines, 3, value=5),
    "value changed": lambda lines: altered(lines, 1, value="YQ=="),
    "unknown field": lambda lines: altered(lines, 3, value=json.loads(lines[3])["value"] | {"new": 1}),
    "field missing": lambda lines: altered(lines, 3, value={}),
    "line too long": lambda lines: [lines[0], b'{"row":"' + b"x" * dump.LINE_BYTES_MAX + b'"}\n', *lines[1:]],
    "nested": lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[1:]],
    "nothing": lambda lines: [],
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_whole_dump_is_refused_in_one_line_and_leaves_no_store(md, tmp_path, case):
    with pytest.raises(UserError) as refused:
        load_into(tmp_path, BAD[case](dumped(md)))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "mds" / "store").exists()
    load_into(tmp_path, dumped(md))  # what the failed attempt left is not in the way


def test_a_directory_in_use_and_another_cluster_are_refused(md, tmp_path):
    with pytest.raises(UserError, match="cluster"):
        load_into(tmp_path, dumped(md), cluster_id=b"another cluster!")
    load_into(tmp_path, dumped(md))
    with pytest.raises(UserError, match="holds a store"):
        load_into(tmp_path, dumped(md))


def test_a_damaged_row_makes_no_dump(md):
    stored = bytearray(md.store.rows[keys.inode(ROOT_INODE)])
    stored[-1] ^= 1
    md.store.rows[keys.inode(ROOT_INODE)] = bytes(stored)
    with pytest.raises(DamagedRecord):
        dumped(md)


# --- whole nodes ----------------------------------------------------------------------------------------------------


async def test_an_operator_dumps_a_node_that_runs_and_a_new_one_starts_from_it(tmp_path):
    carriers = Carriers(MemoryFabric())
    hello = Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")

    async def make(leader, number):
        request = m.Mkdir(ROOT, ROOT_INODE, b"d%d" % number, 0o755)
        await mutate(leader, m.Op.MKDIR, request, session)

    async def mutate(leader, op, request, session, seq=[0]):  # noqa: B006 - one counter for the test
        seq[0] += bool(session)
        command = m.Command(0, seq[0], op, msgspec.Raw(msgspec.msgpack.encode(request)))
        (outcome,) = (await leader.call(m.MUTATE, m.Mutate(session, (command,)))).body.outcomes
        assert not outcome.code, outcome
        return outcome

    async with trio.open_nursery() as nursery, open_network(carriers, hello) as network:
        options = MdsOptions(
            str(tmp_path / "first"), "memory:mds", backup=backup.BackupOptions(str(tmp_path / "kept"), 1_000, 2)
        )
        await nursery.start(run, options, carriers)
        leader = Leader(network, ["memory:mds"])
        opened = await mutate(leader, m.Op.OPEN_SESSION, m.OpenSession(b"n" * 16, "t"), 0)
        session = msgspec.msgpack.decode(opened.body, type=m.SessionOpened).session
        for number in range(50):
            await make(leader, number)
        into = io.BytesIO()
        size_bytes = await fetch(Operator(network, leader), into)
        assert size_bytes == len(into.getvalue())
        await fetch(Operator(network, leader), io.BytesIO())  # the first one is out of the way
        with trio.fail_after(20):
            while len(list((tmp_path / "kept").glob("*.jsonl"))) < 2:
                await trio.sleep(0.1)
                await make(leader, 1000 + int(trio.current_time() * 1e6) % 1_000_000_000)
        nursery.cancel_scope.cancel()
    assert not list((tmp_path / "first" / "dumping").iterdir())

    into.seek(0)
    load.load(into, tmp_path / "second", b"", MEMBERS)
    async with trio.open_nursery() as nursery, open_network(carriers, hello) as network:
        await nursery.start(run, MdsOptions(str(tmp_path / "second"), "memory:mds"), carriers)
        leader = Leader(network, ["memory:mds"])
        status = (await leader.call(m.STATUS, m.GetStatus())).body
        assert status.inodes == 51
        assert status.upkeep.deletions_held
        number = (await leader.call(m.OPEN_CHECK, m.OpenCheck())).body.number
        checked = (await leader.call(m.READ_CHECK, m.ReadInspection(number, 1))).body
        assert (checked.findings, checked.done) == ((), True)
        opened = await mutate(leader, m.Op.OPEN_SESSION, m.OpenSession(b"N" * 16, "t"), 0)
        nursery.cancel_scope.cancel()


async def test_a_node_with_a_damaged_row_says_so_and_lives(tmp_path, monkeypatch):
    carriers = Carriers(MemoryFabric())

    def fails(_):
        yield b"some of it\n"
        raise DamagedRecord("the metadata record I 5 does not match its checksum", b"I")

    monkeypatch.setattr(dump, "lines", fails)
    async with trio.open_nursery() as nursery:
        await nursery.start(run, MdsOptions(str(tmp_path), "memory:mds"), carriers)
        async with open_network(carriers, Hello(PROTOCOL_VERSION, b"", m.ADMIN, "test")) as network:
            operator = Operator(network, Leader(network, ["memory:mds"]))
            for _ in range(2):
                with pytest.raises(PosixError, match="I 5"):
                    await fetch(operator, io.BytesIO())
        nursery.cancel_scope.cancel()


async def test_a_client_may_not_dump(tmp_path):
    carriers = Carriers(MemoryFabric())
    async with trio.open_nursery() as nursery:
        await nursery.start(run, MdsOptions(str(tmp_path), "memory:mds"), carriers)
        async with open_network(carriers, Hello(PROTOCOL_VERSION, b"", m.CLIENT, "test")) as network:
            with pytest.raises(NotAllowed):
                await Leader(network, ["memory:mds"]).call(messages.OPEN_DUMP, m.OpenDump())
        nursery.cancel_scope.cancel()


def test_backups_are_kept_in_number_and_a_failed_one_removes_nothing(tmp_path):
    store = LmdbStore.open(str(tmp_path / "store"))
    md = Metadata(store)
    try:
        paths = []
        for number in range(4):
            md.mkdir(b"d%d" % number)
            paths.append(backup.make(store, tmp_path / "kept", 2))
        assert sorted((tmp_path / "kept").iterdir()) == sorted(paths[-2:])
        with paths[-1].open("rb") as file:
            header, _, _ = next(islice(dump.rows(file), 1))
            assert header.index == md.machine.applied_index
        assert backup.make(store, tmp_path / "kept", 1, lambda: True) is not None
        (tmp_path / "kept").joinpath("backup.part").mkdir()
        with pytest.raises(OSError, match="directory"):
            backup.make(store, tmp_path / "kept", 1)
        assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 1
    finally:
        store.close()
