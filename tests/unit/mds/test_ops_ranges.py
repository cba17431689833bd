"""ALLOCATE, CLONE_RANGE and TMPFILE: what the model of the namespace does not reach: bounds, pools, counts, times."""

import errno
import stat

import msgspec
import pytest

from harness.metadata import ALICE, BOB, LAYOUT, ROOT, Metadata
from shoalfs.mds import keys, reads, records
from shoalfs.mds import messages as m
from shoalfs.transport.errors import LayoutConflict, PosixError
from shoalfs.transport.ids import ROOT_INODE, PoolId
from shoalfs.transport.limits import CLONE_EXTENTS_MAX, FILE_SIZE_BYTES_MAX, OUTCOME_BYTES_MAX

E = errno


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets()
    yield md
    assert md.findings() == []


def refused(md, request):
    with pytest.raises(PosixError) as raised:
        md.do(request)
    return raised.value.errno


def extents(md, ino):
    return md.read(reads.get_extents, m.GetExtents(ino, 0, FILE_SIZE_BYTES_MAX, 1 << 20))[0].extents


def test_punching_frees_a_chunk_with_its_last_extent(md):
    ino = md.create(b"f").ino
    md.write(ino, 0, 1000)
    (extent,) = extents(md, ino)
    md.do(m.Allocate(ino, 100, 200, m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE))
    assert [(e.offset_bytes, e.end_bytes) for e in extents(md, ino)] == [(0, 100), (300, 1000)]
    with md.store.read() as txn:
        assert records.CHUNK_USE.load(txn, keys.chunk_use(extent.chunk)).extents == 2
        assert txn.get(keys.garbage(extent.chunk)) is None
    answer = md.do(m.Allocate(ino, 0, 1000, m.AllocateMode.ZERO_RANGE))
    assert (answer.inode.size_bytes, answer.inode.used_bytes) == (1000, 0)
    with md.store.read() as txn:
        assert txn.get(keys.garbage(extent.chunk)) is not None


def test_all_modes_move_the_times_and_take_set_id_bits(md):
    for mode in (0, 1, 3, 16, 17):
        ino = md.create(b"f%d" % mode, mode=0o6777).ino
        answer = md.do(m.Allocate(ino, 0, 10, mode))
        assert stat.S_IMODE(answer.inode.mode) == 0o777
        assert answer.inode.mtime_ns == answer.inode.ctime_ns == md.now_ns
        assert answer.previous_data_version == answer.inode.data_version - 1


def test_bounds(md):
    ino = md.create(b"f").ino
    for mode in (2, 4, 8, 32, 64, 18):
        assert refused(md, m.Allocate(ino, 0, 10, mode)) == E.EOPNOTSUPP
    assert refused(md, m.Allocate(ino, -1, 10)) == E.EINVAL
    assert refused(md, m.Allocate(ino, 0, 0)) == E.EINVAL
    assert refused(md, m.Allocate(ino, FILE_SIZE_BYTES_MAX, 1)) == E.EFBIG
    assert refused(md, m.Allocate(ROOT_INODE, 0, 1)) == E.EISDIR
    assert refused(md, m.Allocate(999, 0, 1)) == E.ESTALE
    assert md.do(m.Allocate(ino, FILE_SIZE_BYTES_MAX - 1, 1)).inode.size_bytes == FILE_SIZE_BYTES_MAX


def test_a_clone_counts_its_chunks_and_outlives_its_source(md):
    source, target = md.create(b"f").ino, md.create(b"g").ino
    md.write(source, 0, 1000)
    (extent,) = extents(md, source)
    md.do(m.CloneRange(source, target, 100, 7, 200))
    (clone,) = extents(md, target)
    assert (clone.offset_bytes, clone.length_bytes, clone.chunk, clone.chunk_offset_bytes) == (
        7,
        200,
        extent.chunk,
        100,
    )
    md.do(m.Unlink(ROOT, ROOT_INODE, b"f"))
    assert md.do(m.Reap(source), session=0).done
    with md.store.read() as txn:
        assert records.CHUNK_USE.load(txn, keys.chunk_use(extent.chunk)).extents == 1
        assert txn.get(keys.garbage(extent.chunk)) is None


def test_a_clone_ends_with_so_many_extents_and_its_answer_is_small(md):
    source, target = md.create(b"f").ino, md.create(b"g").ino
    chunk = md.chunk()
    for first in range(0, CLONE_EXTENTS_MAX + 10, 512):
        count = min(512, CLONE_EXTENTS_MAX + 10 - first)
        pieces = [md.extent(chunk, 10 * n, 5, chunk_offset=0, chunk_bytes=100) for n in range(first, first + count)]
        md.commit(source, *pieces)
    length = 10 * (CLONE_EXTENTS_MAX + 9) + 5
    answer = md.do(m.CloneRange(source, target, 0, 0, 1 << 40))
    assert answer.length_bytes == 10 * CLONE_EXTENTS_MAX
    assert len(msgspec.msgpack.encode(answer)) < OUTCOME_BYTES_MAX // 16
    done = answer.length_bytes
    assert md.do(m.CloneRange(source, target, done, done, 1 << 40)).length_bytes == length - done
    assert [e.offset_bytes for e in extents(md, target)] == [e.offset_bytes for e in extents(md, source)]


def test_what_cannot_be_shared(md):
    inline, chunked, other = (md.create(name).ino for name in (b"i", b"c", b"o"))
    md.write_inline(inline, 0, b"inline bytes")
    md.write(chunked, 0, 1000)
    for request in (
        m.CloneRange(inline, chunked, 0, 0, 5),
        m.CloneRange(inline, other, 0, LAYOUT.inline_bytes_max, 1),
        m.CloneRange(chunked, inline, 0, 5, 100),
        m.CloneRange(chunked, inline, 0, 0, 11),
    ):
        with pytest.raises(LayoutConflict):
            md.do(request)
    assert md.do(m.CloneRange(chunked, inline, 0, 0, 12)).inode.storage == m.Storage.EXTENTS
    assert md.do(m.CloneRange(chunked, other, 0, 0, 0)).length_bytes == 0
    assert md.do(m.CloneRange(chunked, other, 1000, 0, 5)).length_bytes == 0


def test_files_of_two_pools_share_nothing(md):
    source, target = md.create(b"f").ino, md.create(b"g").ino
    md.write(source, 0, 1000)
    with md.store.write() as txn:
        inode = records.INODE.load(txn, keys.inode(target))
        changed = msgspec.structs.replace(inode, pool=PoolId(2))
        records.INODE.store(txn, keys.inode(target), changed)
    with pytest.raises(LayoutConflict):
        md.do(m.CloneRange(source, target, 0, 0, 10))


def test_clones_have_bounds(md):
    ino, other = md.create(b"f").ino, md.create(b"g").ino
    md.write(ino, 0, 1000)
    assert refused(md, m.CloneRange(ino, ino, 0, 500, 501)) == E.EINVAL
    assert refused(md, m.CloneRange(ino, ino, 0, 0, 1)) == E.EINVAL
    assert refused(md, m.CloneRange(ino, other, -1, 0, 1)) == E.EINVAL
    assert refused(md, m.CloneRange(ino, other, 0, FILE_SIZE_BYTES_MAX, 1)) == E.EFBIG
    assert refused(md, m.CloneRange(ROOT_INODE, other, 0, 0, 1)) == E.EISDIR
    assert md.do(m.CloneRange(ino, ino, 0, 500, 500)).length_bytes == 500


def test_a_file_without_a_name_is_an_orphan_until_it_is_linked(md):
    made = md.do(m.Tmpfile(ALICE, md.mkdir(b"d", mode=0o777).ino, 0o666, True, 0o022)).inode
    assert (made.nlink, made.uid, stat.S_IMODE(made.mode), made.linkable) == (0, ALICE.uid, 0o644, True)
    with md.store.read() as txn:
        assert reads.counts(txn).orphans == 1
    linked = md.do(m.Link(ROOT, made.ino, ROOT_INODE, b"named")).inode
    assert (linked.nlink, linked.linkable) == (1, False)
    with md.store.read() as txn:
        assert reads.counts(txn).orphans == 0
    md.do(m.Unlink(ROOT, ROOT_INODE, b"named"))
    assert refused(md, m.Link(ROOT, made.ino, ROOT_INODE, b"again")) == E.ENOENT


def test_one_that_is_not_linkable_stays_nameless(md):
    made = md.do(m.Tmpfile(ROOT, ROOT_INODE, 0o600, False)).inode
    assert refused(md, m.Link(ROOT, made.ino, ROOT_INODE, b"named")) == E.ENOENT
    assert md.do(m.Reap(made.ino), session=0).done


def test_it_needs_a_place_to_be_linked(md):
    private = md.mkdir(b"p", mode=0o700).ino
    assert refused(md, m.Tmpfile(BOB, private, 0o600, True)) == E.EACCES
    assert refused(md, m.Tmpfile(ROOT, md.create(b"f").ino, 0o600, True)) == E.ENOTDIR
