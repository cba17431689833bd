"""The trash: what is kept, for how long, and what coming back means."""

import errno
import stat

import pytest

from harness.mending import Desk
from harness.metadata import ROOT, Metadata
from shoalfs.fs.cli import trash as command
from shoalfs.mds import keys, reads, trash_list
from shoalfs.mds import messages as m
from shoalfs.transport.errors import BadMessage, PosixError, UserError
from shoalfs.transport.ids import ROOT_INODE

HOUR_MS = 3_600_000


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    md.do(m.Upkeep(trash_retention_ms=HOUR_MS), session=0)
    return md


def listed(md):
    return md.read(trash_list.list_trash, m.ListTrash()).items


def counts(md):
    found = md.read(lambda txn, _: reads.counts(txn), None)
    return found.trashed, found.orphans, found.garbage_chunks


def names(md, ino=ROOT_INODE):
    return [keys.name_of(key) for key in md.store.rows if key[:1] == b"D" and keys.first_field(key) == ino]


def test_a_removed_file_keeps_everything_and_comes_back(md):
    ino = md.create(b"f", mode=0o640).ino
    md.do(m.SetXattr(ROOT, ino, b"user.a", b"v"))
    md.write(ino, 0, 100)
    before = md.read(reads.getattr_, m.GetAttr(ino)).inode
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert counts(md) == (1, 0, 0)
    (item,) = listed(md)
    assert (item.inode.ino, item.path, item.deleted_ns) == (ino, b"/f", md.now_ns)
    assert md.read(reads.getattr_, m.GetAttr(ino)).inode.nlink == 0
    assert md.findings() == []
    back = md.do(m.RestoreTrash(ino), session=0).inode
    assert (back.nlink, back.mode, back.size_bytes, back.mtime_ns) == (1, before.mode, 100, before.mtime_ns)
    assert counts(md) == (0, 0, 0)
    assert names(md) == [b"f"]
    assert md.findings() == []


def test_only_the_last_name_counts_and_a_replaced_file_is_kept(md):
    ino = md.create(b"f").ino
    md.do(m.Link(ROOT, ino, ROOT_INODE, b"g"))
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert listed(md) == ()
    md.create(b"new")
    md.do(m.Rename(ROOT, ROOT_INODE, b"new", ROOT_INODE, b"g"))
    assert [(item.inode.ino, item.name) for item in listed(md)] == [(ino, b"g")]
    with pytest.raises(PosixError) as refused:
        md.do(m.RestoreTrash(ino), session=0)
    assert refused.value.errno == errno.EEXIST
    md.do(m.RestoreTrash(ino, ROOT_INODE, b"old g"), session=0)
    assert sorted(names(md)) == [b"g", b"old g"]
    assert md.findings() == []


def test_nothing_is_kept_without_a_retention(md):
    md.do(m.Upkeep(trash_retention_ms=0), session=0)
    md.create(b"f")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert counts(md)[:2] == (0, 1)
    with pytest.raises(BadMessage):
        md.do(m.Upkeep(trash_retention_ms=-1), session=0)


def test_what_is_purged_is_an_orphan_and_reaped(md):
    ino = md.create(b"f").ino
    md.write(ino, 0, 100)
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    with pytest.raises(PosixError) as refused:
        md.do(m.Reap(ino), session=0)
    assert refused.value.errno == errno.EBUSY
    md.do(m.PurgeTrash((ino, ino, 999)), session=0)
    assert counts(md) == (0, 1, 0)
    assert md.findings() == []
    assert md.do(m.Reap(ino), session=0).done
    assert counts(md) == (0, 0, 1)
    assert md.findings() == []
    with pytest.raises(PosixError) as refused:
        md.do(m.RestoreTrash(ino), session=0)
    assert refused.value.errno == errno.ENOENT


def test_what_is_due_is_what_is_older_than_the_retention_of_now(md):
    first = md.create(b"a").ino
    second = md.create(b"b").ino
    md.do(m.Unlink(ROOT, ROOT_INODE, b"a"))
    since = md.now_ns
    md.do(m.Unlink(ROOT, ROOT_INODE, b"b"))

    def due(now_ns):
        return md.read(lambda txn, _: trash_list.due(txn, now_ns, 10), None)

    assert due(since) == ()
    assert due(since + HOUR_MS * 1_000_000 + 1) == (first,)
    md.do(m.Upkeep(trash_retention_ms=0), session=0)
    assert due(md.now_ns + 1) == (first, second)


async def test_a_removed_tree_is_given_back_from_the_top(md):
    top = md.mkdir(b"top").ino
    below = md.mkdir(b"below", parent=top).ino
    for name in (b"x", b"y"):
        md.write_inline(md.create(name, parent=below).ino, 0, b"data of " + name)
    for name in (b"x", b"y"):
        md.do(m.Unlink(ROOT, below, name))
    md.do(m.Rmdir(ROOT, top, b"below"))
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"top"))
    assert {item.path for item in listed(md)} == {b"/top/below/x", b"/top/below/y", b"/top/below", b"/top"}
    operator = Desk(md).operator
    with pytest.raises(UserError, match="nothing in the trash"):
        await command.give_back(operator, path=b"/else", to=None)
    assert await command.give_back(operator, path=b"/top/below/x", to=None) == [b"/top", b"/top/below", b"/top/below/x"]
    assert names(md, below) == [b"x"]
    assert await command.give_back(operator, path=b"/top", to=None) == [b"/top/below/y"]
    assert sorted(names(md, below)) == [b"x", b"y"]
    assert counts(md)[0] == 0
    assert md.findings() == []


async def test_a_file_is_given_back_elsewhere_and_the_rest_is_purged(md):
    directory = md.mkdir(b"d").ino
    other = md.mkdir(b"other").ino
    for _ in range(2):
        md.create(b"f", parent=directory)
        md.do(m.Unlink(ROOT, directory, b"f"))
    md.do(m.Rmdir(ROOT, ROOT_INODE, b"d"))
    newest = listed(md)[1].inode.ino
    operator = Desk(md).operator
    assert await command.give_back(operator, path=b"/d/f", to=b"/other/again") == [b"/d/f"]
    assert names(md, other) == [b"again"]
    found = md.read(reads.lookup, m.Lookup(ROOT, other, b"again")).inode
    assert (found.ino, stat.S_ISREG(found.mode)) == (newest, True)
    assert await command.empty(operator, path=b"/d") == 2
    assert listed(md) == ()
    assert md.findings() == []


@pytest.mark.parametrize(("text", "ms"), [("0", 0), ("90s", 90_000), ("2h", 7_200_000), ("7d", 604_800_000)])
def test_durations(text, ms):
    assert command.duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "d", "7", "-1d", "7w", "1.5h"])
def test_what_is_no_duration(text):
    with pytest.raises(UserError):
        command.duration_ms(text)


async def test_what_cannot_be_given_back_says_where_and_what_to_do(md):
    md.create(b"f")
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    md.create(b"f")
    operator = Desk(md).operator
    with pytest.raises(UserError, match=r"^trash: /f: File exists: give it another place with --to PATH$"):
        await command.give_back(operator, path=b"/f", to=None)
    with pytest.raises(UserError, match=r"^trash: --to /no/f: /no: No such file or directory$"):
        await command.give_back(operator, path=b"/f", to=b"/no/f")
    with pytest.raises(UserError, match=r"^trash: --to : expected the PATH that it is to have$"):
        await command.give_back(operator, path=b"/f", to=b"")
    assert counts(md)[0] == 1
