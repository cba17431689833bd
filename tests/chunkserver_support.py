"""What the chunkserver's tests share: a store over a memory disk that can be crashed and opened again."""

import itertools
import random
import threading
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


_ON_PATHS = ("make_dirs", "list_dir", "sync_dir", "rename", "unlink", "space")
_ON_DESCRIPTORS = (
    "size",
    "pwritev",
    "pwritev_direct",
    "preadv",
    "truncate",
    "punch_hole",
    "fdatasync",
    "lock",
    "close",
)


class HangingDisk:
    """A disk some of whose calls do not return until they are told to. ``hung``: how many are at it."""

    def __init__(self, disk) -> None:
        self._disk = disk
        self._paths: dict[int, str] = {}
        self._below = "/"
        self._operations: frozenset[str] = frozenset()
        self._going_on = threading.Event()
        self.hung = 0
        self.raises: OSError | None = None  # what they end with

    def __getattr__(self, name: str):
        return getattr(self._disk, name)

    def hang(self, *operations: str, below: str = "/") -> None:
        """From here on these calls hang, none named: all that may wait, for what lies below a directory."""
        self._going_on.clear()
        self._below = below
        self._operations = frozenset(operations or ("open", *_ON_PATHS, *_ON_DESCRIPTORS))

    def come_back(self) -> None:
        self._operations = frozenset()
        self._going_on.set()

    def _wait(self, operation: str, path: str) -> None:
        if operation not in self._operations or not f"{path}/".startswith(self._below):
            return
        self.hung += 1
        self._going_on.wait(60.0)
        self.hung -= 1
        if self.raises is not None:
            raise self.raises

    def open(self, path: str, *, create: bool = False) -> int:
        self._wait("open", path)
        fd = self._disk.open(path, create=create)
        self._paths[fd] = path
        return fd

    def open_direct(self, path: str) -> int | None:
        self._wait("open", path)
        fd = self._disk.open_direct(path)
        if fd is not None:
            self._paths[fd] = path
        return fd


def _hanging(operation: str):
    def call(self: HangingDisk, where, *arguments):
        self._wait(operation, where if isinstance(where, str) else self._paths.get(where, "/"))
        return getattr(self._disk, operation)(where, *arguments)

    return call


for _operation in (*_ON_PATHS, *_ON_DESCRIPTORS):
    setattr(HangingDisk, _operation, _hanging(_operation))
