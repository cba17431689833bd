"""What this mount has open: file handles, directory handles, and one FileData per open inode."""

from collections.abc import Callable
from dataclasses import dataclass, field

from shoalfs.fs.file import FileData
from shoalfs.mds.messages import Credentials, DirEntry, Inode
from shoalfs.transport.ids import InodeId


@dataclass(slots=True)
class FileHandle:
    """One open(2). ``errors_seen`` is the place in the file's error sequence up to which this handle has been told."""

    file: FileData
    read: bool
    write: bool
    append: bool
    sync: bool  # O_SYNC or O_DSYNC: each write is followed by an fsync
    errors_seen: int


@dataclass(slots=True)
class DirHandle:
    """One opendir(3), with the page of the listing that is being read."""

    ino: InodeId
    who: Credentials
    page: tuple[DirEntry, ...] = ()
    # The cookie after which ``page`` begins; pages follow each other while the reader goes forward.
    page_after: int = 0
    page_eof: bool = False


@dataclass(slots=True)
class _Shared:
    """An inode's data with the number of handles on it. Invariant: count > 0 while it is in the table."""

    file: FileData
    count: int = 0


@dataclass
class Handles:
    """The tables. Numbers are handed out upwards and not used again, so that a late request of a closed handle finds
    nothing instead of a stranger."""

    _next: int = 1
    _files: dict[int, FileHandle] = field(default_factory=dict)
    _dirs: dict[int, DirHandle] = field(default_factory=dict)
    _shared: dict[InodeId, _Shared] = field(default_factory=dict)

    def data(self, ino: InodeId) -> FileData | None:
        """The data of an inode that is open here, else None."""
        shared = self._shared.get(ino)
        return shared.file if shared else None

    def open_inodes(self) -> tuple[InodeId, ...]:
        return tuple(self._shared)

    def all_data(self) -> tuple[FileData, ...]:
        return tuple(shared.file for shared in self._shared.values())

    def share(self, inode: Inode, make: Callable[[Inode], FileData]) -> FileData:
        """The inode's data, made if nobody has it open, held until :meth:`unshare`."""
        shared = self._shared.get(inode.ino)
        if shared is None:
            shared = self._shared[inode.ino] = _Shared(make(inode))
        shared.count += 1
        return shared.file

    def unshare(self, ino: InodeId) -> bool:
        """Give back one :meth:`share`. True if it was the last."""
        shared = self._shared[ino]
        shared.count -= 1
        if shared.count:
            return False
        del self._shared[ino]
        return True

    def holders(self, ino: InodeId) -> int:
        shared = self._shared.get(ino)
        return shared.count if shared else 0

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

    def pop_file(self, number: int) -> FileHandle:
        return self._files.pop(number)

    def pop_dir(self, number: int) -> DirHandle:
        return self._dirs.pop(number)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1
