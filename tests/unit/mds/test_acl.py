"""Access control lists: form, meaning, inheritance, and what they do in the state machine."""

import errno
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metadata import ALICE, BOB, ROOT, Metadata
from shoalfs.mds import acl, permission, reads
from shoalfs.mds import messages as m
from shoalfs.mds.acl import AclEntry, Tag
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import ACL_BYTES_MAX, LISTING_BYTES_MAX

E = errno
CAROL = m.Credentials(1002, 1002, (3000,))

rwx = st.integers(0, 7)
few_ids = st.integers(1, 4)


@st.composite
def lists(draw):
    users = sorted(draw(st.dictionaries(few_ids, rwx, max_size=3)).items())
    groups = sorted(draw(st.dictionaries(few_ids, rwx, max_size=3)).items())
    mask = [AclEntry(Tag.MASK, draw(rwx))] if users or groups or draw(st.booleans()) else []
    return (
        AclEntry(Tag.USER_OBJ, draw(rwx)),
        *(AclEntry(Tag.USER, bits, number) for number, bits in users),
        AclEntry(Tag.GROUP_OBJ, draw(rwx)),
        *(AclEntry(Tag.GROUP, bits, number) for number, bits in groups),
        *mask,
        AclEntry(Tag.OTHER, draw(rwx)),
    )


@given(lists())
def test_the_binary_form_is_read_back(entries):
    assert acl.decode(acl.encode(entries)) == entries


@given(st.binary(max_size=80) | lists().map(acl.encode).flatmap(lambda b: st.binary(max_size=9).map(lambda t: b + t)))
def test_any_bytes_are_a_valid_list_or_refused(data):
    try:
        entries = acl.decode(data)
    except PosixError as error:
        assert error.errno in (E.EINVAL, E.EOPNOTSUPP)
    else:
        assert acl.decode(acl.encode(entries)) == entries if entries else len(data) == 4


def test_a_list_has_a_longest_size():
    many = [AclEntry(Tag.USER, 7, number) for number in range(600)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in many)
    with pytest.raises(PosixError) as raised:
        acl.decode(data)
    assert raised.value.errno == E.E2BIG


@given(lists(), st.integers(0, 0o777))
def test_chmod_and_the_mode_bits_are_inverse(entries, mode):
    changed = acl.with_mode(entries, mode)
    assert acl.permission_bits(changed) == mode
    kept = [e for e in entries if e.tag in (Tag.USER, Tag.GROUP)]
    assert [e for e in changed if e.tag in (Tag.USER, Tag.GROUP)] == kept


@given(lists(), st.integers(0, 0o777))
def test_inheriting_never_gives_more_than_either(default, mode):
    entries, after = acl.inherited(default, mode)
    assert after == mode & acl.permission_bits(default)
    if acl.is_minimal(default):
        assert entries == ()
    else:
        assert acl.permission_bits(entries) == after
        assert [e.id for e in entries] == [e.id for e in default]


def allowed(entries, uid, gids, owner, group):
    """What the algorithm of acl(5), "ACCESS CHECK ALGORITHM", gives, as a set of bits, step by step."""
    bits = lambda found: [{b for b in (4, 2, 1) if e.permissions & b} for e in found]  # noqa: E731
    of = lambda *tags: [e for e in entries if e.tag in tags]  # noqa: E731
    mask = (bits(of(Tag.MASK)) or [{4, 2, 1}])[0]
    if uid == owner:
        return [bits(of(Tag.USER_OBJ))[0]]
    if named := [e for e in of(Tag.USER) if e.id == uid]:
        return [bits(named)[0] & mask]
    matching = [e for e in of(Tag.GROUP_OBJ, Tag.GROUP) if (group if e.tag is Tag.GROUP_OBJ else e.id) in gids]
    if matching:
        return [found & mask for found in bits(matching)]
    return [bits(of(Tag.OTHER))[0]]


@given(lists(), few_ids, st.sets(few_ids, min_size=1, max_size=3), few_ids, few_ids, rwx)
def test_who_may_what(entries, uid, gids, owner, group, mask):
    first, *rest = sorted(gids)
    who = m.Credentials(uid, first, tuple(rest))
    mode = stat.S_IFREG | acl.permission_bits(entries)
    inode = m.Inode(
        1, mode, 1, owner, group, 0, 0, 0, 0, 0, 0, 0, 1, 1, acl=b"" if acl.is_minimal(entries) else acl.encode(entries)
    )
    wanted = {b for b in (4, 2, 1) if mask & b}
    if not mode & 0o070 and not acl.is_minimal(entries):  # Linux does not look at the list then
        entries = (AclEntry(Tag.USER_OBJ, mode >> 6 & 7), AclEntry(Tag.GROUP_OBJ, 0), AclEntry(Tag.OTHER, mode & 7))
    expected = any(wanted <= granted for granted in allowed(entries, uid, gids, owner, group))
    assert permission.permits(who, inode, mask) == expected


# --- in the state machine -----------------------------------------------------------------------------------


@pytest.fixture
def md():
    md = Metadata()
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    yield md
    assert md.findings() == []


def named_user(uid, bits, *, mask=7):
    return acl.encode(
        (
            AclEntry(Tag.USER_OBJ, 7),
            AclEntry(Tag.USER, bits, uid),
            AclEntry(Tag.GROUP_OBJ, 5),
            AclEntry(Tag.MASK, mask),
            AclEntry(Tag.OTHER, 0),
        )
    )


def may(md, who, ino, mask):
    try:
        md.read(reads.access, m.Access(who, ino, mask))
    except PosixError as error:
        assert error.errno == E.EACCES
        return False
    return True


def test_a_list_is_obeyed_and_the_mode_follows(md):
    ino = md.create(b"f", who=ALICE, mode=0o600).ino
    after = md.do(m.SetXattr(ALICE, ino, m.ACL_ACCESS, named_user(CAROL.uid, 6, mask=6))).inode
    assert stat.S_IMODE(after.mode) == 0o760
    assert may(md, CAROL, ino, 6)
    assert not may(md, CAROL, ino, 1)
    assert not may(md, BOB, ino, 4)
    assert md.do(m.SetAttr(ALICE, ino, mode=0o740)).inode.acl == named_user(CAROL.uid, 6, mask=4)
    assert not may(md, CAROL, ino, 2)
    assert md.do(m.RemoveXattr(ALICE, ino, m.ACL_ACCESS)).inode.acl == b""
    assert not may(md, CAROL, ino, 4)


def test_the_default_list_takes_the_place_of_the_umask(md):
    d = md.mkdir(b"d", mode=0o777).ino
    assert stat.S_IMODE(md.do(m.Create(ROOT, d, b"before", 0o666, True, 0o027)).inode.mode) == 0o640
    md.do(m.SetXattr(ROOT, d, m.ACL_DEFAULT, named_user(CAROL.uid, 7)))
    file = md.do(m.Create(ROOT, d, b"f", 0o666, True, 0o077)).inode
    sub = md.do(m.Mkdir(ROOT, d, b"sub", 0o777, 0o077)).inode
    fifo = md.do(m.Mknod(ROOT, d, b"p", stat.S_IFIFO | 0o666, 0, 0o077)).inode
    link = md.do(m.Symlink(ROOT, d, b"s", b"f")).inode
    assert [stat.S_IMODE(i.mode) for i in (file, sub, fifo, link)] == [0o660, 0o770, 0o660, 0o777]
    assert sub.default_acl == named_user(CAROL.uid, 7)
    assert (file.default_acl, link.acl) == (b"", b"")
    assert may(md, CAROL, file.ino, 6)


def test_setting_takes_ownership(md):
    ino = md.create(b"f", who=ALICE).ino
    for request in (
        m.SetXattr(BOB, ino, m.ACL_ACCESS, named_user(1, 7)),
        m.RemoveXattr(BOB, ino, m.ACL_ACCESS),
    ):
        with pytest.raises(PosixError) as raised:
            md.do(request)
        assert raised.value.errno == E.EPERM


def test_listings_of_long_lists_fit_their_message(md):
    entries = [AclEntry(Tag.USER, 7, number) for number in range((ACL_BYTES_MAX - 40) // 8)]
    entries = (AclEntry(Tag.USER_OBJ, 7), *entries, *acl.decode(named_user(1, 7))[2:])
    names = [b"%d" % number for number in range(300)]
    for name in names:
        md.do(m.SetXattr(ROOT, md.create(name).ino, m.ACL_ACCESS, acl.encode(entries)))
    page = md.read(reads.readdir, m.ReadDir(ROOT, ROOT_INODE, 0, 1000))
    assert not page.eof
    found = md.read(reads.lookup_many, m.LookupMany(ROOT, tuple((ROOT_INODE, name) for name in names)))[0]
    for items in (page.entries, found.items):
        size_bytes = sum(len(bytes(item.inode)) for item in items)
        assert LISTING_BYTES_MAX - 4 * ACL_BYTES_MAX < size_bytes <= LISTING_BYTES_MAX
