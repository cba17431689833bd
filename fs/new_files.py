"""Files that programs have made on this mount and of which the leader knows nothing yet.

In a directory on which this mount has the write lease nobody else is told a name, or that there is none, before this
mount was asked for what it has made there (docs/leases.md). So a new file gets one of the inode numbers that are
reserved for the session, and the leader is told of it when it matters to anybody: with what it holds when it is
closed, in one command; before anything is asked or changed that concerns its name or its number, but for attributes
and another name in the directory, which go with it; when somebody else looks into the directory; and after NEW_FILE_MS
at the latest.

**Invariant**: every file here is in a directory of which this mount holds the write lease, or is being asked for what
it made there, or has lost its session.

Told once, forgotten: whether a command was applied is never in doubt for long, because telling of the same file again
sets its attributes again and changes nothing else (`mds/ops/create.py`). A file that was told of together with what it
held, and nobody knows whether that was applied, may have been written to since: it is told of again without, and what
it holds is committed by itself.
"""

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
import trio

from shoalfs.fs.effects import names_of
from shoalfs.fs.leases import UNKNOWN, Name, Unknown
from shoalfs.mds import messages as m
from shoalfs.transport.errors import BadMessage, PosixError, ShoalError
from shoalfs.transport.ids import InodeId

_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID
_FOR_NOW: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN})
"""The leader refuses a file for now. Anything else that it may say of one, it will always say."""
_CHANGES_DIRECTORY: Final = m.SetAttr | m.SetXattr | m.RemoveXattr | m.ReadDir
"""Of a directory: who may make files in it, or what they are like, or which there are."""


class Held(NamedTuple):
    """What a new file holds: its bytes, or the extents that have them, with the receipts of their chunks."""

    data: bytes = b""
    extents: tuple[m.Extent, ...] = ()
    receipts: tuple[m.Receipt, ...] = ()


NOTHING: Final = Held()
_NO_ATTRIBUTES: Final = m.NewAttributes()


class Made(NamedTuple):
    """A file that the compiled part made: the fields of `take_made` in `fs/native/makes.c`."""

    parent_node: int
    name: bytes
    ino: InodeId
    handle: int
    mode: int
    umask: int
    flags: int
    uid: int
    gid: int
    is_closed: bool
    made_ns: int
    written_ns: int
    data: bytes
    attributes: tuple[int | None, int | None, int | None, int | None, int | None] | None

    def request(self, parent: InodeId) -> m.Create:
        """What a program asked for. Whoever it was needs none of his groups to make a file there."""
        who = m.Credentials(self.uid, self.gid, ())
        return m.Create(
            who,
            parent,
            self.name,
            self.mode,
            exclusive=bool(self.flags & os.O_EXCL),
            umask=self.umask,
            attributes=None if self.attributes is None else m.NewAttributes(*self.attributes),
        )


@dataclass(slots=True, eq=False)
class _New:
    request: m.Create
    made_ns: int
    telling: trio.Event | None = None  # it is being told; set when that has ended
    carries: bool = False  # it is, together with what it holds
    filling: bool = False  # it is, or was and failed, together with what it holds


class NewFiles:
    """``tell`` sends the command; ``told``, with whether it carried what the file holds, and ``refused`` hear what
    became of it. At most NEW_FILES_MAX."""

    def __init__(
        self,
        tell: Callable[[m.Create], Awaitable[m.Created]],
        told: Callable[[m.Create, bool], None],
        refused: Callable[[InodeId, ShoalError], None],
    ) -> None:
        self._tell = tell
        self._told = told
        self._refused = refused
        # Invariant: the three say the same; no empty sets.
        self._files: dict[InodeId, _New] = {}
        self._by_name: dict[Name, InodeId] = {}
        self._in: dict[InodeId, dict[InodeId, None]] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, ino: InodeId) -> bool:
        return ino in self._files

    @property
    def directories(self) -> tuple[InodeId, ...]:
        """Those that have new files in them."""
        return tuple(self._in)

    def has_in(self, directory: InodeId) -> bool:
        return directory in self._in

    def made_in(self, directory: InodeId) -> tuple[InodeId, ...]:
        return tuple(self._in.get(directory, ()))

    def directory_of(self, ino: InodeId) -> InodeId | None:
        """Where the file was made; None if the leader knows of it."""
        new = self._files.get(ino)
        return None if new is None else new.request.parent

    # --- making ------------------------------------------------------------------------------------------------------

    def make(self, directory: m.Inode, request: m.Create, ino: InodeId, now_ns: int) -> m.Inode:
        """Make a file as the leader would (`mds/inode.py`), with this number, in a directory for which
        :func:`can_be_made` holds."""
        request = msgspec.structs.replace(request, ino=ino)
        self._files[ino] = _New(request, now_ns)
        self._by_name[request.parent, request.name] = ino
        self._in.setdefault(request.parent, {})[ino] = None
        inode = m.new_inode(
            directory,
            ino=ino,
            mode=stat.S_IFREG | request.mode & ~request.umask & 0o7777,
            uid=request.who.uid,
            gid=request.who.gid,
            now_ns=now_ns,
            pool=directory.pool,
        )
        return inode if request.attributes is None else with_attributes(inode, request.attributes, now_ns)

    def set_attributes(self, request: m.SetAttr, now_ns: int) -> m.NewAttributes | None:
        """What is asked for goes with the file when it is told of: it, with the ids of whoever made the file, is what
        the leader will let him set (`mds/ops/create.py`). None: it cannot go so, or nobody knows whether it would."""
        new = self._files.get(request.ino)
        if new is None or new.telling is not None or request.size_bytes is not None:
            return None
        maker = new.request.who
        asked = m.NewAttributes(request.mode, request.uid, request.gid, request.atime_ns, request.mtime_ns)
        if request.who.uid != maker.uid or asked == _NO_ATTRIBUTES or (request.mode or 0) & _SPECIAL:
            return None
        if m.NOW in (request.atime_ns, request.mtime_ns):
            return None  # the leader's
        if maker.uid and (asked.uid not in (None, maker.uid) or asked.gid not in (None, maker.gid)):
            return None
        self._attach(new, asked, now_ns)
        return asked

    def settle_times(self, inode: m.Inode) -> bool:
        """A program is told the times of this file, which is closed: so is the leader. False: they are the leader's."""
        new = self._files.get(inode.ino)
        if new is None or new.telling is not None or new.filling:
            return False
        times = m.NewAttributes(atime_ns=inode.atime_ns, mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns)
        self._attach(new, times, inode.ctime_ns)
        return True

    def rename(self, ino: InodeId, name: bytes) -> bool:
        """The file has another name in its directory, which is free. False: the leader may know it by the old one."""
        new = self._files.get(ino)
        if new is None or new.telling is not None or new.filling:
            return False
        del self._by_name[new.request.parent, new.request.name]
        new.request = msgspec.structs.replace(new.request, name=name)
        self._by_name[new.request.parent, name] = ino
        new.made_ns = max(new.made_ns, time.time_ns())
        siblings = self._in[new.request.parent]
        del siblings[ino]
        siblings[ino] = None  # the newest: its directory has changed just now
        return True

    def _attach(self, new: _New, asked: m.NewAttributes, now_ns: int) -> None:
        before = new.request.attributes
        if before is not None:
            fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
            if before.ctime_ns is not None:
                fields.setdefault("ctime_ns", max(before.ctime_ns, now_ns))
            asked = msgspec.structs.replace(before, **fields)
        new.request = msgspec.structs.replace(new.request, attributes=asked)

    def written(self, ino: InodeId) -> None:
        """A program writes to the file: a time of its last change that was set before is not that any more."""
        new = self._files.get(ino)
        if new is not None and new.request.attributes is not None and new.request.attributes.mtime_ns is not None:
            attributes = msgspec.structs.replace(new.request.attributes, mtime_ns=None, ctime_ns=None)
            new.request = msgspec.structs.replace(new.request, attributes=attributes)

    def view(self, inode: m.Inode, count: int | None) -> m.Inode:
        """A directory as it is with the files that were made in it here; ``count``: of its entries, if that is known.
        (``inode`` alone does not say it while files are being told of: it may be of before or of after each.)"""
        new = self._in.get(inode.ino)
        if new is None:
            return inode
        newest_ns = self._files[next(reversed(new))].made_ns
        return msgspec.structs.replace(
            inode,
            size_bytes=inode.size_bytes + len(new) if count is None else count,
            mtime_ns=max(inode.mtime_ns, newest_ns),
            ctime_ns=max(inode.ctime_ns, newest_ns),
        )

    # --- telling -----------------------------------------------------------------------------------------------------

    async def tell(self, ino: InodeId, held: Held = NOTHING) -> m.Created | None:
        """Have the leader know of the file, which holds this. None: it knows already, or that cannot be told
        (:meth:`can_fill`). Raises ShoalError. Cancelled: it may know, and will be told again."""
        while (new := self._files.get(ino)) is not None and new.telling is not None:
            await new.telling.wait()
        if new is None or (held != NOTHING and new.filling):
            return None
        request = self.begin_telling(ino, held)
        result: m.Created | ShoalError | None = None
        try:
            result = await self._tell(request)
        except ShoalError as error:
            result = error
            raise
        finally:
            self.end_telling(ino, result)
        return result

    def can_fill(self, ino: InodeId) -> bool:
        """The leader does not know of the file, and is not being told; and nobody has tried to tell it what the file
        holds."""
        new = self._files.get(ino)
        return new is not None and new.telling is None and not new.filling

    def begin_telling(self, ino: InodeId, held: Held = NOTHING) -> m.Create:
        """The command that tells of the file, which holds this; if it holds anything, only one of which
        :meth:`can_fill` holds. Nobody else is telling. :meth:`end_telling` must follow."""
        new = self._files[ino]
        assert new.telling is None, ino
        new.telling = trio.Event()
        new.carries = held != NOTHING
        if not new.carries:
            return new.request
        assert not new.filling, ino
        new.filling = True
        return msgspec.structs.replace(new.request, **held._asdict())

    def end_telling(self, ino: InodeId, result: m.Created | ShoalError | None) -> None:
        """None: nobody knows what became of it, and it will be told again."""
        new = self._files.get(ino)
        if new is None or new.telling is None:
            return  # the session is gone, and all new files with it
        telling, new.telling = new.telling, None
        telling.set()
        if isinstance(result, m.Created):
            self._forget(ino)
            self._told(new.request, new.carries)
        elif result is not None and _is_final(result):
            self._forget(ino)
            self._refused(ino, result)

    async def tell_all_in(self, directory: InodeId) -> None:
        """Have the leader know of every file that was made in the directory before this call. Raises as
        :meth:`tell_these`."""
        await self.tell_these(list(self.made_in(directory)))

    async def tell_all(self) -> None:
        await self.tell_these(list(self._files))

    def older(self, age_ms: int) -> list[InodeId]:
        """Those that were made so long ago."""
        made_ns = time.time_ns() - age_ms * 1_000_000
        return [ino for ino, new in self._files.items() if new.made_ns <= made_ns]

    async def tell_these(self, inos: list[InodeId]) -> None:
        """They travel together. What is refused for good is lost, and its file says so. Raises what the last one did
        that could not be told."""
        failures: list[ShoalError] = []

        async def tell(ino: InodeId) -> None:
            try:
                await self.tell(ino)
            except ShoalError as error:
                if not _is_final(error):
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(tell, ino)
        if failures:
            raise failures[-1]

    async def settle(self, request: Any, removed: InodeId | Unknown | None) -> None:
        """Have the leader know of all that matters to this request, which takes away the directory ``removed``, or a
        name of which nothing is known. Raises as :meth:`tell_these`."""
        if removed is UNKNOWN:
            await self.tell_all()
            return
        concerned = list(dict.fromkeys(self._concerned(request)))
        if isinstance(removed, int):
            concerned += self._in.get(removed, ())
        if concerned:
            await self.tell_these(concerned)

    def _concerned(self, request: Any) -> Iterator[InodeId]:
        for field in ("ino", "source"):
            ino = getattr(request, field, None)
            if ino in self._files:
                yield ino
            elif ino in self._in and isinstance(request, _CHANGES_DIRECTORY):
                yield from self._in[ino]
        for name in names_of(request):
            if name in self._by_name:
                yield self._by_name[name]

    def forget_all(self) -> None:
        """The session is gone: nobody will ever know of these."""
        for new in self._files.values():
            if new.telling is not None:
                new.telling.set()
        self._files.clear()
        self._by_name.clear()
        self._in.clear()

    def _forget(self, ino: InodeId) -> None:
        new = self._files.pop(ino, None)
        if new is not None:
            del self._by_name[new.request.parent, new.request.name]
            siblings = self._in[new.request.parent]
            del siblings[ino]
            if not siblings:
                del self._in[new.request.parent]


def _is_final(error: ShoalError) -> bool:
    return isinstance(error, BadMessage) or (isinstance(error, PosixError) and error.errno not in _FOR_NOW)


def can_be_made(directory: m.Inode, mode: int, map_: m.ClusterMap) -> bool:
    """Whether what a file with these permissions will be like is plain to see: no list of access rights to inherit, no
    set-id bit, which some users may not give, no pool that is being removed."""
    if directory.default_acl or (directory.mode | mode) & _SPECIAL:
        return False
    return not any(pool.closing_epoch and pool.id == directory.pool for pool in map_.pools)


def with_attributes(inode: m.Inode, asked: m.NewAttributes, now_ns: int) -> m.Inode:
    """A new file as it is with these."""
    fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    if asked.mode is not None:
        fields["mode"] = stat.S_IFMT(inode.mode) | asked.mode
    return msgspec.structs.replace(inode, **fields, ctime_ns=max(inode.ctime_ns, now_ns))


def bytes_of(request: m.CommitInline) -> Held | None:
    """What a file holds that was empty before this commit; None if that cannot be said."""
    if request.append:
        return None
    data = bytearray()
    for patch in request.patches:
        data.extend(bytes(max(0, patch.offset_bytes - len(data))))
        data[patch.offset_bytes : patch.offset_bytes + len(patch.data)] = patch.data
    return Held(bytes(data)) if data else None
