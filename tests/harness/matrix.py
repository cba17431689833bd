"""Every call of POSIX on every kind of name, by three users, beside a local filesystem: the same errno or answer, the
same times moved of the name and of its directory, the same modes, owners, link counts and sizes afterwards.

    differences(under_test, known, calls("rename", every=1))

After pjdfstest (https://github.com/pjd/pjdfstest), whose assertions for each errno these cases make without writing
down an answer: the local filesystem has it.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import stage
from harness.libc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
)
from harness.twins import ALICE, BOB, ROOT, Person

PEOPLE = (BOB, ALICE, ROOT)  # who may least comes first: most calls fail, and the tree stays
LONG = b"n" * 255

EXISTING = [os.fsencode(name) for name in stage.TREE]
NEW = [b"absent", b"locked/absent", b"secret/absent", b"sticky/absent", b"group/absent", b"to-directory/absent", LONG]
ODD = [
    b"absent/x", b"file/x", b"fifo/x", b"to-file/x", b"to-itself/x", b"to-nothing/x",
    b"file/", b"absent/", b"directory/", b"empty/", b"to-file/", b"to-directory/", b"to-nothing/", b"fifo/",
    b"empty/.", b"empty/..", b"directory/..", b"absent/..", b"", b".",
    LONG + b"n", b"directory/" + LONG + b"n", b"absent/" + LONG + b"n", LONG + b"n/x",
    b"./" * 2000 + b"file", b"./" * 2000 + b"absent", b"./" * 2048 + b"file",
    b"/".join([LONG] * 15),
]  # fmt: skip
PATHS = [*EXISTING, *NEW, *ODD]

Call = tuple[Any, ...]
PATH = object()  # its place in a call

OPENS = [
    os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_DIRECTORY, os.O_WRONLY | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT,
    os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_NOFOLLOW,
    os.O_RDWR | os.O_APPEND, os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_TMPFILE, os.O_RDONLY | os.O_TMPFILE,
    os.O_PATH, os.O_PATH | os.O_NOFOLLOW,
]  # fmt: skip
OF_ONE_NAME: dict[str, list[Call]] = {
    "chmod": [("chmod", PATH, mode) for mode in (0o640, 0o7777, 0o2755)],
    "chown": [
        ("chown", PATH, uid, gid, follow)
        for uid, gid, follow in (
            (-1, -1, True), (1000, 1000, True), (-1, 2000, True), (1001, -1, True), (-1, 1001, False), (0, 0, False),
        )
    ],
    "mkdir": [("mkdir", PATH, mode) for mode in (0o777, 0o7000)],
    "mkfifo": [("mknod", PATH, stat.S_IFIFO | 0o666, 0)],
    "mknod": [
        ("mknod", PATH, kind | 0o6666, 0x103)
        for kind in (stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR)
    ],
    "open": [("open_once", PATH, flags, 0o6666) for flags in OPENS],
    "rmdir": [("rmdir", PATH)],
    "symlink": [("symlink_at", PATH, target) for target in ("anywhere", "", "t" * 4095, "t" * 4096)],
    "readlink": [("readlink", PATH)],
    "truncate": [("truncate", PATH, size) for size in (0, 5, 100_000, -1, 1 << 62)],
    "unlink": [("unlink", PATH)],
    "utimensat": [
        ("utimens", PATH, *times, follow)
        for times in (
            (UTIME_NOW, UTIME_NOW), (UTIME_OMIT, UTIME_OMIT), (UTIME_NOW, UTIME_OMIT), (UTIME_OMIT, UTIME_NOW),
            (10**18 + 1, UTIME_OMIT), (UTIME_OMIT, -(10**18) - 1), (UTIME_NOW, 0), (1, 2),
        )
        for follow in (True, False)
    ],
    "fallocate": [
        ("fallocate", PATH, mode, *span)
        for mode in (0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE)
        for span in ((0, 10), (3, 0), (-1, 1), (0, -1), ((1 << 63) - 10, 10))
    ],
    "listing": [("listdir", PATH), ("access", PATH, 4), ("access", PATH, 2), ("access", PATH, 1)],
    "xattrs": [
        ("setxattr", PATH, "user.a", b"v", 0), ("setxattr", PATH, "user.a", b"v", 2),
        ("setxattr", PATH, "user." + "n" * 251, b"", 0), ("setxattr", PATH, "trusted.a", b"", 0),
        ("getxattr", PATH, "user.a"), ("removexattr", PATH, "user.a"), ("listxattr", PATH),
    ],
}  # fmt: skip

SOURCES = [
    b"file", b"readonly", b"directory", b"empty", b"locked/file", b"locked/directory", b"secret/file", b"sticky/alices",
    b"sticky/alices-too", b"sticky/roots", b"group/file", b"fifo", b"to-file", b"to-directory", b"to-nothing",
    b"to-itself", b"absent", b"file/x", b"file/", b"directory/", b"empty/.", b"empty/..", b"", LONG + b"n",
    b"to-itself/x", b"./" * 2048 + b"file",
]  # fmt: skip
TARGETS = [
    b"absent", b"absent/x", b"absent/", b"directory/absent", b"directory/directory", b"locked/absent", b"secret/absent",
    b"sticky/absent", b"group/absent", LONG, *SOURCES,
]  # fmt: skip


GROUPS = (*OF_ONE_NAME, "rename", "rename without replacing", "exchange", "link")


def calls(group: str, *, every: int) -> list[Call]:
    """The calls of a group. With ``every`` above 1 each form of a call meets every n-th name, the next form others."""
    if group in OF_ONE_NAME:
        forms = OF_ONE_NAME[group]
        return [
            tuple(path if part is PATH else part for part in form)
            for number, form in enumerate(forms)
            for path in PATHS[number % every :: every]
            if path != b"device" or group not in ("open", "fallocate")  # a mount of shoalfs is "nodev"
        ]
    if group == "link":
        pairs: list[Call] = [("link", source, target, False) for source in SOURCES for target in TARGETS]
        pairs += [("link", source, b"absent", True) for source in SOURCES]
    else:
        flags = {"rename": 0, "rename without replacing": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}[group]
        pairs = [("rename", source, target, flags) for source in SOURCES for target in TARGETS]
    return pairs[::every]  # the number of targets and ``every`` should have no common divisor


def differences(under_test: Path, known: Path, made: Sequence[Call]) -> list[str]:
    """What the two directories, which are empty, do differently."""
    roots = [_stage(place) for place in (under_test, known)]
    found = []
    with _people(roots) as people:
        for call in made:
            for who in PEOPLE:
                ours, theirs = people[who].call("effects", *call)
                if ours != theirs:
                    found.append(f"{who}: {_shown(call)}:\n  here  {ours}\n  known {theirs}")
                if not isinstance(theirs[0], str) or not isinstance(ours[0], str):
                    for root in roots:
                        stage.restore(root, attributes="xattr" in call[0])
    return found


def _stage(place: Path) -> Path:
    """A tree deep enough that no ".." leads to what differs."""
    place.chmod(0o711)
    root = place / "p" / "q"
    root.mkdir(parents=True)
    for directory in (root.parent, root):
        directory.chmod(0o777)
    stage.restore(root)
    return root


@contextmanager
def _people(roots: Sequence[Path]) -> Iterator[dict[str, Person]]:
    people = {user: Person(user, [str(root) for root in roots]) for user in PEOPLE}
    try:
        yield people
    finally:
        for person in people.values():
            person.close()


def _shown(call: Call) -> str:
    return ", ".join(repr(a if not isinstance(a, bytes) or len(a) < 60 else a[:20] + b"...") for a in call)
