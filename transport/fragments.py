"""How a chunk is cut into fragments, and what stands for them. Pure. The arithmetic is in :mod:`~transport.erasure`.

A chunk of n bytes in a pool of k data and m parity fragments: fragment i < k is its bytes from i * f on, filled up with
zeros to f = n / k, rounded up; the m others are computed from those. All have f bytes. Fragment i of every chunk of a
group is on the target at place i of the group, under the chunk's number.

What vouches for them is the list of their hashes, 16 bytes each, in order of place; each is what the hash of a chunk
with these bytes would be. The list is in the extent, and the chunk's hash is the hash of the list: so whoever trusts
the extent needs to trust no target. Beside each stored fragment the same list is kept, with what else it takes to make
a chunk of fragments (:class:`Fragment`): for a rescue without metadata, and for nothing else.
"""

from collections.abc import Iterator

from shoalfs.transport.checksum import CHUNK_HASH_BYTES, chunk_hash
from shoalfs.transport.limits import CHUNK_BYTES_MAX, FRAGMENTS_MAX
from shoalfs.transport.method import Message


class Fragment(Message, frozen=True):
    """Which fragment of which chunk: its place, of ``data`` and ``parity`` ones, the chunk's length, and the hashes of
    all."""

    place: int
    data: int
    parity: int
    chunk_bytes: int
    hashes: bytes

    @property
    def hash(self) -> bytes:
        return fragment_hash(self.hashes, self.place)

    @property
    def chunk_hash(self) -> bytes:
        return chunk_hash(self.hashes)

    def fits(self, payload_bytes: int) -> bool:
        """The numbers go together, and with a fragment of this length."""
        width = self.data + self.parity
        if not (self.data > 1 and self.parity > 0 and width <= FRAGMENTS_MAX and 0 <= self.place < width):
            return False
        lengths = len(self.hashes) == width * CHUNK_HASH_BYTES and 0 < self.chunk_bytes <= CHUNK_BYTES_MAX
        return lengths and fragment_bytes(self.chunk_bytes, self.data) == payload_bytes


def fragment_bytes(chunk_bytes: int, data: int) -> int:
    """The length of each fragment."""
    return -(-chunk_bytes // data)


def fragment_hash(fragments: bytes, place: int) -> bytes:
    """The hash of the fragment at a place, from the list of all."""
    return fragments[place * CHUNK_HASH_BYTES : (place + 1) * CHUNK_HASH_BYTES]


def cut(start: int, end: int, each_bytes: int) -> Iterator[tuple[int, int, int]]:
    """The bytes [start, end) of a chunk as (place, offset in the fragment, length), in order."""
    while start < end:
        place, offset = divmod(start, each_bytes)
        length = min(end - start, each_bytes - offset)
        yield place, offset, length
        start += length
