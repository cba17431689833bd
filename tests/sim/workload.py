"""What the simulated clients do: all of it in three directories and three names, so that it collides.

Registers (an attribute, the mode, the size), names that are made, moved and removed, and one file to which everybody
appends an id of its own: it shows afterwards what happened, and how often.
"""

import random
from typing import Any

from shoalfs.mds import messages as m
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId
from sim.calls import Call

NAMES = (b"a", b"b", b"c")
JOURNAL = b"journal"
REGISTER = b"user.register"
ID_BYTES = 8
_WHO = m.ROOT_CREDENTIALS
_REMEMBERED = 6  # inodes of each type


class Workload:
    """Shared by all clients of a world: they know the same inodes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._directories = [InodeId(ROOT_INODE)]
        self._files: list[InodeId] = []
        self._journal: InodeId | None = None
        self._count = 0

    def next_operation(self, session: SessionId) -> tuple[m.Op | None, Any]:
        """(operation, request); no operation for a read."""
        chance = self._chance
        if self._journal is None:
            return m.Op.CREATE, m.Create(_WHO, InodeId(ROOT_INODE), JOURNAL, 0o644, False)
        draw = chance.random()
        if draw < 0.35:
            return None, self._read()
        if draw < 0.55:
            return self._register()
        if draw < 0.70:
            return m.Op.COMMIT_INLINE, m.CommitInline(self._journal, (m.Patch(0, self._unique()),), append=True)
        if draw < 0.71:
            return m.Op.END_SESSION, m.EndSession(session)
        return self._names()

    def _unique(self) -> bytes:
        self._count += 1
        return b"%07d;" % self._count

    def _read(self) -> Any:
        chance = self._chance
        kind = chance.choice(["lookup", "getattr", "getxattr"])
        if kind == "lookup":
            return m.Lookup(_WHO, self._directory(), chance.choice(NAMES))
        return m.GetAttr(self._inode()) if kind == "getattr" else m.GetXattr(_WHO, self._inode(), REGISTER)

    def _register(self) -> tuple[m.Op, Any]:
        chance, ino = self._chance, self._inode()
        kind = chance.choice(["xattr", "xattr", "mode", "size"])
        if kind == "xattr":
            return m.Op.SETXATTR, m.SetXattr(_WHO, ino, REGISTER, self._unique())
        if kind == "mode":
            return m.Op.SETATTR, m.SetAttr(_WHO, ino, mode=chance.randrange(0o1000))
        return m.Op.SETATTR, m.SetAttr(_WHO, ino, size_bytes=chance.randrange(1000))

    def _names(self) -> tuple[m.Op, Any]:
        chance, parent, name = self._chance, self._directory(), self._chance.choice(NAMES)
        kind = chance.choice(["create", "create", "unlink", "rename", "rename", "link", "mkdir", "rmdir"])
        if kind == "create":
            return m.Op.CREATE, m.Create(_WHO, parent, name, 0o644, chance.random() < 0.7)
        if kind == "unlink":
            return m.Op.UNLINK, m.Unlink(_WHO, parent, name)
        if kind == "rename":
            flags = chance.choice([0, 0, 0, 1, 2])
            return m.Op.RENAME, m.Rename(_WHO, parent, name, self._directory(), chance.choice(NAMES), flags)
        if kind == "link":
            return m.Op.LINK, m.Link(_WHO, self._inode(), parent, name)
        if kind == "mkdir":
            return m.Op.MKDIR, m.Mkdir(_WHO, parent, name, 0o755)
        return m.Op.RMDIR, m.Rmdir(_WHO, parent, name)

    def _directory(self) -> InodeId:
        return self._chance.choice(self._directories)

    def _inode(self) -> InodeId:
        return self._chance.choice(self._files or self._directories)

    def learn(self, call: Call) -> None:
        """Inodes that an answer tells of."""
        assert call.answer is not None
        inode = getattr(call.answer[1], "inode", None)
        if inode is None:
            return
        if isinstance(call.request, m.Create) and call.request.name == JOURNAL:
            self._journal = inode.ino
        elif inode.ino != self._journal:
            known = self._directories if inode.is_dir else self._files
            if inode.ino not in known:
                known.append(inode.ino)
                del known[1 : max(1, len(known) - _REMEMBERED)]
