"""A small namespace with one of everything, and what can be wrong with it: put in row by row."""

import stat

import msgspec

from harness.metadata import ROOT, Metadata, bounded
from shoalfs.mds import acl, keys, records
from shoalfs.mds import messages as m
from shoalfs.transport.ids import ROOT_INODE, ChunkId, InodeId, SessionId

replace = msgspec.structs.replace

T = acl.Tag
NAMED_USER = acl.encode(
    (
        acl.AclEntry(T.USER_OBJ, 7),
        acl.AclEntry(T.USER, 7, 1000),
        acl.AclEntry(T.GROUP_OBJ, 7),
        acl.AclEntry(T.MASK, 0),
        acl.AclEntry(T.OTHER, 4),
    )
)


class World(Metadata):
    """A small filesystem with one of everything. Faults are put into it row by row."""

    def __init__(self):
        super().__init__()
        self.add_targets()
        self.d = self.mkdir(b"d").ino
        self.sub = self.mkdir(b"sub", parent=self.d).ino
        self.f = self.create(b"f", parent=self.d).ino
        self.write_inline(self.f, 0, b"inline bytes")
        self.do(m.SetXattr(ROOT, self.f, b"user.a", b"value"))
        self.g = self.create(b"g").ino
        self.chunk_a, self.chunk_b = self.chunk(), self.chunk()
        self.commit(self.g, self.extent(self.chunk_a, 0, 100), self.extent(self.chunk_b, 100, 100))
        self.commit(self.g, self.extent(self.chunk(), 50, 10))
        self.old = self.chunk()
        self.commit(self.g, self.extent(self.old, 300, 10))
        self.do(m.SetAttr(ROOT, self.g, size_bytes=200))
        self.l = self.do(m.Symlink(ROOT, ROOT_INODE, b"l", b"target")).inode.ino
        self.orphan = self.create(b"orphan").ino
        shared = self.chunk()
        self.commit(self.orphan, *(self.extent(shared, offset, 10) for offset in (0, 20, 40)))
        with bounded(rows_max=1):
            self.do(m.SetAttr(ROOT, self.orphan, size_bytes=0))
        self.do(m.Unlink(ROOT, ROOT_INODE, b"orphan"))
        self.trashed = self.create(b"trashed").ino
        self.do(m.Upkeep(trash_retention_ms=1_000_000), session=0)
        self.do(m.Unlink(ROOT, ROOT_INODE, b"trashed"))
        self.deleted_ns = self.now_ns

    def change(self, codec, key, **fields):
        with self.store.write() as txn:
            txn.put(key, codec.encode(replace(codec.require(txn, key), **fields)))

    def inode(self, ino, **fields):
        self.change(records.INODE, keys.inode(ino), **fields)

    def put(self, key, value=b""):
        with self.store.write() as txn:
            txn.put(key, value)

    def delete(self, key):
        with self.store.write() as txn:
            assert txn.delete(key)

    def damage(self, key):
        stored = bytearray(self.store.rows[key])
        stored[-1] ^= 1
        self.store.rows[key] = bytes(stored)

    def counters(self, **fields):
        self.change(records.COUNTERS, keys.COUNTERS, **fields)

    def cookie(self, parent, name):
        with self.store.read() as txn:
            return records.DENTRY.require(txn, keys.dentry(parent, name)).cookie

    def dentry(self, parent, name, ino, kind, cookie):
        self.put(keys.dentry(parent, name), records.DENTRY.encode(records.Dentry(ino, kind, cookie)))
        self.put(keys.listing(parent, cookie), records.LISTING.encode(records.ListingRow(name, ino)))

    def garbage_since(self):
        with self.store.read() as txn:
            return records.GARBAGE.require(txn, keys.garbage(self.old)).since_ns

    def session_row(self):
        with self.store.read() as txn:
            return records.SESSION.require(txn, keys.session(self.session))


def second_name(w):
    w.dentry(ROOT_INODE, b"second", w.sub, stat.S_IFDIR, 99)
    w.inode(ROOT_INODE, size_bytes=4, nlink=4, next_cookie=100)


def cycle(w):
    """d below sub below d: the name of d in the root is gone, one in sub is there."""
    w.delete(keys.dentry(ROOT_INODE, b"d"))
    w.delete(keys.listing(ROOT_INODE, 3))
    w.inode(ROOT_INODE, size_bytes=2, nlink=2)
    w.dentry(w.sub, b"d", w.d, stat.S_IFDIR, 3)
    w.inode(w.sub, size_bytes=1, nlink=3, next_cookie=4)
    w.inode(w.d, parent=w.sub)


def extent_row(w, offset):
    return keys.extent(w.g, offset)


FAULTS = {
    # name: (what is done, {kinds that must be found}, attribute of the inode that is named; None: no inode)
    "nlink of a file": (lambda w: w.inode(w.f, nlink=2), {"wrong-nlink"}, "f"),
    "nlink of a directory": (lambda w: w.inode(w.d, nlink=5), {"wrong-nlink"}, "d"),
    "no access control list": (lambda w: w.inode(w.f, acl=b"\2\0\0\0"), {"bad-acl"}, "f"),
    "list that says another mode": (lambda w: w.inode(w.f, acl=NAMED_USER), {"bad-acl"}, "f"),
    "list that the mode can say": (
        lambda w: w.inode(w.f, acl=acl.encode(acl.decode(NAMED_USER)[::2])),
        {"bad-acl"},
        "f",
    ),
    "default list of a file": (lambda w: w.inode(w.f, default_acl=NAMED_USER), {"bad-acl"}, "f"),
    "removed, but named": (lambda w: w.inode(w.sub, nlink=0), {"wrong-nlink", "orphan-not-listed"}, "sub"),
    "no name": (lambda w: w.inode(w.orphan, nlink=1), {"unreachable-inode", "linked-orphan"}, "orphan"),
    "no orphan row": (
        lambda w: w.delete(keys.orphan(w.orphan)),
        {"orphan-not-listed", "wrong-counter"},
        "orphan",
    ),
    "orphan with a name": (lambda w: w.put(keys.orphan(w.f)), {"linked-orphan", "wrong-counter"}, "f"),
    "dangling": (
        lambda w: w.delete(keys.inode(w.l)),
        {"dangling-dentry", "stray-row", "wrong-counter"},
        None,
    ),
    "dangling, nothing left": (
        lambda w: (
            w.dentry(w.d, b"gone", InodeId(77), stat.S_IFREG, 5),
            w.inode(w.d, size_bytes=3, next_cookie=6),
        ),
        {"dangling-dentry"},
        "d",
    ),
    "name of a file gone": (
        lambda w: (
            w.delete(keys.listing(ROOT_INODE, w.cookie(ROOT_INODE, b"g"))),
            w.delete(keys.dentry(ROOT_INODE, b"g")),
        ),
        {"unreachable-inode", "wrong-directory-size"},
        None,
    ),
    "trash without its time": (
        lambda w: w.delete(keys.trash_by_time(w.deleted_ns, w.trashed)),
        {"wrong-trash"},
        "trashed",
    ),
    "time without its trash": (
        lambda w: w.put(keys.trash_by_time(7, InodeId(78))),
        {"wrong-trash"},
        None,
    ),
    "in the trash with a name": (
        lambda w: (
            w.put(keys.trash(w.f), records.TRASH.encode(records.TrashRow(9, ROOT_INODE, b"x"))),
            w.put(keys.trash_by_time(9, w.f)),
            w.counters(trashed=2),
        ),
        {"wrong-trash"},
        "f",
    ),
    "type in a dentry": (
        lambda w: w.change(records.DENTRY, keys.dentry(w.d, b"f"), kind=stat.S_IFIFO),
        {"wrong-dentry-type"},
        "d",
    ),
    "dentry gone": (
        lambda w: w.delete(keys.dentry(w.d, b"f")),
        {"listing-without-dentry", "wrong-directory-size", "unreachable-inode"},
        None,
    ),
    "listing gone": (
        lambda w: w.delete(keys.listing(w.d, w.cookie(w.d, b"f"))),
        {"dentry-not-listed"},
        "d",
    ),
    "listed twice": (
        lambda w: w.put(keys.listing(w.d, 4 + 1), records.LISTING.encode(records.ListingRow(b"f", w.f))),
        {"listing-without-dentry", "wrong-cookie"},
        "d",
    ),
    "cookie to come": (lambda w: w.inode(w.d, next_cookie=4), {"wrong-cookie"}, "d"),
    "size of a directory": (lambda w: w.inode(w.d, size_bytes=7), {"wrong-directory-size"}, "d"),
    "parent": (lambda w: w.inode(w.sub, parent=ROOT_INODE), {"wrong-parent"}, "sub"),
    "parent is no directory": (lambda w: w.inode(w.sub, parent=w.f), {"wrong-parent"}, "sub"),
    "parent of the root": (lambda w: w.inode(ROOT_INODE, parent=w.d), {"wrong-parent"}, "root"),
    "two names of a directory": (second_name, {"directory-with-two-names"}, "sub"),
    "cycle": (cycle, {"directory-cycle"}, None),
    "number": (
        lambda w: w.change(records.INODE, keys.inode(w.f), ino=InodeId(77)),
        {"wrong-inode-number"},
        "f",
    ),
    "size": (lambda w: w.inode(w.g, size_bytes=150), {"bytes-past-size"}, "g"),
    "size of an inline file": (lambda w: w.inode(w.f, size_bytes=5), {"bytes-past-size"}, "f"),
    "used bytes": (lambda w: w.inode(w.g, used_bytes=1), {"wrong-used-bytes"}, "g"),
    "count of extents": (lambda w: w.inode(w.g, extents=7), {"wrong-extent-count"}, "g"),
    "cut off, not listed": (lambda w: w.delete(keys.cut_off(w.orphan)), {"wrong-cut-off"}, "orphan"),
    "listed, not cut off": (lambda w: w.put(keys.cut_off(w.g)), {"wrong-cut-off"}, "g"),
    "cut off within an extent": (
        lambda w: w.inode(w.orphan, cut_off_bytes=25),
        {"wrong-cut-off", "bytes-past-size"},
        "orphan",
    ),
    "list of a file that is gone": (lambda w: w.put(keys.cut_off(InodeId(77))), {"stray-row"}, None),
    "overlap": (
        lambda w: w.change(records.EXTENT, extent_row(w, 0), length_bytes=60),
        {"overlapping-extents", "wrong-used-bytes"},
        "g",
    ),
    "offset": (
        lambda w: w.change(records.EXTENT, extent_row(w, 0), offset_bytes=1),
        {"bad-extent"},
        "g",
    ),
    "past the chunk": (
        lambda w: w.change(records.EXTENT, extent_row(w, 60), chunk_offset_bytes=90),
        {"bad-extent"},
        "g",
    ),
    "inline with extents": (
        lambda w: w.inode(w.g, storage=m.Storage.INLINE),
        {"inline-and-extents"},
        "g",
    ),
    "extents with inline bytes": (
        lambda w: (
            w.put(keys.inline(w.g), b"x"),
            w.inode(w.g, used_bytes=201),
            w.counters(inline_files=2, inline_bytes=13),
        ),
        {"inline-and-extents"},
        "g",
    ),
    "bytes of a directory": (
        lambda w: (w.put(keys.inline(w.d), b"x"), w.counters(inline_files=2, inline_bytes=13)),
        {"bytes-of-no-file"},
        "d",
    ),
    "symlink": (lambda w: w.inode(w.l, size_bytes=5), {"wrong-symlink-size"}, "l"),
    "xattr bytes": (lambda w: w.inode(w.f, xattr_bytes=0), {"wrong-xattr-bytes"}, "f"),
    "count of a chunk": (
        lambda w: w.change(records.CHUNK_USE, keys.chunk_use(w.chunk_a), extents=1),
        {"wrong-chunk-count"},
        None,
    ),
    "length of a chunk": (
        lambda w: w.change(records.CHUNK_USE, keys.chunk_use(w.chunk_a), chunk_bytes=1),
        {"wrong-chunk-length"},
        None,
    ),
    "hash of a chunk": (
        lambda w: w.change(records.CHUNK_USE, keys.chunk_use(w.chunk_a), chunk_hash=b"x" * 16),
        {"wrong-chunk-hash"},
        None,
    ),
    "chunk not counted": (
        lambda w: w.delete(keys.chunk_use(w.chunk_b)),
        {"chunk-not-counted"},
        None,
    ),
    "chunk that nobody uses": (
        lambda w: w.put(keys.chunk_use(ChunkId(99)), records.CHUNK_USE.encode(records.ChunkUse(1, 5))),
        {"wrong-chunk-count"},
        None,
    ),
    "used garbage": (
        lambda w: (
            w.put(keys.garbage(w.chunk_a), records.GARBAGE.encode(records.GarbageRow(5))),
            w.put(keys.garbage_by_time(5, w.chunk_a)),
            w.counters(garbage_chunks=2),
        ),
        {"used-chunk-is-garbage"},
        None,
    ),
    "uncounted used garbage": (
        lambda w: (
            w.delete(keys.chunk_use(w.chunk_b)),
            w.put(keys.garbage(w.chunk_b), records.GARBAGE.encode(records.GarbageRow(5))),
            w.put(keys.garbage_by_time(5, w.chunk_b)),
            w.counters(garbage_chunks=2),
        ),
        {"used-chunk-is-garbage", "chunk-not-counted"},
        None,
    ),
    "garbage without its time": (
        lambda w: w.delete(keys.garbage_by_time(w.garbage_since(), w.old)),
        {"wrong-garbage"},
        None,
    ),
    "time without its garbage": (
        lambda w: w.put(keys.garbage_by_time(1, ChunkId(9))),
        {"wrong-garbage"},
        None,
    ),
    "nonce": (lambda w: w.delete(keys.nonce(w.session_row().nonce)), {"wrong-nonce"}, None),
    "slot of nobody": (
        lambda w: w.put(keys.slot(SessionId(9), 1), records.RECORDED.encode(records.Recorded(1, m.Outcome(0)))),
        {"stray-row"},
        None,
    ),
    "range of nobody": (
        lambda w: w.put(keys.chunk_range(900), records.RANGE.encode(records.RangeRow(SessionId(9), 5))),
        {"wrong-chunk-range"},
        None,
    ),
    "stray inline bytes": (
        lambda w: (w.put(keys.inline(InodeId(99)), b"x"), w.counters(inline_files=2, inline_bytes=13)),
        {"stray-row"},
        None,
    ),
    "stray attribute": (lambda w: w.put(keys.xattr(InodeId(99), b"user.x"), b""), {"stray-row"}, None),
    "counter": (lambda w: w.counters(inodes=1), {"wrong-counter"}, None),
    "counter of merged chunks": (lambda w: w.counters(merged_garbage=3), {"wrong-counter"}, None),
    "counter of numbers": (lambda w: w.counters(next_ino=2), {"wrong-counter"}, None),
    "counters gone": (lambda w: w.delete(keys.COUNTERS), {"wrong-counter"}, None),
    "undecodable": (lambda w: w.put(keys.inode(w.f), b"\xc1"), {"damaged-record"}, "f"),
}
