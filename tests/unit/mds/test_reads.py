"""The reads: lookups, listings with their cookies and bounds, access, paths."""

import errno

import msgspec
import pytest

from harness.metadata import ALICE, BOB, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import BadMessage, PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId

E = errno


@pytest.fixture
def md():
    md = Metadata()
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    return md


def fails(md, number, function, request):
    with pytest.raises(PosixError) as caught:
        md.read(function, request)
    assert E.errorcode[caught.value.errno] == E.errorcode[number]


def test_lookup(md):
    d = md.mkdir(b"d", who=ALICE, mode=0o700)
    f = md.create(b"f", parent=d.ino, who=ALICE)
    assert md.read(reads.lookup, m.Lookup(ALICE, d.ino, b"f")).inode == f
    assert md.read(reads.lookup, m.Lookup(ALICE, d.ino, b".")).inode.ino == d.ino
    assert md.read(reads.lookup, m.Lookup(ALICE, d.ino, b"..")).inode.ino == ROOT_INODE
    assert md.read(reads.lookup, m.Lookup(ALICE, ROOT_INODE, b"..")).inode.ino == ROOT_INODE
    fails(md, E.ENOENT, reads.lookup, m.Lookup(ALICE, d.ino, b"g"))
    fails(md, E.EACCES, reads.lookup, m.Lookup(BOB, d.ino, b"f"))
    fails(md, E.ENOTDIR, reads.lookup, m.Lookup(ALICE, f.ino, b"x"))
    fails(md, E.ESTALE, reads.lookup, m.Lookup(ALICE, InodeId(99), b"x"))
    fails(md, E.ESTALE, reads.lookup, m.Lookup(ALICE, InodeId(-1), b"x"))
    fails(md, E.ENAMETOOLONG, reads.lookup, m.Lookup(ALICE, d.ino, b"n" * 256))


def test_lookup_many(md):
    for number in range(3):
        made = md.create(b"f%d" % number)
        md.write_inline(made.ino, 0, b"%d" % number * (number + 1))
    items = (*((ROOT_INODE, name) for name in (b"f0", b"missing", b"f2", b".")), (InodeId(9), b"x"))
    answer, payload = md.read(reads.lookup_many, m.LookupMany(ROOT, items, want_data=True))
    assert [i.errno for i in answer.items] == [0, E.ENOENT, 0, 0, E.ESTALE]
    assert [i.data_bytes for i in answer.items] == [1, 0, 3, 0, 0]
    assert payload == b"0222"
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=m.FoundMany)
    assert [item.inode and item.inode.size_bytes for item in decoded.items] == [1, None, 3, 3, None]
    answer, payload = md.read(reads.lookup_many, m.LookupMany(ROOT, items))
    assert (payload, answer.items[0].data_bytes) == (b"", 0)
    with pytest.raises(BadMessage):
        md.read(reads.lookup_many, m.LookupMany(ROOT, items * 300))


def test_lookup_many_ends_where_the_payload_would_be_too_large(md, monkeypatch):
    made = md.create(b"f")
    md.write_inline(made.ino, 0, b"x" * 100)
    import dataclasses

    monkeypatch.setattr(m, "LOOKUP_MANY", dataclasses.replace(m.LOOKUP_MANY, reply_payload_bytes_max=250))
    items = ((ROOT_INODE, b"f"),) * 5
    answer, payload = md.read(reads.lookup_many, m.LookupMany(ROOT, items, want_data=True))
    assert (len(answer.items), len(payload)) == (2, 200)
    monkeypatch.setattr(m, "LOOKUP_MANY", dataclasses.replace(m.LOOKUP_MANY, reply_payload_bytes_max=10))
    answer, payload = md.read(reads.lookup_many, m.LookupMany(ROOT, items, want_data=True))
    assert len(answer.items) == 1  # always one, or the caller would never get on
    assert msgspec.msgpack.encode(answer)


def test_a_page_of_a_listing_fits_a_message(md):
    from shoalfs.transport.limits import CONTROL_BYTES_MAX

    big = (1 << 63) - 1
    inode = m.Inode(*([big] * 14), m.Storage.EXTENTS, *([big] * 6))
    assert len(msgspec.msgpack.encode(inode)) <= 200
    for number in range(300):
        md.create(b"%03d" % number + b"n" * 250)
    monitored = md.read(reads.readdir, m.ReadDir(ROOT, ROOT_INODE, 0, 10**9))
    assert len(msgspec.msgpack.encode(monitored)) < CONTROL_BYTES_MAX


def listing(md, cookie=0, count=1000, who=ROOT, ino=ROOT_INODE):
    """A page, as its reader decodes it."""
    page = md.read(reads.readdir, m.ReadDir(who, ino, cookie, count))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(page), type=m.Listing)


def test_listings_go_on_across_changes(md):
    for name in b"abcdefgh":
        md.create(bytes([name]))
    first = listing(md, 0, 3)
    assert ([e.name for e in first.entries], first.eof) == ([b"a", b"b", b"c"], False)
    assert first.entries[0].cookie > 2
    assert first.entries[0].inode.ino == 2
    md.do(m.Unlink(ROOT, ROOT_INODE, b"c"))  # the cookie's own entry
    md.do(m.Unlink(ROOT, ROOT_INODE, b"e"))
    md.create(b"z")
    rest = listing(md, first.entries[-1].cookie)
    assert ([e.name for e in rest.entries], rest.eof) == ([b"d", b"f", b"g", b"h", b"z"], True)
    assert listing(md, rest.entries[-1].cookie) == m.Listing((), eof=True)
    assert [e.name for e in listing(md, 0, 0).entries] == [b"a"]  # at least one
    fails(md, E.EINVAL, reads.readdir, m.ReadDir(ROOT, ROOT_INODE, -1, 1))


def test_listing_bounds(md, monkeypatch):
    for number in range(50):
        md.create(b"%d" % number)
    monkeypatch.setattr(reads, "LISTING_BYTES_MAX", 1000)
    seen, cookie, pages = [], 0, 0
    while True:
        page = listing(md, cookie)
        seen += [e.name for e in page.entries]
        pages += 1
        if page.eof:
            break
        cookie = page.entries[-1].cookie
    assert seen == [b"%d" % n for n in range(50)]
    assert pages > 4


def test_listing_permissions(md):
    d = md.mkdir(b"d", who=ALICE, mode=0o311)
    fails(md, E.EACCES, reads.readdir, m.ReadDir(ALICE, d.ino, 0, 10))
    fails(md, E.EACCES, reads.readdir, m.ReadDir(BOB, d.ino, 0, 10))
    assert listing(md, ino=d.ino).eof
    f = md.create(b"f")
    fails(md, E.ENOTDIR, reads.readdir, m.ReadDir(ROOT, f.ino, 0, 10))


# (mode of alice's file in group 2000, who, mask, granted)
ACCESS = [
    (0o400, ALICE, 4, True),
    (0o040, ALICE, 4, False),  # the owner's bits count for the owner
    (0o040, BOB, 4, True),  # bob is in the group
    (0o004, BOB, 4, False),
    (0o004, m.Credentials(9, 9), 4, True),
    (0o600, ALICE, 7, False),
    (0o700, ALICE, 7, True),
    (0o000, ROOT, 6, True),
    (0o000, ROOT, 1, False),
    (0o001, ROOT, 1, True),
    (0o000, ALICE, 0, True),
    (0o020, m.Credentials(9, 2000), 2, True),
]


@pytest.mark.parametrize(("mode", "who", "mask", "granted"), ACCESS)
def test_access_and_open(md, mode, who, mask, granted):
    f = md.create(b"f", who=ALICE, mode=mode)
    md.do(m.SetAttr(ROOT, f.ino, gid=2000))
    request = m.Access(who, f.ino, mask)
    if granted:
        md.read(reads.access, request)
    else:
        fails(md, E.EACCES, reads.access, request)
    if not mask & 1:
        opening = m.Open(who, md.session, f.ino, bool(mask & 4), bool(mask & 2))
        if granted:
            md.read(reads.open_, opening)
        else:
            fails(md, E.EACCES, reads.open_, opening)
            md.read(reads.open_, m.Open(who, md.session, f.ino, bool(mask & 4), bool(mask & 2), check=False))


def test_open_gives_the_inline_bytes(md):
    f = md.create(b"f")
    md.write_inline(f.ino, 0, b"bytes")
    opened, data = md.read(reads.open_, m.Open(ROOT, md.session, f.ino, True, False))
    assert (opened.inode.size_bytes, data) == (5, b"bytes")
    fails(md, E.EISDIR, reads.open_, m.Open(ROOT, md.session, ROOT_INODE, True, True))
    assert md.read(reads.open_, m.Open(ROOT, md.session, ROOT_INODE, True, False))[1] == b""


def test_readlink(md):
    link = md.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"some/where")).inode
    assert md.read(reads.readlink, m.ReadLink(link.ino)).target == b"some/where"
    fails(md, E.EINVAL, reads.readlink, m.ReadLink(ROOT_INODE))
    assert md.read(reads.open_, m.Open(ROOT, md.session, link.ino, True, False))[1] == b""


def test_resolve(md):
    d = md.mkdir(b"d")
    f = md.create(b"f", parent=d.ino)
    for path, ino in ((b"/", 1), (b"", 1), (b"/d", d.ino), (b"d/f", f.ino), (b"//d/../d/./f", f.ino)):
        assert md.read(reads.resolve, m.ResolvePath(path)).inode.ino == ino
    fails(md, E.ENOENT, reads.resolve, m.ResolvePath(b"/d/x/y"))
    fails(md, E.ENOTDIR, reads.resolve, m.ResolvePath(b"/d/f/x"))
    fails(md, E.ENAMETOOLONG, reads.resolve, m.ResolvePath(b"/" * 4096))
