"""The file in which a chunkserver writes down the targets that it was given while it ran.

The configuration is the operator's and is never written by a program; what `shoal target add` adds stands beside it,
in ``FILE.targets`` if it is ``FILE`` (or where ``chunkserver.added_targets`` says). A server has the targets of both,
those of its configuration first. One line of JSON, so that a person can move an entry into the configuration, or take
out that of a disk that is gone, while the server does not run.

It is written beside the old one, synced, renamed over it, and the directory is synced: a crash in any gap leaves the
old file or the new one.
"""

import os
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from shoalfs.chunkserver.disk import Disk
from shoalfs.transport.errors import UserError
from shoalfs.transport.limits import TARGET_PATH_BYTES_MAX, TARGETS_PER_SERVER_MAX

_FILE_BYTES_MAX: Final = TARGETS_PER_SERVER_MAX * (6 * TARGET_PATH_BYTES_MAX + 200)  # JSON may take 6 bytes for one


class AddedTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``uuid``: of the target that was in the directory, in hex: what is there later may be another disk, or none."""

    path: str
    uuid: str
    size_limit_bytes: int | None = None


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    targets: Annotated[tuple[AddedTarget, ...], Meta(max_length=TARGETS_PER_SERVER_MAX)] = ()


class AddedTargets:
    """The file at ``path``, which need not exist. All calls block."""

    def __init__(self, disk: Disk, path: str) -> None:
        """Raises UserError if there is something else in the file, OSError if it cannot be read."""
        self._disk = disk
        self.path = path
        self.entries = self._read()

    def put(self, entry: AddedTarget) -> None:
        """On disk when it returns. Raises OSError; then the file is as before."""
        self._write((*(other for other in self.entries if other.path != entry.path), entry))

    def drop(self, uuid: str) -> None:
        """No entry has this uuid, on disk, when it returns. Raises OSError; then the file is as before."""
        kept = tuple(entry for entry in self.entries if entry.uuid != uuid)
        if kept != self.entries:
            self._write(kept)

    def _read(self) -> tuple[AddedTarget, ...]:
        directory, name = os.path.split(self.path)
        if name not in self._disk.list_dir(directory):
            return ()
        fd = self._disk.open(self.path)
        try:
            data = bytearray(min(self._disk.size(fd), _FILE_BYTES_MAX + 1))
            self._disk.preadv(fd, [memoryview(data)], 0)
        finally:
            self._disk.close(fd)
        try:
            return msgspec.json.decode(data, type=_Contents).targets
        except msgspec.DecodeError as error:
            raise UserError(
                f"{self.path}: not what a chunkserver wrote ({error}): put it right, or remove it and add them again"
            ) from error

    def _write(self, entries: tuple[AddedTarget, ...]) -> None:
        data = msgspec.json.encode(_Contents(entries)) + b"\n"
        beside = f"{self.path}.new"
        fd = self._disk.open(beside, create=True)
        try:
            self._disk.truncate(fd, 0)
            self._disk.pwritev(fd, [data], 0)
            self._disk.fdatasync(fd)
        finally:
            self._disk.close(fd)
        self._disk.rename(beside, self.path)
        self._disk.sync_dir(os.path.dirname(self.path))
        self.entries = entries
