"""Which targets a server has: opens them at the start, takes in others while it runs, lets go of those that the cluster
has removed.

Adding a directory, in durable order:

1. It is made a target: ``target.json`` is on disk.        A crash: an empty target of this cluster. Adding it again
                                                           takes it as it is.
2. It is written down (``added.py``).                      A crash: the next start opens it and registers it.
3. It registers, with the next heartbeat.                  A crash: as 2; it registers again, and is the same target.
4. Whoever asked is answered.

So a target that was answered for is there after every restart, and one that was not may be. The metadata service
places nothing on a target before step 3, and what a client stores on it is durable as everywhere.

Removing begins in the metadata: the target's uuid is refused from then on (``TargetRemoved``). The server hears that
with its next registration; it stops serving the target, and drops what step 2 wrote. A crash before that: the next
start registers, and is refused again. The bytes stay where they are; nobody uses them until the directory is emptied.
"""

import errno
import logging
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import trio

from shoalfs.chunkserver.added import AddedTarget, AddedTargets
from shoalfs.chunkserver.directory import TargetInUse, target_in
from shoalfs.chunkserver.disk import Disk
from shoalfs.chunkserver.index import IndexDamaged
from shoalfs.chunkserver.messages import AddTarget, TargetAdded
from shoalfs.chunkserver.store import ChunkStore
from shoalfs.chunkserver.target import Target, open_target
from shoalfs.chunkserver.watch import Watch, in_time
from shoalfs.transport.errors import Overloaded, PosixError, ShoalError, TargetDown, TargetRemoved, UserError
from shoalfs.transport.limits import (
    DISK_CALL_MS_MAX,
    OPEN_PATIENCE_MS,
    TARGET_PATH_BYTES_MAX,
    TARGETS_PER_SERVER_MAX,
)
from shoalfs.transport.service import Call

_log: Final = logging.getLogger("shoal.chunkserver.keeper")
_T = TypeVar("_T")
_REGISTER_S: Final = 15.0  # how long whoever adds a target waits for its number


@dataclass(frozen=True)
class TargetOptions:
    """One directory to store in. ``size_limit_bytes`` None: as much as its filesystem holds."""

    path: str
    size_limit_bytes: int | None = None


@dataclass(eq=False)
class TargetSet:
    """``living``: the targets in service, by uuid. ``dead``: path and reason of those that should be and are not; they
    are only shown. ``changed`` is set, and replaced, when ``living`` has changed."""

    living: dict[bytes, Target] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)

    def note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@dataclass(eq=False)
class _Open:
    """A target's task. ``ready``: ``target`` is open, or ``error`` says why it is not. Closed once ``leave`` is set."""

    real_path: str = ""  # without symbolic links
    ready: trio.Event = field(default_factory=trio.Event)
    leave: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    target: Target | None = None
    error: Exception | None = None


@dataclass(eq=False)
class _Start:
    """A target that is to be opened when the server starts; ``added``: as it was written down. In the end ``target`` is
    open, or it is shown why not, or there is a ``mistake``. ``is_late``: nobody waits for it any more."""

    options: TargetOptions
    added: AddedTarget | None = None
    target: Target | None = None
    mistake: UserError | None = None
    is_late: bool = False


class Keeper:
    """Made by :func:`open_keeper`. ``added`` None: there is nowhere to write down what is added. ``call_ms_max``: a
    disk one of whose calls takes longer hangs."""

    def __init__(
        self, nursery: trio.Nursery, disk: Disk, cluster_id: bytes, added: AddedTargets | None, call_ms_max: int
    ) -> None:
        self.targets = TargetSet()
        self._nursery = nursery
        self._disk = disk
        self._cluster_id = cluster_id
        self._added = added
        self._call_ms_max = call_ms_max
        self._open: dict[bytes, _Open] = {}
        self._every: set[_Open] = set()  # also those that are not open yet, or no more
        self._ending = False
        self._changing = trio.Lock()  # held while a directory is opened or let go of, and the file written

    # --- the start ---------------------------------------------------------------------------------------------------

    async def open_configured(self, configured: Sequence[TargetOptions]) -> None:
        """Open the targets of the configuration and those that were added, side by side. One whose disk does not answer
        is left out and shown as failed. One that takes longer than the others and OPEN_PATIENCE_MS, because there is
        much to recover or its disk hangs, is served when it is open. Raises UserError for a mistake in the options, and
        if none can be opened."""
        starts = [_Start(options) for options in configured]
        starts += [
            _Start(TargetOptions(entry.path, entry.size_limit_bytes), entry)
            for entry in await self._not_configured(configured)
        ]
        done, get_done = trio.open_memory_channel[_Start](len(starts))
        for start in starts:
            self.targets.dead[start.options.path] = "is being opened"
            self._nursery.start_soon(self._open_at_start, start, done)
        patience = trio.current_time() + OPEN_PATIENCE_MS / 1000
        for _ in starts:
            until = patience if any(start.target for start in starts) else math.inf
            with trio.move_on_at(until) as waiting:
                await get_done.receive()
            if waiting.cancelled_caught:
                break
        for start in starts:
            if start.mistake is not None:
                raise start.mistake
        for start in starts:
            start.is_late = True  # if it is not done
            if start.target is not None:
                self._serve(start.target)
        if not self.targets.living:
            path, reason = next(iter(self.targets.dead.items()))
            raise UserError(f"no target can be opened; the first: {path}: {reason}")

    async def _open_at_start(self, start: "_Start", done: "trio.MemorySendChannel[_Start]") -> None:
        """Raises nothing: what went wrong is shown, or in ``start``."""
        options = start.options
        try:
            if start.added is not None:
                await self._in_time(options.path, partial(self._check_disk, start.added))
            target = await self._take_in(options)
        except UserError as error:
            if start.is_late or isinstance(error, TargetInUse):
                self._leave_out(options.path, str(error))
            else:
                start.mistake = error
        except (TargetDown, OSError, IndexDamaged) as error:
            self._leave_out(options.path, str(error))
        else:
            if start.is_late:
                self._serve(target)
                _log.info("%s is open, too", target.path)
            start.target = target
        done.send_nowait(start)

    async def _in_time(self, path: str, work: Callable[[], _T]) -> _T:
        """Do what a disk that hangs must not hold up. Raises what ``work`` raises, and TargetDown."""
        watch = Watch(self._call_ms_max)

        def watched() -> _T:
            with watch.call("looking at it"):
                return work()

        return await in_time(watch, path, watched)

    async def _not_configured(self, configured: Sequence[TargetOptions]) -> list[AddedTarget]:
        """What was added and is not in the configuration by now."""
        entries = self._added.entries if self._added is not None else ()
        if not entries:
            return []

        def look(real: Callable[[str], str]) -> list[AddedTarget]:
            paths = {real(options.path) for options in configured}
            return [entry for entry in entries if real(entry.path) not in paths]

        try:
            return await self._in_time("the targets", partial(look, os.path.realpath))
        except TargetDown:  # a disk hangs: what has two names is found to be in use
            return look(os.path.abspath)

    def _check_disk(self, entry: AddedTarget) -> None:
        """Raises TargetDown unless the directory holds the target that was added: an empty one is a disk that is not
        mounted, and would become another target on whatever is below."""
        found = target_in(self._disk, entry.path)
        if found is None or found.uuid != entry.uuid:
            raise TargetDown(f"{entry.path} does not hold the target that was added there: is its disk mounted?")

    def _leave_out(self, path: str, reason: str) -> None:
        _log.error("%s is left out: %s", path, reason)
        self.targets.dead[path] = reason

    # --- adding ------------------------------------------------------------------------------------------------------

    async def answer_add(self, call: Call, request: AddTarget, payload: memoryview) -> TargetAdded:
        """A handler for ADD_TARGET. Raises PosixError and ShoalError with the reason, in one line for the operator."""
        try:
            target = await self.add(TargetOptions(request.path, request.size_limit_bytes))
        except UserError as error:
            raise PosixError(errno.EINVAL, str(error)) from error
        except OSError as error:
            raise PosixError(error.errno or errno.EINVAL, f"{request.path}: {error.strerror}") from error
        except IndexDamaged as error:
            raise TargetDown(f"{request.path}: {error}") from error
        return TargetAdded(target.id, target.uuid)

    async def add(self, options: TargetOptions) -> Target:
        """Make the directory a target of this server, now and after each restart. Returns when it is registered, or,
        with number 0, if that takes long.

        Raises UserError, OSError, IndexDamaged, TargetDown, TargetRemoved, Overloaded: then it is none. Cancelled: it
        is one, or not.
        """
        async with self._changing:
            await self._in_time(options.path, partial(self._check_new, options))
            with trio.CancelScope(shield=True):  # a target that is open is also written down, or closed again
                target = await self._take_in(options)
                try:
                    await trio.to_thread.run_sync(self._write_down, options, target)
                except BaseException:
                    await self._close(target)
                    raise
                self._serve(target)
        _log.info("%s was added", target.path)
        with trio.move_on_after(_REGISTER_S):
            await target.enrolled.wait()
        if target.refused is not None:
            raise target.refused
        return target

    def _check_new(self, options: TargetOptions) -> None:
        path = options.path
        if self._added is None:
            raise UserError(
                "this chunkserver was started without a configuration file, so it cannot write down what is added: "
                "start it with --config, or with one more --target"
            )
        if not os.path.isabs(path) or "\0" in path or len(os.fsencode(path)) > TARGET_PATH_BYTES_MAX:
            raise UserError(f"{path[:100]!r}: expected an absolute path of at most {TARGET_PATH_BYTES_MAX} bytes")
        if len(self.targets.living) >= TARGETS_PER_SERVER_MAX:
            raise Overloaded(f"a chunkserver has at most {TARGETS_PER_SERVER_MAX} targets")
        real = os.path.realpath(path)
        for opened in list(self._open.values()):
            target, other = opened.target, opened.real_path
            if target is None:
                continue
            if real == other:
                raise UserError(f"{path} is target {target.id} of this chunkserver already")
            if os.path.commonpath((real, other)) in (real, other):
                raise UserError(
                    f"{path} and target {target.id} in {target.path} lie within one another: use another one"
                )
        try:
            self._disk.list_dir(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such directory on this chunkserver's machine: make it first") from None
        except NotADirectoryError:
            raise UserError(f"{path} is no directory") from None

    def _write_down(self, options: TargetOptions, target: Target) -> None:
        assert self._added is not None
        self._added.put(AddedTarget(options.path, target.uuid.hex(), options.size_limit_bytes))

    # --- letting go --------------------------------------------------------------------------------------------------

    def let_go(self, uuid: bytes, refusal: TargetRemoved) -> None:
        """The cluster has removed the target: it is served no longer, and not opened again if it was added here. It is
        closed by and by: its disk may hang, and the other targets are not to wait for that."""
        self._nursery.start_soon(self._forget, self.targets.living.pop(uuid), refusal)

    async def _forget(self, target: Target, refusal: TargetRemoved) -> None:
        uuid = target.uuid
        async with self._changing:
            was_added = self._added is not None and any(entry.uuid == uuid.hex() for entry in self._added.entries)
            with trio.CancelScope(shield=True):
                await self._close(target)
                if was_added:
                    assert self._added is not None
                    try:
                        await trio.to_thread.run_sync(self._added.drop, uuid.hex())
                    except OSError as error:  # the next start finds out again
                        _log.error("%s: %s stays written down: %s", self._added.path, target.path, error)
            if not was_added:
                self.targets.dead[target.path] = "was removed from the cluster: take it out of the configuration"
            target.refuse(refusal)
        _log.warning("%s was removed from the cluster and is served no more", target.path)

    async def _close(self, target: Target) -> None:
        opened = self._open.pop(target.uuid)
        await target.stop()
        opened.leave.set()
        await opened.gone.wait()

    def close_all(self) -> None:
        """Have all targets put on disk and closed. Nobody uses them any more."""
        self._ending = True
        for opened in self._every:
            opened.leave.set()

    # --- the task of one target ---------------------------------------------------------------------------------------

    async def _take_in(self, options: TargetOptions) -> Target:
        """Open it; nobody is told yet. Raises UserError, TargetDown, OSError, IndexDamaged."""
        opened = _Open()
        self._every.add(opened)
        if self._ending:
            opened.leave.set()
        self._nursery.start_soon(self._hold, options, opened)
        with trio.CancelScope(shield=True):  # a store that is being opened cannot be interrupted
            await opened.ready.wait()
        if opened.error is not None:
            raise opened.error
        target = opened.target
        if target is None:  # what its task met ends the server
            raise TargetDown(f"{options.path} is not open")
        if (other := self._open.get(target.uuid)) is not None:  # it was copied, and has a lock of its own
            opened.leave.set()
            assert other.target is not None
            raise UserError(f"{options.path} is a copy of the target in {other.target.path}: use an empty directory")
        self._open[target.uuid] = opened
        return target

    def _serve(self, target: Target) -> None:
        """From here on it is registered and asked for things, and only :meth:`let_go` takes it away again."""
        self.targets.living[target.uuid] = target
        self.targets.dead.pop(target.path, None)
        self.targets.note_change()

    async def _hold(self, options: TargetOptions, opened: _Open) -> None:
        """Have it open until it is to leave. Shielded: others may be in the middle of using it. How long its disk may
        take for that is bounded in target.py."""

        def open_store(watch: Watch) -> ChunkStore:
            with watch.call("looking at it"):
                opened.real_path = os.path.realpath(options.path)
            return ChunkStore(
                self._disk,
                options.path,
                cluster_id=self._cluster_id,
                fresh_uuid=secrets.token_bytes(16),
                clock_ns=time.time_ns,
                size_limit_bytes=options.size_limit_bytes,
                watch=watch,
            )

        with trio.CancelScope(shield=True):
            try:
                async with open_target(open_store, self._call_ms_max) as opened.target:
                    opened.ready.set()
                    await opened.leave.wait()
            except (UserError, ShoalError, OSError, IndexDamaged) as error:
                if opened.target is not None:
                    raise
                opened.error = error
            finally:
                opened.ready.set()
                opened.gone.set()
                self._every.discard(opened)


@asynccontextmanager
async def open_keeper(
    disk: Disk, cluster_id: bytes, added: AddedTargets | None, call_ms_max: int = DISK_CALL_MS_MAX
) -> AsyncIterator[Keeper]:
    """With the block, all targets are put on disk and closed. Nobody may use them any more by then."""
    async with trio.open_nursery() as nursery:
        keeper = Keeper(nursery, disk, cluster_id, added, call_ms_max)
        try:
            yield keeper
        finally:
            keeper.close_all()
