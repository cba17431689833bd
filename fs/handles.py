"""What this mount has open: file handles, directory handles, and how many handles there are on each inode. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shoalfs.fs.file import FileData
from shoalfs.mds.messages import Credentials, DirEntry
from shoalfs.transport.ids import InodeId


@dataclass(slots=True)
class FileHandle:
    """One open(2)."""

    file: FileData
    read: bool
    write: bool
    append: bool
    sync: bool  # O_SYNC or O_DSYNC: each write is followed by an fsync
    lost: bool = False  # a lock on the file was lost while this was open: what it would read or write is unprotected


@dataclass(slots=True)
class DirHandle:
    """One opendir(3), with the page of the listing that is being read."""

    ino: InodeId
    who: Credentials
    page: tuple[DirEntry, ...] = ()
    # The cookie after which ``page`` begins; pages follow each other while the reader goes forward.
    page_after: int = 0
    page_eof: bool = False


@dataclass
class Handles:
    """The tables. Numbers are handed out upwards and not used again, so that a late request of a closed handle finds
    nothing instead of a stranger."""

    _next: int = 1
    _files: dict[int, FileHandle] = field(default_factory=dict)
    _dirs: dict[int, DirHandle] = field(default_factory=dict)
    # Handles on each open inode. Invariant: no zero entries.
    _held: Counter[InodeId] = field(default_factory=Counter)
    # Inodes that the leader was told to be open here, in whatever way: it has to be told when they are not any more.
    # An open inode that is not in here is leased, and the leader asks before its last name goes (docs/leases.md).
    registered: set[InodeId] = field(default_factory=set)
    # Inodes to which a write(2) is under way that waits for the leader. Its pages are locked, and a commit elsewhere
    # may wait for us to drop them. Invariant: no zero entries.
    _waiting_writes: Counter[InodeId] = field(default_factory=Counter)

    def open_inodes(self) -> tuple[InodeId, ...]:
        return tuple(self._held)

    def hold(self, ino: InodeId) -> None:
        """One more handle on the inode, until :meth:`unhold`."""
        self._held[ino] += 1

    def unhold(self, ino: InodeId) -> bool:
        """One handle less. True if it was the last."""
        assert self._held[ino] > 0, ino
        self._held[ino] -= 1
        if self._held[ino]:
            return False
        del self._held[ino]
        return True

    def has_unregistered(self) -> bool:
        """Something is open of which the leader does not know."""
        return not self._held.keys() <= self.registered

    @contextmanager
    def waiting_write(self, ino: InodeId) -> Iterator[None]:
        """While the block runs, a write to the inode waits for the leader."""
        self._waiting_writes[ino] += 1
        try:
            yield
        finally:
            self._waiting_writes[ino] -= 1
            if not self._waiting_writes[ino]:
                del self._waiting_writes[ino]

    def has_waiting_write(self, ino: InodeId) -> bool:
        return ino in self._waiting_writes

    def holders(self, ino: InodeId) -> int:
        return self._held[ino]

    def add_file(self, handle: FileHandle) -> int:
        number = self._number()
        self._files[number] = handle
        return number

    def add_dir(self, handle: DirHandle) -> int:
        number = self._number()
        self._dirs[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        return self._files[number]

    def dir(self, number: int) -> DirHandle:
        return self._dirs[number]

    def lose(self, inos: Iterable[InodeId]) -> None:
        """Locks on these files were lost: every handle that is open on them is of no use any more."""
        gone = set(inos)
        for handle in self._files.values():
            if handle.file.ino in gone:
                handle.lost = True

    def pop_file(self, number: int) -> FileHandle:
        return self._files.pop(number)

    def pop_dir(self, number: int) -> DirHandle:
        return self._dirs.pop(number)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1
