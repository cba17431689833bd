"""COMMIT_INLINE, COMMIT_EXTENTS, truncation and REAP: what a file holds, and what its chunks count."""

import errno

import msgspec
import pytest

from harness.metadata import ROOT, Metadata
from shoalfs.mds import keys, reads
from shoalfs.mds import messages as m
from shoalfs.transport.errors import BadMessage, ChunkNotReserved, LayoutConflict, PosixError, StaleReceipt
from shoalfs.transport.ids import ROOT_INODE, ChunkId, TargetId, chunk_id
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, REAP_EXTENTS_MAX

E = errno
HASH = b"h" * 16


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    yield md
    assert md.findings() == []


@pytest.fixture
def ino(md):
    return md.create(b"f").ino


def content(md, ino, offset=0, length=FILE_SIZE_BYTES_MAX, count=1000):
    answer, data = md.read(reads.get_extents, m.GetExtents(ino, offset, length, count))
    return answer, data


def layout(md, ino):
    """[(offset, end, chunk, chunk offset)] of the file."""
    answer, _ = content(md, ino)
    assert answer.eof
    return [(e.offset_bytes, e.end_bytes, e.chunk, e.chunk_offset_bytes) for e in answer.extents]


def classes(md, *chunks):
    return [m.ChunkClass(c).name for c in md.read(reads.classify_chunks, m.ClassifyChunks(chunks)).classes]


def refused(md, error, request):
    before = {k: v for k, v in md.store.rows.items() if k[:1] not in (b"R", b"M")}
    with pytest.raises(error) as caught:
        md.do(request)
    assert {k: v for k, v in md.store.rows.items() if k[:1] not in (b"R", b"M")} == before
    return caught.value


# --- inline -------------------------------------------------------------------------------------------------


def test_patches_are_applied_in_order(md, ino):
    patches = (m.Patch(2, b"cdef"), m.Patch(0, b"ab"), m.Patch(3, b"D"), m.Patch(8, b"i"))
    answer = md.do(m.CommitInline(ino, patches))
    assert content(md, ino)[1] == b"abcDef\0\0i"
    assert (answer.offset_bytes, answer.previous_data_version) == (2, 1)
    inode = answer.inode
    assert (inode.size_bytes, inode.used_bytes, inode.data_version) == (9, 9, 2)
    assert inode.mtime_ns == inode.ctime_ns == md.now_ns
    counts = md.read(lambda txn, _: reads.counts(txn), None)
    assert (counts.inline_files, counts.inline_bytes) == (1, 9)


def test_appends_land_at_the_end(md, ino):
    md.write_inline(ino, 0, b"abc")
    answer = md.do(m.CommitInline(ino, (m.Patch(0, b"de"), m.Patch(0, b"f")), append=True))
    assert answer.offset_bytes == 3
    assert content(md, ino)[1] == b"abcdef"


def test_an_append_after_a_hole(md, ino):
    md.write_inline(ino, 0, b"abc")
    md.do(m.SetAttr(ROOT, ino, size_bytes=6))
    assert content(md, ino)[1] == b"abc"
    answer = md.write_inline(ino, 0, b"g", append=True)
    assert (answer.offset_bytes, answer.inode.size_bytes) == (6, 7)
    assert content(md, ino)[1] == b"abc\0\0\0g"


def test_cut_bytes_do_not_come_back(md, ino):
    md.write_inline(ino, 0, b"abcdef")
    md.do(m.SetAttr(ROOT, ino, size_bytes=2))
    md.do(m.SetAttr(ROOT, ino, size_bytes=6))
    answer = md.write_inline(ino, 4, b"!")
    assert content(md, ino)[1] == b"ab\0\0!"
    assert (answer.inode.size_bytes, answer.inode.used_bytes) == (6, 5)


def test_a_file_grows_to_its_limit_and_not_past_it(md, ino):
    md.write_inline(ino, 99, b"x")
    refused(md, LayoutConflict, m.CommitInline(ino, (m.Patch(99, b"xy"),)))
    refused(md, LayoutConflict, m.CommitInline(ino, (m.Patch(0, b"ok"), m.Patch(100, b"x"))))
    refused(md, LayoutConflict, m.CommitInline(ino, (m.Patch(0, b"x"),), append=True))
    assert md.do(m.CommitInline(ino, (m.Patch(1000, b""),))).inode.size_bytes == 100
    refused(md, BadMessage, m.CommitInline(ino, (m.Patch(-1, b"xy"),)))
    assert refused(md, PosixError, m.CommitInline(ino, (m.Patch(FILE_SIZE_BYTES_MAX, b"x"),))).errno == E.EFBIG


def test_writing_what_is_no_file(md, ino):
    fifo = md.do(m.Mknod(ROOT, ROOT_INODE, b"p", 0o010644, 0)).inode
    for target, number in ((ROOT_INODE, E.EISDIR), (fifo.ino, E.EINVAL), (999, E.ESTALE), (-1, E.ESTALE)):
        assert refused(md, PosixError, m.CommitInline(target, ())).errno == number
        assert refused(md, PosixError, m.CommitExtents(target, (), ())).errno == number


def test_writing_takes_the_set_id_bits(md):
    for name, mode, after in ((b"a", 0o6777, 0o777), (b"b", 0o6767, 0o2767)):
        made = md.create(name, mode=mode)
        assert md.write_inline(made.ino, 0, b"x").inode.mode & 0o7777 == after
        made = md.create(name + b"x", mode=mode)
        assert md.write(made.ino, 0, 10).inode.mode & 0o7777 == after


# --- from inline to extents ---------------------------------------------------------------------------------


def test_a_file_without_inline_bytes_moves_to_extents(md, ino):
    answer = md.write(ino, 0, 1000)
    assert answer.inode.storage is m.Storage.EXTENTS
    assert (answer.inode.size_bytes, answer.inode.used_bytes) == (1000, 1000)
    refused(md, LayoutConflict, m.CommitInline(ino, (m.Patch(0, b"x"),)))


def test_inline_bytes_are_replaced_only_by_who_knows_them(md, ino):
    version = md.write_inline(ino, 0, b"abc").inode.data_version
    chunk = md.chunk()
    extents, receipts = (md.extent(chunk, 0, 1000),), md.receipts(chunk)
    refused(md, LayoutConflict, m.CommitExtents(ino, extents, receipts))
    refused(md, LayoutConflict, m.CommitExtents(ino, extents, receipts, inline_version=version - 1))
    refused(md, BadMessage, m.CommitExtents(ino, extents, receipts, inline_version=version, append=True))
    answer = md.do(m.CommitExtents(ino, extents, receipts, inline_version=version))
    assert answer.inode.storage is m.Storage.EXTENTS
    assert content(md, ino)[1] == b""
    assert md.read(lambda txn, _: reads.counts(txn), None).inline_bytes == 0
    refused(md, LayoutConflict, m.CommitExtents(ino, (), (), inline_version=answer.inode.data_version))


def test_a_commit_without_extents_only_moves_the_size(md, ino):
    md.write_inline(ino, 0, b"abc")
    answer = md.commit(ino, size_bytes=50)
    assert (answer.inode.size_bytes, answer.inode.storage) == (50, m.Storage.INLINE)
    assert content(md, ino)[1] == b"abc"
    assert md.commit(ino, size_bytes=10).inode.size_bytes == 50
    assert refused(md, PosixError, m.CommitExtents(ino, (), (), size_bytes=FILE_SIZE_BYTES_MAX + 1)).errno == E.EFBIG


# --- extents over extents -----------------------------------------------------------------------------------


def test_an_overlay_in_the_middle_splits(md, ino):
    a, b = md.chunk(), md.chunk()
    md.commit(ino, md.extent(a, 0, 1000))
    answer = md.commit(ino, md.extent(b, 400, 200))
    assert layout(md, ino) == [(0, 400, a, 0), (400, 600, b, 0), (600, 1000, a, 600)]
    assert answer.inode.used_bytes == answer.inode.size_bytes == 1000
    assert classes(md, a, b) == ["LINKED", "LINKED"]
    c = md.chunk()
    md.commit(ino, md.extent(c, 0, 1000))
    assert layout(md, ino) == [(0, 1000, c, 0)]
    assert classes(md, a, b, c) == ["GARBAGE", "GARBAGE", "LINKED"]


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (0, 100, [(0, 100, "b", 0), (100, 200, "a", 0), (300, 400, "a2", 0)]),
        (50, 150, [(50, 150, "b", 0), (150, 200, "a", 50), (300, 400, "a2", 0)]),
        (100, 200, [(100, 200, "b", 0), (300, 400, "a2", 0)]),
        (100, 150, [(100, 150, "b", 0), (150, 200, "a", 50), (300, 400, "a2", 0)]),
        (150, 200, [(100, 150, "a", 0), (150, 200, "b", 0), (300, 400, "a2", 0)]),
        (150, 350, [(100, 150, "a", 0), (150, 350, "b", 0), (350, 400, "a2", 50)]),
        (0, 500, [(0, 500, "b", 0)]),
        (200, 300, [(100, 200, "a", 0), (200, 300, "b", 0), (300, 400, "a2", 0)]),
        (400, 500, [(100, 200, "a", 0), (300, 400, "a2", 0), (400, 500, "b", 0)]),
    ],
)
def test_overlays(md, ino, first, end, expected):
    a, a2, b = md.chunk(), md.chunk(), md.chunk()
    md.commit(ino, md.extent(a, 100, 100), md.extent(a2, 300, 100))
    md.commit(ino, md.extent(b, first, end - first))
    names = {a: "a", a2: "a2", b: "b"}
    assert [(o, e, names[c], co) for o, e, c, co in layout(md, ino)] == expected


def test_later_extents_of_a_commit_lie_over_earlier_ones(md, ino):
    a, b = md.chunk(), md.chunk()
    md.commit(ino, md.extent(a, 0, 100), md.extent(b, 0, 100))
    assert layout(md, ino) == [(0, 100, b, 0)]
    assert classes(md, a, b) == ["GARBAGE", "LINKED"]


def test_one_chunk_may_serve_several_extents(md, ino):
    chunk = md.chunk()
    md.commit(
        ino,
        md.extent(chunk, 0, 10, chunk_offset=0, chunk_bytes=30),
        md.extent(chunk, 50, 20, chunk_offset=10, chunk_bytes=30),
    )
    md.do(m.SetAttr(ROOT, ino, size_bytes=20))
    assert classes(md, chunk) == ["LINKED"]
    md.do(m.SetAttr(ROOT, ino, size_bytes=0))
    assert classes(md, chunk) == ["GARBAGE"]


def test_appended_extents_land_at_the_end(md, ino):
    md.write(ino, 0, 100)
    a, b = md.chunk(), md.chunk()
    answer = md.commit(ino, md.extent(a, 0, 10), md.extent(b, 10, 10), append=True)
    assert (answer.offset_bytes, answer.inode.size_bytes) == (100, 120)
    assert [row[:2] for row in layout(md, ino)] == [(0, 100), (100, 110), (110, 120)]


def test_truncation_cuts_extents(md, ino):
    a, b = md.chunk(), md.chunk()
    md.commit(ino, md.extent(a, 0, 100), md.extent(b, 200, 100))
    after = md.do(m.SetAttr(ROOT, ino, size_bytes=250)).inode
    assert (after.used_bytes, layout(md, ino)) == (150, [(0, 100, a, 0), (200, 250, b, 0)])
    after = md.do(m.SetAttr(ROOT, ino, size_bytes=40)).inode
    assert (after.used_bytes, layout(md, ino)) == (40, [(0, 40, a, 0)])
    after = md.do(m.SetAttr(ROOT, ino, size_bytes=1000)).inode
    assert (after.used_bytes, after.size_bytes, layout(md, ino)) == (40, 1000, [(0, 40, a, 0)])
    assert classes(md, a, b) == ["LINKED", "GARBAGE"]


def test_extents_are_read_in_pages(md, ino):
    chunks = [md.chunk() for _ in range(5)]
    md.commit(ino, *(md.extent(c, 100 * i, 100) for i, c in enumerate(chunks)))
    page, _ = content(md, ino, 150, 1000, 2)
    assert ([e.offset_bytes for e in page.extents], page.eof) == ([100, 200], False)
    page, _ = content(md, ino, 300, 1000, 2)
    assert ([e.offset_bytes for e in page.extents], page.eof) == ([300, 400], True)
    assert content(md, ino, 100, 0)[0].extents == ()
    assert content(md, ino, 500, 10)[0].extents == ()
    for offset, length in ((-1, 5), (0, -1)):
        with pytest.raises(PosixError):
            content(md, ino, offset, length)


# --- what may be committed ----------------------------------------------------------------------------------


def test_an_extent_must_lie_within_its_chunk(md, ino):
    chunk = md.chunk()
    bad = [
        m.Extent(0, 100, chunk, 0, 99, b"h" * 16),
        m.Extent(0, 100, chunk, 1, 100, b"h" * 16),
        m.Extent(0, 100, chunk, -1, 100, b"h" * 16),
        m.Extent(0, 0, chunk, 0, 100, b"h" * 16),
        m.Extent(-1, 10, chunk, 0, 100, b"h" * 16),
        m.Extent(0, 100, chunk, 0, 100, b"h" * 15),
        m.Extent(0, 1 << 27, chunk, 0, 1 << 27, b"h" * 16),
        m.Extent(0, 100, ChunkId(0), 0, 100, b"h" * 16),
        m.Extent(0, 100, ChunkId(-5), 0, 100, b"h" * 16),
    ]
    for extent in bad:
        refused(md, BadMessage, m.CommitExtents(ino, (extent,), md.receipts(chunk)))
    many = tuple(m.Extent(i, 1, chunk, 0, 100, b"h" * 16) for i in range(1025))
    refused(md, BadMessage, m.CommitExtents(ino, many, md.receipts(chunk)))
    far = m.Extent(FILE_SIZE_BYTES_MAX - 10, 11, chunk, 0, 11, b"h" * 16)
    assert refused(md, PosixError, m.CommitExtents(ino, (far,), md.receipts(chunk))).errno == E.EFBIG


def test_a_chunk_has_one_length(md, ino):
    chunk = md.chunk()
    two = (md.extent(chunk, 0, 10), md.extent(chunk, 10, 11))
    refused(md, BadMessage, m.CommitExtents(ino, two, md.receipts(chunk)))
    md.commit(ino, md.extent(chunk, 0, 10))
    other = m.CommitExtents(ino, (md.extent(chunk, 10, 11),), md.receipts(chunk))
    refused(md, BadMessage, other)


def test_only_reserved_chunks_may_be_committed(md, ino):
    other = md.do(m.OpenSession(b"other session 16", "other"), session=0).session
    reserved = chunk_id(1, md.do(m.ReserveChunks(1), session=other).first_sequence)
    never = chunk_id(1, 1 << 40)
    for chunk in (reserved, never):
        refused(md, ChunkNotReserved, m.CommitExtents(ino, (md.extent(chunk, 0, 10),), md.receipts(chunk)))
    request = m.CommitExtents(ino, (md.extent(reserved, 0, 10),), md.receipts(reserved))
    md.do(request, session=other)
    # What is linked already may be linked again, by anybody.
    md.commit(ino, md.extent(reserved, 50, 10))


def test_garbage_is_not_committed_again(md, ino):
    chunk = md.chunk()
    md.commit(ino, md.extent(chunk, 0, 10))
    md.do(m.SetAttr(ROOT, ino, size_bytes=0))
    refused(md, ChunkNotReserved, m.CommitExtents(ino, (md.extent(chunk, 0, 10),), md.receipts(chunk)))


def test_receipts(md, ino):
    """Two of the group's two targets must have said so (min_ack 2), in their present epochs."""
    chunk = md.chunk()
    group = next(g for g in md.map().groups if g.id == 1)
    outsider = next(t.id for t in md.map().targets if t.id not in group.targets)
    first, second = md.receipts(chunk)
    extents = (md.extent(chunk, 0, 10),)
    bad = {
        "none": (),
        "one": (first,),
        "the same twice": (first, first),
        "an outsider": (first, m.Receipt(chunk, outsider, 1, True, HASH)),
        "an unknown target": (first, m.Receipt(chunk, TargetId(99), 1, True, HASH)),
        "an old epoch": (first, m.Receipt(chunk, second.target, second.target_epoch - 1, True, HASH)),
        "a coming epoch": (first, m.Receipt(chunk, second.target, second.target_epoch + 1, True, HASH)),
        "other bytes": (first, msgspec.structs.replace(second, chunk_hash=b"x" * 16)),
        "another chunk": (first, m.Receipt(ChunkId(chunk + 1), second.target, second.target_epoch, True, HASH)),
    }
    for receipts in bad.values():
        refused(md, StaleReceipt, m.CommitExtents(ino, extents, receipts))
    volatile = m.Receipt(chunk, second.target, second.target_epoch, False, HASH)
    refused(md, StaleReceipt, m.CommitExtents(ino, extents, (first, volatile), durable=True))
    md.do(m.CommitExtents(ino, extents, (first, volatile)))
    md.do(m.CommitExtents(ino, extents, (first, second), durable=True))


def test_a_commit_that_is_synced_later_has_receipts_of_members_only(md, ino):
    """Else the writer would take the word of who is no member any more for what fsync promises: nobody reads there, and
    the copy is deleted."""
    chunk = md.chunk()
    members = md.receipts(chunk, durable=False)
    outsider = next(t for t in md.map().targets if t.id not in {r.target for r in members})
    stray = m.Receipt(chunk, outsider.id, outsider.epoch, False, HASH)
    extents = (md.extent(chunk, 0, 10),)
    refused(md, StaleReceipt, m.CommitExtents(ino, extents, (*members, stray)))
    synced = tuple(msgspec.structs.replace(r, durable=True) for r in (*members, stray))
    md.do(m.CommitExtents(ino, extents, synced, durable=True))
    md.do(m.CommitExtents(ino, extents, members))


def test_receipts_end_with_the_epoch(md, ino):
    chunk = md.chunk()
    receipts = md.receipts(chunk)
    md.do(m.SetTargetState(receipts[0].target, m.TargetState.DOWN), session=0)
    refused(md, StaleReceipt, m.CommitExtents(ino, (md.extent(chunk, 0, 10),), receipts))


def test_an_unknown_group_has_no_receipts(md, ino):
    chunk = chunk_id(60000, md.do(m.ReserveChunks(1)).first_sequence)
    request = m.CommitExtents(ino, (md.extent(chunk, 0, 10),), (m.Receipt(chunk, TargetId(1), 1, True, HASH),))
    refused(md, StaleReceipt, request)


def test_a_chunk_whose_count_is_lost_stops_nobody(md, ino):
    """Until it is counted again it is neither used nor garbage; whoever writes over it, or removes the file, is not
    stopped, and neither is any node that applies that."""
    first, second = md.chunk(), md.chunk()
    md.commit(ino, md.extent(first, 0, 10), md.extent(second, 10, 10))
    with md.store.write() as txn:
        txn.delete(keys.chunk_use(first))
        txn.delete(keys.chunk_use(second))
    md.write(ino, 0, 10)
    md.do(m.SetAttr(ROOT, ino, size_bytes=10))
    assert [(f.kind, f.ino) for f in md.findings()] == []
    with md.store.read() as txn:
        assert reads.classified(txn, (first, second)).keys() == {first, second}
        assert reads.counts(txn).garbage_chunks == 0


# --- reaping and garbage ------------------------------------------------------------------------------------


def test_reaping_is_bounded(md, ino):
    count = REAP_EXTENTS_MAX + 10
    sequence = md.do(m.ReserveChunks(count)).first_sequence
    chunks = [chunk_id(1, sequence + i) for i in range(count)]
    for start in range(0, count, 500):
        md.commit(ino, *(md.extent(c, 10 * (start + i), 10) for i, c in enumerate(chunks[start : start + 500])))
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert not md.do(m.Reap(ino), session=0).done
    assert md.findings() == []
    assert md.read(reads.getattr_, m.GetAttr(ino)).inode.used_bytes == 100
    assert md.do(m.Reap(ino), session=0).done
    assert set(classes(md, *chunks)) == {"GARBAGE"}
    assert md.read(lambda txn, _: reads.counts(txn), None).garbage_chunks == count


def test_writing_an_orphan_still_works(md, ino):
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    md.write(ino, 0, 10)
    assert md.do(m.Reap(ino), session=0).done


def test_garbage_comes_oldest_first_and_is_dropped(md, ino):
    chunks, times = [], []
    for _ in range(3):
        chunk = md.chunk()
        md.commit(ino, md.extent(chunk, 0, 10))
        md.do(m.SetAttr(ROOT, ino, size_bytes=0))
        chunks.append(chunk)
        times.append(md.now_ns)

    def due(before_ns, count=10, skip=()):
        return md.read(lambda txn, _: reads.garbage_before(txn, before_ns, count, skip.__contains__), None)

    assert due(times[1]) == chunks[:1]
    assert due(times[2] + 1) == chunks
    assert due(times[2] + 1, 2) == chunks[:2]
    assert due(times[2] + 1, 2, {chunks[0]}) == chunks[1:]
    assert due(-5) == []
    md.do(m.ChunkList((chunks[1], chunks[1], ChunkId(77))), op=m.Op.DROP_GARBAGE, session=0)
    assert due(times[2] + 1) == [chunks[0], chunks[2]]


def test_strays_become_garbage_and_nothing_else(md, ino):
    linked, reserved, garbage = md.chunk(), md.chunk(), md.chunk()
    former = md.do(m.OpenSession(b"a former session", "tests"), session=0).session
    stray = chunk_id(2, md.do(m.ReserveChunks(1), session=former).first_sequence)
    md.do(m.EndSession(former), session=0)
    beyond = chunk_id(2, 1 << 40)
    md.commit(ino, md.extent(garbage, 0, 10))
    md.do(m.SetAttr(ROOT, ino, size_bytes=0))
    since = md.now_ns
    md.commit(ino, md.extent(linked, 0, 10))
    chunks = (linked, reserved, garbage, stray, beyond)
    assert classes(md, *chunks) == ["LINKED", "RESERVED", "GARBAGE", "UNKNOWN", "BEYOND"]
    assert md.read(reads.strays, chunks) == [stray]
    md.do(m.ChunkList((*chunks, stray)), op=m.Op.ADD_GARBAGE, session=0)
    assert classes(md, *chunks) == ["LINKED", "RESERVED", "GARBAGE", "GARBAGE", "BEYOND"]
    assert md.read(lambda txn, _: reads.garbage_before(txn, since + 1, 10), None) == [garbage]
    md.do(m.EndSession(md.session), session=0)
    assert classes(md, reserved) == ["UNKNOWN"]


def test_chunk_lists_have_limits(md):
    for op in (m.Op.ADD_GARBAGE, m.Op.DROP_GARBAGE):
        for chunks in ((0,), (-1,), tuple(range(1, 10_002))):
            with pytest.raises(BadMessage):
                md.do(m.ChunkList(chunks), op=op, session=0)
