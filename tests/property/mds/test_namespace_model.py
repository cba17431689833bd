"""The namespace against a plain model: the same steps give the same errnos and the same tree, and the check
finds nothing.

The model is a tree of Python objects with POSIX's rules written down once more, shorter: what it lacks
(times, cookies, chunks' counts) is covered by unit tests and by the namespace check after every step.
"""

import errno as E  # noqa: N812
import stat
from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from harness.metadata import ALICE, BOB, LAYOUT, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import LayoutConflict, PosixError
from shoalfs.transport.ids import ROOT_INODE

USERS = st.sampled_from([ROOT, ROOT, ALICE, BOB])
ODD_NAMES = [b".", b"..", b"x/y", b"", b"n" * 256]
NAMES = st.integers(0, 60).map(lambda i: ODD_NAMES[i - 56] if i >= 56 else b"abcd"[i % 4 : i % 4 + 1])
MODES = st.sampled_from([0o755, 0o777, 0o700, 0o644, 0o1777, 0o2775, 0o111, 0o444, 0o6755])
WHERE = st.integers(0, 1 << 16)


@dataclass(eq=False)
class Node:
    ino: int
    kind: int
    mode: int
    uid: int
    gid: int
    names: int = 0
    entries: dict = field(default_factory=dict)  # a directory's, in the order of making
    parent: "Node | None" = None
    removed: bool = False
    target: bytes = b""
    data: list = field(default_factory=list)  # per byte: None in a hole, else where it comes from
    chunked: bool = False
    linkable: bool = False
    xattrs: dict = field(default_factory=dict)

    @property
    def is_dir(self):
        return self.kind == stat.S_IFDIR


class Refused(Exception):
    def __init__(self, number):
        self.number = number


def need(condition, number):
    if not condition:
        raise Refused(number)


def may(who, node, mask):
    if who.uid == 0:
        return True
    if who.uid == node.uid:
        bits = node.mode >> 6
    elif node.gid in (who.gid, *who.groups):
        bits = node.mode >> 3
    else:
        bits = node.mode
    return bits & mask == mask


def enter(who, directory, name):
    need(directory.is_dir, E.ENOTDIR)
    need(may(who, directory, 1), E.EACCES)
    need(len(name) <= 255, E.ENAMETOOLONG)
    need(name and b"/" not in name, E.EINVAL)
    return directory.entries.get(name)


def may_add(who, directory):
    need(not directory.removed, E.ENOENT)
    need(may(who, directory, 3), E.EACCES)


def may_take(who, directory, child, as_dir):
    need(may(who, directory, 3), E.EACCES)
    if directory.mode & stat.S_ISVTX:
        need(who.uid in (0, directory.uid, child.uid), E.EPERM)
    need(not as_dir or child.is_dir, E.ENOTDIR)
    need(as_dir or not child.is_dir, E.EISDIR)


def above(node):
    while node is not None:
        yield node
        node = node.parent if node.parent is not node else None


class Model:
    def __init__(self):
        self.root = Node(ROOT_INODE, stat.S_IFDIR, 0o777, 0, 0)
        self.root.parent = self.root
        self.nodes = [self.root]

    def make(self, who, directory, name, kind, mode, exclusive=True):
        found = enter(who, directory, name)
        dots = name in (b".", b"..")
        if found is not None or dots:
            need(not exclusive, E.EEXIST)
            need(not dots and not found.is_dir, E.EISDIR)
            return found
        may_add(who, directory)
        node = self.inherit(who, directory, kind, mode)
        self.put(directory, name, node)
        return node

    def inherit(self, who, directory, kind, mode):
        gid = who.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if kind == stat.S_IFDIR:
                mode |= stat.S_ISGID
            elif mode & 0o2010 == 0o2010 and who.uid and gid not in (who.gid, *who.groups):
                mode &= ~stat.S_ISGID
        node = Node(0, kind, mode, who.uid, gid)
        self.nodes.append(node)
        return node

    def put(self, directory, name, node):
        directory.entries[name] = node
        node.names += 1
        if node.is_dir:
            node.parent = directory

    def drop(self, directory, name):
        node = directory.entries.pop(name)
        node.names -= 1
        return node

    def link(self, who, node, directory, name):
        found = enter(who, directory, name)
        need(found is None and name not in (b".", b".."), E.EEXIST)
        may_add(who, directory)
        need(not node.is_dir, E.EPERM)
        need(node.names or node.linkable, E.ENOENT)
        node.removed = node.linkable = False
        self.put(directory, name, node)

    def tmpfile(self, who, directory, mode, linkable):
        need(directory.is_dir, E.ENOTDIR)
        need(may(who, directory, 1), E.EACCES)
        may_add(who, directory)
        node = self.inherit(who, directory, stat.S_IFREG, mode)
        node.removed, node.linkable = True, linkable
        return node

    def unlink(self, who, directory, name, as_dir):
        found = enter(who, directory, name)
        if name in (b".", b".."):
            raise Refused((E.EINVAL if name == b"." else E.ENOTEMPTY) if as_dir else E.EISDIR)
        need(found is not None, E.ENOENT)
        may_take(who, directory, found, as_dir)
        need(not found.entries, E.ENOTEMPTY)
        self.drop(directory, name)
        found.removed = found.names == 0

    def rename(self, who, old, name, new, new_name, flags):
        need(flags in (0, 1, 2), E.EINVAL)
        source = enter(who, old, name)
        need(name not in (b".", b".."), E.EBUSY)
        target = enter(who, new, new_name)
        need(new_name not in (b".", b".."), E.EEXIST if flags == 1 else E.EBUSY)
        need(source is not None, E.ENOENT)
        need(target is None or flags != 1, E.EEXIST)
        need(target is not None or flags != 2, E.ENOENT)
        need(source not in above(new), E.EINVAL)
        need(target is None or target not in above(old), E.EINVAL if flags == 2 else E.ENOTEMPTY)
        if source is target:
            return
        may_take(who, old, source, source.is_dir)
        if target is None:
            may_add(who, new)
        else:
            may_take(who, new, target, target.is_dir if flags == 2 else source.is_dir)
        if old is not new:
            need(not source.is_dir or may(who, source, 2), E.EACCES)
            need(flags != 2 or not target.is_dir or may(who, target, 2), E.EACCES)
        if flags == 2:
            old.entries[name], new.entries[new_name] = target, source
            target.parent = old if target.is_dir else None
        else:
            need(target is None or not target.entries, E.ENOTEMPTY)
            self.drop(old, name)
            if target is not None:
                target.names -= 1
                target.removed = target.names == 0
            new.entries[new_name] = source
            source.names += 1
        if source.is_dir:
            source.parent = new

    def chmod(self, who, node, mode):
        need(who.uid in (0, node.uid), E.EPERM)
        if who.uid and node.gid not in (who.gid, *who.groups):
            mode &= ~stat.S_ISGID
        node.mode = mode

    def chown(self, who, node, uid, gid):
        if who.uid and (uid, gid) != (None, None):
            need(uid in (None, node.uid) and who.uid == node.uid, E.EPERM)
            need(gid in (None, node.gid, who.gid, *who.groups), E.EPERM)
        elif who.uid and who.uid != node.uid:  # bits that a chown to nobody in particular takes away are the owner's
            need(node.is_dir or not self.loses_set_id(node), E.EPERM)
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        if not node.is_dir:
            self.lose_set_id(node)

    def loses_set_id(self, node):
        return node.mode & (stat.S_ISUID | (stat.S_ISGID if node.mode & 0o010 else 0))

    def lose_set_id(self, node):
        node.mode &= ~self.loses_set_id(node)

    def truncate(self, who, node, size):
        need(not node.is_dir, E.EISDIR)
        need(node.kind == stat.S_IFREG, E.EINVAL)
        need(may(who, node, 2), E.EACCES)
        node.data = node.data[:size] + [None] * (size - len(node.data))
        if who.uid:
            self.lose_set_id(node)

    def write(self, node, offset, data):
        node.data += [None] * (offset - len(node.data))
        node.data[offset : offset + len(data)] = data
        self.lose_set_id(node)

    def allocate(self, node, offset, length, mode):
        need(not node.is_dir, E.EISDIR)
        need(node.kind == stat.S_IFREG, E.EINVAL)
        need(mode in (0, 1, 3, 16, 17), E.EOPNOTSUPP)
        need(length > 0, E.EINVAL)
        if mode & 18:
            present = min(offset + length, len(node.data)) - offset
            node.data[offset : offset + length] = [None] * max(0, present)
        if not mode & 1:
            node.data += [None] * (offset + length - len(node.data))
        self.lose_set_id(node)

    def clone(self, source, target, first, at, length, inline_bytes):
        """``inline_bytes``: how many the target has."""
        length = max(0, min(length, len(source.data) - first))
        overlap = first < at + length and at < first + length
        need(source is not target or not overlap, E.EINVAL)
        if not length:
            return 0
        piece = source.data[first : first + length]
        if not source.chunked:
            if target.chunked or at + length > LAYOUT.inline_bytes_max:
                raise LayoutConflict
        elif any(piece) and not target.chunked:
            if inline_bytes and (at > 0 or inline_bytes > at + length):
                raise LayoutConflict
            target.chunked = True
        self.write(target, at, piece)
        return length


class NamespaceMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.md = Metadata()
        self.md.add_targets()
        self.md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
        self.model = Model()
        self.listings = []

    def pick(self, where, dirs=False):
        """Any inode; mostly one that fits."""
        fitting = [n for n in self.model.nodes if n.is_dir or (not dirs) or where % 7 == 0]
        return fitting[where % len(fitting)]

    def pick_file(self, where):
        """A regular file, if there is one."""
        files = [n for n in self.model.nodes if n.kind == stat.S_IFREG]
        return files[where % len(files)] if files else None

    def pick_entry(self, where, name):
        """A directory and a name: mostly one that is there."""
        entries = [(n, present) for n in self.model.nodes for present in n.entries]
        if where % 5 == 0 or not entries:
            return self.pick(where, dirs=True), name
        return entries[where % len(entries)]

    def both(self, expected, request, **options):
        """Run a step on both. Returns the real answer, or None if both refused."""
        number = refused = answer = None
        try:
            result = expected()
        except Refused as error:
            number = error.number
        try:
            answer = self.md.do(request, **options)
        except PosixError as error:
            refused = error.errno
        assert E.errorcode.get(number) == E.errorcode.get(refused), request
        if number is None and isinstance(result, Node) and result.ino == 0:
            result.ino = answer.inode.ino
        return answer

    # --- steps ----------------------------------------------------------------------------------------------

    @rule(who=USERS, where=WHERE, name=NAMES, mode=MODES, exclusive=st.booleans())
    def create(self, who, where, name, mode, exclusive):
        d = self.pick(where, dirs=True)
        request = m.Create(who, d.ino, name, mode, exclusive)
        self.both(lambda: self.model.make(who, d, name, stat.S_IFREG, mode, exclusive), request)

    @rule(who=USERS, where=WHERE, name=NAMES, mode=MODES)
    def mkdir(self, who, where, name, mode):
        d = self.pick(where, dirs=True)
        self.both(
            lambda: self.model.make(who, d, name, stat.S_IFDIR, mode & 0o1777),
            m.Mkdir(who, d.ino, name, mode),
        )

    @rule(who=USERS, where=WHERE, name=NAMES)
    def mkfifo(self, who, where, name):
        d = self.pick(where, dirs=True)
        request = m.Mknod(who, d.ino, name, stat.S_IFIFO | 0o666, 0)
        self.both(lambda: self.model.make(who, d, name, stat.S_IFIFO, 0o666), request)

    @rule(who=USERS, where=WHERE, name=NAMES, leads_to=st.sampled_from([b"a", b"../b", b"/c" * 9]))
    def symlink(self, who, where, name, leads_to):
        d = self.pick(where, dirs=True)

        def expected():
            node = self.model.make(who, d, name, stat.S_IFLNK, 0o777)
            node.target = leads_to
            return node

        self.both(expected, m.Symlink(who, d.ino, name, leads_to))

    @rule(who=USERS, what=WHERE, where=WHERE, name=NAMES)
    def link(self, who, what, where, name):
        node, d = self.pick(what), self.pick(where, dirs=True)
        self.both(lambda: self.model.link(who, node, d, name), m.Link(who, node.ino, d.ino, name))

    @rule(who=USERS, where=WHERE, name=NAMES)
    def unlink(self, who, where, name):
        d, name = self.pick_entry(where, name)
        self.both(lambda: self.model.unlink(who, d, name, False), m.Unlink(who, d.ino, name))

    @rule(who=USERS, where=WHERE, name=NAMES)
    def rmdir(self, who, where, name):
        d, name = self.pick_entry(where, name)
        self.both(lambda: self.model.unlink(who, d, name, True), m.Rmdir(who, d.ino, name))

    @rule(who=USERS, a=WHERE, name=NAMES, b=WHERE, new_name=NAMES, flags=st.sampled_from([0, 0, 1, 2, 2, 3]))
    def rename(self, who, a, name, b, new_name, flags):
        old, name = self.pick_entry(a, name)
        new, new_name = self.pick_entry(b, new_name) if b % 2 else (self.pick(b, dirs=True), new_name)
        self.both(
            lambda: self.model.rename(who, old, name, new, new_name, flags),
            m.Rename(who, old.ino, name, new.ino, new_name, flags),
        )

    @rule(who=USERS, what=WHERE, mode=MODES)
    def chmod(self, who, what, mode):
        node = self.pick(what)
        self.both(lambda: self.model.chmod(who, node, mode), m.SetAttr(who, node.ino, mode=mode))

    @rule(
        who=USERS,
        what=WHERE,
        ids=st.sampled_from([(1000, None), (None, 2000), (1001, 1001), (None, 1000), (0, 0), (None, None)]),
    )
    def chown(self, who, what, ids):
        node = self.pick(what)
        self.both(lambda: self.model.chown(who, node, *ids), m.SetAttr(who, node.ino, uid=ids[0], gid=ids[1]))

    @rule(who=USERS, what=WHERE, size=st.integers(0, 250))
    def truncate(self, who, what, size):
        node = (what % 6 and self.pick_file(what)) or self.pick(what)
        self.both(lambda: self.model.truncate(who, node, size), m.SetAttr(who, node.ino, size_bytes=size))

    @rule(what=WHERE, name=st.sampled_from([b"user.a", b"user.b"]), value=st.none() | st.binary(max_size=5))
    def xattr(self, what, name, value):
        node = self.pick(what)

        def expected():
            need(node.kind in (stat.S_IFREG, stat.S_IFDIR), E.EPERM)
            if value is None:
                need(name in node.xattrs, E.ENODATA)
                del node.xattrs[name]
            else:
                node.xattrs[name] = value

        set_ = m.SetXattr(ROOT, node.ino, name, value or b"")
        self.both(expected, m.RemoveXattr(ROOT, node.ino, name) if value is None else set_)

    @rule(what=WHERE, offset=st.integers(0, 120), data=st.binary(min_size=1, max_size=30), append=st.booleans())
    def write_inline(self, what, offset, data, append):
        node = self.pick_file(what)
        if node is None:
            return
        start = len(node.data) if append else offset
        conflict = node.chunked or start + len(data) > LAYOUT.inline_bytes_max
        try:
            answer = self.md.write_inline(node.ino, offset, data, append=append)
        except LayoutConflict:
            assert conflict
            return
        assert not conflict
        assert answer.offset_bytes == start
        self.model.write(node, start, [("inline", byte) for byte in data])

    @rule(
        what=WHERE,
        offset=st.integers(0, 200),
        length=st.integers(1, 120),
        append=st.booleans(),
        lead=st.integers(0, 9),
    )
    def write_chunk(self, what, offset, length, append, lead):
        node = self.pick_file(what)
        if node is None:
            return
        has_inline = self.md.read(reads.get_extents, m.GetExtents(node.ino, 0, 0))[1] != b""
        append = append and not has_inline
        chunk = self.md.chunk()
        extent = self.md.extent(chunk, offset, length, chunk_offset=lead)
        options = {}
        if has_inline:
            try:
                self.md.commit(node.ino, extent)
            except LayoutConflict:
                pass
            else:
                raise AssertionError("inline bytes were replaced unseen")
            inode = self.md.read(reads.getattr_, m.GetAttr(node.ino)).inode
            options["inline_version"] = inode.data_version
            node.data = [None] * len(node.data)
        start = offset + (len(node.data) if append else 0)
        assert self.md.commit(node.ino, extent, append=append, **options).offset_bytes == start
        node.chunked = True
        self.model.write(node, start, [(chunk, lead + i) for i in range(length)])

    @rule(who=USERS, where=WHERE, mode=MODES, linkable=st.booleans())
    def tmpfile(self, who, where, mode, linkable):
        d = self.pick(where, dirs=True)
        self.both(lambda: self.model.tmpfile(who, d, mode, linkable), m.Tmpfile(who, d.ino, mode, linkable))

    @rule(
        what=WHERE,
        offset=st.integers(0, 200),
        length=st.integers(0, 150),
        mode=st.sampled_from([0, 1, 3, 16, 17, 2, 8]),
    )
    def allocate(self, what, offset, length, mode):
        node = (what % 6 and self.pick_file(what)) or self.pick(what)
        request = m.Allocate(node.ino, offset, length, mode)
        self.both(lambda: self.model.allocate(node, offset, length, mode), request)

    @rule(a=WHERE, b=WHERE, first=st.integers(0, 150), at=st.integers(0, 150), length=st.integers(0, 150))
    def clone(self, a, b, first, at, length):
        source, target = self.pick_file(a), self.pick_file(b)
        if source is None:
            return
        inline = self.md.read(reads.get_extents, m.GetExtents(target.ino, 0, 0))[1]
        expected = []
        request = m.CloneRange(source.ino, target.ino, first, at, length)
        try:
            answer = self.both(
                lambda: expected.append(self.model.clone(source, target, first, at, length, len(inline))), request
            )
        except LayoutConflict:
            try:
                self.md.do(request)
            except LayoutConflict:
                return
            raise AssertionError("bytes in two places at once") from None
        assert answer is None or [answer.length_bytes] == expected

    @rule(what=WHERE)
    def reap(self, what):
        gone = [n for n in self.model.nodes if n.removed]
        if gone:
            node = gone[what % len(gone)]
            # Nothing must still name it: a removed directory is nobody's parent, as it is empty.
            assert self.md.do(m.Reap(node.ino), session=0).done
            self.model.nodes.remove(node)

    @rule(where=WHERE)
    def begin_listing(self, where):
        node = self.pick(where, dirs=True)
        if node.is_dir and len(self.listings) < 4:
            self.listings.append([node, 0, [], set(node.entries)])

    @rule(which=WHERE, count=st.integers(1, 3))
    def continue_listing(self, which, count):
        if not self.listings:
            return
        at = which % len(self.listings)
        node, cookie, seen, stable = self.listings[at]
        if node not in self.model.nodes:
            del self.listings[at]
            return
        page = self.md.read(reads.readdir, m.ReadDir(ROOT, node.ino, cookie, count))
        seen += [e.name for e in page.entries]
        if page.entries:
            self.listings[at][1] = page.entries[-1].cookie
        if page.eof:
            del self.listings[at]
            assert all(seen.count(name) == 1 for name in stable), (seen, stable)

    # --- after every step -----------------------------------------------------------------------------------

    @invariant()
    def the_check_finds_nothing(self):
        if hasattr(self, "md"):
            assert self.md.findings() == []
            for node, _, _, stable in self.listings:
                stable &= set(node.entries)

    @invariant()
    def the_trees_are_equal(self):
        if hasattr(self, "md"):
            with self.md.store.read() as txn:
                for node in self.model.nodes:
                    assert describe(txn, node) == expected_of(node)


def describe(txn, node):
    """What the service says of an inode."""
    inode = reads.getattr_(txn, m.GetAttr(node.ino)).inode
    said = {
        "mode": inode.mode,
        "owner": (inode.uid, inode.gid),
        "nlink": inode.nlink,
        "xattrs": {
            name: reads.getxattr(txn, m.GetXattr(ROOT, node.ino, name)).value
            for name in reads.listxattr(txn, m.ListXattr(ROOT, node.ino)).names
        },
    }
    if inode.is_dir:
        page = reads.readdir(txn, m.ReadDir(ROOT, node.ino, 0, 1000))
        said["entries"] = {e.name: msgspec.msgpack.decode(e.inode, type=m.Inode).ino for e in page.entries}
        said["size"] = inode.size_bytes
        said["parent"] = inode.parent
    elif inode.is_symlink:
        said["target"] = reads.readlink(txn, m.ReadLink(node.ino)).target
    elif inode.is_file:
        answer, inline = reads.get_extents(txn, m.GetExtents(node.ino, 0, 1 << 20))
        # A hole between inline bytes is stored as zeros.
        data = [("inline", byte) if byte else None for byte in inline] + [None] * (inode.size_bytes - len(inline))
        for e in answer.extents:
            assert data[e.offset_bytes : e.end_bytes] == [None] * e.length_bytes
            data[e.offset_bytes : e.end_bytes] = [(e.chunk, e.chunk_offset_bytes + i) for i in range(e.length_bytes)]
        said["data"] = data
    return said


def expected_of(node):
    said = {
        "mode": node.kind | node.mode,
        "owner": (node.uid, node.gid),
        "nlink": node.names,
        "xattrs": node.xattrs,
    }
    if node.is_dir:
        subdirectories = sum(child.is_dir for child in node.entries.values())
        said["nlink"] = 0 if node.removed else 2 + subdirectories
        said["entries"] = {name: child.ino for name, child in node.entries.items()}
        said["size"] = len(node.entries)
        said["parent"] = node.parent.ino
    elif node.kind == stat.S_IFLNK:
        said["target"] = node.target
    elif node.kind == stat.S_IFREG:
        said["data"] = [None if byte == ("inline", 0) else byte for byte in node.data]
    return said


TestNamespace = NamespaceMachine.TestCase
TestNamespace.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
