"""RENAME: every pair of things, flags, permissions, and what it does to directories and listings."""

import errno
import stat

import pytest

from harness.metadata import ALICE, BOB, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId

E = errno
NOREPLACE, EXCHANGE = int(m.RenameFlags.NOREPLACE), int(m.RenameFlags.EXCHANGE)


@pytest.fixture
def md():
    md = Metadata()
    yield md
    assert md.findings() == []


def lookup(md, parent, name):
    return md.read(reads.lookup, m.Lookup(ROOT, parent, name)).inode


def getattr_(md, ino):
    return md.read(reads.getattr_, m.GetAttr(ino)).inode


def names(md, ino=ROOT_INODE):
    return [e.name for e in md.read(reads.readdir, m.ReadDir(ROOT, ino, 0, 1000)).entries]


def rename(md, old, new, *, parent=ROOT_INODE, new_parent=None, flags=0, who=ROOT):
    return md.do(m.Rename(who, parent, old, new_parent or parent, new, flags))


def fails(md, number, *args, **options):
    before = dict(md.store.rows)
    with pytest.raises(PosixError) as caught:
        rename(md, *args, **options)
    assert E.errorcode[caught.value.errno] == E.errorcode[number]
    ignored = (b"R", b"M")
    assert [i for i in md.store.rows.items() if i[0][:1] not in ignored] == [
        i for i in sorted(before.items()) if i[0][:1] not in ignored
    ]


def pair(md, kind, name, parent=ROOT_INODE):
    if kind == "file":
        md.create(name, parent=parent)
    elif kind == "symlink":
        md.do(m.Symlink(ROOT, parent, name, b"t"))
    elif kind == "dir":
        md.mkdir(name, parent=parent)
    elif kind == "full":
        md.create(b"inside", parent=md.mkdir(name, parent=parent).ino)


REPLACE = {
    ("file", "file"): None,
    ("file", "symlink"): None,
    ("symlink", "file"): None,
    ("file", "dir"): E.EISDIR,
    ("file", "full"): E.EISDIR,
    ("dir", "file"): E.ENOTDIR,
    ("dir", "symlink"): E.ENOTDIR,
    ("dir", "dir"): None,
    ("dir", "full"): E.ENOTEMPTY,
    ("full", "dir"): None,
    ("file", "none"): None,
    ("full", "none"): None,
    ("none", "file"): E.ENOENT,
    ("none", "none"): E.ENOENT,
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("kinds", "number"), REPLACE.items())
def test_moving_over(md, kinds, number, apart):
    a = md.mkdir(b"a").ino
    b = md.mkdir(b"b").ino if apart else a
    pair(md, kinds[0], b"old", a)
    pair(md, kinds[1], b"new", b)
    if number is not None:
        fails(md, number, b"old", b"new", parent=a, new_parent=b)
        return
    moved = lookup(md, a, b"old")
    replaced = lookup(md, b, b"new") if kinds[1] != "none" else None
    answer = rename(md, b"old", b"new", parent=a, new_parent=b)
    assert answer.moved.ino == moved.ino
    assert answer.moved.ctime_ns == md.now_ns
    assert answer.moved.mtime_ns == moved.mtime_ns
    assert lookup(md, b, b"new") == answer.moved
    if replaced is None:
        assert answer.other is None
    else:
        assert (answer.other.ino, answer.other.nlink) == (replaced.ino, 0)
        assert md.read(reads.orphans, 10) == [replaced.ino]
    is_dir = kinds[0] in ("dir", "full")
    for ino, subdirectories, entries in ((a, is_dir and not apart, not apart), (b, is_dir, 1)):
        directory = getattr_(md, ino)
        assert directory.mtime_ns == directory.ctime_ns == md.now_ns
        assert (directory.nlink, directory.size_bytes) == (2 + subdirectories, entries)
    if is_dir:
        assert answer.moved.parent == b


@pytest.mark.parametrize("kinds", [(a, b) for a in ("file", "dir", "full") for b in ("file", "dir", "full")])
@pytest.mark.parametrize("apart", [False, True])
def test_exchanging(md, kinds, apart):
    a = md.mkdir(b"a").ino
    b = md.mkdir(b"b").ino if apart else a
    pair(md, kinds[0], b"old", a)
    pair(md, kinds[1], b"new", b)
    old, new = lookup(md, a, b"old"), lookup(md, b, b"new")
    answer = rename(md, b"old", b"new", parent=a, new_parent=b, flags=EXCHANGE)
    assert (answer.moved.ino, answer.other.ino) == (old.ino, new.ino)
    assert lookup(md, a, b"old").ino == new.ino
    assert lookup(md, b, b"new").ino == old.ino
    assert answer.moved.ctime_ns == answer.other.ctime_ns == md.now_ns
    if kinds[1] != "file":
        assert getattr_(md, new.ino).parent == a
    if apart:
        assert getattr_(md, a).nlink == 2 + (kinds[1] != "file")
        assert getattr_(md, b).nlink == 2 + (kinds[0] != "file")


def test_flags(md):
    md.create(b"a")
    md.create(b"b")
    fails(md, E.EEXIST, b"a", b"b", flags=NOREPLACE)
    fails(md, E.EEXIST, b"a", b"a", flags=NOREPLACE)
    fails(md, E.ENOENT, b"a", b"c", flags=EXCHANGE)
    fails(md, E.EINVAL, b"a", b"c", flags=NOREPLACE | EXCHANGE)
    fails(md, E.EINVAL, b"a", b"c", flags=4)
    rename(md, b"a", b"c", flags=NOREPLACE)
    assert names(md) == [b"b", b"c"]


def test_two_names_of_one_inode_stay(md):
    made = md.create(b"a")
    md.do(m.Link(ROOT, made.ino, ROOT_INODE, b"b"))
    before = getattr_(md, made.ino)
    for flags in (0, EXCHANGE):
        answer = rename(md, b"a", b"b", flags=flags)
        assert answer.moved == answer.other == before
    assert rename(md, b"a", b"a").moved == before
    assert names(md) == [b"a", b"b"]


def test_nothing_moves_below_itself(md):
    a = md.mkdir(b"a").ino
    b = md.mkdir(b"b", parent=a).ino
    c = md.mkdir(b"c", parent=b).ino
    fails(md, E.EINVAL, b"a", b"x", new_parent=a)
    fails(md, E.EINVAL, b"a", b"x", new_parent=c)
    fails(md, E.EINVAL, b"a", b"c", new_parent=b, flags=EXCHANGE)
    fails(md, E.ENOTEMPTY, b"c", b"a", parent=b, new_parent=ROOT_INODE)
    fails(md, E.EINVAL, b"c", b"a", parent=b, new_parent=ROOT_INODE, flags=EXCHANGE)
    md.create(b"f", parent=b)
    fails(md, E.ENOTEMPTY, b"f", b"b", parent=b, new_parent=a)


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        (b".", b"x", E.EBUSY),
        (b"..", b"x", E.EBUSY),
        (b"a", b".", E.EBUSY),
        (b"a", b"..", E.EBUSY),
        (b"a", b"", E.EINVAL),
        (b"a", b"x/y", E.EINVAL),
        (b"a", b"n" * 256, E.ENAMETOOLONG),
        (b"n" * 256, b"x", E.ENAMETOOLONG),
        (b"missing", b"x", E.ENOENT),
    ],
)
def test_names(md, old, new, number):
    md.create(b"a")
    fails(md, number, old, new)


def test_dots_with_noreplace(md):
    md.create(b"a")
    fails(md, E.EEXIST, b"a", b"..", flags=NOREPLACE)


def test_parents_that_are_none(md):
    file = md.create(b"file").ino
    gone = md.mkdir(b"gone").ino
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"gone"))
    fails(md, E.ENOTDIR, b"file", b"x", new_parent=file)
    fails(md, E.ENOTDIR, b"x", b"x", parent=file, new_parent=ROOT_INODE)
    fails(md, E.ENOENT, b"file", b"x", new_parent=gone)
    fails(md, E.ESTALE, b"file", b"x", new_parent=InodeId(999))


def test_permissions(md):
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    mine = md.mkdir(b"mine", who=ALICE).ino
    theirs = md.mkdir(b"theirs", who=BOB).ino
    md.create(b"f", parent=mine, who=ALICE)
    md.create(b"g", parent=theirs, who=BOB)
    fails(md, E.EACCES, b"f", b"x", parent=mine, new_parent=theirs, who=ALICE)
    fails(md, E.EACCES, b"f", b"g", parent=mine, new_parent=theirs, who=ALICE)
    fails(md, E.EACCES, b"g", b"x", parent=theirs, new_parent=mine, who=ALICE)
    fails(md, E.EACCES, b"f", b"g", parent=mine, new_parent=theirs, who=ALICE, flags=EXCHANGE)
    rename(md, b"f", b"h", parent=mine, who=ALICE)


def test_sticky_on_both_sides(md):
    sticky = md.mkdir(b"sticky", mode=0o1777).ino
    free = md.mkdir(b"free", mode=0o777).ino
    md.create(b"bobs", parent=sticky, who=BOB)
    md.create(b"alices", parent=sticky, who=ALICE)
    md.create(b"f", parent=free, who=ALICE)
    fails(md, E.EPERM, b"bobs", b"x", parent=sticky, new_parent=free, who=ALICE)
    fails(md, E.EPERM, b"f", b"bobs", parent=free, new_parent=sticky, who=ALICE)
    fails(md, E.EPERM, b"f", b"bobs", parent=free, new_parent=sticky, who=ALICE, flags=EXCHANGE)
    fails(md, E.EPERM, b"alices", b"bobs", parent=sticky, who=ALICE)
    rename(md, b"alices", b"mine", parent=sticky, who=ALICE)
    rename(md, b"f", b"mine", parent=free, new_parent=sticky, who=ALICE)


def test_a_directory_whose_parent_changes_must_be_writable(md):
    a = md.mkdir(b"a", mode=0o777).ino
    b = md.mkdir(b"b", mode=0o777).ino
    md.mkdir(b"d", parent=a, who=BOB)
    md.mkdir(b"mine", parent=b, who=ALICE)
    fails(md, E.EACCES, b"d", b"d", parent=a, new_parent=b, who=ALICE)
    fails(md, E.EACCES, b"mine", b"d", parent=b, new_parent=a, who=ALICE, flags=EXCHANGE)
    rename(md, b"d", b"e", parent=a, who=ALICE)  # ".." stays the same
    rename(md, b"e", b"d", parent=a, new_parent=b, who=BOB)


def test_link_counts_of_directories_have_a_limit(md, monkeypatch):
    from shoalfs.mds.ops import rename as rename_module

    a, b = md.mkdir(b"a").ino, md.mkdir(b"b").ino
    for name in (b"1", b"2"):
        md.mkdir(name, parent=a)
        md.mkdir(name, parent=b)
    md.create(b"f", parent=b)
    md.create(b"g", parent=a)
    monkeypatch.setattr(rename_module, "LINK_COUNT_MAX", 4)
    fails(md, E.EMLINK, b"1", b"3", parent=a, new_parent=b)
    fails(md, E.EMLINK, b"1", b"f", parent=a, new_parent=b, flags=EXCHANGE)
    fails(md, E.EMLINK, b"g", b"1", parent=a, new_parent=b, flags=EXCHANGE)
    rename(md, b"1", b"1", parent=a, new_parent=b)  # one comes, one goes


def test_a_replaced_name_is_listed_where_it_was(md):
    for name in (b"a", b"b", b"c"):
        md.create(name)
    rename(md, b"c", b"a")
    assert names(md) == [b"a", b"b"]
    rename(md, b"a", b"z")
    assert names(md) == [b"b", b"z"]


def test_moved_file_keeps_its_type_rows(md):
    d = md.mkdir(b"d").ino
    md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"t"))
    rename(md, b"l", b"l", new_parent=d)
    assert stat.S_ISLNK(lookup(md, d, b"l").mode)
