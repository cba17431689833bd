"""CREATE, MKNOD, MKDIR, SYMLINK, LINK, UNLINK and RMDIR: outcomes, attributes and errnos, as several
users."""

import errno
import stat

import pytest

from harness.metadata import ALICE, BOB, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId

E = errno


@pytest.fixture
def md():
    md = Metadata()
    yield md
    assert md.findings() == []


def fails(md, number, request):
    """The request is refused with this errno, and changes nothing but its own record."""
    before = {k: v for k, v in rows(md).items() if k[:1] not in b"RM"}
    with pytest.raises(PosixError) as caught:
        md.do(request)
    assert E.errorcode[caught.value.errno] == E.errorcode[number]
    assert {k: v for k, v in rows(md).items() if k[:1] not in b"RM"} == before


def rows(md):
    return dict(md.store.rows)


def lookup(md, parent, name, who=ROOT):
    return md.read(reads.lookup, m.Lookup(who, parent, name)).inode


def getattr_(md, ino):
    return md.read(reads.getattr_, m.GetAttr(ino)).inode


def world(md):
    """Directories and files that the tables below refer to by name."""
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    md.mkdir(b"alice", who=ALICE, mode=0o755)
    md.mkdir(b"private", who=ALICE, mode=0o700)
    md.mkdir(b"noexec", who=ALICE, mode=0o666)
    md.mkdir(b"sticky", mode=0o777 | stat.S_ISVTX)
    md.mkdir(b"open", mode=0o777)
    md.create(b"file", who=ALICE)
    for parent in (b"alice", b"sticky", b"open", b"private", b"noexec"):
        md.create(b"f", parent=lookup(md, ROOT_INODE, parent).ino)
    sticky = lookup(md, ROOT_INODE, b"sticky").ino
    md.create(b"of-alice", parent=sticky, who=ALICE)
    md.mkdir(b"dir-of-alice", parent=sticky, who=ALICE)
    full = md.mkdir(b"full", mode=0o777)
    md.create(b"inside", parent=full.ino)
    gone = md.mkdir(b"gone", mode=0o777)
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"gone"))
    names = (b"alice", b"private", b"noexec", b"sticky", b"open", b"file", b"full")
    inos = {name: lookup(md, ROOT_INODE, name).ino for name in names}
    return inos | {b"": ROOT_INODE, b"gone": gone.ino, b"never": InodeId(999), b"huge": InodeId(1 << 64 - 1)}


# (parent, name, who, errno): refused for every operation that makes an entry.
NEW_ENTRY_REFUSED = [
    (b"file", b"x", ROOT, E.ENOTDIR),
    (b"never", b"x", ROOT, E.ESTALE),
    (b"huge", b"x", ROOT, E.ESTALE),
    (b"gone", b"x", ROOT, E.ENOENT),
    (b"", b"", ROOT, E.EINVAL),
    (b"", b"a/b", ROOT, E.EINVAL),
    (b"", b"a\0b", ROOT, E.EINVAL),
    (b"", b"n" * 256, ROOT, E.ENAMETOOLONG),
    (b"alice", b"x", BOB, E.EACCES),
    (b"private", b"x", BOB, E.EACCES),
    (b"noexec", b"x", BOB, E.EACCES),
    (b"noexec", b"x", ALICE, E.EACCES),
]


def makers(who, parent, name):
    return [
        m.Create(who, parent, name, 0o644, True),
        m.Create(who, parent, name, 0o644, False),
        m.Mknod(who, parent, name, stat.S_IFIFO | 0o644, 0),
        m.Mkdir(who, parent, name, 0o755),
        m.Symlink(who, parent, name, b"target"),
    ]


@pytest.mark.parametrize(("parent", "name", "who", "number"), NEW_ENTRY_REFUSED)
def test_new_entries_are_refused(md, parent, name, who, number):
    inos = world(md)
    for request in makers(who, inos[parent], name):
        fails(md, number, request)
    fails(md, number, m.Link(who, inos[b"file"], inos[parent], name))


@pytest.mark.parametrize("name", [b"file", b"alice", b".", b".."])
def test_a_name_that_is_taken(md, name):
    inos = world(md)
    for request in makers(ROOT, ROOT_INODE, name):
        if isinstance(request, m.Create) and not request.exclusive:
            continue
        fails(md, E.EEXIST, request)
    fails(md, E.EEXIST, m.Link(ROOT, inos[b"file"], ROOT_INODE, name))


def test_taken_wins_over_permission(md):
    inos = world(md)
    fails(md, E.EEXIST, m.Mkdir(BOB, inos[b"alice"], b"f", 0o755))


def test_create_finds_what_is_there_unless_exclusive(md):
    inos = world(md)
    before = getattr_(md, inos[b"file"])
    found = md.do(m.Create(BOB, ROOT_INODE, b"file", 0o600, False))
    assert (found.inode, found.created) == (before, False)
    fails(md, E.EISDIR, m.Create(ROOT, ROOT_INODE, b"alice", 0o600, False))
    fails(md, E.EISDIR, m.Create(ROOT, ROOT_INODE, b".", 0o600, False))
    # A name that is there may be opened in a directory that may not be written.
    assert not md.do(m.Create(BOB, inos[b"alice"], b"f", 0o600, False)).created


def test_a_new_file(md):
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    root = getattr_(md, ROOT_INODE)
    made = md.do(m.Create(ALICE, ROOT_INODE, b"n" * 255, 0o6754, True)).inode
    assert made.mode == stat.S_IFREG | 0o6754
    assert (made.uid, made.gid, made.nlink, made.size_bytes, made.rdev) == (1000, 1000, 1, 0, 0)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns == md.now_ns
    assert (made.pool, made.chunk_bytes, made.inline_bytes_max) == (1, 1 << 20, 100)
    after = getattr_(md, ROOT_INODE)
    assert after.mtime_ns == after.ctime_ns == md.now_ns
    assert after.atime_ns == root.atime_ns
    assert (after.size_bytes, after.nlink) == (1, 2)
    assert after.version > root.version
    assert after.data_version > root.data_version
    assert lookup(md, ROOT_INODE, b"n" * 255) == made


def test_a_new_directory(md):
    made = md.mkdir(b"d", mode=0o7755)
    assert made.mode == stat.S_IFDIR | 0o1755  # mkdir(2) takes no set-id bits
    assert (made.nlink, made.parent, made.size_bytes) == (2, ROOT_INODE, 0)
    assert getattr_(md, ROOT_INODE).nlink == 3
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"d"))
    assert getattr_(md, ROOT_INODE).nlink == 2


def test_a_set_group_id_directory_hands_its_group_on(md):
    parent = md.mkdir(b"shared", mode=0o777)
    md.do(m.SetAttr(ROOT, parent.ino, gid=2000))
    md.do(m.SetAttr(ROOT, parent.ino, mode=0o2777))
    assert md.create(b"f", parent=parent.ino, who=ALICE).gid == 2000
    made = md.mkdir(b"d", parent=parent.ino, who=ALICE)
    assert (made.gid, made.mode & 0o7777) == (2000, 0o2755)
    # A stranger to the group gets no executable file with its set-group-id bit; a member does.
    stranger = m.Credentials(3000, 3000)
    assert not md.create(b"x", parent=parent.ino, who=stranger, mode=0o2755).mode & stat.S_ISGID
    assert md.create(b"y", parent=parent.ino, who=stranger, mode=0o2745).mode & stat.S_ISGID
    assert md.create(b"z", parent=parent.ino, who=ALICE, mode=0o2755).mode & stat.S_ISGID


@pytest.mark.parametrize(
    ("mode", "who", "rdev", "result"),
    [
        (stat.S_IFIFO | 0o600, ALICE, 7, stat.S_IFIFO),
        (stat.S_IFSOCK | 0o600, ALICE, 0, stat.S_IFSOCK),
        (stat.S_IFREG | 0o600, ALICE, 0, stat.S_IFREG),
        (0o600, ALICE, 0, stat.S_IFREG),
        (stat.S_IFCHR | 0o600, ROOT, 0x103, stat.S_IFCHR),
        (stat.S_IFBLK | 0o600, ROOT, 0x801, stat.S_IFBLK),
        (stat.S_IFCHR | 0o600, ALICE, 0x103, E.EPERM),
        (stat.S_IFCHR | 0o600, ALICE, 0, stat.S_IFCHR),  # a whiteout
        (stat.S_IFDIR | 0o600, ROOT, 0, E.EPERM),
        (stat.S_IFLNK | 0o600, ROOT, 0, E.EINVAL),
        (0o170000 | 0o600, ROOT, 0, E.EINVAL),
        (stat.S_IFCHR | 0o600, ROOT, 1 << 33, E.EINVAL),
    ],
)
def test_mknod(md, mode, who, rdev, result):
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    request = m.Mknod(who, ROOT_INODE, b"node", mode, rdev)
    if result < 1000:
        fails(md, result, request)
    else:
        inode = md.do(request).inode
        assert stat.S_IFMT(inode.mode) == result
        assert inode.rdev == (rdev if result in (stat.S_IFCHR, stat.S_IFBLK) else 0)


def test_symlink(md):
    made = md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"t" * 4095)).inode
    assert (made.mode, made.size_bytes, made.used_bytes) == (stat.S_IFLNK | 0o777, 4095, 0)
    assert md.read(reads.readlink, m.ReadLink(made.ino)).target == b"t" * 4095
    fails(md, E.ENAMETOOLONG, m.Symlink(ROOT, ROOT_INODE, b"m", b"t" * 4096))
    fails(md, E.ENOENT, m.Symlink(ROOT, ROOT_INODE, b"m", b""))
    fails(md, E.EINVAL, m.Symlink(ROOT, ROOT_INODE, b"m", b"a\0b"))


def test_link(md):
    made = md.create(b"a", who=ALICE, parent=md.mkdir(b"d", mode=0o777).ino)
    linked = md.do(m.Link(ROOT, made.ino, ROOT_INODE, b"b")).inode
    assert (linked.nlink, linked.ctime_ns, linked.mtime_ns) == (2, md.now_ns, made.mtime_ns)
    assert lookup(md, ROOT_INODE, b"b") == linked
    fails(md, E.EPERM, m.Link(ROOT, lookup(md, ROOT_INODE, b"d").ino, ROOT_INODE, b"c"))
    fails(md, E.ESTALE, m.Link(ROOT, InodeId(999), ROOT_INODE, b"c"))
    target = md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"a")).inode
    assert md.do(m.Link(ROOT, target.ino, ROOT_INODE, b"l2")).inode.nlink == 2


def test_no_new_name_for_a_removed_file(md):
    made = md.create(b"a")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"a"))
    fails(md, E.ENOENT, m.Link(ROOT, made.ino, ROOT_INODE, b"b"))


@pytest.mark.parametrize(
    ("parent", "name", "who", "unlink", "rmdir"),
    [
        (b"", b"missing", ROOT, E.ENOENT, E.ENOENT),
        (b"", b".", ROOT, E.EISDIR, E.EINVAL),
        (b"", b"..", ROOT, E.EISDIR, E.ENOTEMPTY),
        (b"", b"n" * 256, ROOT, E.ENAMETOOLONG, E.ENAMETOOLONG),
        (b"file", b"x", ROOT, E.ENOTDIR, E.ENOTDIR),
        (b"gone", b"x", ROOT, E.ENOENT, E.ENOENT),
        (b"never", b"x", ROOT, E.ESTALE, E.ESTALE),
        (b"", b"full", ROOT, E.EISDIR, E.ENOTEMPTY),
        (b"", b"alice", ROOT, E.EISDIR, E.ENOTEMPTY),
        (b"open", b"f", ROOT, None, E.ENOTDIR),
        (b"alice", b"f", BOB, E.EACCES, E.EACCES),
        (b"alice", b"missing", BOB, E.ENOENT, E.ENOENT),
        (b"private", b"f", BOB, E.EACCES, E.EACCES),
        (b"noexec", b"f", ALICE, E.EACCES, E.EACCES),
        (b"open", b"f", BOB, None, E.ENOTDIR),
        (b"sticky", b"f", BOB, E.EPERM, E.EPERM),
        (b"sticky", b"of-alice", BOB, E.EPERM, E.EPERM),
        (b"sticky", b"of-alice", ALICE, None, E.ENOTDIR),
        (b"sticky", b"of-alice", ROOT, None, E.ENOTDIR),
        (b"sticky", b"dir-of-alice", BOB, E.EPERM, E.EPERM),
        (b"sticky", b"dir-of-alice", ALICE, E.EISDIR, None),
    ],
)
def test_removal(md, parent, name, who, unlink, rmdir):
    inos = world(md)
    for number, request in ((unlink, m.Unlink), (rmdir, m.Rmdir)):
        if number is not None:
            fails(md, number, request(who, inos[parent], name))
    for number, request in ((unlink, m.Unlink), (rmdir, m.Rmdir)):
        if number is None:
            md.do(request(who, inos[parent], name))
            fails(md, E.ENOENT, request(who, inos[parent], name))


def test_a_removed_file_is_an_orphan_until_it_is_reaped(md):
    made = md.create(b"a")
    md.write_inline(made.ino, 0, b"bytes")
    md.do(m.Link(ROOT, made.ino, ROOT_INODE, b"b"))
    assert md.do(m.Unlink(ROOT, ROOT_INODE, b"a")).inode.nlink == 1
    assert md.read(reads.orphans, 10) == []
    left = md.do(m.Unlink(ROOT, ROOT_INODE, b"b")).inode
    assert (left.nlink, left.ctime_ns) == (0, md.now_ns)
    assert md.read(reads.orphans, 10) == [made.ino]
    assert md.read(reads.open_, m.Open(ROOT, md.session, made.ino, True, False))[1] == b"bytes"
    assert md.do(m.Reap(made.ino), session=0).done
    assert md.read(reads.orphans, 10) == []
    fails(md, E.ESTALE, m.SetAttr(ROOT, made.ino, mode=0))
    assert md.do(m.Reap(made.ino), session=0).done  # again: nothing to do


def test_a_removed_directory_is_an_orphan_too(md):
    made = md.mkdir(b"d")
    left = md.do(m.Rmdir(ROOT, ROOT_INODE, b"d")).inode
    assert left.nlink == 0
    assert getattr_(md, made.ino).nlink == 0
    assert md.read(reads.readdir, m.ReadDir(ROOT, made.ino, 0, 10)).entries == ()
    md.do(m.Reap(made.ino), session=0)
    with pytest.raises(PosixError):
        getattr_(md, made.ino)


def test_what_has_a_name_is_not_reaped(md):
    made = md.create(b"a")
    with pytest.raises(PosixError) as caught:
        md.do(m.Reap(made.ino), session=0)
    assert caught.value.errno == E.EBUSY


def test_link_counts_have_a_limit(md, monkeypatch):
    from shoalfs.mds import dentry
    from shoalfs.mds.ops import link as link_module

    monkeypatch.setattr(dentry, "LINK_COUNT_MAX", 4)
    monkeypatch.setattr(link_module, "LINK_COUNT_MAX", 2)
    made = md.create(b"f")
    md.mkdir(b"d1")
    md.mkdir(b"d2")
    fails(md, E.EMLINK, m.Mkdir(ROOT, ROOT_INODE, b"d3", 0o755))
    md.do(m.Link(ROOT, made.ino, ROOT_INODE, b"g"))
    fails(md, E.EMLINK, m.Link(ROOT, made.ino, ROOT_INODE, b"h"))
