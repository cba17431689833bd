"""What the chunkserver's tests share: a store over a memory disk that can be crashed and opened again."""

import itertools
import random
from pathlib import Path

from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.store import ChunkStore
from shoalfs.transport.aligned import aligned
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.ids import ChunkId, InodeId

CLUSTER = b"cluster-cluster-"
UUID = b"target--target--"
TARGET = "/target"
SEGMENTS = "/target/segments"


def content(seed: int, length: int) -> bytes:
    """Bytes that differ from block to block."""
    return random.Random(seed).randbytes(length)


def hash_of(data: bytes) -> bytes:
    return chunk_hash(block_hashes([data]))


class Rig:
    """A store, and what outlives it: its disk and the directory of its index."""

    def __init__(self, index_dir: Path, **options) -> None:
        self.disk = options.pop("disk", None) or MemoryDisk()
        self.index_dir = index_dir
        self._options = options
        self._clock = itertools.count(1)
        self.store = self.open()

    def open(self, **changes) -> ChunkStore:
        options = {
            "cluster_id": CLUSTER,
            "fresh_uuid": UUID,
            "clock_ns": lambda: next(self._clock),
            "segment_bytes_max": 1 << 20,
            "index_path": str(self.index_dir),
            **self._options,
            **changes,
        }
        self.store = ChunkStore(self.disk, TARGET, **options)
        return self.store

    def put(self, chunk: int, data: bytes, *, durable: bool = False) -> None:
        """``data`` lies in memory as what is received does."""
        received = aligned(len(data))
        received[:] = data
        segment = self.store.put(
            chunk=ChunkId(chunk), ino=InodeId(7), offset_bytes=0, data=[received], expected_hash=hash_of(data)
        )
        if durable:
            self.store.sync(segment)

    def get(self, chunk: int) -> bytes:
        """The whole chunk."""
        row = self.store.verify(ChunkId(chunk), deep=False)
        return bytes(self.store.reader.get(ChunkId(chunk), 0, row.chunk_bytes).data)

    def chunks(self) -> list[int]:
        return [chunk for chunk, _ in self.store.chunks_after(ChunkId(0), 1_000_000)]

    def rows(self) -> list:
        return self.store.chunks_after(ChunkId(0), 1_000_000)

    def flip(self, path: str, offset: int, mask: int = 1) -> None:
        """Flip bits of one byte of a file, in memory and on disk."""
        self.disk.rot(path, offset, bytes([self.disk.contents(path)[offset] ^ mask]))

    def segment_names(self) -> list[str]:
        return self.disk.list_dir(SEGMENTS)

    def restart(self) -> ChunkStore:
        """A clean end and a new start."""
        self.store.close()
        return self.open()

    def crash(self) -> ChunkStore:
        """The process is killed and started again."""
        self.store.abandon()
        self.disk.kill()
        return self.open()

    def power_cut(self, seed: int = 0) -> ChunkStore:
        """The machine loses power and starts again."""
        self.store.abandon()
        self.disk.power_cut(random.Random(seed))
        return self.open()
