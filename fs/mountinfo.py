"""Which filesystems are mounted where: /proc/self/mountinfo as values, see proc(5). Nobody is asked who
may not answer: a mount that is dead or stands still is told like any other.

A mount of ours is known by its source, ``shoalfs:<address>[,<address>...]``: the metadata service's
addresses, which is how a command finds the cluster that a path belongs to.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PATH: Final = "/proc/self/mountinfo"
SOURCE_PREFIX: Final = "shoalfs:"
_SUBDIR: Final = ",subdir="  # after the addresses, if the mount shows a directory of the cluster

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line: ``root`` is the directory of the filesystem that is seen at ``point`` (not "/": a bind
    mount)."""

    device: str  # major:minor
    root: str
    point: str
    fstype: str
    source: str

    @property
    def is_shoal(self) -> bool:
        return self.fstype.startswith("fuse") and self.source.startswith(SOURCE_PREFIX)

    @property
    def mds(self) -> tuple[str, ...]:
        """The addresses in a shoalfs mount's source."""
        assert self.is_shoal, self
        return tuple(self.source.removeprefix(SOURCE_PREFIX).partition(_SUBDIR)[0].split(","))

    @property
    def subdir(self) -> str:
        """The directory of the cluster that is the root of a shoalfs mount: "" or "/path"."""
        return self.source.partition(_SUBDIR)[2].rstrip("/")


def mounts() -> list[Mount]:
    """What is mounted now, as this process sees it."""
    # Bytes outside UTF-8 keep their place in paths; a line is never lost for them.
    with open(PATH, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def parse(text: str) -> list[Mount]:
    """The mounts in the order in which they were made. Lines of an unknown form are left out."""
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if dash and len(fields) >= 6 and len(kind) >= 2:
            mounts.append(Mount(fields[2], *map(_unescape, (fields[3], fields[4], kind[0], kind[1]))))
    return mounts


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that an absolute, resolved ``path`` lies in: the deepest, and of stacked ones the last
    made."""
    found: Mount | None = None
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def mounted_at(point: str, mounts: Sequence[Mount]) -> Mount | None:
    """What is mounted exactly at ``point``, on top."""
    return next((mount for mount in reversed(mounts) if mount.point == point), None)


def path_inside(path: str, mount: Mount) -> str:
    """``path`` as seen from the root of the filesystem that ``mount`` shows, or of the cluster."""
    below = path.removeprefix(mount.point.rstrip("/")).lstrip("/")
    shown = f"{mount.subdir}{mount.root}".rstrip("/")
    return f"{shown}/{below}" if below else shown or "/"


def _unescape(field: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
