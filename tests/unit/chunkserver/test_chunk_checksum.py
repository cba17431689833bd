from itertools import pairwise

import xxhash

from chunkserver_support import content
from shoalfs.transport.checksum import block_count, block_hashes, chunk_hash, damaged_block, hashes_fit
from shoalfs.transport.limits import BLOCK_BYTES


def test_a_block_is_hashed_by_xxh3_64_and_a_chunk_by_xxh3_128_over_those():
    data = content(1, BLOCK_BYTES + 10)
    hashes = xxhash.xxh3_64_digest(data[:BLOCK_BYTES]) + xxhash.xxh3_64_digest(data[BLOCK_BYTES:])
    assert block_hashes([data]) == hashes
    assert chunk_hash(hashes) == xxhash.xxh3_128_digest(hashes)


def test_how_the_bytes_are_cut_into_buffers_does_not_matter():
    data = content(2, 3 * BLOCK_BYTES + 5)
    whole = block_hashes([data])
    for cuts in (
        [1],
        [BLOCK_BYTES],
        [BLOCK_BYTES - 1, BLOCK_BYTES + 1],
        [10, 20, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES],
    ):
        edges = [0, *cuts, len(data)]
        pieces = [memoryview(data)[a:b] for a, b in pairwise(edges)]
        assert block_hashes(pieces) == whole, cuts


def test_nothing_has_no_blocks():
    assert block_hashes([]) == block_hashes([b""]) == block_hashes([b"", b""]) == b""
    assert [block_count(n) for n in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)] == [0, 1, 1, 2]


def test_the_damaged_block_is_named():
    data = bytearray(content(3, 4 * BLOCK_BYTES))
    hashes = block_hashes([data])
    assert damaged_block(data, hashes) is None
    data[2 * BLOCK_BYTES + 7] ^= 1
    assert damaged_block(data, hashes) == 2
    assert damaged_block(memoryview(data)[BLOCK_BYTES:], hashes, 1) == 2
    assert damaged_block(memoryview(data)[3 * BLOCK_BYTES :], hashes, 3) is None
    assert damaged_block(memoryview(data)[3 * BLOCK_BYTES :], hashes, 1) == 1
    assert damaged_block(data[: 2 * BLOCK_BYTES] + b"x", hashes) == 2


def test_more_data_than_hashes_is_damage():
    data = content(4, 2 * BLOCK_BYTES)
    assert damaged_block(data, block_hashes([data[:BLOCK_BYTES]])) == 1


def test_hashes_fit_only_their_length_and_their_chunk():
    data = content(5, 2 * BLOCK_BYTES)
    hashes = block_hashes([data])
    assert hashes_fit(hashes, 2 * BLOCK_BYTES, chunk_hash(hashes))
    assert not hashes_fit(hashes, BLOCK_BYTES, chunk_hash(hashes))
    assert not hashes_fit(hashes, 2 * BLOCK_BYTES, chunk_hash(hashes[:8]))
    assert not hashes_fit(hashes[:8], 2 * BLOCK_BYTES, chunk_hash(hashes))
