"""Parts of a directory as the kernel is told of them: names with attributes, and how long it may keep each.

One part is the reply to one READDIRPLUS. Which entries it has, and what the kernel may keep, is decided here; the
compiled part makes the reply of it (fs/native/entries.h), or pyfuse3 does where there is none (fs/operations.py).
"""

from collections.abc import Callable
from typing import NamedTuple

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.known_files import KnownFiles
from shoalfs.fs.listings import Shown
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.messages import DirEntry, Inode

_DOT, _DOTDOT = 1, 2  # cookies of "." and ".."; the service's begin after them


class Timeouts(NamedTuple):
    """How long the kernel may keep a name, and attributes, at most; in seconds."""

    entry_s: float
    attr_s: float


class Part(NamedTuple):
    """Entries, and how long the kernel may keep what it may keep of them."""

    entries: list[Shown]
    entry_s: float
    attr_s: float


class DirectoryPages:
    """``keeps_names``: whether the kernel may keep any. ``known``: of mounts that are told of no open."""

    def __init__(
        self,
        vfs: Vfs,
        keeps_names: Callable[[], bool],
        timeouts: Timeouts,
        known: KnownFiles | None = None,
    ) -> None:
        self._vfs = vfs
        self._keeps_names = keeps_names
        self._known = known
        self._timeouts = timeouts

    async def after(self, handle: int, cookie: int, size_bytes: int, thread: int = 0) -> Part:
        """As many of the entries after ``cookie`` (0: from the start) as a reply of this size holds; none at the end.
        What of them may be kept is decided last, in the step in which this returns, and in which the reply has to be
        sent. ``thread``: who asks, if that is known. Raises ShoalError."""
        directory = self._vfs.dir_inode(handle)
        self._vfs.unparsed.taken_in(handle)
        dots: list[Shown] = []
        if cookie < _DOT:
            dots.append(_dot(b".", self._vfs.view(await self._vfs.getattr(directory)), _DOT))
        if cookie < _DOTDOT:
            dots.append(_dot(b"..", self._vfs.view(await self._vfs.parent_of(directory)), _DOTDOT))
        room_bytes = size_bytes
        for count, dot in enumerate(dots):
            room_bytes -= wire.entry_bytes(dot[0])
            if room_bytes < 0:
                return Part(dots[:count], 0.0, 0.0)
        entries = await self._fitting(handle, cookie if cookie > _DOTDOT else 0, room_bytes)
        if self._known is not None:
            entries = [await self._announced(self._known, entry) for entry in entries]
        shown = self._vfs.shown(directory, entries, keeps_names=self._keeps_names())
        if self._known is not None:
            shown = [_as_announced(one, entry) for one, entry in zip(shown, entries, strict=True)]
        if any(keeps_name for _, _, _, keeps_name, _ in shown):
            self._vfs.unparsed.sent(handle, directory, thread)
        left_s = self._vfs.left_s()
        return Part(dots + shown, min(self._timeouts.entry_s, left_s), min(self._timeouts.attr_s, left_s))

    def told(self, shown: Shown) -> None:
        """The kernel gets a reference to the inode with this entry."""
        if self._known is not None and shown[2] > _DOTDOT:
            self._known.told(shown[1])

    async def _fitting(self, handle: int, cookie: int, room_bytes: int) -> list[DirEntry]:
        fitting: list[DirEntry] = []
        while entries := await self._vfs.readdir(handle, cookie):
            for entry in entries:
                room_bytes -= wire.entry_bytes(entry.name)
                if room_bytes < 0:
                    return fitting
                fitting.append(entry)
            cookie = entries[-1].cookie
        return fitting

    async def _announced(self, known: KnownFiles, entry: DirEntry) -> DirEntry:
        if entry.damaged:
            return entry
        inode = self._vfs.newest(entry.inode)
        await known.before_attributes(inode)
        return DirEntry(entry.cookie, entry.name, inode)


def _dot(name: bytes, inode: Inode, cookie: int) -> Shown:
    """The kernel takes no more than the number from these."""
    return name, inode, cookie, False, False


def _as_announced(shown: Shown, announced: DirEntry) -> Shown:
    """Of an inode that has changed since, the kernel is to ask: then what is to be done before it is told is done."""
    name, inode, cookie, keeps_name, keeps_attributes = shown
    return name, inode, cookie, keeps_name, keeps_attributes and inode.version == announced.inode.version
