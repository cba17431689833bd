"""The parts of one mount between what answers the kernel and the session: put together and run, in one place for the
real mount, for tests without a kernel, and for the simulation."""

import logging

import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.fs.data_path import DataPath
from shoalfs.fs.handles import Handles
from shoalfs.fs.native_making import NativeMakes, NativeMaking
from shoalfs.fs.own_directories import OwnDirectories
from shoalfs.fs.pages import KernelPages
from shoalfs.fs.ports import Kernel
from shoalfs.fs.releases import Releases
from shoalfs.fs.scans import Scans
from shoalfs.fs.vfs import Vfs
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.limits import SCAN_CHUNK_BYTES_MAX

log = logging.getLogger("shoal.fs.parts")


class Parts:
    """``coherent`` has begun its session. :meth:`run` must be running for anything to be answered."""

    def __init__(
        self,
        coherent: Coherent,
        data_path: DataPath,
        handles: Handles,
        kernel: Kernel,
        *,
        pages: KernelPages | None = None,
        durable_close: bool = False,
        native: NativeMakes | None = None,
        chunk_bytes_max: int = SCAN_CHUNK_BYTES_MAX,
    ) -> None:
        self._coherent = coherent
        self._data_path = data_path
        self.releases = Releases(coherent)
        self._scans = Scans(
            coherent,
            data_path.fetch_many,
            data_path.counters,
            chunk_bytes_max=chunk_bytes_max,
        )
        self._own = OwnDirectories(coherent, self.releases)
        self.vfs = Vfs(
            coherent,
            data_path,
            handles,
            self.releases,
            self._scans,
            KernelPages() if pages is None else pages,
            kernel,
            durable_close=durable_close,
        )
        self._scans.serve(self.vfs)
        coherent.on_looked_up = self._scans.looked_up
        coherent.making.on_made = self._own.made
        coherent.making.on_closed = self.releases.add
        coherent.making.settle_closed = self.vfs.closing.settle
        coherent.making.is_due = self.vfs.closing.is_due
        self._native_making: NativeMaking | None = None
        if native is not None and not durable_close:
            making = NativeMaking(native, coherent.making, self.vfs, coherent.making.session, handles)
            coherent.making.take_native, coherent.making.revoke_native = making.take, making.revoke
            coherent.making.changed_native = making.changed
            self._own.on_own = making.grant
            self._native_making = making

    async def run(self) -> None:
        """Until cancelled. :meth:`end` afterwards: then nobody commits anything any more."""
        parts = (
            self._coherent,
            self._data_path,
            self.releases,
            self._scans,
            self._own,
            self.vfs.closing,
            self.vfs.listings,
        )
        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(part.run)
            if self._native_making is not None:
                nursery.start_soon(self._native_making.run)

    async def end(self) -> None:
        """Commit what is dirty, durably, tell of what was made, and say what is closed. What fails is logged: it is
        lost."""
        for error in await self._data_path.flush_all(durable=True):
            log.error("bytes that were not committed are lost: %s", error)
        try:
            await self._coherent.new_files.tell_all()
        except ShoalError as error:
            log.error("files that were made here are lost: %s", error)
        await self.releases.send_all()
