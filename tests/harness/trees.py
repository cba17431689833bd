"""Trees for tests: one with everything a filesystem can hold, and a comparison that overlooks nothing."""

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

HOLE_BYTES = 3 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """All that is promised about one name, except the inode's number and the times that nobody can set."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    size: int
    content: str  # digest of a file, target of a symlink
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: tuple[bytes, ...] = field(default=())  # all names of this inode, if there are several


def snapshot(root: Path, *, times: bool = True) -> dict[bytes, Entry]:
    """Every name below ``root`` (which is b".") with what is there."""
    names: dict[int, list[bytes]] = defaultdict(list)
    found: dict[bytes, os.stat_result] = {}
    start = os.fsencode(root)
    for path in [start, *_walk(start)]:
        name = os.path.relpath(path, start)
        found[name] = os.lstat(path)
        if not stat.S_ISDIR(found[name].st_mode):
            names[found[name].st_ino].append(name)
    return {
        name: _entry(os.path.join(start, name), status, times, names[status.st_ino]) for name, status in found.items()
    }


def _walk(directory: bytes) -> list[bytes]:
    paths = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        paths.append(entry.path)
        if entry.is_dir(follow_symlinks=False):
            paths += _walk(entry.path)
    return paths


def _entry(path: bytes, status: os.stat_result, times: bool, same: list[bytes]) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    content = ""
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path).hex()
    names = [
        name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(("user.", "system.posix_acl_"))
    ]
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns if times else 0,
        rdev=status.st_rdev,
        size=0 if kind == stat.S_IFDIR else status.st_size,
        content=content,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names)),
        same_as=tuple(sorted(same)) if len(same) > 1 else (),
    )


def assert_same(left: Path, right: Path, *, times: bool = True) -> None:
    """Fail with the first difference between two trees."""
    ours, theirs = snapshot(left, times=times), snapshot(right, times=times)
    assert ours.keys() == theirs.keys(), f"names differ: {sorted(ours.keys() ^ theirs.keys())[:5]}"
    for name, entry in ours.items():
        assert entry == theirs[name], f"{name!r}:\n{entry}\n{theirs[name]}"


def make_tree(root: Path) -> None:
    """A tree with one of each: sizes, modes, owners, times, attributes, links of both kinds, holes, odd names."""
    random = Random(7)
    root.mkdir()
    for number, size in enumerate((0, 1, 100, 20_456, 20_457, 30_000, 65_536, 300_000, 5_000_000)):
        directory = root / f"d{number % 3}" / "sub"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_bytes(random.randbytes(size))
    with open(root / "holes", "wb") as file:
        for place in (HOLE_BYTES, 3 * HOLE_BYTES):
            file.seek(place)
            file.write(random.randbytes(10_000))
        file.truncate(4 * HOLE_BYTES)
    os.link(root / "d0" / "sub" / "file0", root / "again")
    os.link(root / "d1" / "sub" / "file7", root / "d2" / "again")
    os.symlink("d0/sub/file3", root / "link")
    os.symlink("nowhere/at/all", root / "dangling")
    os.symlink("d1", root / "link-to-dir")
    os.mkfifo(root / "fifo")
    (root / "empty").mkdir()
    for name in (b"\xff\xfe not utf-8", b"new\nline", b"n" * 255, b" -leading", "éü".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(name)
    os.setxattr(root / "link-to-dir" / "sub" / "file4", "user.note", b"of a file")
    os.setxattr(root / "d0", "user.note", b"\0of a directory\xff")
    if os.geteuid() == 0:
        os.chown(root / "d0" / "sub" / "file6", 1234, 5678)
        os.lchown(root / "dangling", 1, 2)
        os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chmod(root / "d2" / "sub" / "file5", 0o6751)
    os.chmod(root / "empty", 0o1770)
    os.chmod(root / "d1" / "sub" / "file1", 0o000 if os.geteuid() == 0 else 0o400)
    for number, path in enumerate([*_walk(os.fsencode(root)), os.fsencode(root)]):
        time_ns = 1_000_000_000_123_456_789 + number * 1_000_000_001
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
