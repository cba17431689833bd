"""Chunks of fragments in the metadata: what a commit may link, and who has which fragment."""

import msgspec
import pytest

from harness.metadata import Metadata
from shoalfs.mds import keys, records
from shoalfs.mds import messages as m
from shoalfs.mds.map_index import MapIndex
from shoalfs.transport.checksum import chunk_hash
from shoalfs.transport.errors import BadMessage, StaleReceipt

WIDTH, DATA = 4, 2
PLACES = [bytes([place]) * 16 for place in range(1, WIDTH + 1)]
FRAGMENTS = b"".join(PLACES)
HASH = chunk_hash(FRAGMENTS)


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets(6)
    md.do(m.CreatePool("cold", WIDTH, DATA), session=0)
    yield md
    assert md.findings() == []


@pytest.fixture
def ino(md):
    return md.create(b"f").ino


def group(md, number=None):
    groups = [group for group in md.map().groups if group.pool == 2]
    return groups[0] if number is None else next(g for g in groups if g.id == number)


def extent(chunk, **changed):
    return msgspec.structs.replace(m.Extent(0, 10, chunk, 0, 10, HASH, FRAGMENTS), **changed)


def receipts(md, chunk, places=range(WIDTH), hashes=PLACES, durable=True):
    epochs = {target.id: target.epoch for target in md.map().targets}
    members = group(md, chunk >> 48).targets
    return tuple(m.Receipt(chunk, members[p], epochs[members[p]], durable, hashes[p]) for p in places)


def test_a_chunk_is_linked_with_the_hashes_of_its_fragments(md, ino):
    chunk = md.chunk(group(md).id)
    md.do(m.CommitExtents(ino, (extent(chunk),), receipts(md, chunk, range(3)), durable=True))
    with md.store.read() as txn:
        use = records.CHUNK_USE.require(txn, keys.chunk_use(chunk))
    assert use == records.ChunkUse(1, 10, HASH, FRAGMENTS)
    index = MapIndex(md.map())
    assert [index.piece(t, chunk, use) for t in group(md).targets] == [(5, place) for place in PLACES]
    assert [index.spare(chunk, group(md).targets[:count]) for count in range(5)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "given",
    [
        {"places": range(2)},  # enough to read, not enough to lose one
        {"places": (0, 1, 1)},
        {"hashes": [PLACES[0], PLACES[0], PLACES[1], PLACES[3]]},  # two have the fragment of somebody else
        {"hashes": [HASH] * WIDTH},
        {"durable": False},
    ],
)
def test_too_few_of_the_right_fragments_are_refused(md, ino, given):
    chunk = md.chunk(group(md).id)
    with pytest.raises(StaleReceipt):
        md.do(m.CommitExtents(ino, (extent(chunk),), receipts(md, chunk, **given), durable=True))


@pytest.mark.parametrize(
    "changed",
    [
        {"fragments": b""},
        {"fragments": FRAGMENTS[:-16]},
        {"fragments": FRAGMENTS + bytes(16)},
        {"chunk_hash": b"x" * 16},
        {"fragments": bytes(16) + FRAGMENTS[16:]},
    ],
)
def test_an_extent_that_is_not_of_its_pool_is_refused(md, ino, changed):
    chunk = md.chunk(group(md).id)
    with pytest.raises(BadMessage):
        md.do(m.CommitExtents(ino, (extent(chunk, **changed),), receipts(md, chunk)))


def test_fragments_in_a_pool_of_replicas_are_refused(md, ino):
    chunk = md.chunk(1)
    with pytest.raises(BadMessage):
        md.do(m.CommitExtents(ino, (extent(chunk),), md.receipts(chunk)))


def test_a_second_extent_of_the_chunk_has_the_same_fragments(md, ino):
    chunk = md.chunk(group(md).id)
    md.do(m.CommitExtents(ino, (extent(chunk),), receipts(md, chunk)))
    other = b"".join(reversed(PLACES))
    wrong = extent(chunk, offset_bytes=10, fragments=other, chunk_hash=chunk_hash(other))
    with pytest.raises(BadMessage):
        md.do(m.CommitExtents(ino, (wrong,), receipts(md, chunk, hashes=PLACES[::-1])))
    md.do(m.CommitExtents(ino, (extent(chunk, offset_bytes=10),), receipts(md, chunk)))


def change(md, members):
    now = group(md)
    return md.do(m.ChangeGroup(now.id, now.epoch, tuple(members)), session=0)


def test_who_leaves_is_remembered_with_the_place(md):
    first = group(md)
    a, b, c, d = first.targets
    e, f = sorted({1, 2, 3, 4, 5, 6} - set(first.targets))
    change(md, (a, e, c, f))
    now = group(md)
    assert (now.targets, now.leaving, now.leaving_places) == ((a, e, c, f), (b, d), (1, 3))
    assert [now.place(target) for target in (a, b, c, d, e, f)] == [0, 1, 2, 3, 1, 3]
    for members in ((e, a, c, f), (d, e, c, f), (a, e, c, b)):
        with pytest.raises(BadMessage):
            change(md, members)
    change(md, (a, b, c, f))  # to its own place anybody comes back
    now = group(md)
    assert dict(zip(now.leaving, now.leaving_places, strict=True)) == {d: 3, e: 1}
    md.do(m.SettleGroup(now.id, now.epoch, (d,)), session=0)
    assert (group(md).leaving, group(md).leaving_places) == ((d,), (3,))
    md.do(m.SettleGroup(now.id, now.epoch), session=0)
    assert (group(md).leaving, group(md).leaving_places) == ((), ())
