"""The namespace check finds each kind of fault, names the inode, and finds nothing in a sound namespace."""

import io

import msgspec
import pytest

from harness.damaged_metadata import FAULTS, World, replace
from shoalfs.mds import check, check_findings, check_totals, keys, records
from shoalfs.mds.check_findings import Findings
from shoalfs.mds.records import Dentry
from shoalfs.mds.seal import seal
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import CONTROL_BYTES_MAX, FRAGMENTS_MAX


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault):
    world = World()
    world.root = ROOT_INODE
    assert world.findings() == []
    inject, kinds, named = FAULTS[fault]
    inject(world)
    found = world.findings()
    assert kinds <= {f.kind for f in found}, found
    if named is not None:
        ino = getattr(world, named)
        wanted = [f for f in found if f.kind in kinds and f.kind != "wrong-counter"]
        assert {f.ino for f in wanted} == {ino}, found
    assert all(f.text for f in found)


def test_all_kinds_of_findings_are_tried():
    import inspect

    source = "".join(inspect.getsource(module) for module in (check, check_totals))
    import re

    kinds = set(re.findall(r'findings\.add\(\s*"([a-z-]+)"', source))
    assert len(kinds) > 20
    assert kinds <= set().union(*(kinds for _, kinds, _ in FAULTS.values()))


def test_any_damaged_row_is_reported_and_the_check_goes_on():
    for key in list(World().store.rows):
        if key[:1] in (b"M", b"T", b"U", b"P", b"G", b"R", b"s"):
            continue  # not of the namespace, or covered elsewhere
        world = World()
        world.damage(key)
        found = world.findings()
        damaged = [f for f in found if f.kind == "damaged-record"]
        assert len({f.text for f in damaged}) == 1, (key, found)
        if key[:1] in b"DEILXCAO":
            assert {f.ino for f in damaged} == {keys.first_field(key)}


def test_a_range_at_a_time_finds_the_same(monkeypatch):
    """However few inodes and chunks are looked at together, and however often the check stops."""
    world = World()
    world.inode(world.f, nlink=2)
    world.inode(world.g, used_bytes=1)
    world.counters(inodes=1)
    world.damage(keys.inode(world.l))
    world.change(records.CHUNK_USE, keys.chunk_use(world.chunk_a), extents=9)
    world.delete(keys.chunk_use(world.chunk_b))
    expected = sorted((f.kind, f.ino, f.key) for f in world.findings())
    assert len(expected) >= 7
    for size in (1, 2, 3):
        monkeypatch.setattr(check, "_INODES_PER_RANGE", size)
        monkeypatch.setattr(check_totals, "_CHUNKS_PER_RANGE", size)
        for module in (check, check_totals):
            monkeypatch.setattr(module, "TICK_ROWS", size)
        assert sorted((f.kind, f.ino, f.key) for f in world.findings()) == expected


def test_scratch_files_are_let_go_of():
    files = []

    def new_file():
        files.append(io.BytesIO())
        return files[-1]

    with World().store.read() as txn:
        list(check.check(txn, new_file))
    assert files
    assert all(file.closed for file in files)


def test_extents_are_listed_and_end_a_page(monkeypatch):
    world = World()
    (page,) = world.pages()
    assert [(ino, e.offset_bytes) for ino, e in page.extents] == [(world.g, o) for o in (0, 50, 60, 100)]
    assert (page.done, page.inodes) == (True, 8)
    monkeypatch.setattr(check, "_LISTED_BYTES_MAX", 3 * check._EXTENT_BYTES)
    other = world.create(b"other").ino
    world.commit(other, world.extent(world.chunk(), 0, 10))
    first, second = world.pages()
    assert [(ino, e.offset_bytes) for ino, e in first.extents] == [(world.g, o) for o in (0, 50, 60)]
    assert first.unlisted == ((world.g, 100),)
    assert [ino for ino, _ in second.extents] == [other]
    assert (first.done, second.done, first.inodes + second.inodes) == (False, True, 9)
    assert world.findings() == []


def test_pages_of_large_extents_and_of_many_findings_fit_a_message():
    """Extents of chunks in fragments carry a hash for each of them."""
    world = World()
    with world.store.write() as txn:
        extent = records.EXTENT.require(txn, keys.extent(world.g, 0))
        for number in range(8_000):
            offset = 1_000 + number * 10
            row = replace(extent, offset_bytes=offset, length_bytes=10, fragments=b"f" * 16 * FRAGMENTS_MAX)
            txn.put(keys.extent(world.g, offset), records.EXTENT.encode(row))
        for number in range(3_000):
            txn.put(keys.dentry(world.d, b"%04d" % number * 60), records.DENTRY.encode(Dentry(1 << 40, 0o100000, 1)))
    pages = world.pages()
    assert max(len(msgspec.msgpack.encode(page)) for page in pages) <= CONTROL_BYTES_MAX
    assert [ino for page in pages for ino, _ in page.unlisted] == [world.g]
    found = [f.kind for page in pages for f in page.findings]
    assert found.count("dangling-dentry") == 3_000


def test_findings_are_bounded(monkeypatch):
    monkeypatch.setattr(check_findings, "FINDINGS_MAX", 2)
    monkeypatch.setattr(Findings, "are_many", False)
    world = World()
    for name in ("inodes", "orphans", "garbage_chunks", "sessions"):
        world.counters(**{name: 99})
    kinds = [f.kind for f in world.findings()]
    assert kinds == ["wrong-counter", "wrong-counter", "more-findings"]


def test_two_names_at_one_place():
    """One of them is listed there, so the other one is nowhere."""
    world = World()
    with world.store.read() as txn:
        entry = records.DENTRY.require(txn, keys.dentry(world.d, b"f"))
    world.put(keys.dentry(world.d, b"twin"), records.DENTRY.encode(entry))
    world.inode(world.f, nlink=2)
    assert ("dentry-not-listed", world.d) in [(f.kind, f.ino) for f in world.findings()]


def test_a_row_that_moved_is_damage():
    world = World()
    world.store.rows[keys.inode(world.f)] = seal(keys.inode(world.g), b"whatever")
    assert "damaged-record" in {f.kind for f in world.findings()}
