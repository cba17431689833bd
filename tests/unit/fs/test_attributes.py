"""The attribute cache and the record of what the kernel's pages are worth."""

from shoalfs.fs.attributes import AttributeCache
from shoalfs.fs.pages import KernelPages
from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId

INO = InodeId(5)


def inode(version=1, data_version=1, ino=INO):
    return Inode(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version, data_version)


def test_attributes_are_good_for_their_time_only():
    cache = AttributeCache(1.0)
    cache.put(inode(), 10.0)
    assert cache.get(INO, 10.9) == inode()
    assert cache.get(INO, 11.0) is None


def test_an_older_answer_never_replaces_a_newer_one():
    cache = AttributeCache(1.0)
    cache.put(inode(version=3), 0.0)
    cache.put(inode(version=2), 0.1)
    assert cache.get(INO, 0.2).version == 3


def test_attributes_are_bounded(monkeypatch):
    monkeypatch.setattr("shoalfs.fs.attributes._ENTRIES_MAX", 2)
    cache = AttributeCache(1.0)
    for number in range(1, 4):
        cache.put(inode(ino=InodeId(number)), 0.0)
    assert cache.get(InodeId(1), 0.0) is None
    assert cache.get(InodeId(3), 0.0) is not None


def test_pages_are_good_at_their_version_only():
    pages = KernelPages()
    assert not pages.still_good(inode())
    pages.valid_at(INO, 4)
    assert pages.still_good(inode(data_version=4))
    assert not pages.still_good(inode(data_version=5))
    pages.spoiled(INO)
    pages.spoiled(INO)
    assert not pages.still_good(inode(data_version=4))
