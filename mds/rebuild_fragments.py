"""What the headers of fragments give back: chunks, the pools that they were in, and who had which place. Pure.

Each fragment that was stored says which place it has, of how many, how long the chunk is, and the hashes of all
(chunkserver/record.py). So any k of the k + m say everything about their chunk; fragments that nobody has any more are
rebuilt by repair, as always, and compared with their hashes. Fragments that were stored by a release that did not keep
this are taken for chunks of which no two copies agree: they are left out.

A group gets the targets that hold most of the fragments of each place; who holds some of a place that went to another
is leaving. A place that nobody has goes to a target that is not in the group, or to one that does not exist and is out:
then the leader finds another.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from shoalfs.mds.load import SKIPPED_EPOCHS
from shoalfs.mds.messages import Extent, PlacementGroup, Pool
from shoalfs.mds.pools import usual_min_ack
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import ChunkId, InodeId, PgId, PoolId, TargetId, chunk_pg


class FragmentLine(msgspec.Struct, frozen=True):
    """The same in a file of headers."""

    place: int
    data: int
    parity: int
    chunk_bytes: int
    hashes: str

    def parsed(self, payload_bytes: int, payload_hash: str) -> Fragment:
        """Raises ValueError if it says what cannot be."""
        fragment = Fragment(self.place, self.data, self.parity, self.chunk_bytes, bytes.fromhex(self.hashes))
        if not fragment.fits(payload_bytes) or fragment.hash.hex() != payload_hash:
            raise ValueError("this is no fragment of a chunk")
        return fragment


class Piece(NamedTuple):
    """A fragment as one target has it; ``target`` is its number."""

    target: int
    ino: int
    offset_bytes: int
    fragment: Fragment

    @property
    def chunk(self) -> tuple[int, int, int, int, int, bytes]:
        """What all fragments of a chunk say alike."""
        of = self.fragment
        return self.ino, self.offset_bytes, of.data, of.parity, of.chunk_bytes, of.hashes


Pieces = dict[ChunkId, list[Piece]]


@dataclass(frozen=True, slots=True)
class Fragmented:
    """``absent``: how many targets that do not exist the groups name, by the numbers behind the last. ``left_out``:
    chunks that cannot be read."""

    pools: tuple[Pool, ...]
    groups: tuple[PlacementGroup, ...]
    extents: tuple[tuple[InodeId, Extent], ...]
    absent: int
    left_out: int


def of(pieces: Pieces, targets: int, last_pool: PoolId) -> Fragmented:
    """All that the fragments say. There are ``targets`` targets, numbered from 1; pools get the numbers behind
    ``last_pool``."""
    whole = {chunk: agreed for chunk, said in pieces.items() if (agreed := _agreed(said))}
    widths = _shapes(whole)
    numbers = {shape: PoolId(last_pool + at) for at, shape in enumerate(sorted(set(widths.values())), 1)}
    held: dict[PgId, Counter[tuple[int, int]]] = defaultdict(Counter)
    extents: list[tuple[InodeId, Extent]] = []
    for chunk, agreed in whole.items():
        of_chunk = agreed[0].fragment
        if (of_chunk.data, of_chunk.parity) != widths[chunk_pg(chunk)]:
            continue
        held[chunk_pg(chunk)].update((piece.target, piece.fragment.place) for piece in agreed)
        extents.append((InodeId(agreed[0].ino), _extent(chunk, agreed[0])))
    groups: list[PlacementGroup] = []
    absent = 0
    for group, counts in sorted(held.items()):
        data, parity = widths[group]
        made = _group(group, numbers[data, parity], data + parity, counts, targets)
        absent = max(absent, max(made.targets) - targets)
        groups.append(made)
    pools = tuple(
        Pool(number, f"fragments-{data}-{parity}", data + parity, usual_min_ack(data + parity, data), data)
        for (data, parity), number in numbers.items()
    )
    return Fragmented(pools, tuple(groups), tuple(extents), absent, len(pieces) - len(extents))


def _agreed(said: list[Piece]) -> list[Piece]:
    """Those who say what most say; none if that is a draw, or if they are too few to read the chunk."""
    ranked = Counter(piece.chunk for piece in said).most_common(2)
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return []
    agreed = [piece for piece in said if piece.chunk == ranked[0][0]]
    return agreed if len({piece.fragment.place for piece in agreed}) >= agreed[0].fragment.data else []


def _shapes(whole: Mapping[ChunkId, list[Piece]]) -> dict[PgId, tuple[int, int]]:
    """k and m of each group: those of most of its chunks."""
    counts: dict[PgId, Counter[tuple[int, int]]] = defaultdict(Counter)
    for chunk, agreed in whole.items():
        counts[chunk_pg(chunk)][agreed[0].fragment.data, agreed[0].fragment.parity] += 1
    return {group: counted.most_common(1)[0][0] for group, counted in counts.items()}


def _extent(chunk: ChunkId, piece: Piece) -> Extent:
    fragment = piece.fragment
    size_bytes = fragment.chunk_bytes
    return Extent(piece.offset_bytes, size_bytes, chunk, 0, size_bytes, fragment.chunk_hash, fragment.hashes)


def _group(number: PgId, pool: PoolId, width: int, counts: Counter[tuple[int, int]], targets: int) -> PlacementGroup:
    members: dict[int, int] = {}  # by place
    leaving: dict[int, int] = {}  # target -> its place
    for (target, place), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if target in members.values() or target in leaving:
            continue
        if place not in members:
            members[place] = target
        else:
            leaving[target] = place
    free = (target for target in range(1, targets + width + 1) if target not in members.values())
    for place in range(width):
        if place not in members:
            members[place] = next(target for target in free if target not in leaving)
    return PlacementGroup(
        number,
        pool,
        tuple(TargetId(members[place]) for place in range(width)),
        tuple(map(TargetId, leaving)),
        SKIPPED_EPOCHS,
        tuple(leaving.values()),
    )
