"""Paths of inodes of which only the numbers are known."""

import msgspec
import pytest

from harness.damaged_metadata import World
from shoalfs.mds import find_paths, keys
from shoalfs.mds import messages as m
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import CONTROL_BYTES_MAX


def found(world, *inos):
    with world.store.read() as txn:
        pages = [page for page in find_paths.find(txn, inos) if page is not None]
    assert [page.done for page in pages] == [False] * (len(pages) - 1) + [True]
    return pages, {ino: path for page in pages for ino, path in page.paths}


@pytest.fixture(params=[1, 2, 400])
def world(request, monkeypatch):
    monkeypatch.setattr(find_paths, "TICK_ROWS", request.param)
    return World()


def test_names_at_all_depths(world):
    deep = world.create(b"deep", parent=world.sub).ino
    _, paths = found(world, world.f, world.g, deep, world.sub, world.d, ROOT_INODE)
    assert paths == {
        world.f: b"/d/f",
        world.g: b"/g",
        deep: b"/d/sub/deep",
        world.sub: b"/d/sub",
        world.d: b"/d",
        ROOT_INODE: b"/",
    }


def test_what_has_no_name_is_left_out(world):
    _, paths = found(world, world.orphan, InodeId(999), world.g)
    assert paths == {world.g: b"/g"}


def test_one_of_several_names(world):
    world.do(m.Link(m.ROOT_CREDENTIALS, world.g, world.sub, b"again"))
    assert found(world, world.g)[1][world.g] in (b"/g", b"/d/sub/again")


def test_damage_on_the_way_costs_what_is_below_it(world):
    deep = world.create(b"deep", parent=world.sub).ino
    world.damage(keys.dentry(world.d, b"sub"))
    assert found(world, deep, world.f)[1] == {world.f: b"/d/f"}
    world.damage(keys.inode(world.d))
    assert found(world, deep, world.g)[1] == {world.g: b"/g"}


def test_a_cycle_comes_to_an_end(world):
    world.inode(world.d, parent=world.sub)
    with world.store.write() as txn:
        txn.put(keys.dentry(world.sub, b"d"), txn.get(keys.dentry(ROOT_INODE, b"d")))
        txn.delete(keys.dentry(ROOT_INODE, b"d"))
    assert found(world, world.f, world.g)[1] == {world.g: b"/g"}


def test_long_paths_take_several_messages():
    world = World()
    parent = ROOT_INODE
    for _ in range(15):
        parent = world.mkdir(b"n" * 250, parent=parent).ino
    inos = [world.create(b"%03d" % number + b"n" * 240, parent=parent).ino for number in range(300)]
    pages, paths = found(world, *inos)
    assert len(pages) > 1
    assert max(len(msgspec.msgpack.encode(page)) for page in pages) < CONTROL_BYTES_MAX
    assert len(paths) == 300
    assert set(map(len, paths.values())) == {15 * 251 + 244}
