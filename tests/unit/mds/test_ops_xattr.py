"""SETXATTR, REMOVEXATTR and the reads of extended attributes: namespaces, permissions, flags and limits."""

import errno
import stat

import pytest

from harness.metadata import ALICE, BOB, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE

E = errno


@pytest.fixture
def md():
    md = Metadata()
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    yield md
    assert md.findings() == []


@pytest.fixture
def ino(md):
    return md.create(b"f", who=ALICE, mode=0o644).ino


def outcome(do, *args):
    try:
        do(*args)
    except PosixError as error:
        return error.errno
    return None


def set_(md, who, ino, name, value=b"v", flags=0):
    return outcome(md.do, m.SetXattr(who, ino, name, value, flags))


def get(md, who, ino, name):
    return outcome(md.read, reads.getxattr, m.GetXattr(who, ino, name))


def names(md, who, ino):
    return md.read(reads.listxattr, m.ListXattr(who, ino)).names


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"user.a", None),
        (b"user." + b"n" * 250, None),
        (b"user." + b"n" * 251, E.ERANGE),
        (b"", E.ERANGE),
        (b"user.", E.EINVAL),
        (b"user.a\0b", E.EINVAL),
        (b"noname", E.EOPNOTSUPP),
        (b"other.a", E.EOPNOTSUPP),
        (b"system.posix_acl_other", E.EOPNOTSUPP),
    ],
)
def test_names(md, ino, name, number):
    assert set_(md, ROOT, ino, name) == number
    assert get(md, ROOT, ino, name) == number
    assert outcome(md.do, m.RemoveXattr(ROOT, ino, name)) == number


# (who, name, set, get once root has set it, seen in the listing); the file is alice's, 0644.
WHO = [
    (ROOT, b"user.a", None, None, True),
    (ALICE, b"user.a", None, None, True),
    (BOB, b"user.a", E.EACCES, None, True),
    (ROOT, b"trusted.a", None, None, True),
    (ALICE, b"trusted.a", E.EPERM, E.ENODATA, False),
    (ROOT, b"security.selinux", None, None, True),
    (ALICE, b"security.selinux", E.EPERM, None, True),
]


@pytest.mark.parametrize(("who", "name", "may_set", "may_get", "seen"), WHO)
def test_permissions(md, ino, who, name, may_set, may_get, seen):
    assert set_(md, who, ino, name) == may_set
    assert set_(md, ROOT, ino, name, b"root's") is None
    assert get(md, who, ino, name) == may_get
    assert names(md, who, ino) == ((name,) if seen else ())
    assert outcome(md.do, m.RemoveXattr(who, ino, name)) == may_set


def test_reading_needs_read_permission(md):
    made = md.create(b"secret", who=ALICE, mode=0o600)
    set_(md, ALICE, made.ino, b"user.a")
    assert get(md, BOB, made.ino, b"user.a") == E.EACCES
    assert names(md, BOB, made.ino) == (b"user.a",)


def test_user_attributes_are_for_files_and_directories(md):
    link = md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"t")).inode
    fifo = md.do(m.Mknod(ROOT, ROOT_INODE, b"p", stat.S_IFIFO | 0o666, 0)).inode
    for special in (link, fifo):
        assert set_(md, ROOT, special.ino, b"user.a") == E.EPERM
        assert get(md, ROOT, special.ino, b"user.a") == E.ENODATA
        assert set_(md, ROOT, special.ino, b"trusted.a") is None
    assert set_(md, ALICE, md.mkdir(b"d", who=ALICE).ino, b"user.a") is None


def test_a_sticky_directory_is_its_owners(md):
    made = md.mkdir(b"d", who=ALICE, mode=0o1777)
    assert set_(md, BOB, made.ino, b"user.a") == E.EPERM
    assert set_(md, ALICE, made.ino, b"user.a") is None


def test_flags(md, ino):
    assert set_(md, ROOT, ino, b"user.a", b"1", m.XattrFlags.REPLACE) == E.ENODATA
    assert set_(md, ROOT, ino, b"user.a", b"1", m.XattrFlags.CREATE) is None
    assert set_(md, ROOT, ino, b"user.a", b"2", m.XattrFlags.CREATE) == E.EEXIST
    assert set_(md, ROOT, ino, b"user.a", b"3", m.XattrFlags.REPLACE) is None
    assert set_(md, ROOT, ino, b"user.a", b"4", 4) == E.EINVAL
    both = m.XattrFlags.CREATE | m.XattrFlags.REPLACE
    assert set_(md, ROOT, ino, b"user.a", b"4", both) == E.EEXIST
    assert set_(md, ROOT, ino, b"user.b", b"4", both) == E.ENODATA
    assert md.read(reads.getxattr, m.GetXattr(ROOT, ino, b"user.a")).value == b"3"


def test_missing(md, ino):
    assert get(md, ROOT, ino, b"user.a") == E.ENODATA
    assert outcome(md.do, m.RemoveXattr(ROOT, ino, b"user.a")) == E.ENODATA


def test_limits(md, ino):
    assert set_(md, ROOT, ino, b"user.a", bytes(65537)) == E.E2BIG
    assert set_(md, ROOT, ino, b"user.a", bytes(65536)) is None
    assert set_(md, ROOT, ino, b"user.b", bytes(255 - 6 - 6 + 1)) == E.ENOSPC
    assert set_(md, ROOT, ino, b"user.a", b"") is None
    assert set_(md, ROOT, ino, b"user.b", b"") is None
    assert names(md, ROOT, ino) == (b"user.a", b"user.b")


def test_changing_moves_ctime_only(md, ino):
    before = md.read(reads.getattr_, m.GetAttr(ino)).inode
    after = md.do(m.SetXattr(ROOT, ino, b"user.a", b"v")).inode
    assert (after.ctime_ns, after.mtime_ns, after.xattr_bytes) == (md.now_ns, before.mtime_ns, 7)
    assert after.data_version == before.data_version
    after = md.do(m.RemoveXattr(ROOT, ino, b"user.a")).inode
    assert (after.ctime_ns, after.xattr_bytes) == (md.now_ns, 0)


def test_they_go_with_the_inode(md, ino):
    set_(md, ROOT, ino, b"user.a")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    md.do(m.Reap(ino), session=0)
    assert not [key for key in md.store.rows if key[:1] == b"A"]


def value_of(md, who, ino, name):
    return md.read(reads.getxattr, m.GetXattr(who, ino, name)).value


def test_the_layout_of_a_directory_is_an_attribute_and_is_inherited(md):
    directory = md.do(m.Mkdir(ROOT, ROOT_INODE, b"d", 0o755)).inode.ino
    assert set_(md, ROOT, directory, b"trusted.shoal.inline_bytes", b"128") is None
    assert set_(md, ROOT, directory, b"trusted.shoal.chunk_bytes", b"1048576") is None
    assert value_of(md, ROOT, directory, b"trusted.shoal.inline_bytes") == b"128"
    child = md.do(m.Mkdir(ROOT, directory, b"e", 0o755)).inode
    made = md.create(b"f", parent=child.ino)
    assert (made.inline_bytes_max, made.chunk_bytes) == (128, 1 << 20)
    assert names(md, ROOT, directory) == ()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"trusted.shoal.inline_bytes", b"65513", E.EINVAL),
        (b"trusted.shoal.inline_bytes", b"-1", E.EINVAL),
        (b"trusted.shoal.inline_bytes", b"", E.EINVAL),
        (b"trusted.shoal.inline_bytes", b"9" * 400, E.EINVAL),
        (b"trusted.shoal.chunk_bytes", b"65535", E.EINVAL),
        (b"trusted.shoal.chunk_bytes", b"134217728", E.EINVAL),
        (b"trusted.shoal.other", b"1", E.EOPNOTSUPP),
    ],
)
def test_a_layout_that_cannot_be_is_refused(md, name, value, expected):
    assert set_(md, ROOT, ROOT_INODE, name, value) == expected


def test_only_root_sees_and_sets_a_layout_and_only_directories_have_one(md, ino):
    assert set_(md, ALICE, ROOT_INODE, b"trusted.shoal.inline_bytes", b"1") == E.EPERM
    assert get(md, ALICE, ROOT_INODE, b"trusted.shoal.inline_bytes") == E.ENODATA
    assert set_(md, ROOT, ino, b"trusted.shoal.inline_bytes", b"1") == E.EOPNOTSUPP
    assert get(md, ROOT, ino, b"trusted.shoal.inline_bytes") == E.ENODATA


@pytest.mark.parametrize(
    "change",
    [
        lambda ino: m.CommitInline(ino, (m.Patch(0, b"x"),)),
        lambda ino: m.SetAttr(ROOT, ino, size_bytes=3),
        lambda ino: m.SetAttr(ROOT, ino, uid=1),
        lambda ino: m.SetAttr(ROOT, ino, gid=1),
    ],
)
def test_capabilities_go_when_the_file_changes(md, ino, change):
    set_(md, ROOT, ino, b"user.a", b"stays")
    set_(md, ROOT, ino, b"security.capability", b"cap")
    after = md.do(change(ino)).inode
    assert names(md, ROOT, ino) == (b"user.a",)
    assert after.xattr_bytes == len(b"user.astays")


def test_whoever_may_write_may_take_capabilities_away(md, ino):
    for who, number in ((BOB, E.EACCES), (ALICE, None)):
        set_(md, ROOT, ino, b"security.capability", b"cap")
        assert outcome(md.do, m.RemoveXattr(who, ino, b"security.capability")) == number
        assert set_(md, who, ino, b"security.capability") == E.EPERM


def test_what_is_set_to_what_it_is_changes_nothing(md, ino):
    md.do(m.SetXattr(ROOT, ino, b"user.a", b"12"))
    before = md.read(reads.getattr_, m.GetAttr(ino)).inode
    assert md.do(m.SetXattr(ROOT, ino, b"user.a", b"12")).inode == before
    assert md.do(m.RemoveXattr(ROOT, ino, m.ACL_ACCESS)).inode == before
    assert md.do(m.SetXattr(ROOT, ino, b"user.a", b"13")).inode.ctime_ns > before.ctime_ns
