"""The segment files of a target: who may append where, what is on disk, when a file is sealed.

One segment takes appends at a time, and one more takes the large records. A place is handed out before the bytes are
written, so that several threads write in parallel; the next segment is started when a record would not fit.

Large records are written past the page cache (:meth:`Disk.pwritev_direct`), one at a time, each behind all others of
its file: what is being written lies behind the end of the file, so the system has no page that holds some of it, and no
change elsewhere, such as marking a record as deleted, can meet it.

Files are ``00000012.open`` while their bytes may not be on disk and ``00000012.seg`` afterwards.

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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoalfs.chunkserver.disk import Disk, after
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import SEGMENT_FILES_OPEN_MAX

OPEN_SUFFIX = ".open"
SEALED_SUFFIX = ".seg"


class Place(NamedTuple):
    """Room for one record. ``direct``: among the large ones."""

    segment: int
    position_bytes: int
    size_bytes: int
    direct: bool


@dataclass(eq=False)
class _Unsealed:
    """A segment whose bytes may not be on disk. Invariant: ``synced`` <= ``written``."""

    fd: int
    end_bytes: int
    direct_fd: int | None = None  # of one that takes large records
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
        self._active: dict[bool, int] = {}  # those that take appends, large records: True; Invariant: keys of _unsealed
        self._direct = True  # as long as no file has said otherwise
        self._direct_turn = threading.Lock()  # held by whoever has a place for a large record
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
        """Take over a file that was found. An unsealed one counts as dirty; the highest takes small records again."""
        if sealed:
            self._sealed.add(number)
        else:
            fd = self._disk.open(self.file(number, sealed=False))
            self._unsealed[number] = _Unsealed(fd, end_bytes, written=1)
        self._active = {False: number} if not sealed else {}

    # --- appending ---------------------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int, *, large: bool = False) -> Place:
        """Room for a record. ``large``: waits until no other large one is under way.

        The caller must end with :meth:`finish` or :meth:`withdraw`; until then the segment is not sealed.
        """
        if not large or not self._direct:
            return self._allocate(size_bytes, direct=False)
        self._direct_turn.acquire()
        try:
            return self._allocate(size_bytes, direct=True)
        except BaseException:
            self._direct_turn.release()
            raise

    def _allocate(self, size_bytes: int, *, direct: bool) -> Place:
        with self._lock:
            number = self._active.get(direct)
            active = self._unsealed[number] if number is not None else None
            if active is None or (active.end_bytes and active.end_bytes + size_bytes > self._segment_bytes_max):
                active = self._start_segment(direct=direct)
            place = Place(self._active[direct], active.end_bytes, size_bytes, direct)
            active.end_bytes += size_bytes
            active.in_flight[place.position_bytes] = size_bytes
            return place

    def _start_segment(self, *, direct: bool) -> _Unsealed:
        number = max([0, *self._unsealed, *self._sealed]) + 1
        fd = self._disk.open(self.file(number, sealed=False), create=True)
        direct_fd = None
        try:
            if direct:
                direct_fd = self._disk.open_direct(self.file(number, sealed=False))
                self._direct = direct_fd is not None  # if not, this is the last segment for large records alone
            self._disk.sync_dir(self._path)
        except OSError:
            for opened in (fd, direct_fd):
                self._close(opened)
            raise
        self._active[direct] = number
        segment = self._unsealed[number] = _Unsealed(fd, 0, direct_fd)
        return segment

    def write(self, place: Place, buffers: Sequence[Buffer]) -> None:
        """Write the record that the place was allocated for."""
        segment = self._unsealed[place.segment]
        done = 0
        if segment.direct_fd is not None:
            done = self._disk.pwritev_direct(segment.direct_fd, buffers, place.position_bytes)
        if done < place.size_bytes:
            rest = after([memoryview(buffer).cast("B") for buffer in buffers], done)
            self._disk.pwritev(segment.fd, rest, place.position_bytes + done)

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
        if place.direct:
            self._direct_turn.release()

    def withdraw(self, place: Place) -> None:
        """Give the room back: what was written of the record becomes zeros, which recovery takes for a gap. In a
        segment of large records it stays one: the file may end behind it by now."""
        segment = self._unsealed[place.segment]
        try:
            self._disk.punch_hole(segment.fd, place.position_bytes, place.size_bytes)
        finally:
            with self._lock:
                del segment.in_flight[place.position_bytes]
                segment.written += 1
                if segment.end_bytes == place.position_bytes + place.size_bytes and not place.direct:
                    segment.end_bytes = place.position_bytes
            if place.direct:
                self._direct_turn.release()

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
                if segment.synced < segment.written or number not in self._active.values()
            ]

    def seal_full(self, kept: Collection[int] = ()) -> list[int]:
        """Seal the segments that take no more appends and have no record in flight, but not ``kept``; returns their
        numbers.

        Called by one thread at a time.
        """
        with self._lock:
            full = [
                number
                for number, segment in self._unsealed.items()
                if number not in self._active.values() and not segment.in_flight and number not in kept
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
            del self._unsealed[number]
            self._fds[number] = segment.fd
            self._sealed.add(number)
        self._close(segment.direct_fd)
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

    @contextlib.contextmanager
    def at_hand(self, number: int) -> Iterator[int | None]:
        """As :meth:`use` if the descriptor is open and nobody is busy with the files, else None. Does not wait; the
        block must not either, since all others wait for it."""
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            unsealed = self._unsealed.get(number)
            yield unsealed.fd if unsealed is not None else self._fds.get(number)
        finally:
            self._lock.release()

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
        for segment in self._unsealed.values():
            self._disk.close(segment.fd)
            self._close(segment.direct_fd)
        for fd in self._fds.values():
            self._disk.close(fd)
        self._fds.clear()
        self._unsealed.clear()
