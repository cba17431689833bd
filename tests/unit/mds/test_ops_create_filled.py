"""CREATE of a file that its session has made already, with its bytes or its extents: what COMMIT_EXTENTS checks is
checked here, before anything is written, and telling again changes nothing."""

import errno

import msgspec
import pytest

from harness.metadata import ROOT, Metadata, command
from shoalfs.mds import messages as m
from shoalfs.mds import touched
from shoalfs.mds.entry import decode_entry, encode_entry
from shoalfs.transport.errors import (
    BadMessage,
    ChunkNotReserved,
    LayoutConflict,
    PosixError,
    StaleReceipt,
    StorageFailed,
)
from shoalfs.transport.ids import ROOT_INODE, InodeId, PoolId, TargetId, chunk_id
from shoalfs.transport.limits import CREATE_EXTENTS_MAX, TIME_NS_MAX
from unit.mds.test_ops_content import HASH, classes, content, layout, refused


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    yield md
    assert md.findings() == []


@pytest.fixture
def ino(md):
    """A number that the session may give."""
    return md.do(m.ReserveInodes(10)).first_ino


def told(md, ino, *extents, receipts=None, name=b"f", data=b""):
    """The command that tells of a file with these extents."""
    if receipts is None:
        receipts = md.receipts(*{extent.chunk for extent in extents}, durable=False)
    return m.Create(ROOT, ROOT_INODE, name, 0o644, True, ino=ino, data=data, extents=extents, receipts=receipts)


def test_it_is_made_with_its_extents(md, ino):
    first, second = md.chunk(), md.chunk()
    made = md.do(told(md, ino, md.extent(first, 0, 150), md.extent(second, 200, 50)))
    assert made.created
    inode = made.inode
    assert (inode.ino, inode.size_bytes, inode.used_bytes, inode.extents) == (ino, 250, 200, 2)
    assert (inode.storage, inode.data_version, inode.mtime_ns) == (m.Storage.EXTENTS, 2, md.now_ns)
    assert layout(md, ino) == [(0, 150, first, 0), (200, 250, second, 0)]
    assert classes(md, first, second) == ["LINKED", "LINKED"]


def test_pieces_of_one_chunk_that_go_on_become_one(md, ino):
    chunk = md.chunk()
    pieces = (md.extent(chunk, 0, 100, chunk_bytes=150), md.extent(chunk, 100, 50, chunk_offset=100, chunk_bytes=150))
    assert md.do(told(md, ino, *pieces)).inode.extents == 1
    assert layout(md, ino) == [(0, 150, chunk, 0)]


def test_told_again_it_is_the_same(md, ino):
    request = told(md, ino, md.extent(md.chunk(), 0, 150))
    made = md.do(request)
    md.do(m.SetTargetState(request.receipts[0].target, m.TargetState.DOWN), session=0)  # its receipts are old by now
    assert md.do(request) == made
    later = md.write(ino, 150, 10).inode
    assert md.do(request).inode == later


def test_told_without_before_it_is_filled_once(md, ino):
    md.do(told(md, ino))
    chunk = md.chunk()
    request = told(md, ino, md.extent(chunk, 0, 150))
    filled = md.do(request).inode
    assert (filled.size_bytes, filled.data_version) == (150, 2)
    assert md.do(request).inode == filled
    assert layout(md, ino) == [(0, 150, chunk, 0)]


@pytest.mark.parametrize("exists", [False, True], ids=["new", "told of without"])
def test_receipts_are_checked_as_those_of_a_commit(md, ino, exists):
    if exists:
        md.do(told(md, ino))
    chunk = md.chunk()
    extent = md.extent(chunk, 0, 150)
    first, second = md.receipts(chunk, durable=False)
    outsider = next(t for t in md.map().targets if t.id not in {first.target, second.target})
    bad = {
        "none": (),
        "one": (first,),
        "the same twice": (first, first),
        "a stray beside enough": (first, second, m.Receipt(chunk, outsider.id, outsider.epoch, False, HASH)),
        "an unknown target": (first, m.Receipt(chunk, TargetId(99), 1, False, HASH)),
        "an old epoch": (first, msgspec.structs.replace(second, target_epoch=second.target_epoch - 1)),
        "other bytes": (first, msgspec.structs.replace(second, chunk_hash=b"x" * 16)),
    }
    for receipts in bad.values():
        refused(md, StaleReceipt, told(md, ino, extent, receipts=receipts))
    md.do(m.SetTargetState(second.target, m.TargetState.DOWN), session=0)
    refused(md, StaleReceipt, told(md, ino, extent, receipts=(first, second)))
    md.do(told(md, ino, extent))


@pytest.mark.parametrize("exists", [False, True], ids=["new", "told of without"])
def test_chunks_are_checked_as_those_of_a_commit(md, ino, exists):
    if exists:
        md.do(told(md, ino))
    other = md.do(m.OpenSession(b"other session 16", "other"), session=0).session
    foreign = chunk_id(1, md.do(m.ReserveChunks(1), session=other).first_sequence)
    garbage = md.chunk()
    file = md.create(b"other").ino
    md.commit(file, md.extent(garbage, 0, 10))
    md.do(m.SetAttr(ROOT, file, size_bytes=0))
    for chunk in (foreign, garbage, chunk_id(1, 1 << 40)):
        refused(md, ChunkNotReserved, told(md, ino, md.extent(chunk, 0, 150)))
    refused(md, BadMessage, told(md, ino, md.extent(md.chunk(), 0, 0)))
    refused(md, BadMessage, told(md, ino, md.extent(md.chunk(), -1, 10)))
    chunk = md.chunk()
    refused(md, BadMessage, told(md, ino, md.extent(chunk, 0, 150), md.extent(chunk, 200, 10, chunk_bytes=20)))
    assert classes(md, chunk) == ["RESERVED"]


def test_they_lie_one_behind_the_other_and_are_few(md, ino):
    first, second = md.chunk(), md.chunk()
    refused(md, BadMessage, told(md, ino, md.extent(first, 0, 150), md.extent(second, 149, 10)))
    refused(md, BadMessage, told(md, ino, md.extent(first, 150, 10), md.extent(second, 0, 150)))
    count = CREATE_EXTENTS_MAX + 1
    pieces = [md.extent(first, 2 * at, 1, chunk_offset=at, chunk_bytes=count) for at in range(count)]
    refused(md, BadMessage, told(md, ino, *pieces))
    assert md.do(told(md, ino, *pieces[:-1])).inode.extents == CREATE_EXTENTS_MAX


def test_bytes_or_extents_and_only_with_a_number(md, ino):
    extent = md.extent(md.chunk(), 0, 150)
    refused(md, BadMessage, told(md, ino, extent, data=b"x"))
    refused(md, BadMessage, told(md, InodeId(0), extent))
    refused(md, BadMessage, told(md, InodeId(0), data=b"x"))
    refused(md, BadMessage, told(md, InodeId(ino + 100), extent))
    refused(md, LayoutConflict, told(md, ino, data=b"x" * 101))
    md.do(told(md, ino, extent))
    with pytest.raises(PosixError) as error:
        md.do(told(md, InodeId(ino + 1), extent))
    assert error.value.errno == errno.EEXIST


def test_a_chunk_of_another_pool_is_refused(md, ino):
    """The directory's pool is being removed, and the mount has stored in it: the file would be in another."""
    other = md.do(m.CreatePool("other", 2, 1, 0), session=0).pool.id
    directory = md.do(m.Mkdir(ROOT, ROOT_INODE, b"d", 0o755)).inode.ino
    group = next(group for group in md.map().groups if group.pool == other)
    elsewhere = md.extent(chunk_id(group.id, md.do(m.ReserveChunks(1)).first_sequence), 0, 150)
    request = msgspec.structs.replace(told(md, ino, elsewhere), parent=directory)
    refused(md, StaleReceipt, request)
    assert md.do(told(md, ino, md.extent(md.chunk(), 0, 150))).inode.pool == PoolId(1)


def test_filling_a_file_that_is_there_touches_it(md, ino):
    request = command(told(md, ino, md.extent(md.chunk(), 0, 150)))
    assert ino not in md.read(touched.touched_by, [request]).inodes
    md.do(told(md, ino))
    assert ino in md.read(touched.touched_by, [request]).inodes


def test_an_entry_of_an_older_release_makes_files_as_ever(md, ino):
    """Its CREATE ends in front of the extents, and so do the bytes that its program would write."""
    whole = told(md, ino, data=b"data")
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(whole))
    assert fields[8:] == [[], [], None]
    body = msgspec.Raw(msgspec.msgpack.encode(fields[:8]))
    entry = encode_entry(md.now_ns + 1, [(md.session, m.Command(0, 1 << 40, int(m.Op.CREATE), body))])
    assert entry[:1] == b"\x05"
    (outcome,) = md.apply(b"\x02" + entry[1:])
    assert outcome.code == 0
    assert content(md, ino)[1] == b"data"


def test_a_program_that_does_not_know_extents_does_not_apply_them():
    """It goes by the version of the entry: this one's are refused by it, and later ones by this."""
    entry = encode_entry(1, [])
    for older in (b"\x02", b"\x03", b"\x04"):
        assert decode_entry(entry) == decode_entry(older + entry[1:])
    with pytest.raises(StorageFailed, match="format 06"):
        decode_entry(b"\x06" + entry[1:])


# --- with attributes -------------------------------------------------------------------------------------------------

ALICE = m.Credentials(1000, 1001)


def told_with(md, ino, who=ROOT, data=b"data", **attributes):
    return msgspec.structs.replace(told(md, ino, data=data), who=who, attributes=m.NewAttributes(**attributes))


def test_it_is_made_with_its_attributes(md, ino):
    asked = {"mode": 0o640, "uid": 7, "gid": 8, "atime_ns": 5, "mtime_ns": -6}
    inode = md.do(told_with(md, ino, **asked)).inode
    assert inode.mode == 0o100640
    assert (inode.uid, inode.gid, inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (7, 8, 5, -6, md.now_ns)
    assert content(md, ino)[1] == b"data"


def test_an_empty_file_has_them_too(md, ino):
    assert md.do(told_with(md, ino, data=b"", mtime_ns=9)).inode.mtime_ns == 9


def test_it_has_changed_when_a_program_was_told_that_it_has(md, ino):
    before_ns = md.now_ns
    inode = md.do(told_with(md, ino, mtime_ns=3, ctime_ns=before_ns)).inode
    assert (inode.mtime_ns, inode.ctime_ns) == (3, before_ns)
    assert content(md, ino)[1] == b"data"


def test_it_has_not_changed_in_the_future(md, ino):
    inode = md.do(told_with(md, ino, ctime_ns=md.now_ns + 10**12)).inode
    assert inode.ctime_ns == md.now_ns


def test_told_again_it_has_those_of_the_last_time(md, ino):
    md.do(told_with(md, ino, mode=0o600, mtime_ns=5))
    again = md.do(told_with(md, ino, mode=0o640, mtime_ns=7))
    assert again.created
    assert (again.inode.mode, again.inode.mtime_ns) == (0o100640, 7)
    assert content(md, ino)[1] == b"data"
    request = command(told_with(md, ino, data=b"", mode=0o600))
    assert ino in md.read(touched.touched_by, [request]).inodes


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"uid": 0}, errno.EPERM),
        ({"gid": 1000}, errno.EPERM),
        ({"uid": (1 << 32) - 1}, errno.EINVAL),
        ({"gid": -5}, errno.EINVAL),
        ({"mtime_ns": m.NOW}, errno.EINVAL),
        ({"atime_ns": TIME_NS_MAX + 1}, errno.EINVAL),
    ],
)
def test_attributes_that_may_not_be_set_are_refused_and_nothing_is_made(md, ino, attributes, error):
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    assert refused(md, PosixError, told_with(md, ino, ALICE, **attributes)).errno == error
    assert md.do(told_with(md, ino, ALICE, uid=1000, gid=1001, mode=0o400, mtime_ns=3)).inode.mode == 0o100400


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o100644, 1 << 40])
def test_set_id_bits_are_no_attributes_of_a_new_file(md, ino, mode):
    with pytest.raises(BadMessage):
        md.do(told_with(md, ino, mode=mode))


def test_without_a_number_there_are_no_attributes(md):
    request = m.Create(ROOT, ROOT_INODE, b"f", 0o644, True, attributes=m.NewAttributes(mode=0o600))
    with pytest.raises(BadMessage):
        md.do(request)
