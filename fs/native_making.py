"""Files that the compiled part makes (`fs/native/makes.h`): in which directories it may, and taking over what it made.

In a directory that this mount fills alone a program creates a file, writes to it and closes it without one step of the
interpreter. What was made so is taken over CLOSE_MS after its close, many at a time, and is from then on as any other
file that was made here (`fs/new_files.py`): nobody can tell how it came about.

**Whoever looks at what was made here, or changes who may make, comes to** :meth:`NativeMaking.take` **or**
:meth:`NativeMaking.revoke` **first**: requests of the kernel by way of the compiled part, which knows what they are
about; the leader's recalls, a new leader and a new session by way of `fs/coherent.py`; the end of the mount by way of
`fs/native_ops.py`.
"""

import logging
import stat
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from shoalfs.fs import fuse_wire as wire
from shoalfs.fs.handles import Handles
from shoalfs.fs.making import Making
from shoalfs.fs.new_files import Made, can_be_made
from shoalfs.fs.open_files import OpenFiles
from shoalfs.mds.client import MdsClient
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import CLOSE_MS, NEW_FILE_MS

if TYPE_CHECKING:
    from shoalfs.mds import messages as m

log = logging.getLogger("shoal.fs.native_making")

_TICK_S: Final = CLOSE_MS / 1000
_OPEN_NS: Final = NEW_FILE_MS * 1_000_000 // 2  # a file that was made so long ago is taken over though it is open
_NUMBERS: Final = 1_024  # given at a time
_NUMBERS_LEFT: Final = 256  # with fewer, others are given
_OWNER_MAKES: Final = stat.S_IWUSR | stat.S_IXUSR
_ENTRIES_MAX: Final = 262_144  # of a directory, when the compiled part begins to make files in it
_NOBODY: Final = 0xFFFF_FFFF  # (uid_t) -1, which chown(2) takes for "leave it": no user has it


class NativeMakes(Protocol):
    """What is made by the compiled part; the docstrings are in `fs/native/makes.c`."""

    def on_made(self, take: Callable[[int, bool], None], /) -> None: ...

    def make_in(self, node: int, names: Sequence[bytes], uid: int, /) -> bool: ...

    def make_no_more(self, node: int, /) -> None: ...

    def describe(self, node: int, attributes: bytes | None, /) -> None: ...

    def give_numbers(self, first: int, count: int, /) -> None: ...

    def numbers_left(self) -> int: ...

    def take_made(self, node: int, /) -> list[tuple[Any, ...]]: ...

    def take_closed(self, limit: int, before_ns: int, /) -> list[tuple[Any, ...]]: ...


class NativeMaking:
    """:meth:`run` must be running. Bounded: `fs/native/makes.c` says how many directories and files."""

    def __init__(
        self, native: NativeMakes, making: Making, files: OpenFiles, session: MdsClient, handles: Handles
    ) -> None:
        self._native = native
        self._making = making
        self._files = files
        self._session = session
        self._handles = handles
        # By node: directories in which the compiled part makes files, as they were when that began. Invariant: every
        # file that it has is in one of them.
        self._granted: dict[int, m.Inode] = {}
        self._range = 0  # the end of the reserved numbers of which some were given
        self._work = trio.Event()
        native.on_made(self._taken)

    async def run(self) -> None:
        """Take over what was made, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._granted:
                await trio.sleep(_TICK_S)
                await self._give_numbers()
                if self._files.closing.is_failing:
                    self.revoke(None)  # a close has to return the error
                else:
                    self._adopt(
                        self._native.take_closed(self._files.closing.room, time.time_ns() - _OPEN_NS), hurry=True
                    )

    # --- where -------------------------------------------------------------------------------------------------------

    def grant(self, directory: InodeId) -> None:
        """Let the compiled part make files in the directory, if it may: what :meth:`Making.make` looks at, but for the
        name; and the leader, who is told later, will ask for no group of whoever makes one."""
        node = self._handles.node_of(directory)
        if node in self._granted or self._files.closing.is_failing:
            return
        inode = self._making.may_make_in(directory)
        if inode is None or inode.size_bytes > _ENTRIES_MAX or not can_be_made(inode, 0, self._session.map):
            return
        names = self._making.names_in(directory)
        owner = inode.uid if inode.mode & _OWNER_MAKES == _OWNER_MAKES else _NOBODY
        if names is not None and self._native.make_in(node, names, owner):
            self._granted[node] = inode
            self._work.set()

    def revoke(self, directory: InodeId | None) -> None:
        """The compiled part makes nothing more in the directory, or anywhere, and what it has made there is taken over
        when this returns."""
        nodes = list(self._granted) if directory is None else [self._handles.node_of(directory)]
        for node in nodes:
            if node in self._granted:
                self._take_node(node)
                self._native.make_no_more(node)
                del self._granted[node]
        if nodes and not self._granted:
            self._native.give_numbers(0, 0)
            self._range = 0

    async def _give_numbers(self) -> None:
        """Only numbers of the newest range and the one before are the session's, so no others are left there."""
        session = self._session
        if self._native.numbers_left() >= _NUMBERS_LEFT and self._range == session.inode_range:
            return
        try:
            await session.reserve_inodes()
        except ShoalError as error:
            log.debug("there are no inode numbers for new files: %s", error)
            return
        if self._granted:
            self._native.give_numbers(*session.take_inode_numbers(_NUMBERS))
            self._range = session.inode_range

    # --- taking over -------------------------------------------------------------------------------------------------

    def take(self, directory: InodeId) -> None:
        """What was made in the directory is taken over when this returns; and the compiled part knows what it is like
        with that, until :meth:`changed`."""
        node = self._handles.node_of(directory)
        if node in self._granted:
            self._take_node(node)
            known = self._making.viewed(directory)
            self._native.describe(node, None if known is None else wire.attributes(known))

    def changed(self, ino: InodeId) -> None:
        """What is known of the inode is not known any more, or as something else."""
        node = self._handles.node_of(ino)
        if node in self._granted:
            self._native.describe(node, None)

    def _taken(self, node: int, over: bool) -> None:
        """A request is about to be carried out for which this has to be taken over."""
        if over:
            self.revoke(self._granted[node].ino)
        else:
            self._take_node(node)

    def _take_node(self, node: int) -> None:
        """A file, those of a directory, or (0) all."""
        self._adopt(self._native.take_made(node), hurry=False)

    def _adopt(self, files: list[tuple[Any, ...]], *, hurry: bool) -> None:
        for one in files:
            made = Made(*one)
            self._files.adopt_made(made, self._making.adopt(self._granted[made.parent_node], made))
        if files and hurry:
            self._files.closing.hurry()
