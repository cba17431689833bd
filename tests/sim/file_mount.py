"""A mount of file_world.py: all of the real one from :class:`~shoalfs.fs.vfs.Vfs` down to its session, below a kernel
that is not, with programs that read and write and note what they saw."""

import os
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from harness.compiled_part import CompiledPart, Programs
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.handles import Handles
from shoalfs.fs.parts import Parts
from shoalfs.fs.vfs import Vfs
from shoalfs.mds import messages as m
from shoalfs.mds.client import MdsClient
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import SessionGone, ShoalError
from shoalfs.transport.ids import InodeId
from sim.file_histories import LogCall
from sim.file_kernel import FileKernel
from sim.hindered import Hindered
from sim.lease_group import ADDRESSES
from sim.lease_network import Line, session_of

if TYPE_CHECKING:
    from sim.file_world import FileWorld

PROGRAMS = 2  # on each mount
PLACES: dict[str, tuple[int, ...]] = {"small": (0, 40), "large": (0, 2_000)}
"""The files that are registers, and where in them. The large one has left its inode."""
LOG = "log"
VALUE_BYTES = 8
FIRST = b"0-000000"
_PAGE_BYTES = 1 << 16


class FileMount(Hindered):
    """One mount with its kernel and its programs, until it is killed."""

    def __init__(self, world: "FileWorld", number: int) -> None:
        self.world, self.number = world, number
        self.line = Line(random.Random(world.chance.random()))
        self.kernel = FileKernel()
        self.handles = Handles()
        self.coherent = Coherent(self.kernel, self.handles, trio.current_time)
        self.compiled = CompiledPart(believed=lambda: bool(self.coherent.left_s()))
        self.session: MdsClient
        self.vfs: Vfs
        self.programs: Programs
        self.scope = trio.CancelScope()
        self._write_back, self.coherent.handle_write_back = self.coherent.handle_write_back, self._noted_write_back

    async def _noted_write_back(self, call: Any, request: m.WriteBack, payload: memoryview) -> m.WrittenBack:
        answer = await self._write_back(call, request, payload)
        if not answer.done:
            self.world.excuse("could not commit", self.session.session, request.ino)
        return answer

    async def run(self, *, task_status: "trio.TaskStatus[None]") -> None:
        data_paths: list[DataPath] = []

        def lost() -> None:
            self.coherent.session_lost()
            self.handles.registered.clear()
            for data_path in data_paths:
                data_path.lose_all(SessionGone())

        fabric, name = self.world.fabric, f"mount{self.number}"
        with self.scope:
            async with session_of(
                fabric, self.line, ADDRESSES, name, self.coherent, on_lost=lost, opens=self.handles.open_inodes
            ) as self.session:
                data_path = DataPath(self.coherent, self.world.servers)
                data_paths.append(data_path)
                self.coherent.attach(data_path)
                parts = Parts(self.coherent, data_path, self.handles, self.kernel, native=self.compiled)
                self.vfs = parts.vfs
                self.programs = Programs(self.vfs, self.compiled)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(parts.run)
                    task_status.started()
                    if self.world.files:
                        self.start_programs(nursery)
                    else:
                        self.world.ready.append(nursery)
                    await trio.sleep_forever()

    def start_programs(self, nursery: trio.Nursery) -> None:
        for _ in range(PROGRAMS):
            nursery.start_soon(self.world.program(self).run)

    def kill(self) -> None:
        """As SIGKILL together with the machine: nobody hears of it. What its programs had not heard they never will."""
        self.line.cut()
        self.scope.cancel()

    # --- what the kernel makes of system calls -----------------------------------------------------------------------

    async def open(self, ino: InodeId, flags: int) -> int:
        number, caching = await self.vfs.open(ROOT, ino, flags)
        await self.kernel.answered()
        if not caching.keep and not caching.direct:
            self.kernel.drop(ino)
        return number

    async def read(self, ino: InodeId, number: int) -> tuple[bytes, bool]:
        """The whole file. False: from a page of which the kernel does not know whether it is old, because a write of
        its own ended while it asked (docs/leases.md, "What is not here")."""
        page = self.kernel.page(ino)
        if page is not None:
            self.world.counts["kernel"] += 1
            return page, True
        await self.kernel.answered()
        asked = self.kernel.asks(ino)
        inode = await self.vfs.getattr(ino)
        left_s = self.vfs.attributes_left_s(ino)
        await self.kernel.answered()
        told = self.kernel.learn(ino, asked, self.vfs.view(inode), left_s)
        page = self.kernel.page_after_looking(ino)
        if page is not None:
            self.world.counts["unsure"] += not told
            return page, told
        with self.kernel.reading(ino) as take:
            data = bytes(await self.vfs.read(number, 0, _PAGE_BYTES))
            await self.kernel.answered()
            take(data)
        return data, True

    async def write(self, ino: InodeId, number: int, offset: int, data: bytes) -> None:
        await self.kernel.answered()
        self.kernel.patch(ino, offset, data)
        try:
            await self.vfs.write(number, offset, data)
        except BaseException:
            self.kernel.drop(ino)
            raise
        await self.kernel.answered()
        self.kernel.written(ino)

    async def append(self, ino: InodeId, number: int, data: bytes) -> None:
        """Through a handle whose pages the kernel does not keep."""
        await self.kernel.answered()
        try:
            await self.vfs.write(number, self.kernel.size(ino), data)
        finally:
            self.kernel.drop(ino)
        await self.kernel.answered()

    async def close(self, number: int) -> None:
        await self.kernel.answered()
        try:
            await self.vfs.flush(number)
            await self.kernel.answered()
        finally:
            await self.vfs.release(number)

    async def fsync(self, number: int) -> None:
        await self.kernel.answered()
        await self.vfs.fsync(number)
        await self.kernel.answered()


class Running:
    """A program: it takes steps until the world is quiet."""

    def __init__(self, mount: FileMount) -> None:
        self.mount, self.world = mount, mount.world
        self.chance = random.Random(self.world.chance.random())

    async def run(self) -> None:
        while not self.world.is_quiet:
            await trio.sleep(self.chance.expovariate(1 / 0.06))
            try:
                await self._step()
            except ShoalError as error:
                self.world.counts[type(error).__name__] += 1
                await self._start_again()

    async def _step(self) -> None:
        raise NotImplementedError

    async def _start_again(self) -> None:
        """After an error."""


class Program(Running):
    """It has files open, writes and reads, and writes down what it did."""

    def __init__(self, mount: FileMount) -> None:
        super().__init__(mount)
        self._opened: dict[str, int] = {}

    async def _start_again(self) -> None:
        """A file that failed goes on failing until it is closed everywhere on the mount."""
        while self._opened:
            with suppress(ShoalError):
                await self.mount.close(self._opened.popitem()[1])

    async def _step(self) -> None:
        draw = self.chance.random()
        if draw < 0.06:
            await self._append()
        elif draw < 0.12:
            await self._read_log()
        elif draw < 0.15 and self._opened:
            name = self.chance.choice(sorted(self._opened))
            if name != LOG:
                await self._committed_after(name, self.mount.fsync(self._opened[name]))
        elif draw < 0.30 and self._opened:
            name = self.chance.choice(sorted(self._opened))
            await self._committed_after(name, self.mount.close(self._opened.pop(name)))
        else:
            name = self.chance.choice(sorted(PLACES))
            await self._use(name, self.chance.choice(PLACES[name]), is_write=self.chance.random() < 0.4)

    async def _handle(self, name: str, flags: int = os.O_RDWR) -> int:
        if name not in self._opened:
            self._opened[name] = await self.mount.open(self.world.files[name], flags)
        return self._opened[name]

    async def _use(self, name: str, offset: int, *, is_write: bool) -> None:
        call = self.world.begin(self.mount, (name, offset), is_write=is_write)
        number, ino = await self._handle(name), self.world.files[name]
        counts = True
        if is_write:
            await self.mount.write(ino, number, offset, call.value)
        else:
            content, counts = await self.mount.read(ino, number)
            call.value = content[offset : offset + VALUE_BYTES]
        if counts:
            call.ended = trio.current_time()
        self.world.counts["writes" if is_write else "reads"] += 1

    async def _committed_after(self, name: str, closing: Any) -> None:
        began = trio.current_time()
        await closing
        self.world.check_committed(self.mount, name, began)

    async def _append(self) -> None:
        world = self.world
        call = LogCall(self.mount.number, trio.current_time(), True, world.new_value(self.mount))
        world.histories.log.append(call)
        number = await self.mount.open(world.files[LOG], os.O_WRONLY | os.O_APPEND)
        try:
            await self.mount.append(world.files[LOG], number, call.value)
            call.ended = trio.current_time()
        finally:
            await self.mount.close(number)

    async def _read_log(self) -> None:
        call = LogCall(self.mount.number, trio.current_time(), False, b"")
        self.world.histories.log.append(call)
        number = await self._handle(LOG)
        call.value, counts = await self.mount.read(self.world.files[LOG], number)
        if counts:
            call.ended = trio.current_time()
