"""Checksums of bulk data: one per 64 KiB block, and one over those that stands for the whole chunk.

A block's checksum is xxh3-64, so a reader of one byte fetches and verifies one block. A chunk's hash is xxh3-128 over
its block checksums, so sixteen bytes in the metadata vouch for up to 64 MiB: the list of block checksums travels with
the data and is itself verified against them. xxh3 is against accidents, not against an adversary.

Pure: buffers in, bytes out. Nothing is joined or copied; a block that lies across buffers is hashed piece by piece.
The two functions that touch bulk data release the interpreter lock while they hash, so a thread is worth it for much.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import xxhash

from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import BLOCK_BYTES

BLOCK_HASH_BYTES: Final = 8
CHUNK_HASH_BYTES: Final = 16


def block_count(length_bytes: int) -> int:
    """Blocks of a chunk of this length; the last one may be short."""
    return -(-length_bytes // BLOCK_BYTES)


def block_hashes(buffers: Sequence[Buffer]) -> bytes:
    """Eight bytes for each block of the concatenation of ``buffers``."""
    if len(buffers) == 1:
        view = memoryview(buffers[0]).cast("B")
        return b"".join(
            xxhash.xxh3_64_digest(view[start : start + BLOCK_BYTES]) for start in range(0, len(view), BLOCK_BYTES)
        )
    return b"".join(_streamed(buffers))


def _streamed(buffers: Sequence[Buffer]) -> Iterator[bytes]:
    hasher, room = xxhash.xxh3_64(), BLOCK_BYTES
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest:
            piece, rest = rest[:room], rest[room:]
            hasher.update(piece)
            room -= len(piece)
            if not room:
                yield hasher.digest()
                hasher, room = xxhash.xxh3_64(), BLOCK_BYTES
    if room < BLOCK_BYTES:
        yield hasher.digest()


def chunk_hash(hashes: bytes) -> bytes:
    """The hash of the chunk whose block hashes these are."""
    return xxhash.xxh3_128_digest(hashes)


def hashes_fit(hashes: bytes, length_bytes: int, expected_chunk_hash: bytes) -> bool:
    """True if these are the block hashes of the chunk of that length and hash."""
    return len(hashes) == block_count(length_bytes) * BLOCK_HASH_BYTES and chunk_hash(hashes) == expected_chunk_hash


def damaged_block(data: Buffer, hashes: bytes, first_block: int = 0) -> int | None:
    """Number of the first block in ``data`` that does not match, or None if all do.

    ``data`` begins at block ``first_block`` of the chunk; ``hashes`` are those of the whole chunk.
    """
    actual = block_hashes([data])
    start = first_block * BLOCK_HASH_BYTES
    expected = hashes[start : start + len(actual)]
    if actual == expected:
        return None
    for at in range(0, len(actual), BLOCK_HASH_BYTES):
        if actual[at : at + BLOCK_HASH_BYTES] != expected[at : at + BLOCK_HASH_BYTES]:
            return first_block + at // BLOCK_HASH_BYTES
    raise AssertionError("unequal, yet no block differs")
