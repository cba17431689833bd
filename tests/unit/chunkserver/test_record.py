from dataclasses import replace

import msgspec
import pytest

from chunkserver_support import CLUSTER
from shoalfs.chunkserver import record
from shoalfs.transport.checksum import BLOCK_HASH_BYTES, block_count
from shoalfs.transport.errors import ChunkCorrupt
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import ChunkId, InodeId
from shoalfs.transport.limits import BLOCK_BYTES, CHUNK_BYTES_MAX

HEADER = record.Header(
    record.State.LIVE, 3, 8192, CLUSTER, ChunkId(1 << 63 | 5), InodeId(9), 1 << 40, 70_000, b"h" * 16, 123
)


def decode(data, **changes):
    place = {"segment": 3, "position_bytes": 8192, "cluster_id": CLUSTER, **changes}
    return record.decode(data, **place)


def test_a_header_survives_the_trip():
    assert decode(record.encode(HEADER)) == HEADER
    assert decode(record.encode(HEADER.dead())).state is record.State.DEAD


def test_the_format_is_fixed():
    """These bytes are on people's disks."""
    assert record.HEADER_BYTES == 100
    assert record.encode(HEADER).hex() == (
        "53484f414c43484b01000100030000000020000000000000636c75737465722d"
        "636c75737465722d050000000000008009000000000000000000000000010000"
        "70110100686868686868686868686868686868687b0000000000000094845807"
        "8ddea1d7"
    )


def test_every_flipped_bit_of_a_header_is_noticed():
    good = record.encode(HEADER)
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkCorrupt):
            decode(bad)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segment": 4}, "belongs to segment 3"),
        ({"position_bytes": 4096}, "offset 8192"),
        ({"cluster_id": b"x" * 16}, "belongs to cluster"),
    ],
)
def test_a_header_of_another_place_is_refused(changes, reason):
    with pytest.raises(ChunkCorrupt, match=reason):
        decode(record.encode(HEADER), **changes)


def test_short_and_empty_pages_are_refused():
    with pytest.raises(ChunkCorrupt, match="ends inside the header"):
        decode(record.encode(HEADER)[:-1])
    with pytest.raises(ChunkCorrupt, match="no header"):
        decode(bytes(4096))


@pytest.mark.parametrize("length", [0, CHUNK_BYTES_MAX + 1])
def test_a_length_out_of_range_is_refused(length):
    header = record.Header(record.State.LIVE, 3, 8192, CLUSTER, ChunkId(1), InodeId(9), 0, length, b"h" * 16, 1)
    with pytest.raises(ChunkCorrupt, match="out of range"):
        decode(record.encode(header))


def test_data_lies_on_a_page_after_header_and_hashes():
    assert record.data_offset(1) == record.data_offset(8 << 20) == 4096
    assert record.data_offset(CHUNK_BYTES_MAX) == 12_288
    assert record.record_bytes(1) == 8192
    assert record.record_bytes(4096) == 8192
    assert record.record_bytes(4097) == 12_288
    head = record.head(HEADER, b"12345678abcdefgh")
    assert len(head) == 4096
    assert record.block_hashes_in(head, BLOCK_BYTES + 1) == b"12345678abcdefgh"


# --- what a fragment is of -------------------------------------------------------------------------------------------


def fragment_of(header, place=1, data=4, parity=2):
    hashes = b"".join(header.chunk_hash if at == place else bytes([at]) * 16 for at in range(data + parity))
    return Fragment(place, data, parity, header.chunk_bytes * data - 1, hashes)


def hashes_of(header):
    return bytes(block_count(header.chunk_bytes) * BLOCK_HASH_BYTES)


def test_a_fragment_says_what_it_is_of_and_changes_nothing_else():
    fragment = fragment_of(HEADER)
    plain, head = record.head(HEADER, hashes_of(HEADER)), record.head(HEADER, hashes_of(HEADER), fragment)
    tail_bytes = 6 * 16 + 24
    assert (len(head), head[:-tail_bytes]) == (len(plain), plain[:-tail_bytes])
    assert decode(head) == HEADER
    assert record.fragment_in(head, HEADER) == fragment
    assert record.fragment_in(plain, HEADER) is None
    assert record.fragment_in(head[:-1], HEADER) is None


def test_the_tail_is_fixed():
    """These bytes are on people's disks."""
    head = record.head(HEADER, hashes_of(HEADER), fragment_of(HEADER))
    assert head[-24:-8] == b"SHOALFRG" + bytes([1, 4, 2, 0]) + (70_000 * 4 - 1).to_bytes(4, "little")
    assert head[-24 - 6 * 16 : -24] == fragment_of(HEADER).hashes


def test_every_flipped_bit_of_a_tail_is_noticed():
    good = record.head(HEADER, hashes_of(HEADER), fragment_of(HEADER))
    for bit in range((len(good) - 24 - 6 * 16) * 8, len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert record.fragment_in(bytes(bad), HEADER) is None, bit


def test_a_tail_of_another_chunk_or_with_numbers_that_cannot_be_says_nothing():
    head = record.head(HEADER, hashes_of(HEADER), fragment_of(HEADER))
    assert record.fragment_in(head, replace(HEADER, chunk=ChunkId(7))) is None
    wrong = msgspec.structs.replace(fragment_of(HEADER), chunk_bytes=70_000)
    assert record.fragment_in(record.head(HEADER, hashes_of(HEADER), wrong), HEADER) is None


def test_block_hashes_come_first_where_there_is_no_room_for_both():
    tight = replace(HEADER, chunk_bytes=499 * BLOCK_BYTES)
    fragment = fragment_of(tight, 0, 2, 1)
    head = record.head(tight, hashes_of(tight), fragment)
    assert head == record.head(tight, hashes_of(tight))
    roomy = replace(HEADER, chunk_bytes=480 * BLOCK_BYTES)
    fragment = fragment_of(roomy, 0, 2, 1)
    assert record.fragment_in(record.head(roomy, hashes_of(roomy), fragment), roomy) == fragment
