"""POSIX access control lists: the kernel's binary form, and what the lists mean. Pure.

As POSIX.1e draft 17 and Linux (acl(5); fs/posix_acl.c). An inode keeps its list in the form in which the extended
attribute ``system.posix_acl_access`` or ``..._default`` carries it: a version, then per entry a tag, permissions and
an id, little-endian. ``b""`` stands for no list.

Invariants of a kept access list: it says more than the mode bits could (otherwise it is not kept), and the mode's
owner, group and other bits are those of its user-obj, mask and other entries, whichever of the two is changed.
"""

import enum
import errno
import struct
from typing import Final, NamedTuple

from shoalfs.mds.messages import Credentials
from shoalfs.transport.errors import PosixError
from shoalfs.transport.limits import ACL_BYTES_MAX

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = (1 << 32) - 1
_RWX: Final = 0o7


class Tag(enum.IntEnum):
    """In the order in which the entries of a list stand."""

    USER_OBJ = 0x01  # the owner
    USER = 0x02
    GROUP_OBJ = 0x04  # the owning group
    GROUP = 0x08
    MASK = 0x10  # bounds USER, GROUP_OBJ and GROUP
    OTHER = 0x20


class AclEntry(NamedTuple):
    tag: Tag
    permissions: int
    id: int = _NO_ID  # of USER and GROUP only


Acl = tuple[AclEntry, ...]

_NAMED: Final = frozenset({Tag.USER, Tag.GROUP})
_MASKED: Final = frozenset({Tag.USER, Tag.GROUP_OBJ, Tag.GROUP})


def decode(data: bytes) -> Acl:
    """The list of an attribute's value; empty if it has no entries. Raises EOPNOTSUPP for another version, E2BIG for
    more than ACL_BYTES_MAX, EINVAL for what is no valid list."""
    if len(data) < _HEADER.size or (len(data) - _HEADER.size) % _ENTRY.size:
        raise PosixError(errno.EINVAL)
    if _HEADER.unpack_from(data)[0] != _VERSION:
        raise PosixError(errno.EOPNOTSUPP)
    if len(data) > ACL_BYTES_MAX:
        raise PosixError(errno.E2BIG)
    try:
        raw = _ENTRY.iter_unpack(memoryview(data)[_HEADER.size :])
        entries = tuple(AclEntry(Tag(tag), permissions, number) for tag, permissions, number in raw)
    except ValueError:
        raise PosixError(errno.EINVAL) from None
    if entries:
        _check(entries)
    return tuple(entry if entry.tag in _NAMED else entry._replace(id=_NO_ID) for entry in entries)


def _check(acl: Acl) -> None:
    """Raises EINVAL unless it is a list: entries in order, one of each that is needed, a mask if there are names."""
    tags = [entry.tag for entry in acl]
    once = [tag for tag in tags if tag not in _NAMED]
    if tags != sorted(tags) or len(once) != len(set(once)) or not {Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER} <= set(once):
        raise PosixError(errno.EINVAL)
    if Tag.MASK not in once and len(once) != len(tags):
        raise PosixError(errno.EINVAL)
    for entry in acl:
        if entry.permissions & ~_RWX or (entry.tag in _NAMED and entry.id == _NO_ID):
            raise PosixError(errno.EINVAL)


def encode(acl: Acl) -> bytes:
    """The attribute's value; empty for no list."""
    if not acl:
        return b""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def permission_bits(acl: Acl) -> int:
    """The nine mode bits that stand for the list."""
    found = {entry.tag: entry.permissions for entry in acl}
    return found[Tag.USER_OBJ] << 6 | found.get(Tag.MASK, found[Tag.GROUP_OBJ]) << 3 | found[Tag.OTHER]


def is_minimal(acl: Acl) -> bool:
    """Whether the mode bits say all that the list says."""
    return len(acl) <= 3


def with_mode(acl: Acl, mode: int) -> Acl:
    """The list after chmod(2): the mask, if there is one, stands for the group bits."""
    bits = {Tag.USER_OBJ: mode >> 6, Tag.OTHER: mode}
    bits[Tag.MASK if len(acl) > 3 else Tag.GROUP_OBJ] = mode >> 3
    return tuple(e._replace(permissions=bits[e.tag] & _RWX) if e.tag in bits else e for e in acl)


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """Access list and mode of what is made with ``mode`` in a directory with this default list: nobody gets more than
    both give. The umask is not asked. The list is empty if the mode says it all."""
    limits = with_mode(default, mode)
    acl = tuple(
        e._replace(permissions=e.permissions & limit.permissions) for e, limit in zip(default, limits, strict=True)
    )
    mode = mode & ~0o777 | permission_bits(acl)
    return (() if is_minimal(acl) else acl), mode


def permits(acl: Acl, who: Credentials, gid: int, mask: int) -> bool:
    """Whether the list gives ``who``, who is not the owner of the inode with group ``gid``, all of ``mask``.

    A named user is judged by that entry alone. Else one matching group entry must give all of it; if groups match and
    none does, that is a refusal. Else it is the others' entry.
    """
    bound = next((entry.permissions for entry in acl if entry.tag is Tag.MASK), _RWX)
    in_some_group = False
    for tag, permissions, number in acl:
        if tag is Tag.USER and number == who.uid:
            return not mask & ~(permissions & bound)
        if tag in (Tag.GROUP_OBJ, Tag.GROUP):
            group = gid if tag is Tag.GROUP_OBJ else number
            if group == who.gid or group in who.groups:
                in_some_group = True
                if not mask & ~(permissions & _RWX):
                    return not mask & ~(permissions & bound)
        if tag is Tag.OTHER:
            return not in_some_group and not mask & ~permissions
    raise AssertionError("a list ends with the others")
