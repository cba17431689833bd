"""What this mount has open: file handles, directory handles, and how many handles there are on each inode. Pure.

Files that were offered to the compiled part are opened and closed there, without a word. An inode is the compiled
part's or ours: whoever asks here how often it is open takes it back first, with the opens that it counted. Such a
handle has a number of its own (OPENED_NATIVELY and up), and becomes a :class:`FileHandle` when something is done
with it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from shoalfs.fs.file import FileData
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import NAME_BYTES_MAX

if TYPE_CHECKING:
    from shoalfs.fs.listings import Listing

REPORTED_MAX: Final = 65_536  # inodes of nine bytes each; transport.limits.CONTROL_BYTES_MAX holds them
OPENED_NATIVELY: Final = 1 << 63  # the first number of a handle that was opened by the compiled part


class NativeOpens(Protocol):
    """What is opened, looked up, and known to have no attributes by the compiled part (fs/native/opens.h, names.h,
    bare.h)."""

    def offer(self, node: int, keep: bool, data: bytes | memoryview | None = None, /) -> bool: ...

    def withdraw(self, node: int, /) -> int: ...

    def read_through(self) -> list[int]: ...

    def withdraw_all(self) -> list[tuple[int, int]]: ...

    def any_open(self) -> bool: ...

    def believe_until(self, boottime_s: float, /) -> None: ...

    def offer_name(self, parent: int, name: bytes, attributes: bytes, /) -> bool: ...

    def withdraw_name(self, parent: int, name: bytes, /) -> None: ...

    def withdraw_names(self) -> None: ...

    def offer_bare(self, nodes: Sequence[int], /) -> None: ...

    def withdraw_bare(self, node: int, /) -> None: ...

    def withdraw_all_bare(self) -> None: ...

    def listen_to(self, thread: int, /) -> int: ...

    def has_asked(self, thread: int, since: int, /) -> bool: ...


class NothingNative:
    """Where there is no compiled part."""

    def offer(self, node: int, keep: bool, data: bytes | memoryview | None = None, /) -> bool:
        return False

    def read_through(self) -> list[int]:
        return []

    def withdraw(self, node: int, /) -> int:
        return 0

    def withdraw_all(self) -> list[tuple[int, int]]:
        return []

    def any_open(self) -> bool:
        return False

    def believe_until(self, boottime_s: float, /) -> None:
        pass

    def offer_name(self, parent: int, name: bytes, attributes: bytes, /) -> bool:
        return False

    def withdraw_name(self, parent: int, name: bytes, /) -> None:
        pass

    def withdraw_names(self) -> None:
        pass

    def offer_bare(self, nodes: Sequence[int], /) -> None:
        pass

    def withdraw_bare(self, node: int, /) -> None:
        pass

    def withdraw_all_bare(self) -> None:
        pass

    def listen_to(self, thread: int, /) -> int:
        return 0

    def has_asked(self, thread: int, since: int, /) -> bool:
        return False


@dataclass(slots=True)
class FileHandle:
    """One open(2)."""

    file: FileData
    read: bool
    write: bool
    append: bool
    sync: bool  # O_SYNC or O_DSYNC: each write is followed by an fsync
    lost: bool = False  # a lock on the file was lost while this was open: what it would read or write is unprotected


@dataclass
class Handles:
    """The tables. Numbers are handed out upwards and not used again, so that a late request of a closed handle finds
    nothing instead of a stranger."""

    native: NativeOpens = field(default_factory=NothingNative)
    node_of: Callable[[InodeId], int] = int  # what the kernel calls an inode
    _next: int = 1
    _files: dict[int, FileHandle] = field(default_factory=dict)
    _dirs: dict[int, "Listing"] = field(default_factory=dict)
    # Handles on each open inode, but for those that were opened natively and not taken back. Invariant: no zero
    # entries; what is in here is not offered.
    _held: Counter[InodeId] = field(default_factory=Counter)
    # Inodes that the leader was told to be open here, in whatever way: it has to be told when they are not any more.
    # An open inode that is not in here is leased, and the leader asks before its last name goes (docs/leases.md).
    registered: set[InodeId] = field(default_factory=set)
    # Inodes to which a write(2) is under way that waits for the leader. Its pages are locked, and a commit elsewhere
    # may wait for us to drop them. Invariant: no zero entries.
    _waiting_writes: Counter[InodeId] = field(default_factory=Counter)
    # Open files of which a lock was lost. Invariant: each is in ``_held``.
    _lost: set[InodeId] = field(default_factory=set)

    def offer(self, ino: InodeId, *, keep: bool = True, data: bytes | memoryview | None = None) -> bool:
        """From now on the file is opened for reading, and closed, by the compiled part: all that this would bring is
        known, and whatever ends that calls :meth:`withdraw` first. ``keep``: the kernel's pages of it, if it has any,
        are its contents. ``data``: all its bytes, and it is read there, too; None: not (any more). False: it is not
        offered."""
        assert ino not in self._held, ino
        return self.native.offer(ino, keep, data)

    def withdraw(self, ino: InodeId) -> None:
        """Not any more."""
        opens = self.native.withdraw(ino)
        if opens:
            self._held[ino] += opens

    def withdraw_all(self) -> None:
        for node, opens in self.native.withdraw_all():
            self._held[InodeId(node)] += opens

    def offer_name(self, directory: InodeId, name: bytes, attributes: bytes) -> bool:
        """From now on the name is looked up by the compiled part, once: it leads to an inode that is offered, and has
        these attributes (struct fuse_attr). That ends with the offer of the inode; whatever makes the name lead
        elsewhere without the inode's becoming another calls :meth:`withdraw_name` first."""
        return self.native.offer_name(self.node_of(directory), name, attributes)

    def withdraw_name(self, directory: InodeId, name: bytes | None) -> None:
        """Not any more. None: all names of the directory; of others as well, since that is rare."""
        if name is None:
            self.native.withdraw_names()
        elif len(name) <= NAME_BYTES_MAX:
            self.native.withdraw_name(self.node_of(directory), name)

    def offer_bare(self, inos: Sequence[InodeId]) -> None:
        """These inodes are leased, and have no extended attribute and no access control list: whoever asks for one is
        told so by the compiled part, until :meth:`gone`."""
        self.native.offer_bare(inos)

    def gone(self, ino: InodeId) -> None:
        """The inode is not known any more, or as another than before."""
        self.native.withdraw_bare(ino)
        self.withdraw(ino)

    def all_gone(self) -> None:
        """No inode is known any more."""
        self.native.withdraw_all_bare()
        self.withdraw_all()

    def open_inodes(self) -> tuple[InodeId, ...]:
        self.withdraw_all()
        return tuple(self._held)

    def reported(self) -> tuple[InodeId, ...]:
        """What a new leader is told to be open, in one message: the newest REPORTED_MAX."""
        self.withdraw_all()
        return tuple(islice(reversed(self._held), REPORTED_MAX))

    def hold(self, ino: InodeId) -> None:
        """One more handle on the inode, until :meth:`unhold`."""
        self.withdraw(ino)
        self._held[ino] += 1

    def unhold(self, ino: InodeId) -> bool:
        """One handle less. True if it was the last."""
        assert self._held[ino] > 0, ino
        self._held[ino] -= 1
        if self._held[ino]:
            return False
        del self._held[ino]
        self._lost.discard(ino)
        return True

    def has_unregistered(self) -> bool:
        """Something is open of which the leader does not know."""
        return self.native.any_open() or not self._held.keys() <= self.registered

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
        self.withdraw(ino)
        return self._held[ino]

    def is_held(self, ino: InodeId) -> bool:
        """It is open, not counting what was opened natively: of such a file nothing is kept that could not be had
        again."""
        return ino in self._held

    def add_file(self, handle: FileHandle) -> int:
        number = self._number()
        self._files[number] = handle
        return number

    def adopt(self, number: int, handle: FileHandle) -> None:
        """Something is done with a file that was opened, or made, natively."""
        handle.lost = handle.file.ino in self._lost
        self._files[number] = handle

    def drop(self, number: int) -> None:
        """Nothing will be done with it any more."""
        self._files.pop(number, None)

    def has(self, number: int) -> bool:
        return number in self._files

    def add_dir(self, handle: "Listing") -> int:
        number = self._number()
        self._dirs[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        return self._files[number]

    def dir(self, number: int) -> "Listing":
        return self._dirs[number]

    def lose(self, inos: Iterable[InodeId]) -> None:
        """Locks on these files were lost: every handle that is open on them is of no use any more."""
        gone = set(inos)
        self._lost.update(ino for ino in gone if self.holders(ino))
        for handle in self._files.values():
            if handle.file.ino in gone:
                handle.lost = True

    def pop_file(self, number: int) -> FileHandle:
        return self._files.pop(number)

    def pop_dir(self, number: int) -> "Listing":
        return self._dirs.pop(number)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1
