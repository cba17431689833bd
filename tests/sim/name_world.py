"""A small world for directories that one mount writes to alone: programs on three mounts make, remove and look up the
same names of one directory, while all of file_world.py's faults happen. One seed, one history.

Checked: names (see name_histories.py); that a file which was closed, and its directory synced, is known to the
metadata service with its bytes; that its times stay what they were when they were first looked at after the close; and
that what a session made is not made when it has ended.
"""

import errno
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import trio

from harness.compiled_part import Programs
from shoalfs.mds import dentry, keys, reads, records
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId
from sim.broken import Broken
from sim.file_mount import FileMount, Running
from sim.file_world import MOUNTS, FileWorld
from sim.lease_group import run_history
from sim.name_histories import Kind, NameCall, check_names

DIRECTORY = b"d"
NAMES = ("a", "b", "c")
_FILL = 12
LARGE = b"large" * 6_000  # more than fits into an inode
_TURN_S = 3.5


class NameWorld(FileWorld):
    def __init__(self, seed: int, calm_s: float) -> None:
        self.directory = InodeId(0)
        self.calls: list[NameCall] = []
        self._known: set[InodeId] = set()  # inodes that the metadata service has had in the directory
        self._made: dict[InodeId, NameCall] = {}
        self.untold: dict[str, None] = {}  # names that were made without asking: somebody elsewhere should look
        self.numbers = itertools.count()  # of programs: what they fill the directory with has names of its own
        super().__init__(seed, calm_s)

    @property
    def favourite(self) -> int:
        """The mount that does most of the work, for a while: else nobody would ever have the directory to itself."""
        return int(trio.current_time() / _TURN_S) % MOUNTS

    def program(self, mount: FileMount) -> Running:
        return NameProgram(mount, self)

    def begin_name(self, mount: FileMount, name: str, kind: Kind) -> NameCall:
        call = NameCall(mount.number, mount.session.session, name, kind, trio.current_time())
        self.calls.append(call)
        return call

    def made(self, call: NameCall, ino: InodeId) -> None:
        """A program has made a file; others may have seen it before."""
        call.ino, call.ended = ino, trio.current_time()
        self._made[ino] = call
        if ino in self._known:
            call.told = call.ended
        else:
            self.untold[call.name] = None
        self.counts["made here" if ino not in self._known else "made there"] += 1

    def excuse(self, why: str, session: SessionId, ino: InodeId | None = None) -> None:
        """What the session has made and not told of may come late, or never."""
        for call in self.calls:
            if call.session == session and call.kind == "make" and call.told == math.inf and not call.excused:
                call.excused = why

    def synced(self, call: NameCall, size_bytes: int) -> None:
        """The file was closed with so many bytes in it, and its directory synced afterwards."""
        self.counts["synced"] += 1
        assert call.ino is not None
        if call.ino not in self._known:
            raise Broken(f"closed and synced, and nobody was told: {call}")
        with self.group.store.read() as txn:
            inode = records.INODE.load(txn, keys.inode(call.ino))
        if inode is not None and inode.size_bytes != size_bytes:
            raise Broken(f"closed and synced with {size_bytes} bytes, {inode.size_bytes} are there: {call}")

    def filled(self, inos: Sequence[InodeId], size_bytes: int) -> None:
        """Files of so many bytes were closed, and their directory synced afterwards."""
        self.counts["filled"] += len(inos)
        with self.group.store.read() as txn:
            for ino in inos:
                inode = records.INODE.load(txn, keys.inode(ino))
                if inode is None or inode.size_bytes != size_bytes:
                    raise Broken(f"closed and synced with {size_bytes} bytes: {inode or ino}")

    def _note_truth(self) -> None:
        now = trio.current_time() if self.mounts else 0.0
        with self.group.store.read() as txn:
            sessions = {session for session, _ in reads.sessions(txn)}
            for session in self._sessions - sessions:
                self.excuse("session ended", session)
                self._ended_at[session] = now
            self._sessions = sessions
            if not self.directory:
                return
            directory = inodes.load(txn, self.directory)
            for name in NAMES:
                found = dentry.find(txn, directory, name.encode())
                if found is not None and found.ino not in self._known:
                    self._note_told(found.ino, now)

    def _note_told(self, ino: InodeId, now: float) -> None:
        self._known.add(ino)
        call = self._made.get(ino)
        if call is None:
            return
        if self._ended_at.get(SessionId(call.session), math.inf) < now:
            raise Broken(f"told of at {now:.4f}, when its session had ended: {call}")
        call.told = now

    async def _make_files(self, mount: FileMount) -> None:
        made = await mount.vfs.mkdir(ROOT, ROOT_INODE, DIRECTORY, 0o755)
        self.directory = made.ino
        self.files["directory"] = made.ino

    async def _read_all(self) -> None:
        for mount in self.mounts:
            reader = NameProgram(mount, self)
            for name in NAMES:
                await reader.see(name)

    def check(self) -> None:
        self.counts["checked"] = check_names(self.calls)
        for call in self.calls:
            self.counts[f"excused: {call.excused}" if call.excused else call.kind] += 1


class NameProgram(Running):
    """It makes files and leaves them open for a while, removes and looks up; sometimes it fills the directory."""

    world: NameWorld

    def __init__(self, mount: FileMount, world: NameWorld) -> None:
        super().__init__(mount)
        self.world = world
        self._open: list[tuple[NameCall, int]] = []
        self._number = next(world.numbers)
        self._filled = 0

    async def _step(self) -> None:
        if self.mount.number != self.world.favourite:
            if self.world.untold and self.chance.random() < 0.3:
                await self.see(self.world.untold.popitem()[0])
            if self.chance.random() < 0.98:
                return
        draw = self.chance.random()
        name = self.chance.choice(NAMES)
        is_own = self.mount.coherent.keeps_writes(self.world.directory)
        if draw < (0.05 if is_own else 0.30):
            await self._fill()
        elif draw < 0.40:
            await self._make(name)
        elif draw < 0.55:
            await self._close()
        elif draw < 0.75:
            await self._remove(name)
        else:
            await self.see(name)

    @property
    def _programs(self) -> Programs:
        return self.mount.programs

    async def _start_again(self) -> None:
        self._open.clear()

    async def _fill(self) -> None:
        """So many files, one after the other, that the mount asks for the directory."""
        data, session, filled = self.chance.choice((b"", b"data", LARGE)), self.mount.session.session, []
        for _ in range(_FILL):
            self._filled += 1
            name = b"%d-%d-%d" % (self.mount.session.session, self._number, self._filled)
            ino, number = await self._programs.create(self.world.directory, name, os.O_RDWR)
            if data:
                await self._programs.write(number, data)
            await self._programs.close(number)
            filled.append(ino)
        if self.chance.random() < 0.5:
            await self._programs.fsyncdir(self.world.directory)
            if self.mount.session.session == session:
                self.world.filled(filled, len(data))
        await trio.sleep(0.02)

    async def _make(self, name: str) -> None:
        call = self.world.begin_name(self.mount, name, "make")
        await self.mount.kernel.answered()
        flags = os.O_RDWR | os.O_EXCL
        try:
            ino, number = await self._programs.create(self.world.directory, name.encode(), flags)
        except PosixError as error:
            if error.errno != errno.EEXIST:
                raise
            await self._answered(call, "exists")
            return
        await self.mount.kernel.answered()
        self.world.counts["made by the compiled part"] += ino in self.mount.compiled.made
        self.world.made(call, ino)
        self._open.append((call, number))
        if self.chance.random() < 0.5:
            await self._close(len(self._open) - 1)  # before it is told of for its age

    async def _close(self, which: int | None = None) -> None:
        if not self._open:
            return
        call, number = self._open.pop(self.chance.randrange(len(self._open)) if which is None else which)
        data = self.chance.choice((b"", b"", b"data", LARGE))
        if data:
            await self._programs.write(number, data)
        await self._programs.close(number)
        draw = self.chance.random()
        if draw < 0.35:
            await self._look_twice(call)
        elif draw < 0.6:
            await self._programs.fsyncdir(self.world.directory)
            if self.mount.session.session == call.session:
                self.world.synced(call, len(data))

    async def _look_twice(self, call: NameCall) -> None:
        assert call.ino is not None
        try:
            first = await self._programs.getattr(call.ino)
            await trio.sleep(0.03)
            second = await self._programs.getattr(call.ino)
        except PosixError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise  # it was removed
            return
        self.world.counts["looked at twice"] += 1
        if second.mtime_ns != first.mtime_ns and self.mount.session.session == call.session:
            raise Broken(f"its time changed after its close: {call}")

    async def _remove(self, name: str) -> None:
        call = self.world.begin_name(self.mount, name, "remove")
        await self.mount.kernel.answered()
        try:
            await self._programs.unlink(self.world.directory, name.encode())
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            await self._answered(call, "absent")
        else:
            await self._answered(call, "remove")

    async def see(self, name: str) -> None:
        call = self.world.begin_name(self.mount, name, "see")
        await self.mount.kernel.answered()
        call.ino = await self._programs.lookup(self.world.directory, name.encode())
        await self._answered(call, "see")

    async def _answered(self, call: NameCall, kind: Kind) -> None:
        await self.mount.kernel.answered()
        call.kind, call.ended = kind, trio.current_time()


def simulate_names(seed: int, seconds: float, kinds: Any, *, calm_s: float = 3.0) -> NameWorld:
    """Run one history. Raises Broken."""
    made: list[NameWorld] = []

    async def main() -> None:
        made.append(NameWorld(seed, calm_s))
        await made[0].run(seconds, kinds)

    run_history(seed, main)
    return made[0]
