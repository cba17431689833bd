"""The segment files of a target: who may append where, what is on disk, when a file is sealed.

One segment takes appends at a time. A place in it is handed out before the bytes are written, so that several threads
write in parallel; the next segment is started when a record would not fit. Files are ``00000012.open`` while their
bytes may not be on disk and ``00000012.seg`` afterwards.

Sealing, in durable order: (1) fdatasync of the file; (2) rename; (3) sync of the directory. A crash before (3) leaves
``.open``, which is scanned as any unsealed segment is. A new file's name is synced before the first record goes in.

The rule about syncing: ``written`` goes up after a record's bytes are in the file; an fdatasync that began at
``written == n`` makes the first n durable. A failed fdatasync is never repeated: the target is out of service then.

Thread-safe. Raises OSError from the disk.
"""

import contextlib
import errno
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from shoalfs.chunkserver.disk import Disk
from shoalfs.transport.limits import SEGMENT_FILES_OPEN_MAX

OPEN_SUFFIX = ".open"
SEALED_SUFFIX = ".seg"


class Place(NamedTuple):
    """Room for one record."""

    segment: int
    position_bytes: int
    size_bytes: int


@dataclass(eq=False)
class _Unsealed:
    """A segment whose bytes may not be on disk. Invariant: ``synced`` <= ``written``."""

    fd: int
    end_bytes: int
    written: int = 0
    synced: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)  # position -> size: handed out, not yet in the index
    sync_lock: threading.Lock = field(default_factory=threading.Lock)
    broken: bool = False  # an fdatasync failed: the next one would succeed and hide that bytes are lost

    @property
    def watermark_bytes(self) -> int:
        return min(self.in_flight, default=self.end_bytes)


def parse_name(name: str) -> tuple[int, bool] | None:
    """(number, sealed) of a segment's file name; None for any other."""
    for suffix, sealed in ((OPEN_SUFFIX, False), (SEALED_SUFFIX, True)):
        stem = name.removesuffix(suffix)
        if stem != name and len(stem) == 8 and stem.isdecimal():
            return int(stem), sealed
    return None


class Segments:
    """All segments in ``path``. Recovery calls :meth:`adopt` for each file before anything else happens."""

    def __init__(self, disk: Disk, path: str, segment_bytes_max: int) -> None:
        self._disk = disk
        self._path = path
        self._segment_bytes_max = segment_bytes_max
        self._lock = threading.Lock()
        self._unsealed: dict[int, _Unsealed] = {}
        self._sealed: set[int] = set()
        self._active: int | None = None  # the one that takes appends; Invariant: a key of _unsealed
        self._fds: OrderedDict[int, int] = OrderedDict()  # of sealed segments, least recently used first
        self._users: dict[int, int] = {}  # fd -> readers in it; only of sealed segments
        self._discarded: set[int] = set()  # fds to close when their last reader leaves

    @property
    def count(self) -> int:
        return len(self._unsealed) + len(self._sealed)

    @property
    def in_flight_bytes(self) -> int:
        with self._lock:
            return sum(size for segment in self._unsealed.values() for size in segment.in_flight.values())

    def file(self, number: int, *, sealed: bool) -> str:
        return f"{self._path}/{number:08}{SEALED_SUFFIX if sealed else OPEN_SUFFIX}"

    def adopt(self, number: int, *, sealed: bool, end_bytes: int = 0) -> None:
        """Take over a file that was found. An unsealed one counts as dirty; the highest takes appends again."""
        if sealed:
            self._sealed.add(number)
        else:
            fd = self._disk.open(self.file(number, sealed=False))
            self._unsealed[number] = _Unsealed(fd, end_bytes, written=1)
        self._active = number if not sealed else None

    # --- appending ---------------------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int) -> tuple[Place, int]:
        """Room for a record in the active segment, and the descriptor to write it with.

        The caller must end with :meth:`finish` or :meth:`withdraw`; until then the segment is not sealed.
        """
        with self._lock:
            active = self._unsealed[self._active] if self._active is not None else None
            if active is None or (active.end_bytes and active.end_bytes + size_bytes > self._segment_bytes_max):
                active = self._start_segment()
            assert self._active is not None
            place = Place(self._active, active.end_bytes, size_bytes)
            active.end_bytes += size_bytes
            active.in_flight[place.position_bytes] = size_bytes
            return place, active.fd

    def _start_segment(self) -> _Unsealed:
        number = max([0, *self._unsealed, *self._sealed]) + 1
        fd = self._disk.open(self.file(number, sealed=False), create=True)
        try:
            self._disk.sync_dir(self._path)
        except OSError:
            self._disk.close(fd)
            raise
        self._active = number
        segment = self._unsealed[number] = _Unsealed(fd, 0)
        return segment

    def end(self, number: int) -> int:
        """Where the file ends, or will once what is in flight is written."""
        with self._lock:
            unsealed = self._unsealed.get(number)
        if unsealed is not None:
            return unsealed.end_bytes
        with self.use(number) as fd:
            return self._disk.size(fd)

    def watermark(self, number: int) -> int:
        """Below this, no record is on its way into the index."""
        with self._lock:
            return self._unsealed[number].watermark_bytes

    def watermarks(self) -> dict[int, int]:
        """Of every segment that is not sealed."""
        with self._lock:
            return {number: segment.watermark_bytes for number, segment in self._unsealed.items()}

    def finish(self, place: Place) -> None:
        """The record is written and in the index."""
        with self._lock:
            segment = self._unsealed[place.segment]
            del segment.in_flight[place.position_bytes]
            segment.written += 1

    def withdraw(self, place: Place) -> None:
        """Give the room back: what was written of the record becomes zeros, which recovery takes for a gap."""
        segment = self._unsealed[place.segment]
        try:
            self._disk.punch_hole(segment.fd, place.position_bytes, place.size_bytes)
        finally:
            with self._lock:
                del segment.in_flight[place.position_bytes]
                segment.written += 1
                if segment.end_bytes == place.position_bytes + place.size_bytes:
                    segment.end_bytes = place.position_bytes

    # --- syncing -----------------------------------------------------------------------------------------------------

    def sync(self, number: int) -> None:
        """Return when all that was written into the segment before the call is on disk.

        Threads that come while an fdatasync runs wait for it, and one of them runs the next for all.
        """
        with self._lock:
            segment = self._unsealed.get(number)
            wanted = segment.written if segment is not None else 0
        if segment is None:
            return  # sealed: it is on disk
        with segment.sync_lock:
            if segment.synced >= wanted:
                return
            if segment.broken:
                raise OSError(errno.EIO, f"an earlier fdatasync of segment {number} failed")
            with self._lock:
                covered = segment.written
            segment.broken = True
            self._disk.fdatasync(segment.fd)
            segment.broken = False
            segment.synced = covered

    def sync_in_place_change(self, number: int) -> None:
        """As :meth:`sync` for bytes that were changed in place, in a sealed segment too."""
        with self._lock:
            segment = self._unsealed.get(number)
            if segment is not None:
                segment.written += 1
        if segment is not None:
            self.sync(number)
            return
        with self.use(number) as fd:
            self._disk.fdatasync(fd)

    def dirty(self) -> list[int]:
        """Segments that hold bytes that may not be on disk, or that are full and not sealed."""
        with self._lock:
            return [
                number
                for number, segment in self._unsealed.items()
                if segment.synced < segment.written or number != self._active
            ]

    def seal_full(self) -> list[int]:
        """Seal the segments that take no more appends and have no record in flight; returns their numbers.

        Called by one thread at a time.
        """
        with self._lock:
            full = [
                number for number, segment in self._unsealed.items() if number != self._active and not segment.in_flight
            ]
        sealed = [number for number in full if self._seal(number)]
        if sealed:
            self._disk.sync_dir(self._path)
        return sealed

    def _seal(self, number: int) -> bool:
        self.sync(number)
        with self._lock:
            segment = self._unsealed[number]
            if segment.synced < segment.written:
                return False  # a deletion marked a record meanwhile: the next round seals it
            self._disk.rename(self.file(number, sealed=False), self.file(number, sealed=True))
            self._fds[number] = self._unsealed.pop(number).fd
            self._sealed.add(number)
        return True

    # --- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[int]:
        """A descriptor of the segment, open until the block ends. FileNotFoundError if it was removed."""
        with self._lock:
            fd = self._acquire(number)
        try:
            yield fd
        finally:
            with self._lock:
                unused = self._release(fd)
            self._close(unused)

    def _acquire(self, number: int) -> int:
        unsealed = self._unsealed.get(number)
        if unsealed is not None:
            fd = unsealed.fd
        elif number in self._fds:
            fd = self._fds[number]
            self._fds.move_to_end(number)
        elif number in self._sealed:
            fd = self._fds[number] = self._disk.open(self.file(number, sealed=True))
        else:
            raise FileNotFoundError(errno.ENOENT, f"segment {number} is gone")
        self._users[fd] = self._users.get(fd, 0) + 1
        if len(self._fds) > SEGMENT_FILES_OPEN_MAX:
            self._close(self._discard(self._fds.popitem(last=False)[1]))
        return fd

    def _release(self, fd: int) -> int | None:
        """Returns what is to be closed."""
        self._users[fd] -= 1
        if self._users[fd]:
            return None
        del self._users[fd]
        if fd not in self._discarded:
            return None
        self._discarded.remove(fd)
        return fd

    def _discard(self, fd: int) -> int | None:
        """Returns the descriptor if it is to be closed now; else it is when its last reader leaves."""
        if fd not in self._users:
            return fd
        self._discarded.add(fd)
        return None

    def _close(self, fd: int | None) -> None:
        """Of a file that is removed this frees its room, which may take seconds: not while others wait for the lock."""
        if fd is not None:
            self._disk.close(fd)

    # --- the end -----------------------------------------------------------------------------------------------------

    def is_sealed(self, number: int) -> bool:
        with self._lock:
            return number in self._sealed

    def remove(self, number: int) -> bool:
        """Unlink a sealed segment. False if it is not sealed: it stays until it is. Readers keep their descriptor."""
        with self._lock:
            if number not in self._sealed:
                return False
            self._sealed.remove(number)
            name = self.file(number, sealed=True)
            fd = self._fds.pop(number, None)
            if fd is None:
                fd = self._disk.open(name)  # so that its room is freed by the close, not by the unlink
            try:
                self._disk.unlink(name)
            finally:
                unused = self._discard(fd)
        self._close(unused)
        return True

    def close(self) -> None:
        """Close every descriptor; nobody reads or writes any more."""
        assert not self._users
        for fd in [*self._fds.values(), *(segment.fd for segment in self._unsealed.values())]:
            self._disk.close(fd)
        self._fds.clear()
        self._unsealed.clear()
