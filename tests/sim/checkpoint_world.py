"""A small world for training jobs: programs on three mounts save checkpoints and load them, while one log is appended
to here and followed there, and all of file_world.py's faults happen; and chunkservers lose power. One seed, one
history.

**A checkpoint** is saved as libraries do it: a temporary file is written in pieces, synced, closed, and renamed over
the name. Checked, of everybody's loads:

* what is loaded is one checkpoint, whole: never pieces of two, never a part, and its bytes are on some disk;
* the name is a register (Herlihy and Wing 1990) whose values are checkpoints, for all mounts; a save whose answer never
  came may have happened at any time since, or never;
* at the end, whatever has crashed, every mount loads it.

**The log**, to which all append, is followed by programs that keep it open and read on where they stopped: what each
has put together is what :func:`~sim.file_histories.check_log` says of a log that is read at once.
"""

import errno
import math
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from harness.metadata import command
from shoalfs.mds import messages as m
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import PosixError, ShoalError
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId, TargetId
from sim.broken import Broken
from sim.check_registers import RegisterCall, is_linearizable
from sim.file_histories import LogCall
from sim.file_mount import LOG, VALUE_BYTES, FileMount, Program
from sim.file_world import CAUSES, FileWorld
from sim.lease_group import run_history

DIRECTORY = b"checkpoints"
NAME = b"latest"
REPEATS = (5, 300)  # of its value, in a checkpoint: one that lives in the metadata, and one in chunks
PIECES = 4
CHECKPOINT_CAUSES = (*CAUSES, "power")
_LOAD_ATTEMPTS = 4  # the file may be replaced and removed between looking it up and opening it


@dataclass(eq=False)
class CheckpointCall:
    """A save or a load. ``ended`` infinity: it failed, or nobody knows."""

    mount: int
    began: float
    is_save: bool
    value: bytes = b""  # of a load: empty if there is none yet
    ended: float = math.inf


def check_checkpoints(calls: Sequence[CheckpointCall]) -> int:
    """Returns how many calls were taken into account. Raises Broken."""
    told = [
        RegisterCall(call.began, call.ended, call.is_save, call.value)
        for call in calls
        if call.is_save or call.ended < math.inf
    ]
    if not is_linearizable(told, b""):
        lines = (
            f"{c.began:9.4f} {c.ended:9.4f} mount {c.mount} {'saves' if c.is_save else 'loads'} {c.value!r}"
            for c in sorted(calls, key=lambda call: call.began)
        )
        raise Broken("the checkpoint's name is no register:\n" + "\n".join(lines))
    return len(told)


class CheckpointWorld(FileWorld):
    def __init__(self, seed: int, calm_s: float) -> None:
        self.directory = InodeId(0)
        self.checkpoints: list[CheckpointCall] = []
        self.repeats: dict[bytes, int] = {}
        super().__init__(seed, calm_s)

    def program(self, mount: FileMount) -> "Job":
        return Job(mount, self)

    def whole(self, content: bytes) -> bytes:
        """The value of a checkpoint that was loaded. Raises Broken unless it is one that somebody saved."""
        value = content[:VALUE_BYTES]
        if value not in self.repeats or content != value * self.repeats[value]:
            seen = sorted({content[at : at + VALUE_BYTES] for at in range(0, len(content), VALUE_BYTES)})
            raise Broken(f"half a checkpoint was loaded: {len(content)} bytes of {seen}")
        return value

    async def _make_files(self, mount: FileMount) -> None:
        inode, number, _ = await mount.vfs.create(ROOT, ROOT_INODE, LOG.encode(), 0o644, os.O_RDWR)
        await mount.close(number)
        self.directory = (await mount.vfs.mkdir(ROOT, ROOT_INODE, DIRECTORY, 0o755)).ino
        self.files[LOG] = inode.ino

    async def _break_more(self, chance: random.Random, kind: str) -> None:
        """A chunkserver loses power, and what was not on its disk."""
        if kind != "power":
            return
        target = TargetId(chance.choice((1, 2)))
        self.servers.restart(target, lose=True)
        request = m.RegisterTarget(bytes([target]) * 16, f"node{target}", f"memory:c{target}", 1 << 40)
        self.group.apply(encode_entry(int(trio.current_time() * 1e9), [(0, command(request, seq=0))]))

    def has_ended(self, session: SessionId) -> bool:
        return session not in self._sessions

    async def _read_all(self) -> None:
        """At the end every mount loads the checkpoint, and sees the log."""
        for mount in self.mounts:
            job = Job(mount, self)
            try:
                await job.load()
            except ShoalError as error:
                raise Broken(f"mount {mount.number} cannot load the checkpoint: {error!r}") from error
            await job.follow()

    def check(self) -> None:
        super().check()
        self.counts["checked"] = check_checkpoints(self.checkpoints)
        for call in self.checkpoints:
            done = "done" if call.ended < math.inf else "unknown"
            self.counts[f"{'save' if call.is_save else 'load'} {done}"] += 1


class Job(Program):
    world: CheckpointWorld

    def __init__(self, mount: FileMount, world: CheckpointWorld) -> None:
        super().__init__(mount)
        self.world = world
        self._followed = b""

    async def _step(self) -> None:
        draw = self.chance.random()
        if draw < 0.25:
            await self._save()
        elif draw < 0.70:
            await self.load()
        elif draw < 0.80:
            await self._append()
        else:
            await self.follow()

    def _begin(self, *, is_save: bool) -> CheckpointCall:
        value = self.world.new_value(self.mount) if is_save else b""
        call = CheckpointCall(self.mount.number, trio.current_time(), is_save, value)
        self.world.checkpoints.append(call)
        return call

    async def _save(self) -> None:
        world, vfs = self.world, self.mount.vfs
        call = self._begin(is_save=True)
        world.repeats[call.value] = repeats = self.chance.choice(REPEATS)
        content = call.value * repeats
        temporary = b"tmp-" + call.value
        inode, number, _ = await vfs.create(ROOT, world.directory, temporary, 0o644, os.O_RDWR | os.O_EXCL)
        try:
            step = len(content) // PIECES
            for piece in range(PIECES):
                start = piece * step
                end = start + step if piece < PIECES - 1 else len(content)
                await self.mount.write(inode.ino, number, start, content[start:end])
            await self.mount.fsync(number)
        except ShoalError:
            with suppress(ShoalError):
                await self.mount.close(number)
            raise
        await self.mount.close(number)
        await vfs.rename(ROOT, world.directory, temporary, world.directory, NAME, 0)
        await self.mount.kernel.answered()
        call.ended = trio.current_time()

    async def load(self) -> None:
        """Raises ShoalError; Broken if what is there is no whole checkpoint."""
        vfs, call = self.mount.vfs, self._begin(is_save=False)
        for attempt in range(_LOAD_ATTEMPTS):
            await self.mount.kernel.answered()
            inode = await vfs.lookup_or_none(ROOT, self.world.directory, NAME)
            await self.mount.kernel.answered()
            if inode is None:
                call.ended = trio.current_time()
                return
            session = self.mount.session.session
            try:
                number = await self.mount.open(inode.ino, os.O_RDONLY)
            except PosixError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT) or attempt == _LOAD_ATTEMPTS - 1:
                    raise
                continue
            break
        try:
            content, _ = await self.mount.read(inode.ino, number)
        except PosixError as error:
            if error.errno == errno.ESTALE and self.world.has_ended(session):
                raise  # with it ended what it had open, and another save has replaced the file since
            # Chunkservers always answer here: what cannot be read is on no disk any more.
            raise Broken(f"bytes of the checkpoint are lost: inode {inode.ino}: {error!r}") from error
        finally:
            await self.mount.close(number)
        call.value = self.world.whole(content)
        call.ended = trio.current_time()

    async def follow(self) -> None:
        """Read on in the log, where it was left."""
        call = LogCall(self.mount.number, trio.current_time(), False, b"")
        self.world.histories.log.append(call)
        number = await self._handle(LOG)
        content, counts = await self.mount.read(self.world.files[LOG], number)
        self._followed += content[len(self._followed) :]
        call.value = self._followed
        if counts:
            call.ended = trio.current_time()


def simulate_checkpoints(seed: int, seconds: float, kinds: Sequence[str], *, calm_s: float = 3.0) -> CheckpointWorld:
    """Run one history. Raises Broken."""
    made: list[CheckpointWorld] = []

    async def main() -> None:
        made.append(CheckpointWorld(seed, calm_s))
        await made[0].run(seconds, kinds)

    run_history(seed, main)
    return made[0]
