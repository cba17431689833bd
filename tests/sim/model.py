"""What the metadata service should do, said once more and much shorter: dictionaries, and root as the only user.

Independent of `mds/ops`: it shares the messages with it, and nothing else. Answers are (code, summary); `summary_of`
makes the same of a real reply.
"""

import errno
import stat
from dataclasses import dataclass, field
from typing import Any

from shoalfs.mds import messages as m
from shoalfs.transport.errors import LayoutConflict, PosixError, SessionGone, ShoalError, StaleOperation
from shoalfs.transport.limits import INLINE_BYTES_DEFAULT

Summary = tuple[Any, ...]
Judged = tuple[int, Summary]
"""(code, summary)"""


@dataclass
class Node:
    ino: int
    mode: int
    nlink: int
    parent: int  # of a directory
    size: int = 0  # of a file
    names: dict[bytes, "Node"] = field(default_factory=dict)
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


def _fail(number: int) -> PosixError:
    return PosixError(number)


class Model:
    """The whole service: sessions that remember every answer, and a tree."""

    def __init__(self) -> None:
        root = Node(1, 0o040755, 2, 1)
        self._nodes = {1: root}
        self._next_session = 1
        self._by_nonce: dict[bytes, int] = {}
        self._alive: dict[int, bytes] = {}
        self._answers: dict[tuple[int, int], dict[int, Judged]] = {}  # (session, slot) -> seq -> answer

    # --- entry points ---------------------------------------------------------------------------------------
    def apply(self, session: int, slot: int, seq: int, op: int, request: Any) -> tuple[Judged, bool]:
        """The answer to a command in the log, and whether it was carried out just now."""
        if session == 0:
            assert op == m.Op.OPEN_SESSION, op
            return self._open(request.nonce)
        if session not in self._alive:
            return (SessionGone.code, ()), False
        answers = self._answers.setdefault((session, slot), {})
        if seq in answers and seq == max(answers):
            return answers[seq], False
        if answers and seq < max(answers):
            return (StaleOperation.code, ()), False
        if op == m.Op.END_SESSION:
            del self._by_nonce[self._alive.pop(session)]
            return (0, ()), True
        answers[seq] = self._judge(request)
        return answers[seq], True

    def read(self, request: Any) -> Judged:
        return self._judge(request)

    def _judge(self, request: Any) -> Judged:
        try:
            return 0, getattr(self, "_" + type(request).__name__.lower())(request)
        except PosixError as error:
            return error.errno, ()
        except ShoalError as error:
            return error.code, ()

    def _open(self, nonce: bytes) -> tuple[Judged, bool]:
        if nonce in self._by_nonce:
            return (0, ("session", self._by_nonce[nonce])), False
        session, self._next_session = self._next_session, self._next_session + 1
        self._by_nonce[nonce], self._alive[session] = session, nonce
        return (0, ("session", session)), True

    # --- the tree -------------------------------------------------------------------------------------------
    def _node(self, ino: int) -> Node:
        if ino not in self._nodes:
            raise _fail(errno.ESTALE)
        return self._nodes[ino]

    def _dir(self, ino: int) -> Node:
        node = self._node(ino)
        if not node.is_dir:
            raise _fail(errno.ENOTDIR)
        return node

    def _named(self, request: Any) -> tuple[Node, Node]:
        parent = self._dir(request.parent)
        if request.name not in parent.names:
            raise _fail(errno.ENOENT)
        return parent, parent.names[request.name]

    def _add(self, parent: Node, name: bytes, mode: int) -> Node:
        if parent.nlink == 0:
            raise _fail(errno.ENOENT)
        node = Node(len(self._nodes) + 1, mode, 2 if stat.S_ISDIR(mode) else 1, parent.ino)
        self._nodes[node.ino] = parent.names[name] = node
        parent.nlink += node.is_dir
        return node

    def _unlinked(self, node: Node) -> None:
        node.nlink = 0 if node.is_dir else node.nlink - 1

    # --- names ----------------------------------------------------------------------------------------------
    def _create(self, r: m.Create) -> Summary:
        parent = self._dir(r.parent)
        there = parent.names.get(r.name)
        if there is None:
            return ("created", True, *_seen(self._add(parent, r.name, stat.S_IFREG | r.mode)))
        if r.exclusive:
            raise _fail(errno.EEXIST)
        if there.is_dir:
            raise _fail(errno.EISDIR)
        return ("created", False, *_seen(there))

    def _mkdir(self, r: m.Mkdir) -> Summary:
        parent = self._dir(r.parent)
        if r.name in parent.names:
            raise _fail(errno.EEXIST)
        return _seen(self._add(parent, r.name, stat.S_IFDIR | r.mode))

    def _link(self, r: m.Link) -> Summary:
        node, parent = self._node(r.ino), self._dir(r.new_parent)
        if r.new_name in parent.names:
            raise _fail(errno.EEXIST)
        if parent.nlink == 0:
            raise _fail(errno.ENOENT)
        if node.is_dir:
            raise _fail(errno.EPERM)
        if node.nlink == 0:
            raise _fail(errno.ENOENT)
        parent.names[r.new_name] = node
        node.nlink += 1
        return _seen(node)

    def _unlink(self, r: m.Unlink) -> Summary:
        parent, node = self._named(r)
        if node.is_dir:
            raise _fail(errno.EISDIR)
        del parent.names[r.name]
        self._unlinked(node)
        return _seen(node)

    def _rmdir(self, r: m.Rmdir) -> Summary:
        parent, node = self._named(r)
        if not node.is_dir:
            raise _fail(errno.ENOTDIR)
        if node.names:
            raise _fail(errno.ENOTEMPTY)
        del parent.names[r.name]
        parent.nlink -= 1
        self._unlinked(node)
        return _seen(node)

    def _rename(self, r: m.Rename) -> Summary:
        source, target = self._dir(r.parent), self._dir(r.new_parent)
        moved, there = source.names.get(r.name), target.names.get(r.new_name)
        is_exchange, is_careful = r.flags == m.RenameFlags.EXCHANGE, r.flags == m.RenameFlags.NOREPLACE
        if moved is None:
            raise _fail(errno.ENOENT)
        if there is not None and is_careful:
            raise _fail(errno.EEXIST)
        if there is None and is_exchange:
            raise _fail(errno.ENOENT)
        if source is not target:
            if moved.is_dir and self._is_below(target, moved):
                raise _fail(errno.EINVAL)
            if there is not None and there.is_dir and self._is_below(source, there):
                raise _fail(errno.EINVAL if is_exchange else errno.ENOTEMPTY)
        if there is moved:
            return ("renamed", *_seen(moved), *_seen(moved))
        self._check_target(target, moved, there, is_exchange=is_exchange)
        if is_exchange:
            assert there is not None
            source.names[r.name], target.names[r.new_name] = there, moved
            self._move(there, target, source)
        else:
            del source.names[r.name]
            target.names[r.new_name] = moved
            if there is not None:
                target.nlink -= there.is_dir
                self._unlinked(there)
        self._move(moved, source, target)
        return ("renamed", *_seen(moved), *(_seen(there) if there else ()))

    def _check_target(self, target: Node, moved: Node, there: Node | None, *, is_exchange: bool) -> None:
        if there is None:
            if target.nlink == 0:
                raise _fail(errno.ENOENT)
            return
        if is_exchange:
            return
        if moved.is_dir and not there.is_dir:
            raise _fail(errno.ENOTDIR)
        if there.is_dir and not moved.is_dir:
            raise _fail(errno.EISDIR)
        if there.names:
            raise _fail(errno.ENOTEMPTY)

    def _move(self, node: Node, source: Node, target: Node) -> None:
        if node.is_dir:
            source.nlink -= 1
            target.nlink += 1
            node.parent = target.ino

    def _is_below(self, node: Node, above: Node) -> bool:
        while node is not above:
            if node.ino == 1:
                return False
            node = self._nodes[node.parent]
        return True

    # --- contents -------------------------------------------------------------------------------------------
    def _setattr(self, r: m.SetAttr) -> Summary:
        node = self._node(r.ino)
        if r.size_bytes is not None and node.is_dir:
            raise _fail(errno.EISDIR)
        if r.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | r.mode
        if r.size_bytes is not None:
            node.data, node.size = node.data[: r.size_bytes], r.size_bytes
        return _seen(node)

    def _setxattr(self, r: m.SetXattr) -> Summary:
        node = self._node(r.ino)
        node.attributes[r.name] = r.value
        return _seen(node)

    def _commitinline(self, r: m.CommitInline) -> Summary:
        node = self._node(r.ino)
        if node.is_dir:
            raise _fail(errno.EISDIR)
        assert r.append
        assert len(r.patches) == 1
        if node.size + len(r.patches[0].data) > INLINE_BYTES_DEFAULT:
            raise LayoutConflict
        offset = node.size
        node.data += bytes(offset - len(node.data)) + r.patches[0].data
        node.size = len(node.data)
        return ("committed", offset, *_seen(node))

    def _lookup(self, r: m.Lookup) -> Summary:
        return _seen(self._named(r)[1])

    def _getattr(self, r: m.GetAttr) -> Summary:
        return _seen(self._node(r.ino))

    def _getxattr(self, r: m.GetXattr) -> Summary:
        node = self._node(r.ino)
        if r.name not in node.attributes:
            raise _fail(errno.ENODATA)
        return ("value", node.attributes[r.name])


def _seen(node: Node) -> Summary:
    return node.ino, node.mode, node.nlink, len(node.names) if node.is_dir else node.size


def summary_of(reply: Any) -> Summary:
    """What the model predicts of a real reply."""
    match reply:
        case m.SessionOpened():
            return "session", reply.session
        case m.Created():
            return "created", reply.created, *_of(reply.inode)
        case m.Renamed():
            return "renamed", *_of(reply.moved), *(_of(reply.other) if reply.other else ())
        case m.Committed():
            return "committed", reply.offset_bytes, *_of(reply.inode)
        case m.Entry() | m.Unlinked():
            return _of(reply.inode)
        case m.XattrValue():
            return "value", reply.value
        case _:
            return ()


def _of(inode: m.Inode) -> Summary:
    return inode.ino, inode.mode, inode.nlink, inode.size_bytes
