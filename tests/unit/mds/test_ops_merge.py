"""MERGE_EXTENTS: one chunk instead of many, with the same bytes; never over what somebody wrote since."""

import msgspec
import pytest

from harness.metadata import ROOT, Metadata, bounded
from shoalfs.mds import keys, reads
from shoalfs.mds import messages as m
from shoalfs.transport.errors import BadMessage, ChunkNotReserved, LayoutConflict, PosixError, StaleReceipt
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, MERGED_EXTENTS_MAX

replace = msgspec.structs.replace


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    yield md
    assert md.findings() == []


def inode_of(md, ino):
    return md.read(reads.getattr_, m.GetAttr(ino)).inode


def pieces_of(md, ino):
    return md.read(reads.get_extents, m.GetExtents(ino, 0, FILE_SIZE_BYTES_MAX, 1 << 20))[0].extents


def in_pieces(md, count=4, bytes_each=10):
    """A file of so many chunks, one behind the other."""
    ino = md.create(b"f").ino
    for at in range(count):
        md.write(ino, at * bytes_each, bytes_each)
    return ino


def request(md, ino, first=0, end=None, **fields):
    pieces = pieces_of(md, ino)[first:end]
    start, length = pieces[0].offset_bytes, sum(piece.length_bytes for piece in pieces)
    extent = md.extent(md.chunk(), start, length)
    return replace(m.MergeExtents(ino, tuple(pieces), extent, md.receipts(extent.chunk)), **fields)


def garbage(md):
    with md.store.read() as txn:
        return {keys.first_field(key) for key, _ in txn.range(*keys.all_of(b"Z"))}


def test_one_extent_instead_of_four_and_nothing_else_changes(md):
    ino = in_pieces(md)
    before, pieces = inode_of(md, ino), pieces_of(md, ino)
    merge = request(md, ino)
    committed = md.do(merge)
    assert pieces_of(md, ino) == (merge.extent,)
    assert garbage(md) == {piece.chunk for piece in pieces}
    after = inode_of(md, ino)
    assert after == committed.inode == replace(before, version=before.version + 1, extents=1)
    assert committed.previous_data_version == before.data_version


def test_the_old_chunks_are_garbage_of_their_own_kind_until_they_are_forgotten(md):
    def counted():
        counters = md.read(lambda txn, _: reads.counts(txn), None)
        return counters.garbage_chunks, counters.merged_garbage

    ino = in_pieces(md)
    md.write(ino, 0, 10)
    assert counted() == (1, 0)
    md.do(request(md, ino))
    assert counted() == (5, 4)
    md.do(m.ChunkList(tuple(garbage(md))[:3]), op=m.Op.DROP_GARBAGE, session=0)
    assert sum(counted()) in (3, 4)
    md.do(m.ChunkList(tuple(garbage(md))), op=m.Op.DROP_GARBAGE, session=0)
    assert counted() == (0, 0)


def test_what_lies_around_them_stays(md):
    ino = in_pieces(md, 6)
    pieces = pieces_of(md, ino)
    merge = request(md, ino, 1, 5)
    md.do(merge)
    assert pieces_of(md, ino) == (pieces[0], merge.extent, pieces[5])


def test_neighbours_that_are_one_row_for_one_side_and_two_for_the_other(md):
    ino = in_pieces(md)
    merge = request(md, ino)
    first = merge.pieces[0]
    halves = (first.part(0, 4), first.part(4, 10))
    md.do(replace(merge, pieces=(*halves, *merge.pieces[1:])))
    assert pieces_of(md, ino) == (merge.extent,)


def test_a_part_of_an_extent_at_either_end(md):
    """The rest of it stays."""
    ino = in_pieces(md)
    pieces = pieces_of(md, ino)
    taken = (pieces[0].part(5, 10), *pieces[1:3], pieces[3].part(30, 33))
    extent = md.extent(md.chunk(), 5, 28)
    md.do(m.MergeExtents(ino, taken, extent, md.receipts(extent.chunk)))
    assert pieces_of(md, ino) == (pieces[0].part(0, 5), extent, pieces[3].part(33, 40))


def test_parts_of_one_chunk_are_merged_too_and_a_chunk_that_others_use_stays(md):
    ino = md.create(b"f").ino
    chunk = md.chunk()
    md.commit(ino, md.extent(chunk, 0, 100))
    md.write(ino, 10, 10)
    other = md.create(b"other").ino
    md.do(m.CloneRange(ino, other, 0, 0, 100))
    assert len(pieces_of(md, ino)) == 3
    md.do(request(md, ino))
    assert len(pieces_of(md, ino)) == 1
    assert garbage(md) == set(), "the other file has them all"
    md.do(m.SetAttr(ROOT, other, size_bytes=0))
    assert chunk in garbage(md)


def written_over(md, ino):
    md.write(ino, 12, 3)


def cut(md, ino):
    md.do(m.SetAttr(ROOT, ino, size_bytes=25))


def cut_and_grown(md, ino):
    cut(md, ino)
    md.do(m.SetAttr(ROOT, ino, size_bytes=40))


def punched(md, ino):
    md.do(m.Allocate(ino, 5, 10, m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE))


def merged_by_another(md, ino):
    md.do(request(md, ino, 1, 3))


@pytest.mark.parametrize("change", [written_over, cut, cut_and_grown, punched, merged_by_another])
def test_what_was_changed_since_is_not_undone(md, change):
    ino = in_pieces(md)
    merge = request(md, ino)
    change(md, ino)
    inode, pieces = inode_of(md, ino), pieces_of(md, ino)
    with pytest.raises(LayoutConflict):
        md.do(merge)
    assert (inode_of(md, ino), pieces_of(md, ino)) == (inode, pieces)


def test_written_behind_them_meanwhile(md):
    ino = in_pieces(md)
    merge = request(md, ino)
    md.write(ino, 40, 10)
    md.do(merge)
    assert [(e.offset_bytes, e.end_bytes) for e in pieces_of(md, ino)] == [(0, 40), (40, 50)]


def test_what_was_cut_off_and_is_not_removed_yet_is_not_brought_back(md):
    ino = in_pieces(md)
    merge = request(md, ino)
    with bounded(rows_max=1):
        md.do(m.SetAttr(ROOT, ino, size_bytes=10))
    with pytest.raises(LayoutConflict):
        md.do(merge)
    assert [(e.offset_bytes, e.end_bytes) for e in pieces_of(md, ino)] == [(0, 10)]
    assert inode_of(md, ino).size_bytes == 10


def test_the_chunk_has_to_be_on_disk(md):
    """The pieces were, maybe, and an fsync was told so."""
    ino = in_pieces(md)
    merge = request(md, ino)
    chunk = merge.extent.chunk
    for receipts in ((), md.receipts(chunk, durable=False), md.receipts(chunk)[:1]):
        with pytest.raises(StaleReceipt):
            md.do(replace(merge, receipts=receipts))
    md.do(merge)


def test_the_chunk_has_to_be_the_sessions_own(md):
    ino = in_pieces(md)
    foreign = md.extent((1 << 48) + 999_999, 0, 40)
    with pytest.raises(ChunkNotReserved):
        md.do(request(md, ino, extent=foreign, receipts=md.receipts(foreign.chunk)))
    first = pieces_of(md, ino)[0].chunk
    merge = request(md, ino)
    md.do(merge)
    again = md.extent(first, 0, 40)
    md.write(ino, 0, 10)
    pieces = pieces_of(md, ino)
    with pytest.raises(ChunkNotReserved, match="garbage"):
        md.do(m.MergeExtents(ino, pieces, again, md.receipts(first)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda merge: replace(merge, pieces=merge.pieces[:1]),
        lambda merge: replace(merge, pieces=()),
        lambda merge: replace(merge, pieces=merge.pieces[::-1]),
        lambda merge: replace(
            merge,
            pieces=(
                replace(merge.pieces[0], length_bytes=90),
                replace(merge.pieces[1], offset_bytes=90, length_bytes=-50),
            ),
        ),
        lambda merge: replace(merge, pieces=(merge.pieces[0], merge.pieces[2])),
        lambda merge: replace(merge, pieces=merge.pieces * MERGED_EXTENTS_MAX),
        lambda merge: replace(merge, pieces=merge.pieces[1:]),
        lambda merge: replace(merge, extent=replace(merge.extent, length_bytes=39)),
        lambda merge: replace(merge, extent=replace(merge.extent, chunk_bytes=39)),
        lambda merge: replace(merge, extent=replace(merge.extent, chunk_hash=b"short")),
    ],
)
def test_nonsense_is_refused(md, spoil):
    ino = in_pieces(md)
    merge = request(md, ino)
    with pytest.raises(BadMessage):
        md.do(spoil(merge))
    assert len(pieces_of(md, ino)) == 4


def test_of_no_file(md):
    merge = request(md, in_pieces(md))
    directory = md.mkdir(b"d").ino
    for ino in (InodeId(999), directory):
        with pytest.raises(PosixError):
            md.do(replace(merge, ino=ino))
    small = md.create(b"small").ino
    md.write_inline(small, 0, b"x" * 40)
    with pytest.raises(LayoutConflict):
        md.do(replace(merge, ino=small))


def test_a_lost_answer(md):
    """The session's slot remembers; a later command of the same finds other extents."""
    ino = in_pieces(md)
    merge = request(md, ino)
    md.do(merge)
    with pytest.raises(LayoutConflict):
        md.do(merge)


def test_more_than_a_command_may_touch(md):
    ino = in_pieces(md)
    merge = request(md, ino)
    with bounded(rows_max=3), pytest.raises(LayoutConflict):
        md.do(merge)
    assert len(pieces_of(md, ino)) == 4
