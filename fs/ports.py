"""What the data path needs of the two services: a metadata session and the chunkservers.

`mds/client.py` and `chunkserver/client.py` implement these ports over the network; tests implement them over
a dictionary and over the real state machine. Both raise only errors of `transport/errors.py`.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from shoalfs.mds.messages import ClusterMap, Op, Receipt, Target
from shoalfs.transport.ids import ChunkId, InodeId, SessionId
from shoalfs.transport.method import A, Message, Method, Q

Buffer: TypeAlias = bytes | bytearray | memoryview

BodyT = TypeVar("BodyT", bound=msgspec.Struct, covariant=True)
M = TypeVar("M", bound=Message)


class Answer(Protocol[BodyT]):
    """A reply of a read: the message, and the raw bytes that came with it."""

    @property
    def body(self) -> BodyT: ...

    @property
    def payload(self) -> memoryview: ...


class Metadata(Protocol):
    """One session at the metadata service."""

    @property
    def session(self) -> SessionId: ...

    @property
    def map(self) -> ClusterMap:
        """The newest cluster map this session has seen."""

    async def refresh_map(self) -> ClusterMap:
        """Fetch the map now."""

    async def read(self, method: Method[Q, A], request: Q) -> Answer[A]:
        """Ask the leader; repeated inside until it answers or the session's patience ends."""

    async def mutate(self, op: Op, request: Message, reply: type[M]) -> M:
        """Change something, at most once, whatever happens to the leader meanwhile.

        Raises the outcome's error; SessionGone when the session has ended; PeerUnreachable or
        DeadlineExceeded when nobody answered for long, and then it may or may not have been applied.
        Cancelled: the same doubt.
        """

    async def chunk_sequence(self) -> int:
        """A chunk sequence number that is reserved for this session and was never handed out before."""


class Chunks(Protocol):
    """The chunkservers."""

    async def put(
        self,
        target: Target,
        *,
        chunk: ChunkId,
        ino: InodeId,
        offset_bytes: int,
        payload: Buffer | Sequence[Buffer],
        chunk_hash: bytes,
        durable: bool,
        timeout_ms: int,
    ) -> Receipt:
        """Store a chunk on one target. The buffers must not change until this returns."""

    async def get(
        self,
        target: Target,
        *,
        chunk: ChunkId,
        chunk_bytes: int,
        chunk_hash: bytes,
        offset_bytes: int,
        length_bytes: int,
    ) -> memoryview:
        """Exactly this range of the chunk, verified against its hash. Raises ChunkMissing, ChunkCorrupt."""

    async def sync(self, target: Target, chunks: Sequence[ChunkId]) -> tuple[Receipt, ...]:
        """Put chunks that this target holds on its disk. Raises ChunkMissing if one is not there."""
