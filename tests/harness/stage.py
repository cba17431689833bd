"""A small tree with one of each that calls are made on, and is put right after a call that changed it.

The same on every root, so that calls can be compared. Who owns what, and what is closed to whom, is in TREE.
"""

import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path

ALICE, GROUP = 1000, 2000


@dataclass(frozen=True)
class Thing:
    """What is at one name. ``size`` counts for files, which hold so many bytes of "x"; ``target`` for symlinks."""

    kind: int
    mode: int = 0o644
    uid: int = ALICE
    gid: int = ALICE
    size: int = 5
    target: str = ""


def _file(mode: int = 0o644, uid: int = ALICE, gid: int = ALICE) -> Thing:
    return Thing(stat.S_IFREG, mode, uid, gid)


def _directory(mode: int = 0o755, uid: int = ALICE, gid: int = ALICE) -> Thing:
    return Thing(stat.S_IFDIR, mode, uid, gid)


def _link(target: str) -> Thing:
    return Thing(stat.S_IFLNK, 0o777, target=target)


TREE: dict[str, Thing] = {
    "file": _file(),
    "private": _file(0o600),
    "readonly": _file(0o444),
    "setid": _file(0o6777),
    "setgid-of-group": _file(0o2755, gid=GROUP),
    "roots": _file(0o666, 0, 0),
    "directory": _directory(),
    "directory/file": _file(),
    "empty": _directory(),
    "group": _directory(0o2775, 0, GROUP),
    "group/file": _file(0o664, gid=GROUP),
    "locked": _directory(0o755, 0, 0),
    "locked/file": _file(),
    "locked/directory": _directory(),
    "secret": _directory(0o700, 0, 0),
    "secret/file": _file(0o666),
    "sticky": _directory(0o1777, 0, 0),
    "sticky/alices": _file(0o666),
    "sticky/alices-too": _directory(0o777),
    "sticky/roots": _file(0o666, 0, 0),
    "fifo": Thing(stat.S_IFIFO),
    "socket": Thing(stat.S_IFSOCK),
    "device": Thing(stat.S_IFCHR, 0o666, 0, 0),
    "to-file": _link("file"),
    "to-directory": _link("directory"),
    "to-nothing": _link("absent-too"),
    "to-itself": _link("to-itself"),
}


def restore(root: Path, *, attributes: bool = False) -> None:
    """Make ``root`` hold exactly TREE, touching only what differs; extended attributes are looked for only if asked."""
    _remove_what_is_too_much(root, "")
    for name, thing in TREE.items():
        path = root / name
        found = _look(path)
        if found is None or found.kind != thing.kind or found.target != thing.target:
            if found is not None:
                _remove(path)
            _make(path, thing)
            found = replace(thing, mode=-1, uid=-1)
        if (found.uid, found.gid) != (thing.uid, thing.gid):
            os.chown(path, thing.uid, thing.gid, follow_symlinks=False)
            found = replace(found, mode=-1)
        if thing.kind == stat.S_IFREG and found.size != thing.size:
            path.write_bytes(b"x" * thing.size)
            found = replace(found, mode=-1)
        if thing.kind != stat.S_IFLNK and found.mode != thing.mode:
            os.chmod(path, thing.mode)
        if attributes and thing.kind in (stat.S_IFREG, stat.S_IFDIR):
            for attribute in os.listxattr(path):
                if not attribute.startswith("security."):
                    os.removexattr(path, attribute)


def _look(path: Path) -> Thing | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    kind = stat.S_IFMT(status.st_mode)
    target = os.readlink(path) if kind == stat.S_IFLNK else ""
    size = status.st_size if status.st_nlink == 1 or kind != stat.S_IFREG else -1
    return Thing(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, size, target)


def _remove_what_is_too_much(root: Path, below: str) -> None:
    for name in os.listdir(root / below):
        inner = os.path.join(below, name)
        if inner not in TREE:
            _remove(root / inner)
        elif TREE[inner].kind == stat.S_IFDIR and stat.S_ISDIR(os.lstat(root / inner).st_mode):
            _remove_what_is_too_much(root, inner)


def _remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            _remove(path / name)
        path.rmdir()
    else:
        path.unlink()


def _make(path: Path, thing: Thing) -> None:
    if thing.kind == stat.S_IFREG:
        path.write_bytes(b"x" * thing.size)
    elif thing.kind == stat.S_IFDIR:
        path.mkdir()
    elif thing.kind == stat.S_IFLNK:
        path.symlink_to(thing.target)
    elif thing.kind == stat.S_IFSOCK:
        _bind(path)
    else:
        os.mknod(path, thing.kind | 0o600, os.makedev(1, 3) if thing.kind == stat.S_IFCHR else 0)


def _bind(path: Path) -> None:
    """Through the working directory, because names of sockets are short."""
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.fchdir(back)
        os.close(back)
