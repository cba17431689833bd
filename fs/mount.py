"""Builds a mount from its parts, runs it, and takes it down without losing what was written.

Order at the end, whatever ends it (umount, SIGTERM): the kernel unmounts, which makes it write what it has; if programs
use the mount it is not unmounted, and their next calls fail; what is dirty is committed; closed files are reported; the
session is ended; the connections are closed. So each part lasts longer than those that need it, also when the whole is
cancelled: once it is mounted, being cancelled means no more than being asked to unmount.

A process that is killed skips all of it: then what was not flushed is lost, as the contract says, and the session is
ended by the next mount at the same point (`fs/legacy.py`), or ends by itself after its TTL.
"""

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.fs import fuse_wait, mountinfo
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.credentials import CredentialsCache
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.directory_pages import DirectoryPages, Timeouts
from shoalfs.fs.file_locks import FileLocks
from shoalfs.fs.file_ranges import FileRanges
from shoalfs.fs.fuse_binding import native, pyfuse3
from shoalfs.fs.handles import Handles
from shoalfs.fs.kernel_cache import KernelCache
from shoalfs.fs.known_files import KnownFiles
from shoalfs.fs.legacy import legacy_at
from shoalfs.fs.making import Making
from shoalfs.fs.native_ops import NativeOps
from shoalfs.fs.operations import Operations
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.parts import Parts
from shoalfs.fs.replicate import Replication
from shoalfs.fs.root import find_root
from shoalfs.fs.vfs import Vfs
from shoalfs.mds.client import MdsClient, open_session
from shoalfs.mds.messages import CLIENT, INVALIDATE, WRITE_BACK
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import SessionGone, UserError
from shoalfs.transport.limits import DIRTY_BYTES_DEFAULT, READ_CACHE_BYTES_DEFAULT, SCAN_CHUNK_BYTES_MAX
from shoalfs.transport.network import open_network
from shoalfs.transport.service import Service
from shoalfs.transport.session import PROTOCOL_VERSION, Hello

log = logging.getLogger("shoal.fs.mount")

FSTYPE: Final = "shoalfs"
START_MS: Final = 30_000  # how long a mount waits for a metadata service that does not answer
_WORKERS_MAX = 64  # handlers in flight; more would only queue at the service
_FLUSH_AT_END_S = 60.0
_READ_AHEAD_KIB = 1024


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. ``metadata``: addresses of metadata nodes, at least one. ``cluster_id``: 16 bytes, or empty to
    take whichever cluster answers there."""

    mountpoint: str
    metadata: tuple[str, ...]
    cluster_id: bytes = b""
    entry_timeout_ms: int = 300_000
    attr_timeout_ms: int = 300_000
    dirty_bytes: int = DIRTY_BYTES_DEFAULT
    cache_bytes: int = READ_CACHE_BYTES_DEFAULT
    replication: Replication = "fanout"
    durable_close: bool = False
    allow_other: bool = field(default_factory=lambda: os.geteuid() == 0)
    read_only: bool = False
    no_exec: bool = False
    no_lock: bool = False  # locks hold on this machine only
    subdir: str = ""  # a directory of the cluster that becomes the root of the mount; empty: all of it
    legacy_path: str = ""  # see fs/legacy.py; empty: nothing is left to the next mount at the point

    @property
    def untold(self) -> bool:
        """The kernel does not tell of opens: nothing is written or locked, so nothing depends on them."""
        return self.read_only and self.no_lock and native.shim is not None


def fuse_options(options: MountOptions) -> set[str]:
    """Options of mount(8) and libfuse. Permissions are checked by the kernel with the caller's own groups, and again
    by the metadata service; device nodes and suid programs of the mount are inert, as on every network filesystem
    that users can mount."""
    chosen = set(pyfuse3.default_options)
    source = ",".join(options.metadata)
    if options.subdir.strip("/"):
        source += f",subdir=/{options.subdir.strip('/')}"  # where `shoal info` and others find it
    source = source.replace("\\", "\\\\").replace(",", "\\,")  # libfuse splits at commas that are not escaped
    chosen |= {f"fsname={FSTYPE}:{source}", f"subtype={FSTYPE}"}
    chosen |= {"default_permissions", "nosuid", "nodev"}
    chosen.add("noatime")  # so it is (docs/decisions/0009-access-times.md), and the table of mounts says so
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    if options.no_exec:
        chosen.add("noexec")
    return chosen


async def run(
    options: MountOptions,
    carriers: Carriers,
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount, serve until unmounted or cancelled, unmount. Reports when the kernel can ask.

    Raises UserError if it cannot mount there, ShoalError if no metadata node answers within START_MS. Cancelled: what
    is dirty is committed first, for at most a minute.
    """
    name = f"{socket.gethostname()}:{os.getpid()}"
    hello = Hello(PROTOCOL_VERSION, options.cluster_id, CLIENT, name)
    handles = Handles() if native.shim is None or options.untold else Handles(native=native.shim)
    data_paths: list[DataPath] = []  # the one of this mount, once the session that it needs is open

    kernel = KernelCache()
    coherent = Coherent(kernel, handles)
    service = Service()
    service.add(INVALIDATE, coherent.handle_invalidate)
    service.add(WRITE_BACK, coherent.handle_write_back)

    def session_lost() -> None:
        """What was not committed is lost by contract; files without such bytes go on under the new session."""
        coherent.session_lost()
        handles.registered.clear()
        for data_path in data_paths:
            data_path.lose_all(SessionGone())

    place = legacy_at(options.legacy_path) if options.legacy_path else nullcontext()
    async with _until_cancelled() as end:
        with place as legacy:
            async with (
                open_network(carriers, hello, service) as network,
                open_session(
                    network,
                    options.metadata,
                    f"{name}:{options.mountpoint}",
                    opens=handles.reported,
                    writes=coherent.kept_writes,
                    on_lost=session_lost,
                    on_new_leader=coherent.meet_new_leader,
                    start_ms=START_MS,
                    legacy=legacy,
                ) as session,
            ):
                coherent.begin(session)
                data_path = DataPath(
                    coherent,
                    ChunkClient(network),
                    dirty_bytes=options.dirty_bytes,
                    cache_bytes=options.cache_bytes,
                    replication=options.replication,
                    is_open=(lambda ino: False) if options.untold else handles.is_held,
                )
                coherent.attach(data_path)
                data_paths.append(data_path)
                await _serve(options, handles, coherent, session, kernel, data_path, end, task_status)


@dataclass(frozen=True, slots=True)
class _End:
    """How the block of :func:`_until_cancelled` hears of its end: it is cancelled, but after :meth:`defer` it is only
    ``asked`` to end."""

    asked: trio.Event
    block: trio.CancelScope

    def defer(self) -> None:
        self.block.shield = True


@asynccontextmanager
async def _until_cancelled() -> AsyncIterator[_End]:
    end = _End(trio.Event(), trio.CancelScope())

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            end.asked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        with end.block:
            yield end
        nursery.cancel_scope.cancel()


async def _serve(
    options: MountOptions,
    handles: Handles,
    coherent: Coherent,
    session: MdsClient,
    kernel: KernelCache,
    data_path: DataPath,
    end: _End,
    task_status: "trio.TaskStatus[None]",
) -> None:
    """Put the parts together and run them; at the end, in the order that the module describes."""
    session.locks.on_lost = handles.lose
    pages = KernelPages(kernel.forget_pages) if options.untold else KernelPages()
    parts = Parts(
        coherent,
        data_path,
        handles,
        kernel,
        pages=pages,
        durable_close=options.durable_close,
        native=None if options.untold else native.shim,
        chunk_bytes_max=min(SCAN_CHUNK_BYTES_MAX, options.cache_bytes // 2),
    )
    vfs, known = parts.vfs, None
    if options.untold:
        known = KnownFiles(vfs, handles, pages, kernel)
        coherent.on_recalled = kernel.prune  # what is forgotten is closed, for the leader
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.run)
        nursery.start_soon(kernel.run)
        try:
            locks = FileLocks(session.locks, vfs)
            await _answer_kernel(options, vfs, kernel, locks, handles, known, coherent.making, end, task_status)
        finally:
            with trio.move_on_after(_FLUSH_AT_END_S):
                await parts.end()
        nursery.cancel_scope.cancel()


async def _answer_kernel(
    options: MountOptions,
    vfs: Vfs,
    kernel: KernelCache,
    locks: FileLocks,
    handles: Handles,
    known: KnownFiles | None,
    making: Making,
    end: _End,
    task_status: "trio.TaskStatus[None]",
) -> None:
    """Take requests from the kernel until the filesystem is unmounted, from outside or because of ``end``."""
    root = await find_root(vfs, options.subdir)
    credentials = CredentialsCache(pyfuse3.get_sup_groups, trio.current_time)
    entry_timeout_s, attr_timeout_s = options.entry_timeout_ms / 1000, options.attr_timeout_ms / 1000
    timeouts = Timeouts(entry_timeout_s, attr_timeout_s)
    pages = DirectoryPages(vfs, lambda: kernel.keeps_names, timeouts, known)
    operations = Operations(vfs, locks, credentials, lambda: kernel.keeps_names, root, pages, timeouts, known)
    taken: AbstractAsyncContextManager[None] = nullcontext()
    if native.shim is not None:
        if known is not None:
            native.shim.refuse_opens()
        shared = None if options.no_lock else locks
        ranges = FileRanges(handles, vfs.statfs, vfs.getattr)
        last = partial(making.revoke_native, None)
        ops = NativeOps(native.shim, vfs, shared, ranges, credentials, pages, timeouts, root, known, last=last)
        taken = ops.running()
    end.defer()
    ours = _begin(options, operations)
    try:
        descriptor = _fuse_descriptor()
        fuse_wait.install(descriptor, native.shim)
        kernel.attach(descriptor, root.node)
        handles.node_of = root.node
        if native.shim is not None and kernel.keeps_names:
            native.shim.keep_names(entry_timeout_s, attr_timeout_s)
        await _serve_kernel(options.mountpoint, ours, taken, operations.begun, end, task_status)
    finally:
        pyfuse3.close(unmount=_is_on_top(options.mountpoint, ours))


async def _serve_kernel(
    mountpoint: str,
    ours: str,
    taken: AbstractAsyncContextManager[None],
    begun: trio.Event,
    end: _End,
    task_status: "trio.TaskStatus[None]",
) -> None:
    """Until the filesystem is unmounted; at the ``end`` it is. ``begun``: the kernel has said hello.

    Nothing in this process may ask the filesystem that it serves, in whatever thread: a thread that waits for an answer
    is not ended by SIGKILL, so neither are the process and, for whoever looks there, the mount point.
    """
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with taken:
                await pyfuse3.main(max_tasks=_WORKERS_MAX)
            nursery.cancel_scope.cancel()

        async def unmount() -> None:
            """While requests are still answered, so that the kernel can write its pages."""
            await end.asked.wait()
            with trio.move_on_after(_FLUSH_AT_END_S):
                if _is_on_top(mountpoint, ours):
                    await _unmount(mountpoint)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        nursery.start_soon(unmount)
        await begun.wait()
        _set_read_ahead(mountpoint)
        _tell_what_is_missing(mountpoint)
        task_status.started()


def _begin(options: MountOptions, operations: Operations) -> str:
    """Mount; returns the device of the mount (major:minor). Raises UserError."""
    try:
        pyfuse3.init(operations, options.mountpoint, fuse_options(options))
    except RuntimeError as error:
        raise UserError(
            f"mount: {options.mountpoint}: {error}: see that /dev/fuse is there, that fuse3 is installed, and that you "
            "may mount"
        ) from error
    mounted = mountinfo.mounted_at(options.mountpoint, mountinfo.mounts())
    return "" if mounted is None else mounted.device  # somebody was quick to unmount it


def _is_on_top(mountpoint: str, ours: str) -> bool:
    """Whether what is mounted there is this mount, and not one that took its place after ``umount -l``, which is not
    ours to unmount. (As long as anybody uses the mount its device's number is given to no other.)"""
    mounted = mountinfo.mounted_at(mountpoint, mountinfo.mounts())
    return mounted is not None and mounted.device == ours


async def _unmount(mountpoint: str) -> None:
    """Unmount as a person would. A mount that is in use is left to its end: its users get errors."""
    done = await trio.run_process(["fusermount3", "-u", mountpoint], check=False, capture_stderr=True)
    if done.returncode:
        log.warning("%s: %s", mountpoint, done.stderr.decode(errors="replace").strip())


def _fuse_descriptor() -> int:
    """The session's descriptor, which pyfuse3 keeps to itself."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    raise AssertionError("a mounted session has /dev/fuse open")


def _tell_what_is_missing(mountpoint: str) -> None:
    """Called when the kernel has said hello, so that the compiled part has seen the session begin."""
    if native.shim is None or native.shim.granted() is None:
        log.warning(
            "%s: the compiled part (fs/native) is not there: locks hold on this machine only; fallocate, holes, clones "
            "and O_TMPFILE are missing: install gcc, pkg-config and libfuse3-dev, then this package again",
            mountpoint,
        )


def _set_read_ahead(mountpoint: str) -> None:
    """Let the kernel ask for 1 MiB at a time when it reads ahead: measured, a third less processor time per byte."""
    mounted = mountinfo.mounted_at(mountpoint, mountinfo.mounts())
    if mounted is None:
        return  # it was unmounted already
    path = f"/sys/class/bdi/{mounted.device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(_READ_AHEAD_KIB))
    except OSError as error:
        log.info("%s: cannot be set, reading is a little slower: %s", path, error.strerror)
