"""The namespace check finds each kind of fault, names the inode, and finds nothing in a sound namespace."""

import pytest

from harness.damaged_metadata import FAULTS, World
from shoalfs.mds import check, check_findings, keys
from shoalfs.mds import messages as m
from shoalfs.mds.check import check_namespace
from shoalfs.mds.seal import seal
from shoalfs.transport.ids import ROOT_INODE, InodeId


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

    source = "".join(inspect.getsource(module) for module in (check, check.check_totals))
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


def test_a_page_at_a_time_finds_the_same():
    world = World()
    world.inode(world.f, nlink=2)
    world.inode(world.g, used_bytes=1)
    world.counters(inodes=1)
    world.damage(keys.inode(world.l))
    expected = sorted((f.kind, f.ino) for f in world.findings() if f.kind != "damaged-record")
    for count in (1, 2, 3):
        found = sorted((f.kind, f.ino) for f in world.findings(count) if f.kind != "damaged-record")
        assert found == expected


def test_extents_are_listed_and_end_a_page(monkeypatch):
    world = World()
    with world.store.read() as txn:
        page = check_namespace(txn, m.CheckNamespace(InodeId(0)))
    assert [(ino, e.offset_bytes) for ino, e in page.extents] == [(world.g, o) for o in (0, 50, 60, 100)]
    assert (page.next_ino, page.inodes) == (0, 8)
    monkeypatch.setattr(check, "_EXTENTS_MAX", 3)
    with world.store.read() as txn:
        page = check_namespace(txn, m.CheckNamespace(InodeId(0)))
    assert (len(page.extents), page.next_ino) == (3, world.g)
    assert page.unlisted == ((world.g, 100),)
    assert world.findings() == []


def test_findings_are_bounded(monkeypatch):
    monkeypatch.setattr(check_findings, "FINDINGS_MAX", 2)
    world = World()
    for name in ("inodes", "orphans", "garbage_chunks", "sessions"):
        world.counters(**{name: 99})
    kinds = [f.kind for f in world.findings()]
    assert kinds == ["wrong-counter", "wrong-counter", "more-findings"]


def test_odd_requests():
    world = World()
    for after in (-1, 1 << 63):
        with world.store.read() as txn:
            assert check_namespace(txn, m.CheckNamespace(InodeId(after), 5)).inodes == 0


def test_a_row_that_moved_is_damage():
    world = World()
    world.store.rows[keys.inode(world.f)] = seal(keys.inode(world.g), b"whatever")
    assert "damaged-record" in {f.kind for f in world.findings()}
