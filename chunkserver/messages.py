"""What a chunkserver is asked and what it answers. Pure: data only."""

from typing import Final, NamedTuple

from shoalfs.mds.messages import Receipt
from shoalfs.transport.fragments import Fragment
from shoalfs.transport.ids import ChunkId, InodeId, TargetId
from shoalfs.transport.limits import CHUNK_BYTES_MAX, GET_MANY_BYTES_MAX, PAYLOAD_BYTES_MAX
from shoalfs.transport.method import Message, Method


class PutChunk(Message, frozen=True):
    """Store the payload as this chunk. The same bytes again are fine (the receipt is issued anew); other bytes are
    refused with ChunkConflict. ``ino`` and ``offset_bytes`` are where the file has it: kept in the chunk's header."""

    target: TargetId
    chunk: ChunkId
    ino: InodeId
    offset_bytes: int
    chunk_hash: bytes  # xxh3-128 over the xxh3-64 of each 64 KiB block of the payload
    durable: bool  # answer only when it is on disk
    fragment: Fragment | None = None  # what it is of, if it is a fragment: kept beside it


class ChunkStored(Message, frozen=True):
    receipt: Receipt


class PutChain(Message, frozen=True):
    """Store the payload as this chunk on ``targets``: the first is on the server that is asked, which passes the chunk
    on to the server of the second, and so on. Each is answered for by itself."""

    targets: tuple[TargetId, ...]
    chunk: ChunkId
    ino: InodeId
    offset_bytes: int
    chunk_hash: bytes
    durable: bool


class ChainLink(Message, frozen=True):
    """What became of the chunk on one target: a receipt, or the wire code and text of an error."""

    target: TargetId
    receipt: Receipt | None = None
    code: int = 0
    text: str = ""


class ChainStored(Message, frozen=True):
    links: tuple[ChainLink, ...]  # of the targets asked for, in their order


class GetChunk(Message, frozen=True):
    """Read ``length_bytes`` from ``offset_bytes``; what is returned begins and ends at block boundaries around it."""

    target: TargetId
    chunk: ChunkId
    offset_bytes: int
    length_bytes: int


class ChunkRead(Message, frozen=True):
    """The payload holds the blocks from ``offset_bytes`` on. ``block_hashes``: 8 bytes per block of the whole chunk;
    hashed together they must give the chunk's hash, so the reader trusts nobody."""

    offset_bytes: int
    chunk_bytes: int
    block_hashes: bytes
    ino: InodeId = InodeId(0)
    file_offset_bytes: int = 0  # where the file ``ino`` had the chunk when it was stored


class Wanted(NamedTuple):
    """A whole chunk, as its extent describes it."""

    chunk: ChunkId
    chunk_bytes: int
    chunk_hash: bytes


class GetChunks(Message, frozen=True):
    """Read all of several small chunks: at most GET_MANY_CHUNKS_MAX, none above GET_MANY_CHUNK_BYTES_MAX, together at
    most GET_MANY_BYTES_MAX."""

    target: TargetId
    chunks: tuple[ChunkId, ...]


class FoundChunk(Message, frozen=True):
    """One of them; ``block_hashes`` as in ChunkRead. ``code`` is an error's wire code if it is missing or damaged, or
    did not fit; then it has no part in the payload."""

    chunk_bytes: int = 0
    block_hashes: bytes = b""
    code: int = 0


class ChunksRead(Message, frozen=True):
    """The payload holds the chunks that were found, one after the other."""

    chunks: tuple[FoundChunk, ...]  # those asked for, in their order


class SyncChunks(Message, frozen=True):
    """Put these chunks on disk if they are not yet; the receipts are durable. ChunkMissing if one is not here."""

    target: TargetId
    chunks: tuple[ChunkId, ...]


class ChunksSynced(Message, frozen=True):
    receipts: tuple[Receipt, ...]


class ListChunks(Message, frozen=True):
    """Ids after ``after`` in rising order."""

    target: TargetId
    after: ChunkId
    count: int


class ListedChunk(Message, frozen=True):
    chunk: ChunkId
    chunk_bytes: int
    stored_ns: int  # when it was stored, by the server's clock


class ChunksListed(Message, frozen=True):
    chunks: tuple[ListedChunk, ...]
    eof: bool


class VerifyChunks(Message, frozen=True):
    """Say of each chunk whether it is there. ``deep``: read it all and compare every hash."""

    target: TargetId
    chunks: tuple[ChunkId, ...]
    deep: bool


class VerifiedChunk(Message, frozen=True):
    """``chunk_hash`` is empty and ``code`` an error's wire code if it is missing or damaged."""

    code: int
    chunk_bytes: int = 0
    chunk_hash: bytes = b""


class ChunksVerified(Message, frozen=True):
    chunks: tuple[VerifiedChunk, ...]


class GetServerStatus(Message, frozen=True):
    pass


class TargetStatus(Message, frozen=True):
    target: TargetId  # 0: not registered yet
    uuid: bytes
    path: str
    epoch: int
    capacity_bytes: int
    used_bytes: int
    chunks: int
    segments: int
    quarantined: int
    failed: str


class ServerStatus(Message, frozen=True):
    node: str
    targets: tuple[TargetStatus, ...]
    counters: dict[str, int]


class AddTarget(Message, frozen=True):
    """Make a directory of the server's machine a target of it, for good. ``size_limit_bytes`` None: as much as its
    filesystem holds."""

    path: str
    size_limit_bytes: int | None = None


class TargetAdded(Message, frozen=True):
    target: TargetId  # 0: written down, but the metadata service has not answered yet
    uuid: bytes


_CLIENTS: Final = frozenset({"client", "admin"})
_CLIENTS_AND_PEERS: Final = _CLIENTS | {"chunkserver"}  # peers fetch what they lack, and pass chunks on
_ADMIN: Final = frozenset({"admin"})

PUT: Final = Method(200, "chunk.put", PutChunk, ChunkStored, CHUNK_BYTES_MAX, 0, _CLIENTS)
GET: Final = Method(201, "chunk.get", GetChunk, ChunkRead, 0, PAYLOAD_BYTES_MAX, _CLIENTS_AND_PEERS)
SYNC: Final = Method(202, "chunk.sync", SyncChunks, ChunksSynced, roles=_CLIENTS)
LIST: Final = Method(203, "chunk.list", ListChunks, ChunksListed, roles=_ADMIN)
VERIFY: Final = Method(204, "chunk.verify", VerifyChunks, ChunksVerified, roles=_ADMIN)
SERVER_STATUS: Final = Method(205, "chunk.status", GetServerStatus, ServerStatus, roles=_CLIENTS)
PUT_CHAIN: Final = Method(206, "chunk.put_chain", PutChain, ChainStored, CHUNK_BYTES_MAX, 0, _CLIENTS_AND_PEERS)
ADD_TARGET: Final = Method(207, "chunk.add_target", AddTarget, TargetAdded, roles=_ADMIN)
GET_MANY: Final = Method(208, "chunk.get_many", GetChunks, ChunksRead, 0, GET_MANY_BYTES_MAX, _CLIENTS)
