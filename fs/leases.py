"""What this mount knows under leases: inodes, and where names lead. Pure.

The leader has promised to tell before any of it changes (docs/leases.md), so until then it is as good as asking. What
is here may be used while the lease clock runs; whoever asks sees to that.

The one rule: **an answer that was asked for before something was dropped never brings it back.** The answer may have
been read at the leader before the change for which it was dropped, and come late. So every request that may teach
something is an :class:`Asking` while it is on its way, and what is dropped meanwhile is noted on it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from shoalfs.mds.messages import Inode
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import NAME_BYTES_MAX

Name = tuple[InodeId, bytes]

NAMES_MAX: Final = 262_144  # about 60 MB; beyond, whole directories are forgotten, the oldest first
NAMES_FILLED_MAX: Final = 2_097_152  # about 450 MB, of directories that this mount fills alone, beside those
INODES_MAX: Final = 262_144  # twice what the leader gives: only a leader that does not keep to it gets here


DOUBTFUL_MAX: Final = 1_024  # names of a directory that others changed; beyond, it is listed again


class Unknown:
    """Nothing is known of a name."""


UNKNOWN: Final = Unknown()
_NO_NAMES: Final[Mapping[bytes, InodeId | None]] = MappingProxyType({})


class Asking:
    """One request on its way, with what must not be learned from its answer."""

    __slots__ = ("directories", "everything", "inodes", "names", "writes")

    def __init__(self) -> None:
        self.names: set[Name] = set()
        self.inodes: set[InodeId] = set()
        self.directories: set[InodeId] = set()
        self.writes: set[InodeId] = set()
        self.everything = False

    def may_learn_inode(self, ino: InodeId) -> bool:
        return not self.everything and ino not in self.inodes

    def is_overtaken(self, answered: Inode) -> bool:
        """This directory was dropped while it was asked for. If that was because a file was told of that a program had
        made before it asked, the answer may lack the file, and it is not among the new ones any more."""
        return answered.is_dir and not self.may_learn_inode(answered.ino)

    def may_learn_write(self, ino: InodeId) -> bool:
        return not self.everything and ino not in self.writes

    def may_learn_name(self, directory: InodeId, name: bytes) -> bool:
        return not self.everything and directory not in self.directories and (directory, name) not in self.names


class LeaseCache:
    """See the module. ``on_gone`` is told of each inode that is not known any more, or as another than before, in the
    step in which that happens; ``on_all_gone`` stands for all of them. ``on_name_gone`` is told of names in the same
    way; None stands for all of the directory. ``on_write_gone`` is told of each write lease before it is dropped."""

    def __init__(
        self,
        on_gone: Callable[[InodeId], None] = lambda ino: None,
        on_all_gone: Callable[[], None] = lambda: None,
        on_name_gone: Callable[[InodeId, bytes | None], None] = lambda directory, name: None,
        on_write_gone: Callable[[InodeId], None] = lambda ino: None,
    ) -> None:
        self._on_gone = on_gone
        self._on_name_gone = on_name_gone
        self._on_all_gone = on_all_gone
        self._on_write_gone = on_write_gone
        self._inodes: dict[InodeId, Inode] = {}
        # Of each directory whose names are leased: what is known of them; None is a name that does not exist.
        self._names: dict[InodeId, dict[bytes, InodeId | None]] = {}
        self._names_count = 0  # Invariant: the sum of the lengths in ``_names``
        # Directories of which every name is known, but for these. Invariant: each is in ``_names`` too; what is in
        # here is not in there. So a name that is in neither does not exist: a new file's name need not be asked for.
        self._complete: dict[InodeId, set[bytes]] = {}
        # Of each of these: how many of the names in ``_names`` lead somewhere.
        self._present: dict[InodeId, int] = {}
        self._asking: set[Asking] = set()
        # Files to which programs may write without a commit each. Not what is cached, so nothing but the leader, a new
        # one and the end of the session takes it away; bounded by what is open.
        self.writes: set[InodeId] = set()
        # Directories that this mount fills alone: they need all their names (`fs/own_directories.py`), so they have a
        # bound of their own.
        self.filled: set[InodeId] = set()

    # --- using -------------------------------------------------------------------------------------------------------

    def inode(self, ino: InodeId) -> Inode | None:
        return self._inodes.get(ino)

    def name(self, directory: InodeId, name: bytes) -> InodeId | Unknown | None:
        """What the name leads to; None: it does not exist. Of what is too long to be a name nothing is known."""
        names = self._names.get(directory)
        if names is None:
            return UNKNOWN
        found = names.get(name, UNKNOWN)
        if found is UNKNOWN and directory in self._complete and name not in self._complete[directory]:
            return None if len(name) <= NAME_BYTES_MAX else UNKNOWN
        return found

    def names_in(self, directory: InodeId) -> list[bytes] | None:
        """All names that are in the directory, or may be; None if that is not known."""
        doubtful = self._complete.get(directory)
        if doubtful is None:
            return None
        return [*doubtful, *(name for name, ino in self._names[directory].items() if ino is not None)]

    def count_in(self, directory: InodeId) -> int | None:
        """How many names are in the directory; None if that is not certain."""
        return None if self._complete.get(directory, True) else self._present[directory]

    def names(self, directory: InodeId) -> Mapping[bytes, InodeId | None]:
        """What is known of the names of a directory, until the next change of it."""
        return self._names.get(directory, _NO_NAMES)

    def inodes(self) -> list[InodeId]:
        return list(self._inodes)

    # --- learning ----------------------------------------------------------------------------------------------------

    def ask(self) -> Asking:
        """A request sets out. :meth:`answered` must follow, whatever becomes of it."""
        asking = Asking()
        self._asking.add(asking)
        return asking

    def answered(self, asking: Asking) -> None:
        self._asking.discard(asking)

    def learn_inode(self, asking: Asking, inode: Inode) -> None:
        """``inode`` was answered under a lease. An older record never replaces a newer one."""
        if not asking.may_learn_inode(inode.ino):
            return
        self._put_inode(inode)
        self._trim_inodes()

    def learn_inodes(self, asking: Asking, inodes: Iterable[Inode]) -> None:
        """The same of many."""
        if asking.everything:
            return
        for inode in inodes:
            if inode.ino not in asking.inodes:
                self._put_inode(inode)
        self._trim_inodes()

    def learn_name(self, asking: Asking, directory: InodeId, name: bytes, ino: InodeId | None) -> None:
        """What the name leads to was answered under a lease on the names of the directory."""
        if asking.may_learn_name(directory, name):
            self._put_name(directory, self._names.setdefault(directory, {}), name, ino)
            self._make_room(directory)

    def learn_names(self, asking: Asking, directory: InodeId, names: Sequence[tuple[bytes, InodeId]]) -> None:
        """The same of many."""
        if not names or asking.everything or directory in asking.directories:
            return
        known = self._names.setdefault(directory, {})
        for name, ino in names:
            if not asking.names or (directory, name) not in asking.names:
                self._put_name(directory, known, name, ino)
        self._make_room(directory)

    def learn_write(self, asking: Asking, ino: InodeId) -> None:
        """The write lease on ``ino`` was given."""
        if asking.may_learn_write(ino):
            self.writes.add(ino)

    def moved_name(self, asking: Asking, directory: InodeId, name: bytes, ino: InodeId | None) -> None:
        """A mutation of this mount made the name lead to ``ino``; that is kept if the directory is leased."""
        names = self._names.get(directory)
        if names is not None and asking.may_learn_name(directory, name):
            self._put_name(directory, names, name, ino)
            self._make_room(directory)

    def learn_all(self, asking: Asking, directory: InodeId) -> None:
        """All names of the directory were listed and learned, under leases, by what ``asking`` stands for."""
        names = self._names.get(directory)
        if asking.everything or directory in asking.directories:
            return
        if names is None:
            names = self._names[directory] = {}  # it is empty
        doubtful = {name for parent, name in asking.names if parent == directory and name not in names}
        if len(doubtful) <= DOUBTFUL_MAX:
            self._complete[directory] = doubtful
            self._present[directory] = sum(ino is not None for ino in names.values())

    def is_complete(self, directory: InodeId) -> bool:
        """Every name of the directory is known, or nearly."""
        return directory in self._complete

    # --- dropping ----------------------------------------------------------------------------------------------------

    def drop(
        self, names: Iterable[Name] = (), inodes: Iterable[InodeId] = (), directories: Iterable[InodeId] = ()
    ) -> None:
        """Forget these, and what any answer that is on its way says of them."""
        names, inodes, directories = tuple(names), tuple(inodes), tuple(directories)
        for asking in self._asking:
            asking.names.update(names)
            asking.inodes.update(inodes)
            asking.directories.update(directories)
        for ino in inodes:
            if self._inodes.pop(ino, None) is not None:
                self._on_gone(ino)
        for directory in directories:
            self._forget_names(directory)
        for directory, name in names:
            known = self._names.get(directory)
            doubtful = self._complete.get(directory)
            if known is not None and name in known:
                if known.pop(name) is not None and doubtful is not None:
                    self._present[directory] -= 1
                self._names_count -= 1
                self._on_name_gone(directory, name)
            if doubtful is not None:
                doubtful.add(name)
                if len(doubtful) > DOUBTFUL_MAX:
                    del self._complete[directory], self._present[directory]

    def drop_write(self, ino: InodeId) -> None:
        """The write lease on ``ino`` is called back, and so is one that is on its way."""
        self._on_write_gone(ino)
        for asking in self._asking:
            asking.writes.add(ino)
        self.writes.discard(ino)

    def drop_all(self) -> None:
        """All but write leases."""
        for asking in self._asking:
            asking.everything = True
        self._inodes.clear()
        self._on_all_gone()  # with them, what led to them
        self._names.clear()
        self._complete.clear()
        self._present.clear()
        self._names_count = 0

    def _put_inode(self, inode: Inode) -> None:
        known = self._inodes.get(inode.ino)
        if known is None:
            self._inodes[inode.ino] = inode
        elif known.version <= inode.version:
            self._inodes[inode.ino] = inode
            if known.version != inode.version:
                self._on_gone(inode.ino)

    def _trim_inodes(self) -> None:
        while len(self._inodes) > INODES_MAX:
            oldest = next(iter(self._inodes))
            del self._inodes[oldest]
            self._on_gone(oldest)

    def _put_name(
        self, directory: InodeId, names: dict[bytes, InodeId | None], name: bytes, ino: InodeId | None
    ) -> None:
        before = names.get(name, UNKNOWN)
        if before is UNKNOWN:
            self._names_count += 1
        elif before != ino:
            self._on_name_gone(directory, name)
        names[name] = ino
        if directory in self._complete:
            self._complete[directory].discard(name)
            self._present[directory] += (ino is not None) - (isinstance(before, int))

    def _make_room(self, besides: InodeId) -> None:
        """``besides`` is forgotten last, but if it alone is too large, it is, too."""
        if self._names_count <= NAMES_MAX:
            return
        filled = {directory: len(self._names[directory]) for directory in self.filled if directory in self._names}
        filled_count = sum(filled.values())
        while filled_count > NAMES_FILLED_MAX:
            largest = max(filled, key=lambda directory: filled[directory])
            filled_count -= filled.pop(largest)
            self._forget_names(largest)
        while self._names_count - filled_count > NAMES_MAX:
            others = (each for each in self._names if each != besides and each not in filled)
            self._forget_names(next(others, besides))

    def _forget_names(self, directory: InodeId) -> None:
        """An answer that is on its way must not make the directory complete: some of its names were there before."""
        for asking in self._asking:
            asking.directories.add(directory)
        names = self._names.pop(directory, None)
        if names:
            self._names_count -= len(names)
            self._on_name_gone(directory, None)
        self._complete.pop(directory, None)
        self._present.pop(directory, None)
