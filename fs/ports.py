"""What the parts of a mount need of what is around them: a metadata session, the chunkservers, the kernel, and what
programs have written.

`mds/client.py` and `chunkserver/client.py` implement the first two over the network; tests implement them over
a dictionary and over the real state machine. Both raise only errors of `transport/errors.py`.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from shoalfs.chunkserver.messages import ChainLink, PutChain, Wanted
from shoalfs.mds.messages import ClusterMap, Inode, Op, Receipt, Target
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.fragments import Fragment
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
        fragment: Fragment | None = None,
        timeout_ms: int,
    ) -> Receipt:
        """Store a chunk, or a fragment of one, on one target. The buffers must not change until this returns."""

    async def put_chain(
        self, target: Target, request: PutChain, payload: Buffer | Sequence[Buffer]
    ) -> Sequence[ChainLink]:
        """Store a chunk on all targets of the request, of which ``target`` is the first: what became of it on each, in
        their order. The buffers must not change until this returns."""

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

    async def get_many(self, target: Target, wanted: Sequence[Wanted]) -> list[memoryview | ShoalError]:
        """All of several small chunks, verified, in their order; or why not: ChunkMissing, ChunkCorrupt."""

    async def sync(self, target: Target, chunks: Sequence[ChunkId]) -> tuple[Receipt, ...]:
        """Put chunks that this target holds on its disk. Raises ChunkMissing if one is not there."""


class Kernel(Protocol):
    """What the kernel can be told about what it has cached. None of these waits for a lock that a request of a program
    may hold, except where it says so."""

    def forget_names(self) -> None:
        """Ask again for every name before it is used next."""

    def forget_attributes(self, ino: InodeId) -> None:
        """Ask again for the attributes, the size among them."""

    def forget_pages(self, ino: InodeId) -> None:
        """Forget pages and attributes, soon."""

    async def forgotten_pages(self, ino: InodeId) -> None:
        """Forget pages and attributes; done when this returns. Not in a request that holds pages."""

    async def drop_pages(self, inodes: tuple[InodeId, ...]) -> None:
        """Forget pages and attributes; returns when that is done, or when it takes too long because a page is locked:
        then whoever reads next asks for the attributes, and drops the pages if they are old."""


class Files(Protocol):
    """What programs have written to files and is not committed."""

    def is_dirty(self, ino: InodeId) -> bool: ...

    async def write_back(self, ino: InodeId) -> bool:
        """Commit what was written to the file before this call. False: it could not be, and is tried again."""

    def told(self, inode: Inode) -> None:
        """The leader knows of a file that was made here: it is like this there."""

    def refuse(self, ino: InodeId, error: ShoalError) -> None:
        """The leader will not have a file that was made here: it is lost, and its programs are told."""
