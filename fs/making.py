"""Makes files without asking, where this mount may, and sees to it that nobody can tell the difference.

What is made is in :class:`~shoalfs.fs.new_files.NewFiles` until the leader knows. Here it is decided whether a file may
be made so, and what has to be told before a request goes out (docs/leases.md).
"""

import errno
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from shoalfs.fs.effects import names_of
from shoalfs.fs.handles import Handles
from shoalfs.fs.leases import LeaseCache, Name
from shoalfs.fs.new_files import Held, Made, NewFiles, bytes_of, can_be_made, with_attributes
from shoalfs.fs.ports import Files, Kernel
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import NEW_FILES_MAX
from shoalfs.transport.method import Message

log = logging.getLogger("shoal.fs.making")

M = TypeVar("M", bound=Message)


class Mutate(Protocol):
    """Send mutations to the leader, together, and correct what is cached."""

    async def __call__(self, op: m.Op, requests: Sequence[Message], reply: type[M]) -> list[M | ShoalError]: ...


class Making:
    """``left_s``: how long leases may still be believed."""

    def __init__(
        self, cache: LeaseCache, handles: Handles, kernel: Kernel, mutate: Mutate, left_s: Callable[[], float]
    ) -> None:
        self.new_files = NewFiles(self._tell, self._told, self._refused)
        # Told of each directory in which a file was made: by the leader, or here. Who asks for its write lease?
        self.on_made: Callable[[InodeId], None] = lambda directory: None
        # Told of files of which the leader hears when they are closed already.
        self.on_closed: Callable[[InodeId], None] = lambda ino: None
        # Returns once the bytes of those of these files that are closed are committed, or have been tried to.
        self.settle_closed: Callable[[Iterable[InodeId]], Awaitable[object]] = _nothing_is_closed
        # Whether the file is closed and about to be told of with what it holds.
        self.is_due: Callable[[InodeId], bool] = lambda ino: False
        # What the compiled part has made in the directory is taken over when this returns (`fs/native_making.py`).
        self.take_native: Callable[[InodeId], None] = lambda directory: None
        # The same, and it makes nothing more there; None: anywhere.
        self.revoke_native: Callable[[InodeId | None], None] = lambda directory: None
        # The inode is not known any more, or as another than before.
        self.changed_native: Callable[[InodeId], None] = lambda ino: None
        self._cache = cache
        self._handles = handles
        self._kernel = kernel
        self._mutate = mutate
        self._left_s = left_s
        self.session: MdsClient
        self._files: Files | None = None
        # Times that were set for files that were told of before their bytes. Bounded by what is open.
        self._owed_times: dict[InodeId, m.SetAttr] = {}
        # Names that mutations of this mount are changing. Invariant: no zero entries.
        self._changing: Counter[Name] = Counter()

    def begin(self, session: MdsClient) -> None:
        self.session = session

    def attach(self, files: Files) -> None:
        """Where programs write to, before the first does."""
        self._files = files

    # --- making ------------------------------------------------------------------------------------------------------

    async def make(self, request: m.Create) -> m.Inode | None:
        """Make a file here, of which the leader is told later, if nobody else can notice. None: it must be asked.
        Raises ShoalError."""
        if not self._may_make(request):
            return None
        ino = await self.session.inode_number()
        if not self._may_make(request):
            return None  # others did something while we waited for a number
        directory = self._cache.inode(request.parent)
        assert directory is not None
        self.take_native(request.parent)  # in the order in which they were made
        self.changed_native(request.parent)
        return self._make(directory, request, ino, time.time_ns())

    def set_attributes(self, request: m.SetAttr, inode: m.Inode) -> m.Inode | None:
        """Set attributes of a new file, which go with it when it is told of: what ``inode`` is with them. None: the
        leader has to be asked."""
        now_ns = time.time_ns()
        asked = self.new_files.set_attributes(request, now_ns)
        if asked is None:
            return None
        changed = with_attributes(inode, asked, now_ns)
        self._relearn(changed)
        return changed

    def settle_times(self, inode: m.Inode) -> bool:
        """A program is told of these times of a new file that is closed: so will the leader be. False: they are his."""
        if not self.new_files.settle_times(inode):
            return False
        self._relearn(inode)
        return True

    def _relearn(self, changed: m.Inode) -> None:
        if self._cache.inode(changed.ino) is not None:
            asking = self._cache.ask()
            self._cache.learn_inode(asking, changed)
            self._cache.answered(asking)

    def written(self, ino: InodeId) -> None:
        """A program writes to the file, or cuts or stretches it: it is not as old as somebody has said."""
        self.new_files.written(ino)
        self._owed_times.pop(ino, None)

    def rename(self, request: m.Rename) -> bool:
        """Give a new file another name in its directory, if nobody else can notice. False: the leader must be asked."""
        old, new = (request.parent, request.name), (request.new_parent, request.new_name)
        if request.parent != request.new_parent or request.flags & ~m.RenameFlags.NOREPLACE:
            return False
        if self.may_make_in(request.parent) is None or old in self._changing or new in self._changing:
            return False
        ino = self._cache.name(*old)
        if not isinstance(ino, int) or self._cache.name(*new) is not None or request.new_name in (b".", b".."):
            return False
        if not self.new_files.rename(InodeId(ino), request.new_name):
            return False
        asking = self._cache.ask()
        self._cache.moved_name(asking, *old, None)
        self._cache.moved_name(asking, *new, InodeId(ino))
        self._cache.answered(asking)
        self.changed_native(request.parent)
        self.on_made(request.parent)
        return True

    async def with_owed_times(self, committed: m.Committed) -> m.Committed:
        """What was set for the file before it was told of, and its commit has changed, is set again. Raises
        ShoalError: then the commit is to be repeated."""
        owed = self._owed_times.get(committed.inode.ino)
        if owed is None:
            return committed
        (entry,) = await self._mutate(m.Op.SETATTR, (owed,), m.Entry)
        if isinstance(entry, ShoalError):
            raise entry
        if self._owed_times.get(owed.ino) is owed:
            del self._owed_times[owed.ino]
        return msgspec.structs.replace(committed, inode=entry.inode)

    def forget(self, ino: InodeId) -> None:
        """The last handle is gone, and nothing of it is left to be committed."""
        self._owed_times.pop(ino, None)

    def forget_all(self) -> None:
        """The session is gone."""
        self.new_files.forget_all()
        self._owed_times.clear()

    def adopt(self, directory: m.Inode, made: Made) -> m.Inode:
        """The compiled part has made this file in this directory."""
        request = made.request(directory.ino)
        return self._make(directory, request, InodeId(made.ino), made.made_ns)

    def _make(self, directory: m.Inode, request: m.Create, ino: InodeId, now_ns: int) -> m.Inode:
        inode = self.new_files.make(directory, request, ino, now_ns)
        asking = self._cache.ask()
        self._cache.moved_name(asking, request.parent, request.name, ino)
        self._cache.learn_inode(asking, inode)
        self._cache.learn_write(asking, ino)
        self._cache.answered(asking)
        self.on_made(request.parent)
        return inode

    async def prepare(self) -> None:
        """Have numbers for new files. Raises ShoalError."""
        await self.session.reserve_inodes()

    def _may_make(self, request: m.Create) -> bool:
        """The directory is written to by this mount alone, all its names are known, and this is none of them."""
        directory = self.may_make_in(request.parent)
        name = (request.parent, request.name)
        is_free = self._cache.name(*name) is None and name not in self._changing
        return directory is not None and is_free and can_be_made(directory, request.mode, self.session.map)

    def may_make_in(self, ino: InodeId) -> m.Inode | None:
        """The directory, if it is written to by this mount alone."""
        if ino not in self._cache.writes or not self._left_s() or len(self.new_files) >= NEW_FILES_MAX:
            return None
        return self._cache.inode(ino)

    def names_in(self, directory: InodeId) -> list[bytes] | None:
        """All names that are in the directory, or may be; None if that is not known."""
        names = self._cache.names_in(directory)
        if names is not None:
            names += [name for parent, name in self._changing if parent == directory]
        return names

    def viewed(self, directory: InodeId) -> m.Inode | None:
        """The directory as :meth:`view` shows it, if it is known here; what the compiled part has made is not looked
        at."""
        inode = self._cache.inode(directory) if self._left_s() else None
        return None if inode is None else self._with_new(inode)

    def view(self, inode: m.Inode) -> m.Inode:
        """A directory as it is with the files that were made in it here."""
        if inode.is_dir:
            self.take_native(inode.ino)
        return self._with_new(inode)

    def _with_new(self, inode: m.Inode) -> m.Inode:
        is_ours = inode.ino in self._cache.writes  # else others may add names that are not told here
        return self.new_files.view(inode, self._cache.count_in(inode.ino) if is_ours else None)

    @contextmanager
    def changing(self, requests: Sequence[Message]) -> Iterator[None]:
        """While the block carries out the requests, nobody here knows where their names lead."""
        names = [name for request in requests for name in names_of(request)]
        self._changing.update(names)
        try:
            yield
        finally:
            for name in names:
                self._changing[name] -= 1
                if not self._changing[name]:
                    del self._changing[name]

    # --- telling -----------------------------------------------------------------------------------------------------

    async def settle(self, request: Any) -> None:
        """The leader knows all that matters to the request. Raises ShoalError."""
        if len(self.new_files):
            if isinstance(request, m.ReadDir):
                await self.settle_closed(self.new_files.made_in(request.ino))  # together, in order, with their bytes
            removed = None
            if isinstance(request, m.Rmdir):
                removed = self._cache.name(request.parent, request.name)
            elif isinstance(request, m.Rename):
                removed = self._cache.name(request.new_parent, request.new_name)
            await self.new_files.settle(request, removed)

    async def tell_with_bytes(self, request: m.CommitInline) -> m.Committed | None:
        """Tell of a file together with the first bytes that are committed to it. None: it cannot be done. Raises
        ShoalError."""
        held = bytes_of(request)
        created = None if held is None else await self.new_files.tell(request.ino, held)
        if created is None:
            return None
        return m.Committed(created.inode, request.patches[0].offset_bytes, previous_data_version=1)

    async def told_all_in(self, directory: InodeId) -> bool:
        """Whether the leader knows of every file that was made in the directory before this call."""
        await self.settle_closed(self.new_files.made_in(directory))
        try:
            await self.new_files.tell_all_in(directory)
        except ShoalError as error:
            log.warning("files made in directory %d could not be told of: %s", directory, error)
            return False
        return True

    async def tell_older(self, age_ms: int) -> None:
        """Tell of files that were made so long ago and are still open. Raises as :meth:`NewFiles.tell_these`."""
        await self.new_files.tell_these([ino for ino in self.new_files.older(age_ms) if not self.is_due(ino)])

    async def tell_together(self, files: Mapping[InodeId, Held]) -> dict[InodeId, m.Inode | ShoalError]:
        """Tell of files, at most CHANGES_TOGETHER_MAX, of which nobody else is telling, each with all that it holds: of
        each, what it is like now, or why it is not told. Cancelled: what the leader may know is told again."""
        requests = [self.new_files.begin_telling(ino, held) for ino, held in files.items()]
        told: dict[InodeId, m.Inode | ShoalError] = {}
        try:
            for request, result in zip(requests, await self._mutate(m.Op.CREATE, requests, m.Created), strict=True):
                self._consider_lease(request.ino)
                told[request.ino] = result if isinstance(result, ShoalError) else result.inode
                self.new_files.end_telling(request.ino, result)
        finally:
            for request in requests:
                if request.ino not in told:
                    self.new_files.end_telling(request.ino, None)
        return told

    async def _tell(self, request: m.Create) -> m.Created:
        (created,) = await self._mutate(m.Op.CREATE, (request,), m.Created)
        if isinstance(created, ShoalError):
            raise created
        if self._files is not None and not request.data and not request.extents:
            self._files.told(created.inode)  # with what it holds it is the answer to a commit, which tells
        self._consider_lease(request.ino)
        return created

    def _consider_lease(self, ino: InodeId) -> None:
        if self._cache.inode(ino) is None:
            self._cache.drop_write(ino)  # it is not leased, for whatever reason, nor is writing to it

    def _told(self, request: m.Create, carried: bool) -> None:
        ino = request.ino
        if not carried and request.attributes is not None and self._files is not None and self._files.is_dirty(ino):
            self._owe_times(request.who, ino, request.attributes)
        if self._handles.holders(ino):
            self._handles.registered.add(ino)
        else:
            self._cache.drop_write(ino)
            self.on_closed(ino)

    def _owe_times(self, who: m.Credentials, ino: InodeId, told: m.NewAttributes) -> None:
        """They are set again once what the file holds is committed, which changes them."""
        if told.atime_ns is not None or told.mtime_ns is not None:
            self._owed_times[ino] = m.SetAttr(who, ino, atime_ns=told.atime_ns, mtime_ns=told.mtime_ns)

    def _refused(self, ino: InodeId, error: ShoalError) -> None:
        log.error("inode %d was made here, and the metadata service refuses it: %s", ino, error)
        self._cache.drop(inodes=(ino,))
        self._cache.drop_write(ino)
        self.revoke_native(None)  # what its directory is like with it
        self._kernel.forget_names()
        if self._files is not None:
            self._files.refuse(ino, PosixError(errno.EIO, str(error)))


async def _nothing_is_closed(inos: Iterable[InodeId]) -> None:
    """As long as nobody commits later what is closed."""
