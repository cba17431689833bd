"""What a mutation of this mount means for what the mount knows: names lead elsewhere, inodes are old. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from shoalfs.fs.leases import Name
from shoalfs.mds import messages as m
from shoalfs.transport.ids import InodeId
from shoalfs.transport.method import Message

_ONE_NAME: Final = frozenset({m.Lookup, m.Create, m.Mknod, m.Mkdir, m.Symlink, m.Unlink, m.Rmdir})
"""Looked up by type: a question about a union of classes takes longer than all else that is asked of a request here."""


@dataclass(slots=True)
class Effects:
    """``names``: where they lead now, None: nowhere. ``stale``: inodes that changed in a way that the answer does not
    say. ``told``: inodes as they are now."""

    names: dict[Name, InodeId | None] = field(default_factory=dict)
    stale: set[InodeId] = field(default_factory=set)
    told: tuple[m.Inode, ...] = ()


def doubtful(request: Message) -> tuple[set[Name], set[InodeId]]:
    """The names and inodes of which nothing is certain after a mutation that failed, or whose answer never came."""
    names = set(names_of(request))
    inodes = {directory for directory, _ in names}
    ino = getattr(request, "ino", None)
    if ino is not None:
        inodes.add(ino)
    return names, inodes


def effects(request: Message, reply: Any) -> Effects:
    """Of a mutation that succeeded."""
    if isinstance(request, m.Rename):
        return _renamed(request, reply)
    inode = getattr(reply, "inode", None)
    if inode is None:
        return Effects()
    found = Effects(told=(inode,))
    for name in names_of(request):
        found.names[name] = None if isinstance(request, m.Unlink | m.Rmdir) else inode.ino
        if not isinstance(request, m.Create) or reply.created:
            found.stale.add(name[0])
    return found


def _renamed(request: m.Rename, reply: m.Renamed) -> Effects:
    old, new = names_of(request)
    told = (reply.moved,) if reply.other is None else (reply.moved, reply.other)
    if reply.other is not None and reply.other.ino == reply.moved.ino:
        return Effects(told=told)  # two names of one inode: both stay
    is_exchange = bool(request.flags & m.RenameFlags.EXCHANGE)
    left = reply.other.ino if is_exchange and reply.other is not None else None
    return Effects({old: left, new: reply.moved.ino}, {old[0], new[0]}, told)


def names_of(request: Message) -> Iterator[Name]:
    """The names that a request is about."""
    if type(request) in _ONE_NAME:
        yield request.parent, request.name  # type: ignore[attr-defined]
    elif isinstance(request, m.Link):
        yield request.new_parent, request.new_name
    elif isinstance(request, m.Rename):
        yield request.parent, request.name
        yield request.new_parent, request.new_name
