"""What is stored of a chunk on each target of its group: the same everywhere, or a fragment each.

Computed once for a chunk and kept while it is stored, maybe in several groups one after the other.
"""

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from shoalfs.chunkserver.client import hash_chunk
from shoalfs.mds.messages import Pool
from shoalfs.transport import erasure
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import PosixError
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.link import size_of

_log: Final = logging.getLogger("shoal.fs.pieces")


class Pieces(NamedTuple):
    """``chunk_hash`` and ``fragments`` are those of the extents. ``each``: payload and hash by place; one alone is for
    every place."""

    chunk_hash: bytes
    fragments: bytes
    each: tuple[tuple[Sequence[memoryview], bytes], ...]
    pool: Pool
    chunk_bytes: int

    def fragment(self, place: int) -> Fragment | None:
        """What the target at this place keeps beside its fragment; None: it has the whole chunk."""
        if not self.fragments:
            return None
        return Fragment(place, self.pool.data, self.pool.parity, self.chunk_bytes, self.fragments)

    def at(self, place: int) -> tuple[Sequence[memoryview], bytes]:
        """What the target at this place of a group is to have, and its hash."""
        return self.each[place] if self.fragments else self.each[0]


async def prepare(payload: Sequence[memoryview], pool: Pool) -> Pieces:
    """The pieces of a chunk. Raises PosixError(EOPNOTSUPP) if the pool needs a library that is not installed."""
    if pool.data == 1:
        digest = await hash_chunk(payload)
        return Pieces(digest, b"", ((payload, digest),), pool, size_of(payload))
    try:
        return await trio.to_thread.run_sync(_encoded, payload, pool)
    except PosixError as error:
        _log.error("pool %s: %s", pool.name, error)
        raise


def _encoded(payload: Sequence[memoryview], pool: Pool) -> Pieces:
    encoded = erasure.encode(payload, pool.data, pool.parity)
    each = tuple(((fragment,), chunk_hash(block_hashes([fragment]))) for fragment in encoded)
    fragments = b"".join(digest for _, digest in each)
    return Pieces(chunk_hash(fragments), fragments, each, pool, size_of(payload))
